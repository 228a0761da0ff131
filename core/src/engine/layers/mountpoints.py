"""The files and directories the engine mounts over in every container, made where an image lacks them."""

from __future__ import annotations

import errno
import os

from engine import kernel

__all__ = ["MOUNT_POINTS", "make"]

MOUNT_POINTS = (
    ("dev/pts", "directory"),
    ("dev/shm", "directory"),
    ("dev/console", "file"),
    ("proc", "directory"),
    ("sys", "directory"),
    ("etc/hosts", "file"),
    ("etc/hostname", "file"),
    ("etc/resolv.conf", "file"),
    ("etc/mtab", "/proc/mounts"),
    (".dockerenv", "file"),
)
_RESOLVE = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS


def make(root: int) -> list[str]:
    """Make what is missing below the open directory ``root``, resolved as inside a container; nothing that exists is
    touched. Returns the paths made (parents included), in order; a link to nowhere in the way is left alone."""
    made: list[str] = []
    for path, kind in MOUNT_POINTS:
        head, _, tail = path.rpartition("/")
        if head and not _directory(root, head, made):
            continue
        if kind == "directory":
            _directory(root, path, made)
            continue
        try:
            parent = kernel.openat2(root, head or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE)
        except OSError:
            continue
        try:
            if kind == "file":
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(tail, flags, 0o755, dir_fd=parent))
            else:
                os.symlink(kind, tail, dir_fd=parent)
            made.append(path)
        except FileExistsError:
            pass
        finally:
            os.close(parent)
    return made


def _directory(root: int, path: str, made: list[str]) -> bool:
    try:
        os.close(kernel.openat2(root, path, os.O_PATH | os.O_DIRECTORY, resolve=_RESOLVE))
        return True
    except OSError as error:
        if error.errno != errno.ENOENT:
            return False
    head, _, tail = path.rpartition("/")
    parent = kernel.openat2(root, head or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE)
    try:
        os.mkdir(tail, 0o755, dir_fd=parent)
        made.append(path)
        return True
    except FileExistsError:
        return False
    finally:
        os.close(parent)
