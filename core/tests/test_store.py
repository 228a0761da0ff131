"""The store: all or nothing, unique names, and nothing acknowledged is ever lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from engine.errors import EngineError, Unavailable
from engine.store import Append, Delete, Name, NameTaken, Put, Store, Trim, Unname


def run(path: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        store = Store(path)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.db"


def test_what_was_committed_is_there_after_a_restart(path: Path) -> None:
    async def write(store: Store) -> None:
        await store.commit(Put("container", "a", b"1"), Name("container", "web", "a"))
        await store.commit(Put("container", "b", b"2"), Put("container", "a", b"3"))
        await store.commit(Delete("container", "b"), Delete("container", "never was"))

    async def read(store: Store) -> None:
        assert store.load("container") == {"a": b"3"}
        assert store.names("container") == {"web": "a"}
        assert store.load("network") == {}

    run(path, write)
    run(path, read)


def test_a_taken_name_refuses_the_whole_commit_and_only_that(path: Path) -> None:
    async def work(store: Store) -> None:
        await store.commit(Name("container", "web", "a"))
        results = await asyncio.gather(
            store.commit(Put("container", "x", b"")),
            store.commit(Put("container", "b", b""), Name("container", "web", "b")),
            store.commit(Put("container", "y", b"")),
            return_exceptions=True,
        )
        assert isinstance(results[1], NameTaken)
        assert results[1].holder == "a"
        assert set(store.load("container")) == {"x", "y"}
        await store.commit(Unname("container", "web"), Name("container", "web", "b"))
        await store.commit(Name("container", "web", "b"))
        assert store.names("container") == {"web": "b"}

    run(path, work)


def test_changes_nobody_waits_for_are_written_before_the_store_closes(path: Path) -> None:
    async def write(store: Store) -> None:
        for seq in range(1, 11):
            store.commit_soon(Append(seq, seq * 10, b"%d" % seq))
        store.commit_soon(Trim(before_ns=25, keep=5))

    async def read(store: Store) -> None:
        rows = await store.query(lambda connection: connection.execute("SELECT seq FROM event").fetchall())
        assert [row[0] for row in rows] == [6, 7, 8, 9, 10]
        assert store.last_event() == (10, 100)

    run(path, write)
    run(path, read)


def test_a_closed_store_refuses_commits(path: Path) -> None:
    async def main() -> None:
        store = Store(path)
        await store.close()
        await store.close()
        with pytest.raises(Unavailable):
            await store.commit(Put("container", "a", b""))

    asyncio.run(main())


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_told_with_what_to_do(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    with pytest.raises(EngineError, match=r"is damaged .* restore the file from a backup"):
        Store(path)


def test_state_of_a_newer_engine_is_refused(path: Path) -> None:
    run(path, lambda store: store.commit())
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(EngineError, match="written by a newer engine"):
        Store(path)


_CHILD = """
import asyncio, sys
from pathlib import Path
from engine.store import Put, Name, Store

async def main():
    store = Store(Path(sys.argv[1]))
    async def writer(n):
        i = 0
        while True:
            key = f"{n}-{i}"
            await store.commit(Put("container", key, key.encode() * 100), Name("container", f"name-{key}", key))
            print(key, flush=True)
            i += 1
    await asyncio.gather(*map(writer, range(4)))

asyncio.run(main())
"""


def test_every_acknowledged_commit_survives_kill_9(path: Path) -> None:
    for acknowledged_before_kill in (1, 40, 97):
        child = subprocess.Popen([sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged = [child.stdout.readline().strip() for _ in range(acknowledged_before_kill)]
        os.kill(child.pid, signal.SIGKILL)
        acknowledged += [line.strip() for line in child.stdout if line.endswith("\n")]
        child.stdout.close()
        child.wait()

        async def check(store: Store, wanted: tuple[str, ...] = tuple(acknowledged)) -> None:
            records, names = store.load("container"), store.names("container")
            assert set(wanted) <= set(records)
            assert {f"name-{key}": key for key in records} == names  # nothing half made

        run(path, check)
        path.unlink()
        for extra in ("-wal", "-shm"):
            Path(f"{path}{extra}").unlink(missing_ok=True)
