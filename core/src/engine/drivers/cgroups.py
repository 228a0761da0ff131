"""A container's cgroups, read and changed directly: v1, v2 and the hybrid of both.

A container has one path (``linux.cgroupsPath``), the same in every hierarchy. Reading and removing accept cgroups that
are gone. Shared by the runtime drivers, which differ in who makes the cgroups.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import DeadlineExceeded, NotFound

_KILL_TIMEOUT = 10.0
_FREEZE_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Mount points of the hierarchies. ``controllers``: by v1 controller; ``unified``: cgroup2's, if any."""

    controllers: dict[str, str] = field(default_factory=dict)
    unified: str = ""

    @property
    def version(self) -> str:
        """``v1``, ``v2`` or ``hybrid`` (v1 controllers beside a cgroup2 mount)."""
        if not self.controllers:
            return "v2"
        return "hybrid" if self.unified else "v1"

    @classmethod
    def read(cls, mountinfo: str = "/proc/self/mountinfo") -> Layout:
        """From the mount table."""
        controllers: dict[str, str] = {}
        unified = ""
        for line in Path(mountinfo).read_text().splitlines():
            left, _, right = line.partition(" - ")
            point = left.split(" ")[4]
            kind, _, options = right.split(" ", 2)
            if kind == "cgroup2":
                unified = unified or point
            elif kind == "cgroup":
                for option in options.split(","):
                    if option not in ("rw", "ro", "xattr", "none") and "=" not in option.removeprefix("name="):
                        controllers.setdefault(option, point)
        return cls(controllers, unified)


class Cgroup:
    """The cgroup ``path`` in all hierarchies of ``layout``."""

    def __init__(self, layout: Layout, path: str) -> None:
        self.layout = layout
        self.path = "/" + path.strip("/")

    def directory(self, controller: str) -> Path:
        """Where ``controller`` keeps its files; in the unified hierarchy if v1 does not have it."""
        return Path(self.layout.controllers.get(controller, self.layout.unified) + self.path)

    def directories(self) -> list[Path]:
        """The directories that exist, one a hierarchy."""
        roots = dict.fromkeys([*self.layout.controllers.values(), self.layout.unified])
        return [path for root in roots if root and (path := Path(root + self.path)).is_dir()]

    def remove_if_empty(self) -> None:
        """Remove the directories; one that still holds processes or other cgroups stays."""
        for directory in self.directories():
            with contextlib.suppress(OSError):
                directory.rmdir()

    def processes(self) -> list[int]:
        """Every process in the cgroup and those below it, lowest id first."""
        found: set[int] = set()
        for directory in self.directories():
            for inner, _, _ in os.walk(directory):
                try:
                    found.update(int(line) for line in Path(inner, "cgroup.procs").read_text().split())
                except OSError:  # removed meanwhile, or a threaded cgroup
                    continue
        return sorted(found - {0})

    def kill(self) -> None:
        """Kill everything in it and wait until it is gone. `DeadlineExceeded` if something does not die."""
        if not self.directories():
            return
        deadline = time.monotonic() + _KILL_TIMEOUT
        while pids := self.processes():
            self._thaw_for_good()
            for pid in pids:
                self._kill_one(pid, deadline)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"processes {pids} in cgroup {self.path} cannot be killed")

    @staticmethod
    def _kill_one(pid: int, deadline: float) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(max(0, int(1000 * (deadline - time.monotonic()))))
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)

    def _thaw_for_good(self) -> None:
        """A frozen process (v1) does not even die."""
        if "freezer" in self.layout.controllers:
            for inner, _, _ in os.walk(self.directory("freezer"), topdown=False):
                _write(Path(inner, "freezer.state"), "THAWED", missing_ok=True)

    def remove(self) -> None:
        """Remove the (empty) cgroups, inner ones first."""
        for directory in self.directories():
            for inner, _, _ in os.walk(directory, topdown=False):
                for attempt in range(50):  # the last process may still be on its way out
                    try:
                        os.rmdir(inner)
                    except FileNotFoundError:
                        pass
                    except OSError as error:
                        if error.errno != errno.EBUSY or attempt == 49:
                            raise
                        time.sleep(0.002 * attempt)
                        continue
                    break

    def freeze(self) -> None:
        """Stop all processes; returns when they have stopped."""
        self._freeze(True)

    def thaw(self) -> None:
        """Let all processes go on."""
        self._freeze(False)

    def _freeze(self, frozen: bool) -> None:
        directory = self.directory("freezer")
        if "freezer" in self.layout.controllers:
            state, wanted = directory / "freezer.state", "FROZEN" if frozen else "THAWED"
            _write(state, wanted)
        else:
            state, wanted = directory / "cgroup.events", f"frozen {int(frozen)}"
            _write(directory / "cgroup.freeze", str(int(frozen)))
        deadline = time.monotonic() + _FREEZE_TIMEOUT
        while wanted not in state.read_text().splitlines():
            if time.monotonic() > deadline:
                _write(
                    directory / ("freezer.state" if "freezer" in self.layout.controllers else "cgroup.freeze"), "THAWED"
                )
                raise DeadlineExceeded(f"cgroup {self.path} did not become {wanted.lower()} in time")
            time.sleep(0.001)

    # -- reading --------------------------------------------------------------------------------------------

    def number(self, controller: str, name: str, default: int = 0) -> int:
        """One number of a control file; ``max`` and a missing file are ``default``."""
        text = self.text(controller, name).strip()
        return int(text) if text.lstrip("-").isdigit() else default

    def text(self, controller: str, name: str) -> str:
        """A control file; empty when there is none."""
        try:
            return (self.directory(controller) / name).read_text()
        except OSError:
            return ""

    def table(self, controller: str, name: str) -> dict[str, int]:
        """A file of ``key number`` lines."""
        rows = (line.split() for line in self.text(controller, name).splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}

    def devices(self, name: str) -> Iterator[tuple[int, int, str, int]]:
        """A v1 blkio file: major, minor, operation (``""`` if the file has none), value."""
        for line in self.text("blkio", name).splitlines():
            row = line.split()
            if len(row) >= 2 and ":" in row[0]:
                major, _, minor = row[0].partition(":")
                yield int(major), int(minor), row[1] if len(row) == 3 else "", int(row[-1])


def _write(path: Path, text: str, *, missing_ok: bool = False) -> None:
    try:
        path.write_text(text)
    except FileNotFoundError:
        if not missing_ok:
            raise NotFound(f"cgroup {path.parent} is gone: the container is not running") from None
