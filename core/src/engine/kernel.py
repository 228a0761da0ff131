"""Thin wrappers of Linux system calls Python lacks; stdlib only, nothing but the kernel's own meaning.

Constants carry the kernel's names. Every wrapper raises `OSError` with the call's errno and the path it was about.
`unshare` and `setns` act on the calling *thread*: use a thread of your own (see `in_namespace`).
Used by the core, by plugins, by the launcher and the monitors.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # a monitor pays for every import, so nothing is imported for the sake of types
    from collections.abc import Callable
    from typing import Any, TypeVar

    _T = TypeVar("_T")

__all__ = ["idmapped", "in_namespace", "mount", "move_mount", "openat2", "setns", "syncfs", "umount", "unshare"]

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_NAME = 15

_SYS_OPENAT2 = 437  # the same number on every architecture (added after the tables were unified), as these
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x100000
_MOUNT_ATTR_RDONLY = 1
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, path: object = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else os.fsdecode(path))  # type: ignore[arg-type]
    return result


def mount(source: str, target: str | os.PathLike[str], filesystem: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), filesystem.encode() or None, flags, os.fsencode(data) or None
        ),
        target,
    )


def umount(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _check(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)


def unshare(flags: int) -> None:
    """unshare(2), of the calling thread."""
    _check(_libc.unshare(flags))


def setns(fd: int, kind: int = 0) -> None:
    """setns(2), of the calling thread; ``kind`` is the CLONE_NEW* flag the descriptor must be, 0 for any."""
    _check(_libc.setns(fd, kind))


def syncfs(fd: int) -> None:
    """syncfs(2): everything written to the file system of ``fd`` is on disk afterwards. Releases the GIL."""
    _check(_libc.syncfs(fd))


def prctl(option: int, argument: int = 0) -> None:
    """prctl(2) with one argument."""
    _check(_libc.prctl(option, argument, 0, 0, 0))


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def openat2(directory: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """openat2(2): open ``path`` below the directory descriptor without ever leaving it.

    With ``RESOLVE_IN_ROOT`` the directory acts as ``/`` for absolute paths, links and ``..``.
    Raises `OSError`; ENOSYS before Linux 5.6.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    raw = os.fsencode(path)
    return _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(raw),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        path,
    )


def idmapped(path: str | os.PathLike[str], user_namespace: int, *, recursive: bool = False) -> int:
    """A detached copy of the mount at ``path`` whose owners are mapped by a user namespace; for `move_mount`.

    open_tree(2) and mount_setattr(2), Linux 5.12; EINVAL where the file system cannot be mapped.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    tree = _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(-100), ctypes.c_char_p(os.fsencode(path)), ctypes.c_uint(flags)
        ),
        path,
    )
    attributes = _MountAttributes(_MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    try:
        _check(
            _libc.syscall(
                ctypes.c_long(_SYS_MOUNT_SETATTR),
                ctypes.c_int(tree),
                ctypes.c_char_p(b""),
                ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)),
                ctypes.byref(attributes),
                ctypes.c_size_t(ctypes.sizeof(attributes)),
            ),
            path,
        )
    except OSError:
        os.close(tree)
        raise
    return tree


def open_tree(path: str | os.PathLike[str], *, read_only: bool = False) -> int:
    """A detached, private copy of ``path`` and the mounts below it; for `move_mount`, in whatever namespace."""
    tree = _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPEN_TREE),
            ctypes.c_int(-100),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_uint(_OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC),
        ),
        path,
    )
    attributes = _MountAttributes(_MOUNT_ATTR_RDONLY if read_only else 0, 0, MS_PRIVATE, 0)
    try:
        _check(
            _libc.syscall(
                ctypes.c_long(_SYS_MOUNT_SETATTR),
                ctypes.c_int(tree),
                ctypes.c_char_p(b""),
                ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE),
                ctypes.byref(attributes),
                ctypes.c_size_t(ctypes.sizeof(attributes)),
            ),
            path,
        )
    except OSError:
        os.close(tree)
        raise
    return tree


def move_mount(tree: int, target: str | os.PathLike[str] | int) -> None:
    """move_mount(2): attach a detached mount at ``target``, a path or a descriptor."""
    by_descriptor = isinstance(target, int)
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOVE_MOUNT),
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_int(target if isinstance(target, int) else -100),
            ctypes.c_char_p(b"" if isinstance(target, int) else os.fsencode(target)),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | (_MOVE_MOUNT_T_EMPTY_PATH if by_descriptor else 0)),
        ),
        target,
    )


def in_namespace(path: str | os.PathLike[str], function: Callable[[], _T], kind: int = CLONE_NEWNET) -> _T:
    """Run ``function`` in a short-lived thread that has entered the namespace at ``path``; returns what it returns.

    Sockets opened there stay in that namespace and may be used from any thread afterwards. The thread ends with the
    call, so nothing else ever runs in the namespace by accident.
    """
    import threading

    outcome: list[Any] = [None, None]

    def run() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if kind == CLONE_NEWNS:
                    unshare(_CLONE_FS)  # the kernel lets nobody in who shares root and directory with others
                setns(fd, kind)
            finally:
                os.close(fd)
            outcome[0] = function()
        except BaseException as error:  # handed to the caller, whatever it is
            outcome[1] = error

    thread = threading.Thread(target=run, name="in-namespace")
    thread.start()
    thread.join()
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]  # type: ignore[no-any-return]
