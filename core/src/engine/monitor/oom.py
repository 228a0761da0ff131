"""Out-of-memory kills in a container, as its memory cgroup counts them."""

from __future__ import annotations

import ctypes
import os

_IN_MODIFY = 0x00000002

_mount: tuple[str, str, bool] | None = None


def memory_mount() -> tuple[str, str, bool]:
    """Where the memory controller is mounted: mount point, the cgroup mounted there, whether it is cgroup v1.

    Found once; a launcher calls this before it forks. The mount point is empty when there is none.
    """
    global _mount
    if _mount is None:
        _mount = ("", "/", False)
        with open("/proc/self/mountinfo") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                kind, _, options = right.split(" ", 2)
                root, point = left.split(" ")[3:5]
                if kind == "cgroup" and "memory" in options.strip().split(","):
                    _mount = (point, root, True)
                    break
                if kind == "cgroup2" and not _mount[0]:
                    _mount = (point, root, False)
    return _mount


class OomWatch:
    """Counts the OOM kills in the memory cgroup of ``pid``; ``fd`` is readable after one, -1 if that cannot be had."""

    def __init__(self, pid: int) -> None:
        self.fd = -1
        self._counter = ""
        self._seen = 0
        mount, root, old = memory_mount()
        path = self._cgroup(pid, old)
        if root != "/" and path.startswith(root):
            path = path[len(root) :]
        if not mount or path in ("", "/"):
            return
        directory = mount + path
        self._counter = directory + ("/memory.oom_control" if old else "/memory.events")
        self._seen = self.count()  # left from an earlier process when the cgroup is shared
        self._first = self._seen
        try:
            self.fd = self._subscribe_v1(directory) if old else self._subscribe_v2()
        except OSError:
            pass  # the count is still read at the exit

    @staticmethod
    def _cgroup(pid: int, old: bool) -> str:
        try:
            with open(f"/proc/{pid}/cgroup") as lines:
                for line in lines:
                    _, controllers, path = line.rstrip("\n").split(":", 2)
                    if "memory" in controllers.split(",") if old else not controllers:
                        return path
        except OSError:
            pass
        return ""

    def _subscribe_v1(self, directory: str) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            counter = os.open(self._counter, os.O_RDONLY | os.O_CLOEXEC)
            try:
                control = os.open(directory + "/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(control, b"%d %d" % (fd, counter))
                finally:
                    os.close(control)
            finally:
                os.close(counter)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _subscribe_v2(self) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        fd: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(self._counter), _IN_MODIFY) < 0:
            if fd >= 0:
                os.close(fd)
            raise OSError(ctypes.get_errno(), "inotify")
        return fd

    def count(self) -> int:
        """OOM kills so far; 0 when there is nothing to count with, the last known number once the cgroup is gone."""
        if not self._counter:
            return 0
        try:
            with open(self._counter) as lines:
                for line in lines:
                    if line.startswith("oom_kill "):
                        return int(line[9:])
        except OSError:
            pass
        return self._seen

    def fresh(self) -> bool:
        """Whether there were kills since the last call; takes what is pending on ``fd``."""
        if self.fd >= 0:
            try:
                os.read(self.fd, 4096)
            except BlockingIOError:
                pass
        count = self.count()
        more = count > self._seen
        self._seen = max(count, self._seen)
        return more

    @property
    def killed(self) -> bool:
        """Whether any process was killed since the watch began."""
        return bool(self._counter) and self._seen > self._first

    def close(self) -> None:
        """Give back the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
