"""Bringing a container up and taking it down: what is acquired, in which order, and how each step is undone.

    volumes -> root file system -> network -> files, OCI spec, hooks, bundle -> monitor -> process

`bring_up` either returns a running process or leaves nothing behind. `tear_down` releases everything whatever state
things are in; it is what happens after an exit, and at the daemon's start to whatever a crash left. The bundle's
directory is made first and removed last: where there is one, there may be something to tear down.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from engine.containers import logattributes, logcache
from engine.drivers.log import LogTarget
from engine.drivers.runtime import Bundle, Launch, RuntimeDriver
from engine.errors import Conflict, EngineError, NotFound, StartFailed
from engine.kernel import MNT_DETACH, MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, umount
from engine.model.container import Container, Ulimit
from engine.monitor.client import LaunchFailed, Task
from engine.oci import cdi, devices, users
from engine.oci import spec as ocispec
from engine.oci.host import Host

if TYPE_CHECKING:
    from engine.config import Config as DaemonConfig
    from engine.drivers.log import LogWriter
    from engine.images import Images
    from engine.monitor.client import Launcher, Monitor
    from engine.mounts import OciMount
    from engine.networks import Attachment, Networks
    from engine.plugins import Plugins
    from engine.volumes import Volumes
    from engine.workers import Workers

__all__ = ["ContainerSettings", "Running", "Starter", "process_identity"]

log = logging.getLogger(__name__)

_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSettings:
    """What the daemon's configuration means for containers.

    ``root`` (``<data-root>/containers``) has a directory for each container with its log and its files; ``state``
    (``<exec-root>/containers``) one for each container that is up, with its bundle.
    """

    root: Path
    state: Path
    host: Host
    defaults: ocispec.Defaults
    log_driver: str = "json-file"
    log_options: Mapping[str, str] = field(default_factory=dict)
    shm_size: int = 64 << 20
    stop_timeout: int = 10
    ipc_mode: str = "private"
    cgroupns_mode: str = ""
    cdi_directories: Sequence[Path] = cdi.DIRECTORIES

    @classmethod
    def of(cls, config: DaemonConfig, host: Host) -> ContainerSettings:
        """From the daemon's configuration."""
        return cls(
            root=config.root / "containers",
            state=config.state / "containers",
            host=host,
            defaults=ocispec.Defaults(
                cgroup_parent=config.cgroup_parent or f"/engine-{config.instance}",
                init=config.init,
                no_new_privileges=config.no_new_privileges,
                ulimits=tuple(msgspec.convert(limit, Ulimit) for limit in config.default_ulimits.values()),
            ),
            log_driver=config.log_driver,
            log_options=config.log_opts,
            shm_size=config.default_shm_size,
            ipc_mode=config.default_ipc_mode,
            cgroupns_mode=config.default_cgroupns_mode,
            cdi_directories=tuple(map(Path, config.cdi_spec_dirs)) or cdi.DIRECTORIES,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A container that is up. ``boot_id`` and ``start_ticks`` tell its process from a later one with the same pid."""

    monitor: Monitor
    attachment: Attachment
    pid: int
    boot_id: str
    start_ticks: int


class Starter:
    """Does the starting for `engine.containers`; holds no state of its own."""

    def __init__(
        self,
        *,
        settings: ContainerSettings,
        workers: Workers,
        plugins: Plugins,
        images: Images,
        networks: Networks,
        volumes: Volumes,
        launcher: Launcher,
    ) -> None:
        self.settings = settings
        self._workers = workers
        self._plugins = plugins
        self._images = images
        self._networks = networks
        self._volumes = volumes
        self._launcher = launcher

    # -- places ---------------------------------------------------------------------------------------------

    def directory(self, container_id: str) -> Path:
        """The container's own directory, as long as the container exists."""
        return self.settings.root / container_id

    def bundle(self, container_id: str) -> Bundle:
        """The OCI bundle, as long as the container is up."""
        return Bundle(container_id=container_id, path=self.settings.state / container_id)

    def log_target(self, container: Container) -> LogTarget:
        """Where the container's log driver writes and reads."""
        attributes = {"name": container.name, "image": container.config.image, "image_id": container.image_id}
        options = container.host_config.log_config.config
        return LogTarget(
            container_id=container.id,
            directory=self.directory(container.id),
            options=options,
            tag=logattributes.tag(container, options.get("tag", "")),
            extra=logattributes.chosen(container, options),
            attributes=attributes | (container.config.labels or {}),
        )

    # -- up -------------------------------------------------------------------------------------------------

    async def bring_up(
        self,
        container: Container,
        *,
        find: Callable[[str], Container],
        attach: Callable[[Monitor], Awaitable[None]],
    ) -> Running:
        """Start ``container``'s process. ``find`` finds other containers by id (namespaces shared with them);
        ``attach`` is called once the monitor exists and before the process does, so that clients miss nothing.

        Raises what failed; whatever had been acquired by then has been released again.
        """
        bundle = self.bundle(container.id)
        async with AsyncExitStack() as undo:
            await self._workers.call(_make_bundle, bundle.path)
            undo.push_async_callback(self._undo, self._workers.call, shutil.rmtree, bundle.path, True)
            undo.push_async_callback(self._undo, self._images.unmount_rootfs, container.id)
            undo.push_async_callback(self._undo, self._volumes.unmount, container)
            undo.push_async_callback(self._undo, self._networks.detach, container)
            (rootfs, mounts), attachment = await both(self._files(container), self._networks.attach(container))
            container = with_attachment(container, attachment)
            files = self._networks.files(container, attachment)
            linked = self._networks.link_environment(container)
            shared = namespaces(container, attachment, find, self._shm(container, find))
            runtime, launch, writer = await self._workers.call(
                self._prepare, container, bundle, rootfs, mounts, files, shared, linked
            )
            undo.push_async_callback(self._undo, self._workers.call, runtime.delete, bundle)
            monitor = await self._launcher.spawn(self._task(container, launch, writer))
            undo.callback(monitor.close)
            await attach(monitor)
            try:
                pid = await monitor.start()
            except LaunchFailed as failure:
                raise runtime.start_error(bundle, failure.status, failure.text) from None
            undo.pop_all()
        boot_id, ticks = process_identity(pid)
        return Running(monitor=monitor, attachment=attachment, pid=pid, boot_id=boot_id, start_ticks=ticks)

    async def _files(self, container: Container) -> tuple[Path, Sequence[OciMount]]:
        rootfs = await self._images.mount_rootfs(container.id)
        return rootfs, await self._volumes.mount(container)

    async def _undo(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """An undo never hides the error that led to it."""
        try:
            await function(*args)
        except Exception:
            log.exception("undoing a failed start", extra={"step": getattr(function, "__qualname__", str(function))})

    def _prepare(
        self,
        container: Container,
        bundle: Bundle,
        rootfs: Path,
        mounts: Sequence[OciMount],
        files: Mapping[str, bytes],
        shared: ocispec.Namespaces,
        linked: Sequence[str],
    ) -> tuple[RuntimeDriver, Launch, LogWriter | None]:
        """The part of a start that needs no service: on one worker thread, in one go."""
        settings = self.settings
        directory = self.directory(container.id)
        directory.mkdir(mode=0o710, exist_ok=True)
        paths = {}
        for name, content in files.items():
            paths[name] = directory / name
            paths[name].write_bytes(content)
            paths[name].chmod(0o644)
        if shared.shm == str(bundle.path / "shm"):
            _mount_shm(bundle.path / "shm", container.host_config.shm_size)
        spec = ocispec.build(
            container,
            rootfs=rootfs,
            mounts=mounts,
            namespaces=shared,
            files=paths,
            user=users.find(rootfs, container.config.user, container.host_config.group_add),
            devices=devices.plan(container.host_config),
            host=settings.host,
            defaults=settings.defaults,
            linked=linked,
        )
        requested = cdi.wanted(container.host_config.device_requests)
        if requested:
            cdi.inject(spec, cdi.resolve(requested, settings.cdi_directories))
        self._plugins.hooks.engine_oci_spec(container=container, spec=spec)
        (bundle.path / "config.json").write_bytes(msgspec.json.encode(spec))
        runtime = self._plugins.runtime(container.runtime)
        launch = runtime.launch(bundle, terminal=container.config.tty)
        writer = logcache.writer(self._plugins, container.log_driver, self.log_target(container))
        return runtime, launch, writer

    def _task(self, container: Container, launch: Launch, writer: LogWriter | None) -> Task:
        return Task(
            id=container.id,
            directory=self.directory(container.id),
            launch=launch,
            terminal=container.config.tty,
            console_size=container.host_config.console_size,
            open_stdin=container.config.open_stdin,
            stdin_once=container.config.stdin_once,
            log=writer,
            exec=False,
        )

    def _shm(self, container: Container, find: Callable[[str], Container]) -> str:
        """The host directory behind /dev/shm, where it is shared."""
        mode = container.host_config.ipc_mode
        if mode == "shareable":
            return str(self.bundle(container.id).path / "shm")
        if mode == "host":
            return "/dev/shm"  # noqa: S108 - the host's, as asked for
        if mode.startswith("container:"):
            other = find(mode.partition(":")[2])
            if other.host_config.ipc_mode == "shareable":
                return str(self.bundle(other.id).path / "shm")
            if other.host_config.ipc_mode in ("host",) or other.host_config.ipc_mode.startswith("container:"):
                return self._shm(other, find)
            raise Conflict(
                f"cannot join IPC of container {other.id}: non-shareable IPC (hint: use IpcMode:shareable "
                "for the donor container)"
            )
        return ""

    # -- down -----------------------------------------------------------------------------------------------

    async def tear_down(self, container: Container) -> None:
        """Release all of a container that is not running. Idempotent; goes through all steps and raises the first
        error afterwards (the bundle is kept then, so that the daemon's next start tries again)."""
        bundle = self.bundle(container.id)
        errors: list[Exception] = []

        async def release(work: Callable[[], Awaitable[object]]) -> None:
            try:
                await work()
            except NotFound:
                pass
            except Exception as error:
                log.exception("cleaning up after a container", extra={"container": container.id})
                errors.append(error)

        async def release_files() -> None:
            await release(lambda: self._volumes.unmount(container))
            await release(lambda: self._images.unmount_rootfs(container.id))

        await release(lambda: self._workers.call(self._delete_runtime, container, bundle))  # nothing runs after this
        await both(release(lambda: self._networks.detach(container)), release_files())
        if errors:
            raise errors[0]
        await self._workers.call(_remove_bundle, bundle.path)

    def _delete_runtime(self, container: Container, bundle: Bundle) -> None:
        try:
            runtime = self._plugins.runtime(container.runtime)
        except EngineError:
            return  # its plugin was uninstalled: what it left, only it could remove
        runtime.delete(bundle)

    def left_behind(self) -> list[str]:
        """Ids of the containers that are up or were when a daemon died: those with a bundle."""
        try:
            return os.listdir(self.settings.state)
        except FileNotFoundError:
            return []


def with_attachment(container: Container, attachment: Attachment) -> Container:
    """``container`` as it is while attached to its networks."""
    return msgspec.structs.replace(
        container,
        networks=dict(attachment.networks),
        sandbox_id=attachment.sandbox_id,
        sandbox_key=attachment.sandbox_key or "",
        ports=dict(attachment.ports),
    )


def without_attachment(container: Container) -> Container:
    """``container`` after its networks are gone: what was asked for stays, what was got goes."""
    cleared: dict[str, Any] = {
        "endpoint_id": "",
        "gateway": "",
        "ip_address": "",
        "ip_prefix_len": 0,
        "ipv6_gateway": "",
        "global_ipv6_address": "",
        "global_ipv6_prefix_len": 0,
        "mac_address": "",  # one that was asked for is among the driver's options, and in the configuration
    }
    return msgspec.structs.replace(
        container,
        networks={name: msgspec.structs.replace(s, **cleared) for name, s in container.networks.items()},
        sandbox_id="",
        sandbox_key="",
        ports={},
    )


def namespaces(
    container: Container, attachment: Attachment, find: Callable[[str], Container], shm: str
) -> ocispec.Namespaces:
    """Which namespaces of others the container enters; `Conflict` when the other one is not running."""

    def of(mode: str, kind: str) -> str:
        if not mode.startswith("container:"):
            return ""
        other = find(mode.partition(":")[2])
        if other.state.status != "running":
            raise Conflict(f"cannot join {kind.upper()} namespace of a non running container: {other.id}")
        return f"/proc/{other.state.pid}/ns/{kind}"

    return ocispec.Namespaces(
        network=Path(attachment.sandbox_key) if attachment.sandbox_key else None,
        pid=of(container.host_config.pid_mode, "pid"),
        ipc=of(container.host_config.ipc_mode, "ipc"),
        shm=shm,
    )


def process_identity(pid: int) -> tuple[str, int]:
    """The boot's id and the start time (clock ticks since boot) of a process; 0 when it is gone already."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return boot_id, 0
    return boot_id, int(stat.rpartition(b")")[2].split()[19])


def failure_code(error: BaseException) -> int:
    """What a failed start records as exit code."""
    return error.exit_code if isinstance(error, StartFailed) else 128


def _make_bundle(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True, mode=0o711)


def _remove_bundle(path: Path) -> None:
    shm = path / "shm"
    if shm.exists():
        try:
            umount(shm, MNT_DETACH)
        except OSError:
            pass  # not mounted
    shutil.rmtree(path, ignore_errors=True)


def _mount_shm(path: Path, size: int) -> None:
    path.mkdir(exist_ok=True)
    if not os.path.ismount(path):
        mount("shm", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777,size={size}")


async def both(first: Coroutine[Any, Any, _A], second: Coroutine[Any, Any, _B]) -> tuple[_A, _B]:
    """Run two coroutines side by side; when one fails, the other is awaited before its error is raised."""
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    for outcome in (one, two):
        if isinstance(outcome, BaseException):
            raise outcome
    return cast("tuple[_A, _B]", (one, two))


async def settle(task: asyncio.Task[None] | None) -> None:
    """Wait for a background task of ours without taking its error or its cancellation."""
    if task is not None and not task.done():
        await asyncio.wait((task,))
