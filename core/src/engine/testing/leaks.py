"""What a test may not leave behind: mounts, links, namespaces, child processes, open files, threads."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Snapshot"]


def _mounts(below: str) -> frozenset[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return frozenset(point for point in points if point.startswith(below))


def _links() -> frozenset[str]:
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return frozenset(line.partition(":")[0].strip() for line in lines)


def _children() -> frozenset[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found |= set((task / "children").read_text().split())
        except OSError:
            continue
    return frozenset(found)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of this process and its namespaces at one moment."""

    below: str
    network: bool
    mounts: frozenset[str]
    links: frozenset[str]
    children: frozenset[str]
    descriptors: int
    threads: int

    @classmethod
    def take(cls, below: str = "/", *, network: bool = True) -> Snapshot:
        """Now. On a machine others use too, look at mounts ``below`` an own directory only, and at links only in
        one's own namespace."""
        links = _links() if network else frozenset[str]()
        return cls(below, network, _mounts(below), links, _children(), _descriptors(), threading.active_count())

    def leaked(self, patience: float = 2.0) -> list[str]:
        """What is there now and was not then. Background clean-up is given ``patience`` seconds to finish."""
        deadline = time.monotonic() + patience
        while (found := self._difference()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def _difference(self) -> list[str]:
        now = Snapshot.take(self.below, network=self.network)
        found = [f"mount {name}" for name in sorted(now.mounts - self.mounts)]
        found += [f"link {name}" for name in sorted(now.links - self.links)]
        found += [f"child process {pid}" for pid in sorted(now.children - self.children)]
        if now.descriptors > self.descriptors:
            found.append(f"{now.descriptors - self.descriptors} open files")
        if now.threads > self.threads:
            found.append(f"{now.threads - self.threads} threads")
        return found
