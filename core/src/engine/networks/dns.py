"""Names of containers on user-defined networks: the engine's side of the resolver process (`resolver.py`).

`describe` says all there is to know about one container; `Resolver` keeps the process in step with what was described.
Everything here blocks briefly and is for worker threads; every call returns once the process answers accordingly, so
a name resolves as soon as its container is connected, and no longer once it is not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import EngineError, Unavailable

__all__ = ["ADDRESS", "Description", "Resolver", "describe"]

ADDRESS = "127.0.0.11"
"""Where containers ask."""

_TIMEOUT = 20.0

_log = logging.getLogger(__name__)

Description = Mapping[str, Any]
"""What the process is told about a sandbox, as JSON."""


def describe(
    path: Path,
    endpoints: Sequence[Mapping[str, Any]],
    *,
    servers: Sequence[str] = (),
    forward: bool = True,
    ndots: bool = False,
) -> Description:
    """A sandbox at ``path`` with ``endpoints`` (network, suffix, names, addresses, links), the gateway's first.

    ``servers`` answer what is no container's name, instead of the host's; not ``forward``: nobody does. ``ndots``: the
    user set the option ndots above 0, so single labels are not for servers outside.
    """
    return {
        "path": str(path),
        "endpoints": list(endpoints),
        "servers": list(servers) or None,
        "forward": forward,
        "ndots": ndots,
    }


class Resolver:
    """The connection to the process: started when the first container needs it, found again after a restart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._child = 0
        self._desired: dict[str, Description] = {}

    def update(self, sandboxes: Mapping[str, Description | None]) -> None:
        """Make these sandboxes be so described (None: forget it). Raises `EngineError` for one that cannot be."""
        with self._lock:
            for identifier, description in sandboxes.items():
                if description is None:
                    self._desired.pop(identifier, None)
                else:
                    self._desired[identifier] = description
            if self._socket is None and not self._desired:
                return
            failed = self._ask({"op": "set", "sandboxes": sandboxes})["failed"]
            for identifier in failed:
                self._desired.pop(identifier, None)
        for text in failed.values():
            raise EngineError(f"failed to start the name resolver of a container: {text}")

    def restore(self, sandboxes: Mapping[str, Description]) -> Collection[str]:
        """Make the process serve exactly these; returns those it cannot."""
        with self._lock:
            self._desired = dict(sandboxes)
            if self._socket is None and not sandboxes and not self._connect():
                return ()
            failed: Mapping[str, str] = self._ask({"op": "sync", "sandboxes": self._desired})["failed"]
        for identifier, text in failed.items():
            _log.warning("a container has no name resolution", extra={"sandbox": identifier, "error": text})
        return failed

    def watch(self) -> socket.socket | None:
        """A socket that becomes readable when the process ends, for the caller to close; None without a process. Does
        not block."""
        return self._open() if self._socket is not None else None

    def revive(self) -> None:
        """The process ended by somebody else's hand: start another and have it serve what the last one did."""
        with self._lock:
            self._drop()
            if self._desired:
                self._ask({"op": "sync", "sandboxes": self._desired})

    def disconnect(self) -> None:
        """Close the connection; the process goes on by itself as long as it has sandboxes."""
        with self._lock:
            self._close()

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        if self._socket is not None:
            try:
                return self._exchange(request)
            except (OSError, EOFError):
                self._drop()
        for attempt in range(3):  # one found alive may be about to end, for want of sandboxes
            if not self._connect():
                self._start()
            try:
                self._exchange({"op": "sync", "sandboxes": self._desired})  # one that died took its sockets along
                return self._exchange(request)
            except (OSError, EOFError) as error:
                _log.info("the resolver went away", extra={"attempt": attempt, "error": str(error)})
                self._drop()
        raise Unavailable("the process that resolves names of containers does not answer")

    def _exchange(self, request: Mapping[str, object]) -> dict[str, Any]:
        assert self._socket is not None
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError("it ended")
            answer += data
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _drop(self) -> None:
        self._close()
        if self._child:  # bury the process this engine started, if it has ended
            try:
                ended, _ = os.waitpid(self._child, os.WNOHANG)
            except ChildProcessError:
                ended = self._child
            if ended:
                self._child = 0

    def _at(self, use: Callable[[str], Any]) -> Any:
        """``use`` the socket's path in a form that stays below the 108 bytes of a unix socket's."""
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return use(f"/proc/self/fd/{directory}/resolver.sock")
        finally:
            os.close(directory)

    def _open(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(_TIMEOUT)
        try:
            self._at(sock.connect)
        except OSError:
            sock.close()
            return None
        return sock

    def _connect(self) -> bool:
        self._socket = self._open()
        return self._socket is not None

    def _start(self) -> None:
        path = self._directory / "resolver.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            self._at(listener.bind)
            path.chmod(0o600)
            listener.listen(4)
            self._child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("resolver.py"))],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, listener.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
            )
        if not self._connect():
            raise Unavailable("the process that resolves names of containers did not start")
