"""Limits of a container: Docker's `HostConfig` as OCI ``linux.resources``, for start and for ``docker update``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InvalidParameter
from engine.model.container import HostConfig, ThrottleDevice
from engine.oci.host import Host

__all__ = ["resources", "validate"]

CPU_PERIOD_US = 100_000  # the kernel's default period, which --cpus is counted in
_MINIMUM_MEMORY = 6 << 20


def resources(
    host_config: HostConfig, host: Host, block: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, Any]:
    """The OCI ``linux.resources`` without devices; only what was asked for is in it.

    ``block`` gives (major, minor) of every device named by a blkio limit. What the host's cgroups cannot do
    (swap limits, swappiness and the OOM killer's switch on cgroup v2) is left out, as dockerd does with a warning.
    """
    parts = {
        "memory": _memory(host_config, host),
        "cpu": _cpu(host_config),
        "blockIO": _blkio(host_config, block or {}),
        "pids": _pids(host_config),
    }
    return {key: value for key, value in parts.items() if value}


def _memory(config: HostConfig, host: Host) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if config.memory > 0:
        memory["limit"] = config.memory
    if config.memory_reservation > 0:
        memory["reservation"] = config.memory_reservation
    if host.swap_limit and config.memory > 0:
        memory["swap"] = config.memory_swap or 2 * config.memory
    if host.cgroup_version == 1:
        if config.memory_swappiness is not None and config.memory_swappiness >= 0:
            memory["swappiness"] = config.memory_swappiness
        if config.oom_kill_disable is not None:
            memory["disableOOMKiller"] = config.oom_kill_disable
    return memory


def _cpu(config: HostConfig) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if config.cpu_shares > 0:
        cpu["shares"] = config.cpu_shares
    if config.nano_cpus > 0:
        cpu["period"] = CPU_PERIOD_US
        cpu["quota"] = config.nano_cpus * CPU_PERIOD_US // 1_000_000_000
    if config.cpu_period:
        cpu["period"] = config.cpu_period
    if config.cpu_quota:
        cpu["quota"] = config.cpu_quota
    if config.cpu_realtime_period:
        cpu["realtimePeriod"] = config.cpu_realtime_period
    if config.cpu_realtime_runtime:
        cpu["realtimeRuntime"] = config.cpu_realtime_runtime
    if config.cpuset_cpus:
        cpu["cpus"] = config.cpuset_cpus
    if config.cpuset_mems:
        cpu["mems"] = config.cpuset_mems
    return cpu


def _pids(config: HostConfig) -> dict[str, Any]:
    if config.pids_limit is None:
        return {}
    return {"limit": config.pids_limit if config.pids_limit > 0 else -1}


def _blkio(config: HostConfig, block: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    blkio: dict[str, Any] = {}
    if config.blkio_weight:
        blkio["weight"] = config.blkio_weight
    if config.blkio_weight_device:
        blkio["weightDevice"] = [
            {"major": block[device.path][0], "minor": block[device.path][1], "weight": device.weight}
            for device in config.blkio_weight_device
        ]
    throttles: dict[str, Sequence[ThrottleDevice] | None] = {
        "throttleReadBpsDevice": config.blkio_device_read_bps,
        "throttleWriteBpsDevice": config.blkio_device_write_bps,
        "throttleReadIOPSDevice": config.blkio_device_read_iops,
        "throttleWriteIOPSDevice": config.blkio_device_write_iops,
    }
    for key, devices in throttles.items():
        if devices:
            blkio[key] = [
                {"major": block[device.path][0], "minor": block[device.path][1], "rate": device.rate}
                for device in devices
            ]
    return blkio


def validate(config: HostConfig, host: Host, *, update: bool = False) -> None:
    """Refuse limits that make no sense, in dockerd's words (`InvalidParameter`)."""
    if 0 < config.memory < _MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if config.memory > 0 and 0 < config.memory_swap < config.memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if config.memory == 0 and config.memory_swap > 0 and not update:
        raise InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    swappiness = config.memory_swappiness
    if swappiness is not None and swappiness != -1 and not 0 <= swappiness <= 100:
        raise InvalidParameter(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if config.memory_reservation and config.memory_reservation < _MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if 0 < config.memory < config.memory_reservation:
        raise InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    _validate_cpu(config, host)
    if config.blkio_weight and not 10 <= config.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    if not -1000 <= config.oom_score_adj <= 1000:
        raise InvalidParameter(f"Invalid value {config.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if config.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")


def _validate_cpu(config: HostConfig, host: Host) -> None:
    if config.nano_cpus and config.cpu_period:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if config.nano_cpus and config.cpu_quota:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if config.nano_cpus < 0 or config.nano_cpus > host.cpus * 1_000_000_000:
        raise InvalidParameter(
            f"Range of CPUs is from 0.01 to {host.cpus}.00, as there are only {host.cpus} CPUs available"
        )
    if config.cpu_shares < 0:
        raise InvalidParameter(f"invalid CPU shares ({config.cpu_shares}): value must be a positive integer")
    if config.cpu_period and not 1000 <= config.cpu_period <= 1_000_000:
        raise InvalidParameter("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < config.cpu_quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    for name, text, available in (("cpus", config.cpuset_cpus, host.cpus), ("mems", config.cpuset_mems, None)):
        if not text:
            continue
        numbers = _cpuset(text)
        if numbers is None:
            raise InvalidParameter(f"Invalid value {text} for cpuset {name}: invalid format: {text}")
        if available is not None and max(numbers) >= available:
            label = "CPUs" if name == "cpus" else "memory nodes"
            raise InvalidParameter(
                f"Requested {label} are not available - requested {text}, available: 0-{available - 1}"
            )


def _cpuset(text: str) -> set[int] | None:
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(first) > 8192 or int(last or 0) > 8192:
            return None
        numbers.update(range(int(first), int(last or first) + 1))
        if dash and int(last) < int(first):
            return None
    return numbers
