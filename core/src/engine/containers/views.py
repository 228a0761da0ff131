"""How containers look to clients: the bodies of ``/containers/json`` and ``/containers/{id}/json``, and the ps filters.

Pure: records in, plain data out. Nothing here waits or reads a file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from engine.errors import InvalidParameter
from engine.model.container import ZERO_TIME, Config, Container, HostConfig, MountPoint, PortBinding
from engine.model.network import EndpointSettings
from engine.timestamps import human_duration, parse_rfc3339

__all__ = ["STATES", "config_view", "inspect_view", "matcher", "status_text", "summary"]

STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTH_STATES = ("starting", "healthy", "unhealthy", "none")
FILTERS = frozenset(
    "ancestor before exited expose health id isolation is-task label name network publish since status volume".split()
)
_RUNNING = ("running", "paused", "restarting")

# Go leaves these out of the JSON when they are empty.
_OPTIONAL_CONFIG = (
    "ExposedPorts ArgsEscaped Healthcheck NetworkDisabled MacAddress StopSignal StopTimeout Shell".split()
)
_OPTIONAL_HOST_CONFIG = "Annotations Mounts StorageOpt Tmpfs Sysctls Runtime Init".split()
_PORT_RANGE = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?")


# -- state --------------------------------------------------------------------------------------------------


def is_running(container: Container) -> bool:
    """Docker's ``State.Running``, which includes paused and restarting containers."""
    return container.state.status in _RUNNING


def status_text(container: Container, health: str = "", now_ns: int | None = None) -> str:
    """The STATUS column: ``Up 4 seconds (Paused)``, ``Exited (3) 2 hours ago``."""
    state = container.state
    now = time.time_ns() if now_ns is None else now_ns
    match state.status:
        case "running":
            note = {"": "", "none": "", "starting": " (health: starting)"}.get(health, f" ({health})")
            return f"Up {_since(state.started_at, now)}{note}"
        case "paused":
            return f"Up {_since(state.started_at, now)} (Paused)"
        case "restarting":
            return f"Restarting ({state.exit_code}) {_since(state.finished_at, now)} ago"
        case "removing":
            return "Removal In Progress"
        case "dead":
            return "Dead"
        case "created":
            return "Created"
        case _:
            if state.finished_at == ZERO_TIME:
                return ""
            return f"Exited ({state.exit_code}) {_since(state.finished_at, now)} ago"


def _since(moment: str, now_ns: int) -> str:
    return human_duration(max(0, now_ns - parse_rfc3339(moment)) / 10**9)


def state_view(container: Container, health: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ``State`` object of inspect."""
    state = container.state
    view = {
        "Status": state.status,
        "Running": is_running(container),
        "Paused": state.status == "paused",
        "Restarting": state.status == "restarting",
        "OOMKilled": state.oom_killed,
        "Dead": state.status == "dead",
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": state.started_at,
        "FinishedAt": state.finished_at,
    }
    if health is not None:
        view["Health"] = health
    return view


# -- the list -----------------------------------------------------------------------------------------------


def summary(container: Container, image_name: str) -> dict[str, Any]:
    """One entry of ``docker ps`` without ``Status`` (which changes by itself) and sizes."""
    mode = {"NetworkMode": container.host_config.network_mode}
    if container.host_config.annotations:
        mode["Annotations"] = container.host_config.annotations  # type: ignore[assignment]
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": image_name,
        "ImageID": container.image_id,
        "Command": _command(container),
        "Created": parse_rfc3339(container.created) // 10**9,
        "Ports": ports_list(container),
        "Labels": container.config.labels or {},
        "State": container.state.status,
        "HostConfig": mode,
        "NetworkSettings": {"Networks": {name: endpoint_view(s) for name, s in container.networks.items()}},
        "Mounts": [mount_view(mount) for mount in container.mounts],
    }


def _command(container: Container) -> str:
    words = (f"'{word}'" if " " in word else word for word in container.args)
    return " ".join((container.path, *words))


def ports_list(container: Container) -> list[dict[str, Any]]:
    """The PORTS column as data: exposed ports, and one entry for each address a port is published at."""
    ports: list[dict[str, Any]] = []
    for port, bindings in container.ports.items():
        number, _, protocol = port.partition("/")
        if not number.isdigit():
            continue
        private = {"PrivatePort": int(number), "Type": protocol or "tcp"}
        if not bindings:
            ports.append(private)
        for binding in bindings or ():
            ports.append({"IP": binding.host_ip, **private, "PublicPort": int(binding.host_port)})
    return ports


def endpoint_view(settings: EndpointSettings) -> dict[str, Any]:
    """An entry of ``NetworkSettings.Networks``."""
    view: dict[str, Any] = msgspec.to_builtins(settings)
    return view


def mount_view(mount: MountPoint) -> dict[str, Any]:
    """An entry of ``Mounts``."""
    view: dict[str, Any] = {"Type": mount.type}
    if mount.name:
        view["Name"] = mount.name
    view["Source"] = mount.source
    view["Destination"] = mount.destination
    if mount.driver:
        view["Driver"] = mount.driver
    return view | {"Mode": mount.mode, "RW": mount.rw, "Propagation": mount.propagation}


# -- inspect ------------------------------------------------------------------------------------------------


def config_view(config: Config) -> dict[str, Any]:
    """``Config`` as inspect shows it."""
    return _without_empty(msgspec.to_builtins(config), _OPTIONAL_CONFIG)


def host_config_view(host_config: HostConfig) -> dict[str, Any]:
    """``HostConfig`` as inspect shows it."""
    return _without_empty(msgspec.to_builtins(host_config), _OPTIONAL_HOST_CONFIG)


def _without_empty(view: dict[str, Any], optional: Iterable[str]) -> dict[str, Any]:
    for key in optional:
        value = view.get(key)
        if value is None or value == "" or value is False or value in ({}, []):
            if key == "Init" and value is False:
                continue
            view.pop(key, None)
    return view


def inspect_view(
    container: Container,
    *,
    directory: str,
    log_path: str,
    graph: Mapping[str, str],
    exec_ids: Sequence[str],
    health: Mapping[str, Any] | None,
    masked_paths: Sequence[str],
    readonly_paths: Sequence[str],
) -> dict[str, Any]:
    """The body of ``docker inspect`` for a container, without sizes."""
    host_config = host_config_view(container.host_config)
    host_config["MaskedPaths"] = list(masked_paths)
    host_config["ReadonlyPaths"] = list(readonly_paths)
    ran = container.state.started_at != ZERO_TIME
    return {
        "Id": container.id,
        "Created": container.created,
        "Path": container.path,
        "Args": container.args,
        "State": state_view(container, health),
        "Image": container.image_id,
        "ResolvConfPath": f"{directory}/resolv.conf" if ran else "",
        "HostnamePath": f"{directory}/hostname" if ran else "",
        "HostsPath": f"{directory}/hosts" if ran else "",
        "LogPath": log_path,
        "Name": f"/{container.name}",
        "RestartCount": container.state.restart_count,
        "Driver": container.store,
        "Platform": container.platform.partition("/")[0],
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": apparmor_profile(container.host_config),
        "ExecIDs": list(exec_ids) or None,
        "HostConfig": host_config,
        "GraphDriver": {"Data": dict(graph) or None, "Name": container.store},
        "Mounts": [mount_view(mount) for mount in container.mounts],
        "Config": config_view(container.config),
        "NetworkSettings": network_view(container),
    }


def apparmor_profile(host_config: HostConfig) -> str:
    """The profile asked for, or empty: which one is in force the security plugin decides at start."""
    for option in host_config.security_opt or ():
        name, _, value = option.replace(":", "=", 1).partition("=")
        if name == "apparmor":
            return value
    return ""


def network_view(container: Container) -> dict[str, Any]:
    """``NetworkSettings``, with the default bridge's addresses repeated at the top as older clients expect."""
    default = container.networks.get("bridge", EndpointSettings())
    return {
        "Bridge": "",
        "SandboxID": container.sandbox_id,
        "SandboxKey": container.sandbox_key,
        "Ports": {port: _bindings(bindings) for port, bindings in container.ports.items()},
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": default.endpoint_id,
        "Gateway": default.gateway,
        "GlobalIPv6Address": default.global_ipv6_address,
        "GlobalIPv6PrefixLen": default.global_ipv6_prefix_len,
        "IPAddress": default.ip_address,
        "IPPrefixLen": default.ip_prefix_len,
        "IPv6Gateway": default.ipv6_gateway,
        "MacAddress": default.mac_address,
        "Networks": {name: endpoint_view(settings) for name, settings in container.networks.items()},
    }


def _bindings(bindings: list[PortBinding] | None) -> list[dict[str, str]] | None:
    if not bindings:
        return None
    return [{"HostIp": binding.host_ip, "HostPort": binding.host_port} for binding in bindings]


# -- filters ------------------------------------------------------------------------------------------------

Match = Callable[[Container], bool]


def check_filters(filters: Mapping[str, Sequence[str]], allowed: Iterable[str]) -> None:
    """`InvalidParameter` in dockerd's words for a filter nobody knows."""
    for name in filters:
        if name not in allowed:
            raise InvalidParameter(f"invalid filter '{name}'")


def matcher(
    filters: Mapping[str, Sequence[str]],
    *,
    lookup: Callable[[str], Container],
    descendants: Callable[[str], frozenset[str]],
    health: Callable[[str], str],
) -> Match:
    """One predicate for all filters of ``docker ps``: values of one key are alternatives, keys must all agree
    (labels too must all be there).

    ``lookup`` finds a container by name or id (before, since); ``descendants`` the ids of images that are or descend
    from a reference (ancestor); ``health`` a container's health by its id.
    """
    check_filters(filters, FILTERS)
    tests = [
        test
        for key, values in filters.items()
        if values and (test := _test(key, values, lookup, descendants, health)) is not None
    ]
    return lambda container: all(test(container) for test in tests)


def _test(
    key: str,
    values: Sequence[str],
    lookup: Callable[[str], Container],
    descendants: Callable[[str], frozenset[str]],
    health: Callable[[str], str],
) -> Match | None:
    match key:
        case "id":
            return lambda c: any(c.id.startswith(value) or _search(value, c.id) for value in values)
        case "name":
            return lambda c: any(_search(value, f"/{c.name}") or _search(value, c.name) for value in values)
        case "label":
            return lambda c: has_labels(c.config.labels or {}, values)
        case "status":
            _one_of("state", values, STATES)
            return lambda c: c.state.status in values
        case "health":
            _one_of("health", values, HEALTH_STATES)
            return lambda c: (health(c.id) or "none") in values
        case "exited":
            codes = {_integer("exited", value) for value in values}
            return lambda c: c.state.exit_code in codes and not is_running(c) and c.state.finished_at != ZERO_TIME
        case "ancestor":
            images = frozenset().union(*(descendants(value) for value in values))
            return lambda c: c.image_id in images
        case "before":
            before = min(lookup(value).created for value in values)
            return lambda c: c.created < before
        case "since":
            since = max(lookup(value).created for value in values)
            return lambda c: c.created > since
        case "volume":
            return lambda c: any(value in (m.name, m.source, m.destination) for m in c.mounts for value in values)
        case "network":
            return lambda c: any(_on_network(c, value) for value in values)
        case "publish":
            published = frozenset().union(*(_ports("publish", value) for value in values))
            return lambda c: (
                any(bound and port in published for port, bound in c.ports.items())
                or any(port in published for port in c.host_config.port_bindings or ())
            )
        case "expose":
            exposed = frozenset().union(*(_ports("expose", value) for value in values))
            return lambda c: any(port in exposed for port in c.config.exposed_ports or ())
        case "isolation":
            return lambda c: (c.host_config.isolation or "default") in values
        case "is-task":
            wanted = {_boolean("is-task", value) for value in values}
            return lambda c: ("com.docker.swarm.task.id" in (c.config.labels or {})) in wanted
    return None


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether every ``key`` or ``key=value`` is among the labels."""
    for value in wanted:
        key, equals, text = value.partition("=")
        if key not in labels or (equals and labels[key] != text):
            return False
    return True


def _search(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return pattern == text


def _on_network(container: Container, wanted: str) -> bool:
    return any(
        name == wanted or (settings.network_id and settings.network_id.startswith(wanted))
        for name, settings in container.networks.items()
    )


def _one_of(what: str, values: Sequence[str], words: Sequence[str]) -> None:
    for value in values:
        if value not in words:
            raise InvalidParameter(f"invalid value for {what} ({value}): must be one of {', '.join(words)}")


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InvalidParameter(f"invalid filter '{name}={value}'") from None


def _boolean(name: str, value: str) -> bool:
    if value.lower() in ("1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise InvalidParameter(f"invalid filter '{name}=[{value}]'")


def _ports(name: str, value: str) -> frozenset[str]:
    found = _PORT_RANGE.fullmatch(value)
    if found is None or int(found[2] or found[1]) > 65535 or int(found[2] or found[1]) < int(found[1]):
        raise InvalidParameter(f'invalid port specification: "{value}"')
    protocol = found[3] or "tcp"
    return frozenset(f"{port}/{protocol}" for port in range(int(found[1]), int(found[2] or found[1]) + 1))
