"""Mounting further directories and files of the host in a container that runs (``engine update -v``).

The mount is cloned here and moved into the container's mount namespace; the target is resolved by the kernel with the
container's root as ``/``, so that no link in the container leads outside. The container keeps it over restarts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from engine import kernel
from engine.errors import Conflict, InvalidParameter, NotSupported
from engine.mounts import parse_bind

if TYPE_CHECKING:
    from engine.containers import Containers
    from engine.model.container import Container, MountPoint

__all__ = ["add"]

_RESOLVE = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS


async def add(containers: Containers, ref: str, binds: Sequence[str]) -> None:
    """Mount ``binds`` (``/host/path:/path[:ro]``) in a container, at once if it runs, and at every start from now on.

    Each is there or not there; those before one that failed stay.
    """
    live = containers.live(containers.get(ref).id)
    points = [_checked(text) for text in binds]
    async with live.lock:
        for text, point in zip(binds, points, strict=True):
            container = containers.get(live.id)
            if any(mount.destination == point.destination for mount in container.mounts):
                raise InvalidParameter(f"Duplicate mount point: {point.destination}")
            if container.state.status in ("paused", "restarting", "removing", "dead"):
                raise Conflict(f"cannot mount into container {live.id}: it is {container.state.status}")
            if container.state.status == "running":
                await containers.workers.call(_mount, container, point)
            host_config = msgspec.structs.replace(
                container.host_config, binds=[*(container.host_config.binds or ()), text]
            )
            current = containers.get(live.id)
            await containers.save(
                msgspec.structs.replace(current, mounts=[*current.mounts, point], host_config=host_config)
            )


def _checked(text: str) -> MountPoint:
    point = parse_bind(text)
    if point.type != "bind":
        raise NotSupported(
            f"invalid mount '{text}': only paths of the host can be mounted into a container that exists"
        )
    if not os.path.exists(point.source):
        raise InvalidParameter(f'invalid mount config for type "bind": bind source path does not exist: {point.source}')
    return point


def _mount(container: Container, point: MountPoint) -> None:
    """Blocks; a thread of its own enters the container's namespace and ends there."""
    directory = os.path.isdir(point.source)
    tree = kernel.open_tree(point.source, read_only=not point.rw)

    def inside() -> None:
        target = _target(point.destination, directory)
        try:
            kernel.move_mount(tree, target)
        finally:
            os.close(target)

    try:
        kernel.in_namespace(f"/proc/{container.state.pid}/ns/mnt", inside, kernel.CLONE_NEWNS)
    except OSError as error:
        raise InvalidParameter(
            f"cannot mount {point.source} at {point.destination}: {(error.strerror or str(error)).lower()}"
        ) from None
    finally:
        os.close(tree)


def _target(path: str, directory: bool) -> int:
    """The mount point, made if it is not there, as a descriptor; its root is that of the calling thread."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parts = [part for part in path.split("/") if part]
        for depth in range(1, len(parts) + 1):
            inner = "/".join(parts[:depth])
            last = depth == len(parts)
            try:
                found = kernel.openat2(root, inner, os.O_PATH | os.O_CLOEXEC, resolve=_RESOLVE)
            except FileNotFoundError:
                above = "/".join(parts[: depth - 1]) or "."
                parent = kernel.openat2(root, above, os.O_PATH | os.O_CLOEXEC, resolve=_RESOLVE)
                try:
                    if last and not directory:
                        os.close(os.open(parts[-1], os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
                    else:
                        os.mkdir(parts[depth - 1], 0o755, dir_fd=parent)
                finally:
                    os.close(parent)
                found = kernel.openat2(root, inner, os.O_PATH | os.O_CLOEXEC, resolve=_RESOLVE)
            if last:
                if stat.S_ISDIR(os.fstat(found).st_mode) != directory:
                    os.close(found)
                    raise NotADirectoryError(20, "a directory on one side and a file on the other")
                return found
            os.close(found)
        raise InvalidParameter("invalid mount: the destination cannot be '/'")
    finally:
        os.close(root)
