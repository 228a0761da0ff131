from __future__ import annotations

import os

import pytest

from engine.volumes.treecopy import copy_up


@pytest.fixture
def rootfs(tmp_path):
    data = tmp_path / "rootfs" / "data"
    (data / "sub").mkdir(parents=True)
    return tmp_path / "rootfs"


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_everything_about_the_files_is_kept(rootfs, target):
    data = rootfs / "data"
    data.chmod(0o751)
    (data / "sub" / "file").write_bytes(b"x" * 100_000)
    (data / "sub" / "file").chmod(0o4750)
    os.utime(data / "sub" / "file", ns=(1, 2_000_000_003))
    os.setxattr(data / "sub" / "file", "user.note", b"kept")
    os.link(data / "sub" / "file", data / "again")
    (data / "link").symlink_to("/etc/passwd")
    os.mkfifo(data / "fifo")
    assert copy_up(rootfs, "/data", target)
    copied = target / "sub" / "file"
    assert copied.read_bytes() == b"x" * 100_000
    assert copied.stat().st_mode & 0o7777 == 0o4750
    assert copied.stat().st_mtime_ns == 2_000_000_003
    assert os.getxattr(copied, "user.note") == b"kept"
    assert (target / "again").samefile(copied)
    assert os.readlink(target / "link") == "/etc/passwd"
    assert (target / "fifo").is_fifo()
    assert target.stat().st_mode & 0o777 == 0o751


@pytest.mark.root
def test_owners_are_kept(rootfs, target):
    (rootfs / "data" / "file").touch()
    os.chown(rootfs / "data", 11, 12)
    os.chown(rootfs / "data" / "file", 13, 14)
    assert copy_up(rootfs, "/data", target)
    assert (target.stat().st_uid, target.stat().st_gid) == (11, 12)
    assert ((target / "file").stat().st_uid, (target / "file").stat().st_gid) == (13, 14)


def test_a_volume_with_data_is_left_alone(rootfs, target):
    (rootfs / "data" / "file").touch()
    (target / "mine").touch()
    assert not copy_up(rootfs, "/data", target)
    assert os.listdir(target) == ["mine"]


@pytest.mark.parametrize("path", ["/nowhere", "/data/file"])
def test_a_place_that_is_no_directory_of_the_image_gives_nothing(rootfs, target, path):
    (rootfs / "data" / "file").touch()
    assert not copy_up(rootfs, path, target)
    assert os.listdir(target) == []


def test_links_on_the_way_stay_inside_the_root(rootfs, target, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (rootfs / "escape").symlink_to(tmp_path / "outside")
    (rootfs / "inside").symlink_to("/data")
    (rootfs / "data" / "file").touch()
    assert not copy_up(rootfs, "/escape", target)
    assert copy_up(rootfs, "/inside", target)
    assert sorted(os.listdir(target)) == ["file", "sub"]


def test_many_hard_links_in_different_directories_stay_one_file(rootfs, target):
    data = rootfs / "data"
    (data / "a").mkdir()
    (data / "a" / "one").write_text("x")
    os.link(data / "a" / "one", data / "sub" / "two")
    os.link(data / "a" / "one", data / "zzz")
    assert copy_up(rootfs, "/data", target)
    assert (target / "a" / "one").stat().st_nlink == 3
