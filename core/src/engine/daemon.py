"""``engined``: builds the services, starts them in order, serves the API, and takes everything down again.

The composition root: all wiring is here and no rule is. Containers are never touched by a stop of the daemon; their
monitors keep them, their logs and their exits for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine import __version__, config
from engine.containers import logformat
from engine.errors import AlreadyExists, EngineError, InvalidParameter
from engine.systemd import Notifier, passed_sockets

if TYPE_CHECKING:
    from engine.api.http import HttpServer
    from engine.api.listeners import Listener
    from engine.api.router import Route
    from engine.config import Config, Parsed
    from engine.containers import Containers
    from engine.containers.start import ContainerSettings
    from engine.monitor.client import Launcher
    from engine.plugins import Plugins, PluginSettings
    from engine.services import Services, Subsystem

__all__ = ["Daemon", "main"]

log = logging.getLogger(__name__)

_RESOURCES = ("system", "containers", "exec", "images", "networks", "volumes", "security")
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: parse, check, serve until told to stop. Returns the exit status."""
    try:
        parsed = config.parse_arguments(sys.argv[1:] if arguments is None else arguments)
    except InvalidParameter as error:
        return _complain(f"{error}\nSee 'engined --help'.", 125)
    if parsed.help:
        sys.stdout.write(config.usage())
        return 0
    if parsed.version:
        sys.stdout.write(f"Engine version {__version__}\n")
        return 0
    try:
        settings = parsed.load()
        if parsed.validate:
            sys.stdout.write("configuration OK\n")
            return 0
        if os.geteuid() != 0:
            raise InvalidParameter("engined needs to be started with root privileges")
        logformat.setup("debug" if settings.debug else settings.log_level, settings.log_format)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        with _own(settings):
            asyncio.run(Daemon(settings, parsed).run())
    except EngineError as error:
        return _complain(str(error), 1)
    except Exception as error:
        log.exception("the daemon broke down")
        return _complain(f"internal error, see the log: {type(error).__name__}: {error}", 1)
    return 0


def _complain(text: str, status: int) -> int:
    sys.stderr.write(f"engined: {text}\n")
    return status


@contextlib.contextmanager
def _own(settings: Config) -> Iterator[None]:
    """Directories, umask, the data root's lock and the pid file, for as long as the daemon runs."""
    os.umask(0o022)
    for directory in (settings.root, settings.state):
        try:
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cannot create {directory}: {error.strerror}") from None
    if settings.oom_score_adjust:
        Path("/proc/self/oom_score_adj").write_text(str(settings.oom_score_adjust))
    with (
        _locked(settings.root / "engine.lock", f"data root {settings.root}", "--data-root"),
        _locked(settings.state / "engine.lock", f"exec root {settings.state}", "--exec-root"),
    ):
        settings.pid_path.parent.mkdir(parents=True, exist_ok=True)
        settings.pid_path.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            settings.pid_path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, what: str, flag: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 20, 0).decode().strip() or "unknown"
            raise AlreadyExists(
                f"{what} is in use by another engined (pid {holder}): stop it, or use another {flag}"
            ) from None
        os.pwrite(fd, b"%-19d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)


class Daemon:
    """One run of the daemon. `run` returns when a stop signal came and everything is down."""

    def __init__(self, settings: Config, parsed: Parsed) -> None:
        self.config = settings
        self._parsed = parsed
        self._stop = asyncio.Event()
        self._signals = 0
        self._notifier = Notifier()

    async def run(self) -> None:
        """Start, serve, stop."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_stop_signal)
        async with contextlib.AsyncExitStack() as undo:
            listeners = self._open_doors(undo)
            services, launcher = await self._build(undo)
            await self._start_services(services, launcher, undo)
            server = await self._serve(services, listeners, undo)
            loop.add_signal_handler(
                signal.SIGHUP, lambda: services.workers.spawn(self._reload(services), name="reload")
            )
            self._notifier.ready()
            log.info("API listens", extra={"hosts": " ".join(self.config.listen), "pid": os.getpid()})
            await self._stop.wait()
            self._notifier.stopping()
            log.info("stopping; containers keep running")
            server.stop_listening()
            services.events.close()

    def _on_stop_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals >= 3:  # as dockerd: the third one does not wait for anything
            os._exit(1)

    # -- up -------------------------------------------------------------------------------------------------

    def _open_doors(self, undo: contextlib.AsyncExitStack) -> list[Listener]:
        """Bind first: a path in use must be told before anything is touched, and early clients just wait."""
        from engine.api.listeners import open_listener

        passed = passed_sockets()
        tls = None
        if self.config.tls_files is not None:
            from engine.api.tls import server_context

            certificate, key, ca = self.config.tls_files
            tls = server_context(certificate=certificate, key=key, ca=ca)
        listeners = []
        for host in self.config.listen:
            for listener in open_listener(
                host, group=self.config.group, insecure_tcp=self.config.insecure_tcp, tls=tls, passed=passed
            ):
                undo.callback(listener.close)
                listeners.append(listener)
        return listeners

    async def _build(self, undo: contextlib.AsyncExitStack) -> tuple[Services, Launcher]:
        """Construct every service; nothing runs yet."""
        from engine.containers import Containers
        from engine.containers.execs import Execs
        from engine.containers.health import HealthChecks
        from engine.drivers.cgroups import Cgroup, Layout
        from engine.events import Events
        from engine.images import Images
        from engine.monitor.client import Launcher
        from engine.networks import Networks
        from engine.plugins import discover
        from engine.services import Services
        from engine.store import Store
        from engine.system import System
        from engine.volumes import Volumes
        from engine.workers import Workers

        settings = self.config
        store = Store(settings.root / "engine.db")
        undo.push_async_callback(store.close)
        if not settings.cgroup_parent:
            undo.callback(Cgroup(Layout.read(), f"/engine-{settings.instance}").remove_if_empty)
        workers = Workers()
        undo.push_async_callback(workers.close)
        events = Events(store)
        plugins = discover(_plugin_settings(settings))
        plugins.require(settings.required_plugins)
        launcher = Launcher()
        undo.push_async_callback(launcher.stop)
        images = Images(config=settings, store=store, events=events, workers=workers, plugins=plugins)
        networks = Networks(config=settings, store=store, events=events, workers=workers, plugins=plugins)
        volumes = Volumes(
            store=store,
            events=events,
            workers=workers,
            plugins=plugins,
            state=settings.state / "volumes",
            data_root=settings.root,
        )
        containers = Containers(
            settings=await workers.call(_container_settings, settings),
            workers=workers,
            store=store,
            events=events,
            plugins=plugins,
            images=images,
            networks=networks,
            volumes=volumes,
            launcher=launcher,
        )
        execs = Execs(containers=containers, launcher=launcher)
        HealthChecks(containers=containers, execs=execs, store=store)
        undo.push_async_callback(images.close)
        images.users = lambda image_id: list(containers.using_image(image_id))
        networks.find = containers.get
        volumes.users = lambda name: _volume_users(containers, name)
        volumes.images = images
        system = System(
            config=settings,
            workers=workers,
            events=events,
            plugins=plugins,
            images=images,
            networks=networks,
            volumes=volumes,
            containers=containers,
        )
        services = Services(
            config=settings,
            workers=workers,
            store=store,
            events=events,
            plugins=plugins,
            images=images,
            networks=networks,
            volumes=volumes,
            containers=containers,
            execs=execs,
            system=system,
        )
        return services, launcher

    async def _start_services(self, services: Services, launcher: Launcher, undo: contextlib.AsyncExitStack) -> None:
        """Records first, then what they refer to, then the containers that are up."""
        services.containers.load()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(launcher.start())
                group.create_task(services.images.start())
                group.create_task(services.volumes.start())
                group.create_task(services.networks.start(services.containers.running()))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        await services.containers.start_service()

    async def _serve(
        self, services: Services, listeners: list[Listener], undo: contextlib.AsyncExitStack
    ) -> HttpServer:
        from engine.api.http import HttpServer
        from engine.api.router import API_VERSION, Router, version_text
        from engine.api.system import NOT_SERVED
        from engine.authorization import Authorization

        router = Router()
        for name in _RESOURCES:
            routes: list[Route] = importlib.import_module(f"engine.api.{name}").ROUTES
            router.add(routes)
        for subsystem in _subsystems(services.plugins, services):
            router.add(subsystem.routes)
            services.workers.spawn(subsystem.run(), name=f"subsystem {subsystem.name}")
        router.add(NOT_SERVED)
        headers = {
            "Api-Version": version_text(API_VERSION),
            "Docker-Experimental": "true" if self.config.experimental else "false",
            "Ostype": "linux",
            "Server": f"Engine/{__version__} (linux)",
        }
        authorization = Authorization(config=self.config, plugins=services.plugins, workers=services.workers)
        server = HttpServer(router, services, headers=headers, authorization=authorization)
        undo.push_async_callback(server.close, float(max(1, self.config.shutdown_timeout)))
        for listener in listeners:
            if listener.tls is not None:
                await server.listen_tls(listener.sock, listener.tls, host_check=listener.host_check)
            else:
                await server.listen(listener.sock, host_check=listener.host_check)
        if self._notifier.watchdog_seconds:
            services.workers.spawn(self._watchdog(), name="watchdog")
        return server

    async def _watchdog(self) -> None:
        while True:
            self._notifier.watchdog()
            await asyncio.sleep(self._notifier.watchdog_seconds)

    # -- reload ---------------------------------------------------------------------------------------------

    async def _reload(self, services: Services) -> None:
        """SIGHUP: read the file again and take over what may change while running; a bad file changes nothing."""
        self._notifier.reloading()
        try:
            fresh = self._parsed.load()
            if fresh.default_runtime != self.config.default_runtime and fresh.default_runtime:
                await services.workers.call(services.plugins.set_default_runtime, fresh.default_runtime)
            changed = self.config.apply(fresh)
            logformat.set_level("debug" if self.config.debug else self.config.log_level)
            log.info("configuration reloaded", extra={"changed": ", ".join(changed) or "nothing"})
            await services.system.announce_reload()
        except EngineError as error:
            log.error("configuration not reloaded", extra={"reason": error.message})
        finally:
            self._notifier.ready()


# -- configuration of the parts ---------------------------------------------------------------------------------


def _plugin_settings(settings: Config) -> PluginSettings:
    from engine.plugins import PluginSettings

    options = {name: dict(section) for name, section in settings.plugin_options.items()}
    bridge = {"userland-proxy": settings.userland_proxy, "ip-forward": settings.ip_forward}
    options["bridge"] = bridge | options.get("bridge", {})
    if settings.seccomp_profile != "builtin":
        options["security-seccomp"] = {"profile": settings.seccomp_profile} | options.get("security-seccomp", {})
    return PluginSettings(
        instance=settings.instance,
        data_root=settings.root,
        exec_root=settings.state,
        disabled=frozenset(settings.disabled_plugins),
        options=options,
        runtimes=settings.runtimes,
        default_runtime=settings.default_runtime,
        default_store=settings.storage_driver,
    )


def _container_settings(settings: Config) -> ContainerSettings:
    from engine.containers.start import ContainerSettings
    from engine.oci import host

    return ContainerSettings.of(settings, host.probe(init_path=settings.init_path))


def _volume_users(containers: Containers, name: str) -> list[str]:
    return [
        container.id
        for container in containers.all()
        if any(mount.type == "volume" and mount.name == name for mount in container.mounts)
    ]


def _subsystems(plugins: Plugins, services: Services) -> list[Subsystem]:
    """What subsystem plugins bring; one that cannot start is logged and left out."""
    try:
        groups = plugins.hooks.engine_subsystems(services=services)
    except Exception:
        log.exception("a subsystem plugin failed to start")
        return []
    return [subsystem for group in groups for subsystem in group]  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
