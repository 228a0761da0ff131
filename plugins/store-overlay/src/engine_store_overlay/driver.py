"""The overlayfs store: every layer is a folder of its own, the kernel stacks them.

Beside what `engine.layers.folders` keeps there are

    l/<short>           links to the layers' ``diff`` folders: 128 of them fit into one page of mount options
    init/<short>/diff   the mount points an image lacks, as a layer of its own between image and container: made once
                        for an image, and never part of a container's changes
    rootfs/<id>/        upper, work, merged
    views/              merged views of layers without a container, mounted while they are looked at
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from engine import kernel
from engine.drivers import DriverContext
from engine.drivers.store import Change, LayerSource, LayerUsage
from engine.errors import NotFound, NotSupported
from engine.layers import mountpoints, tree
from engine.layers.folders import FolderStore, Rootfs, directory
from engine.layers.unpack import Unpacked, mark_opaque, unpack

__all__ = ["OverlayStore"]

log = logging.getLogger(__name__)

_CLONE_FS = 0x200
_SHORT = 12
# A rename of a directory must not leave a redirect behind, nor a copy-up only half a file: layers stay plain trees.
_OPTIONS = "redirect_dir=off,metacopy=off,index=off"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"

_T = TypeVar("_T")


class OverlayStore(FolderStore):
    """Needs overlayfs on the file system of its root, which must not be an overlay itself."""

    capabilities = frozenset({"parallel", "prepare"})

    def __init__(self, context: DriverContext) -> None:
        root = context.root
        for name in ("l", "init", "views"):
            (root / name).mkdir(mode=0o700, exist_ok=True)
        for view in os.listdir(root / "views"):
            _unmount(root / "views" / view)
            os.rmdir(root / "views" / view)
        super().__init__(context)
        self._init_lock = threading.Lock()
        self._probe()
        self._sweep_links()

    # -- layers ---------------------------------------------------------------------------------------------

    def _unpack(self, diff: int, parent: str | None, source: LayerSource) -> Unpacked:
        unpacked = unpack(source, diff, "overlay")
        mark_opaque(diff, unpacked.opaque)
        return unpacked

    def remove_layer(self, chain_id: str) -> None:
        """See `ImageStoreDriver.remove_layer`."""
        super().remove_layer(chain_id)
        for name in (_short(chain_id), _init_name(chain_id)):
            (self.context.root / "l" / name).unlink(missing_ok=True)
        self._discard(self.context.root / "init" / _init_name(chain_id))

    def _lower(self, chain_id: str | None) -> list[str]:
        """Short names of the layers of a chain, uppermost first, with their links in place."""
        lower = []
        while chain_id is not None:
            layer = self._layers.get(chain_id)
            if layer is None:
                raise NotFound(f"layer does not exist: {chain_id}")
            lower.append(self._link(_short(chain_id), self._layer(chain_id) / "diff"))
            chain_id = layer.parent
        return lower

    def _link(self, short: str, target: Path) -> str:
        link = self.context.root / "l" / short
        text = os.path.relpath(target, link.parent)
        try:
            os.symlink(text, link)
        except FileExistsError:
            if os.readlink(link) != text:  # two chain ids that begin alike
                return self._link(short + "x", target)
        return short

    def _sweep_links(self) -> None:
        links = self.context.root / "l"
        for name in os.listdir(links):
            if not (links / name).exists():
                (links / name).unlink()

    # -- root file systems ----------------------------------------------------------------------------------

    def _make_rootfs(self, stage: Path, parent: str | None) -> Rootfs:
        lower = [self._init_layer(parent), *self._lower(parent)]
        for name, mode in (("upper", 0o755), ("work", 0o700), ("merged", 0o700)):
            (stage / name).mkdir(mode=mode)
        # the container sees the mode and owner of the upper folder as those of its /
        self._adopt_root(stage / "upper", lower)
        return Rootfs(parent=parent, lower=lower)

    def _adopt_root(self, upper: Path, lower: list[str]) -> None:
        image = os.stat(self.context.root / "l" / (lower[1] if len(lower) > 1 else lower[0]))
        os.chown(upper, image.st_uid, image.st_gid)
        os.chmod(upper, stat.S_IMODE(image.st_mode))
        os.utime(upper, ns=(image.st_mtime_ns, image.st_mtime_ns))

    def _init_layer(self, parent: str | None) -> str:
        """The short name of the layer with the mount points for ``parent``, made on first use."""
        short = _init_name(parent)
        place = self.context.root / "init" / short
        with self._init_lock:
            if not place.exists():
                with self._staged() as stage:
                    for name in ("diff", "work", "merged"):
                        (stage / name).mkdir(mode=0o755)
                    lower = self._lower(parent)
                    if lower:
                        self._adopt_root(stage / "diff", [lower[0]])
                        self._mount(stage / "merged", lower, upper=stage / "diff", work=stage / "work")
                    try:
                        with directory(stage / ("merged" if lower else "diff")) as merged:
                            mountpoints.make(merged)
                    finally:
                        _unmount(stage / "merged")
                    os.rename(stage, place)
            return self._link(short, place / "diff")

    def mount_rootfs(self, container_id: str) -> Path:
        """See `ImageStoreDriver.mount_rootfs`."""
        place = self._rootfs_dir(container_id)
        merged = place / "merged"
        if not _is_mounted(merged):
            lower = self._rootfs(container_id).lower
            self._mount(merged, lower, upper=place / "upper", work=place / "work")
        return merged

    def unmount_rootfs(self, container_id: str) -> None:
        """See `ImageStoreDriver.unmount_rootfs`."""
        _unmount(self._rootfs_dir(container_id) / "merged")

    def _mount(self, target: Path, lower: list[str], *, upper: Path | None = None, work: Path | None = None) -> None:
        root = self.context.root
        options = "lowerdir=" + ":".join(f"l/{name}" for name in lower)
        if upper is not None and work is not None:
            options += f",upperdir={upper.relative_to(root)},workdir={work.relative_to(root)}"
        _in_directory(root, lambda: kernel.mount("overlay", target, "overlay", 0, f"{options},{_OPTIONS}"))

    @contextmanager
    def _view(self, lower: list[str]) -> Iterator[Path]:
        """What the layers look like stacked, read-only, for as long as the block lasts."""
        links = self.context.root / "l"
        if len(lower) == 1:
            yield Path(os.path.realpath(links / lower[0]))
            return
        view = self.context.root / "views" / os.urandom(8).hex()
        view.mkdir(mode=0o700)
        try:
            self._mount(view, lower)
            yield view
        finally:
            _unmount(view)
            os.rmdir(view)

    # -- changes --------------------------------------------------------------------------------------------

    def changes(self, container_id: str) -> Iterator[Change]:
        """See `ImageStoreDriver.changes`."""
        found: dict[str, int] = {}
        with self._view(self._rootfs(container_id).lower) as view, directory(view) as lower:
            with directory(self._changed_root(container_id)) as upper:
                _compare(upper, lower, found)
        return iter([Change(path=path, kind=kind) for path, kind in sorted(found.items())])

    def rootfs_usage(self, container_id: str) -> LayerUsage:
        """See `ImageStoreDriver.rootfs_usage`."""
        self._rootfs(container_id)
        with directory(self._changed_root(container_id)) as upper:
            size, inodes = tree.usage(upper)
        return LayerUsage(size=size, inodes=inodes)

    def graph_data(self, container_id: str) -> Mapping[str, str]:
        """See `ImageStoreDriver.graph_data`."""
        place = self._rootfs_dir(container_id)
        links = self.context.root / "l"
        lower = [os.path.realpath(links / name) for name in self._rootfs(container_id).lower]
        return {
            "LowerDir": ":".join(lower),
            "MergedDir": str(place / "merged"),
            "UpperDir": str(place / "upper"),
            "WorkDir": str(place / "work"),
        }

    def layer_data(self, chain_id: str) -> Mapping[str, str]:
        """See `ImageStoreDriver.layer_data`."""
        chain = []
        at: str | None = chain_id
        while at is not None and at in self._layers:
            chain.append(str(self._layer(at) / "diff"))
            at = self._layers[at].parent
        place = self._layer(chain_id)
        data = {"MergedDir": str(place / "merged"), "UpperDir": str(place / "diff"), "WorkDir": str(place / "work")}
        return {"LowerDir": ":".join(chain[1:]), **data} if chain[1:] else data

    def _changed_root(self, container_id: str) -> Path:
        return self._rootfs_dir(container_id) / "upper"

    # -- the kernel -----------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Mount a small overlay and delete a file in it: `NotSupported` says what the kernel or file system lacks."""
        with self._staged() as stage:
            for name in ("lower", "upper", "work", "merged"):
                (stage / name).mkdir()
            (stage / "lower" / "file").touch()
            options = ",".join(f"{key}={stage / name}" for key, name in _PROBE)
            try:
                try:
                    kernel.mount("overlay", stage / "merged", "overlay", 0, f"{options},{_OPTIONS}")
                except OSError as error:
                    raise NotSupported(
                        f"image store {self.context.name}: overlayfs cannot be used on {self.context.root}"
                        f" ({error.strerror}); load the kernel's overlay module or use the store vfs"
                    ) from error
                (stage / "merged" / "file").unlink()
                if not _is_whiteout(os.lstat(stage / "upper" / "file")):
                    raise NotSupported(f"image store {self.context.name}: overlayfs here does not keep whiteouts")
            finally:
                _unmount(stage / "merged")


_PROBE = (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))


def _short(chain_id: str) -> str:
    return chain_id.removeprefix("sha256:")[:_SHORT]


def _init_name(chain_id: str | None) -> str:
    return "i" + (chain_id.removeprefix("sha256:")[: 2 * _SHORT] if chain_id else "empty")


def _in_directory(path: Path, function: Callable[[], _T]) -> _T:
    """Run ``function`` in a thread whose working directory alone is ``path``."""
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            kernel.unshare(_CLONE_FS)
            os.chdir(path)
            outcome.append(function())
        except BaseException as error:  # handed to the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _is_mounted(path: Path) -> bool:
    try:
        return os.lstat(path).st_dev != os.lstat(path.parent).st_dev
    except FileNotFoundError:
        raise NotFound(f"no root file system at {path.parent}") from None


def _unmount(path: Path) -> None:
    """Unmount all that is mounted at ``path``; when something keeps it busy, detach it."""
    while True:
        try:
            kernel.umount(path, kernel.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise
            log.info("detaching a busy mount", extra={"path": str(path)})
            kernel.umount(path, kernel.UMOUNT_NOFOLLOW | kernel.MNT_DETACH)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _compare(upper: int, lower: int, found: dict[str, int]) -> None:
    """Note what the tree ``upper`` changes in ``lower``: path -> kind as in `Change`."""
    stack: list[tuple[int, int | None, str]] = [(os.dup(upper), os.dup(lower), "")]
    try:
        while stack:
            fd, below, path = stack.pop()
            try:
                _compare_directory(fd, below, path, found, stack)
            finally:
                os.close(fd)
                if below is not None:
                    os.close(below)
    finally:
        for fd, below, _ in stack:
            os.close(fd)
            if below is not None:
                os.close(below)


def _compare_directory(
    fd: int, below: int | None, path: str, found: dict[str, int], stack: list[tuple[int, int | None, str]]
) -> None:
    names = os.listdir(fd)
    for name in names:
        here = f"{path}/{name}"
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        old = _lstat(name, below)
        if _is_whiteout(status):
            if old is not None:
                _note(found, here, 2)
            continue
        is_directory = stat.S_ISDIR(status.st_mode)
        if old is None:
            _note(found, here, 1)
        elif not (is_directory and stat.S_ISDIR(old.st_mode) and _same(status, old)):
            found[here] = 0
        if is_directory:
            old_fd = None
            if old is not None and below is not None and stat.S_ISDIR(old.st_mode):
                old_fd = os.open(name, _DIRECTORY, dir_fd=below)
            stack.append((os.open(name, _DIRECTORY, dir_fd=fd), old_fd, here))
    if below is not None and path and _is_opaque(fd):
        for name in set(os.listdir(below)) - set(names):
            _note(found, f"{path}/{name}", 2)


def _note(found: dict[str, int], path: str, kind: int) -> None:
    """Additions and deletions change the directory they happen in, too."""
    found[path] = kind
    parent = path.rpartition("/")[0]
    if parent:
        found.setdefault(parent, 0)


def _lstat(name: str, directory_fd: int | None) -> os.stat_result | None:
    if directory_fd is None:
        return None
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _same(one: os.stat_result, two: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns) == (
        two.st_mode,
        two.st_uid,
        two.st_gid,
        two.st_mtime_ns,
    )


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError:
        return False
