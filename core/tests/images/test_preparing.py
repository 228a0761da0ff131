"""Layers that are unpacked while they arrive."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.content import Content
from engine.drivers.store import LayerSource, PreparedLayer
from engine.errors import InvalidParameter
from engine.images.preparing import Preparing
from engine.layers import tar
from engine.layers.child import _following
from engine.names import sha256

LAYER = tar.header(tar.Entry(name=b"file", size=0)) + bytes(1024)


class FakeStore:
    """Unpacks nothing: reads to the end, as the child does, and says what it has seen."""

    capabilities = frozenset({"prepare"})

    def __init__(self) -> None:
        self.context = SimpleNamespace(name="fake")
        self.discarded: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def prepare_layer(self, source: LayerSource) -> PreparedLayer:
        self.gate.wait(10)
        assert source.fd is not None
        assert source.growing is not None
        read = _following(source.fd, source.growing)
        data = b"".join(iter(lambda: read(100), b""))
        return PreparedLayer(name=sha256(data), diff_id=sha256(data), size=len(data))

    def discard_prepared(self, prepared: PreparedLayer) -> None:
        self.discarded.append(prepared.name)


def write(content: Content, preparing: Preparing, data: bytes) -> str:
    with content.writer() as writer:
        writer.write(data[:512])
        with preparing.begin(writer, data[:512]) as name:
            for at in range(512, len(data), 300):
                writer.write(data[at : at + 300])
            digest = writer.commit(durable=False)
            name(digest)
    return digest


def test_a_layer_is_read_to_its_end_while_it_is_written(tmp_path: Path) -> None:
    preparing = Preparing(FakeStore(), 2)  # type: ignore[arg-type]
    data = LAYER + os.urandom(5000)
    digest = write(Content(tmp_path), preparing, data)
    prepared = preparing.take(digest, sha256(data))
    assert prepared is not None
    assert prepared.size == len(data)
    assert preparing.take(digest, sha256(data)) is None, "it is somebody's now"


def test_a_download_that_stops_leaves_nothing_prepared(tmp_path: Path) -> None:
    store = FakeStore()
    preparing = Preparing(store, 1)  # type: ignore[arg-type]
    content = Content(tmp_path)
    with content.writer() as writer:
        writer.write(LAYER)
        with pytest.raises(ConnectionError), preparing.begin(writer, LAYER[:512]):
            raise ConnectionError
    digest = write(content, preparing, LAYER)  # there is room again
    assert preparing.take(digest, sha256(LAYER)) is not None
    assert store.discarded == []


def test_content_of_another_diff_id_is_refused_and_thrown_away(tmp_path: Path) -> None:
    store = FakeStore()
    preparing = Preparing(store, 1)  # type: ignore[arg-type]
    digest = write(Content(tmp_path), preparing, LAYER)
    with pytest.raises(InvalidParameter, match="does not match its diff id"):
        preparing.take(digest, sha256(b"other"))
    assert store.discarded == [sha256(LAYER)]


def test_what_nobody_takes_is_dropped(tmp_path: Path) -> None:
    store = FakeStore()
    preparing = Preparing(store, 1)  # type: ignore[arg-type]
    digest = write(Content(tmp_path), preparing, LAYER)
    preparing.drop(digest)
    preparing.drop(digest)
    assert store.discarded == [sha256(LAYER)]


def test_configs_and_layers_beyond_the_limit_are_not_prepared(tmp_path: Path) -> None:
    store = FakeStore()
    store.gate.clear()
    preparing = Preparing(store, 1)  # type: ignore[arg-type]
    content = Content(tmp_path)
    config = write(content, preparing, b'{"architecture":"amd64"}' + bytes(1000))
    first = write(content, preparing, LAYER)
    second = write(content, preparing, LAYER + bytes(512))
    assert preparing.take(config, sha256(b"")) is None
    assert preparing.take(second, sha256(b"")) is None
    store.gate.set()
    assert preparing.take(first, sha256(LAYER)) is not None


def test_a_blob_written_again_from_the_start_is_not_followed_on(tmp_path: Path) -> None:
    with Content(tmp_path).writer() as writer:
        writer.write(b"old")
        file, growing = writer.follow()
        read = _following(file, growing)
        assert read(10) == b"old"
        writer.restart()
        with pytest.raises(InvalidParameter, match="did not arrive"):
            read(10)
    os.close(file)
    os.close(growing)
