"""Who a container's process runs as: ``--user`` looked up in the image's own passwd and group files.

The files are the image's, so they are untrusted: they are opened with openat2 inside the root file system (no link
leads out), must be regular, and are read up to a limit.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine import kernel
from engine.errors import InvalidParameter

__all__ = ["User", "find"]

MAX_ID = (1 << 31) - 1
_MAX_FILE = 8 << 20
_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES))


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """``gids`` are all groups, the primary one first (leaving it out is CVE-2022-36109); ``home`` from passwd."""

    uid: int = 0
    gid: int = 0
    gids: tuple[int, ...] = (0,)
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Passwd:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def find(rootfs: Path, text: str, group_add: Sequence[str] | None = None) -> User:
    """Resolve ``user``, ``uid``, ``user:group``, ``uid:gid`` (empty: root) and ``--group-add`` below ``rootfs``.

    Blocks on the file system. Raises `InvalidParameter` in dockerd's words when a name is unknown or an id is out of
    range (0 to 2147483647).
    """
    directory = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        users = _read_passwd(directory)
        groups = _read_groups(directory)
    finally:
        os.close(directory)
    return _resolve(text, group_add or (), users, groups)


def _resolve(text: str, group_add: Sequence[str], users: list[_Passwd], groups: list[_Group]) -> User:
    user_text, _, group_text = text.partition(":")
    wanted = user_text or "0"
    number = _id(wanted)
    # A name made of digits wins over the number it spells, as in libc's callers and runc.
    entry = next((user for user in users if user.name == wanted), None)
    if entry is None and number is not None:
        entry = next((user for user in users if user.uid == number), None)
    if entry is not None:
        uid, gid, home, name = entry.uid, entry.gid, entry.home or "/", entry.name
    elif number is not None:
        uid, gid, home, name = number, 0, "/", ""
    else:
        raise InvalidParameter(f"unable to find user {wanted}: no matching entries in passwd file")
    supplementary: list[int] = []
    if group_text:
        gid = _group(group_text, groups)
    elif name:
        supplementary = [group.gid for group in groups if name in group.members]
    supplementary += [_group(group, groups) for group in group_add]
    return User(uid=uid, gid=gid, gids=tuple(dict.fromkeys((gid, *supplementary))), home=home)


def _group(text: str, groups: list[_Group]) -> int:
    entry = next((group for group in groups if group.name == text), None)
    if entry is not None:
        return entry.gid
    number = _id(text)
    if number is None:
        raise InvalidParameter(f"unable to find group {text}: no matching entries in group file")
    return number


def _id(text: str) -> int | None:
    """The number ``text`` spells, None when it is a name."""
    if not text.isascii() or not text.removeprefix("-").isdigit():
        return None
    number = int(text)
    if not 0 <= number <= MAX_ID:
        raise InvalidParameter(f"uids and gids must be in range 0-{MAX_ID}")
    return number


def _read_passwd(directory: int) -> list[_Passwd]:
    users = []
    for fields in _records(directory, "etc/passwd"):
        if len(fields) >= 4 and fields[2].isdigit() and fields[3].isdigit():
            home = fields[5] if len(fields) > 5 else ""
            users.append(_Passwd(fields[0], int(fields[2]), int(fields[3]), home))
    return users


def _read_groups(directory: int) -> list[_Group]:
    groups = []
    for fields in _records(directory, "etc/group"):
        if len(fields) >= 3 and fields[2].isdigit():
            members = tuple(filter(None, fields[3].split(","))) if len(fields) > 3 else ()
            groups.append(_Group(fields[0], int(fields[2]), members))
    return groups


def _records(directory: int, path: str) -> list[list[str]]:
    try:
        # O_NONBLOCK: a FIFO in the image must not hold us up.
        fd = kernel.openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in _ABSENT:
            return []
        raise
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        data = file.read(_MAX_FILE)
    lines = data.decode(errors="replace").split("\n")
    return [line.strip().split(":") for line in lines if line.strip() and not line.startswith("#")]
