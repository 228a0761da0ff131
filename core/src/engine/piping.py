"""Between blocking code that reads or writes a descriptor on a worker thread and streams of asyncio: one pipe, bounded.

`produced` gives as chunks what a function writes to a descriptor; `consumed` gives a function a descriptor to read a
stream from.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from engine.workers import Workers

__all__ = ["consumed", "produced"]

_CHUNK = 1 << 18
_T = TypeVar("_T")


async def produced(workers: Workers, produce: Callable[[int], object]) -> AsyncGenerator[bytes, None]:
    """Chunks of what ``produce`` writes. Its error is raised after the last chunk; closing the generator ends it."""
    readable, writable = os.pipe2(os.O_CLOEXEC)

    def run() -> None:
        try:
            produce(writable)
        finally:
            os.close(writable)

    writing = asyncio.ensure_future(workers.call(run, deadline=None))
    complete = False
    try:
        while data := await workers.call(os.read, readable, _CHUNK, deadline=None):
            yield data
        complete = True
    finally:
        os.close(readable)  # who still writes gets EPIPE
        await asyncio.wait((writing,))
        error = writing.exception()
        if error is not None and (complete or not isinstance(error, BrokenPipeError)):
            raise error


async def consumed(workers: Workers, body: AsyncIterator[bytes], consume: Callable[[int], _T]) -> _T:
    """What ``consume`` returns after reading ``body``; it may stop early. An error of ``body`` ends its input."""
    readable, writable = os.pipe2(os.O_CLOEXEC)

    def run() -> _T:
        try:
            return consume(readable)
        finally:
            os.close(readable)

    reading = asyncio.ensure_future(workers.call(run, deadline=None))
    try:
        async for chunk in body:
            await workers.call(_write_all, writable, chunk, deadline=None)
    except BrokenPipeError:
        pass  # it has read enough, or failed: `reading` tells
    finally:
        os.close(writable)
        await asyncio.wait((reading,))
    return reading.result()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
