"""The confined child: what it lets through, what it tells of failures, and that it is confined."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.drivers.store import LayerSource
from engine.errors import EngineError, InvalidParameter
from engine.layers import unpack

pytestmark = pytest.mark.root


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "target").mkdir()
    fd = os.open(tmp_path / "target", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    unpack.close()


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, data: bytes = b"", **values: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def source(tmp_path: Path, data: bytes, compression: str = "none", diff_id: str = "") -> LayerSource:
    path = tmp_path / "layer"
    path.write_bytes(data)
    return LayerSource(path=path, compression=compression, diff_id=diff_id)


def test_a_layer_is_unpacked_and_its_digest_told(target: int, tmp_path: Path) -> None:
    data = tar(member("d/file", b"x" * 5000, uid=7, gid=8, mode=0o4750), member("d/.wh.gone"), member("d/.wh..wh..opq"))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    result = unpack.unpack(source(tmp_path, gzip.compress(data), "gzip", digest), target, "overlay")
    assert (result.diff_id, result.size, result.opaque) == (digest, 5000, ("d",))
    status = (tmp_path / "target" / "d" / "file").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o4750)
    assert (tmp_path / "target" / "d" / "gone").lstat().st_rdev == 0
    unpack.mark_opaque(target, result.opaque)
    assert os.getxattr(tmp_path / "target" / "d", "trusted.overlay.opaque") == b"y"


def test_attributes_for_overlayfs_in_an_image_are_not_set(target: int, tmp_path: Path) -> None:
    info, data = member("file", b"x")
    info.pax_headers = {"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.fine": "yes"}
    unpack.unpack(source(tmp_path, tar((info, data))), target, "overlay")
    assert os.listxattr(tmp_path / "target" / "file") == ["user.fine"]


def test_failures_name_their_cause_and_the_child_serves_on(target: int, tmp_path: Path) -> None:
    good = tar(member("file", b"x"))
    for data, message in (
        (tar(member("../up", b"x")), r'"../up" is outside of the root'),
        (good[:400], "truncated"),
        (tar(member("n" * 300, b"x")), "file name too long"),
        (tar(member("l", type=tarfile.LNKTYPE, linkname="/etc/hostname")), 'cannot unpack "l": no such file'),
    ):
        with pytest.raises(InvalidParameter, match=message):
            unpack.unpack(source(tmp_path, data), target, "overlay")
    with pytest.raises(InvalidParameter, match="does not match its diff id"):
        unpack.unpack(source(tmp_path, good, diff_id="sha256:" + "0" * 64), target, "overlay")
    with pytest.raises(EngineError, match="unknown compression"):
        unpack.unpack(source(tmp_path, good, "lzip"), target, "overlay")
    assert unpack.unpack(source(tmp_path, good), target, "overlay").size == 1


def test_the_process_that_reads_the_archive_is_confined(target: int, tmp_path: Path) -> None:
    """Looked at from outside while it waits for input on a pipe."""
    unpack.start()
    readable, writable = os.pipe()
    outcome: list[object] = []

    def work() -> None:
        outcome.append(unpack.unpack(LayerSource(fd=readable), target, "overlay"))

    thread = threading.Thread(target=work)
    thread.start()
    job = _wait_for_job(tmp_path / "target")
    status = dict(line.split(":\t", 1) for line in (job / "status").read_text().splitlines() if ":\t" in line)
    assert os.readlink(job / "root") == str(tmp_path / "target")
    assert int(status["CapEff"], 16) & ~((1 << 0) | (1 << 1) | (1 << 3) | (1 << 4) | (1 << 27) | (1 << 31)) == 0
    assert status["NoNewPrivs"] == "1"
    assert os.readlink(job / "ns" / "net") != os.readlink("/proc/self/ns/net")
    os.write(writable, tar(member("file", b"x")))
    os.close(writable)
    thread.join(20)
    os.close(readable)
    assert [getattr(result, "size", None) for result in outcome] == [1]


def _wait_for_job(root: Path) -> Path:
    ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    for _ in range(100_000):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    status = (entry / "status").read_text()
                    if os.readlink(entry / "root") == str(root) and ours not in status:  # it has given up its last
                        return entry
                except OSError:
                    continue
    raise AssertionError("no confined process appeared")
