"""Who a container's process runs as: ``--user`` looked up in the image's own passwd and group files.

The files are the image's, so they are untrusted: they are opened with openat2 inside the root file system (no link
leads out), must be regular, and are read up to a limit.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine import kernel
from engine.errors import InvalidParameter

__all__ = ["User", "find"]

MAX_ID = (1 << 31) - 1
_MAX_FILE = 8 << 20
_MAX_DIGITS = 10
_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES))


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """``gids`` are all groups, the primary one first (leaving it out is CVE-2022-36109); ``home`` from passwd."""

    uid: int = 0
    gid: int = 0
    gids: tuple[int, ...] = (0,)
    home: str = "/"


def find(rootfs: Path, text: str, group_add: Sequence[str] | None = None) -> User:
    """Resolve ``user``, ``uid``, ``user:group``, ``uid:gid`` (empty: root) and ``--group-add`` below ``rootfs``.

    Blocks on the file system. Raises `InvalidParameter` in dockerd's words when a name is unknown or an id is out of
    range (0 to 2147483647).
    """
    name, _, group = text.partition(":")
    directory = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        user = _passwd(directory, name or "0")
        groups = [group] if group else []
        if groups or group_add or user.name:
            return _with_groups(user, groups, group_add or (), list(_records(directory, "etc/group", 3)))
    finally:
        os.close(directory)
    return User(uid=user.uid, gid=user.gid, gids=(user.gid,), home=user.home)


@dataclass(frozen=True, slots=True)
class _Passwd:
    """An entry of passwd; without a name when there is none for a number."""

    name: str
    uid: int
    gid: int
    home: str


def _passwd(directory: int, wanted: str) -> _Passwd:
    """The first entry whose name or number is the one wanted."""
    number = _id(wanted)
    for fields in _records(directory, "etc/passwd", 4):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None and (fields[0] == wanted or uid == number):
            home = fields[5] if len(fields) > 5 else ""
            return _Passwd(fields[0], uid, gid, home or "/")
    if number is None:
        raise InvalidParameter(f"unable to find user {wanted}: no matching entries in passwd file")
    return _Passwd("", number, 0, "/")


def _with_groups(user: _Passwd, chosen: Sequence[str], added: Sequence[str], records: Sequence[Sequence[str]]) -> User:
    """A group that was chosen replaces all the user is in; those added come on top."""
    gid = _group(chosen[0], records) if chosen else user.gid
    gids = [gid]
    if not chosen:
        for fields in records:
            number = _number(fields[2])
            if number is not None and len(fields) > 3 and user.name in fields[3].split(","):
                gids.append(number)
    gids += [_group(text, records) for text in added]
    return User(uid=user.uid, gid=gid, gids=tuple(dict.fromkeys(gids)), home=user.home)


def _group(text: str, records: Sequence[Sequence[str]]) -> int:
    for fields in records:
        number = _number(fields[2])
        if fields[0] == text and number is not None:
            return number
    wanted = _id(text)
    if wanted is None:
        raise InvalidParameter(f"unable to find group {text}: no matching entries in group file")
    return wanted


def _id(text: str) -> int | None:
    """The number a user typed, None when it is a name."""
    if not text.isascii() or not text.removeprefix("-").isdigit():
        return None
    number = _number(text)
    if number is None:
        raise InvalidParameter(f"uids and gids must be in range 0-{MAX_ID}")
    return number


def _number(text: str) -> int | None:
    """A uid or gid; None for anything else. Images hold what they like: signs, Unicode digits, millions of digits."""
    if len(text) > _MAX_DIGITS or not text.isascii() or not text.isdigit():
        return None
    return int(text) if int(text) <= MAX_ID else None


def _records(directory: int, path: str, fields: int) -> Iterator[list[str]]:
    """The entries of a file with at least so many fields."""
    for line in _read(directory, path).decode(errors="replace").split("\n"):
        if not line.startswith("#"):
            record = line.strip().split(":")
            if len(record) >= fields:
                yield record


def _read(directory: int, path: str) -> bytes:
    """A regular file inside ``directory``, up to a limit; empty when there is none."""
    try:
        # O_NONBLOCK: a FIFO in the image must not hold us up.
        fd = kernel.openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in _ABSENT:
            return b""
        raise
    with open(fd, "rb") as file:
        return file.read(_MAX_FILE) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
