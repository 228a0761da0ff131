"""One request of a connection: its body as it arrives, and what is known of its fate."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from engine.errors import DeadlineExceeded, EngineError, InvalidParameter, TooLarge

if TYPE_CHECKING:
    from engine.api.http import Connection
    from engine.api.router import Hijacked, Request, Route
    from engine.model.admission import Identity

__all__ = ["Exchange"]

HIGH_WATER = 512 * 1024
LOW_WATER = 128 * 1024


class Exchange:
    """One request of a connection: its body as it arrives, and what is known of its fate."""

    __slots__ = (
        "body_done",
        "body_error",
        "buffered",
        "cancellable",
        "chunks",
        "connection",
        "expects",
        "http11",
        "keep_alive",
        "refusal",
        "request",
        "route",
        "taken",
        "uri",
        "waiter",
    )

    def __init__(self, connection: Connection, request: Request, uri: str, keep_alive: bool, http11: bool) -> None:
        self.connection = connection
        self.request = request
        self.uri = uri
        self.route: Route | None = None
        self.refusal: EngineError | None = None
        self.keep_alive = keep_alive
        self.http11 = http11
        self.expects = False
        self.cancellable = False
        self.taken = False
        self.chunks: deque[bytes] = deque()
        self.buffered = 0
        self.body_done = False
        self.body_error: str | None = None
        self.waiter: asyncio.Future[None] | None = None

    # -- called by the parser -------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """A piece of the body has arrived."""
        self.chunks.append(data)
        self.buffered += len(data)
        if self.buffered > HIGH_WATER:
            self.connection.hold(self)
        self.wake()

    def finish(self, error: str | None = None) -> None:
        """The body is complete, or broken off with ``error``."""
        self.body_done = True
        self.body_error = error
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    # -- engine.api.router.Connection: called by handlers ---------------------------------------------------

    async def next_chunk(self) -> bytes:
        """The next piece of the body; empty at its end."""
        while not self.chunks:
            if self.body_error is not None:
                raise InvalidParameter(self.body_error)
            if self.body_done:
                return b""
            if self.expects:
                self.expects = False
                self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        data = self.chunks.popleft()
        self.buffered -= len(data)
        if self.buffered < LOW_WATER:
            self.connection.release(self)
        return data

    async def stream_body(self) -> AsyncIterator[bytes]:
        """See `engine.api.router.Connection`, as for all below."""
        while data := await self.next_chunk():
            yield data

    async def read_body(self, limit: int) -> bytes:
        """All of the body."""
        if self.body_done and self.body_error is None and not self.chunks:
            return b""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.connection.limits.body_time):
                while data := await self.next_chunk():
                    size += len(data)
                    if size > limit:
                        raise TooLarge(f"request body too large: more than {limit} bytes")
                    parts.append(data)
        except TimeoutError:
            raise DeadlineExceeded("the request body did not arrive in time") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def hijack(self, upgrade: str | None, content_type: str, websocket: str = "") -> Hijacked:
        """Take the socket."""
        return await self.connection.hijack(self, upgrade, content_type, websocket)

    @property
    def identity(self) -> Identity:
        """Who the client is."""
        return self.connection.identity

    @property
    def target(self) -> str:
        """What the client asked for."""
        return self.uri

    def give_back(self, body: bytes) -> None:
        """For the next reader."""
        if body:
            self.chunks.appendleft(body)
            self.buffered += len(body)
