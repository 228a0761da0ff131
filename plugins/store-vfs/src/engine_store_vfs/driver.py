"""The copying store: a layer's folder holds the whole tree up to it, a container's folder a copy of its image.

Copies share data where the file system can (reflink). ``rootfs/<id>/root`` is the root file system.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.drivers.store import Change, LayerSource, LayerUsage
from engine.errors import NotFound
from engine.layers import mountpoints, tree
from engine.layers.folders import FolderStore, Rootfs, directory
from engine.layers.unpack import Unpacked, unpack

__all__ = ["VfsStore"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class VfsStore(FolderStore):
    """Needs nothing from the kernel; costs a copy for each layer and each container."""

    def _unpack(self, diff: int, parent: str | None, source: LayerSource) -> Unpacked:
        if parent is not None:
            if parent not in self._layers:
                raise NotFound(f"layer does not exist: {parent}")
            with directory(self._layer(parent) / "diff") as below:
                tree.copy_tree(below, diff)
        return unpack(source, diff, "apply")

    def _make_rootfs(self, stage: Path, parent: str | None) -> Rootfs:
        (stage / "root").mkdir(mode=0o755)
        with directory(stage / "root") as root:
            if parent is not None:
                with directory(self._layer(parent) / "diff") as image:
                    tree.copy_tree(image, root)
            times = {path: _times(root, path) for path in ("", "dev", "etc") if _exists(root, path)}
            made = mountpoints.make(root)
            for path, (accessed, modified) in times.items():  # making mount points is no change of the image
                os.utime(path or ".", ns=(accessed, modified), dir_fd=root, follow_symlinks=False)
        return Rootfs(parent=parent, made=made)

    def mount_rootfs(self, container_id: str) -> Path:
        """See `ImageStoreDriver.mount_rootfs`; a copy needs no mount."""
        self._rootfs(container_id)
        return self._rootfs_dir(container_id) / "root"

    def unmount_rootfs(self, container_id: str) -> None:
        """See `ImageStoreDriver.unmount_rootfs`."""

    def changes(self, container_id: str) -> Iterator[Change]:
        """See `ImageStoreDriver.changes`; costs a walk of both trees."""
        rootfs = self._rootfs(container_id)
        found: dict[str, int] = {}
        with directory(self._changed_root(container_id)) as root:
            if rootfs.parent is None:
                _compare(root, None, "", found)
            else:
                with directory(self._layer(rootfs.parent) / "diff") as image:
                    _compare(root, image, "", found)
            for path in reversed(rootfs.made):
                if _untouched(root, path, found):
                    del found["/" + path]
        for path, kind in list(found.items()):
            if kind and (parent := path.rpartition("/")[0]):
                found.setdefault(parent, 0)
        return iter([Change(path=path, kind=kind) for path, kind in sorted(found.items())])

    def rootfs_usage(self, container_id: str) -> LayerUsage:
        """See `ImageStoreDriver.rootfs_usage`: the files the container changed."""
        size = inodes = 0
        with directory(self._changed_root(container_id)) as root:
            for change in self.changes(container_id):
                if change.kind == 2:
                    continue
                try:
                    status = os.stat(change.path.lstrip("/"), dir_fd=root, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                inodes += 1
                if stat.S_ISREG(status.st_mode):
                    size += status.st_size
        return LayerUsage(size=size, inodes=inodes)

    def graph_data(self, container_id: str) -> Mapping[str, str]:
        """See `ImageStoreDriver.graph_data`."""
        return {}

    def _changed_root(self, container_id: str) -> Path:
        return self._rootfs_dir(container_id) / "root"


def _exists(root: int, path: str) -> bool:
    return not path or path in os.listdir(root)


def _times(root: int, path: str) -> tuple[int, int]:
    status = os.stat(path or ".", dir_fd=root, follow_symlinks=False)
    return status.st_atime_ns, status.st_mtime_ns


def _untouched(root: int, path: str, found: Mapping[str, int]) -> bool:
    """Whether a mount point the engine made is still just that: there, empty, nothing in it."""
    if found.get("/" + path) != 1:
        return False
    try:
        status = os.stat(path, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    inside = f"/{path}/"
    return (stat.S_ISLNK(status.st_mode) or not stat.S_ISREG(status.st_mode) or status.st_size == 0) and not any(
        other.startswith(inside) for other in found
    )


def _compare(new: int, old: int | None, path: str, found: dict[str, int]) -> None:
    """Note the differences between two trees; ``old`` None stands for an empty one."""
    stack: list[tuple[int, int | None, str]] = [(os.dup(new), None if old is None else os.dup(old), path)]
    try:
        while stack:
            one, two, here = stack.pop()
            try:
                _compare_directory(one, two, here, found, stack)
            finally:
                os.close(one)
                if two is not None:
                    os.close(two)
    finally:
        for one, two, _ in stack:
            os.close(one)
            if two is not None:
                os.close(two)


def _compare_directory(
    new: int, old: int | None, path: str, found: dict[str, int], stack: list[tuple[int, int | None, str]]
) -> None:
    names = set(os.listdir(new))
    before = set() if old is None else set(os.listdir(old))
    for name in before - names:
        found[f"{path}/{name}"] = 2
    for name in names:
        here = f"{path}/{name}"
        status = os.stat(name, dir_fd=new, follow_symlinks=False)
        is_directory = stat.S_ISDIR(status.st_mode)
        was_directory = False
        if name in before:
            was = os.stat(name, dir_fd=old, follow_symlinks=False)
            was_directory = stat.S_ISDIR(was.st_mode)
            if not _same(status, was):
                found[here] = 0
        else:
            found[here] = 1
        if is_directory:
            below = os.open(name, _DIRECTORY, dir_fd=old) if was_directory and old is not None else None
            stack.append((os.open(name, _DIRECTORY, dir_fd=new), below, here))


def _same(one: os.stat_result, two: os.stat_result) -> bool:
    same = (one.st_mode, one.st_uid, one.st_gid, one.st_rdev, one.st_mtime_ns) == (
        two.st_mode,
        two.st_uid,
        two.st_gid,
        two.st_rdev,
        two.st_mtime_ns,
    )
    return same and (stat.S_ISDIR(one.st_mode) or one.st_size == two.st_size)
