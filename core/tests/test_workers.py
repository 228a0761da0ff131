"""Threads, background tasks and locks."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from engine.errors import DeadlineExceeded, Unavailable
from engine.workers import KeyedLocks, Workers


def test_calls_run_beside_each_other_and_give_their_result() -> None:
    async def main() -> None:
        workers = Workers(threads=3)
        barrier = threading.Barrier(3)
        results = await asyncio.gather(*(workers.call(barrier.wait, 10) for _ in range(3)))
        assert sorted(results) == [0, 1, 2]
        with pytest.raises(ZeroDivisionError):
            await workers.call(lambda: 1 // 0)
        await workers.close()
        with pytest.raises(Unavailable):
            await workers.call(int)

    asyncio.run(main())


def test_an_overdue_call_is_an_error_and_does_not_use_up_the_pool() -> None:
    async def main() -> None:
        workers = Workers(threads=1)
        release = threading.Event()
        for _ in range(3):
            with pytest.raises(DeadlineExceeded, match="did not finish within"):
                await workers.call(release.wait, 20, deadline=0.01)
        assert await workers.call(lambda: "alive") == "alive"
        release.set()
        await workers.close()

    logging.getLogger("engine.workers").setLevel(logging.CRITICAL)
    asyncio.run(main())


def test_a_cancelled_caller_is_released_only_when_the_function_has_returned() -> None:
    async def main() -> None:
        workers = Workers()
        begun, release, done = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            release.wait(10)
            done.set()

        task = asyncio.create_task(workers.call(work))
        await workers.call(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done.is_set()
        await workers.close()

    asyncio.run(main())


def test_a_failing_background_task_is_logged_and_closing_cancels_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        workers = Workers()

        async def fails() -> None:
            raise ValueError("boom")

        workers.spawn(fails(), name="failing")
        waiting = workers.spawn(asyncio.Event().wait(), name="waiting")
        await asyncio.sleep(0)
        await workers.close()
        assert waiting.cancelled()

    logging.getLogger("engine.workers").setLevel(logging.INFO)
    asyncio.run(main())
    assert [record.__dict__["task"] for record in caplog.records] == ["failing"]


def test_a_key_has_one_holder_and_other_keys_do_not_wait() -> None:
    async def main() -> None:
        locks = KeyedLocks()
        order: list[str] = []

        async def hold(key: str, name: str) -> None:
            async with locks(key):
                order.append(f"+{name}")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                order.append(f"-{name}")

        await asyncio.gather(hold("a", "1"), hold("a", "2"), hold("b", "3"))
        assert order.index("-1") < order.index("+2")
        assert order.index("+3") < order.index("-1")
        assert locks._locks == {}

    asyncio.run(main())
