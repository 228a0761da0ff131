"""The launcher: a small child of the daemon that forks monitors, so that the daemon itself never forks.

    python -I -S launcher.py FD SEARCH PRELOAD...

FD is a SOCK_SEQPACKET socket, SEARCH a path (usually empty) of directories for the imports of the PRELOAD sources. Each
packet is a task as JSON and carries the socket that becomes the monitor's first control connection; all answers come on
that one. The launcher loads the monitor's code and the PRELOAD sources once and freezes its heap; monitors are forked
from it, twice each, so that they belong to init, and share its memory. One monitor is always forked ahead and waits for
the next task: that is the one process that reads from FD. All ends when the daemon does. Only this package, the
standard library and what a plan's SEARCH adds can be imported here, whatever is installed beside it.
"""

from __future__ import annotations

import _socket
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

_PACKET = 1 << 20
_PATH_MAX = 4096


def _see_only_the_engine() -> None:
    """Make ``engine.kernel`` and ``engine.monitor.*`` importable, and nothing else outside the standard library."""
    package = type(sys)("engine")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["engine"] = package


def _serve(requests: _socket.socket) -> None:
    """Keep one monitor waiting. One that takes a task names the log writer on its pipe; one that just ends does not."""
    while True:
        taken, told = os.pipe()
        if _fork_ahead(requests, taken, told):
            os.close(told)
            source = os.read(taken, _PATH_MAX)
            if source:
                _preload(source.strip().decode())
            elif _ended(requests):
                return
        else:
            os.close(told)
            if not _refuse_one(requests):
                return
        os.close(taken)


def _fork_ahead(requests: _socket.socket, taken: int, told: int) -> bool:
    """Fork a monitor that waits for a task; False when the system has no process left for it."""
    from engine.monitor import process

    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os.setsid()
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            os._exit(1)
        os.close(taken)
        process.stand_by(requests, told)
    return os.waitpid(child, 0)[1] == 0


def _refuse_one(requests: _socket.socket) -> bool:
    from engine.monitor.wire import encode, receive

    packet, fds, _ = receive(requests, _PACKET, 1)
    for fd in fds:
        os.write(fd, encode({"event": "hello", "error": "fork: there are too many processes"}))
        os.close(fd)
    return bool(packet)


def _ended(requests: _socket.socket) -> bool:
    try:
        return not requests.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except BlockingIOError:  # somebody killed the monitor that waited
        return False


def _preload(source: str) -> None:
    """What one container needs, the next ones will: they get it without loading it."""
    from engine.monitor import start

    if source and source not in start.loaded:
        try:
            start.load_source(source)
        except Exception:
            start.loaded.pop(source, None)  # the monitor has seen it too, and says so
        gc.collect()
        gc.freeze()


def main() -> None:
    """Load, freeze, serve until the daemon closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the daemon, which then ends us by closing its end
    requests = _socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(requests.fileno(), False)
    os.chdir("/")
    os.umask(0o022)
    _see_only_the_engine()
    from engine.monitor import oom, process, start  # noqa: F401 - the monitors want process

    start.set_title("engine-launcher")
    sys.path += [directory for directory in sys.argv[2].split(":") if directory]
    for source in sys.argv[3:]:
        start.load_source(source)
    oom.memory_mount()
    gc.collect()
    gc.freeze()
    _serve(requests)


if __name__ == "__main__":
    main()
