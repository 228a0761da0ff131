"""What a starting daemon does about the containers an earlier one left: adopt, record, finish, remove, restart.

The store says what was acknowledged, the monitors and their exit files say what is, bundles say what may have to be
torn down and directories without a record what was never acknowledged. Nothing of the four is trusted alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

from engine.containers.restart import restarts_at_boot
from engine.errors import EngineError, NotFound
from engine.model.container import ZERO_TIME, Config, Container, HostConfig
from engine.monitor.client import LOST_MONITOR, Exit, Monitor, kill_orphan, read_exit
from engine.names import is_id
from engine.timestamps import now, parse_rfc3339, rfc3339

if TYPE_CHECKING:
    from engine.containers import Containers

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

_AT_ONCE = 16


class Reconciler:
    """One run of it, for one daemon start."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self._starter = containers.starter
        self._workers = containers.workers
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Returns when every container's record is true; restarts and removals go on in the background."""
        containers = self._containers
        left, directories = await self._workers.call(self._look)
        unknown = {name for name in (*left, *directories) if is_id(name)} - {c.id for c in containers.all()}
        await asyncio.gather(
            *(self._guard(self._sweep, stub(container_id)) for container_id in unknown),
            *(self._guard(self._settle, container, container.id in left) for container in containers.all()),
        )
        for container in containers.all():
            state = container.state
            if (
                state.status == "exited"
                and state.started_at != ZERO_TIME
                and restarts_at_boot(
                    container.host_config.restart_policy,
                    exit_code=state.exit_code,
                    stopped_by_user=state.manually_stopped,
                    count=state.restart_count,
                )
            ):
                self._workers.spawn(self._start(container.id), name=f"start {container.id[:12]}")

    def _look(self) -> tuple[set[str], list[str]]:
        root, state = self._starter.settings.root, self._starter.settings.state
        for directory in (root, state):
            directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        return set(self._starter.left_behind()), os.listdir(root)

    async def _guard(self, step: object, container: Container, *args: object) -> None:
        """One container's trouble is its own."""
        async with self._turns:
            try:
                await step(container, *args)  # type: ignore[operator]
            except Exception:
                log.exception("reconciling a container", extra={"container": container.id})

    async def _start(self, container_id: str) -> None:
        async with self._turns:
            try:
                await self._containers.start(container_id)
            except EngineError:
                log.exception("starting a container by its restart policy", extra={"container": container_id})

    async def _sweep(self, container: Container) -> None:
        """Something of a container nobody was told of, or of one whose removal had been acknowledged."""
        await self._workers.call(kill_orphan, self._starter.directory(container.id))
        await self._starter.tear_down(container)
        await self._containers.discard(container)

    async def _settle(self, container: Container, was_up: bool) -> None:
        status = container.state.status
        if status == "removing":
            await self._finish_removal(container, was_up)
        elif status in ("running", "paused") or was_up:
            await self._meet(container)
        elif status == "restarting":
            await self._containers.change_state(container.id, status="exited")

    async def _finish_removal(self, container: Container, was_up: bool) -> None:
        if was_up:
            await self._starter.tear_down(container)
        await self._containers.finish_removal(container.id)

    async def _meet(self, container: Container) -> None:
        """A container that had a process, or may have: find the process or how it ended."""
        live = self._containers.live(container.id)
        directory = self._starter.directory(container.id)
        listed = container.state.status in ("running", "paused")
        try:
            monitor = await Monitor.connect(directory)
        except NotFound:
            exit_ = await self._workers.call(_find_exit, directory)
            if listed or _is_news(container, exit_):
                await self._containers.exited(live, exit_ or _lost())
            else:
                await self._starter.tear_down(container)
                if container.state.status == "restarting":
                    await self._containers.change_state(container.id, status="exited")
            return
        if monitor.exit.done():
            await self._containers.exited(live, monitor.exit.result())
            monitor.close()
        elif monitor.pid is None:  # the daemon died between making the monitor and starting the process
            monitor.close()
            await self._starter.tear_down(container)
        else:
            if not listed:  # ... or between starting the process and recording it
                await self._containers.change_state(
                    container.id, status="running", pid=monitor.pid, started_at=now(), exit_code=0, error=""
                )
            self._containers.adopt(live, monitor)


def _find_exit(directory: os.PathLike[str]) -> Exit | None:
    from pathlib import Path

    kill_orphan(Path(directory))
    return read_exit(Path(directory))


def _is_news(container: Container, exit_: Exit | None) -> bool:
    return exit_ is not None and exit_.finished_ns > parse_rfc3339(container.state.finished_at)


def _lost() -> Exit:
    return Exit(LOST_MONITOR, finished_ns=time.time_ns(), error="the container ended while nobody watched")


def stub(container_id: str) -> Container:
    """A record for what has none: enough to find and delete what belongs to the id."""
    return Container(
        id=container_id,
        name="",
        created=rfc3339(0),
        image_id="",
        chain_id=None,
        platform="linux",
        runtime="",
        store="",
        log_driver="json-file",
        path="",
        args=[],
        config=Config(),
        host_config=HostConfig(),
    )
