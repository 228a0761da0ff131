"""The engine's records in SQLite: one writer thread, group commit, durable when acknowledged.

Records are opaque bytes under ``(kind, id)``; names are unique under ``(kind, name)``; events are an append-only
history. All changes of one `Store.commit` happen or none does, and when it returns they survive a loss of power
(WAL with ``synchronous=FULL``). Commits that wait at the same time share one sync.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from engine.errors import AlreadyExists, EngineError, Unavailable

__all__ = ["Append", "Change", "Delete", "Name", "NameTaken", "Put", "Store", "Trim", "Unname"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x656E6769  # "engi"
_SCHEMA = """
CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, id));
CREATE TABLE name (kind TEXT NOT NULL, name TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE TABLE event (seq INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX event_time ON event (time_ns);
"""
_LINGER = 0.05  # seconds a change that nobody waits for may wait for company
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Put:
    """Write a record, new or not."""

    kind: str
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a record; removing what is not there is fine."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class Name:
    """Give ``name`` to ``id``; the commit raises `NameTaken` when another id has it."""

    kind: str
    name: str
    id: str


@dataclass(frozen=True, slots=True)
class Unname:
    """Free a name; freeing what is free is fine."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Append:
    """Add to the event history; ``seq`` is unique and the order."""

    seq: int
    time_ns: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Trim:
    """Drop events older than ``before_ns`` and all but the newest ``keep``."""

    before_ns: int
    keep: int


Change: TypeAlias = Put | Delete | Name | Unname | Append | Trim


class NameTaken(AlreadyExists):
    """A `Name` is held by another object: ``holder`` is its id. Services replace the text by Docker's."""

    def __init__(self, kind: str, name: str, holder: str) -> None:
        super().__init__(f"{kind} name {name!r} is already in use by {holder}")
        self.kind = kind
        self.name = name
        self.holder = holder


@dataclass(slots=True)
class _Commit:
    changes: tuple[Change, ...]
    loop: asyncio.AbstractEventLoop | None  # None: nobody waits
    future: asyncio.Future[None] | None


class Store:
    """The database of one engine. Commits come from the event loop; reads at start from anywhere."""

    def __init__(self, path: Path) -> None:
        """Open, creating or migrating as needed. Raises `EngineError` saying what to do when the file is damaged."""
        self.path = path
        self._queue: queue.SimpleQueue[_Commit | None] = queue.SimpleQueue()
        self._read_lock = threading.Lock()
        self._closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with contextlib.ExitStack() as undo:
                self._writer = self._open()
                undo.callback(self._writer.close)
                self._migrate()
                self._reader = self._open()
                undo.pop_all()
        except (sqlite3.Error, OSError) as error:
            raise self._broken(error) from error
        self._thread = threading.Thread(target=self._write_loop, name="store", daemon=True)
        self._thread.start()

    async def commit(self, *changes: Change) -> None:
        """Make ``changes`` durable, all or nothing, in the order of the calls. Without changes: wait for all before.

        Raises `NameTaken` (nothing is changed then) and `EngineError` when the disk is full or fails.
        A caller that is cancelled does not undo the commit.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._enqueue(_Commit(changes, loop, future))
        await asyncio.shield(future)

    def commit_soon(self, *changes: Change) -> None:
        """As `commit` but nobody waits: durable within a fraction of a second, in order, failure is logged."""
        self._enqueue(_Commit(changes, None, None))

    def load(self, kind: str) -> dict[str, bytes]:
        """All records of a kind by id, in the order they were first written. Blocking; for the start."""
        return dict(self._read("SELECT id, body FROM record WHERE kind = ? ORDER BY rowid", kind))

    def names(self, kind: str) -> dict[str, str]:
        """All names of a kind -> id. Blocking; for the start."""
        return dict(self._read("SELECT name, id FROM name WHERE kind = ?", kind))

    def last_event(self) -> tuple[int, int]:
        """``seq`` and ``time_ns`` of the newest event, zeros when there is none. Blocking; for the start."""
        with self._read_lock:
            try:
                row = self._reader.execute("SELECT seq, time_ns FROM event ORDER BY seq DESC LIMIT 1").fetchone()
            except sqlite3.DatabaseError as error:
                raise self._broken(error) from error
        return row or (0, 0)

    async def query(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run a read on a worker thread with the reading connection; it sees all acknowledged commits."""

        def run() -> _T:
            with self._read_lock:
                try:
                    return function(self._reader)
                except sqlite3.DatabaseError as error:
                    raise self._broken(error) from error

        return await asyncio.to_thread(run)

    async def close(self) -> None:
        """Write what is queued, fold the log into the database and close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        with self._read_lock:
            self._reader.close()
        self._writer.close()

    # -- opening --------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10.0)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY", "cache_size=-1024"):
                connection.execute(f"PRAGMA {pragma}").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        application = self._writer.execute("PRAGMA application_id").fetchone()[0]
        empty = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if version == 0 and empty:
            self._writer.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; "
                f"PRAGMA application_id={_APPLICATION_ID}; COMMIT;"
            )
            return
        if application != _APPLICATION_ID:
            raise EngineError(f"{self.path} is not the state of an engine")
        if version > SCHEMA_VERSION:
            raise EngineError(
                f"the state in {self.path} was written by a newer engine (schema {version}, this one knows up to "
                f"{SCHEMA_VERSION}): start that version, or use another --data-root"
            )

    def _broken(self, error: Exception) -> EngineError:
        text = str(error)
        if "disk is full" in text or "No space left" in text:
            return EngineError(f"write {self.path}: no space left on device")
        if isinstance(error, sqlite3.OperationalError | OSError):
            return EngineError(f"cannot use the engine's state in {self.path}: {text}")
        return EngineError(
            f"the engine's state in {self.path} is damaged ({text}): restore the file from a backup, or move it away "
            "to start with no containers, images, networks and volumes known"
        )

    # -- reading --------------------------------------------------------------------------------------------

    def _read(self, statement: str, kind: str) -> list[Any]:
        with self._read_lock:
            try:
                return self._reader.execute(statement, (kind,)).fetchall()
            except sqlite3.DatabaseError as error:
                raise self._broken(error) from error

    # -- writing (all below runs on the writer thread) ------------------------------------------------------

    def _enqueue(self, commit: _Commit) -> None:
        if self._closed:
            raise Unavailable("the engine is shutting down")
        self._queue.put(commit)

    def _write_loop(self) -> None:
        stop = False
        while not stop:
            batch, stop = self._collect()
            if batch:
                self._write(batch)

    def _collect(self) -> tuple[list[_Commit], bool]:
        """The next batch: whatever is queued, and while nobody in it waits, what comes within `_LINGER`."""
        batch: list[_Commit] = []
        waited = False
        while len(batch) < _BATCH:
            try:
                if not batch:
                    item = self._queue.get()
                elif waited:
                    item = self._queue.get_nowait()
                else:
                    item = self._queue.get(timeout=_LINGER)
            except queue.Empty:
                break
            if item is None:
                return batch, True
            batch.append(item)
            waited = waited or item.future is not None
        return batch, False

    def _write(self, batch: list[_Commit]) -> None:
        outcome: list[Exception | None] = [None] * len(batch)
        writer = self._writer
        try:
            if any(commit.changes for commit in batch):
                writer.execute("BEGIN IMMEDIATE")
                for index, commit in enumerate(batch):
                    outcome[index] = self._apply(commit.changes)
                writer.execute("COMMIT")
        except sqlite3.Error as error:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            outcome = [self._broken(error)] * len(batch)
        for commit, result in zip(batch, outcome, strict=True):
            if commit.loop is None or commit.future is None:
                if result is not None:
                    log.error("a background write failed", extra={"reason": str(result)})
                continue
            try:
                commit.loop.call_soon_threadsafe(_settle, commit.future, result)
            except RuntimeError:  # the loop has closed: nobody waits any more
                continue

    def _apply(self, changes: tuple[Change, ...]) -> Exception | None:
        """Apply one commit inside the batch's transaction; a refused one leaves nothing behind."""
        writer = self._writer
        guard = any(type(change) is Name for change in changes)
        if guard:
            writer.execute("SAVEPOINT one")
        try:
            for change in changes:
                self._apply_one(change)
        except NameTaken as error:
            writer.execute("ROLLBACK TO one")
            writer.execute("RELEASE one")
            return error
        if guard:
            writer.execute("RELEASE one")
        return None

    def _apply_one(self, change: Change) -> None:
        execute = self._writer.execute
        match change:
            case Put(kind, identifier, body):
                execute(
                    "INSERT INTO record VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
                    (kind, identifier, body),
                )
            case Delete(kind, identifier):
                execute("DELETE FROM record WHERE kind = ? AND id = ?", (kind, identifier))
            case Name(kind, name, identifier):
                execute("INSERT OR IGNORE INTO name VALUES (?, ?, ?)", (kind, name, identifier))
                row = execute("SELECT id FROM name WHERE kind = ? AND name = ?", (kind, name)).fetchone()
                if row[0] != identifier:
                    raise NameTaken(kind, name, row[0])
            case Unname(kind, name):
                execute("DELETE FROM name WHERE kind = ? AND name = ?", (kind, name))
            case Append(seq, time_ns, body):
                execute("INSERT INTO event VALUES (?, ?, ?)", (seq, time_ns, body))
            case Trim(before_ns, keep):
                execute("DELETE FROM event WHERE time_ns < ?", (before_ns,))
                execute("DELETE FROM event WHERE seq <= (SELECT max(seq) FROM event) - ?", (keep,))


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
