"""Health checks: the command a container names is run in it again and again, and its results become the health.

The rules are dockerd's: the first check comes one interval after the start; within the start period failures do not
count and the start interval applies until the first success; `retries` failures in a row make a container unhealthy,
one success healthy. Ours is that the health survives the daemon: a change is durable, and a daemon that starts anew
goes on with what it was instead of ``starting``. A container with the restart policy ``on-unhealthy`` is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from engine.containers.attach import Client
from engine.containers.execs import ExecConfig
from engine.containers.records import HEALTH_KIND as KIND
from engine.errors import EngineError
from engine.model.container import Container, HealthConfig
from engine.store import Put
from engine.timestamps import now, parse_rfc3339

if TYPE_CHECKING:
    from engine.containers import Containers
    from engine.containers.execs import Execs
    from engine.store import Store

__all__ = ["Health", "HealthChecks", "Result", "command"]

log = logging.getLogger(__name__)

SECOND = 10**9
INTERVAL = TIMEOUT = 30 * SECOND
START_INTERVAL = 5 * SECOND
RETRIES = 3
KEPT = 5  # results
OUTPUT = 4096  # bytes kept of a check's output
_FRAME = struct.Struct(">BxxxL")
_DEFAULT_SHELL = ("/bin/sh", "-c")


class Result(msgspec.Struct, frozen=True, rename="pascal"):
    """One check: times in RFC 3339, exit code (-1: it did not end by itself), output."""

    start: str
    end: str
    exit_code: int
    output: str


class Health(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``State.Health`` of a container. ``run`` is the start it belongs to."""

    status: str = "starting"
    failing_streak: int = 0
    log: list[Result] = []
    run: str = ""

    def after(self, result: Result, config: HealthConfig, started_ns: int) -> Health:
        """The health once ``result`` is known."""
        kept = [*self.log[-KEPT + 1 :], result]
        if result.exit_code == 0:
            return msgspec.structs.replace(self, status="healthy", failing_streak=0, log=kept)
        status, streak = self.status, self.failing_streak
        if status != "starting" or parse_rfc3339(result.start) - started_ns >= config.start_period:
            streak += 1
            if streak >= (config.retries or RETRIES):
                status = "unhealthy"
        return msgspec.structs.replace(self, status=status, failing_streak=streak, log=kept)


def command(container: Container) -> list[str] | None:
    """What a check of the container runs; None when it has no checks."""
    test = (container.config.healthcheck or HealthConfig()).test
    match test:
        case ["CMD", *words] if words:
            return words
        case ["CMD-SHELL", *words] if words:
            return [*(container.config.shell or _DEFAULT_SHELL), *words]
    return None


def pause_before_next(config: HealthConfig, status: str, running_ns: int) -> float:
    """Seconds until the next check of a container that has run for ``running_ns``."""
    if running_ns < config.start_period and status == "starting":
        return (config.start_interval or START_INTERVAL) / SECOND
    return (config.interval or INTERVAL) / SECOND


class HealthChecks:
    """The checks of all running containers: one task for each that has any."""

    def __init__(
        self,
        *,
        containers: Containers,
        execs: Execs,
        store: Store,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._containers = containers
        self._execs = execs
        self._store = store
        self._sleep = sleep
        self._health: dict[str, Health] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        containers.health = self.view
        containers.started.append(self._begin)
        containers.ended.append(self._end)
        containers.gone.append(self._forget)

        for container_id, body in store.load(KIND).items():
            try:
                self._health[container_id] = msgspec.json.decode(body, type=Health)
            except msgspec.DecodeError:
                log.exception("a container's health cannot be read", extra={"container": container_id})

    def view(self, container_id: str) -> Mapping[str, Any] | None:
        """``State.Health`` of inspect; None for a container that has never been checked."""
        health = self._health.get(container_id)
        if health is None:
            return None
        return {
            "Status": health.status,
            "FailingStreak": health.failing_streak,
            "Log": [msgspec.to_builtins(result) for result in health.log],
        }

    # -- the containers' life -------------------------------------------------------------------------------------

    def _begin(self, container: Container) -> None:
        words = command(container)
        if words is None:
            return
        run = container.state.started_at
        known = self._health.get(container.id)
        if known is None or known.run != run:
            self._set(container.id, Health(run=run, log=known.log if known else []))
        self._stop(container.id)
        self._tasks[container.id] = self._containers.workers.spawn(
            self._check_forever(container.id, words, run), name=f"health {container.id[:12]}"
        )

    def _end(self, container: Container) -> None:
        self._stop(container.id)
        health = self._health.get(container.id)
        if health is not None and health.status != "unhealthy":  # as dockerd shows what has stopped
            self._set(container.id, msgspec.structs.replace(health, status="unhealthy"))

    def _forget(self, container_id: str) -> None:
        self._stop(container_id)
        self._health.pop(container_id, None)

    def _stop(self, container_id: str) -> None:
        task = self._tasks.pop(container_id, None)
        if task is not None:
            task.cancel()

    def _set(self, container_id: str, health: Health) -> None:
        self._health[container_id] = health
        self._store.commit_soon(Put(KIND, container_id, msgspec.json.encode(health)))

    # -- checking -------------------------------------------------------------------------------------------------

    async def _check_forever(self, container_id: str, words: list[str], run: str) -> None:
        started_ns = parse_rfc3339(run)
        while True:
            container = self._containers.find(container_id)
            if container is None or container.config.healthcheck is None:
                return
            config = container.config.healthcheck
            await self._sleep(pause_before_next(config, self._health[container_id].status, time.time_ns() - started_ns))
            container = self._containers.find(container_id)
            if container is None or container.state.started_at != run:
                return
            if container.state.status != "running":  # paused: no check can run, and none is due
                continue
            result = await self._check(container, words, config)
            before = self._health[container_id]
            after = before.after(result, config, started_ns)
            if after.status == before.status:
                self._health[container_id] = after
                continue
            await self._store.commit(Put(KIND, container_id, msgspec.json.encode(after)))
            self._health[container_id] = after
            await self._containers.event(container, f"health_status: {after.status}")
            if after.status == "unhealthy":
                self._containers.became_unhealthy(container_id)

    async def _check(self, container: Container, words: list[str], config: HealthConfig) -> Result:
        start = now()
        try:
            code, output = await self._run(container, words, (config.timeout or TIMEOUT) / SECOND)
        except EngineError as error:
            code, output = -1, str(error)
        return Result(start, now(), code, output)

    async def _run(self, container: Container, words: list[str], timeout: float) -> tuple[int, str]:
        """Run the check in the container; the exit code and the output, or -1 and why there is none."""
        exec_id = await self._execs.create(
            container.id, ExecConfig(cmd=words, attach_stdout=True, attach_stderr=True, user=container.config.user)
        )
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        output = _Output()
        reading = asyncio.ensure_future(output.read(ours))
        try:
            async with asyncio.timeout(timeout):
                await self._execs.start(exec_id, Client(_Pipe(theirs)))
                code = await self._execs.finished(exec_id)
                await asyncio.wait((reading,))
        except TimeoutError:
            await self._execs.kill(exec_id, 9)
            await self._execs.finished(exec_id)
            reason = f"Health check exceeded timeout ({_duration(timeout)})"
            return -1, f"{reason}: {output.text()}" if output.text() else reason
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            ours.close()
            theirs.close()
            self._execs.forget(exec_id)
        return code, output.text()


class _Pipe:
    """Our end of an exec's streams, in the shape of a hijacked connection."""

    leftover = b""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock


class _Output:
    """Takes the frames of a stream apart and keeps the beginning of what is in them."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self._kept = bytearray()
        self._more = False

    async def read(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(sock, 65536)
            except OSError:
                return
            if not data:
                return
            self._raw += data
            self._take()

    def _take(self) -> None:
        while len(self._raw) >= _FRAME.size:
            _, size = _FRAME.unpack_from(self._raw)
            end = _FRAME.size + size
            if len(self._raw) < end:
                return
            room = OUTPUT - len(self._kept)
            self._kept += self._raw[_FRAME.size : min(end, _FRAME.size + room)]
            self._more |= size > room
            del self._raw[:end]

    def text(self) -> str:
        return self._kept.decode(errors="replace") + ("..." if self._more else "")


def _duration(seconds: float) -> str:
    """As Go prints a duration."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest:g}s"
