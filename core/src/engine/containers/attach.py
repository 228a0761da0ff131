"""Clients attached to a container's streams: from the HTTP connection to the hand-over to the container's monitor.

The monitor serves an attached client directly on its socket; the daemon is out of the way. A client that attaches
before the container starts (``docker run`` does) waits here and is handed over after the monitor was made and before
the process runs, so that it misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Protocol

from engine.containers import logs as container_logs
from engine.errors import Conflict, EngineError, InvalidParameter

if TYPE_CHECKING:
    from engine.containers import Containers
    from engine.model.container import Container
    from engine.monitor.client import Monitor

__all__ = ["Client", "Connection", "attach", "check", "parse_keys"]

log = logging.getLogger(__name__)

DEFAULT_KEYS = "ctrl-p,ctrl-q"
_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


class Connection(Protocol):
    """A hijacked HTTP connection (`engine.api.router.Hijacked`)."""

    sock: socket.socket
    leftover: bytes


class Client:
    """A client's socket on its way to a monitor."""

    def __init__(self, connection: Connection) -> None:
        self._sock = connection.sock
        self._leftover = connection.leftover

    async def send(self, data: bytes) -> None:
        """Write to the client; one that is gone is no error."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except OSError:
            log.debug("client left", exc_info=True)

    def reserve(self) -> Client:
        """A second handle on the socket, for what may have to be said after the hand-over."""
        copy = Client.__new__(Client)
        copy._sock, copy._leftover = self._sock.dup(), b""
        return copy

    async def hand_over(
        self, monitor: Monitor, *, stdin: bool, stdout: bool, stderr: bool, keys: bytes, raw: bool | None = None
    ) -> asyncio.Future[str]:
        """Let the monitor serve the client (`Monitor.attach`); the future tells how that ended."""
        return await monitor.attach(
            self._sock,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            detach_keys=keys,
            raw=raw,
            leftover=self._leftover,
        )

    def finish(self) -> None:
        """End the conversation, whoever else has the socket, and close this handle."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self.close()

    def close(self) -> None:
        """Close this handle. Idempotent."""
        self._sock.close()


def parse_keys(text: str | None) -> bytes:
    """``ctrl-p,ctrl-q`` or ``a,ctrl-x``; empty means the default. `InvalidParameter` in dockerd's words."""
    keys = bytearray()
    for part in (text or DEFAULT_KEYS).split(","):
        name, dash, letter = part.partition("-")
        if name == "ctrl" and dash and len(letter) == 1 and letter.isascii():
            if letter.lower().isalpha():
                keys.append(ord(letter.lower()) - ord("a") + 1)
                continue
            if letter in _CONTROL:
                keys.append(_CONTROL[letter])
                continue
        elif len(part) == 1 and part.isascii():
            keys.append(ord(part))
            continue
        raise InvalidParameter(f"Invalid detach keys ({text}) provided")
    return bytes(keys)


def check(container: Container) -> None:
    """Refuse what cannot be attached to now; before the connection is taken over."""
    if container.state.status == "paused":
        raise Conflict(f"container {container.id} is paused, unpause the container before attach")
    if container.state.status == "restarting":
        raise Conflict(f"container {container.id} is restarting, wait until the container is running")


async def attach(
    containers: Containers,
    ref: str,
    connection: Connection,
    *,
    logs: bool,
    stream: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    detach_keys: str,
) -> None:
    """Serve a hijacked connection: first the log so far, then the live streams. Owns the socket from here on."""
    container = containers.get(ref)
    client = Client(connection)
    keys = parse_keys(detach_keys)
    try:
        if logs and (stdout or stderr):
            request = container_logs.LogRequest(stdout=stdout, stderr=stderr)
            async for chunk in container_logs.stream(containers, container, request):
                await client.send(chunk)
        if not stream:
            return client.close()
        await containers.event(container, "attach")

        async def give(monitor: Monitor | None) -> None:
            if monitor is None:
                return client.close()
            try:
                wants_stdin = stdin and container.config.open_stdin
                ended = await client.hand_over(monitor, stdin=wants_stdin, stdout=stdout, stderr=stderr, keys=keys)
            except EngineError:
                return client.close()
            ended.add_done_callback(lambda done: _ended(containers, container, done.result()))
            return None

        monitor = containers.monitor(container.id)
        if monitor is not None:
            await give(monitor)
        else:
            containers.live(container.id).pending.append(give)
    except BaseException:
        client.close()
        raise


def _ended(containers: Containers, container: Container, how: str) -> None:
    if how == "detached":
        containers.workers.spawn(containers.event(container, "detach"), name=f"detach {container.id[:12]}")
