"""Containers: what a client asks for (config), and what the engine knows (record and state).

``Config`` and ``HostConfig`` are frozen once a container exists (``docker update`` makes a new `HostConfig`);
`ContainerState` is what changes. Times are RFC 3339 with nanoseconds in UTC, sizes bytes, durations nanoseconds.
Source: the Docker Engine API's ContainerConfig, HostConfig, ContainerState and MountPoint.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

from engine.model.network import EndpointSettings

__all__ = [
    "ZERO_TIME",
    "Config",
    "Container",
    "ContainerState",
    "DeviceMapping",
    "DeviceRequest",
    "HealthConfig",
    "HostConfig",
    "LogConfig",
    "Mount",
    "MountPoint",
    "PortBinding",
    "RestartPolicy",
    "ThrottleDevice",
    "Ulimit",
    "WeightDevice",
]

ZERO_TIME = "0001-01-01T00:00:00Z"


class _Struct(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=False):
    """Base of the API's values: immutable, keyword-only, ``PascalCase`` on the wire."""


class HealthConfig(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``Test`` is empty (inherit), ``["NONE"]``, ``["CMD", ...]`` or ``["CMD-SHELL", line]``; 0 means the default."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Config(_Struct, frozen=True, kw_only=True):
    """What runs in the container, independent of the host. Lists are None where the client left them out."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    entrypoint: list[str] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class LogConfig(_Struct, frozen=True, kw_only=True):
    """``type`` empty means the daemon's default."""

    type: str = ""
    config: dict[str, str] = {}


class PortBinding(_Struct, frozen=True, kw_only=True):
    """``host_port`` is a number, a range ``8000-8010`` or empty for any."""

    host_ip: str = ""
    host_port: str = ""


class RestartPolicy(_Struct, frozen=True, kw_only=True):
    """``no`` (or empty), ``on-failure``, ``always``, ``unless-stopped``, ``on-unhealthy`` (ours)."""

    name: str = ""
    maximum_retry_count: int = 0


class DeviceMapping(_Struct, frozen=True, kw_only=True):
    """``--device``."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(_Struct, frozen=True, kw_only=True):
    """``--gpus`` and CDI devices."""

    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = field(default=None, name="DeviceIDs")
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class Ulimit(_Struct, frozen=True, kw_only=True):
    """-1 is unlimited."""

    name: str = ""
    soft: int = 0
    hard: int = 0


class ThrottleDevice(_Struct, frozen=True, kw_only=True):
    """``--device-read-bps`` and its relatives."""

    path: str = ""
    rate: int = 0


class WeightDevice(_Struct, frozen=True, kw_only=True):
    """``--blkio-weight-device``."""

    path: str = ""
    weight: int = 0


class BindOptions(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Options of a bind mount."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeDriverConfig(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Driver of a volume that a mount creates."""

    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Options of a volume mount."""

    no_copy: bool = False
    labels: dict[str, str] | None = None
    driver_config: VolumeDriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Options of a tmpfs mount; ``mode`` as an integer (0o1777 by default), ``size_bytes`` 0 means unlimited."""

    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class ImageOptions(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Options of an image mount."""

    subpath: str = ""


class Mount(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``--mount``; ``type`` is bind, volume, tmpfs, image, npipe or cluster; ``id_map`` (ours) maps owners."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: ImageOptions | None = None
    cluster_options: dict[str, Any] | None = None
    id_map: str = field(default="", name="IDMap")


class HostConfig(_Struct, frozen=True, kw_only=True):
    """How the container is tied to this host: limits, mounts, namespaces, ports, privileges."""

    binds: list[str] | None = None
    container_id_file: str = field(default="", name="ContainerIDFile")
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    console_size: tuple[int, int] = (0, 0)
    annotations: dict[str, str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = field(default=None, name="BlkioDeviceReadIOps")
    blkio_device_write_iops: list[ThrottleDevice] | None = field(default=None, name="BlkioDeviceWriteIOps")
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = field(default=0, name="IOMaximumIOps")
    io_maximum_bandwidth: int = field(default=0, name="IOMaximumBandwidth")
    mounts: list[Mount] | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None


class MountPoint(_Struct, frozen=True, kw_only=True):
    """A mount as resolved at create. ``source`` is the host path ('' for tmpfs), ``mode`` Docker's mode text.

    ``options`` (not shown by the API) keeps what start needs: the parsed `Mount`.
    """

    type: str
    name: str = ""
    source: str = ""
    destination: str
    driver: str = ""
    mode: str = ""
    rw: bool = field(default=True, name="RW")
    propagation: str = ""
    spec: Mount = Mount()


class ContainerState(_Struct, frozen=True, kw_only=True):
    """The part that changes. ``status`` is Docker's word: created, running, paused, restarting, removing, exited, dead.

    ``boot_id`` and ``start_ticks`` (start time of ``pid`` in clock ticks since boot) identify the process
    across pid reuse.
    """

    status: str = "created"
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: str = ZERO_TIME
    finished_at: str = ZERO_TIME
    restart_count: int = 0
    manually_stopped: bool = False
    boot_id: str = ""
    start_ticks: int = 0


class Container(_Struct, frozen=True, kw_only=True):
    """The engine's record of a container: everything but its log and its files; persisted as one row.

    ``image_id`` is the image's id (``sha256:...``), ``chain_id`` the top of its layers; ``config`` has the image's
    defaults merged in; ``path`` and ``args`` are the resolved command. ``networks`` is by network name.
    """

    id: str
    name: str
    created: str
    image_id: str
    chain_id: str | None
    platform: str
    runtime: str
    store: str
    log_driver: str
    path: str
    args: list[str]
    config: Config
    host_config: HostConfig
    mounts: list[MountPoint] = []
    networks: dict[str, EndpointSettings] = {}
    sandbox_id: str = ""
    sandbox_key: str = ""
    ports: dict[str, list[PortBinding] | None] = {}
    state: ContainerState = ContainerState()
