"""Image stores: unpacked layers and containers' root file systems.

Vocabulary. A *layer* is committed and never written again; it is known by its *chain id* (OCI image-spec: the
digest of the diff ids up to it), so equal stacks are stored once. A *root file system* is a container's writable
layer over a chain of layers, known by the container's id. The lower layers of an image never change, whatever
containers do.

The compressed blobs of an image live in the core's content store; a store only sees tar streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.drivers import DriverContext
from engine.errors import NotSupported

__all__ = ["Change", "ImageStoreDriver", "LayerSource", "LayerUsage", "PreparedLayer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSource:
    """A layer to unpack: a file, its compression (``none``, ``gzip``, ``zstd``) and the digest its *uncompressed*
    bytes must have (``sha256:...``). ``fd`` may be used instead of ``path`` for a stream that can be read only once.
    A file that is still being written has a descriptor ``growing`` beside its ``fd``: it yields, as eight bytes
    little-endian, how much there is so far, and with the top bit set how much there is in all; ending without that
    means that the rest will not come."""

    path: Path | None = None
    fd: int | None = None
    compression: str = "none"
    diff_id: str = ""
    growing: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedLayer:
    """A layer unpacked but not committed: the store's name for it, and the digest its uncompressed bytes have."""

    name: str
    diff_id: str
    size: int
    inodes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUsage:
    """``size`` in bytes of the files a layer or writable layer adds (hard links once), and inodes used."""

    size: int
    inodes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference between a writable layer and its image; ``kind`` 0 modified, 1 added, 2 deleted (as the API)."""

    path: str
    kind: int


class ImageStoreDriver(ABC):
    """Keeps layers and root file systems. Everything a call acknowledges is on disk (one syncfs per commit).

    Capabilities: ``parallel`` (`commit_layer` may be called before the parent is committed, for all layers of an image
    at once), ``prepare`` (`prepare_layer` and its companions: unpacking needs no parent at all).
    """

    capabilities: frozenset[str] = frozenset()

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    @abstractmethod
    def commit_layer(self, chain_id: str, parent: str | None, source: LayerSource) -> LayerUsage:
        """Unpack a layer over ``parent`` and commit it as ``chain_id``; a layer that exists is returned as it is.

        The tar is untrusted: it is applied in a confined child, nothing in it reaches outside the layer.
        Corrupt or hostile input, or bytes that do not hash to ``diff_id``: `InvalidParameter`, and nothing stays.
        """

    def prepare_layer(self, source: LayerSource) -> PreparedLayer:
        """Unpack a layer nobody knows the place of yet; it ends in `commit_prepared` or `discard_prepared`, or with the
        next start. Raises as `commit_layer`; without a ``diff_id`` in ``source`` any content will do."""
        raise NotSupported(f"image store {self.context.name} cannot unpack a layer without its parent")

    def commit_prepared(self, prepared: PreparedLayer, chain_id: str, parent: str | None) -> LayerUsage:
        """Commit as `commit_layer` would have, at once. The prepared layer is gone afterwards, whatever happens."""
        raise NotSupported(f"image store {self.context.name} cannot unpack a layer without its parent")

    def discard_prepared(self, prepared: PreparedLayer) -> None:
        """Throw a prepared layer away; one that is gone is fine."""
        raise NotSupported(f"image store {self.context.name} cannot unpack a layer without its parent")

    @abstractmethod
    def remove_layer(self, chain_id: str) -> None:
        """Forget a layer no image or root file system uses; space is given back in the background."""

    @abstractmethod
    def layers(self) -> Mapping[str, LayerUsage]:
        """All committed layers by chain id."""

    @abstractmethod
    def create_rootfs(self, container_id: str, parent: str | None, options: Mapping[str, str]) -> None:
        """Make a writable layer over ``parent`` (None: an empty image). ``options`` are Docker's ``--storage-opt``."""

    @abstractmethod
    def mount_rootfs(self, container_id: str) -> Path:
        """Mount it (if it is not) and return the path of the container's root."""

    @abstractmethod
    def unmount_rootfs(self, container_id: str) -> None:
        """Undo `mount_rootfs`, also when a process still has files open in it."""

    @abstractmethod
    def remove_rootfs(self, container_id: str) -> None:
        """Unmount and delete it; the name is free at once, space is given back in the background."""

    @abstractmethod
    def changes(self, container_id: str) -> Iterator[Change]:
        """What the container changed, sorted by path (Docker's ``diff``)."""

    def rootfs_usage(self, container_id: str) -> LayerUsage:
        """Bytes of the writable layer."""
        raise NotSupported(f"image store {self.context.name} cannot measure root file systems")

    def diff(self, container_id: str, output: int) -> None:
        """Write the writable layer as a layer tar (OCI whiteouts) to the file descriptor ``output`` (commit, build)."""
        raise NotSupported(f"image store {self.context.name} cannot export changes")

    def rootfs_ids(self) -> Sequence[str]:
        """All root file systems there are, for reconciliation."""
        raise NotSupported(f"image store {self.context.name} cannot list root file systems")

    def rootfs_parents(self) -> Mapping[str, str | None]:
        """The chain id below each root file system, by container id: those layers stay, whatever happens to images."""
        raise NotSupported(f"image store {self.context.name} cannot list root file systems")

    def graph_data(self, container_id: str) -> Mapping[str, str]:
        """``GraphDriver.Data`` of ``docker inspect`` (LowerDir, UpperDir, WorkDir, MergedDir for overlay2)."""
        return {}

    def layer_data(self, chain_id: str) -> Mapping[str, str]:
        """``GraphDriver.Data`` of ``docker image inspect``; must not block."""
        return {}
