"""Moves between cgroups, made quick by asking for one early.

The kernel lets the first process that moves to another cgroup after a quiet time wait for an RCU grace period (7 ms
where it was measured, a third of an exec); those that move within 10 ms after it do not wait. A runtime moves every
process it starts. So while a start is still being planned, a move is made that changes nothing: of this process to
the cgroup it is in.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

_REPEAT = (0.0, 0.008, 0.008)  # seconds between the moves: together they cover the 30 ms a start may take to its own


class MoveAhead:
    """Makes the kernel ready for a move, in the background."""

    def __init__(self, table: Path = Path("/proc/self")) -> None:
        self._table = table
        self._busy = threading.Lock()

    def hint(self) -> None:
        """A process will move in a few milliseconds. Returns at once."""
        if self._busy.acquire(blocking=False):
            try:
                threading.Thread(target=self._move, name="move-ahead", daemon=True).start()
            except BaseException:
                self._busy.release()
                raise

    def _move(self) -> None:
        try:
            members = own_cgroup(self._table) / "cgroup.procs"
            fd = os.open(members, os.O_WRONLY | os.O_CLOEXEC)
            try:
                for pause in _REPEAT:
                    time.sleep(pause)
                    os.write(fd, b"%d" % os.getpid())
            finally:
                os.close(fd)
        except (OSError, LookupError):
            pass  # then the runtime waits, as it would have
        finally:
            self._busy.release()


def own_cgroup(table: Path) -> Path:
    """A directory of the cgroup this process is in; `LookupError` when no hierarchy that shows it is mounted."""
    paths: dict[str, str] = {}
    for line in (table / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in (table / "mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, point = left.split(" ")[3:5]
        for name in options.split(",") if kind == "cgroup" else ("",):
            path = paths.get(name, "")
            if path and (path + "/").startswith(root.rstrip("/") + "/"):
                return Path(point + "/" + path[len(root.rstrip("/")) :])
    raise LookupError("no cgroup of this process is mounted")
