"""Docker's progress streams: JSON messages while something long is done, the error as the last of them.

Messages come from any thread. A slow client never slows the work: the bars it has not read yet are replaced by newer
ones. A client that leaves cancels the work.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any

from engine.api import codec
from engine.api.router import Response
from engine.errors import EngineError

__all__ = ["ProgressStream", "progress_response"]

log = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, object]], None]
Work = Callable[[Progress], Coroutine[Any, Any, None]]


async def progress_response(work: Work, *, always_stream: bool = False) -> Response:
    """Run ``work`` and answer with what it says.

    An error before the first message is raised, so that it becomes the status of the response; later ones (and, with
    ``always_stream``, all) are sent as ``{"errorDetail": ..., "error": ...}`` in the stream.
    """
    stream = ProgressStream(work)
    try:
        await stream.begun(always_stream)
    except BaseException:
        await stream.aclose()
        raise
    return Response.stream(stream)


class ProgressStream:
    """The body of a progress response: an async iterator of lines, which owns the work."""

    def __init__(self, work: Work) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending: dict[Hashable, bytes] = {}
        self._numbers = itertools.count()
        self._news = asyncio.Event()
        self._ended = False
        self._task = self._loop.create_task(work(self._tell))
        self._task.add_done_callback(lambda _: self._news.set())

    async def begun(self, always_stream: bool) -> None:
        """Wait for the first message or the end of the work; raises the work's error when that came first."""
        await self._news.wait()
        if self._task.done() and not self._pending and not always_stream:
            await self._task

    def __aiter__(self) -> ProgressStream:
        return self

    async def __anext__(self) -> bytes:
        await self._news.wait()
        done = self._task.done()
        lines = b"".join(self._pending.values())
        self._pending.clear()
        if not done:
            self._news.clear()
            return lines
        if self._ended:
            raise StopAsyncIteration
        self._ended = True
        return lines + self._failure()

    async def aclose(self) -> None:
        """Stop the work (if it has not ended) and wait until it has."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # whoever streamed has told it

    def _tell(self, message: Mapping[str, object]) -> None:
        line = _line(message)
        is_bar = bool(message.get("progressDetail"))
        key = (message.get("id"), message.get("status")) if is_bar else next(self._numbers)
        self._loop.call_soon_threadsafe(self._put, key, line)

    def _put(self, key: Hashable, line: bytes) -> None:
        self._pending[key] = line
        self._news.set()

    def _failure(self) -> bytes:
        if self._task.cancelled():
            text = "context canceled"
        elif (error := self._task.exception()) is None:
            return b""
        else:
            text = str(error)
            if not isinstance(error, EngineError):
                log.error("a streamed operation failed", exc_info=error)
        return _line({"errorDetail": {"message": text}, "error": text})


def _line(message: Mapping[str, object]) -> bytes:
    return codec.encode(message).rstrip() + b"\r\n"
