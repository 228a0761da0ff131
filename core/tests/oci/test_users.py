from __future__ import annotations

import os

import pytest

from engine.errors import InvalidParameter
from engine.oci import users

PASSWD = """root:x:0:0:root:/root:/bin/sh
# a comment
bob:x:1000:1000:Bob:/home/bob:/bin/sh
1234:x:7:8::/seven:/bin/sh
broken:x:nan:1::/:
odd:x:\u00b2:1::/:
long:x:99999999999999999999:1::/:
homeless:x:50:50
"""
GROUP = "root:x:0:\nbob:x:1000:\nwheel:x:10:bob,root\naudio:x:29:bob\n"


@pytest.fixture
def rootfs(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "add", "uid", "gid", "gids", "home"),
    [
        ("", (), 0, 0, (0, 10), "/root"),
        ("bob", (), 1000, 1000, (1000, 10, 29), "/home/bob"),
        ("1000", (), 1000, 1000, (1000, 10, 29), "/home/bob"),
        ("bob:audio", (), 1000, 29, (29,), "/home/bob"),
        ("bob:77", ("wheel", "78"), 1000, 77, (77, 10, 78), "/home/bob"),
        ("5000", (), 5000, 0, (0,), "/"),
        ("5000:6000", (), 5000, 6000, (6000,), "/"),
        ("1234", (), 7, 8, (8,), "/seven"),
        (":audio", (), 0, 29, (29,), "/root"),
        ("homeless", (), 50, 50, (50,), "/"),
    ],
)
def test_a_user_is_looked_up_in_the_image(rootfs, text, add, uid, gid, gids, home):
    assert users.find(rootfs, text, add) == users.User(uid=uid, gid=gid, gids=gids, home=home)


@pytest.mark.parametrize(
    ("text", "add", "message"),
    [
        ("alice", (), "unable to find user alice: no matching entries in passwd file"),
        ("bob:nogroup", (), "unable to find group nogroup: no matching entries in group file"),
        ("bob", ("nogroup",), "unable to find group nogroup: no matching entries in group file"),
        ("-1", (), "uids and gids must be in range 0-2147483647"),
        ("9" * 5000, (), "uids and gids must be in range 0-2147483647"),
        ("odd", (), "unable to find user odd: no matching entries in passwd file"),
        ("long", (), "unable to find user long: no matching entries in passwd file"),
        ("4294967296", (), "uids and gids must be in range 0-2147483647"),
    ],
)
def test_who_is_not_there_is_refused_in_dockers_words(rootfs, text, add, message):
    with pytest.raises(InvalidParameter) as error:
        users.find(rootfs, text, add)
    assert str(error.value) == message


def test_an_image_without_files_has_only_numbers(tmp_path):
    assert users.find(tmp_path, "12:13") == users.User(uid=12, gid=13, gids=(13,))
    with pytest.raises(InvalidParameter, match="no matching entries in passwd file"):
        users.find(tmp_path, "root")


def test_links_lead_nowhere_but_inside(tmp_path):
    (tmp_path / "outside").write_text("eve:x:666:666::/:\n")
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/passwd").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidParameter, match="unable to find user eve"):
        users.find(rootfs, "eve")


def test_a_fifo_for_a_passwd_file_does_not_hold_us_up(rootfs):
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    assert users.find(rootfs, "1").uid == 1
