"""A volume's data as a tar stream, out and in, and copies of volumes: `engine volume export`, import, clone, snapshot.

Every copy shares its blocks with the original where the file system can (btrfs, xfs: reflinks). A volume that
containers write to meanwhile is copied as it is met: stop or pause them where that matters.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from engine.drivers.store import LayerSource
from engine.errors import Conflict, EngineError, NotFound
from engine.layers import detect_compression
from engine.layers.pack import write_tree
from engine.layers.unpack import unpack
from engine.model.volume import VolumeRecord
from engine.piping import consumed, produced
from engine.volumes.treecopy import copy_tree

if TYPE_CHECKING:
    from engine.volumes.service import Volumes
    from engine.workers import Workers

__all__ = ["SNAPSHOT_OF", "SNAPSHOT_TIME", "clone", "export", "import_", "snapshot"]

SNAPSHOT_OF, SNAPSHOT_TIME = "engine.snapshot.of", "engine.snapshot.time"
"""Labels of a snapshot: the volume it was taken of, and when (RFC 3339)."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAGIC = 8  # bytes that tell a compression


async def export(volumes: Volumes, workers: Workers, name: str) -> AsyncGenerator[bytes, None]:
    """All files of a volume as a tar stream. `NotFound` before the first chunk."""
    volumes.get(name)

    async def stream() -> AsyncGenerator[bytes, None]:
        async with volumes.borrowed(name) as path:
            chunks = produced(workers, lambda output: _write(path, output))
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await chunks.aclose()

    return stream()


async def import_(
    volumes: Volumes, workers: Workers, name: str, body: AsyncIterator[bytes], labels: Mapping[str, str] | None = None
) -> VolumeRecord:
    """Unpack a tar stream, compressed or not, into a volume, which is made when it is not there.

    What the stream has replaces what the volume has of the same name. The stream is not trusted: a confined process
    unpacks it. `InvalidParameter` when it is no tar; a volume made for it is removed again then.
    """
    made = not _exists(volumes, name)
    record = await volumes.create(name, labels=labels)
    try:
        async with volumes.borrowed(record.name) as path:
            head, whole = await _peeked(body)
            compression = detect_compression(head)
            await consumed(workers, whole, lambda source: _unpack(path, source, compression))
    except BaseException:
        if made:
            with suppress(EngineError):
                await volumes.remove(record.name)
        raise
    return record


async def clone(
    volumes: Volumes, workers: Workers, source: str, target: str, labels: Mapping[str, str] | None = None
) -> VolumeRecord:
    """A new local volume ``target`` with a copy of everything in ``source``; `Conflict` when it is there already."""
    original = volumes.get(source)
    if _exists(volumes, target):
        raise Conflict(f"a volume named {target} exists already")
    record = await volumes.create(target, labels=original.labels if labels is None else labels)
    try:
        async with volumes.borrowed(source) as read, volumes.borrowed(record.name) as write:
            await workers.call(copy_tree, read, write, deadline=None)
    except BaseException:
        with suppress(EngineError):
            await volumes.remove(record.name)
        raise
    return record


async def snapshot(volumes: Volumes, workers: Workers, source: str, target: str = "") -> VolumeRecord:
    """A clone that says what it is of and when; without a name ``SOURCE-YYYYmmddTHHMMSSZ``."""
    now = datetime.now(UTC)
    labels = {
        **(volumes.get(source).labels or {}),
        SNAPSHOT_OF: source,
        SNAPSHOT_TIME: now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
    return await clone(volumes, workers, source, target or f"{source}-{now:%Y%m%dT%H%M%SZ}", labels)


def _exists(volumes: Volumes, name: str) -> bool:
    try:
        volumes.get(name)
    except NotFound:
        return False
    return True


def _write(path: Path, output: int) -> None:
    directory = os.open(path, _DIRECTORY)
    try:
        write_tree(directory, output)
    finally:
        os.close(directory)


def _unpack(path: Path, source: int, compression: str) -> None:
    directory = os.open(path, _DIRECTORY)
    try:
        unpack(LayerSource(fd=source, compression=compression), directory, "copy")
    finally:
        os.close(directory)


async def _peeked(body: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes]]:
    """The first bytes of a stream, and the stream with them."""
    head = b""
    async for chunk in body:
        head += chunk
        if len(head) >= _MAGIC:
            break

    async def whole() -> AsyncIterator[bytes]:
        yield head
        async for chunk in body:
            yield chunk

    return head, whole()
