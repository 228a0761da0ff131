"""Files of a container: `docker cp` both ways, `docker export` and `docker diff`.

Paths are resolved by the kernel with the container's root as ``/`` (``openat2``), so that no link in the container
leads outside. A running container is seen with its mounts, as its own processes see it; of a stopped one the root file
system and, for paths below a mount, the mount's source.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os
import posixpath
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine import kernel
from engine.drivers.store import LayerSource
from engine.errors import EngineError, Forbidden, InvalidParameter, NotFound
from engine.layers import detect_compression
from engine.layers.extract import Whiteouts
from engine.layers.pack import write_path, write_tree
from engine.layers.unpack import unpack
from engine.oci import users
from engine.timestamps import rfc3339

if TYPE_CHECKING:
    from engine.containers import Containers
    from engine.model.container import Container, MountPoint

__all__ = ["changes", "export", "read", "status", "write"]

log = logging.getLogger(__name__)

_RESOLVE = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
_CHUNK = 1 << 20
_F_SETPIPE_SZ = 1031
_MODE_BITS = (
    (stat.S_ISUID, 1 << 23),
    (stat.S_ISGID, 1 << 22),
    (stat.S_ISVTX, 1 << 20),
)
_KIND_BITS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}


@dataclass(frozen=True, slots=True)
class _Root:
    """Where a path of the container is to be looked up: a directory descriptor, and the path below it."""

    fd: int
    path: str
    writable: str = ""  # why it is not, when it is not


# -- looking up --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _root(containers: Containers, container: Container, path: str) -> AsyncIterator[_Root]:
    """The root for ``path`` (absolute, normalised) for the length of a ``with`` block."""
    async with AsyncExitStack() as held:
        if container.state.status in ("running", "paused"):
            seen = f"/proc/{container.state.pid}/root"
            fd = await containers.workers.call(os.open, seen, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, fd)
            yield _Root(fd, path, _not_writable(container, path))
            return
        place, inner = await held.enter_async_context(_mounted(containers, container)), path
        mount = _mount_of(container, path)
        if mount is not None and mount.source and await containers.workers.call(os.path.isdir, mount.source):
            place, inner = Path(mount.source), path[len(mount.destination.rstrip("/")) :] or "/"
        fd = await containers.workers.call(os.open, place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        yield _Root(fd, inner, _not_writable(container, path))


@asynccontextmanager
async def _mounted(containers: Containers, container: Container) -> AsyncIterator[Path]:
    """The root file system of a container that may be stopped; unmounted afterwards if nobody needs it."""
    live = containers.live(container.id)
    path = await containers.images.mount_rootfs(container.id)
    live.visitors += 1
    try:
        yield path
    finally:
        live.visitors -= 1
        async with live.lock:
            current = containers.find(container.id)
            if not live.visitors and current is not None and current.state.status not in ("running", "paused"):
                try:
                    await containers.images.unmount_rootfs(container.id)
                except EngineError:
                    log.exception("unmounting after a transfer", extra={"container": container.id})


def _mount_of(container: Container, path: str) -> MountPoint | None:
    """The innermost mount ``path`` is in."""
    for mount in sorted(container.mounts, key=lambda m: len(m.destination), reverse=True):
        if path == mount.destination or path.startswith(mount.destination.rstrip("/") + "/"):
            return mount
    return None


def _not_writable(container: Container, path: str) -> str:
    mount = _mount_of(container, path)
    if mount is not None:
        return "" if mount.rw else "mounted volume is marked read-only"
    return "container rootfs is marked read-only" if container.host_config.readonly_rootfs else ""


def _absolute(path: str) -> tuple[str, bool]:
    """The path from the root, normalised, and whether it says that it is a directory (``/x/``, ``/x/.``)."""
    normal = posixpath.normpath("/" + path)
    return "/" + normal.lstrip("/"), path.endswith(("/", "/.")) or path == "."


def _open_parent(root: _Root, path: str, directory: bool) -> tuple[int, bytes]:
    """A descriptor of the directory that holds ``path``, and the last component; a directory is its own ``.``."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    if directory or path == "/":
        return kernel.openat2(root.fd, path, flags, resolve=_RESOLVE), b"."
    head, _, tail = path.rpartition("/")
    return kernel.openat2(root.fd, head or "/", flags, resolve=_RESOLVE), os.fsencode(tail)


def _missing(container_ref: str, path: str, error: OSError) -> EngineError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"Could not find the file {path} in container {container_ref}")
    return EngineError(f"{path}: {os.strerror(error.errno or 0)}")


def _describe(root: _Root, path: str, directory: bool) -> str:
    """The path-stat header of one path."""
    parent, name = _open_parent(root, path, directory)
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        target = ""
        if stat.S_ISLNK(found.st_mode):
            text = os.fsdecode(os.readlink(name, dir_fd=parent))
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), text))
    finally:
        os.close(parent)
    mode = found.st_mode & 0o777 | _KIND_BITS.get(stat.S_IFMT(found.st_mode), 0)
    for bit, go in _MODE_BITS:
        if found.st_mode & bit:
            mode |= go
    body = {
        "name": posixpath.basename(path) or "/",
        "size": found.st_size,
        "mode": mode,
        "mtime": rfc3339(found.st_mtime_ns),
        "linkTarget": target,
    }
    return base64.b64encode(msgspec.json.encode(body)).decode()


# -- the calls ---------------------------------------------------------------------------------------------------


async def status(containers: Containers, ref: str, path: str) -> str:
    """What ``HEAD archive`` says of a path, encoded as its header is."""
    container = containers.get(ref)
    absolute, directory = _absolute(path)
    async with _root(containers, container, absolute) as root:
        try:
            return await containers.workers.call(_describe, root, root.path, directory)
        except OSError as error:
            raise _missing(ref, path, error) from None


async def read(containers: Containers, ref: str, path: str) -> tuple[str, AsyncGenerator[bytes, None]]:
    """The header, and a path with all below it as a tar stream whose top entry is the path's last component."""
    container = containers.get(ref)
    absolute, directory = _absolute(path)
    held = AsyncExitStack()
    try:
        root = await held.enter_async_context(_root(containers, container, absolute))
        try:
            header = await containers.workers.call(_describe, root, root.path, directory)
            parent, name = await containers.workers.call(_open_parent, root, root.path, directory)
        except OSError as error:
            raise _missing(ref, path, error) from None
        held.callback(os.close, parent)
        shown = os.fsencode(posixpath.basename(absolute) or "/")
        stream = _piped(containers, held, lambda output: write_path(parent, name, shown, output))
    except BaseException:
        await held.aclose()
        raise
    await containers.event(container, "archive-path")
    return header, stream


async def export(containers: Containers, ref: str) -> AsyncGenerator[bytes, None]:
    """The container's root file system as a tar stream, without its mounts."""
    container = containers.get(ref)
    held = AsyncExitStack()
    try:
        place = await held.enter_async_context(_mounted(containers, container))
        fd = await containers.workers.call(os.open, place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        stream = _piped(containers, held, lambda output: write_tree(fd, output))
    except BaseException:
        await held.aclose()
        raise
    await containers.event(container, "export")
    return stream


async def _piped(
    containers: Containers, held: AsyncExitStack, produce: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """What ``produce`` writes to a descriptor, on a thread of its own, in chunks; ``held`` is let go of at the end."""
    call = containers.workers.call
    async with held:
        readable, writable = os.pipe2(os.O_CLOEXEC)
        held.callback(os.close, readable)

        def run() -> None:
            try:
                _enlarge(writable)
                produce(writable)
            except BrokenPipeError:
                pass  # the client has left
            finally:
                os.close(writable)

        writing = asyncio.ensure_future(call(run, deadline=None))
        reader_gone = False
        try:
            while data := await call(os.read, readable, _CHUNK, deadline=None):
                yield data
        except BaseException:
            reader_gone = True
            raise
        finally:
            if reader_gone:
                os.set_blocking(readable, False)
                while not writing.done():  # let the writer see that nobody reads any more
                    _drain(readable)
                    await asyncio.wait((writing,), timeout=0.02)
            await writing


def _drain(fd: int) -> None:
    try:
        while os.read(fd, _CHUNK):
            pass
    except BlockingIOError:
        pass


def _enlarge(fd: int) -> None:
    import fcntl

    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _CHUNK)
    except OSError:
        pass  # over the user's limit: slower, not wrong


async def write(
    containers: Containers,
    ref: str,
    path: str,
    body: AsyncIterator[bytes],
    *,
    keep_kinds: bool = False,
    copy_owner: bool = False,
) -> None:
    """Unpack a tar stream, compressed or not, into a directory of the container.

    ``keep_kinds`` refuses to put a file where a directory is and the other way round; ``copy_owner`` gives everything
    to the container's user.
    """
    container = containers.get(ref)
    absolute, _ = _absolute(path)
    async with _root(containers, container, absolute) as root:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            target = await containers.workers.call(kernel.openat2, root.fd, root.path, flags, 0, _RESOLVE)
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise InvalidParameter("extraction point is not a directory") from None
            raise _missing(ref, path, error) from None
        try:
            if root.writable:
                raise Forbidden(root.writable)
            owner = await containers.workers.call(_owner, root, container) if copy_owner else None
            await _unpack(containers, target, body, "copy-keeping-kinds" if keep_kinds else "copy", owner)
        finally:
            os.close(target)
    await containers.event(container, "extract-to-dir")


def _owner(root: _Root, container: Container) -> tuple[int, int] | None:
    """Whom ``copyUIDGID`` gives files to: the container's user; None when that is nobody in particular."""
    if not container.config.user:
        return None
    user = users.find(Path(f"/proc/self/fd/{root.fd}"), container.config.user)
    return user.uid, user.gid


async def _unpack(
    containers: Containers,
    target: int,
    body: AsyncIterator[bytes],
    form: Whiteouts,
    owner: tuple[int, int] | None,
) -> None:
    call = containers.workers.call
    head = b""
    async for chunk in body:
        head += chunk
        if len(head) >= 8:
            break
    readable, writable = os.pipe2(os.O_CLOEXEC)
    _enlarge(writable)
    source = LayerSource(fd=readable, compression=detect_compression(head))
    unpacking = asyncio.ensure_future(call(unpack, source, target, form, owner, deadline=None))
    unpacking.add_done_callback(lambda _: os.close(readable))
    try:
        await call(_write_all, writable, head, deadline=None)
        async for chunk in body:
            await call(_write_all, writable, chunk, deadline=None)
    except BrokenPipeError:
        pass  # the archive was refused; the reason comes from `unpacking`
    finally:
        os.close(writable)
        await asyncio.wait((unpacking,))
    unpacking.result()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


async def changes(containers: Containers, ref: str) -> list[Mapping[str, Any]] | None:
    """The body of ``/containers/{id}/changes``: null when nothing changed, as dockerd answers."""
    container = containers.get(ref)

    def look() -> list[Mapping[str, Any]]:
        found = containers.image_store(container).changes(container.id)
        return [{"Path": change.path, "Kind": change.kind} for change in found]

    return await containers.workers.call(look) or None
