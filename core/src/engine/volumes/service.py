"""Volumes: named data and how containers get at it.

Who uses a volume is never stored: it follows from the containers (`Volumes.users`). Containers being created are not
there yet, so what they will use is *reserved* in memory from `resolve` until `release`.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from engine import kernel, mounts
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound
from engine.model.container import ZERO_TIME, Config, Container, HostConfig, MountPoint, VolumeOptions
from engine.model.filters import Filters
from engine.model.volume import ANONYMOUS_LABEL, VolumeRecord
from engine.mounts import OciMount
from engine.names import is_id, new_id
from engine.store import Delete, Put
from engine.volumes.treecopy import copy_up
from engine.workers import KeyedLocks, Workers

if TYPE_CHECKING:
    from engine.events import Events
    from engine.plugins import Plugins
    from engine.store import Store

__all__ = ["Volumes"]

log = logging.getLogger(__name__)

DEFAULT_DRIVER = "local"
_KIND = "volume"
_LONG = 600.0  # seconds for calls whose length depends on how much data a volume holds
_LIST_FILTERS = frozenset(("dangling", "driver", "label", "name"))
_PRUNE_FILTERS = frozenset(("all", "label", "label!"))
_KEPT_FLAGS = ((os.ST_NOSUID, "nosuid"), (os.ST_NODEV, "nodev"), (os.ST_NOEXEC, "noexec"))
_MOUNTINFO_OCTAL = re.compile(rb"\\([0-7]{3})")


class Volumes:
    """The volume service. ``state`` is a directory of its own that need not survive a reboot; ``data_root`` the
    engine's own data, whose mounts must not get stuck in containers that bind a directory around it.

    ``users`` gives the ids of the containers that use a volume; the daemon sets it.
    """

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
        self._state = state
        self._data_root = data_root
        self._records: dict[str, VolumeRecord] = {}
        self._reserved: dict[str, dict[str, bool]] = {}  # container id -> volume name -> made for it
        self._mounted: set[str] = set()
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
                        mountpoint=str(volume.mountpoint),
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

    # -- for containers -------------------------------------------------------------------------------------

    async def resolve(
        self, container_id: str, config: Config, host_config: HostConfig, others: Callable[[str], Container]
    ) -> Sequence[MountPoint]:
        """At create: everything the container will have mounted; missing volumes are made, all are reserved for it.

        ``config`` has the image's volumes merged in; ``others`` finds the containers of ``--volumes-from``. Later
        sources win: volumes-from, binds, mounts; anonymous volumes fill what is left. Nothing stays when it raises.
        """
        if not (host_config.binds or host_config.mounts or host_config.volumes_from or config.volumes):
            _check_tmpfs(host_config)
            return []
        points = await self._workers.call(_plan, config, host_config, others, self._data_root)
        try:
            return [await self._materialise(container_id, point) for point in points]
        except BaseException:
            await self._abandon(container_id)
            raise

    async def mount(self, container: Container, rootfs: Path) -> Sequence[OciMount]:
        """At start: make everything ready and return it for the OCI spec.

        On the container's first start an empty volume gets what its image has at that place (unless ``nocopy``).
        """
        if not container.mounts:
            return []
        async with AsyncExitStack() as held:
            await self._hold(held, container)
            self._mounted.add(container.id)
            ready = await self._workers.call(self._mount_all, container, rootfs, deadline=_LONG)
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
        if not container.mounts:
            return
        was_mounted = container.id in self._mounted
        async with AsyncExitStack() as held:
            await self._hold(held, container)
            await self._workers.call(self._unmount_all, container)
            self._mounted.discard(container.id)
        if was_mounted:
            for point in container.mounts:
                if point.type == "volume":
                    attributes = {"container": container.id, "driver": point.driver}
                    await self._events.publish("volume", "unmount", point.name, attributes)

    async def release(self, container: Container, *, anonymous: bool) -> None:
        """At rm: the container lets go; with ``anonymous`` its unnamed volumes go too, unless others use them."""
        self._reserved.pop(container.id, None)
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
        try:
            driver = await self._workers.call(self._plugins.volume, driver_name)
        except NotFound as error:
            raise NotFound(f"create {name}: error looking up volume plugin {driver_name}: {error}") from None
        try:
            volume = await self._workers.call(driver.create, name, dict(options or {}))
        except EngineError as error:
            raise type(error)(f"create {name}: {error}") from None
        record = VolumeRecord(
            name=name,
            driver=driver_name,
            created_at=volume.created,
            labels=None if labels is None else dict(labels),
            mountpoint=str(volume.mountpoint),
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

    async def _remove(self, record: VolumeRecord, *, force: bool = False, ignoring: str = "") -> None:
        """With the volume's lock held."""
        name = record.name
        users = self._in_use(name, ignoring)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        try:
            driver = await self._workers.call(self._plugins.volume, record.driver)
            await self._workers.call(driver.remove, name, deadline=_LONG)
        except EngineError as error:
            if not force:
                raise type(error)(f"remove {name}: {error}") from None
            log.warning("volume forgotten, its driver failed", extra={"volume": name, "reason": str(error)})
        await self._store.commit(Delete(_KIND, name))
        self._records.pop(name, None)
        await self._events.publish("volume", "destroy", name, {"driver": record.driver})

    async def _size(self, record: VolumeRecord) -> int:
        try:
            driver = await self._workers.call(self._plugins.volume, record.driver)
            return await self._workers.call(driver.usage, record.name, deadline=_LONG)
        except EngineError:
            return -1

    async def _materialise(self, container_id: str, point: MountPoint) -> MountPoint:
        """Give a planned mount point its volume."""
        if point.type != "volume":
            return point
        options = point.spec.volume_options or VolumeOptions()
        driver = options.driver_config
        record = await self._create(
            point.name, point.driver, driver.options if driver else None, options.labels, owner=container_id
        )
        mode = point.mode
        if not mode and point.spec.target and record.driver == DEFAULT_DRIVER:
            mode = "z"  # as dockerd shows mounts somebody asked for
        return replace(point, name=record.name, source=record.mountpoint, driver=record.driver, mode=mode)

    async def _hold(self, held: AsyncExitStack, container: Container) -> None:
        """Lock the container's volumes: drivers never see two calls for one volume at once."""
        for name in sorted({point.name for point in container.mounts if point.type == "volume"}):
            await held.enter_async_context(self._locks(name))

    def _mount_all(self, container: Container, rootfs: Path) -> Sequence[OciMount]:
        return [self._mount_one(container, index, point, rootfs) for index, point in enumerate(container.mounts)]

    def _mount_one(self, container: Container, index: int, point: MountPoint, rootfs: Path) -> OciMount:
        if point.type == "tmpfs":
            words = mounts.tmpfs_options(point.spec.tmpfs_options, point.spec.read_only)
            return mounts.parse_tmpfs(point.destination, words)
        if point.type == "bind":
            _prepare_bind_source(point)
            return OciMount(point.destination, "bind", point.source, _bind_options(point, point.source))
        try:
            source = self._plugins.volume(point.driver).mount(point.name, container.id)
        except NotFound:
            raise
        except EngineError as error:
            raise type(error)(f"error while mounting volume '{point.source}': {error}") from None
        options = point.spec.volume_options or VolumeOptions()
        if options.subpath:
            source = self._bind_subpath(source, options.subpath, self._state / container.id / str(index))
        elif not options.no_copy and container.state.started_at == ZERO_TIME:
            copy_up(rootfs, point.destination, source)
        return OciMount(point.destination, "bind", str(source), _bind_options(point, source))

    def _bind_subpath(self, source: Path, subpath: str, target: Path) -> Path:
        """Pin a place inside a volume by mounting it: whoever can write the volume cannot swap it for a link later."""
        root = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = kernel.openat2(
                root, subpath, os.O_PATH, resolve=kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
            )
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InvalidParameter(f"cannot access path {source / subpath}: {reason}") from None
        finally:
            os.close(root)
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            here = f"/proc/self/fd/{found}"
            if os.path.isdir(here):
                target.mkdir(exist_ok=True)
            else:
                target.touch()
            kernel.mount(here, target, flags=kernel.MS_BIND | kernel.MS_REC)
        finally:
            os.close(found)
        return target

    def _unmount_all(self, container: Container) -> None:
        errors: list[EngineError] = []
        self._unbind_subpaths(container)
        for point in container.mounts:
            if point.type == "volume":
                try:
                    self._plugins.volume(point.driver).unmount(point.name, container.id)
                except NotFound:
                    continue  # the volume or its driver is gone
                except EngineError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def _unbind_subpaths(self, container: Container) -> None:
        directory = self._state / container.id
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        for name in names:
            path = directory / name
            with suppress(OSError):  # EINVAL: not mounted any more
                kernel.umount(path, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        directory.rmdir()


def _put(record: VolumeRecord) -> Put:
    return Put(_KIND, record.name, msgspec.json.encode(record))


def _any_label(filters: Filters, labels: Mapping[str, str]) -> bool:
    """Whether any of ``label!`` matches."""
    return any(Filters({"label": [wanted]}).labels(labels) for wanted in filters["label!"])


def _check_tmpfs(host_config: HostConfig) -> None:
    for destination, options in (host_config.tmpfs or {}).items():
        mounts.parse_tmpfs(destination, options)


def _plan(
    config: Config, host_config: HostConfig, others: Callable[[str], Container], data_root: Path
) -> list[MountPoint]:
    """All mount points, volumes not made yet. Looks at the host for the sources of ``--mount type=bind``."""
    _check_tmpfs(host_config)
    tmpfs = {posixpath.normpath(destination) for destination in host_config.tmpfs or {}}
    points: dict[str, MountPoint] = {}
    for text in host_config.volumes_from or ():
        reference, mode = mounts.parse_volumes_from(text)
        writable = "ro" not in mode.split(",")
        try:
            donor = others(reference)
        except NotFound as error:
            # Not 404: the docker CLI takes that for a missing image and pulls.
            raise InvalidParameter(str(error)) from None
        for point in donor.mounts:
            points[point.destination] = _borrowed(point, writable)
    asked: set[str] = set()
    requested = [mounts.parse_bind(text, host_config.volume_driver) for text in host_config.binds or ()]
    requested += [mounts.parse_mount(mount) for mount in host_config.mounts or ()]
    for point in requested:
        if point.destination in asked or point.destination in tmpfs:
            raise InvalidParameter(f"Duplicate mount point: {point.destination}")
        asked.add(point.destination)
        points[point.destination] = _slave_around(point, data_root)
    for path in config.volumes or {}:
        mounts.check_destination(path)
        destination = posixpath.normpath(path)
        if destination not in points and destination not in tmpfs:
            points[destination] = MountPoint(type="volume", destination=destination, driver=host_config.volume_driver)
    return list(points.values())


def _explicit_propagation(point: MountPoint) -> str:
    return point.spec.bind_options.propagation if point.spec.bind_options else ""


def _slave_around(point: MountPoint, data_root: Path) -> MountPoint:
    """A bind that contains the engine's data follows our unmounts (rslave), as in dockerd: a private copy would keep
    the root file systems of other containers busy."""
    if point.type != "bind" or _explicit_propagation(point):
        return point
    source = Path(point.source)
    if data_root.is_relative_to(source) or source.is_relative_to(data_root):
        return replace(point, propagation="rslave")
    return point


def _borrowed(point: MountPoint, writable: bool) -> MountPoint:
    """A mount of another container (``--volumes-from``): never copied into, read-only if either side says so."""
    options = point.spec.volume_options or VolumeOptions()
    spec = replace(point.spec, volume_options=replace(options, no_copy=True)) if point.type == "volume" else point.spec
    return replace(point, rw=point.rw and writable, mode="", spec=spec)


def _prepare_bind_source(point: MountPoint) -> None:
    """``-v`` makes the missing directory (`mounts.parse_bind` asks for it); ``--mount`` wants it to be there."""
    if not os.path.lexists(point.source):
        options = point.spec.bind_options
        if not (options and options.create_mountpoint):
            raise InvalidParameter(
                f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
            )
        try:
            os.makedirs(point.source, 0o755, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InvalidParameter(
                f"error while creating mount source path '{point.source}': mkdir {point.source}: {reason}"
            ) from None


def _propagation(point: MountPoint) -> str:
    """The propagation to ask the runtime for. What the user asked for must be possible: the mount that holds the
    source must be shared (or a slave). What we chose ourselves falls back to the default."""
    wanted = {"shared": (b"shared:",), "slave": (b"shared:", b"master:")}.get(point.propagation.removeprefix("r"))
    if wanted is None:
        return point.propagation
    place, optional = _mount_of(point.source)
    if any(word.startswith(wanted) for word in optional):
        return point.propagation
    if not _explicit_propagation(point):
        return mounts.DEFAULT_PROPAGATION
    kind = "shared mount" if len(wanted) == 1 else "shared or slave mount"
    raise InvalidParameter(f"path {point.source} is mounted on {place} but it is not a {kind}")


def _mount_of(source: str) -> tuple[str, Sequence[bytes]]:
    """Where the mount that holds ``source`` is, and the optional fields of its line in mountinfo."""
    path = os.fsencode(os.path.realpath(source))
    best, optional = b"", [b""]
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        words = line.partition(b" - ")[0].split(b" ")
        place = _MOUNTINFO_OCTAL.sub(lambda match: bytes((int(match[1], 8),)), words[4])
        if (path == place or path.startswith(place.rstrip(b"/") + b"/")) and len(place) >= len(best):
            best, optional = place, words[6:]
    return os.fsdecode(best), optional


def _bind_options(point: MountPoint, source: str | Path) -> tuple[str, ...]:
    """Read-only holds for everything mounted below, too, where the kernel can do that (rro, Linux 5.12).

    What the mount of the source forbids stays forbidden: runc keeps those flags by itself, crun 1.8 clears them.
    """
    options = point.spec.bind_options
    words = ["bind" if options and options.non_recursive else "rbind"]
    flags = os.statvfs(source).f_flag
    words += [word for flag, word in _KEPT_FLAGS if flags & flag]
    if point.rw:
        words += ["ro"] if flags & os.ST_RDONLY else []
    else:
        shallow = options and options.read_only_non_recursive
        words.append("ro" if shallow or not _recursive_read_only() else "rro")
    if point.propagation:
        words.append(_propagation(point))
    return tuple(words)


@cache
def _recursive_read_only() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (5, 12)
