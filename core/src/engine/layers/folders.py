"""What image stores that keep layers in folders have in common: staging, commit, trash and the sweep at start.

    layers/<hex of the chain id>/   diff/ and layer.json; never written again once it has this name
    rootfs/<container id>/          rootfs.json and what the store keeps there
    staging/                        half-made things: whatever is here at start goes
    unpacking/                      half-made layers, likewise
    trash/                          removed things, deleted in the background

A thing is made in ``staging`` and renamed when it is complete and on disk; it is removed by renaming it to ``trash``.
Layers are made in a folder of their own because of ext4, which passes over inodes deleted within the last minutes one
by one when it looks for a free one: after removing an image every file of the next took 400 us to create instead of
25. A "top directory" has its children spread over the disk, away from what was just deleted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine import kernel, names
from engine.drivers import DriverContext
from engine.drivers.store import ImageStoreDriver, LayerSource, LayerUsage, PreparedLayer
from engine.errors import InvalidParameter, NotFound
from engine.layers import pack
from engine.layers.tree import remove_tree
from engine.layers.unpack import Unpacked

__all__ = ["FolderStore", "Layer", "Rootfs", "directory"]

log = logging.getLogger(__name__)

_STAGING = "staging"
_UNPACKING = "unpacking"
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
_TOP_DIRECTORY = 0x00020000


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """``layer.json``."""

    chain_id: str
    parent: str | None
    size: int
    inodes: int


class Rootfs(msgspec.Struct, frozen=True, kw_only=True):
    """``rootfs.json``. ``lower`` are the names of the layers below, uppermost first, as the store calls them;
    ``made`` are paths the engine put there for its mounts, which are nobody's changes."""

    parent: str | None
    lower: list[str] = []
    made: list[str] = []


@contextmanager
def directory(path: Path | str) -> Iterator[int]:
    """A descriptor of a directory for the length of a ``with`` block."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class FolderStore(ImageStoreDriver):
    """Stores fill in how a layer is unpacked and how a root file system is made and mounted."""

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._trash = _Trash(context.root / "trash")
        for name in ("layers", "rootfs", _STAGING, _UNPACKING):
            (context.root / name).mkdir(mode=0o700, exist_ok=True)
        _spread(context.root / _UNPACKING)
        self._layers = self._load()

    def commit_layer(self, chain_id: str, parent: str | None, source: LayerSource) -> LayerUsage:
        """See `ImageStoreDriver.commit_layer`."""
        known = self._layers.get(chain_id)
        if known is None:
            with self._staged(_UNPACKING) as stage:
                unpacked = self._unpack_in(stage, parent, source)
                known = self._commit(stage, chain_id, parent, unpacked.size, unpacked.inodes)
        return LayerUsage(size=known.size, inodes=known.inodes)

    def prepare_layer(self, source: LayerSource) -> PreparedLayer:
        """See `ImageStoreDriver.prepare_layer`."""
        if "prepare" not in self.capabilities:
            return super().prepare_layer(source)
        stage = self._new_stage(_UNPACKING)
        try:
            unpacked = self._unpack_in(stage, None, source)
        except BaseException:
            self._discard(stage)
            raise
        return PreparedLayer(name=stage.name, diff_id=unpacked.diff_id, size=unpacked.size, inodes=unpacked.inodes)

    def commit_prepared(self, prepared: PreparedLayer, chain_id: str, parent: str | None) -> LayerUsage:
        """See `ImageStoreDriver.commit_prepared`."""
        stage = self._prepared(prepared)
        try:
            known = self._layers.get(chain_id)
            if known is None:
                known = self._commit(stage, chain_id, parent, prepared.size, prepared.inodes)
        finally:
            self._discard(stage)
        return LayerUsage(size=known.size, inodes=known.inodes)

    def discard_prepared(self, prepared: PreparedLayer) -> None:
        """See `ImageStoreDriver.discard_prepared`."""
        self._discard(self._prepared(prepared))

    def _prepared(self, prepared: PreparedLayer) -> Path:
        return self.context.root / _UNPACKING / os.path.basename(prepared.name)

    def _unpack_in(self, stage: Path, parent: str | None, source: LayerSource) -> Unpacked:
        (stage / "diff").mkdir(mode=0o755)
        os.chmod(stage / "diff", 0o755)  # noqa: S103 - the root of a file system, whatever our umask is
        with directory(stage / "diff") as diff:
            return self._unpack(diff, parent, source)

    def _commit(self, stage: Path, chain_id: str, parent: str | None, size: int, inodes: int) -> Layer:
        layer = Layer(chain_id=chain_id, parent=parent, size=size, inodes=inodes)
        (stage / "layer.json").write_bytes(msgspec.json.encode(layer))
        with directory(stage) as fd:
            kernel.syncfs(fd)
        self._publish(stage, self._layer(chain_id))
        self._layers[chain_id] = layer
        return layer

    def remove_layer(self, chain_id: str) -> None:
        """See `ImageStoreDriver.remove_layer`."""
        self._layers.pop(chain_id, None)
        self._discard(self._layer(chain_id))

    def layers(self) -> Mapping[str, LayerUsage]:
        """See `ImageStoreDriver.layers`."""
        return {
            chain_id: LayerUsage(size=layer.size, inodes=layer.inodes)
            for chain_id, layer in self._layers.copy().items()
        }

    def create_rootfs(self, container_id: str, parent: str | None, options: Mapping[str, str]) -> None:
        """See `ImageStoreDriver.create_rootfs`."""
        if options:
            raise InvalidParameter(
                "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
                if "size" in options
                else f"Unknown option {next(iter(options))}"
            )
        if parent is not None and parent not in self._layers:
            raise NotFound(f"layer does not exist: {parent}")
        place = self._rootfs_dir(container_id)
        if place.exists():
            return
        with self._staged() as stage:
            rootfs = self._make_rootfs(stage, parent)
            (stage / "rootfs.json").write_bytes(msgspec.json.encode(rootfs))
            os.rename(stage, place)

    def remove_rootfs(self, container_id: str) -> None:
        """See `ImageStoreDriver.remove_rootfs`."""
        self.unmount_rootfs(container_id)
        self._discard(self._rootfs_dir(container_id))

    def rootfs_ids(self) -> Sequence[str]:
        """See `ImageStoreDriver.rootfs_ids`."""
        return sorted(os.listdir(self.context.root / "rootfs"))

    def rootfs_parents(self) -> Mapping[str, str | None]:
        """See `ImageStoreDriver.rootfs_parents`."""
        return {container_id: self._rootfs(container_id).parent for container_id in self.rootfs_ids()}

    def diff(self, container_id: str, output: int) -> None:
        """See `ImageStoreDriver.diff`."""
        with directory(self._changed_root(container_id)) as root:
            pack.write_layer(root, self.changes(container_id), output)

    def close(self) -> None:
        """Wait until the trash is empty (tests)."""
        self._trash.wait()

    # -- for stores -----------------------------------------------------------------------------------------

    @abstractmethod
    def _unpack(self, diff: int, parent: str | None, source: LayerSource) -> Unpacked:
        """Fill the open directory ``diff`` of a layer in the making."""

    @abstractmethod
    def _make_rootfs(self, stage: Path, parent: str | None) -> Rootfs:
        """Make in ``stage`` what a root file system needs."""

    @abstractmethod
    def _changed_root(self, container_id: str) -> Path:
        """A directory that holds at least everything the container changed."""

    def _layer(self, chain_id: str) -> Path:
        if not names.is_sha256(chain_id):
            raise InvalidParameter(f"invalid chain id {chain_id!r}")
        return self.context.root / "layers" / chain_id.removeprefix("sha256:")

    def _rootfs_dir(self, container_id: str) -> Path:
        if "/" in container_id or container_id in ("", ".", ".."):
            raise InvalidParameter(f"invalid container id {container_id!r}")
        return self.context.root / "rootfs" / container_id

    def _rootfs(self, container_id: str) -> Rootfs:
        try:
            return msgspec.json.decode((self._rootfs_dir(container_id) / "rootfs.json").read_bytes(), type=Rootfs)
        except FileNotFoundError:
            raise NotFound(f"no root file system for container {container_id}") from None

    @contextmanager
    def _staged(self, place: str = _STAGING) -> Iterator[Path]:
        """A new folder in ``staging``; what the block has not renamed away is thrown away."""
        stage = self._new_stage(place)
        try:
            yield stage
        finally:
            self._discard(stage)

    def _new_stage(self, place: str) -> Path:
        stage = self.context.root / place / names.new_id()[:16]
        stage.mkdir(mode=0o700)
        return stage

    def _publish(self, stage: Path, place: Path) -> None:
        os.rename(stage, place)
        with directory(place.parent) as parent:
            os.fsync(parent)

    def _discard(self, path: Path) -> None:
        self._trash.throw(path)

    def _load(self) -> dict[str, Layer]:
        for place in (_STAGING, _UNPACKING):
            for entry in os.scandir(self.context.root / place):
                self._discard(Path(entry.path))
        layers = {}
        for entry in os.scandir(self.context.root / "layers"):
            try:
                layer = msgspec.json.decode((Path(entry.path) / "layer.json").read_bytes(), type=Layer)
            except (OSError, msgspec.DecodeError):
                log.warning("an incomplete layer was removed", extra={"layer": entry.name})
                self._discard(Path(entry.path))
                continue
            layers[layer.chain_id] = layer
        for entry in os.scandir(self.context.root / "rootfs"):
            if not os.path.exists(os.path.join(entry.path, "rootfs.json")):
                self._discard(Path(entry.path))
        return layers


def _spread(path: Path) -> None:
    """Mark a top directory, where the file system knows such a thing."""
    with directory(path) as fd:
        try:
            flags = int.from_bytes(fcntl.ioctl(fd, _GET_FLAGS, bytes(8))[:4], sys.byteorder)
            fcntl.ioctl(fd, _SET_FLAGS, (flags | _TOP_DIRECTORY).to_bytes(8, sys.byteorder))
        except OSError as error:
            log.debug("no top directory here", exc_info=error, extra={"path": str(path)})


class _Trash:
    """Renames away at once, deletes later on a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._again = False
        path.mkdir(mode=0o700, exist_ok=True)
        if any(os.scandir(path)):
            self._wake()

    def throw(self, path: Path) -> None:
        try:
            os.rename(path, self._path / names.new_id()[:16])
        except FileNotFoundError:
            return
        self._wake()

    def wait(self) -> None:
        thread = self._thread
        if thread is not None:
            thread.join()

    def _wake(self) -> None:
        with self._lock:
            self._again = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trash", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._again:
                    self._thread = None
                    return
                self._again = False
            with directory(self._path) as trash:
                for name in os.listdir(trash):
                    try:
                        remove_tree(name, trash)
                    except OSError as error:
                        log.warning("cannot delete", exc_info=error, extra={"path": str(self._path / name)})
