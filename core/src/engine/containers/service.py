"""The containers service: every container's record, its state, and all that changes it.

One writer: a container's state changes only here, is durable before the event that tells of it, and operations on one
container take turns through its lock. Reads look at the records in memory and never wait. An exit is noticed by the
container's monitor; it is recorded and told first and cleaned up after, and the next operation waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from engine.containers import attach as container_attach
from engine.containers import create as container_create
from engine.containers import links as container_links
from engine.containers import logs as container_logs
from engine.containers.reconcile import Reconciler
from engine.containers.records import HEALTH_KIND, KIND, ContainerRecords, Live, Waiter
from engine.containers.restart import RestartTracker
from engine.containers.start import (
    Running,
    failure_code,
    settle,
    with_attachment,
    without_attachment,
)
from engine.containers.views import is_running
from engine.errors import AlreadyExists, Conflict, EngineError, InvalidParameter, NotFound, NotModified, Unavailable
from engine.model.admission import ContainerRequest
from engine.model.container import (
    ZERO_TIME,
    Config,
    Container,
    ContainerState,
    HostConfig,
    LogConfig,
    RestartPolicy,
)
from engine.model.filters import Filters
from engine.model.network import EndpointSettings
from engine.model.security import parse_security_opts
from engine.names import new_id
from engine.oci import resources
from engine.platforms import Platform, host_platform, parse_platform
from engine.signals import parse_signal
from engine.store import Delete, Name, NameTaken, Put, Unname
from engine.timestamps import now, parse_rfc3339, parse_timestamp, rfc3339

if TYPE_CHECKING:
    from engine.model.image import Image
    from engine.monitor.client import Exit, Monitor

__all__ = ["Containers", "Live"]

log = logging.getLogger(__name__)

SIGKILL = 9
KILL_PATIENCE = 10.0
_PRUNE_FILTERS = frozenset(("label", "label!", "until"))


class Containers(ContainerRecords):
    """All containers of this engine."""

    def __init__(self, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, **services: Any) -> None:
        """``services`` as for `ContainerRecords`; ``sleep`` waits out restart delays."""
        super().__init__(**services)
        self._sleep = sleep

    async def start_service(self) -> None:
        """Bring records and reality together: adopt what runs, record what ended, finish what was begun."""
        await Reconciler(self).run()

    # -- create ------------------------------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        config: Config,
        host_config: HostConfig,
        networking: Mapping[str, EndpointSettings] | None = None,
        platform: str = "",
    ) -> tuple[str, list[str]]:
        """A new container; returns its id and the warnings. Of parallel creates of one name exactly one wins."""
        if name:
            name = container_create.check_name(name)
        wanted = parse_platform(platform) if platform else None
        image = self.images.get(config.image, wanted) if config.image else None
        runs_on = parse_platform(image.platform) if image else wanted or host_platform()
        settings = self.settings
        warnings = container_create.warnings(host_config, settings.host)
        host_config = container_create.supported(host_config, settings.host)
        container_create.validate(config, host_config, settings.host)
        parse_security_opts(host_config.security_opt)
        host_config = container_links.by_id(host_config, self.get)
        merged = container_create.merge_image(config, image)
        container_create.check_restart_on_health(host_config.restart_policy, merged)
        path, args = container_create.command(merged, wasm=runs_on.is_wasm)
        marks = {**(merged.labels or {}), **(host_config.annotations or {})}
        runs_as = Platform("wasi", "wasm") if container_create.wants_wasm(marks, path) else runs_on
        runtime = await self.workers.call(self._choose_runtime, host_config, runs_as)
        log_config = self._log_config(host_config.log_config)
        await self.workers.call(self._check_log, log_config)
        host_config = container_create.normalise(
            host_config,
            runtime=runtime,
            log=log_config,
            host=settings.host,
            shm_size=settings.shm_size,
            ipc_mode=settings.ipc_mode,
            cgroupns_mode=settings.cgroupns_mode,
        )
        networks = self.networks.validate(host_config, merged, networking or {})
        container_id = new_id()
        await self.workers.call(
            self.plugins.hooks.engine_container_admit,
            request=ContainerRequest(
                name=name,
                image=config.image,
                image_id=image.id if image else "",
                platform=str(runs_on),
                runtime=runtime,
                config=config,
                host_config=host_config,
                networks=networks,
            ),
        )
        name = self._reserve(name, container_id)
        try:
            container = Container(
                id=container_id,
                name=name,
                created=now(),
                image_id=image.id if image else "",
                chain_id=image.chain_id if image else None,
                platform=str(runs_on),
                runtime=runtime,
                store=self.images.driver.context.name,
                log_driver=log_config.type,
                path=path,
                args=args,
                config=container_create.with_hostname(merged, container_id, host_config),
                host_config=host_config,
                networks=networks,
            )
            container = await self._make(container, image)
        except BaseException:
            if self._names.get(name) == container_id:
                del self._names[name]
            raise
        self.remember(container)
        await self.event(container, "create")
        return container_id, warnings

    def _choose_runtime(self, host_config: HostConfig, platform: Platform) -> str:
        if host_config.runtime:
            return self.plugins.runtime_name(host_config.runtime)
        return self.plugins.runtime_for(platform)

    def _log_config(self, asked: LogConfig) -> LogConfig:
        if not asked.type or asked.type == self.settings.log_driver:
            return LogConfig(type=self.settings.log_driver, config={**self.settings.log_options, **asked.config})
        return asked

    def _check_log(self, log_config: LogConfig) -> None:
        self.plugins.log(log_config.type).validate(log_config.config)

    def _reserve(self, name: str, container_id: str) -> str:
        if not name:
            name = container_create.random_name(self._names.__contains__)
        holder = self._names.setdefault(name, container_id)
        if holder != container_id:
            raise AlreadyExists(_taken(name, holder))
        return name

    async def _make(self, container: Container, image: Image | None) -> Container:
        """Directory, root file system, volumes, record; all or nothing. The directory comes first: the daemon's next
        start removes what a directory without a record belongs to."""
        directory = self.starter.directory(container.id)
        await self.workers.call(directory.mkdir, 0o710, True)
        try:
            await self.images.create_rootfs(container.id, image, container.host_config.storage_opt or {})
            mounts = await self.volumes.resolve(container.id, container.config, container.host_config, self.get)
            container = msgspec.structs.replace(container, mounts=mounts)
            if self.volumes.may_need_content(container):
                rootfs = await self.images.mount_rootfs(container.id)
                try:
                    await self.volumes.populate(container, rootfs)
                finally:
                    await self.images.unmount_rootfs(container.id)
            await self._store.commit(
                Put(KIND, container.id, msgspec.json.encode(container)), Name(KIND, container.name, container.id)
            )
        except BaseException as error:
            with contextlib.suppress(Exception):  # logged there; the first error is what the client needs
                await self.discard(container)
            if isinstance(error, NameTaken):
                raise AlreadyExists(_taken(container.name, error.holder)) from None
            raise
        return container

    async def discard(self, container: Container, *, anonymous: bool = True) -> None:
        """Delete all that belongs to a container but its record. Idempotent; raises the first error at the end."""
        errors: list[Exception] = []
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: self.volumes.release(container, anonymous=anonymous),
            lambda: self.images.remove_rootfs(container.id),
            lambda: self.workers.call(self._delete_files, container),
        )
        for step in steps:
            try:
                await step()
            except NotFound:
                continue
            except Exception as error:
                log.exception("deleting a container's things", extra={"container": container.id})
                errors.append(error)
        if errors:
            raise errors[0]

    def _delete_files(self, container: Container) -> None:
        try:
            self.plugins.log(container.log_driver).delete(self.starter.log_target(container))
        except EngineError:
            log.warning("a log could not be deleted by its driver", extra={"container": container.id})
        shutil.rmtree(self.starter.directory(container.id), ignore_errors=True)

    # -- start -------------------------------------------------------------------------------------------------------

    async def start(self, ref: str, *, detach_keys: str | None = None) -> None:
        """Start a container that is not running; `NotModified` when it is."""
        live = self._live[self.get(ref).id]
        async with live.lock:
            container = self._startable(ref, live)
            if is_running(container):
                raise NotModified("")
            await settle(live.watch)
            if live.id not in self._records:  # it was --rm
                raise NotFound(f"No such container: {ref}")
            live.tracker = RestartTracker()
            try:
                await self._bring_up(live, restart_count=0)
            except Exception:  # whatever broke the start: --rm holds, and its waiters are told
                if container.host_config.auto_remove:
                    await self._remove(live, volumes=True)
                raise

    def _startable(self, ref: str, live: Live) -> Container:
        container = self._records.get(live.id)
        if container is None:
            raise NotFound(f"No such container: {ref}")
        if container.state.status == "paused":
            raise Conflict("cannot start a paused container, try unpause instead")
        if container.state.status in ("removing", "dead"):
            raise Conflict("container is marked for removal and cannot be started")
        return container

    async def _bring_up(self, live: Live, *, restart_count: int) -> None:
        """Start the process and record it; on failure record that. The caller holds the lock."""
        container = self._records[live.id]
        up: Running | None = None
        try:
            up = await self.starter.bring_up(container, find=self.get, attach=lambda m: self._attach_pending(live, m))
            state = ContainerState(
                status="running",
                pid=up.pid,
                started_at=now(),
                restart_count=restart_count,
                boot_id=up.boot_id,
                start_ticks=up.start_ticks,
                finished_at=container.state.finished_at,
            )
            container = with_attachment(self._records[live.id], up.attachment)
            container = await self.save(msgspec.structs.replace(container, state=state))
        except BaseException as error:
            if up is not None:
                await up.monitor.kill(SIGKILL)
                await self._gone(up.monitor, KILL_PATIENCE)
                await self.starter.tear_down(container)
            await self._attach_pending(live, None)
            await self._record_failure(live, error)
            raise
        live.monitor = up.monitor
        await self.event(container, "start")
        self.adopt(live, up.monitor)

    async def _record_failure(self, live: Live, error: BaseException) -> None:
        state = self._records[live.id].state
        status = "created" if state.started_at == ZERO_TIME else "exited"
        try:
            await self.change_state(
                live.id, status=status, pid=0, exit_code=failure_code(error), error=str(error), oom_killed=False
            )
        except EngineError:
            log.exception("recording a failed start", extra={"container": live.id})

    async def _attach_pending(self, live: Live, monitor: Monitor | None) -> None:
        """Hand the clients that came before the process to its monitor; None sends them away."""
        pending, live.pending = live.pending, []
        for give in pending:
            try:
                await give(monitor)
            except Exception:
                log.exception("attaching a waiting client", extra={"container": live.id})

    # -- exit --------------------------------------------------------------------------------------------------------

    def adopt(self, live: Live, monitor: Monitor) -> None:
        """The container runs, and from now on this monitor's exit is its exit."""
        live.monitor = monitor
        monitor.on_oom = lambda: self._told_of_oom(live)
        live.watch = self.workers.spawn(self._watch(live, monitor), name=f"container {live.id[:12]}")
        for callback in self.started:
            callback(self._records[live.id])

    def _told_of_oom(self, live: Live) -> None:
        container = self._records.get(live.id)
        if container is not None:
            self.workers.spawn(self.event(container, "oom"), name=f"oom {live.id[:12]}")

    async def _watch(self, live: Live, monitor: Monitor) -> None:
        exit_ = await monitor.exit
        monitor.close()
        await self.exited(live, exit_)

    async def exited(self, live: Live, exit_: Exit) -> None:
        """Record an exit, tell of it, clean up; then remove or restart as the container says."""
        container = self._records[live.id]
        state, policy = container.state, container.host_config.restart_policy
        finished_ns = exit_.finished_ns or time.time_ns()
        ran_for = (finished_ns - parse_rfc3339(state.started_at)) / 10**9
        decision = live.tracker.decide(
            policy,
            exit_code=exit_.code,
            stopped_by_user=state.manually_stopped,
            ran_for=ran_for,
            unhealthy=live.unhealthy,
        )
        live.unhealthy = False
        ended = msgspec.structs.replace(
            without_attachment(container),
            state=msgspec.structs.replace(
                state,
                status="restarting" if decision.restart else "exited",
                pid=0,
                exit_code=exit_.code,
                oom_killed=exit_.oom_killed,
                finished_at=rfc3339(finished_ns),
                error=exit_.error,
                restart_count=state.restart_count + decision.restart,
            ),
        )
        live.monitor = None
        await self.save(ended)
        for condition in ("next-exit", "not-running"):  # a container that waits for its restart does not run either
            live.answer(condition, exit_.code)
        seconds = str(max(0, int(ran_for)))
        await self.event(ended, "die", exitCode=str(exit_.code), execDuration=seconds)
        for callback in self.ended:
            callback(ended)
        try:
            await self.starter.tear_down(container)
        except Exception:
            log.exception("cleaning up after an exit", extra={"container": live.id})
        if decision.restart:
            live.restart = self.workers.spawn(self._restart_later(live, decision.delay), name=f"restart {live.id[:12]}")
        elif ended.host_config.auto_remove and not live.keep and not live.removing:
            self.workers.spawn(self._auto_remove(live), name=f"remove {live.id[:12]}")

    async def _restart_later(self, live: Live, delay: float) -> None:
        await self._sleep(delay)
        async with live.lock:
            container = self._records.get(live.id)
            if container is None or container.state.status != "restarting":
                return
            try:
                await self._bring_up(live, restart_count=container.state.restart_count)
            except EngineError:
                log.exception("restarting a container", extra={"container": live.id})
                failed = self._records[live.id].state
                live.answer("not-running", failed.exit_code, failed.error)

    def became_unhealthy(self, container_id: str) -> None:
        """A health check failed for good: end the container if its restart policy is to start it again then."""
        live, container = self._live[container_id], self._records[container_id]
        if container.host_config.restart_policy.name == "on-unhealthy" and live.monitor is not None:
            live.unhealthy = True
            self.workers.spawn(self._end_unhealthy(live, live.monitor), name=f"unhealthy {live.id[:12]}")

    async def _end_unhealthy(self, live: Live, monitor: Monitor) -> None:
        container = self._records[live.id]
        await self._signal(container, monitor, container_create.stop_signal(container))
        timeout = container.config.stop_timeout
        patience = self.settings.stop_timeout if timeout is None else timeout
        if not await self._gone(monitor, None if patience < 0 else patience):
            await self._signal(container, monitor, SIGKILL)

    async def _auto_remove(self, live: Live) -> None:
        async with live.lock:
            container = self._records.get(live.id)
            if container is not None and not is_running(container):
                await self._remove(live, volumes=True)

    # -- stop, kill, restart -----------------------------------------------------------------------------------------

    async def stop(self, ref: str, *, timeout: int | None = None, signal: str | None = None) -> None:
        """Stop signal, ``timeout`` seconds of patience (negative: any), SIGKILL. `NotModified` when not running.
        Returns when the container's resources have been given back."""
        live = self._live[self.get(ref).id]
        number = parse_signal(signal) if signal else None
        if not await self._stop(live, timeout, number):
            raise NotModified("")

    async def _stop(self, live: Live, timeout: int | None, number: int | None) -> bool:
        async with live.lock:  # a start that is under way comes first
            container = self._records.get(live.id)
            if container is None or not is_running(container):
                return False
            if container.state.status == "restarting":
                await self._cancel_restart(live)
                return True
            container = await self.change_state(live.id, manually_stopped=True)
            watch, monitor = live.watch, live.monitor
            if monitor is not None:
                await self._signal(container, monitor, number or container_create.stop_signal(container))
        if timeout is None:
            timeout = container.config.stop_timeout
        if timeout is None:
            timeout = self.settings.stop_timeout
        if watch is not None and monitor is not None:
            if not await self._gone(monitor, None if timeout < 0 else timeout):
                await self._signal(container, monitor, SIGKILL)
                await self._gone(monitor, KILL_PATIENCE)
            await settle(watch)
        if live.id in self._records:
            await self.event(self._records[live.id], "stop")
        return True

    @staticmethod
    async def _gone(monitor: Monitor, patience: float | None) -> bool:
        done, _ = await asyncio.wait((monitor.exit,), timeout=patience)
        return bool(done)

    async def _cancel_restart(self, live: Live) -> None:
        """A container that waits for its restart will not start again. The caller holds the lock."""
        if live.restart is not None:
            live.restart.cancel()
            live.restart = None
        container = await self.change_state(live.id, status="exited", manually_stopped=True)
        live.answer("not-running", container.state.exit_code)
        await self.event(container, "stop")

    async def _signal(self, container: Container, monitor: Monitor, number: int) -> bool:
        """Send a signal; what makes a container end also thaws it. False when it has ended meanwhile."""
        try:
            await monitor.kill(number)
        except (Conflict, Unavailable):
            return False
        if container.state.status == "paused" and number in (SIGKILL, container_create.stop_signal(container)):
            await self.workers.call(self._resume, container)
        await self.event(container, "kill", signal=str(number))
        return True

    def _resume(self, container: Container) -> None:
        self.runtime(container).resume(self.starter.bundle(container.id))

    async def kill(self, ref: str, signal: str = "KILL") -> None:
        """Send a signal; after SIGKILL wait for the end. `Conflict` when the container is not running."""
        number = parse_signal(signal or "KILL")
        live = self._live[self.get(ref).id]
        async with live.lock:
            container = self._records.get(live.id)
            if container is None or not is_running(container):
                raise Conflict(f"container {live.id} is not running")
            if container.state.status == "restarting":
                return await self._cancel_restart(live)
            if number in (SIGKILL, container_create.stop_signal(container)):
                container = await self.change_state(live.id, manually_stopped=True)
            watch, monitor = live.watch, live.monitor
            if monitor is None:
                return None
            if not await self._signal(container, monitor, number):
                raise Conflict(f"container {live.id} is not running")
        if number == SIGKILL and await self._gone(monitor, KILL_PATIENCE):
            await settle(watch)
        return None

    async def restart(self, ref: str, *, timeout: int | None = None, signal: str | None = None) -> None:
        """Stop, if it runs, and start again."""
        live = self._live[self.get(ref).id]
        number = parse_signal(signal) if signal else None
        live.keep = True
        try:
            await self._stop(live, timeout, number)
            async with live.lock:
                self._startable(ref, live)
                live.tracker = RestartTracker()
                await self._bring_up(live, restart_count=0)
        finally:
            live.keep = False
        await self.event(self._records[live.id], "restart")

    # -- remove ------------------------------------------------------------------------------------------------------

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None:
        """Delete a container, with ``force`` also a running one; ``volumes`` takes its anonymous volumes with it."""
        if link:
            return await container_links.remove(self, ref)
        container = self.get(ref)
        live = self._live[container.id]
        if live.removing:
            raise Conflict(f"removal of container {ref} is already in progress")
        if not force:
            _refuse_running(container)
        live.removing = True
        try:
            async with live.lock:
                current = self._records.get(live.id)
                if current is None:
                    raise NotFound(f"No such container: {ref}")
                if not force:
                    _refuse_running(current)
                if is_running(current):
                    await self._kill_for_removal(live, current)
                await self._remove(live, volumes=volumes)
        finally:
            live.removing = False

    async def finish_removal(self, container_id: str) -> None:
        """Go on with a removal an earlier daemon had begun."""
        live = self._live[container_id]
        async with live.lock:
            await self._remove(live, volumes=self._records[container_id].host_config.auto_remove)

    async def _kill_for_removal(self, live: Live, container: Container) -> None:
        watch, monitor = live.watch, live.monitor  # now: it may end while the lines below wait
        if container.state.status == "restarting":
            await self._cancel_restart(live)
        elif monitor is not None:
            await self.change_state(live.id, manually_stopped=True)
            await self._signal(container, monitor, SIGKILL)
            if not await self._gone(monitor, KILL_PATIENCE):
                raise EngineError(
                    f"cannot remove container {container.id}: could not kill container: "
                    "tried to kill container, but did not receive an exit event"
                )
            await settle(watch)

    async def _remove(self, live: Live, *, volumes: bool) -> None:
        """Delete a container that is not running. The caller holds the lock. A failure leaves it ``dead``."""
        await settle(live.watch)
        container = await self.change_state(live.id, status="removing")
        try:
            await self.discard(container, anonymous=volumes)
        except Exception:
            await self.change_state(live.id, status="dead")
            raise
        await self._store.commit(
            Delete(KIND, container.id), Delete(HEALTH_KIND, container.id), Unname(KIND, container.name)
        )
        self.forget(container)
        await self._attach_pending(live, None)
        await self.event(container, "destroy")
        for condition in ("next-exit", "not-running", "removed"):
            live.answer(condition, container.state.exit_code)  # the removal went well, whatever came before it

    async def prune(self, filters: Filters) -> dict[str, Any]:
        """Remove all stopped containers that match; the body of ``/containers/prune``."""
        filters.check(_PRUNE_FILTERS)
        until = filters.get("until") or []
        if len(until) > 1:
            raise InvalidParameter("more than one until filter specified")
        limit = parse_timestamp(until[0]) if until else None
        deleted, space = [], 0
        for container in list(self.all()):
            if (
                is_running(container)
                or self._live[container.id].lock.locked()
                or (limit is not None and parse_rfc3339(container.created) > limit)
                or not filters.labels(container.config.labels)
                or not filters.without_labels(container.config.labels)
            ):
                continue
            size = await self.workers.call(self._usage, container)
            try:
                await self.remove(container.id)
            except (Conflict, NotFound):
                continue
            deleted.append(container.id)
            space += size
        await self._events.publish("container", "prune", "", {"reclaimed": str(space)})
        return {"ContainersDeleted": deleted or None, "SpaceReclaimed": space}

    # -- the rest ----------------------------------------------------------------------------------------------------

    async def rename(self, ref: str, new_name: str) -> None:
        """Give a container another name."""
        container = self.get(ref)
        if not new_name:
            raise InvalidParameter("Neither old nor new names may be empty")
        name = container_create.check_name(new_name)
        live = self._live[container.id]
        async with live.lock:
            container = self.get(live.id)
            old = container.name
            if name == old:
                raise InvalidParameter("Renaming a container with the same name as its current name")
            holder = self._names.setdefault(name, live.id)
            if holder != live.id:
                raise AlreadyExists(f"Error when allocating new name: {_taken(name, holder)}")
            renamed = self._records[live.id] = self.networks.named(msgspec.structs.replace(container, name=name))
            try:
                await self._store.commit(
                    Put(KIND, live.id, msgspec.json.encode(renamed)), Name(KIND, name, live.id), Unname(KIND, old)
                )
            except BaseException:
                self._records[live.id] = msgspec.structs.replace(self._records[live.id], name=old)
                del self._names[name]
                raise
            del self._names[old]
            await self.networks.renamed(renamed)
        await self.event(renamed, "rename", oldName=f"/{old}")

    def wait(self, ref: str, condition: str = "not-running") -> Waiter:
        """A future of (exit code, error). Conditions: ``not-running`` (done at once when it is), ``next-exit``,
        ``removed``. Cancel it to stop waiting."""
        container = self.get(ref)
        live = self._live[container.id]
        if condition not in live.waiters:
            raise InvalidParameter(f'invalid condition: "{condition}"')
        waiter: Waiter = asyncio.get_running_loop().create_future()
        if condition == "not-running" and not is_running(container):
            waiter.set_result((container.state.exit_code, container.state.error))
        else:
            live.waiters[condition].add(waiter)
            waiter.add_done_callback(lambda done: live.waiters[condition].discard(done))
        return waiter

    async def attach(
        self,
        ref: str,
        connection: container_attach.Connection,
        *,
        logs: bool = False,
        stream: bool = True,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        detach_keys: str = "",
    ) -> None:
        """Serve a hijacked connection (see `container_attach.attach`)."""
        await container_attach.attach(
            self,
            ref,
            connection,
            logs=logs,
            stream=stream,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            detach_keys=detach_keys,
        )

    def logs(self, ref: str, request: container_logs.LogRequest) -> AsyncIterator[bytes]:
        """Chunks of the container's log (see `container_logs.stream`)."""
        return container_logs.stream(self, self.get(ref), request)

    async def resize(self, ref: str, height: int, width: int) -> None:
        """Tell the container's terminal its size."""
        container = self.get(ref)
        monitor = self.monitor(container.id)
        if monitor is None:
            raise Conflict(f"Container {container.id} is not running")
        await monitor.resize(height, width)
        await self.event(container, "resize", height=str(height), width=str(width))

    async def pause(self, ref: str) -> None:
        """Freeze all of the container's processes."""
        await self._freeze(ref, pause=True)

    async def unpause(self, ref: str) -> None:
        """Undo `pause`."""
        await self._freeze(ref, pause=False)

    async def _freeze(self, ref: str, *, pause: bool) -> None:
        live = self._live[self.get(ref).id]
        async with live.lock:
            container = self.get(live.id)
            status = container.state.status
            if pause and status == "paused":
                raise Conflict(f"Container {live.id} is already paused")
            if pause and status == "restarting":
                raise Conflict(f"Container {live.id} is restarting, wait until the container is running")
            if pause and status != "running":
                raise Conflict(f"Container {container.id} is not running")
            if not pause and status != "paused":
                raise Conflict(f"Container {live.id} is not paused")

            def act() -> None:
                runtime = self.runtime(container)
                (runtime.pause if pause else runtime.resume)(self.starter.bundle(live.id))

            await self.workers.call(act)
            if self._records[live.id].state.status == status:  # it may have ended meanwhile
                await self.change_state(live.id, status="paused" if pause else "running")
        await self.event(container, "pause" if pause else "unpause")

    async def connect(self, network: str, ref: str, settings: EndpointSettings) -> None:
        """Connect a container, running or not, to one more network."""
        live = self._live[self.get(ref).id]
        async with live.lock:
            container = self.get(live.id)
            files = self.networks.files_now(container)
            settings = await self.networks.connect(network, container, settings)
            await self._save_networks({**container.networks, self.networks.get(network).name: settings}, live)
            await self.networks.update_files(self.get(live.id), files, self.starter.directory(live.id))

    async def disconnect(self, network: str, ref: str, *, force: bool = False) -> None:
        """Take a container off a network."""
        live = self._live[self.get(ref).id]
        async with live.lock:
            container = self.get(live.id)
            files = self.networks.files_now(container)
            await self.networks.disconnect(network, container, force=force)
            try:
                name = self.networks.get(network).name
            except NotFound:
                name = network
            await self._save_networks({k: v for k, v in container.networks.items() if k != name}, live)
            await self.networks.update_files(self.get(live.id), files, self.starter.directory(live.id))

    async def _save_networks(self, networks: dict[str, EndpointSettings], live: Live) -> None:
        container = msgspec.structs.replace(self._records[live.id], networks=networks)
        attachment = self.networks.attachment(container)
        if attachment is not None:
            container = msgspec.structs.replace(container, ports=dict(attachment.ports))
        await self.save(container)

    async def update(self, ref: str, changes: HostConfig) -> list[str]:
        """Change limits and restart policy, of a running container at once; what is empty stays. Returns warnings."""
        live = self._live[self.get(ref).id]
        if changes.restart_policy.name:
            container_create.check_policy(changes.restart_policy)
        async with live.lock:
            container = self.get(live.id)
            container_create.check_restart_on_health(changes.restart_policy, container.config)
            if container.state.status in ("removing", "dead"):
                raise Conflict(
                    f'Cannot update container {live.id}: container is marked for removal and cannot be "update"'
                )
            if container.host_config.auto_remove and changes.restart_policy.name not in ("", "no"):
                raise InvalidParameter(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            default = HostConfig()
            given = [name for name in container_create.UPDATABLE if getattr(changes, name) != getattr(default, name)]
            host_config = container_create.effective(changes, given, container.host_config)
            resources.validate(host_config, self.settings.host, update=True)
            if container.state.status in ("running", "paused") and set(given) - {"restart_policy"}:
                limits = resources.resources(host_config, self.settings.host)

                def act() -> None:
                    self.runtime(container).update(self.starter.bundle(live.id), limits)

                await self.workers.call(act)
            await self.save(msgspec.structs.replace(self._records[live.id], host_config=host_config))
        if changes.restart_policy != RestartPolicy():
            live.tracker = RestartTracker()
        await self.event(container, "update")
        return []


def _taken(name: str, holder: str) -> str:
    return (
        f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )


def _refuse_running(container: Container) -> None:
    match container.state.status:
        case "running" | "restarting":
            raise Conflict(
                f"You cannot remove a running container {container.id}. "
                "Stop the container before attempting removal or force remove"
            )
        case "paused":
            raise Conflict(
                f"You cannot remove a paused container {container.id}. "
                "Unpause and then stop the container before attempting removal or force remove"
            )
