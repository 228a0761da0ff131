"""Limits on directories: project quotas of ext4 and xfs, on file systems mounted with ``prjquota``.

A directory gets a project of its own, which everything made in it inherits; the kernel refuses what is over the
project's limit. `set_limit` either sets one or says why this file system cannot.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from engine.errors import InvalidParameter

__all__ = ["free_project", "set_limit"]

_GET_ATTRIBUTES, _SET_ATTRIBUTES = 0x801C581F, 0x401C5820  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
_ATTRIBUTES = struct.Struct("=IIIII8x")  # xflags, extsize, nextents, projid, cowextsize
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT
_SYS_QUOTACTL_FD = 443  # Linux 5.14; the same number everywhere
_SET_LIMIT = 0x5804 << 8 | 2  # Q_XSETQLIM of a project
_LIMIT = struct.Struct("=bbHI6Qii HH bbbb 3Q iHh8x".replace(" ", ""))  # struct fs_disk_quota
_HARD_AND_SOFT = 1 << 2 | 1 << 3
_BLOCK = 512
_FIRST, _RANGE = 1 << 30, 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def free_project(instance: str, directories: Iterable[Path]) -> int:
    """A project id that none of ``directories`` has; engines on one file system have ranges of their own."""
    base = _FIRST + int(instance, 16) % (1 << 14) * _RANGE
    taken = {_attributes(directory)[3] for directory in directories}
    return next(number for number in range(base, base + _RANGE) if number not in taken)


def set_limit(directory: Path, project: int, size: int) -> None:
    """Let everything in the (empty) ``directory`` have ``size`` bytes together.

    `InvalidParameter` where the file system has no project quotas or they are not enforced.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        xflags, extsize, nextents, _, cow = _attributes(directory)
        fcntl.ioctl(fd, _SET_ATTRIBUTES, _ATTRIBUTES.pack(xflags | _INHERIT, extsize, nextents, project, cow))
        blocks = -(-size // _BLOCK)
        limit = _LIMIT.pack(1, 2, _HARD_AND_SOFT, project, blocks, blocks, *[0] * 4, 0, 0, 0, 0, *[0] * 7, 0, 0, 0)
        buffer = ctypes.create_string_buffer(limit, len(limit))
        words = (ctypes.c_uint(fd), ctypes.c_uint(_SET_LIMIT), ctypes.c_uint(project))
        if _libc.syscall(ctypes.c_long(_SYS_QUOTACTL_FD), *words, buffer):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    except OSError as error:
        hint = "mount its file system with prjquota" if error.errno in _UNSUPPORTED else str(error.strerror).lower()
        raise InvalidParameter(f"quota size requested but no quota support ({hint})") from None
    finally:
        os.close(fd)


_UNSUPPORTED = frozenset((errno.ENOTTY, errno.EOPNOTSUPP, errno.ESRCH, errno.ENOSYS, errno.EINVAL, errno.ENOTBLK))


def _attributes(directory: Path) -> tuple[int, int, int, int, int]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return (0, 0, 0, 0, 0)
    try:
        raw = fcntl.ioctl(fd, _GET_ATTRIBUTES, bytes(_ATTRIBUTES.size))
        return _ATTRIBUTES.unpack(raw)
    except OSError:  # a file system without attributes has no projects either
        return (0, 0, 0, 0, 0)
    finally:
        os.close(fd)
