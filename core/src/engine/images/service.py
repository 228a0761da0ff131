"""The images service: what images there are, what names point at them, and the layers containers stand on.

An image is its content: blobs in `content`, layers unpacked in an image store. The record is written when all of that
is there, a reference in the same transaction; what no record needs any more is collected afterwards, so a crash at any
point leaves an image that is whole, or none and some garbage for the next start.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.content import Content, Leases
from engine.drivers.store import Change as RootfsChange
from engine.drivers.store import ImageStoreDriver, LayerSource
from engine.errors import Conflict, InvalidParameter, NotFound
from engine.images import views as image_views
from engine.images.preparing import Preparing
from engine.images.records import (
    IMAGE,
    LAYER,
    REFERENCE,
    ImageRecord,
    ImageTable,
    LayerRecord,
    ReferenceRecord,
    image_platform,
    parse_config,
)
from engine.layers import chain_ids, detect_compression
from engine.model.filters import Filters
from engine.model.image import Descriptor, Image, ImageConfig
from engine.names import Reference, parse_reference
from engine.platforms import Platform, host_platform, parse_platform
from engine.store import Change, Delete, Put
from engine.timestamps import now, parse_timestamp

if TYPE_CHECKING:
    from engine.config import Config
    from engine.events import Events
    from engine.images.archives import Contents
    from engine.images.transfers import Transfers
    from engine.model.container import Container
    from engine.plugins import Plugins
    from engine.registry.auth import RegistryAuth
    from engine.store import Store
    from engine.workers import Workers

__all__ = ["Images", "Progress", "Pushable"]

log = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, object]], None]

_KEEP_UNNAMED_SECONDS = 24 * 3600.0
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEXES = frozenset(
    ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
)
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushable:
    """An image with everything a registry wants, all in content."""

    image: Image
    manifest: Descriptor
    config: Descriptor
    layers: list[Descriptor]


class Images:
    """One for each daemon. Reads answer from memory; changes are one transaction, then their event."""

    def __init__(self, config: Config, workers: Workers, store: Store, events: Events, plugins: Plugins) -> None:
        self.content = Content(config.root / "content")
        self.users: Callable[[str], list[Container]] = lambda image_id: []
        self.table = ImageTable()
        self.store_name = ""
        self._config = config
        self._workers = workers
        self._store = store
        self._events = events
        self._plugins = plugins
        self._driver: ImageStoreDriver | None = None
        self._preparing: Preparing | None = None
        self._transfers: Transfers | None = None
        self._layers: dict[str, int] = {}  # unpacked layers and their sizes
        self._rootfs: dict[str, str | None] = {}
        self._unpacking: dict[str, asyncio.Task[Exception | None]] = {}
        self._committed = asyncio.Condition()
        self._slots = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._change = asyncio.Lock()

    # -- life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the records, open the image store, and remove what no record needs."""
        name = self._config.storage_driver or None
        self._driver = driver = await self._workers.call(self._plugins.image_store, name)
        self._preparing = Preparing(driver, max(2, os.cpu_count() or 1))
        self.store_name = driver.context.name
        self.table.load(self._store.load(IMAGE), self._store.load(REFERENCE), self._store.load(LAYER))
        layers = await self._workers.call(driver.layers)
        self._layers = {chain: usage.size for chain, usage in layers.items()}
        self._rootfs = dict(await self._workers.call(driver.rootfs_parents))
        for record in list(self.table.images.values()):
            if record.chain_id is not None and record.chain_id not in self._layers:
                await self._restore(record)
        # blobs nobody names yet may be a pull's that was cut off: it goes on from them, if they are surely whole
        await self._collect(older_than=0.0 if self.content.rebooted else _KEEP_UNNAMED_SECONDS)

    async def close(self) -> None:
        """Give back connections to registries."""
        if self._transfers is not None:
            await self._transfers.close()

    async def _restore(self, record: ImageRecord) -> None:
        """Unpack again what the image store lost, or was never asked for (another store is configured now)."""
        try:
            for index, blob in enumerate(record.layers):
                await self.unpack_layer(record.config.diff_ids, index, blob)
        except Exception as error:
            log.error("an image cannot be unpacked again", exc_info=error, extra={"image": record.id})

    @property
    def driver(self) -> ImageStoreDriver:
        """The image store in use; there is one after `start`."""
        assert self._driver is not None, "start() comes first"
        return self._driver

    @property
    def preparing(self) -> Preparing:
        """Layers unpacked while they arrive; there is one after `start`."""
        assert self._preparing is not None, "start() comes first"
        return self._preparing

    @property
    def transfers(self) -> Transfers:
        """Pull and push; imported when first used."""
        if self._transfers is None:
            from engine.images.transfers import Transfers

            self._transfers = Transfers(self, self._workers, self._plugins.hooks, self._config)
        return self._transfers

    # -- reading ----------------------------------------------------------------------------------------------

    def get(self, reference: str, platform: Platform | None = None) -> Image:
        """By name, tag, digest, id or unique beginning of an id. `NotFound`: ``No such image: x:latest``."""
        return self.table.image(self.table.find(reference, platform))

    def list(
        self, filters: Filters | None = None, *, all: bool = False, shared_size: bool = False
    ) -> builtins.list[dict[str, Any]]:
        """The body of ``GET /images/json``, newest first; see `engine.images.views.summary` about ``<none>``."""
        select = image_views.selector(self.table, filters or Filters(), everything=all)
        uses = self._layer_uses() if shared_size else {}
        body = []
        for record in sorted(self.table.images.values(), key=image_views.created_ns, reverse=True):
            references = select(record)
            if references is not None:
                shared = self._shared(record, uses) if shared_size else -1
                body.append(image_views.summary(self.table, record, references, shared=shared))
        return body

    def inspect(self, reference: str, platform: Platform | None = None) -> dict[str, Any]:
        """The body of ``GET /images/{name}/json``."""
        record = self.table.find(reference, platform)
        raw = msgspec.json.decode(self.content.read(record.id, 8 << 20))
        data = dict(self.driver.layer_data(record.chain_id)) if record.chain_id else {}
        return image_views.inspect(self.table, record, raw, {"Data": data, "Name": self.store_name})

    def history(self, reference: str, platform: Platform | None = None) -> builtins.list[dict[str, Any]]:
        """The body of ``GET /images/{name}/history``."""
        return image_views.history(self.table, self.table.find(reference, platform))

    def manifests(self, reference: str) -> builtins.list[dict[str, Any]]:
        """``Manifests`` of an image: every platform and attestation its name stands for, here or not."""
        from engine.images import indexes

        return indexes.summaries(self, reference)

    def count(self) -> int:
        """How many images there are."""
        return len(self.table.images)

    def size(self, image_id: str) -> int:
        """Bytes of an image's layers; 0 for one that is gone."""
        record = self.table.images.get(image_id)
        return 0 if record is None else record.size

    def resolves(self, reference: str, image_id: str) -> bool:
        """Whether ``reference`` still names that image."""
        try:
            return self.table.find(reference).id == image_id
        except (NotFound, InvalidParameter):
            return False

    def descendants(self, reference: str) -> frozenset[str]:
        """Ids of the images that are, or stand on the layers of, the one named; none when there is none."""
        try:
            base = self.table.find(reference)
        except (NotFound, InvalidParameter):
            return frozenset()
        return frozenset(
            record.id
            for record in self.table.images.values()
            if record.id == base.id
            or (base.chain_id is not None and base.chain_id in self.table.chain(record.chain_id))
        )

    def references(self, name: str) -> builtins.list[str]:
        """All references of the repository ``docker.io/library/x``, in full."""
        return sorted(key for key in self.table.references if parse_reference(key).name == name)

    def target(self, reference: str) -> Descriptor | None:
        """The index or manifest a reference names; None for images that never had one. Raises `NotFound`."""
        found = self.table.lookup(parse_reference(reference))
        return found.target if found is not None else self.table.find(reference).manifest

    def config(self, descriptor: Descriptor) -> ImageConfig:
        """The parsed config blob. Raises `InvalidParameter` when it is none."""
        return parse_config(self.content.read(descriptor.digest, 8 << 20))

    async def disk_usage(self) -> dict[str, Any]:
        """``LayersSize`` and ``Images`` of ``GET /system/df``."""
        uses = self._layer_uses()
        body = []
        for record in sorted(self.table.images.values(), key=image_views.created_ns, reverse=True):
            containers = len(self.users(record.id))
            shared = self._shared(record, uses)
            references = self.table.references_of(record.id)
            body.append(image_views.summary(self.table, record, references, shared=shared, containers=containers))
        return {"LayersSize": sum(self._layers.get(chain, 0) for chain in uses), "Images": body}

    def _layer_uses(self) -> dict[str, int]:
        uses: dict[str, int] = {}
        for record in self.table.images.values():
            for chain in self.table.chain(record.chain_id):
                uses[chain] = uses.get(chain, 0) + 1
        return uses

    def _shared(self, record: ImageRecord, uses: Mapping[str, int]) -> int:
        return sum(self._layers.get(chain, 0) for chain in self.table.chain(record.chain_id) if uses[chain] > 1)

    # -- transfers and archives -------------------------------------------------------------------------------

    async def pull(
        self,
        reference: str,
        *,
        platform: Platform | None = None,
        all_tags: bool = False,
        auth: RegistryAuth | None = None,
        progress: Progress,
    ) -> None:
        """See `engine.images.transfers.Transfers.pull`."""
        await self.transfers.pull(reference, platform=platform, all_tags=all_tags, auth=auth, progress=progress)

    async def push(
        self,
        reference: str,
        *,
        platform: Platform | None = None,
        all_tags: bool = False,
        auth: RegistryAuth | None = None,
        progress: Progress,
    ) -> None:
        """See `engine.images.transfers.Transfers.push`; without a tag and ``all_tags`` it is ``latest``."""
        if not all_tags:
            reference = parse_reference(reference).with_default_tag().familiar
        await self.transfers.push(reference, platform=platform, auth=auth, progress=progress)

    async def load(
        self, body: AsyncIterator[bytes], *, quiet: bool = False, platform: Platform | None = None, progress: Progress
    ) -> None:
        """Take images from a ``docker save`` archive or an OCI layout, compressed or not (`engine.images.archives`)."""
        from engine.images import archives

        await archives.load(self, self._workers, body, quiet=quiet, platform=platform, progress=progress)

    async def save(self, references: Sequence[str], platform: Platform | None = None) -> AsyncIterator[bytes]:
        """An archive of images that both ``docker load`` and OCI tools read. What is missing is refused at once."""
        from engine.images import archives

        return self._save(archives.plan(self, references, platform))

    async def _save(self, contents: Contents) -> AsyncIterator[bytes]:
        from engine.images import archives

        for image_id in contents.image_ids:
            await self.event(image_id, image_id, "save")
        async for chunk in archives.stream(self.content, self._workers, contents):
            yield chunk

    async def import_(
        self,
        body: AsyncIterator[bytes],
        *,
        repository: str = "",
        tag: str = "",
        message: str = "",
        changes: Sequence[str] = (),
        platform: Platform | None = None,
        progress: Progress,
    ) -> str:
        """Make an image of a root file system's tar; returns its id, and tells nothing on the way."""
        from engine.images import archives

        return await archives.import_(
            self,
            self._workers,
            body,
            repository=repository,
            tag=tag,
            message=message,
            changes=changes,
            platform=platform,
        )

    async def unpack_layer(self, diff_ids: Sequence[str], index: int, blob: Descriptor) -> None:
        """Blob ``index`` of an image is in content: unpack it unless its chain exists.

        To be called for every layer as soon as its blob is there, all of them at once; concurrent calls for one chain
        share the work. Raises `InvalidParameter` for a corrupt or hostile tar, or one that is not the diff id's.
        """
        if index >= len(diff_ids):
            raise InvalidParameter("invalid manifest, layers length mismatch")
        chain = chain_ids(diff_ids[: index + 1])
        for key in chain:
            self._leases.touch(key)
        if chain[-1] in self._layers:
            return
        parent = chain[-2] if index else None
        if parent is not None and "parallel" not in self.driver.capabilities:
            async with self._committed:
                await self._committed.wait_for(lambda: parent in self._layers)
        task = self._unpacking.get(chain[-1])
        if task is None:
            work = self._unpack(chain[-1], parent, diff_ids[index], blob)
            task = self._unpacking[chain[-1]] = self._workers.spawn(work, name=f"unpack {chain[-1]}")
        error = await asyncio.shield(task)
        if error is not None:
            raise error

    async def _unpack(self, chain: str, parent: str | None, diff_id: str, blob: Descriptor) -> Exception | None:
        try:
            async with self._change:
                pass  # a collection that decided to remove this very layer ends first
            async with self._slots:
                size = await self._workers.call(self._commit_layer, chain, parent, diff_id, blob, deadline=None)
        except Exception as error:
            return error
        finally:
            del self._unpacking[chain]
        self._layers[chain] = size
        async with self._committed:
            self._committed.notify_all()
        return None

    def _commit_layer(self, chain: str, parent: str | None, diff_id: str, blob: Descriptor) -> int:
        path = self.content.path(blob.digest)
        if (prepared := self.preparing.take(blob.digest, diff_id)) is not None:
            return self.driver.commit_prepared(prepared, chain, parent).size
        with path.open("rb") as file:
            compression = detect_compression(file.read(8))
        source = LayerSource(path=path, compression=compression, diff_id=diff_id)
        return self.driver.commit_layer(chain, parent, source).size

    @property
    def _leases(self) -> Leases:
        return self.content.leases

    async def add(
        self,
        *,
        config: Descriptor,
        layers: Sequence[Descriptor],
        manifest: Descriptor | None,
        references: Sequence[tuple[Reference, Descriptor | None]] = (),
        parent: str = "",
    ) -> Image:
        """Record an image whose content is here and whose layers are unpacked, and point the references at it.

        One transaction. An image that had one of the references keeps its others, or stays without a name.
        """
        parsed = await self._workers.call(self.config, config)
        diff_ids = parsed.diff_ids
        if len(diff_ids) != len(layers):
            raise InvalidParameter("invalid manifest, layers length mismatch")
        chain = chain_ids(diff_ids)
        missing = [key for key in chain if key not in self._layers]
        if missing:
            raise NotFound(f"layer does not exist: {missing[0]}")
        await self._workers.call(self.content.sync)
        async with self._change:
            known = self.table.images.get(config.digest)
            record = ImageRecord(
                id=config.digest,
                config_blob=config,
                layers=list(layers),
                config=parsed,
                platform=str(image_platform(parsed)),
                chain_id=chain[-1] if chain else None,
                size=sum(self._layers[key] for key in chain),
                manifest=manifest or (known.manifest if known else None),
                parent=parent or (known.parent if known else ""),
                tagged=now() if references else (known.tagged if known else ""),
            )
            if known is not None and manifest is None and known.manifest is not None:
                record = msgspec.structs.replace(record, layers=known.layers, config_blob=known.config_blob)
            changes: list[Change] = [_put(IMAGE, record.id, record)]
            for key, below, diff_id in zip(chain, [None, *chain], diff_ids, strict=False):
                if key not in self.table.layers:
                    layer = LayerRecord(parent=below, diff_id=diff_id, size=self._layers[key])
                    changes.append(_put(LAYER, key, layer))
            changes += self._point(record, references)
            await self._commit(changes)
        return self.table.image(self.table.images[record.id])

    async def add_references(self, image_id: str, references: Sequence[tuple[Reference, Descriptor | None]]) -> None:
        """Point references at a recorded image (after a push: the digest it has in the registry)."""
        async with self._change:
            if image_id not in self.table.images:
                raise NotFound(f"No such image: {image_id}")
            await self._commit(self._point(self.table.images[image_id], references))

    def _point(
        self, record: ImageRecord, references: Sequence[tuple[Reference, Descriptor | None]]
    ) -> builtins.list[Change]:
        """Point references at an image. What names an index stands for all its platforms that are here; of these the
        one for this machine comes first."""
        changes: list[Change] = []
        for reference, target in references:
            keys = [str(reference)]
            ids = [record.id]
            if target is not None and target.media_type in _INDEXES:
                keys += [key for key in self.table.same_target(target) if key != keys[0]]
                for known in (self.table.references[key] for key in self.table.same_target(target)):
                    ids += [image for image in (known.image, *known.others) if image not in ids]
            known_images = {**self.table.images, record.id: record}
            here = [image for image in ids if image in known_images]
            here.sort(key=lambda image: not parse_platform(known_images[image].platform).satisfies(host_platform()))
            pointer = ReferenceRecord(image=here[0], target=target, others=here[1:])
            changes += [_put(REFERENCE, key, pointer) for key in keys]
        return changes

    async def pushable(self, reference: str, platform: Platform | None = None) -> Pushable:
        """An image in the form registries take, everything in content.

        One that came with a manifest keeps it byte for byte. One that never had one gets one here; its plain layers
        are compressed, once. Raises `NotFound` when content is missing.
        """
        record = self.table.find(reference, platform)
        if record.manifest is None:
            record = await self._make_manifest(record)
        assert record.manifest is not None
        for descriptor in (record.manifest, record.config_blob, *record.layers):
            self.content.path(descriptor.digest)
        return Pushable(
            image=self.table.image(record),
            manifest=record.manifest,
            config=record.config_blob,
            layers=list(record.layers),
        )

    async def _make_manifest(self, record: ImageRecord) -> ImageRecord:
        from engine.images import archives

        layers = []
        with self.content.lease():
            for blob in record.layers:
                layers.append(await self._workers.call(archives.compressed, self.content, blob, deadline=None))
            config = msgspec.structs.replace(record.config_blob, media_type=_OCI_CONFIG)
            raw = archives.manifest(config, layers)
            manifest = await self._workers.call(self.content.put, raw, _MANIFEST)
            async with self._change:
                record = msgspec.structs.replace(
                    self.table.images[record.id], manifest=manifest, layers=layers, config_blob=config
                )
                await self._commit([_put(IMAGE, record.id, record)])
        return record

    async def event(self, actor: str, name: str, action: str, image_id: str | None = None) -> None:
        """Publish an image event: ``name`` is its name attribute, the image's labels are added."""
        record = self.table.images.get(image_id or actor)
        attributes = dict(image_views.labels(record)) if record is not None else {}
        await self._events.publish("image", action, actor, {**attributes, "name": name})

    # -- tags and removal -------------------------------------------------------------------------------------

    async def tag(self, source: str, target: str) -> None:
        """Point ``target`` (``latest`` by default) at the image ``source`` names."""
        record = self.table.find(source)
        wanted = parse_reference(target)
        if wanted.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        wanted = wanted.with_default_tag()
        async with self._change:
            record = self.table.find(record.id)
            named = self.table.lookup(parse_reference(source)) if not self.table.is_id(source, record.id) else None
            manifest = named.target if named is not None else record.manifest
            tagged = msgspec.structs.replace(record, tagged=now())
            await self._commit([_put(IMAGE, record.id, tagged), *self._point(tagged, [(wanted, manifest)])])
        await self.event(record.id, wanted.familiar, "tag")

    async def remove(self, reference: str, *, force: bool = False, prune: bool = True) -> builtins.list[dict[str, str]]:
        """Remove a name or an image, with dockerd's rules, texts and order of ``Untagged`` and ``Deleted``."""
        from engine.images.removal import Removal

        async with self._change:
            removal = Removal(self.table, self.users)
            removal.plan(reference, force=force, prune=prune)
            await self._commit(removal.changes)
        report = list(removal.report)
        for image_id, action, record in removal.events:
            await self._events.publish("image", action, image_id, {**image_views.labels(record), "name": image_id})
        if removal.deleted:
            report += [{"Deleted": chain} for chain in await self._collect()]
        return report

    async def prune(self, filters: Filters | None = None) -> dict[str, Any]:
        """Remove images no container uses: those without a tag, with ``dangling=false`` all."""
        filters = filters or Filters()
        filters.check(image_views.PRUNE_FILTERS)
        dangling = filters.flag("dangling", True)
        until = [parse_timestamp(value) for value in filters.get("until", ())]
        before = sum(self._layers.values())
        report: list[dict[str, str]] = []
        for record in self.table.children_first():
            attributes = image_views.labels(record)
            if (
                record.id not in self.table.images
                or any(self.users(one.id) for one in (record, *self.table.companions(record.id)))
                or any(image_views.created_ns(record) > limit for limit in until)
                or not filters.labels(attributes)
                or not filters.without_labels(attributes)
            ):
                continue
            references = self.table.references_of(record.id)
            if dangling and any(not one.digest for one in references):
                continue
            for name in [one.familiar for one in references] or [record.id]:
                try:
                    report += await self.remove(name)
                except (Conflict, NotFound) as error:
                    log.info("image not pruned", extra={"image": record.id, "reason": str(error)})
        await self._collect()
        return {"ImagesDeleted": report or None, "SpaceReclaimed": before - sum(self._layers.values())}

    async def _commit(self, changes: Sequence[Change]) -> None:
        await self._store.commit(*changes)
        self.table.apply(changes)

    # -- garbage ----------------------------------------------------------------------------------------------

    async def _collect(self, *, older_than: float = 0.0) -> builtins.list[str]:
        """Remove layers and blobs nothing needs; the chain ids of removed layers, uppermost first."""
        async with self._change:
            needed: set[str] = set()
            for top in [record.chain_id for record in self.table.images.values()] + [*self._rootfs.values()]:
                needed.update(self.table.chain(top))
            needed |= self._unpacking.keys()
            unneeded = [chain for chain in self._layers if chain not in needed and not self._leases.held(chain)]
            depth = {chain: sum(1 for _ in self.table.chain(chain)) for chain in unneeded}
            unneeded.sort(key=lambda chain: -depth[chain])
            for chain in unneeded:
                del self._layers[chain]
            for chain in unneeded:
                await self._workers.call(self.driver.remove_layer, chain)
            known = [chain for chain in self.table.layers if chain not in needed and chain not in self._layers]
            if known:
                await self._commit([Delete(LAYER, chain) for chain in known])
            roots = [record.config_blob.digest for record in self.table.images.values()]
            for record in self.table.images.values():
                roots += [blob.digest for blob in record.layers]
                roots += [record.manifest.digest] if record.manifest else []
            targets = {one.target.digest for one in self.table.references.values() if one.target}
            targets |= {record.manifest.digest for record in self.table.images.values() if record.manifest}
            await self._workers.call(self._collect_content, set(roots), targets, older_than, deadline=None)
        return unneeded

    def _collect_content(self, keep: set[str], targets: Iterable[str], older_than: float) -> None:
        pending = list(targets)
        while pending:
            digest = pending.pop()
            if digest in keep and digest not in targets:
                continue
            keep.add(digest)
            for child in self._children(digest):
                if child not in keep:
                    pending.append(child)
        self.content.collect(keep, older_than=older_than)

    def _children(self, digest: str) -> builtins.list[str]:
        """The blobs an index or manifest names, as far as they are manifests or blobs of ours."""
        try:
            size = self.content.size(digest)
            if size > 4 << 20:
                return []
            document = msgspec.json.decode(self.content.read(digest))
        except (NotFound, msgspec.DecodeError, InvalidParameter):
            return []
        if not isinstance(document, dict):
            return []
        found = [document.get("config"), *(document.get("layers") or ()), *(document.get("manifests") or ())]
        return [item["digest"] for item in found if isinstance(item, dict) and isinstance(item.get("digest"), str)]

    # -- containers -------------------------------------------------------------------------------------------

    async def create_rootfs(self, container_id: str, image: Image | None, options: Mapping[str, str]) -> None:
        """Make a container's writable layer over an image (None: over nothing)."""
        parent = image.chain_id if image is not None else None
        self._rootfs[container_id] = parent  # before the layers could be collected
        try:
            await self._workers.call(self.driver.create_rootfs, container_id, parent, options)
        except BaseException:
            del self._rootfs[container_id]
            raise

    async def mount_rootfs(self, container_id: str) -> Path:
        """Mount a container's root file system; idempotent."""
        return await self._workers.call(self.driver.mount_rootfs, container_id)

    async def unmount_rootfs(self, container_id: str) -> None:
        """Undo `mount_rootfs`; idempotent."""
        await self._workers.call(self.driver.unmount_rootfs, container_id)

    async def remove_rootfs(self, container_id: str) -> None:
        """Delete a container's root file system, and layers that stayed only for it; idempotent."""
        await self._workers.call(self.driver.remove_rootfs, container_id)
        parent = self._rootfs.pop(container_id, None)
        if parent is not None and not any(record.chain_id == parent for record in self.table.images.values()):
            self._workers.spawn(self.collect(), name="collect layers")

    async def collect(self) -> None:
        """Give back the space of content and layers that nothing needs (after a pull that failed, for one)."""
        await self._collect()

    async def changes(self, container_id: str) -> builtins.list[RootfsChange]:
        """What a container changed in its root file system."""
        return list(await self._workers.call(self.driver.changes, container_id))

    def rootfs_ids(self) -> builtins.list[str]:
        """Containers that have a root file system, for reconciliation."""
        return list(self._rootfs)


def _put(kind: str, key: str, record: msgspec.Struct) -> Put:
    return Put(kind, key, msgspec.json.encode(record))
