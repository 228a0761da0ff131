"""Copy a directory tree with everything the kernel knows of its files: owner, mode, times, links, extended attributes.

Works on directory descriptors only, never on paths, so that a tree which changes meanwhile, or was made to trap us,
cannot lead outside: links are copied, not followed.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from engine import kernel

__all__ = ["copy_tree", "copy_up", "holds_directory"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 30
_NO_COPY_RANGE = frozenset((errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))


def holds_directory(rootfs: Path, path: str) -> bool:
    """Whether ``path``, resolved inside ``rootfs``, is a directory."""
    source = _open_inside(rootfs, path)
    if source is None:
        return False
    os.close(source)
    return True


def copy_up(rootfs: Path, path: str, target: Path) -> bool:
    """Copy the directory ``path`` of a root file system into ``target`` if that is empty; whether it did.

    ``path`` is resolved inside ``rootfs``; nothing happens when it is no directory there.
    """
    source = _open_inside(rootfs, path)
    if source is None:
        return False
    try:
        destination = os.open(target, _DIRECTORY)
        try:
            with os.scandir(destination) as entries:
                if next(entries, None) is not None:
                    return False
            _copy(source, destination)
        finally:
            os.close(destination)
    finally:
        os.close(source)
    return True


def copy_tree(source: Path, target: Path) -> None:
    """Copy all of the directory ``source`` into the empty directory ``target``, sharing blocks where possible."""
    read = os.open(source, _DIRECTORY)
    try:
        write = os.open(target, _DIRECTORY)
        try:
            _copy(read, write)
        finally:
            os.close(write)
    finally:
        os.close(read)


def _open_inside(rootfs: Path, path: str) -> int | None:
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return kernel.openat2(
            root, path, os.O_RDONLY | os.O_DIRECTORY, resolve=kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    finally:
        os.close(root)


def _copy(source: int, target: int) -> None:
    links: dict[tuple[int, int], tuple[int, str]] = {}
    try:
        _copy_directory(source, target, links)
    finally:
        for directory, _ in links.values():
            os.close(directory)
    kernel.syncfs(target)


def _copy_directory(source: int, target: int, links: dict[tuple[int, int], tuple[int, str]]) -> None:
    """Copy what is in ``source`` and its own attributes to ``target``.

    ``links`` remembers where a file with several names was first copied to: a descriptor of the directory, which the
    caller closes, and a name.
    """
    with os.scandir(source) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        facts = os.stat(name, dir_fd=source, follow_symlinks=False)
        several = facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode)
        first = links.get((facts.st_dev, facts.st_ino)) if several else None
        if first is not None:
            os.link(first[1], name, src_dir_fd=first[0], dst_dir_fd=target, follow_symlinks=False)
            continue
        _copy_entry(source, target, name, facts, links)
        if several:
            links[facts.st_dev, facts.st_ino] = (os.dup(target), name)
    _copy_attributes(source, target, os.fstat(source))


def _copy_entry(
    source: int, target: int, name: str, facts: os.stat_result, links: dict[tuple[int, int], tuple[int, str]]
) -> None:
    mode = facts.st_mode
    if stat.S_ISDIR(mode):
        os.mkdir(name, 0o700, dir_fd=target)
        inner, outer = os.open(name, _DIRECTORY, dir_fd=source), os.open(name, _DIRECTORY, dir_fd=target)
        try:
            _copy_directory(inner, outer, links)
        finally:
            os.close(inner)
            os.close(outer)
    elif stat.S_ISREG(mode):
        _copy_file(source, target, name, facts)
    elif stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, facts.st_uid, facts.st_gid, dir_fd=target, follow_symlinks=False)
        os.utime(name, ns=(facts.st_atime_ns, facts.st_mtime_ns), dir_fd=target, follow_symlinks=False)
    elif not stat.S_ISSOCK(mode):
        os.mknod(name, mode, facts.st_rdev, dir_fd=target)
        os.chown(name, facts.st_uid, facts.st_gid, dir_fd=target, follow_symlinks=False)
        os.utime(name, ns=(facts.st_atime_ns, facts.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str, facts: os.stat_result) -> None:
    read = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        write = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            _copy_data(read, write)
            _copy_attributes(read, write, facts)
        finally:
            os.close(write)
    finally:
        os.close(read)


def _copy_data(read: int, write: int) -> None:
    """In the kernel, sharing blocks where the file system can."""
    try:
        while os.copy_file_range(read, write, _CHUNK):
            pass
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
        while os.sendfile(write, read, None, _CHUNK):
            pass


def _copy_attributes(source: int, target: int, facts: os.stat_result) -> None:
    """Owner first: changing it clears the set-id bits and file capabilities that follow."""
    os.fchown(target, facts.st_uid, facts.st_gid)
    os.fchmod(target, stat.S_IMODE(facts.st_mode))
    for attribute in os.listxattr(source):
        with suppress(OSError):  # a file system need not know every attribute of another
            os.setxattr(target, attribute, os.getxattr(source, attribute))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))
