"""Applying a layer tar to a directory, without ever leaving that directory.

Parents are opened by ``openat2(RESOLVE_IN_ROOT)``: for every path in the archive the target directory is ``/``,
whatever links and ``..`` there are. The last component is never followed. This alone confines; `engine.layers.child`
puts a chroot and dropped privileges around it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Literal

from engine import kernel
from engine.errors import InvalidParameter
from engine.layers.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    Entry,
    Stream,
    entries,
)
from engine.layers.tree import remove_tree

__all__ = ["Extractor", "Whiteouts"]

Whiteouts = Literal["overlay", "apply", "copy", "copy-keeping-kinds"]

_RESOLVE = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PREFIX = b".wh."
_NO_PREFIX = b"/"  # what no name begins with
_OPAQUE = b".wh..wh..opq"
_SPECIAL = b".wh..wh."
_XATTRS = ("user.", "security.", "system.posix_acl_")
_TIME_LIMIT = 1 << 62
_NO_NAMES = frozenset((b"", b".", b".."))
_OPEN_DIRECTORIES = 64


class Extractor:
    """Applies entries to the directory ``root`` (a descriptor the caller keeps open).

    ``whiteouts="overlay"`` turns whiteouts into overlayfs's own (a 0/0 character device) and collects opaque
    directories in `opaque`, for the caller to mark: the attribute needs a privilege this code should not have.
    ``whiteouts="apply"`` removes what they name; the directory then holds the parent layer's files already.
    ``whiteouts="copy"`` knows none: the archive is a client's (``docker cp``) and goes over what is there already;
    with ``copy-keeping-kinds`` a directory is not replaced by something else nor the other way round. ``owner`` (uid,
    gid) is who then owns everything, whatever the archive says.
    `size` is the sum of the sizes of files and symbolic links, as Docker counts them; `inodes` what was made.
    """

    def __init__(self, root: int, whiteouts: Whiteouts, owner: tuple[int, int] | None = None) -> None:
        self.size = 0
        self.inodes = 0
        self.opaque: set[bytes] = set()
        self._root = root
        self._apply = whiteouts != "overlay"
        self._prefix = _NO_PREFIX if whiteouts.startswith("copy") else _PREFIX
        self._keep_kinds = whiteouts == "copy-keeping-kinds"
        self._given_owner = owner
        self._ours: set[bytes] = set()  # with "apply": paths of this layer, which its own whiteouts spare
        self._directories: dict[bytes, int] = {}  # open parents by path
        self._last: tuple[bytes, bytes, int] | None = None  # of the last entry: parent as written, its path, descriptor
        self._retired: list[int] = []  # descriptors that may still be in use until the next entry
        self._late: dict[bytes, tuple[Entry, bool]] = {}  # directories (made new?): times and special bits come last
        self._owner = (os.geteuid(), os.getegid())

    def extract(self, stream: Stream) -> None:
        """Apply a whole archive. Raises `InvalidParameter` for one that is corrupt or reaches outside."""
        old_umask = os.umask(0)
        try:
            for entry in entries(stream):
                if self._given_owner is not None:
                    entry.uid, entry.gid = self._given_owner
                try:
                    self._one(entry, stream)
                except OSError as error:
                    raise _explain(error, entry.name) from error
            self._finish()
        finally:
            os.umask(old_umask)
            self._retire()
            self._close_retired()

    # -- one entry ------------------------------------------------------------------------------------------

    def _one(self, entry: Entry, stream: Stream) -> None:
        if self._last is not None:  # most entries follow one of the same directory
            head, _, name = entry.name.rpartition(b"/")
            written, parent, directory = self._last
            if head == written and name not in _NO_NAMES and not name.startswith(self._prefix):
                self._place(entry, name, parent + b"/" + name if parent else name, directory, stream)
                return
        self._close_retired()
        parts = _components(entry.name)
        if not parts:
            if entry.kind != DIRECTORY:
                raise InvalidParameter(f"invalid tar header: {_show(entry.name)} names the root")
            self._late[b""] = (entry, False)
            return
        name = parts[-1]
        path = b"/".join(parts)
        if name.startswith(self._prefix):
            self._whiteout(parts, name)
            return
        if self._prefix == _PREFIX and any(part.startswith(_SPECIAL) for part in parts):
            return  # aufs's own bookkeeping in very old images
        directory = self._open_parent(parts[:-1])
        head, _, last = entry.name.rpartition(b"/")
        self._last = (head, b"/".join(parts[:-1]), directory) if last == name else None
        self._place(entry, name, path, directory, stream)

    def _place(self, entry: Entry, name: bytes, path: bytes, directory: int, stream: Stream) -> None:
        if self._apply:
            self._ours.add(path)
        if entry.kind == DIRECTORY:
            self._directory(entry, name, path, directory)
        else:
            self._late.pop(path, None)
            try:
                self._node(entry, name, directory, stream)
            except FileExistsError:
                self._check_kind(name, directory, path, becomes_directory=False)
                self._remove(name, directory, path)
                self._node(entry, name, directory, stream)
        self.inodes += 1

    def _directory(self, entry: Entry, name: bytes, path: bytes, directory: int) -> None:
        fresh = True
        try:
            os.mkdir(name, entry.mode & 0o1777, dir_fd=directory)
        except FileExistsError:
            fresh = False
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                self._check_kind(name, directory, path, becomes_directory=True)
                self._remove(name, directory, path)
                os.mkdir(name, entry.mode & 0o1777, dir_fd=directory)
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    self.opaque.add(path)  # the layer removed a directory and made a new one
        self._late[path] = (entry, fresh)

    def _check_kind(self, name: bytes, directory: int, path: bytes, *, becomes_directory: bool) -> None:
        if not self._keep_kinds:
            return
        is_directory = stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
        if is_directory and not becomes_directory:
            raise InvalidParameter(f"cannot overwrite directory {_show(path)} with non-directory {_show(path)}")
        if becomes_directory and not is_directory:
            raise InvalidParameter(f"cannot overwrite non-directory {_show(path)} with directory {_show(path)}")

    def _node(self, entry: Entry, name: bytes, directory: int, stream: Stream) -> None:
        kind = entry.kind
        if kind == REGULAR:
            self._file(entry, name, directory, stream)
            return
        if kind == LINK:
            target = _components(entry.link)
            if not target:
                raise InvalidParameter(f"invalid hardlink {_show(entry.name)} -> {_show(entry.link)}")
            source = self._open(target[:-1])
            try:
                os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            finally:
                os.close(source)
            return
        if kind == SYMLINK:
            os.symlink(entry.link, name, dir_fd=directory)
            self.size += len(entry.link)
        elif kind in (CHARACTER, BLOCK_DEVICE):
            device = stat.S_IFCHR if kind == CHARACTER else stat.S_IFBLK
            os.mknod(name, entry.mode | device, os.makedev(entry.major, entry.minor), dir_fd=directory)
        elif kind == FIFO:
            os.mkfifo(name, entry.mode, dir_fd=directory)
        else:
            raise InvalidParameter(f"unhandled tar header type {kind[0]} of {_show(entry.name)}")
        if self._apply or (entry.uid, entry.gid) != self._owner:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
            if kind != SYMLINK:
                os.chmod(name, entry.mode, dir_fd=directory)
        when = _time(entry)
        os.utime(name, ns=(when, when), dir_fd=directory, follow_symlinks=False)

    def _file(self, entry: Entry, name: bytes, directory: int, stream: Stream) -> None:
        fd = os.open(name, _FILE, entry.mode, dir_fd=directory)
        try:
            if entry.segments is not None:
                for offset, length in entry.segments:
                    os.lseek(fd, offset, os.SEEK_SET)
                    _write(fd, stream, length)
                os.ftruncate(fd, entry.size)
            elif entry.size:
                _write(fd, stream, entry.size)
            if self._apply or (entry.uid, entry.gid) != self._owner:
                os.fchown(fd, entry.uid, entry.gid)
                if entry.mode & 0o6000:
                    os.fchmod(fd, entry.mode)
            elif entry.mode & 0o6000 and entry.size:
                os.fchmod(fd, entry.mode)  # writing clears the bits unless one may keep them
            if entry.xattrs:
                _set_xattrs(fd, entry)
            when = _time(entry)
            os.utime(fd, ns=(when, when))
        finally:
            os.close(fd)
        self.size += entry.size

    def _finish(self) -> None:
        """Attributes of directories: what is made in a directory must not see its set-gid bit or default ACL, nor
        touch its time."""
        for path, (entry, fresh) in self._late.items():
            try:
                fd = self._open(path.split(b"/") if path else [])
            except (FileNotFoundError, NotADirectoryError):
                continue  # replaced through another name of its parent
            try:
                owned = fresh and not self._apply and (entry.uid, entry.gid) == self._owner
                if not owned:
                    os.fchown(fd, entry.uid, entry.gid)
                if not owned or entry.mode & 0o6000:
                    os.fchmod(fd, entry.mode)
                if entry.xattrs:
                    _set_xattrs(fd, entry)
                when = _time(entry)
                os.utime(fd, ns=(when, when))
            except OSError as error:
                raise _explain(error, path) from error
            finally:
                os.close(fd)

    # -- whiteouts ------------------------------------------------------------------------------------------

    def _whiteout(self, parts: list[bytes], name: bytes) -> None:
        if name == _OPAQUE:
            path = b"/".join(parts[:-1])
            directory = self._open_parent(parts[:-1])
            if self._apply:
                self._clear(path, directory)
            else:
                self.opaque.add(path)
            return
        if name.startswith(_SPECIAL):
            return
        hidden = name.removeprefix(_PREFIX)
        if hidden in (b"", b".", b".."):
            raise InvalidParameter(f"invalid whiteout {_show(b'/'.join(parts))}")
        path = b"/".join([*parts[:-1], hidden])
        directory = self._open_parent(parts[:-1])
        if self._apply:
            self._clear_one(path, hidden, directory)
            return
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory)
            self.inodes += 1
        except FileExistsError:
            # a whiteout is about lower layers only: what this layer has under the name stays and hides them
            if stat.S_ISDIR(os.stat(hidden, dir_fd=directory, follow_symlinks=False).st_mode):
                self.opaque.add(path)

    def _clear(self, path: bytes, directory: int) -> None:
        for name in os.listdir(directory):
            child = os.fsencode(name)
            self._clear_one(path + b"/" + child if path else child, child, directory)

    def _clear_one(self, path: bytes, name: bytes, directory: int) -> None:
        """Remove what the parent layers have at ``path``, sparing what this layer put there."""
        inside = path + b"/"
        if path not in self._ours and not any(ours.startswith(inside) for ours in self._ours):
            self._remove(name, directory, path)
            return
        try:
            fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        except OSError:
            return
        try:
            self._clear(path, fd)
        finally:
            os.close(fd)

    # -- directories by path --------------------------------------------------------------------------------

    def _open_parent(self, parts: list[bytes]) -> int:
        path = b"/".join(parts)
        fd = self._directories.get(path)
        if fd is None:
            if len(self._directories) >= _OPEN_DIRECTORIES:
                self._retire()
            try:
                fd = self._open(parts)
            except FileNotFoundError:
                self._make_parents(parts)
                fd = self._open(parts)
            self._directories[path] = fd
        return fd

    def _open(self, parts: list[bytes]) -> int:
        return kernel.openat2(self._root, b"/".join(parts) or b".", _DIRECTORY, resolve=_RESOLVE)

    def _make_parents(self, parts: list[bytes]) -> None:
        for depth in range(1, len(parts) + 1):
            directory = self._open(parts[: depth - 1])
            try:
                os.mkdir(parts[depth - 1], 0o755, dir_fd=directory)
                self.inodes += 1
            except FileExistsError:
                status = os.stat(parts[depth - 1], dir_fd=directory, follow_symlinks=False)
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    os.unlink(parts[depth - 1], dir_fd=directory)
                    os.mkdir(parts[depth - 1], 0o755, dir_fd=directory)
                    self.opaque.add(b"/".join(parts[:depth]))
            finally:
                os.close(directory)

    def _remove(self, name: bytes, directory: int, path: bytes) -> None:
        remove_tree(name, directory)
        # open parents and remembered directories may have gone with it, under any name: what is left is found again
        self._retire()
        inside = path + b"/"
        for known in [known for known in self._late if known == path or known.startswith(inside)]:
            del self._late[known]
        self.opaque = {known for known in self.opaque if known != path and not known.startswith(inside)}

    def _retire(self) -> None:
        self._retired += self._directories.values()
        self._directories.clear()
        self._last = None

    def _close_retired(self) -> None:
        for fd in self._retired:
            os.close(fd)
        self._retired.clear()


def _components(name: bytes) -> list[bytes]:
    """The path below the root: absolute names are relative to it, ``..`` may not climb above it."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise InvalidParameter(f"invalid tar header: {_show(name)} is outside of the root")
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    return parts


def _write(fd: int, stream: Stream, count: int) -> None:
    for part in stream.parts(count):
        while part:
            part = part[os.write(fd, part) :]


def _set_xattrs(fd: int, entry: Entry) -> None:
    """``trusted.*`` is left out: it would let an image speak to overlayfs."""
    for name, value in entry.xattrs.items():
        if not name.startswith(_XATTRS):
            continue
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise


def _time(entry: Entry) -> int:
    return max(-_TIME_LIMIT, min(_TIME_LIMIT, entry.mtime_ns))


def _show(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return '"' + (text if len(text) <= 200 else text[:200] + "...") + '"'


def _explain(error: OSError, name: bytes) -> Exception:
    """Faults of the archive are the client's; a full disk and its like are the host's and stay `OSError`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return error
    return InvalidParameter(f"cannot unpack {_show(name)}: {(error.strerror or str(error)).lower()}")
