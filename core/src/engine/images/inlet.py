"""From a request body, which comes on the event loop, to code that reads it on a worker thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

from engine.errors import InvalidParameter
from engine.layers.compression import Read

if TYPE_CHECKING:
    from engine.workers import Workers

__all__ = ["receive"]

_HIGH = 8 << 20
_LOW = 4 << 20

_T = TypeVar("_T")


class _Inlet:
    """A queue of chunks, bounded in bytes: `put` on the loop, `read` on the thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._room.set()
        self._ready = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None

    async def put(self, chunk: bytes) -> None:
        with self._ready:
            self._chunks.append(chunk)
            self._size += len(chunk)
            if self._size >= _HIGH:
                self._room.clear()
            self._ready.notify()
        await self._room.wait()

    def end(self, error: BaseException | None = None) -> None:
        with self._ready:
            self._ended = True
            self._error = error
            self._ready.notify()

    def give_way(self) -> None:
        """The reader has gone: `put` no longer waits."""
        self._room.set()

    def read(self, count: int) -> bytes:
        with self._ready:
            while not self._chunks and not self._ended:
                self._ready.wait()
            if self._error is not None:
                raise self._error
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if len(chunk) > count:
                self._chunks.appendleft(chunk[count:])
                chunk = chunk[:count]
            before, self._size = self._size, self._size - len(chunk)
            resume = before >= _LOW > self._size
        if resume:
            self._loop.call_soon_threadsafe(self._room.set)
        return chunk


async def receive(workers: Workers, body: AsyncIterator[bytes], consume: Callable[[Read], _T]) -> _T:
    """Run ``consume(read)`` on a worker thread, where ``read`` gives what ``body`` yields; returns what it returns.

    A body that fails makes ``read`` raise; a consumer that ends early leaves the rest of the body unread.
    """
    inlet = _Inlet()
    consumer = asyncio.ensure_future(workers.call(consume, inlet.read, deadline=None))
    consumer.add_done_callback(lambda _: inlet.give_way())
    try:
        async for chunk in body:
            if consumer.done():
                break
            if chunk:
                await inlet.put(bytes(chunk))
        inlet.end()
        return await consumer
    except BaseException:
        inlet.end(InvalidParameter("the request body ended early"))
        await asyncio.wait([consumer])
        if not consumer.cancelled():
            consumer.exception()  # told by the one raised here
        raise
