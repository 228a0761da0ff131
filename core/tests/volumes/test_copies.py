from __future__ import annotations

import asyncio
import io
import os
import tarfile

import pytest

from engine.errors import Conflict, InvalidParameter, NotFound
from engine.piping import consumed, produced
from engine.volumes import copies
from engine.workers import Workers


class Record:
    def __init__(self, name, labels):
        self.name, self.labels = name, labels


class Volumes:
    """Volumes that are directories; ``held`` are those borrowed now."""

    def __init__(self, root):
        self.root, self.records, self.held = root, {}, []

    def get(self, name):
        if name not in self.records:
            raise NotFound(f"get {name}: no such volume")
        return self.records[name]

    async def create(self, name, labels=None):
        if name not in self.records:
            (self.root / name).mkdir()
            self.records[name] = Record(name, labels)
        return self.records[name]

    async def remove(self, name):
        del self.records[name]

    def borrowed(self, name):
        volumes = self

        class Borrowed:
            async def __aenter__(self):
                volumes.held.append(name)
                return volumes.root / name

            async def __aexit__(self, *_):
                volumes.held.remove(name)

        return Borrowed()


def scenario(test):
    """Run ``test(volumes, workers)`` with volumes and threads of its own."""

    def run(tmp_path):
        async def main():
            workers = Workers(threads=4)
            try:
                await test(Volumes(tmp_path), workers)
            finally:
                await workers.close()

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


async def body(*chunks):
    for chunk in chunks:
        yield chunk


@scenario
async def test_an_export_holds_its_volume_while_it_is_read_and_no_longer(volumes, workers):
    await volumes.create("vol")
    (volumes.root / "vol" / "file").write_bytes(b"x" * 1_000_000)
    stream = await copies.export(volumes, workers, "vol")
    assert volumes.held == []
    data = await anext(stream)
    assert volumes.held == ["vol"]
    async for chunk in stream:
        data += chunk
    assert volumes.held == []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getmember("file").size == 1_000_000


@scenario
async def test_a_reader_that_leaves_ends_the_export(volumes, workers):
    await volumes.create("vol")
    (volumes.root / "vol" / "file").write_bytes(b"x" * 5_000_000)
    stream = await copies.export(volumes, workers, "vol")
    await anext(stream)
    await stream.aclose()
    assert volumes.held == []


@scenario
async def test_missing_volumes_and_taken_names_are_told_first(volumes, workers):
    with pytest.raises(NotFound, match="get nosuch: no such volume"):
        await copies.export(volumes, workers, "nosuch")
    await volumes.create("vol")
    await volumes.create("taken")
    with pytest.raises(Conflict, match="a volume named taken exists already"):
        await copies.clone(volumes, workers, "vol", "taken")
    with pytest.raises(NotFound):
        await copies.snapshot(volumes, workers, "nosuch")


@scenario
async def test_a_clone_keeps_labels_and_links_and_a_failed_one_leaves_no_volume(volumes, workers):
    await volumes.create("vol", labels={"team": "db"})
    (volumes.root / "vol" / "one").write_text("data")
    os.link(volumes.root / "vol" / "one", volumes.root / "vol" / "two")
    record = await copies.clone(volumes, workers, "vol", "copy")
    assert record.labels == {"team": "db"}
    assert (volumes.root / "copy" / "one").stat().st_ino == (volumes.root / "copy" / "two").stat().st_ino
    assert (volumes.root / "copy" / "one").stat().st_ino != (volumes.root / "vol" / "one").stat().st_ino
    volumes.root.joinpath("vol").rename(volumes.root / "gone")
    with pytest.raises(FileNotFoundError):
        await copies.clone(volumes, workers, "vol", "broken")
    assert set(volumes.records) == {"vol", "copy"}
    assert volumes.held == []


@scenario
async def test_a_snapshot_says_of_what_and_when(volumes, workers):
    await volumes.create("vol", labels={"team": "db"})
    record = await copies.snapshot(volumes, workers, "vol")
    assert record.name.startswith("vol-2")
    assert record.labels["team"] == "db"
    assert record.labels[copies.SNAPSHOT_OF] == "vol"
    assert record.labels[copies.SNAPSHOT_TIME].endswith("Z")
    assert (await copies.snapshot(volumes, workers, "vol", "mine")).name == "mine"


@pytest.mark.root
@scenario
async def test_an_import_that_is_no_archive_leaves_only_what_was_there(volumes, workers):
    await volumes.create("old")
    for name in ("old", "new"):
        with pytest.raises(InvalidParameter):
            await copies.import_(volumes, workers, name, body(b"no archive", b" at all" * 200))
    assert set(volumes.records) == {"old"}
    assert volumes.held == []


@scenario
async def test_the_error_of_whoever_writes_comes_after_its_last_chunk(volumes, workers):
    def produce(fd):
        os.write(fd, b"part")
        raise ValueError("broken")

    got = []
    with pytest.raises(ValueError, match="broken"):
        async for chunk in produced(workers, produce):
            got.append(chunk)
    assert got == [b"part"]


@scenario
async def test_whoever_reads_may_stop_early(volumes, workers):
    assert await consumed(workers, body(*[b"x" * 100_000] * 50), lambda fd: os.read(fd, 3)) == b"xxx"
