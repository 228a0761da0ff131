"""Events: order, replay without a gap, Docker's filters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from engine import events as module
from engine.events import Actor, Event, Events, Subscription, accepts
from engine.model.filters import Filters
from engine.store import Store


def run(tmp_path: Path, work: Callable[[Events], Awaitable[None]]) -> None:
    async def main() -> None:
        store = Store(tmp_path / "engine.db")
        events = Events(store)
        try:
            async with asyncio.timeout(20):
                await work(events)
        finally:
            events.close()
            await store.close()

    asyncio.run(main())


async def publish(events: Events, *names: str) -> None:
    for name in names:
        await events.publish("container", name, "id-" + name, {"name": name, "image": "busybox"})


async def take(subscription: Subscription, count: int) -> list[str]:
    return [(await anext(subscription)).Action for _ in range(count)]


async def all_of(subscription: Subscription) -> list[str]:
    return [event.Action async for event in subscription]


def test_a_subscriber_gets_what_happens_from_the_call_on(tmp_path: Path) -> None:
    async def work(events: Events) -> None:
        await publish(events, "before")
        subscription = events.subscribe()
        await publish(events, "one", "two")
        assert await take(subscription, 2) == ["one", "two"]
        assert events.listeners == 1
        await subscription.aclose()
        assert events.listeners == 0
        assert await all_of(subscription) == []

    run(tmp_path, work)


def test_the_past_is_replayed_and_joined_to_the_present_without_a_gap(tmp_path: Path) -> None:
    total = 1500

    async def work(events: Events) -> None:
        names = [f"e{number}" for number in range(total)]
        await publish(events, *names[:700])
        subscription = events.subscribe(since_ns=1)
        seen: list[str] = []

        async def publisher() -> None:
            for name in names[700:]:
                await publish(events, name)
                await asyncio.sleep(0)

        task = asyncio.create_task(publisher())
        while len(seen) < total:
            seen.append((await anext(subscription)).Action)
        await task
        assert seen == names

    run(tmp_path, work)


def test_the_past_survives_a_restart(tmp_path: Path) -> None:
    async def write(events: Events) -> None:
        await publish(events, "one", "two")

    async def read(events: Events) -> None:
        await publish(events, "three")
        assert await all_of(events.subscribe(until_ns=time.time_ns())) == ["one", "two", "three"]

    run(tmp_path, write)
    run(tmp_path, read)


def test_until_in_the_past_ends_at_once_and_in_the_future_when_it_comes(tmp_path: Path) -> None:
    async def work(events: Events) -> None:
        await publish(events, "one")
        middle = time.time_ns()
        await publish(events, "two")
        assert await all_of(events.subscribe(since_ns=1, until_ns=middle)) == ["one"]
        assert await all_of(events.subscribe(since_ns=middle, until_ns=time.time_ns())) == ["two"]
        soon = events.subscribe(until_ns=time.time_ns() + 50_000_000)
        await publish(events, "three")
        assert await all_of(soon) == ["one", "two", "three"]

    run(tmp_path, work)


def test_a_subscriber_that_falls_behind_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUEUE", 10)

    async def work(events: Events) -> None:
        subscription = events.subscribe()
        names = [f"e{number}" for number in range(100)]
        await publish(events, *names[:5])
        assert await take(subscription, 2) == names[:2]
        await publish(events, *names[5:])
        assert await take(subscription, 98) == names[2:]

    run(tmp_path, work)


def test_closing_ends_all_subscriptions_after_what_was_published(tmp_path: Path) -> None:
    async def work(events: Events) -> None:
        subscription = events.subscribe()
        waiting = asyncio.create_task(all_of(subscription))
        await asyncio.sleep(0)
        await publish(events, "last")
        events.close()
        assert await waiting == ["last"]

    run(tmp_path, work)


def test_events_have_dockers_form_with_the_fields_of_old_clients(tmp_path: Path) -> None:
    async def work(events: Events) -> None:
        subscription = events.subscribe()
        await events.publish("container", "start", "abc", {"image": "busybox", "name": "web"})
        await events.publish("network", "connect", "net", {"name": "bridge"})
        container = msgspec.to_builtins(await anext(subscription))
        network = msgspec.to_builtins(await anext(subscription))
        assert list(container)[:5] == ["status", "id", "from", "Type", "Action"]
        assert (container["status"], container["id"], container["from"]) == ("start", "abc", "busybox")
        assert container["timeNano"] // 10**9 == container["time"]
        assert not {"status", "id", "from"} & set(network)

    run(tmp_path, work)


def event(kind: str = "container", action: str = "start", actor: str = "abcdef", **attributes: str) -> Event:
    return Event(Type=kind, Action=action, Actor=Actor(ID=actor, Attributes=attributes), time=1, timeNano=1)


@pytest.mark.parametrize(
    ("filters", "given", "expected"),
    [
        ({}, event(), True),
        ({"type": ["container"]}, event(), True),
        ({"type": ["network"]}, event(), False),
        ({"type": ["network", "container"]}, event(), True),
        ({"event": ["start"]}, event(), True),
        ({"event": ["die"]}, event(), False),
        ({"event": ["exec_start"]}, event(action="exec_start: ls -l"), True),
        ({"event": ["health_status"]}, event(action="health_status: healthy"), True),
        ({"container": ["abc"]}, event(), True),
        ({"container": ["web"]}, event(name="web"), True),
        ({"container": ["xyz"]}, event(name="web"), False),
        ({"image": ["busybox"]}, event(image="busybox:latest"), True),
        ({"image": ["busybox:1"]}, event(image="busybox:latest"), False),
        ({"image": ["host:5000/a"]}, event("image", "pull", "host:5000/a:1"), True),
        ({"label": ["a"]}, event(a="1"), True),
        ({"label": ["a=1", "b"]}, event(a="1"), False),
        ({"label": ["a=2"]}, event(a="1"), False),
        ({"scope": ["swarm"]}, event(), False),
        ({"type": ["container"], "event": ["die"]}, event(), False),
    ],
)
def test_filters_are_those_of_docker(filters: dict[str, list[str]], given: Event, expected: bool) -> None:
    assert accepts(Filters(filters), given) is expected
