from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from engine.content import Content
from engine.errors import InvalidParameter, NotFound, TooLarge
from engine.names import sha256


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return Content(tmp_path / "content")


def left(content: Content) -> list[str]:
    return sorted(os.listdir(content.root / "ingest")) + sorted(os.listdir(content.root / "blobs" / "sha256"))


def test_a_blob_is_found_under_its_digest_in_an_oci_layout(content: Content) -> None:
    descriptor = content.put(b"hello", "text/plain")
    assert descriptor.digest == sha256(b"hello")
    assert descriptor.size == 5
    assert content.path(descriptor.digest) == content.root / "blobs" / "sha256" / descriptor.digest[7:]
    assert content.read(descriptor.digest) == b"hello"
    assert (content.root / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'


def test_a_wrong_digest_is_refused_and_nothing_stays(content: Content) -> None:
    with content.writer(sha256(b"good"), None) as writer:
        writer.write(b"evil")
        with pytest.raises(InvalidParameter, match="unexpected commit digest"):
            writer.commit()
    assert left(content) == []


def test_more_or_less_bytes_than_promised_are_refused_and_nothing_stays(content: Content) -> None:
    with content.writer(None, 3) as writer, pytest.raises(InvalidParameter, match="longer than the 3 bytes"):
        writer.write(b"four")
    with content.writer(None, 3) as writer:
        writer.write(b"12")
        with pytest.raises(InvalidParameter, match="unexpected commit size 2, expected 3"):
            writer.commit()
    assert left(content) == []


def test_a_suspended_download_goes_on_where_it_stopped_even_in_another_process(content: Content) -> None:
    digest = sha256(b"first second")
    with content.writer(digest, 12) as writer:
        writer.write(b"first ")
        writer.suspend()
    again = Content(content.root)
    with again.writer(digest, 12) as writer:
        assert writer.offset == 6
        writer.write(b"second")
        assert writer.commit() == digest
    assert again.read(digest) == b"first second"


def test_restart_forgets_a_partial_download(content: Content) -> None:
    digest = sha256(b"right")
    with content.writer(digest) as writer:
        writer.write(b"wrong")
        writer.suspend()
    with content.writer(digest) as writer:
        writer.restart()
        writer.write(b"right")
        assert writer.commit() == digest


def test_two_writers_of_one_digest_do_not_disturb_each_other(content: Content) -> None:
    digest = sha256(b"same")
    with content.writer(digest) as one, content.writer(digest) as two:
        one.write(b"sa")
        two.write(b"same")
        two.commit()
        one.write(b"me")
        one.commit()
    assert content.read(digest) == b"same"
    assert left(content) == [digest[7:]]


def test_a_block_left_by_an_exception_keeps_nothing(content: Content) -> None:
    with pytest.raises(RuntimeError), content.writer(sha256(b"x")) as writer:
        writer.write(b"x")
        raise RuntimeError
    assert left(content) == []


def test_the_next_start_sweeps_nameless_and_old_ingests_only(content: Content) -> None:
    ingest = content.root / "ingest"
    (ingest / "tmp-1").write_bytes(b"x")
    (ingest / ("a" * 64)).write_bytes(b"fresh")
    old = ingest / ("b" * 64)
    old.write_bytes(b"old")
    os.utime(old, (time.time() - 200_000,) * 2)
    Content(content.root)
    assert os.listdir(ingest) == ["a" * 64]


def test_after_a_reboot_no_unfinished_download_is_trusted(content: Content) -> None:
    (content.root / "ingest" / ("a" * 64)).write_bytes(b"fresh")
    (content.root / "boot-id").write_bytes(b"another boot")
    again = Content(content.root)
    assert again.rebooted
    assert os.listdir(content.root / "ingest") == []
    assert not Content(content.root).rebooted


def test_reading_is_bounded_and_missing_blobs_are_named(content: Content) -> None:
    digest = content.put(b"12345", "x/y").digest
    with pytest.raises(TooLarge, match="5 bytes, more than the limit of 4"):
        content.read(digest, 4)
    with pytest.raises(NotFound, match=sha256(b"no")):
        content.path(sha256(b"no"))
    with pytest.raises(InvalidParameter, match="invalid digest"):
        content.path("sha256:../../etc/passwd")


def test_collect_keeps_what_is_named_or_held_by_a_lease(content: Content) -> None:
    kept = content.put(b"kept", "x/y").digest
    before = content.put(b"touched", "x/y").digest
    gone = content.put(b"gone", "x/y").digest
    with content.lease():
        added = content.put(b"added", "x/y").digest
        assert content.has(before)
        with content.lease():
            pass
        assert content.collect({kept}) == 4
        assert [content.has(digest) for digest in (kept, before, gone, added)] == [True, True, False, True]
    assert content.collect({kept}) == 12
    assert content.has(kept)
