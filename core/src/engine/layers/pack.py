"""A directory tree as a tar stream: whole (export) or the part that changed (a layer).

Entries come sorted, so equal trees give equal bytes; names are relative to the directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from engine.drivers.store import Change
from engine.layers import tar
from engine.layers.tar import Entry

__all__ = ["write_layer", "write_path", "write_tree"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_XATTRS = ("user.", "security.capability")
_CHUNK = 1 << 20
_END = bytes(2 * tar.BLOCK)
_KINDS = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFIFO: tar.FIFO,
}
_DELETED = 2


def write_tree(directory: int, output: int) -> None:
    """Write everything below the open ``directory`` to the descriptor ``output``."""
    writer = _Writer(output)
    for path, parent, status in _walk(directory):
        writer.add(path, parent, status)
    writer.close()


def write_path(parent: int, name: bytes, shown: bytes, output: int) -> None:
    """Write ``name``, which is in the open directory ``parent``, and all below it; in the archive it is ``shown``."""
    writer = _Writer(output)
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    writer.add(shown, parent, status, name)
    if stat.S_ISDIR(status.st_mode):
        directory = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            for path, above, below in _walk(directory):
                writer.add(shown.rstrip(b"/") + b"/" + path, above, below)
        finally:
            os.close(directory)
    writer.close()


def write_layer(directory: int, changes: Iterable[Change], output: int) -> None:
    """Write what ``changes`` (sorted by path) names, from ``directory``; deletions become OCI whiteouts.

    Directories on the way to a change are written too: a layer says what its directories look like.
    """
    writer = _Writer(output)
    written: set[bytes] = {b""}
    for change in changes:
        path = os.fsencode(change.path).strip(b"/")
        parents = path.split(b"/")[:-1]
        for depth in range(1, len(parents) + 1):
            parent = b"/".join(parents[:depth])
            if parent not in written:
                _add(writer, directory, parent)
                written.add(parent)
        if change.kind == _DELETED:
            head, slash, tail = path.rpartition(b"/")
            writer.whiteout(head + slash + b".wh." + tail)
        elif path not in written:
            _add(writer, directory, path)
            written.add(path)
    writer.close()


def _add(writer: _Writer, directory: int, path: bytes) -> None:
    try:
        status = os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return  # gone since the changes were listed
    head, _, tail = path.rpartition(b"/")
    parent = os.open(head or b".", _DIRECTORY, dir_fd=directory)
    try:
        writer.add(path, parent, status, tail)
    finally:
        os.close(parent)


def _walk(directory: int) -> Iterator[tuple[bytes, int, os.stat_result]]:
    """(path, descriptor of its parent, status) of everything below, parents first, sorted."""
    stack: list[tuple[int, bytes, list[bytes]]] = [(os.dup(directory), b"", _names(directory))]
    try:
        while stack:
            fd, prefix, names = stack[-1]
            if not names:
                stack.pop()
                os.close(fd)
                continue
            name = names.pop()
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                yield prefix + name, fd, status
                if stat.S_ISDIR(status.st_mode):
                    sub = os.open(name, _DIRECTORY, dir_fd=fd)
                    stack.append((sub, prefix + name + b"/", _names(sub)))
            except FileNotFoundError:
                continue
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _names(fd: int) -> list[bytes]:
    return sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)


class _Writer:
    def __init__(self, output: int) -> None:
        self._output = output
        self._buffer = bytearray()
        self._links: dict[tuple[int, int], bytes] = {}

    def add(self, path: bytes, parent: int, status: os.stat_result, name: bytes | None = None) -> None:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return  # sockets have no form in a tar
        name = path.rpartition(b"/")[2] if name is None else name
        entry = Entry(
            name=path.rstrip(b"/") + b"/" if kind == tar.DIRECTORY else path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
        )
        if kind != tar.DIRECTORY and status.st_nlink > 1:
            key = (status.st_dev, status.st_ino)
            if key in self._links:
                entry.kind, entry.link = tar.LINK, self._links[key]
                self._write(tar.header(entry))
                return
            self._links[key] = path
        if kind == tar.SYMLINK:
            entry.link = os.readlink(name, dir_fd=parent)
        elif kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
            entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif kind in (tar.REGULAR, tar.DIRECTORY):
            self._with_contents(entry, name, parent, status)
            return
        self._write(tar.header(entry))

    def whiteout(self, name: bytes) -> None:
        self._write(tar.header(Entry(name=name, mode=0)))

    def close(self) -> None:
        self._write(_END)
        self._flush()

    def _with_contents(self, entry: Entry, name: bytes, parent: int, status: os.stat_result) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(name, flags, dir_fd=parent)
        try:
            for attribute in os.listxattr(fd):
                if attribute.startswith(_XATTRS):
                    entry.xattrs[attribute] = os.getxattr(fd, attribute)
            if entry.kind == tar.DIRECTORY:
                self._write(tar.header(entry))
                return
            entry.size = status.st_size
            self._write(tar.header(entry))
            left = entry.size
            while left:
                data = os.read(fd, min(left, _CHUNK))
                if not data:  # the file shrank meanwhile: its size is promised already
                    data = bytes(min(left, _CHUNK))
                self._write(data)
                left -= len(data)
            self._write(bytes(tar.padding(entry.size)))
        finally:
            os.close(fd)

    def _write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        view = memoryview(self._buffer)
        while view:
            view = view[os.write(self._output, view) :]
        self._buffer = bytearray()
