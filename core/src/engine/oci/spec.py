"""The OCI runtime spec of a container, as pure data made from values: nothing is read, opened or resolved here.

What the host or the image must be asked for comes in as frozen values: `engine.oci.host.Host` (the machine),
`engine.oci.users.User` (who), `engine.oci.devices.DevicePlan` (device nodes), `engine.mounts.OciMount` (volumes, in
order), `Namespaces` (what is shared with the host or other containers). Security plugins edit the result afterwards
(hook ``engine_oci_spec``): capabilities and seccomp are theirs, not made here.

Defaults are those of moby (daemon/pkg/oci/defaults.go), 2026: masked and read-only paths, mounts, device rules,
network sysctls.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import InvalidParameter
from engine.model.container import Container, HostConfig, Ulimit
from engine.model.security import parse_security_opts
from engine.mounts import DEFAULT_PROPAGATION, OciMount, parse_tmpfs
from engine.oci.devices import Device, DevicePlan, DeviceRule
from engine.oci.host import Host
from engine.oci.resources import resources
from engine.oci.users import User

__all__ = [
    "DEFAULT_PATH",
    "READONLY_PATHS",
    "Defaults",
    "Namespaces",
    "build",
    "cgroup_namespace",
    "environment",
    "exec_process",
    "masked_paths",
    "uses_init",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHM_SIZE = 64 << 20
INIT_PATH = "/sbin/docker-init"
OCI_VERSION = "1.0.2"

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

# The kernel file systems every container gets, in mount order; /dev/shm gets its size when built.
_KERNEL_MOUNTS = (
    OciMount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    OciMount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    OciMount(
        "/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    ),
    OciMount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    OciMount("/sys/fs/cgroup", "cgroup", "cgroup", ("ro", "nosuid", "noexec", "nodev")),
    OciMount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    OciMount("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777")),  # noqa: S108 - inside
)
_STAYS_WRITABLE = frozenset(("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"))  # noqa: S108 - inside

_SHM_BIND = ("rbind", DEFAULT_PROPAGATION, "nosuid", "nodev", "noexec")
_HOST_SHM = "/dev/shm"  # noqa: S108 - the host's

# The network's files: where the engine's own copy goes unless the user mounts something there.
_NETWORK_FILES = {"resolv.conf": "/etc/resolv.conf", "hostname": "/etc/hostname", "hosts": "/etc/hosts"}

_NETWORK_SYSCTLS = {
    "net.ipv4.ping_group_range": "0 2147483647",  # unprivileged ping without CAP_NET_RAW
    "net.ipv4.ip_unprivileged_port_start": "0",  # port 80 without CAP_NET_BIND_SERVICE
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """What the container shares, as paths on the host; resolved by the caller, who knows the other containers.

    ``network`` is the network namespace to enter: the sandbox's, another container's, or None for the host's.
    ``pid`` and ``ipc`` are namespace files (``/proc/<pid>/ns/pid``) of the container named in the mode, empty unless
    the mode is ``container:...``. ``shm`` is a host directory to use as /dev/shm (``--ipc shareable``,
    ``container:...``); empty for a private one (and for ``host``, which is the host's /dev/shm).
    """

    network: Path | None = None
    pid: str = ""
    ipc: str = ""
    shm: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the daemon's configuration says for containers that do not say it themselves.

    ``cgroup_parent`` must contain the instance (``/engine-0123abcd``), so that engines never share a group.
    """

    cgroup_parent: str
    init: bool = False
    no_new_privileges: bool = False
    ulimits: Sequence[Ulimit] = field(default_factory=tuple)


def build(
    container: Container,
    *,
    rootfs: Path,
    mounts: Sequence[OciMount],
    namespaces: Namespaces,
    files: Mapping[str, Path],
    user: User,
    devices: DevicePlan,
    host: Host,
    defaults: Defaults,
    linked: Sequence[str] = (),
) -> dict[str, Any]:
    """The complete spec, without capabilities and seccomp, as mutable JSON-like data.

    ``mounts`` are the container's volumes and binds as `Volumes.mount` returned them; ``files`` maps ``hosts``,
    ``hostname`` and ``resolv.conf`` to host paths (any may be missing); ``linked`` are the variables of its links.
    Pure: the same values give the same spec.
    Raises `InvalidParameter` for options that contradict each other.
    """
    config, host_config = container.config, container.host_config
    security = parse_security_opts(host_config.security_opt)
    no_new_privileges = security.no_new_privileges
    with_init = uses_init(host_config, defaults)
    all_mounts = _mounts(host_config, mounts, namespaces, files, writable_cgroups=bool(security.writable_cgroups))
    if with_init:
        all_mounts.append(_init_mount(host))
    limits = resources(host_config, host, devices.block)
    limits["devices"] = [_rule(rule) for rule in devices.rules]
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.gids)},
        "args": [*((INIT_PATH, "--") if with_init else ()), container.path, *container.args],
        "env": environment(container, user, linked=linked),
        "cwd": config.working_dir or "/",
        "noNewPrivileges": defaults.no_new_privileges if no_new_privileges is None else no_new_privileges,
        "capabilities": {},
    }
    if config.tty and any(host_config.console_size):
        process["consoleSize"] = {"height": host_config.console_size[0], "width": host_config.console_size[1]}
    if host_config.oom_score_adj or host.oom_score_adj < 0:
        # 0 is only set where the engine itself is protected: lowering a score takes CAP_SYS_RESOURCE.
        process["oomScoreAdj"] = host_config.oom_score_adj
    rlimits = _rlimits(host_config.ulimits or (), defaults.ulimits)
    if rlimits:
        process["rlimits"] = rlimits
    shares_uts = host_config.uts_mode == "host"
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": str(rootfs), "readonly": host_config.readonly_rootfs},
        "mounts": [_mount(mount) for mount in all_mounts],
        "linux": {
            "namespaces": _namespaces(host_config, namespaces, host),
            "cgroupsPath": cgroups_path(host_config, container.id, defaults),
            "resources": limits,
            "devices": [_device(device) for device in devices.nodes],
            "sysctl": _sysctls(container, host),
        },
    }
    if not shares_uts:
        spec["hostname"] = config.hostname
    propagation = _root_propagation(all_mounts)
    if propagation:
        spec["linux"]["rootfsPropagation"] = propagation
    if host_config.annotations:
        spec["annotations"] = dict(host_config.annotations)
    hidden = masked_paths(host_config, host)
    if hidden:
        spec["linux"]["maskedPaths"] = hidden
    protected = readonly_paths(host_config)
    if protected:
        spec["linux"]["readonlyPaths"] = protected
    return spec


def exec_process(
    container: Container,
    *,
    args: Sequence[str],
    env: Sequence[str],
    working_dir: str,
    tty: bool,
    user: User,
    defaults: Defaults,
    linked: Sequence[str] = (),
) -> dict[str, Any]:
    """The OCI process of an exec session, without capabilities (hook ``engine_exec_process``).

    ``env`` are the session's own variables on top of the container's; ``user`` is already resolved.
    """
    asked = parse_security_opts(container.host_config.security_opt).no_new_privileges
    return {
        "terminal": tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.gids)},
        "args": list(args),
        "env": environment(container, user, env, linked=linked, tty=tty),
        "cwd": working_dir or container.config.working_dir or "/",
        "noNewPrivileges": defaults.no_new_privileges if asked is None else asked,
        "capabilities": {},
    }


def environment(
    container: Container,
    user: User,
    extra: Sequence[str] = (),
    *,
    linked: Sequence[str] = (),
    tty: bool | None = None,
) -> list[str]:
    """PATH, HOSTNAME, TERM (with a terminal), those of links, then the container's own and ``extra``, then HOME.

    Later ones replace earlier ones in place; an entry without ``=`` removes the variable.
    """
    variables = {"PATH": DEFAULT_PATH}
    if container.config.hostname:
        variables["HOSTNAME"] = container.config.hostname
    if container.config.tty if tty is None else tty:
        variables["TERM"] = "xterm"
    for entry in (*linked, *(container.config.env or ()), *extra):
        name, separator, value = entry.partition("=")
        if separator:
            variables[name] = value
        else:
            variables.pop(name, None)
    variables.setdefault("HOME", user.home)
    return [f"{name}={value}" for name, value in variables.items()]


def masked_paths(host_config: HostConfig, host: Host) -> list[str]:
    """The paths hidden from the container: what the user listed (an empty list is none), else the defaults."""
    if host_config.masked_paths is not None:
        return list(host_config.masked_paths)
    return [] if host_config.privileged else [*_MASKED_PATHS, *host.masked_paths]


def readonly_paths(host_config: HostConfig) -> list[str]:
    """The paths made read-only in the container; as `masked_paths`."""
    if host_config.readonly_paths is not None:
        return list(host_config.readonly_paths)
    return [] if host_config.privileged else list(READONLY_PATHS)


def uses_init(host_config: HostConfig, defaults: Defaults) -> bool:
    """Whether the container gets an init process: only in a process namespace of its own."""
    wanted = defaults.init if host_config.init is None else host_config.init
    return wanted and not _shares(host_config.pid_mode)


def cgroup_namespace(host_config: HostConfig, host: Host) -> str:
    """``private`` or ``host``; unsaid it is private on cgroup v2 and the host's on v1."""
    if host_config.cgroupns_mode not in ("", "private", "host"):
        raise InvalidParameter(f"invalid cgroup namespace mode: {host_config.cgroupns_mode}")
    return host_config.cgroupns_mode or ("private" if host.cgroup_version == 2 else "host")


def cgroups_path(host_config: HostConfig, container_id: str, defaults: Defaults) -> str:
    """``/<parent>/<container id>``, normalised so that no parent climbs out of the hierarchy."""
    parent = host_config.cgroup_parent or defaults.cgroup_parent
    return posixpath.join(posixpath.normpath("/" + parent.lstrip("/")), container_id)


def _shares(mode: str) -> bool:
    return mode == "host" or mode.startswith("container:")


def _namespaces(host_config: HostConfig, shared: Namespaces, host: Host) -> list[dict[str, str]]:
    namespaces: list[dict[str, str]] = [{"type": "mount"}]
    if shared.network is not None:
        namespaces.append({"type": "network", "path": str(shared.network)})
    if host_config.uts_mode not in ("", "host"):
        raise InvalidParameter(f"invalid UTS mode: {host_config.uts_mode}")
    if host_config.uts_mode != "host":
        namespaces.append({"type": "uts"})
    if host_config.pid_mode != "host":
        namespaces.append({"type": "pid"} | ({"path": shared.pid} if shared.pid else {}))
    if host_config.ipc_mode != "host":
        namespaces.append({"type": "ipc"} | ({"path": shared.ipc} if shared.ipc else {}))
    if cgroup_namespace(host_config, host) == "private":
        namespaces.append({"type": "cgroup"})
    if host.time_namespaces:
        namespaces.append({"type": "time"})
    return namespaces


def _mounts(
    host_config: HostConfig,
    volumes: Sequence[OciMount],
    namespaces: Namespaces,
    files: Mapping[str, Path],
    *,
    writable_cgroups: bool,
) -> list[OciMount]:
    """Kernel file systems, then everything else ordered so that no mount hides a later one."""
    wanted = [
        *volumes,
        *(parse_tmpfs(destination, options) for destination, options in (host_config.tmpfs or {}).items()),
    ]
    by_user = {mount.destination for mount in wanted}
    file_options = ("rbind", DEFAULT_PROPAGATION, *(("ro",) if host_config.readonly_rootfs else ()))
    wanted += [
        OciMount(target, "bind", str(files[name]), file_options)
        for name, target in _NETWORK_FILES.items()
        if name in files and target not in by_user
    ]
    unlocked = _writable_kernel_mounts(host_config.privileged, writable_cgroups)
    shm = namespaces.shm or (_HOST_SHM if host_config.ipc_mode == "host" else "")
    kernel: list[OciMount] = []
    for mount in _KERNEL_MOUNTS:
        if mount.destination in by_user or ("/dev" in by_user and mount.destination.startswith("/dev/")):
            continue
        options = mount.options
        if mount.destination == "/dev/shm":  # noqa: S108 - inside
            if host_config.ipc_mode == "none":
                continue
            if shm:
                mount = OciMount(mount.destination, "bind", shm)
                options = _SHM_BIND if shm != _HOST_SHM else _SHM_BIND[:-1]  # the host's may be executable
            else:
                options = (*options, f"size={host_config.shm_size or DEFAULT_SHM_SIZE}")
        if mount.destination in unlocked:
            options = tuple(option for option in options if option != "ro")
        elif host_config.readonly_rootfs and mount.destination not in _STAYS_WRITABLE and "ro" not in options:
            options = (*options, "ro")
        kernel.append(OciMount(mount.destination, mount.type, mount.source, options))
    return [*kernel, *sorted(wanted, key=lambda mount: mount.destination.rstrip("/").count("/"))]


def _writable_kernel_mounts(privileged: bool, writable_cgroups: bool) -> frozenset[str]:
    if privileged:
        return frozenset(("/sys", "/sys/fs/cgroup"))
    return frozenset(("/sys/fs/cgroup",)) if writable_cgroups else frozenset()


def _init_mount(host: Host) -> OciMount:
    if not host.init:
        raise InvalidParameter(
            'exec: "docker-init": executable file not found in $PATH: install tini or catatonit to use --init'
        )
    return OciMount(INIT_PATH, "bind", host.init, ("bind", "ro"))


def _root_propagation(mounts: Sequence[OciMount]) -> str:
    """What the root must be so that propagation of single mounts works; empty for the runtime's default."""
    options = {option for mount in mounts for option in mount.options}
    if options & {"shared", "rshared"}:
        return "shared"
    if options & {"slave", "rslave"}:
        return "rslave"
    return ""


def _sysctls(container: Container, host: Host) -> dict[str, str]:
    host_config = container.host_config
    sysctls: dict[str, str] = {}
    if not _shares(host_config.network_mode) and not container.config.network_disabled:
        sysctls = {name: value for name, value in _NETWORK_SYSCTLS.items() if name in host.sysctls}
    if container.config.domainname and host_config.uts_mode != "host":
        sysctls["kernel.domainname"] = container.config.domainname
    return sysctls | (host_config.sysctls or {})


def _rlimits(asked: Sequence[Ulimit], defaults: Sequence[Ulimit]) -> list[dict[str, Any]]:
    """Only limits somebody asked for: setting one unasked can fail without CAP_SYS_RESOURCE."""
    by_name = {limit.name: limit for limit in (*defaults, *asked)}
    unlimited = (1 << 64) - 1
    return [
        {
            "type": "RLIMIT_" + limit.name.upper(),
            "soft": unlimited if limit.soft < 0 else limit.soft,
            "hard": unlimited if limit.hard < 0 else limit.hard,
        }
        for limit in by_name.values()
    ]


def _mount(mount: OciMount) -> dict[str, Any]:
    return {
        "destination": mount.destination,
        "type": mount.type,
        "source": mount.source,
        "options": list(mount.options),
    }


def _rule(rule: DeviceRule) -> dict[str, Any]:
    entry: dict[str, Any] = {"allow": rule.allow, "access": rule.access}
    if rule.kind:
        entry["type"] = rule.kind
    if rule.major is not None:
        entry["major"] = rule.major
    if rule.minor is not None:
        entry["minor"] = rule.minor
    return entry


def _device(device: Device) -> dict[str, Any]:
    return {
        "path": device.path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }
