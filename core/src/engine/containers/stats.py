"""`docker stats` and `docker top`: what a running container uses, and its processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import Conflict, EngineError, InvalidParameter, NotFound
from engine.timestamps import rfc3339

if TYPE_CHECKING:
    from engine.containers import Containers
    from engine.model.container import Container

__all__ = ["stats", "top"]

_INTERVAL = 1.0
_ZERO = "0001-01-01T00:00:00Z"
_NO_CPU: dict[str, Any] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}
_NO_BLKIO = dict.fromkeys(
    (
        "io_service_bytes_recursive",
        "io_serviced_recursive",
        "io_queue_recursive",
        "io_service_time_recursive",
        "io_wait_time_recursive",
        "io_merged_recursive",
        "io_time_recursive",
        "sectors_recursive",
    )
)
_NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


async def stats(
    containers: Containers, ref: str, *, stream: bool, one_shot: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Samples in the API's form, one a second while the container exists, or one.

    A single sample carries the one a second before as ``precpu_stats`` unless it is ``one_shot``. A container that
    does not run gives empty samples, as with dockerd.
    """
    container_id = containers.get(ref).id
    before: dict[str, Any] | None = None
    if not stream and not one_shot and containers.monitor(container_id) is not None:
        before = await _sample(containers, containers.get(container_id))
        await asyncio.sleep(_INTERVAL)
    while True:
        try:
            container = containers.get(container_id)
        except NotFound:
            return
        sample = await _sample(containers, container)
        yield _with_previous(sample, before)
        if not stream:
            return
        before = sample
        await asyncio.sleep(_INTERVAL)


async def _sample(containers: Containers, container: Container) -> dict[str, Any]:
    identity = {"name": f"/{container.name}", "id": container.id}
    empty = {
        "read": _ZERO,
        "pids_stats": {},
        "blkio_stats": _NO_BLKIO,
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _NO_CPU,
        "memory_stats": {},
    }
    if container.state.status not in ("running", "paused"):
        return empty | identity
    pid = container.state.pid

    def measure() -> dict[str, Any]:
        used = dict(containers.runtime(container).stats(containers.starter.bundle(container.id)))
        cpu = used["cpu_stats"] = dict(used.get("cpu_stats") or _NO_CPU)
        cpu.setdefault("system_cpu_usage", _system_cpu())
        cpu.setdefault("online_cpus", os.cpu_count() or 1)
        if container.sandbox_key:
            used["networks"] = _interfaces(pid)
        return used

    try:
        used = await containers.workers.call(measure)
    except (EngineError, OSError):  # it ended while we looked
        return empty | identity
    return empty | {"read": rfc3339(time.time_ns())} | used | identity


def _with_previous(sample: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    return {
        **sample,
        "preread": before["read"] if before else _ZERO,
        "precpu_stats": before["cpu_stats"] if before else _NO_CPU,
    }


def _system_cpu() -> int:
    """Nanoseconds all CPUs of the host have spent since boot, in any mode."""
    with open("/proc/stat", "rb") as file:
        fields = file.readline().split()[1:8]
    return sum(map(int, fields)) * _NS_PER_TICK


def _interfaces(pid: int) -> dict[str, dict[str, int]]:
    """Counters of the container's network interfaces, without loopback."""
    found = {}
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            continue
        n = [int(value) for value in rest.split()]
        found[name.strip()] = {
            "rx_bytes": n[0],
            "rx_packets": n[1],
            "rx_errors": n[2],
            "rx_dropped": n[3],
            "tx_bytes": n[8],
            "tx_packets": n[9],
            "tx_errors": n[10],
            "tx_dropped": n[11],
        }
    return found


async def top(containers: Containers, ref: str, arguments: str) -> dict[str, Any]:
    """Run the host's ``ps`` with ``arguments`` and keep the container's processes."""
    container = containers.get(ref)
    if container.state.status == "restarting":
        raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
    if container.state.status not in ("running", "paused"):
        raise Conflict(f"Container {container.id} is not running")
    words = (arguments or "-ef").split()
    _check(words)

    def members() -> set[int]:
        return set(containers.runtime(container).processes(containers.starter.bundle(container.id)))

    pids = await containers.workers.call(members)
    process = await asyncio.create_subprocess_exec(
        "ps", *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise EngineError(f"Error running ps: ps: {errors.decode(errors='replace').strip()}")
    view = _select(output.decode(errors="replace").splitlines(), pids)
    await containers.event(container, "top")
    return view


def _check(words: Sequence[str]) -> None:
    """Refuse a ``-o`` list that leaves out PID or hides columns: rows could not be told apart."""
    for word in words:
        if word.startswith("-") and "o" in word and "=" in word and "pid=" in word.lower():
            raise InvalidParameter(f'specifying "{word}" is not allowed')


def _select(lines: Sequence[str], pids: set[int]) -> dict[str, Any]:
    if not lines:
        raise EngineError("Error running ps: no output")
    titles = lines[0].split()
    if "PID" not in titles:
        raise EngineError("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(maxsplit=len(titles) - 1)
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            rows.append(fields)
    return {"Titles": titles, "Processes": rows}
