"""How a monitor brings the container's process to life: runs the OCI runtime, or forks a guest."""

from __future__ import annotations

import _socket
import fcntl
import os
import sys
import termios
import types

from engine import kernel
from engine.monitor.wire import receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping
    from typing import Any, NoReturn
else:
    import _signal as signal

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RESET = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
_ERROR_TEXT = 64 * 1024

loaded: dict[str, types.ModuleType] = {}  # by path


def load_source(path: str) -> types.ModuleType:
    """The module in the Python file ``path``; loaded once, so that what a launcher loads its monitors have."""
    module = loaded.get(path)
    if module is None:
        module = types.ModuleType(os.path.basename(path).removesuffix(".py"))
        module.__file__ = path
        sys.modules[f"engine source {path}"] = module
        with open(path, "rb") as source:
            exec(compile(source.read(), path, "exec"), module.__dict__)  # noqa: S102 - named by a trusted driver
        loaded[path] = module
    return module


def run_program(launch: Mapping[str, Any], stdin: int, stdout: int, stderr: int) -> int:
    """Fork, and execute ``launch["argv"]`` on the given descriptors; returns the child's process id.

    A failure before the program runs is written to ``stderr`` and ends the child with status 127.
    """
    environment = {"PATH": _PATH, **launch["environment"]}
    child = os.fork()
    if child:
        return child
    try:
        _become_child(stdin, stdout, stderr)
        os.setpgid(0, 0)
        if launch["hide"]:
            _hide(launch["hide"])
        os.execvpe(launch["executable"] or launch["argv"][0], launch["argv"], environment)  # noqa: S606 - no shell is the point
    except BaseException as error:
        _fail(f"{launch['argv'][0]}: {error}")


def run_guest(launch: Mapping[str, Any], stdin: int, stdout: int, stderr: int, report: int, *, terminal: bool) -> int:
    """Fork, and call the guest's ``main`` in the child, which is the container's process; returns its process id."""
    guest = load_source(launch["guest"])
    if hasattr(guest, "prepare"):
        guest.prepare(launch["bundle"])
    child = os.fork()
    if child:
        return child
    try:
        _become_child(stdin, stdout, stderr)
        os.dup2(report, 3)
        os.closerange(4, 1 << 20)
        os.setsid()
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.environ.clear()
        os.environ.update(launch["environment"])
        code = guest.main(launch["bundle"], 3)
        sys.stdout.flush()
    except BaseException as error:
        _fail(f"{launch['guest']}: {type(error).__name__}: {error}")
    os._exit(int(code or 0) & 0xFF)


def _become_child(stdin: int, stdout: int, stderr: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    # The descriptors are above 2: the monitor keeps 0, 1 and 2 on /dev/null.
    for target, source in enumerate((stdin, stdout, stderr)):
        os.dup2(source, target)


def _hide(mount_points: list[str]) -> None:
    """Unmount ``mount_points`` for this process and its children only; the host and its peers keep them."""
    kernel.unshare(kernel.CLONE_NEWNS)
    for point in mount_points:
        if not os.path.ismount(point):
            continue
        parent = os.path.dirname(point)
        while not os.path.ismount(parent):
            parent = os.path.dirname(parent)
        # An unmount propagates to the peers of the mount it happens on: this one must have none.
        kernel.mount("", parent, flags=kernel.MS_PRIVATE)
        kernel.mount("", point, flags=kernel.MS_PRIVATE | kernel.MS_REC)
        kernel.umount(point, kernel.MNT_DETACH)


def _fail(text: str) -> NoReturn:
    try:
        os.write(2, text.encode(errors="replace") + b"\n")
    finally:
        os._exit(127)


class Console:
    """The socket on which an OCI runtime hands over the pty's master."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
        unlink(path)
        self._socket.bind(path)
        os.chmod(path, 0o600)
        self._socket.listen(1)

    def fileno(self) -> int:
        """Readable when the runtime has connected."""
        return self._socket.fileno()

    def receive(self) -> int | None:
        """The master, once it was sent; None before. May wait for a runtime that has connected and not yet sent."""
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return None
        connection = _socket.socket(fileno=fd)
        try:
            connection.settimeout(10)
            _, fds, _ = receive(connection, 4096, 4)
        finally:
            connection.close()
        for extra in fds[1:]:
            os.close(extra)
        return fds[0] if fds else None

    def close(self) -> None:
        """Close and remove the socket."""
        self._socket.close()
        unlink(self._path)


def error_text(launch: Mapping[str, Any], stderr: int) -> str:
    """What a failed launch left in its error log, or else on ``stderr`` (non-blocking)."""
    text = b""
    if launch["error_log"]:
        try:
            with open(launch["error_log"], "rb") as log:
                text = log.read(_ERROR_TEXT)
        except FileNotFoundError:
            pass
    if not text.strip() and stderr >= 0:
        try:
            text = os.read(stderr, _ERROR_TEXT)
        except BlockingIOError:
            pass
    return text.decode(errors="replace").strip()


def start_ticks(pid: int) -> int:
    """When ``pid`` started, in ticks since boot: with the id, this names one process for good. 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def set_title(name: str) -> None:
    """What ``ps`` and ``top`` call this process; at most 15 letters."""
    comm = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(comm, name.encode())
    os.close(comm)


def children() -> list[int]:
    """Children of this (single-threaded) process."""
    pid = os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children") as line:
        return [int(word) for word in line.read().split()]


def unlink(path: str) -> None:
    """Remove ``path`` if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def write_file(path: str, content: bytes, *, durable: bool) -> None:
    """Replace ``path`` in one step; with ``durable`` it is on disk, and so is its name, afterwards."""
    temporary = path + ".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durable:
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
