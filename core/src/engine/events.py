"""What happened, told once, in one order, to everyone who listens now or asks later.

Events go to live subscribers at once and into the store's history in the background. A subscriber that asks for the
past gets it from the history and then goes on live without a gap; one that falls too far behind is switched back to
the history, so a slow reader costs neither memory nor events.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Mapping

import msgspec
from msgspec import field

from engine.model.filters import Filters
from engine.store import Append, Store, Trim

__all__ = ["Actor", "Event", "Events", "Subscription", "accepts"]

KEEP_EVENTS = 65_536
KEEP_NS = 30 * 86_400 * 10**9
_TRIM_EVERY = 4096
_QUEUE = 4096
_PAGE = 512

FILTERS = frozenset(
    "config container daemon event image label network node plugin scope secret service type volume builder".split()
)
"""Names `Events.subscribe` understands."""

_OBJECTS = ("container", "daemon", "plugin", "volume", "network", "node", "service", "secret", "config")


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Whom an event is about: the object's id and, among the attributes, its name and labels."""

    ID: str
    Attributes: dict[str, str]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event in the API's form; ``status``, ``id`` and ``from`` repeat it for old clients (containers, images)."""

    status: str = ""
    id: str = ""
    image: str = field(default="", name="from")
    Type: str
    Action: str
    Actor: Actor
    scope: str = field(default_factory=lambda: "local")  # a plain default would be left out of the JSON
    time: int
    timeNano: int


_decoder = msgspec.json.Decoder(Event)


class Events:
    """The event bus of one engine."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._subscribers: set[Subscription] = set()
        self._closed = False
        self._seq, _ = store.last_event()
        store.commit_soon(Trim(time.time_ns() - KEEP_NS, KEEP_EVENTS))

    @property
    def listeners(self) -> int:
        """How many subscriptions are open."""
        return len(self._subscribers)

    async def publish(
        self, type: str, action: str, actor: str, attributes: Mapping[str, str], *, scope: str = "local"
    ) -> None:
        """Tell of something whose state is committed already. Does not suspend; see the module for what is durable."""
        now = time.time_ns()
        self._seq += 1
        legacy = type in ("container", "image")
        event = Event(
            status=action if legacy else "",
            id=actor if legacy else "",
            image=attributes.get("image", "") if type == "container" else "",
            Type=type,
            Action=action,
            Actor=Actor(ID=actor, Attributes=dict(attributes)),
            scope=scope,
            time=now // 10**9,
            timeNano=now,
        )
        self._store.commit_soon(Append(self._seq, now, msgspec.json.encode(event)))
        if self._seq % _TRIM_EVERY == 0:
            self._store.commit_soon(Trim(now - KEEP_NS, KEEP_EVENTS))
        for subscriber in self._subscribers:
            subscriber.offer(self._seq, event)

    def subscribe(
        self, *, since_ns: int | None = None, until_ns: int | None = None, filters: Filters | None = None
    ) -> Subscription:
        """Events from now on; with ``since_ns`` or ``until_ns`` also those of the past, first, in order, without a gap.

        The iteration ends at ``until_ns``, when that has passed after what was, and when the engine stops. The
        subscription counts from this call; close it (``aclose``) if you leave the loop early.
        """
        subscription = Subscription(self, since_ns, until_ns, filters or Filters())
        if not self._closed:
            self._subscribers.add(subscription)
        return subscription

    def close(self) -> None:
        """End all subscriptions; what was published stays in the history."""
        self._closed = True
        for subscriber in list(self._subscribers):
            subscriber.end()


class Subscription:
    """An async iterator of `Event`, made by `Events.subscribe`."""

    def __init__(self, events: Events, since_ns: int | None, until_ns: int | None, filters: Filters) -> None:
        self._events = events
        self._since = since_ns
        self._until = until_ns
        self._filters = filters
        self._replay_to = events._seq  # events up to here come from the history
        self._seen = events._seq if since_ns is None and until_ns is None else 0
        self._past: deque[tuple[int, Event]] = deque()
        self._live: deque[tuple[int, Event]] = deque()
        self._ended = events._closed
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._past:
                return self._past.popleft()[1]
            if self._seen < self._replay_to:
                await self._read_page()
            elif self._live:
                self._seen, event = self._live.popleft()
                if self._until is not None and event.timeNano > self._until:
                    await self.aclose()
                    raise StopAsyncIteration
                return event
            elif self._ended or not await self._wait():
                await self.aclose()
                raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop listening. Idempotent."""
        self.end()

    def end(self) -> None:
        """As `aclose`, from anywhere on the loop: what is queued is still delivered, then the iteration ends."""
        self._ended = True
        self._events._subscribers.discard(self)
        self._wake()

    def offer(self, seq: int, event: Event) -> None:
        """Called by `Events.publish`."""
        if not accepts(self._filters, event):
            return
        self._live.append((seq, event))
        if len(self._live) > _QUEUE:
            self._live.clear()
            self._replay_to = seq
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> bool:
        """Wait for the next live event; False when ``until`` comes first."""
        timeout = None if self._until is None else (self._until - time.time_ns()) / 10**9
        if timeout is not None and timeout <= 0:
            return False
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._waiter
        except TimeoutError:
            return False
        finally:
            self._waiter = None
        return True

    async def _read_page(self) -> None:
        store = self._events._store
        if not self._ended:
            await store.commit()  # what was published must be in the history before it is read
        low, high = self._since or 0, self._until if self._until is not None else 1 << 62

        def read(connection: sqlite3.Connection) -> list[tuple[int, bytes]]:
            return connection.execute(
                "SELECT seq, body FROM event WHERE seq > ? AND seq <= ? AND time_ns BETWEEN ? AND ? "
                "ORDER BY seq LIMIT ?",
                (self._seen, self._replay_to, low, high, _PAGE),
            ).fetchall()

        rows = await store.query(read)
        for seq, body in rows:
            event = _decoder.decode(body)
            if accepts(self._filters, event):
                self._past.append((seq, event))
        self._seen = rows[-1][0] if len(rows) == _PAGE else self._replay_to


def accepts(filters: Filters, event: Event) -> bool:
    """Docker's event filters: values of one name are alternatives (all labels must match), names must all agree."""
    if not filters:
        return True
    attributes = event.Actor.Attributes
    if not _action(filters, event.Action) or not filters.exact("type", event.Type):
        return False
    if not filters.exact("scope", event.scope) or not filters.labels(attributes):
        return False
    for kind in _OBJECTS:
        if kind in filters and not (
            filters.prefix(kind, event.Actor.ID) or filters.prefix(kind, attributes.get("name", ""))
        ):
            return False
    return "image" not in filters or _image(filters, event)


def _action(filters: Filters, action: str) -> bool:
    """``exec_start: ls`` and ``health_status: healthy`` also match their part before the colon."""
    return filters.exact("event", action) or filters.exact("event", action.partition(":")[0])


def _image(filters: Filters, event: Event) -> bool:
    name = event.Actor.Attributes.get("name" if event.Type == "image" else "image", "")
    texts = (event.Actor.ID, name)
    return any(filters.exact("image", text) for text in (*texts, *map(_without_tag, texts)))


def _without_tag(reference: str) -> str:
    head, slash, last = reference.rpartition("/")
    return head + slash + last.partition("@")[0].partition(":")[0]
