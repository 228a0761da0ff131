"""Conformance of image stores (`engine.drivers.store`); needs root."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.drivers.store import ImageStoreDriver, LayerSource
from engine.errors import EngineError

__all__ = ["StoreConformance", "chain", "digest", "link", "tar"]

Driver = ImageStoreDriver
Entry = tuple[str, bytes | None] | tarfile.TarInfo
Commit = Callable[..., str]


def tar(*entries: Entry) -> bytes:
    """A tar of ``(name, content)`` files, ``(name, None)`` directories and ready `tarfile.TarInfo`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry, io.BytesIO(b"\0" * entry.size))
                continue
            name, content = entry
            info = tarfile.TarInfo(name)
            info.mtime = 1_600_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            else:
                info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A symbolic or hard link entry."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def digest(data: bytes) -> str:
    """As OCI writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def chain(*diff_ids: str) -> str:
    """The chain id of a stack of layers (OCI image-spec)."""
    top = diff_ids[0]
    for diff_id in diff_ids[1:]:
        top = digest(f"{top} {diff_id}".encode())
    return top


@pytest.mark.root
class StoreConformance:
    """Subclass and provide ``driver``."""

    @pytest.fixture
    def driver(self) -> ImageStoreDriver:
        """The driver under test."""
        raise NotImplementedError

    @pytest.fixture
    def commit(self, driver: Driver, tmp_path: Path) -> Commit:
        """``commit(tar, ..., tar)`` commits a stack and returns the top chain id."""

        def build(*layers: bytes, compression: str = "none") -> str:
            diff_ids: list[str] = []
            parent = None
            for data in layers:
                diff_ids.append(digest(data))
                path = tmp_path / "layer.tar"
                path.write_bytes(gzip.compress(data) if compression == "gzip" else data)
                top = chain(*diff_ids)
                driver.commit_layer(top, parent, LayerSource(path=path, compression=compression, diff_id=diff_ids[-1]))
                parent = top
            assert parent is not None
            return parent

        return build

    def test_layers_stack_and_whiteouts_hide(self, driver: Driver, commit: Commit, no_leaks: None) -> None:
        """Files, replacement, deletion of files and whole directories, opaque directories."""
        top = commit(
            tar(
                ("d", None), ("d/a", b"a"), ("d/b", b"b"), ("e", None), ("e/old", b"1"), ("gone", None), ("gone/x", b"")
            ),
            tar(
                ("d/a", b"new"),
                ("d/.wh.b", b""),
                ("e", None),
                ("e/.wh..wh..opq", b""),
                ("e/new", b"2"),
                (".wh.gone", b""),
            ),
        )
        driver.create_rootfs("c1", top, {})
        root = driver.mount_rootfs("c1")
        assert (root / "d/a").read_bytes() == b"new"
        assert sorted(path.name for path in (root / "d").iterdir()) == ["a"]
        assert sorted(path.name for path in (root / "e").iterdir()) == ["new"]
        assert not (root / "gone").exists()
        driver.remove_rootfs("c1")

    def test_metadata_survives(self, driver: Driver, commit: Commit, no_leaks: None) -> None:
        """Owner, mode with setuid, time, links, devices, fifos, extended attributes."""
        setuid = tarfile.TarInfo("setuid")
        setuid.mode, setuid.uid, setuid.gid, setuid.mtime = 0o4755, 1234, 5678, 1_500_000_000
        device = tarfile.TarInfo("null")
        device.type, device.devmajor, device.devminor, device.mode = tarfile.CHRTYPE, 1, 3, 0o666
        fifo = tarfile.TarInfo("fifo")
        fifo.type = tarfile.FIFOTYPE
        marked = tarfile.TarInfo("marked")
        marked.pax_headers = {"SCHILY.xattr.user.colour": "blue"}
        top = commit(
            tar(
                setuid,
                device,
                fifo,
                marked,
                ("file", b"x"),
                link("hard", "file", tarfile.LNKTYPE),
                link("soft", "file"),
            )
        )
        driver.create_rootfs("c1", top, {})
        root = driver.mount_rootfs("c1")
        status = (root / "setuid").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 1234, 5678)
        assert int(status.st_mtime) == 1_500_000_000
        assert (root / "null").stat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
        assert os.getxattr(root / "marked", "user.colour") == b"blue"
        assert (root / "hard").stat().st_ino == (root / "file").stat().st_ino
        assert os.readlink(root / "soft") == "file"
        driver.remove_rootfs("c1")

    def test_containers_do_not_change_their_image(self, driver: Driver, commit: Commit, no_leaks: None) -> None:
        """Two containers of one image: each has its own copy, which persists over unmount and mount."""
        top = commit(tar(("file", b"image")))
        for name in ("c1", "c2"):
            driver.create_rootfs(name, top, {})
        (driver.mount_rootfs("c1") / "file").write_bytes(b"changed")
        assert (driver.mount_rootfs("c2") / "file").read_bytes() == b"image"
        driver.unmount_rootfs("c1")
        driver.unmount_rootfs("c1")
        assert (driver.mount_rootfs("c1") / "file").read_bytes() == b"changed"
        for name in ("c1", "c2"):
            driver.remove_rootfs(name)
            driver.remove_rootfs(name)

    def test_changes_tell_what_the_container_did(self, driver: Driver, commit: Commit, no_leaks: None) -> None:
        """Docker's kinds: 0 modified, 1 added, 2 deleted; directories on the way are modified."""
        top = commit(tar(("d", None), ("d/keep", b"k"), ("d/edit", b"e"), ("d/drop", b"d")))
        driver.create_rootfs("c1", top, {})
        root = driver.mount_rootfs("c1")
        assert list(driver.changes("c1")) == []
        (root / "d/edit").write_bytes(b"edited")
        (root / "d/drop").unlink()
        (root / "d/new").write_bytes(b"n")
        assert [(change.path, change.kind) for change in driver.changes("c1")] == [
            ("/d", 0),
            ("/d/drop", 2),
            ("/d/edit", 0),
            ("/d/new", 1),
        ]
        driver.remove_rootfs("c1")

    def test_a_layer_that_exists_is_not_unpacked_again(self, driver: Driver, commit: Commit) -> None:
        """Same chain id, same layer - the source is not even read."""
        top = commit(tar(("file", b"x" * 5000)))
        again = driver.commit_layer(top, None, LayerSource(path=Path("/nonexistent"), diff_id=top))
        assert again.size >= 5000
        assert list(driver.layers()) == [top]

    def test_compressed_layers_are_checked_against_the_uncompressed_digest(
        self, driver: Driver, commit: Commit
    ) -> None:
        """gzip in, diff id of the tar."""
        assert commit(tar(("file", b"x")), compression="gzip") in driver.layers()

    @pytest.mark.parametrize("damage", ["digest", "cut", "garbage"])
    def test_a_damaged_layer_leaves_nothing(self, driver: Driver, tmp_path: Path, no_leaks: None, damage: str) -> None:
        """An `EngineError`, no layer, no files."""
        data = tar(("a", b"x" * 10_000), ("b", b"y" * 10_000))
        written = {"digest": data, "cut": data[:9000], "garbage": b"\xff" * 20_480}[damage]
        path = tmp_path / "layer.tar"
        path.write_bytes(written)
        wrong = digest(b"other") if damage == "digest" else digest(written)
        with pytest.raises(EngineError):
            driver.commit_layer(wrong, None, LayerSource(path=path, diff_id=wrong))
        assert dict(driver.layers()) == {}

    @pytest.mark.parametrize(
        "entries",
        [
            (("../escape", b"x"),),
            (("/../../escape", b"x"),),
            (link("out", "/"), ("out/tmp/engine-escape", b"x")),
            (link("out", "../../../../../../tmp"), ("out/engine-escape", b"x")),
            (link("hard", "/etc/hostname", tarfile.LNKTYPE), ("hard", b"overwritten")),
            (link("hard", "../../../../../../etc/hostname", tarfile.LNKTYPE), ("hard", b"overwritten")),
        ],
        ids=["dotdot", "absolute dotdot", "absolute link", "relative link", "hard link", "relative hard link"],
    )
    def test_nothing_in_a_layer_reaches_outside(
        self, driver: Driver, tmp_path: Path, entries: tuple[Entry, ...]
    ) -> None:
        """Hostile paths and links are refused or stay inside."""
        before = Path("/etc/hostname").read_bytes()
        data = tar(*entries)
        path = tmp_path / "layer.tar"
        path.write_bytes(data)
        try:
            driver.commit_layer(digest(data), None, LayerSource(path=path, diff_id=digest(data)))
        except EngineError:
            assert dict(driver.layers()) == {}
        assert Path("/etc/hostname").read_bytes() == before
        assert not Path("/tmp/engine-escape").exists()
        assert not (tmp_path / "escape").exists()
        assert not (driver.context.root.parent / "escape").exists()

    def test_many_layers_mount(self, driver: Driver, commit: Commit, no_leaks: None) -> None:
        """127 is what Docker allows."""
        top = commit(*(tar((f"file{number}", str(number).encode())) for number in range(127)))
        driver.create_rootfs("c1", top, {})
        root = driver.mount_rootfs("c1")
        assert len([path for path in root.iterdir() if path.name.startswith("file")]) == 127
        driver.remove_rootfs("c1")

    def test_removed_layers_are_gone(self, driver: Driver, commit: Commit) -> None:
        """Idempotent."""
        top = commit(tar(("file", b"x")))
        driver.remove_layer(top)
        driver.remove_layer(top)
        assert dict(driver.layers()) == {}

    def test_an_empty_image_has_an_empty_root(self, driver: Driver, no_leaks: None) -> None:
        """FROM scratch: no parent."""
        driver.create_rootfs("c1", None, {})
        root = driver.mount_rootfs("c1")
        (root / "file").write_bytes(b"x")
        assert [(change.path, change.kind) for change in driver.changes("c1")] == [("/file", 1)]
        driver.remove_rootfs("c1")
