"""What `docker create` decides: the request checked in dockerd's words, the image's defaults merged in, a name.

Everything here is pure: values in, values out. `engine.containers` calls it and does the deeds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from engine.errors import InvalidParameter
from engine.model.container import Config, Container, HealthConfig, HostConfig, LogConfig, RestartPolicy
from engine.model.image import Image
from engine.names import valid_name
from engine.oci import devices, resources
from engine.oci.host import Host
from engine.signals import parse_signal

__all__ = [
    "check_name",
    "command",
    "effective",
    "merge_image",
    "normalise",
    "random_name",
    "validate",
    "wants_wasm",
    "warnings",
]

SHM_SIZE = 64 << 20
_MILLISECOND = 10**6
_MAX_HOSTNAME = 64
_PORT = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?(?:/(?P<protocol>[a-zA-Z]+))?")
_POLICIES = ("no", "on-failure", "always", "unless-stopped", "on-unhealthy")
_COUNTED_POLICIES = ("on-failure", "on-unhealthy")

_ADJECTIVES = (
    "able amber ample bold brave breezy bright brisk calm candid careful cheerful clear clever cosmic crisp curious "
    "daring deft eager earnest easy fair fearless festive fluent fond frank free fresh gentle glad golden graceful "
    "grand happy hardy hearty honest hopeful humble jolly joyful keen kind lively loyal lucid lucky mellow merry mild "
    "modest neat nimble noble open patient placid plucky polite proud pure quick quiet rapid ready robust rosy serene "
    "sharp shiny silent sincere smart smooth snappy solid sound spry stable steady stoic sunny swift tender tidy true "
    "upbeat vast vivid warm wise witty zealous"
).split()
_SURNAMES = (
    "abel agnesi al_khwarizmi ampere ardinghelli babbage banach bartik bell bernoulli blackwell bohr boole borg boyle "
    "brahe carson cauchy cerf chandrasekhar church conway copernicus curie darwin diffie dirac edison engelbart "
    "euclid euler faraday fermat fermi feynman franklin galileo galois gauss germain goldberg hamilton hamming hawking "
    "heisenberg hermann hilbert hodgkin hopper huygens hypatia jackson johnson kalam kepler kernighan knuth kowalevski "
    "lamarr lamport leavitt leibniz liskov lovelace maxwell mccarthy meitner mendel mirzakhani newton nightingale "
    "noether pascal pasteur pauling perlman planck ptolemy ramanujan ride ritchie rubin shannon somerville stonebraker "
    "tesla thompson torvalds turing volta wiles wilson wright yalow"
).split()


def random_name(taken: Callable[[str], bool]) -> str:
    """A free name of the form ``adjective_surname``; a digit is added when the first tries are taken."""
    for attempt in range(100):
        name = f"{random.choice(_ADJECTIVES)}_{random.choice(_SURNAMES)}"  # noqa: S311 - a name, not a secret
        if attempt >= 6:
            name += str(random.randrange(10 ** (1 + attempt // 20)))  # noqa: S311
        if not taken(name):
            return name
    raise InvalidParameter("could not find a free random name; give one with --name")


def check_name(name: str) -> str:
    """The name without its leading slash; `InvalidParameter` for anything Docker refuses."""
    bare = name.removeprefix("/")
    if not valid_name(bare):
        raise InvalidParameter(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return bare


# -- defaults -----------------------------------------------------------------------------------------------


def merge_image(config: Config, image: Image | None) -> Config:
    """``config`` with what it leaves open taken from the image, as dockerd merges them."""
    entrypoint, cmd = config.entrypoint, config.cmd
    base = Config() if image is None else msgspec.convert(_known(image.config.config), Config)
    if not entrypoint:
        if not cmd:
            cmd = base.cmd
        if entrypoint is None:
            entrypoint = base.entrypoint
    if entrypoint is not None and list(entrypoint) == [""]:
        entrypoint = None
    return msgspec.structs.replace(
        config,
        user=config.user or base.user,
        exposed_ports=_union(base.exposed_ports, config.exposed_ports),
        env=_merge_env(config.env, base.env),
        cmd=cmd,
        entrypoint=entrypoint,
        healthcheck=_merge_health(config.healthcheck, base.healthcheck),
        volumes=_union(base.volumes, config.volumes),
        working_dir=config.working_dir or base.working_dir,
        on_build=base.on_build if config.on_build is None else config.on_build,
        labels={**(base.labels or {}), **(config.labels or {})},
        stop_signal=config.stop_signal or base.stop_signal,
        shell=config.shell or base.shell,
    )


def _known(raw: dict[str, object]) -> dict[str, object]:
    """An image's config as Go would read it: nulls are zero values."""
    return {key: value for key, value in raw.items() if value is not None}


def _union(
    base: dict[str, dict[str, object]] | None, own: dict[str, dict[str, object]] | None
) -> dict[str, dict[str, object]] | None:
    return {**base, **(own or {})} if base else own


def _merge_env(own: list[str] | None, base: list[str] | None) -> list[str] | None:
    if not own or not base:
        return own or base
    keys = {line.partition("=")[0] for line in own}
    return [*own, *(line for line in base if line.partition("=")[0] not in keys)]


def _merge_health(own: HealthConfig | None, base: HealthConfig | None) -> HealthConfig | None:
    if own is None or base is None:
        return own or base
    return HealthConfig(
        test=own.test or base.test,
        interval=own.interval or base.interval,
        timeout=own.timeout or base.timeout,
        start_period=own.start_period or base.start_period,
        start_interval=own.start_interval or base.start_interval,
        retries=own.retries or base.retries,
    )


def wants_wasm(annotations: Mapping[str, str] | None, path: str) -> bool:
    """Whether crun's annotations ask for a WebAssembly runtime; the smart ones only for a WebAssembly file."""
    asked = {(annotations or {}).get(key, "") for key in ("run.oci.handler", "module.wasm.image/variant")}
    return bool(asked & {"wasm", "compat"}) or (
        bool(asked & {"wasm-smart", "compat-smart"}) and path.endswith((".wasm", ".wat"))
    )


def with_hostname(config: Config, container_id: str, host_config: HostConfig) -> Config:
    """``config`` with the host name that follows from the id, where there is none and one of its own to be had."""
    if config.hostname or host_config.uts_mode == "host":
        return config
    return msgspec.structs.replace(config, hostname=container_id[:12])


def command(config: Config, *, wasm: bool = False) -> tuple[str, list[str]]:
    """``Path`` and ``Args`` of a container: its entry point with the command after it.

    A WebAssembly image may name no command: ``/`` then means "what the image is for", as in Docker's tutorials.
    """
    words = [*(config.entrypoint or ()), *(config.cmd or ())] or (["/"] if wasm else [])
    if not words:
        raise InvalidParameter("No command specified")
    return words[0], words[1:]


def normalise(
    host_config: HostConfig,
    *,
    runtime: str,
    log: LogConfig,
    host: Host,
    shm_size: int = SHM_SIZE,
    ipc_mode: str = "private",
    cgroupns_mode: str = "",
) -> HostConfig:
    """``host_config`` with the daemon's defaults written out, as ``docker inspect`` shows them."""
    values = msgspec.structs.asdict(host_config)
    values["network_mode"] = {"": "bridge", "default": "bridge"}.get(host_config.network_mode, host_config.network_mode)
    values["runtime"] = runtime
    values["log_config"] = log
    values["restart_policy"] = RestartPolicy(
        name=host_config.restart_policy.name or "no",
        maximum_retry_count=host_config.restart_policy.maximum_retry_count,
    )
    values["ipc_mode"] = host_config.ipc_mode or ipc_mode
    if not host_config.cgroupns_mode:
        private = host.cgroup_version == 2 and not host_config.privileged
        values["cgroupns_mode"] = cgroupns_mode or ("private" if private else "host")
    values["shm_size"] = host_config.shm_size or shm_size
    if host_config.memory > 0 and host_config.memory_swap == 0:
        values["memory_swap"] = host_config.memory * 2
    if host_config.memory_swappiness == -1:
        values["memory_swappiness"] = None
    if host_config.cpu_shares > 0:
        values["cpu_shares"] = min(max(host_config.cpu_shares, 2), 262144)
    if host_config.pids_limit is not None and host_config.pids_limit <= 0:
        values["pids_limit"] = None
    if host_config.privileged and host_config.masked_paths is None:
        values["masked_paths"] = []
    if host_config.privileged and host_config.readonly_paths is None:
        values["readonly_paths"] = []
    return HostConfig(**values)


# -- checks -------------------------------------------------------------------------------------------------


def validate(config: Config, host_config: HostConfig, host: Host) -> None:
    """Refuse what no container can be, in dockerd's words; raises `InvalidParameter`.

    What a plugin owns (capabilities, security options, log options, networks) its own code refuses.
    """
    _check_config(config)
    _check_restart(host_config)
    _check_ports(config, host_config)
    _check_namespaces(config, host_config)
    _check_network_mode(config, host_config)
    for entry in host_config.extra_hosts or ():
        name, separator, address = entry.replace("=", ":", 1).partition(":")
        if not name or not separator or not address:
            raise InvalidParameter(f'bad format for add-host: "{entry}"')
    if host_config.isolation not in ("", "default"):
        raise InvalidParameter(f'invalid isolation ({host_config.isolation}): linux only supports "default"')
    for key in host_config.annotations or ():
        if not key:
            raise InvalidParameter("invalid Annotations: the empty string is not permitted as an annotation key")
    for name in host_config.sysctls or ():
        if name.startswith("net.") and host_config.network_mode == "host":
            raise InvalidParameter(f"sysctl '{name}' not allowed in host network namespace")
    for field, text in (
        (host_config.io_maximum_bandwidth, "Maximum IO Bandwidth"),
        (host_config.io_maximum_iops, "Maximum IOPs"),
    ):
        if field:
            raise InvalidParameter(f"Invalid QoS settings: linux does not support {text}")
    resources.validate(host_config, host)
    devices.validate(host_config)


def _check_config(config: Config) -> None:
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
        )
    for line in config.env or ():
        if not line or line.startswith("="):
            raise InvalidParameter(f"invalid environment variable: {line}")
    if len(config.hostname) > _MAX_HOSTNAME:
        raise InvalidParameter(f"invalid hostname: {config.hostname}: longer than {_MAX_HOSTNAME} characters")
    if config.stop_signal:
        parse_signal(config.stop_signal)
    if config.healthcheck is not None:
        _check_health(config.healthcheck)


def _check_health(health: HealthConfig) -> None:
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value != 0 and value < _MILLISECOND:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")
    if health.test and health.test[0] not in ("NONE", "CMD", "CMD-SHELL", ""):
        raise InvalidParameter(f"Unknown healthcheck type '{health.test[0]}' (expected 'CMD')")


def _check_restart(host_config: HostConfig) -> None:
    policy = host_config.restart_policy
    check_policy(policy)
    if host_config.auto_remove and policy.name not in ("", "no"):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")


def check_restart_on_health(policy: RestartPolicy, config: Config) -> None:
    """``on-unhealthy`` needs something that can find the container unhealthy: ``config`` as merged with the image's."""
    test = config.healthcheck.test if config.healthcheck else None
    if policy.name == "on-unhealthy" and not (test and test[0] in ("CMD", "CMD-SHELL")):
        raise InvalidParameter("invalid restart policy: 'on-unhealthy' needs a health check, and there is none")


def check_policy(policy: RestartPolicy) -> None:
    """Refuse a restart policy that makes no sense (create and update)."""
    if policy.name and policy.name not in _POLICIES:
        raise InvalidParameter(
            f"invalid restart policy '{policy.name}': use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    if policy.maximum_retry_count and policy.name not in _COUNTED_POLICIES:
        raise InvalidParameter("invalid restart policy: maximum retry count can only be used with 'on-failure'")


def _check_ports(config: Config, host_config: HostConfig) -> None:
    for port in config.exposed_ports or ():
        _check_port(port)
    for port, bindings in (host_config.port_bindings or {}).items():
        _check_port(port)
        for binding in bindings or ():
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", binding.host_port)
            if binding.host_port and (match is None or any(int(part) > 65535 for part in match.groups() if part)):
                raise InvalidParameter(f'invalid port specification: "{binding.host_port}"')


def _check_port(text: str) -> None:
    match = _PORT.fullmatch(text)
    if match is None or int(match["first"]) > 65535 or int(match["last"] or 0) > 65535:
        raise InvalidParameter(f'invalid port specification: "{text}"')
    if (match["protocol"] or "tcp").lower() not in ("tcp", "udp", "sctp"):
        raise InvalidParameter(f"Invalid proto: {match['protocol']}")


def _check_namespaces(config: Config, host_config: HostConfig) -> None:
    def one_of(text: str, *words: str) -> bool:
        return text in ("", *words) or (text.startswith("container:") and len(text) > len("container:"))

    if not one_of(host_config.pid_mode, "host"):
        raise InvalidParameter(f"invalid PID mode: {host_config.pid_mode}")
    if not one_of(host_config.ipc_mode, "host", "private", "shareable", "none"):
        raise InvalidParameter(f"invalid IPC mode: {host_config.ipc_mode}")
    if host_config.uts_mode not in ("", "host"):
        raise InvalidParameter(f"invalid UTS mode: {host_config.uts_mode}")
    if host_config.userns_mode.partition(":")[0] in ("auto", "private"):
        raise InvalidParameter(
            f"user namespace mode {host_config.userns_mode} is not supported yet: containers share the host's user "
            "namespace; give them a user of their own (--user) and no-new-privileges instead"
        )
    if host_config.userns_mode not in ("", "host"):
        raise InvalidParameter(f"invalid user namespace mode: {host_config.userns_mode}")
    if host_config.cgroupns_mode not in ("", "host", "private"):
        raise InvalidParameter(f"invalid cgroup namespace mode: {host_config.cgroupns_mode}")
    if host_config.uts_mode == "host" and config.hostname:
        raise InvalidParameter("conflicting options: hostname and the UTS mode")


def _check_network_mode(config: Config, host_config: HostConfig) -> None:
    mode = host_config.network_mode
    if mode == "container:":
        raise InvalidParameter("invalid container format container:<name|id>")
    if mode == "host" and host_config.links:
        raise InvalidParameter(
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior"
        )
    if not mode.startswith("container:"):
        return
    for given, text in (
        (config.hostname, "hostname and the network mode"),
        (host_config.links, "container type network can't be used with links. This would result in undefined behavior"),
        (host_config.dns, "dns and the network mode"),
        (host_config.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (config.mac_address, "mac-address and the network mode"),
        (
            host_config.port_bindings or host_config.publish_all_ports,
            "port publishing and the container type network mode",
        ),
        (config.exposed_ports, "port exposing and the container type network mode"),
    ):
        if given:
            raise InvalidParameter(f"conflicting options: {text}")


def warnings(host_config: HostConfig, host: Host) -> list[str]:
    """What dockerd warns of at create: options this host or mode makes meaningless."""
    found = []
    if host_config.network_mode == "host" and host_config.port_bindings:
        found.append("Published ports are discarded when using host network mode")
    if host_config.memory > 0 and not host.swap_limit:
        found.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        )
    if host.cgroup_version == 2 and host_config.memory_swappiness not in (None, -1):
        found.append("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted.")
    if host_config.oom_kill_disable and host_config.memory == 0 and host.cgroup_version == 1:
        found.append(
            "OOM killer is disabled for the container, but no memory limit is set, "
            "this can result in the system running out of resources."
        )
    for asked, text, what in (
        (host_config.blkio_weight, "weight", "Weight"),
        (host_config.blkio_weight_device, "weight_device", "Weight-device"),
    ):
        if asked and not host.blkio_weight:
            found.append(
                f"Your kernel does not support Block I/O {text} or the cgroup is not mounted. {what} discarded."
            )
    if host_config.oom_kill_disable and host.cgroup_version == 2:
        found.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
    return found


def supported(host_config: HostConfig, host: Host) -> HostConfig:
    """``host_config`` without what this kernel cannot do; `warnings` tells of it."""
    if host.blkio_weight or not (host_config.blkio_weight or host_config.blkio_weight_device):
        return host_config
    return msgspec.structs.replace(host_config, blkio_weight=0, blkio_weight_device=[])


UPDATABLE = (
    "blkio_weight",
    "cpu_period",
    "cpu_quota",
    "cpu_realtime_period",
    "cpu_realtime_runtime",
    "cpu_shares",
    "cpuset_cpus",
    "cpuset_mems",
    "memory",
    "memory_reservation",
    "memory_swap",
    "nano_cpus",
    "pids_limit",
    "restart_policy",
)
"""What ``docker update`` changes; all else of a `HostConfig` in its body is ignored, as dockerd ignores it."""


def effective(changes: HostConfig, given: Sequence[str], current: HostConfig) -> HostConfig:
    """``current`` with the fields named in ``given`` taken from ``changes``: what ``docker update`` makes of it."""
    updated = msgspec.structs.replace(current, **{name: getattr(changes, name) for name in given})
    if "memory" in given and "memory_swap" not in given and 0 < updated.memory_swap < updated.memory:
        raise InvalidParameter(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    if updated.nano_cpus and (updated.cpu_quota or updated.cpu_period) and "nano_cpus" in given:
        raise InvalidParameter(
            "Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set"
            if updated.cpu_period
            else "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set"
        )
    return updated


def stop_signal(container: Container) -> int:
    """The signal ``docker stop`` sends first: SIGTERM unless the container says otherwise."""
    return parse_signal(container.config.stop_signal or "SIGTERM")
