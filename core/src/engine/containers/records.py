"""The containers' records: in memory for reading, in the store for good, and what clients see of them.

Reads never wait. `Containers` builds on this class and is the only one that changes anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from engine.containers import views as container_views
from engine.containers.restart import RestartTracker
from engine.containers.start import ContainerSettings, Starter
from engine.containers.views import is_running
from engine.errors import EngineError, NotFound, NotSupported
from engine.model.container import Container
from engine.model.filters import Filters
from engine.names import find_by_prefix
from engine.networks import links
from engine.oci import spec as ocispec
from engine.store import Put

if TYPE_CHECKING:
    from engine.drivers.runtime import RuntimeDriver
    from engine.drivers.store import ImageStoreDriver
    from engine.events import Events
    from engine.images import Images
    from engine.monitor.client import Launcher, Monitor
    from engine.networks import Networks
    from engine.plugins import Plugins
    from engine.store import Store
    from engine.volumes import Volumes
    from engine.workers import Workers

__all__ = ["ContainerRecords", "Live", "Waiter"]

log = logging.getLogger(__name__)

KIND = "container"
HEALTH_KIND = "health"

Waiter: TypeAlias = "asyncio.Future[tuple[int, str]]"
Entries: TypeAlias = list[dict[str, Any]]  # `list` means something else inside the class


class Live:
    """What is known of a container only while this daemon runs."""

    __slots__ = (
        "id",
        "keep",
        "lock",
        "monitor",
        "pending",
        "removing",
        "restart",
        "tracker",
        "unhealthy",
        "visitors",
        "waiters",
        "watch",
    )

    def __init__(self, container_id: str, restart_count: int = 0) -> None:
        self.id = container_id
        self.lock = asyncio.Lock()
        self.monitor: Monitor | None = None
        self.watch: asyncio.Task[None] | None = None  # waits for the exit, records it, cleans up
        self.restart: asyncio.Task[None] | None = None  # waits out a restart policy's delay
        self.tracker = RestartTracker(restart_count)
        self.keep = False  # `docker restart` of a --rm container: do not remove it in between
        self.removing = False
        self.unhealthy = False  # it is being ended because its health check failed
        self.visitors = 0  # transfers that need the root file system mounted
        self.waiters: dict[str, set[Waiter]] = {"next-exit": set(), "not-running": set(), "removed": set()}
        self.pending: list[Callable[[Monitor | None], Awaitable[None]]] = []  # clients attached before the start

    def answer(self, condition: str, code: int, error: str = "") -> None:
        """Wake those who wait for ``condition``."""
        waiters, self.waiters[condition] = self.waiters[condition], set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result((code, error))


class ContainerRecords:
    """All containers of this engine, to look at."""

    def __init__(
        self,
        *,
        settings: ContainerSettings,
        workers: Workers,
        store: Store,
        events: Events,
        plugins: Plugins,
        images: Images,
        networks: Networks,
        volumes: Volumes,
        launcher: Launcher,
    ) -> None:
        self.settings = settings
        self.workers = workers
        self.plugins = plugins
        self.images = images
        self.networks = networks
        self.volumes = volumes
        self.starter = Starter(
            settings=settings,
            workers=workers,
            plugins=plugins,
            images=images,
            networks=networks,
            volumes=volumes,
            launcher=launcher,
        )
        self._store = store
        self._events = events
        self._records: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._live: dict[str, Live] = {}
        self._summaries: dict[str, tuple[Container, dict[str, Any]]] = {}
        self._graphs: dict[str, Mapping[str, str]] = {}
        self._log_paths: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self.exec_ids: Callable[[str], Sequence[str]] = lambda _: ()
        self.health: Callable[[str], Mapping[str, Any] | None] = lambda _: None
        self.started: list[Callable[[Container], None]] = []  # called after a start, must not block
        self.ended: list[Callable[[Container], None]] = []  # called after an exit, must not block
        self.gone: list[Callable[[str], None]] = []  # called with the id of a container that was removed

    # -- at daemon start --------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the records; call it before the networks' and this service's start."""
        for container_id, body in self._store.load(KIND).items():
            try:
                container = msgspec.json.decode(body, type=Container)
            except msgspec.DecodeError:
                log.exception("a container's record cannot be read and is left out", extra={"container": container_id})
                continue
            self.remember(container)

    def remember(self, container: Container) -> Live:
        """Take a container that is in the store into memory."""
        self._records[container.id] = container
        self._names[container.name] = container.id
        live = self._live[container.id] = Live(container.id, container.state.restart_count)
        return live

    # -- reads --------------------------------------------------------------------------------------------------

    def get(self, ref: str) -> Container:
        """A container by id, name or unique prefix of its id; `NotFound` in dockerd's words."""
        container = self._records.get(ref)
        if container is None:
            found = self._names.get(ref.removeprefix("/"))
            container = self._records.get(found or "")
        if container is None:
            container = self._records.get(find_by_prefix(ref, self._records) or "") or self._by_link(ref)
        if container is None:
            raise NotFound(f"No such container: {ref}")
        return container

    def _by_link(self, ref: str) -> Container | None:
        """``container/alias``: the one a container links to."""
        name, slash, alias = ref.strip("/").partition("/")
        parent = self._records.get(self._names.get(name, "")) if slash else None
        found = {a: other for other, a in links.legacy(parent.host_config)} if parent else {}
        return self._records.get(found.get(alias, ""))

    def _link_names(self) -> dict[str, list[str]]:
        """The names containers have through links of others, ``/container/alias``, by id."""
        names: dict[str, list[str]] = {}
        for container in self._records.values():
            if container.host_config.links:
                for other, alias in links.legacy(container.host_config):
                    names.setdefault(other, []).append(f"/{container.name}/{alias}")
        return names

    def find(self, container_id: str) -> Container | None:
        """A container by its full id, if there (still) is one."""
        return self._records.get(container_id)

    def all(self) -> Iterable[Container]:
        """Every container, oldest first."""
        return sorted(self._records.values(), key=lambda container: container.created)

    def running(self) -> Sequence[Container]:
        """Those with a process, as far as the records say."""
        return [c for c in self._records.values() if c.state.status in ("running", "paused")]

    def using_image(self, image_id: str) -> Sequence[Container]:
        """The containers made from an image, or with it mounted (``--mount type=image``)."""
        return [
            container
            for container in self._records.values()
            if container.image_id == image_id
            or any(mount.type == "image" and mount.source == image_id for mount in container.mounts)
        ]

    def live(self, container_id: str) -> Live:
        """The daemon's side of a container that exists."""
        return self._live[container_id]

    def monitor(self, container_id: str) -> Monitor | None:
        """The monitor of a container that runs."""
        live = self._live.get(container_id)
        return live.monitor if live else None

    def list(self, filters: Filters | None = None, all: bool = False, limit: int = 0, size: bool = False) -> Entries:
        """The body of ``/containers/json``, newest first. Sizes are those of the last `measure`."""
        filters = filters or Filters()
        wanted = container_views.matcher(
            filters, lookup=self.get, descendants=self.images.descendants, health=self._health_status
        )
        everything = all or limit > 0 or bool(filters.get("status"))
        found = []
        link_names = self._link_names()
        now_ns = time.time_ns()
        for container in sorted(self._records.values(), key=lambda c: c.created, reverse=True):
            if (everything or is_running(container)) and wanted(container):
                entry = self._entry(container, size, now_ns)
                if container.id in link_names:
                    entry["Names"] = [*entry["Names"], *link_names[container.id]]
                found.append(entry)
                if len(found) == limit:
                    break
        return found

    def _entry(self, container: Container, size: bool, now_ns: int) -> dict[str, Any]:
        cached = self._summaries.get(container.id)
        if cached is None or cached[0] is not container:
            cached = (container, container_views.summary(container, container.config.image))
            self._summaries[container.id] = cached
        status = container_views.status_text(container, self._health_status(container.id), now_ns)
        entry = {**cached[1], "Status": status}
        if container.config.image and not self.images.resolves(container.config.image, container.image_id):
            entry["Image"] = container.image_id  # its tag has moved on or is gone
        if size:
            entry |= self._size_view(container)
        return entry

    def _health_status(self, container_id: str) -> str:
        health = self.health(container_id)
        return str(health["Status"]) if health else ""

    def inspect(self, ref: str, *, size: bool = False) -> dict[str, Any]:
        """The body of ``/containers/{id}/json``. Sizes are those of the last `measure`."""
        container = self.get(ref)
        view = container_views.inspect_view(
            container,
            directory=str(self.starter.directory(container.id)),
            log_path=self._log_path(container),
            graph=self._graph(container),
            exec_ids=self.exec_ids(container.id),
            health=self.health(container.id),
            masked_paths=ocispec.masked_paths(container.host_config, self.settings.host),
            readonly_paths=ocispec.readonly_paths(container.host_config),
        )
        legacy = links.legacy(container.host_config)
        if legacy or view["HostConfig"]["Links"]:
            others = ((self.find(other), alias) for other, alias in legacy)
            shown = [f"/{other.name}:/{container.name}/{alias}" for other, alias in others if other]
            view["HostConfig"]["Links"] = shown or None
        if size:
            view |= self._size_view(container)
        return view

    def _graph(self, container: Container) -> Mapping[str, str]:
        graph = self._graphs.get(container.id)
        if graph is None:
            try:
                graph = self.plugins.image_store(container.store).graph_data(container.id)
            except EngineError:
                graph = {}
            self._graphs[container.id] = graph
        return graph

    def _log_path(self, container: Container) -> str:
        path = self._log_paths.get(container.id)
        if path is None:
            try:
                path = self.plugins.log(container.log_driver).path(self.starter.log_target(container))
            except EngineError:
                path = ""
            self._log_paths[container.id] = path
        return path

    def _size_view(self, container: Container) -> dict[str, int]:
        own = self._sizes.get(container.id, 0)
        return {"SizeRw": own, "SizeRootFs": own + self.images.size(container.image_id)}

    async def measure(self, container_ids: Iterable[str] | None = None) -> None:
        """Find out how big writable layers are, for ``size=1`` and ``system df``."""
        for container_id in list(self._records if container_ids is None else container_ids):
            container = self._records.get(container_id)
            if container is not None:
                usage = await self.workers.call(self._usage, container)
                self._sizes[container_id] = usage

    def _usage(self, container: Container) -> int:
        try:
            return self.image_store(container).rootfs_usage(container.id).size
        except (NotSupported, NotFound):
            return 0

    def image_store(self, container: Container) -> ImageStoreDriver:
        """The store that keeps the container's root file system."""
        return self.plugins.image_store(container.store)

    def runtime(self, container: Container) -> RuntimeDriver:
        """The runtime the container was made for; may load a plugin: worker threads only."""
        return self.plugins.runtime(container.runtime)

    # -- changing the record --------------------------------------------------------------------------------------

    async def save(self, container: Container) -> Container:
        """Make ``container`` the record of its id, in memory at once and durable when this returns."""
        self._records[container.id] = container
        await self._store.commit(Put(KIND, container.id, msgspec.json.encode(container)))
        return container

    async def change_state(self, container_id: str, **changes: object) -> Container:
        """Change fields of the state, durably."""
        current = self._records[container_id]
        state = msgspec.structs.replace(current.state, **changes)
        return await self.save(msgspec.structs.replace(current, state=state))

    async def event(self, container: Container, action: str, **attributes: str) -> None:
        """Tell the world, in Docker's shape: labels, image and name are always among the attributes."""
        await self._events.publish(
            "container",
            action,
            container.id,
            {**(container.config.labels or {}), "image": container.config.image, "name": container.name, **attributes},
        )

    def forget(self, container: Container) -> None:
        """Drop the container from memory."""
        for table in (self._records, self._live, self._summaries, self._graphs, self._log_paths, self._sizes):
            table.pop(container.id, None)
        if self._names.get(container.name) == container.id:
            del self._names[container.name]
        for callback in self.gone:
            callback(container.id)
