"""Directory trees by descriptor: remove and copy them without ever following a link out of them."""

from __future__ import annotations

import errno
import os
import stat

__all__ = ["copy_data", "copy_tree", "remove_tree", "usage"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEP = 100  # levels; what lies deeper is moved up first, so that no tree exhausts file descriptors or the stack
_CHUNK = 1 << 20


def remove_tree(name: bytes | str, directory: int) -> None:
    """Remove ``name`` (a file, link or tree) in the open ``directory``; what is gone already is fine."""
    raw = os.fsencode(name)
    pending = [raw]
    moved = 0
    while pending:
        top = pending.pop()
        try:
            os.unlink(top, dir_fd=directory)
            continue
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
        stack: list[tuple[int, bytes, list[bytes]]] = []
        fd = os.open(top, _DIRECTORY, dir_fd=directory)
        stack.append((fd, top, _list(fd)))
        try:
            while stack:
                fd, own_name, children = stack[-1]
                if not children:
                    stack.pop()
                    os.close(fd)
                    os.rmdir(own_name, dir_fd=stack[-1][0] if stack else directory)
                    continue
                child = children.pop()
                try:
                    os.unlink(child, dir_fd=fd)
                    continue
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno not in (errno.EISDIR, errno.EPERM):
                        raise
                if len(stack) >= _DEEP:
                    aside = b".removed-%d-%d" % (os.getpid(), moved)
                    moved += 1
                    os.rename(child, aside, src_dir_fd=fd, dst_dir_fd=directory)
                    pending.append(aside)
                    continue
                sub = os.open(child, _DIRECTORY, dir_fd=fd)
                stack.append((sub, child, _list(sub)))
        finally:
            for fd, _, _ in stack:
                os.close(fd)


def _list(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


def copy_tree(source: int, target: int) -> None:
    """Copy everything below the directory ``source`` into the empty directory ``target``, attributes included.

    Hard links inside the tree stay hard links; data is shared with the source where the file system can (reflink).
    """
    links: dict[tuple[int, int], tuple[bytes, ...]] = {}
    stack: list[tuple[int, int, tuple[bytes, ...]]] = [(os.dup(source), os.dup(target), ())]
    _copy_attributes(source, target)
    times: list[tuple[tuple[bytes, ...], int, int]] = []
    top = os.fstat(source)
    try:
        while stack:
            from_fd, to_fd, path = stack.pop()
            try:
                for name in _list(from_fd):
                    status = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
                    here = (*path, name)
                    if stat.S_ISDIR(status.st_mode):
                        os.mkdir(name, 0o700, dir_fd=to_fd)
                        one = os.open(name, _DIRECTORY, dir_fd=from_fd)
                        two = os.open(name, _DIRECTORY, dir_fd=to_fd)
                        _copy_attributes(one, two)
                        times.append((here, status.st_atime_ns, status.st_mtime_ns))
                        stack.append((one, two, here))
                        continue
                    key = (status.st_dev, status.st_ino)
                    if status.st_nlink > 1 and key in links:
                        _link(target, links[key], name, to_fd)
                        continue
                    _copy_node(name, status, from_fd, to_fd)
                    if status.st_nlink > 1:
                        links[key] = here
            finally:
                os.close(from_fd)
                os.close(to_fd)
    finally:
        for from_fd, to_fd, _ in stack:
            os.close(from_fd)
            os.close(to_fd)
    for path, atime, mtime in reversed(times):
        os.utime(b"/".join(path), ns=(atime, mtime), dir_fd=target, follow_symlinks=False)
    os.utime(target, ns=(top.st_atime_ns, top.st_mtime_ns))


def _link(root: int, existing: tuple[bytes, ...], name: bytes, directory: int) -> None:
    os.link(b"/".join(existing), name, src_dir_fd=root, dst_dir_fd=directory, follow_symlinks=False)


def _copy_node(name: bytes, status: os.stat_result, from_fd: int, to_fd: int) -> None:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        one = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=from_fd)
        try:
            two = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=to_fd)
            try:
                copy_data(one, two, status.st_size)
                _copy_attributes(one, two)
                os.utime(two, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(two)
        finally:
            os.close(one)
        return
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=from_fd), name, dir_fd=to_fd)
    else:
        os.mknod(name, mode, status.st_rdev, dir_fd=to_fd)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=to_fd, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(name, stat.S_IMODE(mode), dir_fd=to_fd)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=to_fd, follow_symlinks=False)


def copy_data(source: int, target: int, size: int) -> None:
    """Copy a file's data, holes staying holes."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = os.lseek(source, begin, os.SEEK_HOLE)
        os.lseek(source, begin, os.SEEK_SET)
        os.lseek(target, begin, os.SEEK_SET)
        while begin < end:
            try:
                count = os.copy_file_range(source, target, min(end - begin, 1 << 30))
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                count = os.write(target, os.read(source, min(end - begin, _CHUNK)))
            if not count:
                break
            begin += count
        at = end
    os.ftruncate(target, size)


def _copy_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))


def usage(directory: int) -> tuple[int, int]:
    """Bytes of the files and links below ``directory`` (hard links once) and the number of inodes."""
    seen: set[int] = set()
    size = inodes = 0
    stack = [os.dup(directory)]
    try:
        while stack:
            fd = stack.pop()
            try:
                for entry in os.scandir(fd):
                    try:
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(status.st_mode):
                            stack.append(os.open(entry.name, _DIRECTORY, dir_fd=fd))
                    except FileNotFoundError:
                        continue
                    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                        if status.st_ino in seen:
                            continue
                        seen.add(status.st_ino)
                    inodes += 1
                    if not stat.S_ISDIR(status.st_mode):
                        size += status.st_size
            finally:
                os.close(fd)
    finally:
        for fd in stack:
            os.close(fd)
    return size, inodes
