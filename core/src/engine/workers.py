"""Threads for blocking work, background tasks with an owner, and one lock for each object.

Drivers, archives and digests block; they run in `Workers.call`, a bounded pool of daemon threads. Everything asyncio
does in the background is started by `Workers.spawn`, so that nothing is lost silently and everything ends at `close`.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from engine.errors import DeadlineExceeded, Unavailable

__all__ = ["KeyedLocks", "Workers"]

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Workers:
    """A pool of threads and the owner of background tasks. One for each daemon."""

    def __init__(self, threads: int = 32) -> None:
        self._limit = threads
        self._started = 0
        self._idle = 0
        self._closed = False
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(
        self, function: Callable[..., _T], /, *args: object, deadline: float | None = 120.0, **kwargs: object
    ) -> _T:
        """Run ``function`` on a worker thread and return what it returns.

        Raises `DeadlineExceeded` after ``deadline`` seconds (None: never), waiting for a thread included; the function
        itself cannot be stopped and keeps its thread, which the pool replaces. A caller that is cancelled stays here
        until the function has returned, so that an undo never runs beside the call it undoes.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._submit((loop, future, lambda: function(*args, **kwargs)))
        timer = None if deadline is None else loop.call_later(deadline, self._expire, future, function, deadline)
        cancelled = False
        try:
            while True:
                try:
                    result = await asyncio.shield(future)
                    break
                except asyncio.CancelledError:
                    if future.cancelled():
                        raise
                    cancelled = True
                except BaseException:
                    if cancelled:
                        raise asyncio.CancelledError from None
                    raise
        finally:
            if timer is not None:
                timer.cancel()
        if cancelled:
            raise asyncio.CancelledError
        return result

    def spawn(self, coroutine: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
        """Run ``coroutine`` in the background until it ends or the daemon does; its failure is logged by ``name``."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def close(self) -> None:
        """Cancel and await all background tasks; idle threads end, busy ones are left to the end of the process."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        with self._lock:
            self._closed = True
            for _ in range(self._started):
                self._jobs.put(None)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background task failed", exc_info=error, extra={"task": task.get_name()})

    # -- threads --------------------------------------------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise Unavailable("the engine is shutting down")
            start = self._idle == 0 and self._started < self._limit
            if start:
                self._started += 1
            elif self._idle:
                self._idle -= 1
        self._jobs.put(job)
        if start:
            threading.Thread(target=self._work, name=f"worker-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, function = job
            del job
            result: Any = None
            error: BaseException | None = None
            if not future.done():
                try:
                    result = function()
                except BaseException as raised:
                    error = RuntimeError("StopIteration") if isinstance(raised, StopIteration) else raised
            del function
            with self._lock:
                if self._jobs.empty():
                    self._idle += 1
                leave = self._started > self._limit and self._idle > 0
                if leave:
                    self._started -= 1
                    self._idle -= 1
            try:
                loop.call_soon_threadsafe(self._deliver, future, result, error)
            except RuntimeError:  # the loop has closed: nobody waits any more
                return
            del loop, future, result, error
            if leave:
                return

    def _deliver(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            return
        self._limit -= 1  # the overdue call has ended: its replacement is not needed any more
        if error is not None:
            log.warning("an abandoned call failed", exc_info=error)

    def _expire(self, future: asyncio.Future[Any], function: Callable[..., Any], deadline: float) -> None:
        if not future.done():
            name = getattr(function, "__qualname__", repr(function))
            log.error("a call is overdue and was abandoned", extra={"function": name, "seconds": deadline})
            self._limit += 1
            future.set_exception(DeadlineExceeded(f"{name} did not finish within {deadline:g} seconds"))


class KeyedLocks:
    """``async with locks(key):`` one holder for each key; first come, first served; nothing is kept for idle keys."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}

    def __call__(self, key: str) -> AbstractAsyncContextManager[None]:
        """The lock of ``key``."""
        return self._hold(key)

    @asynccontextmanager
    async def _hold(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.setdefault(key, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[key]
