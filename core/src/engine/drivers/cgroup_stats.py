"""Resource use of a container in the shapes of the Docker API's stats, from cgroup v1 or v2."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from engine.drivers.cgroups import Cgroup

_UNLIMITED = (1 << 64) - 1
_BLKIO = {
    "io_service_bytes_recursive": "blkio.throttle.io_service_bytes_recursive",
    "io_serviced_recursive": "blkio.throttle.io_serviced_recursive",
    "io_queue_recursive": "blkio.bfq.io_queued_recursive",
    "io_service_time_recursive": "blkio.bfq.io_service_time_recursive",
    "io_wait_time_recursive": "blkio.bfq.io_wait_time_recursive",
    "io_merged_recursive": "blkio.bfq.io_merged_recursive",
    "io_time_recursive": "blkio.bfq.time_recursive",
    "sectors_recursive": "blkio.bfq.sectors_recursive",
}


def measure(cgroup: Cgroup) -> dict[str, Any]:
    """``cpu_stats``, ``memory_stats``, ``blkio_stats``, ``pids_stats``: what dockerd gives for this cgroup version."""
    controllers = cgroup.layout.controllers
    return {
        "cpu_stats": {
            **(_cpu_v1(cgroup) if "cpuacct" in controllers else _cpu_v2(cgroup)),
            "system_cpu_usage": _system_cpu(),
            "online_cpus": os.cpu_count() or 1,
        },
        "memory_stats": _memory_v1(cgroup) if "memory" in controllers else _memory_v2(cgroup),
        "blkio_stats": _blkio_v1(cgroup) if "blkio" in controllers else _blkio_v2(cgroup),
        "pids_stats": {
            "current": cgroup.number("pids", "pids.current"),
            "limit": cgroup.number("pids", "pids.max", _UNLIMITED),
        },
    }


def _system_cpu() -> int:
    with open("/proc/stat") as stat:
        ticks = sum(int(word) for word in stat.readline().split()[1:8])
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _cpu_v1(cgroup: Cgroup) -> dict[str, Any]:
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    modes = cgroup.table("cpuacct", "cpuacct.stat")
    throttled = cgroup.table("cpu", "cpu.stat")
    return {
        "cpu_usage": {
            "total_usage": cgroup.number("cpuacct", "cpuacct.usage"),
            "percpu_usage": [int(word) for word in cgroup.text("cpuacct", "cpuacct.usage_percpu").split()],
            "usage_in_kernelmode": modes.get("system", 0) * tick,
            "usage_in_usermode": modes.get("user", 0) * tick,
        },
        "throttling_data": {
            "periods": throttled.get("nr_periods", 0),
            "throttled_periods": throttled.get("nr_throttled", 0),
            "throttled_time": throttled.get("throttled_time", 0),
        },
    }


def _cpu_v2(cgroup: Cgroup) -> dict[str, Any]:
    stat = cgroup.table("cpu", "cpu.stat")
    return {
        "cpu_usage": {
            "total_usage": stat.get("usage_usec", 0) * 1000,
            "usage_in_kernelmode": stat.get("system_usec", 0) * 1000,
            "usage_in_usermode": stat.get("user_usec", 0) * 1000,
        },
        "throttling_data": {
            "periods": stat.get("nr_periods", 0),
            "throttled_periods": stat.get("nr_throttled", 0),
            "throttled_time": stat.get("throttled_usec", 0) * 1000,
        },
    }


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _memory_v1(cgroup: Cgroup) -> dict[str, Any]:
    return {
        "usage": cgroup.number("memory", "memory.usage_in_bytes"),
        "max_usage": cgroup.number("memory", "memory.max_usage_in_bytes"),
        "stats": cgroup.table("memory", "memory.stat"),
        "failcnt": cgroup.number("memory", "memory.failcnt"),
        "limit": min(cgroup.number("memory", "memory.limit_in_bytes", _UNLIMITED), _host_memory()),
    }


def _memory_v2(cgroup: Cgroup) -> dict[str, Any]:
    return {
        "usage": cgroup.number("memory", "memory.current"),
        "stats": cgroup.table("memory", "memory.stat"),
        "limit": min(cgroup.number("memory", "memory.max", _UNLIMITED), _host_memory()),
    }


def _blkio_v1(cgroup: Cgroup) -> dict[str, Any]:
    return {
        name: [
            {"major": major, "minor": minor, "op": operation, "value": value}
            for major, minor, operation, value in cgroup.devices(file)
        ]
        for name, file in _BLKIO.items()
    }


def _blkio_v2(cgroup: Cgroup) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(_BLKIO)
    sizes: list[Mapping[str, object]] = []
    counts: list[Mapping[str, object]] = []
    kinds = (("rbytes", "read", sizes), ("wbytes", "write", sizes), ("rios", "read", counts), ("wios", "write", counts))
    for line in cgroup.text("io", "io.stat").splitlines():
        device, *words = line.split()
        values = dict(word.split("=", 1) for word in words if "=" in word)
        major, _, minor = device.partition(":")
        for key, operation, rows in kinds:
            if key in values:
                rows.append({"major": int(major), "minor": int(minor), "op": operation, "value": int(values[key])})
    found["io_service_bytes_recursive"] = sizes
    found["io_serviced_recursive"] = counts
    return found
