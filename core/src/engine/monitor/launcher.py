"""The launcher: a small child of the daemon that forks monitors, so that the daemon itself never forks.

    python -I -S launcher.py FD SEARCH PRELOAD...

FD is a SOCK_SEQPACKET socket, SEARCH a path (usually empty) of directories for the imports of the PRELOAD sources. Each
packet is a task as JSON and carries the socket that becomes the monitor's first control connection; all answers come on
that one. The launcher loads the monitor's code and the PRELOAD sources once, freezes its heap and forks twice for each
task, so that monitors belong to init and share its memory. It ends when the daemon does. Only this package, the
standard library and what a plan's SEARCH adds can be imported here, whatever is installed beside it.
"""

from __future__ import annotations

import _socket
import gc
import json
import os
import signal
import sys
import types

_PACKET = 1 << 20


def _see_only_the_engine() -> None:
    """Make ``engine.kernel`` and ``engine.monitor.*`` importable, and nothing else outside the standard library."""
    package = types.ModuleType("engine")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["engine"] = package


def _serve(requests: _socket.socket) -> None:
    from engine.monitor import process
    from engine.monitor.wire import receive

    while True:
        packet, fds, _ = receive(requests, _PACKET, 1)
        if not packet:
            return
        try:
            child = os.fork()
        except OSError as error:
            os.write(fds[0], json.dumps({"event": "hello", "error": f"fork: {error.strerror}"}).encode())
            os.close(fds[0])
            continue
        if child == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            requests.close()
            process.main(json.loads(packet), _socket.socket(fileno=fds[0]))
        os.close(fds[0])
        os.waitpid(child, 0)


def main() -> None:
    """Load, freeze, serve until the daemon closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the daemon, which then ends us by closing its end
    requests = _socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(requests.fileno(), False)
    os.chdir("/")
    os.umask(0o022)
    _see_only_the_engine()
    from engine.monitor import oom, process, start

    start.set_title("engine-launcher")
    sys.path += [directory for directory in sys.argv[2].split(":") if directory]
    for source in sys.argv[3:]:
        start.load_source(source)
    oom.memory_mount()
    json.loads(json.dumps({"warm": process.SETTLE}))
    gc.collect()
    gc.freeze()
    _serve(requests)


if __name__ == "__main__":
    main()
