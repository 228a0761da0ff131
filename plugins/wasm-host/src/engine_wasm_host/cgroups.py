"""Cgroups of a guest as data: which to make, what to write where; `engine_wasm_host.sandbox` does it.

A guest without devices, mounts or sockets of its own needs fewer controllers than a Linux container: those that limit
and measure (memory, cpu, pids), the freezer, and others only when something in them is limited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.drivers.cgroups import Layout

__all__ = ["limits", "plan"]

_ALWAYS = ("memory", "cpu", "cpuacct", "pids", "freezer")


def plan(layout: Layout, path: str, resources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cgroups to make and enter for ``linux.resources``: ``path``, ``values`` (file, text) and ``entrance``."""
    if not layout.controllers:
        return [{"path": layout.unified + path, "values": _v2(resources), "entrance": "cgroup.procs"}]
    values = limits(layout, resources)
    wanted = [name for name in layout.controllers if name in _ALWAYS or any(c == name for c, _, _ in values)]
    groups: dict[str, dict[str, Any]] = {}
    for controller in wanted:
        directory = layout.controllers[controller] + path
        group = groups.setdefault(directory, {"path": directory, "values": [], "entrance": "tasks"})
        if controller == "cpuset":
            group["values"] += _inherited_cpuset(Path(layout.controllers["cpuset"]))
        group["values"] += [(name, text) for owner, name, text in values if owner == controller]
    return list(groups.values())


def limits(layout: Layout, resources: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Controller, file and text of each limit, in an order the kernel accepts when raising them."""
    if not layout.controllers:
        return [("", name, text) for name, text in _v2(resources)]
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    swap = Path(layout.controllers.get("memory", ""), "memory.memsw.limit_in_bytes").exists()
    block = resources.get("blockIO") or {}
    found = [
        ("memory", "memory.limit_in_bytes", memory.get("limit")),
        ("memory", "memory.memsw.limit_in_bytes", memory.get("swap") if swap else None),
        ("memory", "memory.soft_limit_in_bytes", memory.get("reservation")),
        ("memory", "memory.swappiness", memory.get("swappiness")),
        ("cpu", "cpu.shares", cpu.get("shares")),
        ("cpu", "cpu.cfs_period_us", cpu.get("period")),
        ("cpu", "cpu.cfs_quota_us", cpu.get("quota")),
        ("cpuset", "cpuset.cpus", cpu.get("cpus")),
        ("cpuset", "cpuset.mems", cpu.get("mems")),
        ("pids", "pids.max", _pids(resources)),
        ("blkio", "blkio.weight", block.get("weight")),
        *(
            ("blkio", f"blkio.throttle.{file}", f"{rule['major']}:{rule['minor']} {rule['rate']}")
            for key, file in (
                ("throttleReadBpsDevice", "read_bps_device"),
                ("throttleWriteBpsDevice", "write_bps_device"),
                ("throttleReadIOPSDevice", "read_iops_device"),
                ("throttleWriteIOPSDevice", "write_iops_device"),
            )
            for rule in block.get(key) or ()
        ),
    ]
    return _given(found)


def _given(values: Iterable[tuple[str, str, Any]]) -> list[tuple[str, str, str]]:
    return [(owner, name, str(value)) for owner, name, value in values if value not in (None, "", 0)]


def _pids(resources: Mapping[str, Any]) -> str | None:
    limit = (resources.get("pids") or {}).get("limit")
    if limit is None:
        return None
    return "max" if limit <= 0 else str(limit)


def _v2(resources: Mapping[str, Any]) -> list[tuple[str, str]]:
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    limit, swap = memory.get("limit"), memory.get("swap")
    shares, quota = cpu.get("shares"), cpu.get("quota")
    found = [
        ("", "memory.max", "max" if limit == -1 else limit),
        ("", "memory.swap.max", "max" if swap == -1 else swap - limit if swap and limit else None),
        ("", "memory.low", memory.get("reservation")),
        ("", "cpu.weight", 1 + (shares - 2) * 9999 // 262142 if shares else None),
        ("", "cpu.max", f"{quota if quota > 0 else 'max'} {cpu.get('period') or 100000}" if quota else None),
        ("", "cpuset.cpus", cpu.get("cpus")),
        ("", "cpuset.mems", cpu.get("mems")),
        ("", "pids.max", _pids(resources)),
    ]
    return [(name, text) for _, name, text in _given(found)]


def _inherited_cpuset(mount: Path) -> list[tuple[str, str]]:
    """A v1 cpuset is born empty, and nothing can enter an empty one."""
    return [(name, (mount / name).read_text().strip()) for name in ("cpuset.cpus", "cpuset.mems")]
