"""`docker logs`: a container's log as its driver reads it, in the form the client asked for.

Reading, formatting and framing happen on worker threads, a megabyte at a time; the event loop only passes chunks on.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from engine.containers import logcache
from engine.drivers.log import LogCursor, LogEntry, LogQuery, LogTarget
from engine.errors import InvalidParameter, NotSupported
from engine.timestamps import parse_timestamp, rfc3339_fixed

if TYPE_CHECKING:
    from engine.containers import Containers
    from engine.model.container import Container

__all__ = ["LogRequest", "parse_tail", "stream"]

_BATCH = 4096  # entries formatted in one go
_POLL = 0.2  # seconds between looks, for cursors that cannot tell

_frame_header = struct.Struct(">BxxxL").pack


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRequest:
    """What of the log, and how. ``since`` and ``until`` as the API spells them; ``tail`` None means all."""

    stdout: bool
    stderr: bool
    follow: bool = False
    since: str = ""
    until: str = ""
    timestamps: bool = False
    tail: int | None = None
    details: bool = False

    def query(self) -> LogQuery:
        """As the driver takes it."""
        streams = frozenset(number for number, wanted in ((1, self.stdout), (2, self.stderr)) if wanted)
        return LogQuery(
            since_ns=parse_timestamp(self.since) if self.since not in ("", "0") else 0,
            until_ns=parse_timestamp(self.until) if self.until not in ("", "0") else None,
            tail=self.tail,
            streams=streams,
        )


def parse_tail(text: str) -> int | None:
    """``all``, a number, or nonsense, which like a negative number means all (as dockerd reads it)."""
    try:
        number = int(text)
    except ValueError:
        return None
    return None if number < 0 else number


def stream(containers: Containers, container: Container, request: LogRequest) -> AsyncIterator[bytes]:
    """Chunks of the log: raw with a terminal, else in Docker's frames.

    Raises here, not while iterating, what is wrong with the request. Following ends when the container does, at
    ``until``, or when the iterator is closed.
    """
    if not request.stdout and not request.stderr:
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    driver, target = logcache.readable(
        containers.plugins, container.log_driver, containers.starter.log_target(container)
    )
    if "read" not in driver.capabilities:
        raise NotSupported("configured logging driver does not support reading")
    query = request.query()
    prefix = _details(target) if request.details else b""
    form = _Form(container.config.tty, request.timestamps, prefix)
    if request.follow:
        return _follow(containers, container.id, lambda: driver.follow(target, query), query, form)
    return _read(containers, lambda: driver.read(target, query), form)


class _Form:
    """How one entry looks on the wire."""

    def __init__(self, terminal: bool, timestamps: bool, prefix: bytes) -> None:
        self._terminal = terminal
        self._timestamps = timestamps
        self._prefix = prefix

    def encode(self, entries: Sequence[LogEntry]) -> bytes:
        parts: list[bytes] = []
        for entry in entries:
            data = entry.data
            if self._prefix:
                data = self._prefix + data
            if self._timestamps:
                data = rfc3339_fixed(entry.time_ns).encode() + b" " + data
            if not self._terminal:
                parts.append(_frame_header(entry.stream, len(data)))
            parts.append(data)
        return b"".join(parts)


def _details(target: LogTarget) -> bytes:
    """What the log options ``labels``, ``env`` and ``tag`` name, as ``k=v,k=v`` and a space."""
    found = {**target.extra, "tag": target.tag} if "tag" in target.options else target.extra
    return ",".join(f"{quote_plus(k)}={quote_plus(v)}" for k, v in sorted(found.items())).encode() + b" "


async def _read(containers: Containers, begin: object, form: _Form) -> AsyncIterator[bytes]:
    call = containers.workers.call
    entries: Iterator[LogEntry] = await call(begin)  # type: ignore[arg-type]

    def batch() -> tuple[int, bytes]:
        found = list(itertools.islice(entries, _BATCH))
        return len(found), form.encode(found)

    while True:
        count, data = await call(batch)
        if data:
            yield data
        if count < _BATCH:
            return


async def _follow(
    containers: Containers, container_id: str, begin: object, query: LogQuery, form: _Form
) -> AsyncIterator[bytes]:
    call = containers.workers.call
    monitor = containers.monitor(container_id)
    cursor: LogCursor = await call(begin)  # type: ignore[arg-type]
    waker = _Waker(cursor)

    def advance() -> tuple[bool, bytes]:
        entries = cursor.advance()
        return bool(entries), form.encode(entries)

    try:
        while True:
            over = monitor is None or monitor.exit.done()  # looked at before reading: what came before it is read
            more, data = await call(advance)
            if data:
                yield data
            if more:
                continue
            if over or (query.until_ns is not None and time.time_ns() >= query.until_ns):
                return
            assert monitor is not None
            await waker.wait(monitor.exit, query.until_ns)
    finally:
        waker.close()
        await asyncio.shield(call(cursor.close))


class _Waker:
    """Sleeps until a cursor may have more, the container has ended or it is time to stop."""

    def __init__(self, cursor: LogCursor) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = cursor.fileno()
        self._event = asyncio.Event()
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._wake)

    def _wake(self) -> None:
        self._event.set()
        self._loop.remove_reader(self._fd)  # level-triggered: silent until `advance` has drained it

    async def wait(self, end: asyncio.Future[Any], until_ns: int | None) -> None:
        timeout = None if self._fd >= 0 else _POLL
        if until_ns is not None:
            left = max(0.0, (until_ns - time.time_ns()) / 10**9)
            timeout = left if timeout is None else min(timeout, left)
        waiting = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait((waiting, end), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if self._event.is_set():
                self._event.clear()
                self._loop.add_reader(self._fd, self._wake)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
