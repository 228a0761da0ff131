"""Volumes: named data and how containers get at it.

Who uses a volume is never stored: it follows from the containers (`Volumes.users`). Containers being created are not
there yet, so what they will use is *reserved* in memory from `resolve` until `release`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec.structs import replace

from engine.errors import Conflict, EngineError, InvalidParameter, NotFound
from engine.model.container import Config, Container, HostConfig, MountPoint, VolumeOptions
from engine.model.filters import Filters
from engine.model.volume import ANONYMOUS_LABEL, VolumeRecord
from engine.mounts import OciMount
from engine.names import is_id, new_id
from engine.store import Delete, Put
from engine.volumes.attach import Attacher
from engine.volumes.plan import check_tmpfs, plan
from engine.workers import KeyedLocks, Workers

if TYPE_CHECKING:
    from engine.drivers.volume import Volume, VolumeDriver
    from engine.events import Events
    from engine.model.image import Image
    from engine.platforms import Platform
    from engine.plugins import Plugins
    from engine.store import Store

__all__ = ["Volumes"]

log = logging.getLogger(__name__)

DEFAULT_DRIVER = "local"
_KIND = "volume"
_LONG = 600.0  # seconds for calls whose length depends on how much data a volume holds
_LIST_FILTERS = frozenset(("dangling", "driver", "label", "name"))
_PRUNE_FILTERS = frozenset(("all", "label", "label!"))


class ImageRoots(Protocol):
    """What mounts of type image need of `engine.images.Images`: root file systems with keys of our own."""

    def get(self, reference: str, platform: Platform | None = None) -> Image:
        """`NotFound` when there is none."""

    async def create_rootfs(self, container_id: str, image: Image | None, options: Mapping[str, str]) -> None:
        """Make one over an image."""

    async def mount_rootfs(self, container_id: str) -> Path:
        """Mount it; idempotent."""

    async def unmount_rootfs(self, container_id: str) -> None:
        """Unmount it; idempotent."""

    async def remove_rootfs(self, container_id: str) -> None:
        """Delete it; idempotent."""

    def rootfs_ids(self) -> Sequence[str]:
        """The keys of all there are."""


class Volumes:
    """The volume service. ``state`` is a directory of its own that need not survive a reboot; ``data_root`` the
    engine's own data, whose mounts must not get stuck in containers that bind a directory around it.

    ``users`` gives the ids of the containers that use a volume, ``images`` the image service; the daemon sets both.
    """

    images: ImageRoots

    def __init__(
        self,
        *,
        store: Store,
        events: Events,
        workers: Workers,
        plugins: Plugins,
        state: Path,
        data_root: Path,
    ) -> None:
        self.users: Callable[[str], Sequence[str]] = lambda name: ()
        self._store = store
        self._events = events
        self._workers = workers
        self._plugins = plugins
        self._attacher = Attacher(plugins, state)
        self._data_root = data_root
        self._records: dict[str, VolumeRecord] = {}
        self._reserved: dict[str, dict[str, bool]] = {}  # container id -> volume name -> made for it
        self._locks = KeyedLocks()
        self._pruning = False

    async def start(self) -> None:
        """Load the records and compare them with what the drivers have: data wins.

        Volumes the local driver has without a record (a data root brought from elsewhere, a crash while creating) are
        adopted; records whose data is gone are dropped. Volumes of a driver that is not installed stay listed.
        """
        for name, body in self._store.load(_KIND).items():
            self._records[name] = msgspec.json.decode(body, type=VolumeRecord)
        changes: list[Put | Delete] = []
        drivers = {DEFAULT_DRIVER} | {record.driver for record in self._records.values()}
        for driver_name in sorted(drivers & set(self._plugins.names("volume"))):
            try:
                found = await self._workers.call(lambda name=driver_name: self._plugins.volume(name).list())
            except EngineError:
                log.exception("cannot list volumes", extra={"driver": driver_name})
                continue
            present = {volume.name: volume for volume in found}
            for record in [each for each in self._records.values() if each.driver == driver_name]:
                if record.name not in present:
                    log.warning("volume is gone", extra={"volume": record.name, "driver": driver_name})
                    del self._records[record.name]
                    changes.append(Delete(_KIND, record.name))
            for name, volume in present.items():
                if name not in self._records and driver_name == DEFAULT_DRIVER:
                    record = VolumeRecord(
                        name=name,
                        driver=driver_name,
                        created_at=volume.created,
                        labels={ANONYMOUS_LABEL: ""} if is_id(name) else None,
                        mountpoint=_place(volume),
                        options=dict(volume.options) or None,
                    )
                    self._records[name] = record
                    changes.append(_put(record))
        if changes:
            await self._store.commit(*changes)

    # -- volumes themselves ---------------------------------------------------------------------------------

    def get(self, name: str) -> VolumeRecord:
        """The record; `NotFound` in dockerd's words."""
        try:
            return self._records[name]
        except KeyError:
            raise NotFound(f"get {name}: no such volume") from None

    async def inspect(self, name: str) -> dict[str, Any]:
        """Docker's body of ``volume inspect``, with what the driver says now."""
        record = self.get(name)
        view: dict[str, Any] = msgspec.to_builtins(record)
        with suppress(EngineError):  # a volume whose driver is away can still be inspected
            volume = await self._workers.call(lambda: self._plugins.volume(record.driver).get(name))
            if volume.status:
                view["Status"] = dict(volume.status)
        return view

    def list(self, filters: Filters) -> Sequence[VolumeRecord]:
        """All volumes that pass ``dangling``, ``driver``, ``label`` and ``name``; by name."""
        filters.check(_LIST_FILTERS)
        dangling = filters.flag("dangling") if "dangling" in filters else None
        return [
            record
            for _, record in sorted(self._records.items())
            if filters.match("name", record.name)
            and filters.exact("driver", record.driver)
            and filters.labels(record.labels)
            and (dangling is None or dangling != bool(self._in_use(record.name)))
        ]

    async def usage(self) -> Sequence[dict[str, Any]]:
        """Every volume with ``UsageData`` (``docker system df``); -1 where a driver cannot tell."""
        views = []
        for name, record in sorted(self._records.items()):
            view = msgspec.to_builtins(record)
            view["UsageData"] = {"RefCount": len(self._in_use(name)), "Size": await self._size(record)}
            views.append(view)
        return views

    async def create(
        self,
        name: str = "",
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> VolumeRecord:
        """Make a volume, or return the one of that name. Without a name it is anonymous and gets an id.

        Raises `Conflict` when the name belongs to another driver, and what the driver thinks of the options.
        """
        return await self._create(name, driver, options, labels)

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Delete a volume and its data. Raises `Conflict` naming the containers that use it.

        With ``force`` a missing volume is fine, and the record goes even when the driver is not installed any more.
        """
        async with self._locks(name):
            if force and name not in self._records:
                return
            await self._remove(self.get(name), force=force)

    async def prune(self, filters: Filters) -> dict[str, Any]:
        """Delete unused local volumes without mount options: the anonymous ones, with ``all`` also the named."""
        filters.check(_PRUNE_FILTERS)
        everything = filters.flag("all")
        if self._pruning:
            raise Conflict("a prune operation is already running")
        self._pruning = True
        deleted: Sequence[str] = ()
        reclaimed = 0
        try:
            for record in self.list(Filters()):
                labels = record.labels or {}
                if record.driver != DEFAULT_DRIVER or record.options or not (everything or ANONYMOUS_LABEL in labels):
                    continue
                if not filters.labels(labels) or ("label!" in filters and _any_label(filters, labels)):
                    continue
                if self._in_use(record.name):
                    continue
                size = max(await self._size(record), 0)
                try:
                    await self.remove(record.name)
                except (Conflict, NotFound):
                    continue  # somebody was faster
                deleted = (*deleted, record.name)
                reclaimed += size
        finally:
            self._pruning = False
        await self._events.publish("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return {"VolumesDeleted": deleted, "SpaceReclaimed": reclaimed}

    @asynccontextmanager
    async def borrowed(self, name: str) -> AsyncIterator[Path]:
        """The volume's directory, mounted for the engine itself; nobody can remove the volume meanwhile."""
        record, consumer = self.get(name), f"copy-{new_id()[:12]}"
        async with self._locks(name):
            self._reserved[consumer] = {name: False}
            try:
                driver = await self._workers.call(self._plugins.volume, record.driver)
                path = await self._workers.call(driver.mount, name, consumer)
            except BaseException:
                del self._reserved[consumer]
                raise
        try:
            yield path
        finally:
            async with self._locks(name):
                try:
                    await self._workers.call(driver.unmount, name, consumer)
                finally:
                    del self._reserved[consumer]

    # -- for containers -------------------------------------------------------------------------------------

    async def resolve(
        self, container_id: str, config: Config, host_config: HostConfig, others: Callable[[str], Container]
    ) -> Sequence[MountPoint]:
        """At create: everything the container will have mounted; missing volumes are made, all are reserved for it.

        ``config`` has the image's volumes merged in; ``others`` finds the containers of ``--volumes-from``. Later
        sources win: volumes-from, binds, mounts; anonymous volumes fill what is left. Nothing stays when it raises.
        """
        if not (host_config.binds or host_config.mounts or host_config.volumes_from or config.volumes):
            check_tmpfs(host_config)
            return []
        points = await self._workers.call(plan, config, host_config, others, self._data_root)
        try:
            return [await self._materialise(container_id, index, point) for index, point in enumerate(points)]
        except BaseException:
            await self._abandon(container_id)
            raise

    def may_need_content(self, container: Container) -> bool:
        """Whether `populate` could have anything to do."""
        return any(
            point.type == "volume" and not (point.spec.volume_options and point.spec.volume_options.no_copy)
            for point in container.mounts
        )

    async def populate(self, container: Container, rootfs: Path) -> None:
        """At create, as dockerd: an empty volume gets what the image has at its place (unless ``nocopy``)."""
        async with AsyncExitStack() as held:
            await self._hold(held, container)
            await self._workers.call(self._attacher.populate, container, rootfs, deadline=_LONG)

    async def mount(self, container: Container) -> Sequence[OciMount]:
        """At start: make everything ready and return it for the OCI spec."""
        if not container.mounts:
            return []
        async with AsyncExitStack() as held:
            await self._hold(held, container)
            roots = {
                index: await self.images.mount_rootfs(_root_key(container.id, index))
                for index, point in enumerate(container.mounts)
                if point.type == "image"
            }
            ready = await self._workers.call(self._attacher.mount, container, roots, deadline=_LONG)
        for point in container.mounts:
            if point.type == "volume":
                attributes = {
                    "container": container.id,
                    "destination": point.destination,
                    "driver": point.driver,
                    "propagation": point.propagation,
                    "read/write": "true" if point.rw else "false",
                }
                await self._events.publish("volume", "mount", point.name, attributes)
        return ready

    async def unmount(self, container: Container) -> None:
        """At exit. Idempotent; goes through all mounts and raises the first error afterwards."""
        was_mounted = self._attacher.mounted(container.id)
        if not (container.mounts or was_mounted):
            return
        async with AsyncExitStack() as held:
            await self._hold(held, container)
            await self._workers.call(self._attacher.unmount, container)
            for key in self._roots(container.id):
                await self.images.unmount_rootfs(key)
        if was_mounted:
            for point in container.mounts:
                if point.type == "volume":
                    attributes = {"container": container.id, "driver": point.driver}
                    await self._events.publish("volume", "unmount", point.name, attributes)

    async def release(self, container: Container, *, anonymous: bool) -> None:
        """At rm: the container lets go; with ``anonymous`` its unnamed volumes go too, unless others use them."""
        self._reserved.pop(container.id, None)
        await self._remove_roots(container.id)
        if not anonymous:
            return
        for point in container.mounts:
            if point.type == "volume" and not point.spec.source and point.name in self._records:
                async with self._locks(point.name):
                    with suppress(Conflict, NotFound):
                        await self._remove(self.get(point.name), ignoring=container.id)

    # -- inside ---------------------------------------------------------------------------------------------

    async def _abandon(self, container_id: str) -> None:
        """`resolve` failed half-way: let go of everything and remove the volumes made by it."""
        await self._remove_roots(container_id)
        for name, made in self._reserved.pop(container_id, {}).items():
            if made:
                with suppress(Conflict, NotFound):
                    await self.remove(name)

    def _in_use(self, name: str, ignoring: str = "") -> Sequence[str]:
        """Ids of containers that use or are about to use the volume."""
        ids = [*self.users(name), *(owner for owner, names in self._reserved.items() if name in names)]
        return [each for each in dict.fromkeys(ids) if each != ignoring]

    async def _create(
        self,
        name: str,
        driver: str,
        options: Mapping[str, str] | None,
        labels: Mapping[str, str] | None,
        owner: str = "",
    ) -> VolumeRecord:
        """As `create`; reserves the volume for the container ``owner`` before anybody can remove it."""
        if not name:
            name, labels = new_id(), {**(labels or {}), ANONYMOUS_LABEL: ""}
        async with self._locks(name):
            record = self._records.get(name)
            made = record is None
            if record is None:
                record = await self._make(name, driver or DEFAULT_DRIVER, options, labels)
            elif driver and record.driver != driver:
                raise Conflict(
                    f"create {name}: driver '{record.driver}' already has volume '{name}': volume name must be unique"
                )
            if owner:
                self._reserved.setdefault(owner, {}).setdefault(name, made)
        return record

    async def _make(
        self, name: str, driver_name: str, options: Mapping[str, str] | None, labels: Mapping[str, str] | None
    ) -> VolumeRecord:
        driver, volume = await self._workers.call(self._make_in_driver, name, driver_name, dict(options or {}))
        record = VolumeRecord(
            name=name,
            driver=driver_name,
            created_at=volume.created,
            labels=None if labels is None else dict(labels),
            mountpoint=_place(volume),
            options=None if options is None else dict(options),
            scope=driver.scope,
        )
        try:
            await self._store.commit(_put(record))
        except BaseException:
            await self._workers.call(driver.remove, name)
            raise
        self._records[name] = record
        await self._events.publish("volume", "create", name, {"driver": driver_name})
        return record

    def _make_in_driver(self, name: str, driver_name: str, options: dict[str, str]) -> tuple[VolumeDriver, Volume]:
        """Everything about a new volume that may block, on one thread in one go."""
        try:
            driver = self._plugins.volume(driver_name)
        except NotFound as error:
            raise NotFound(f"create {name}: error looking up volume plugin {driver_name}: {error}") from None
        self._plugins.hooks.engine_volume_admit(name=name, driver=driver_name, options=options)
        try:
            return driver, driver.create(name, options)
        except EngineError as error:
            raise type(error)(f"create {name}: {error}") from None

    async def _remove(self, record: VolumeRecord, *, force: bool = False, ignoring: str = "") -> None:
        """With the volume's lock held."""
        name = record.name
        users = self._in_use(name, ignoring)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        try:
            await self._workers.call(lambda: self._plugins.volume(record.driver).remove(name), deadline=_LONG)
        except EngineError as error:
            if not force:
                raise type(error)(f"remove {name}: {error}") from None
            log.warning("volume forgotten, its driver failed", extra={"volume": name, "reason": str(error)})
        await self._store.commit(Delete(_KIND, name))
        self._records.pop(name, None)
        await self._events.publish("volume", "destroy", name, {"driver": record.driver})

    async def _size(self, record: VolumeRecord) -> int:
        try:
            return await self._workers.call(
                lambda: self._plugins.volume(record.driver).usage(record.name), deadline=_LONG
            )
        except EngineError:
            return -1

    def _roots(self, container_id: str) -> Sequence[str]:
        """The root file systems made for mounts of type image; asked of the image service, which survives crashes."""
        prefix = _root_key(container_id, "")
        return [key for key in self.images.rootfs_ids() if key.startswith(prefix)]

    async def _remove_roots(self, container_id: str) -> None:
        for key in self._roots(container_id):
            await self.images.remove_rootfs(key)

    async def _materialise(self, container_id: str, index: int, point: MountPoint) -> MountPoint:
        """Give a planned mount point its volume or its image's root file system."""
        if point.type == "image":
            try:
                image = self.images.get(point.spec.source)
            except NotFound as error:  # not 404: the docker CLI would pull the container's own image
                raise InvalidParameter(str(error)) from None
            await self.images.create_rootfs(_root_key(container_id, index), image, {})
            return replace(point, source=image.id, spec=replace(point.spec, source=image.id))
        if point.type != "volume":
            return point
        options = point.spec.volume_options or VolumeOptions()
        driver = options.driver_config
        try:
            record = await self._create(
                point.name, point.driver, driver.options if driver else None, options.labels, owner=container_id
            )
        except NotFound as error:  # the driver's plugin; again not 404
            raise InvalidParameter(str(error)) from None
        mode = point.mode
        if not mode and point.spec.target and record.driver == DEFAULT_DRIVER:
            mode = "z"  # as dockerd shows mounts somebody asked for
        return replace(point, name=record.name, source=record.mountpoint, driver=record.driver, mode=mode)

    async def _hold(self, held: AsyncExitStack, container: Container) -> None:
        """Lock the container's volumes: drivers never see two calls for one volume at once."""
        for name in sorted({point.name for point in container.mounts if point.type == "volume"}):
            await held.enter_async_context(self._locks(name))


def _put(record: VolumeRecord) -> Put:
    return Put(_KIND, record.name, msgspec.json.encode(record))


def _any_label(filters: Filters, labels: Mapping[str, str]) -> bool:
    """Whether any of ``label!`` matches."""
    return any(Filters({"label": [wanted]}).labels(labels) for wanted in filters["label!"])


def _place(volume: Volume) -> str:
    """The mountpoint as shown; drivers that mount late have none yet."""
    return "" if volume.mountpoint == Path() else str(volume.mountpoint)


def _root_key(container_id: str, index: int | str) -> str:
    return f"{container_id}-mount{index}"
