"""The daemon's configuration: dockerd's flags and daemon.json keys, checked, merged and reloadable.

One declaration per option (`_option`) gives its flag, its key in the file, its type, its default and its help. Options
of dockerd that this engine does not serve are of two kinds: those that change nothing a user could rely on are
accepted, those whose silent absence would mislead (rootless mode, ...) are refused when set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import InvalidParameter

__all__ = ["Config", "Option", "Parsed", "options", "parse_arguments", "usage"]

DEFAULT_FILE = "/etc/engine/daemon.json"
DEFAULT_DATA_ROOT = "/var/lib/engine"
DEFAULT_EXEC_ROOT = "/run/engine"
DEFAULT_TLS = "/etc/engine/tls"
DEFAULT_HOST = "unix:///run/engine.sock"
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How an option is written. ``key`` is its name in daemon.json (empty: flag only), ``flag`` on the command line
    (empty: file only). ``kind``: bool, int, bytes, str, list, map, or json (file only, any value)."""

    name: str
    flag: str
    short: str
    key: str
    kind: str
    help: str
    default: Any
    reload: bool = False
    refused: str = ""
    merged: bool = False


def _option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    short: str = "",
    key: str | None = None,
    kind: str = "",
    reload: bool = False,
    refused: str = "",
    merged: bool = False,
) -> Any:
    """A field of `Config`. ``refused`` says why anything but the default is an error; ``merged`` lets flag and file add
    up instead of conflicting."""
    if not kind:
        kind = {bool: "bool", int: "int", tuple: "list", dict: "map", str: "str"}[type(default)]
    metadata = dict(
        flag=flag, short=short, key=key, kind=kind, help=help, reload=reload, refused=refused, merged=merged
    )
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(slots=True, kw_only=True)
class Config:
    """Everything configurable, with dockerd's meaning; only `apply` changes it (reload)."""

    # -- where -----------------------------------------------------------------------------------------------
    data_root: str = _option(DEFAULT_DATA_ROOT, "Root directory of persistent state")
    exec_root: str = _option(DEFAULT_EXEC_ROOT, "Root directory for execution state files")
    hosts: tuple[str, ...] = _option((), "Daemon socket(s) to connect to", flag="host", short="H")
    group: str = _option("docker", "Group for the unix socket", short="G")
    pidfile: str = _option("", "Path to use for daemon PID file (default <exec-root>/engined.pid)", short="p")
    config_file: str = _option(DEFAULT_FILE, "Daemon configuration file", key="")
    # -- the daemon itself -----------------------------------------------------------------------------------
    debug: bool = _option(False, "Enable debug mode", short="D", reload=True)
    log_level: str = _option(
        "info", 'Set the logging level ("debug"|"info"|"warn"|"error"|"fatal")', short="l", reload=True
    )
    log_format: str = _option("text", 'Set the logging format ("text"|"json")')
    raw_logs: bool = _option(False, "Full timestamps without ANSI coloring")
    labels: tuple[str, ...] = _option((), "Set key=value labels to the daemon", flag="label", reload=True)
    shutdown_timeout: int = _option(15, "Set the default shutdown timeout", reload=True)
    live_restore: bool = _option(True, "Containers outlive the daemon; cannot be turned off", reload=True)
    oom_score_adjust: int = _option(0, "Set the oom_score_adj for the daemon")
    experimental: bool = _option(False, "Enable experimental features")
    features: Mapping[str, object] = _option({}, "Enable feature in the daemon", flag="feature", reload=True)
    insecure_tcp: bool = _option(False, "Serve plain TCP beyond loopback: whoever reaches it is root on this host")
    disabled_plugins: tuple[str, ...] = _option((), "Plugins not to load, by name", flag="disable-plugin")
    required_plugins: tuple[str, ...] = _option(
        (), "Plugins without which the daemon does not start, by name", flag="require-plugin"
    )
    plugin_options: Mapping[str, Any] = _option({}, "Options of drivers: name -> key -> value", flag="", kind="json")
    metrics_addr: str = _option("", "Set address and port to serve the metrics api on", refused="not served yet")
    # -- runtimes and containers' defaults -------------------------------------------------------------------
    runtimes: Mapping[str, Mapping[str, Any]] = _option(
        {}, "Register an additional OCI compatible runtime", flag="add-runtime", merged=True, reload=True
    )
    default_runtime: str = _option("", "Default runtime for containers (default: the best installed)", reload=True)
    cgroup_parent: str = _option("", "Set parent cgroup for all containers")
    default_cgroupns_mode: str = _option("", 'Default mode for containers cgroup namespace ("host"|"private")')
    default_ipc_mode: str = _option("private", 'Default mode for containers ipc ("shareable"|"private")')
    default_shm_size: int = _option(64 << 20, "Default shm size for containers", kind="bytes")
    default_ulimits: Mapping[str, Any] = _option(
        {}, "Default ulimits for containers", flag="default-ulimit", kind="map"
    )
    exec_opts: tuple[str, ...] = _option((), "Runtime execution options", flag="exec-opt")
    init: bool = _option(False, "Run an init in the container to forward signals and reap processes")
    init_path: str = _option("", "Path to the docker-init binary")
    no_new_privileges: bool = _option(False, "Set no-new-privileges by default for new containers")
    seccomp_profile: str = _option("builtin", 'Path to seccomp profile; "unconfined" turns it off')
    selinux_enabled: bool = _option(False, "Enable selinux support", refused="SELinux labels are not supported")
    userns_remap: str = _option("", "User/Group setting for user namespaces", refused="not supported yet")
    rootless: bool = _option(False, "Enable rootless mode", refused="not supported yet")
    authorization_plugins: tuple[str, ...] = _option(
        (), "Authorization plugins to ask about every request", flag="authorization-plugin", reload=True
    )
    cpu_rt_period: int = _option(0, "Limit the CPU real-time period in microseconds", refused="not supported")
    cpu_rt_runtime: int = _option(0, "Limit the CPU real-time runtime in microseconds", refused="not supported")
    node_generic_resources: tuple[str, ...] = _option(
        (), "Advertise user-defined resource", flag="node-generic-resource"
    )
    cdi_spec_dirs: tuple[str, ...] = _option((), "CDI specification directories to use", flag="cdi-spec-dir")
    # -- logs of containers ----------------------------------------------------------------------------------
    log_driver: str = _option("json-file", "Default driver for container logs")
    log_opts: Mapping[str, str] = _option({}, "Default log driver options for containers", flag="log-opt")
    # -- images and registries -------------------------------------------------------------------------------
    storage_driver: str = _option("", "Storage driver to use (default: the best that works)", short="s")
    storage_opts: tuple[str, ...] = _option((), "Storage driver options", flag="storage-opt")
    registry_mirrors: tuple[str, ...] = _option((), "Preferred registry mirror", flag="registry-mirror", reload=True)
    insecure_registries: tuple[str, ...] = _option(
        (), "Enable insecure registry communication", flag="insecure-registry", reload=True
    )
    allow_nondistributable_artifacts: tuple[str, ...] = _option(
        (), "Allow push of nondistributable artifacts to registry", reload=True
    )
    max_concurrent_downloads: int = _option(3, "Set the max concurrent downloads", reload=True)
    max_concurrent_uploads: int = _option(5, "Set the max concurrent uploads", reload=True)
    max_download_attempts: int = _option(5, "Set the max download attempts for each pull", reload=True)
    http_proxy: str = _option("", "HTTP proxy URL to use for outgoing traffic", key="")
    https_proxy: str = _option("", "HTTPS proxy URL to use for outgoing traffic", key="")
    no_proxy: str = _option("", "Comma-separated list of hosts or IP addresses for which the proxy is skipped", key="")
    proxies: Mapping[str, Any] = _option({}, "http-proxy, https-proxy, no-proxy", flag="", kind="json")
    # -- networks --------------------------------------------------------------------------------------------
    bridge: str = _option("", "Attach containers to a network bridge", short="b")
    bip: str = _option("", "Specify network bridge IP")
    bip6: str = _option("", "Specify IPv6 network bridge IP")
    fixed_cidr: str = _option("", "IPv4 subnet for fixed IPs")
    fixed_cidr_v6: str = _option("", "IPv6 subnet for fixed IPs")
    default_gateway: str = _option("", "Container default gateway IPv4 address")
    default_gateway_v6: str = _option("", "Container default gateway IPv6 address")
    default_address_pools: tuple[Mapping[str, Any], ...] = _option(
        (), "Default address pools for node specific local networks", flag="default-address-pool", kind="pools"
    )
    default_network_opts: Mapping[str, Mapping[str, str]] = _option(
        {}, "Default network options", flag="default-network-opt", kind="json"
    )
    dns: tuple[str, ...] = _option((), "DNS server to use")
    dns_opts: tuple[str, ...] = _option((), "DNS options to use", flag="dns-opt")
    dns_search: tuple[str, ...] = _option((), "DNS search domains to use")
    host_gateway_ips: tuple[str, ...] = _option(
        (), "IP address that the special 'host-gateway' string resolves to", flag="host-gateway-ip"
    )
    icc: bool = _option(True, "Enable inter-container communication on the default bridge")
    ip: str = _option("", "Default IP when binding container ports (default: all)")
    ip_forward: bool = _option(True, "Enable IP forwarding on the host")
    ip_forward_no_drop: bool = _option(False, "Do not set the filter-FORWARD policy to DROP")
    ip_masq: bool = _option(True, "Enable IP masquerading")
    iptables: bool = _option(True, "Let the engine write firewall rules", refused="the engine needs its rules")
    ip6tables: bool = _option(True, "Let the engine write IPv6 firewall rules")
    ipv6: bool = _option(False, "Enable IPv6 networking on the default bridge")
    allow_direct_routing: bool = _option(False, "Allow remote access to published ports on container IP addresses")
    firewall_backend: str = _option("", "Firewall backend to use (nftables)")
    mtu: int = _option(0, "Set the MTU of the default bridge network")
    network_control_plane_mtu: int = _option(1500, "Network Control plane MTU")
    userland_proxy: bool = _option(True, "Use userland proxy for loopback traffic")
    userland_proxy_path: str = _option("", "Path to the userland proxy binary")
    # -- TLS -------------------------------------------------------------------------------------------------
    tls: bool = _option(False, "Use TLS; implied by --tlsverify")
    tlsverify: bool = _option(False, "Use TLS and verify the remote")
    tlscacert: str = _option("", f"Trust certs signed only by this CA (default {DEFAULT_TLS}/ca.pem)")
    tlscert: str = _option("", f"Path to TLS certificate file (default {DEFAULT_TLS}/cert.pem)")
    tlskey: str = _option("", f"Path to TLS key file (default {DEFAULT_TLS}/key.pem)")
    # -- of dockerd's own parts, which do not exist here -----------------------------------------------------
    api_cors_header: str = _option("", "Set CORS headers in the Engine API", refused="removed from Docker as well")
    builder: Mapping[str, Any] = _option({}, "Builder settings", flag="", kind="json")
    containerd: str = _option("", "containerd grpc address; this engine uses none")
    containerd_namespace: str = _option("moby", "Containerd namespace; this engine uses none")
    containerd_plugins_namespace: str = _option("plugins.moby", "Containerd namespace; this engine uses none")
    cri_containerd: bool = _option(False, "Start containerd with cri", refused="this engine runs no containerd")
    swarm_default_advertise_addr: str = _option("", "Set default address or interface for swarm advertised address")

    # -- what follows from them ------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The data root, absolute, links resolved."""
        return Path(os.path.realpath(self.data_root))

    @property
    def state(self) -> Path:
        """The exec root, absolute."""
        return Path(os.path.abspath(self.exec_root))

    @property
    def instance(self) -> str:
        """8 hex digits that name this engine on this host: the start of the data root's SHA-256."""
        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    @property
    def pid_path(self) -> Path:
        """Where the daemon writes its process id."""
        return Path(self.pidfile) if self.pidfile else self.state / "engined.pid"

    @property
    def listen(self) -> tuple[str, ...]:
        """The hosts to serve; `DEFAULT_HOST` when none is configured."""
        return self.hosts or (DEFAULT_HOST,)

    @property
    def tls_files(self) -> tuple[str, str, str] | None:
        """Certificate, key, and the CA of the clients (empty: none is asked for); None without TLS."""
        if not (self.tls or self.tlsverify):
            return None
        ca = self.tlscacert or f"{DEFAULT_TLS}/ca.pem"
        return (
            self.tlscert or f"{DEFAULT_TLS}/cert.pem",
            self.tlskey or f"{DEFAULT_TLS}/key.pem",
            ca if self.tlsverify else "",
        )

    def proxy(self, name: str) -> str:
        """``http-proxy``, ``https-proxy`` or ``no-proxy``: flag, then file, then the environment."""
        key = name.replace("-", "_")
        return (
            getattr(self, key)
            or str(self.proxies.get(name, ""))
            or os.environ.get(key.upper(), "")
            or os.environ.get(key, "")
        )

    def apply(self, new: Config) -> dict[str, Any]:
        """Take over the reloadable options of ``new``; returns what changed, by key."""
        changed: dict[str, Any] = {}
        for option in options():
            value = getattr(new, option.name)
            if option.reload and getattr(self, option.name) != value:
                setattr(self, option.name, value)
                changed[option.key] = value
        return changed

    def check(self) -> None:
        """Raise `InvalidParameter` for values that make no sense, alone or together, and for refused options."""
        for option in options():
            if option.refused and getattr(self, option.name) != option.default:
                label = f"--{option.flag}" if option.flag else option.key
                raise InvalidParameter(f"{label}: {option.refused}")
        if self.log_level not in LOG_LEVELS:
            raise InvalidParameter(f'invalid logging level: not a valid logrus Level: "{self.log_level}"')
        if self.log_format not in ("text", "json"):
            raise InvalidParameter(f"invalid log format: {self.log_format}")
        for label in self.labels:
            if not re.fullmatch(r"[^=]+=.*", label, re.DOTALL):
                raise InvalidParameter(f"bad attribute format: {label}")
        _check_unique_labels(self.labels)
        for name in ("max_concurrent_downloads", "max_concurrent_uploads", "max_download_attempts"):
            _check_at_least(name, getattr(self, name), 0 if "concurrent" in name else 1)
        for name in ("mtu", "shutdown_timeout"):
            _check_at_least(name, getattr(self, name), -1 if name == "shutdown_timeout" else 0)
        self._check_modes()
        self._check_networks()
        for option_text in self.exec_opts:
            key, _, value = option_text.partition("=")
            if key != "native.cgroupdriver":
                raise InvalidParameter(f"invalid exec-opt {key!r}: only native.cgroupdriver is known")
            if value != "cgroupfs":
                raise InvalidParameter(f"exec-opt native.cgroupdriver={value}: only cgroupfs is supported")
        if self.firewall_backend not in ("", "nftables"):
            raise InvalidParameter(f'firewall-backend "{self.firewall_backend}": only nftables is supported')

    def _check_modes(self) -> None:
        if self.default_cgroupns_mode not in ("", "host", "private"):
            raise InvalidParameter(
                f'invalid default cgroup namespace ("{self.default_cgroupns_mode}"). Use "host" or "private"'
            )
        if self.default_ipc_mode not in ("private", "shareable"):
            raise InvalidParameter(
                f"ipc mode not supported for daemon (--default-ipc-mode={self.default_ipc_mode}): "
                "use private or shareable"
            )
        if "runc" in self.runtimes:
            raise InvalidParameter("runtime name 'runc' is reserved")

    def _check_networks(self) -> None:
        if self.bridge and (self.bip or self.bip6):
            raise InvalidParameter("You specified -b & --bip, mutually exclusive options. Please specify only one")
        for name in ("bip", "bip6", "fixed_cidr", "fixed_cidr_v6"):
            value = getattr(self, name)
            try:
                ipaddress.ip_interface(value or "0.0.0.0/0")
            except ValueError:
                raise InvalidParameter(f"--{name.replace('_', '-')}: invalid CIDR address: {value}") from None
        for name in ("default_gateway", "default_gateway_v6", "ip"):
            _check_address(name, getattr(self, name))
        for address in self.dns:
            _check_address("dns", address)
        for pool in self.default_address_pools:
            _check_pool(pool)


def options() -> tuple[Option, ...]:
    """All options, in the order of `Config`."""
    return _OPTIONS


def _collect() -> tuple[Option, ...]:
    found = []
    for item in dataclasses.fields(Config):
        data = dict(item.metadata)
        dashed = item.name.replace("_", "-")
        data["flag"] = dashed if data["flag"] is None else data["flag"]
        data["key"] = dashed if data["key"] is None else data["key"]
        default = {} if item.default is MISSING else item.default
        found.append(Option(name=item.name, default=default, **data))
    return tuple(found)


_OPTIONS = _collect()
_BY_FLAG = {f"--{option.flag}": option for option in _OPTIONS if option.flag} | {
    f"-{option.short}": option for option in _OPTIONS if option.short
}
_BY_KEY = {option.key: option for option in _OPTIONS if option.key}
_BY_KEY["host-gateway-ip"] = _BY_KEY["host-gateway-ips"]


# -- the command line -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the command line said: option values by name, and which of the three special flags were there."""

    values: Mapping[str, Any]
    help: bool = False
    version: bool = False
    validate: bool = False

    def load(self) -> Config:
        """Read the configuration file and merge, as dockerd: what both say is an error. Raises `InvalidParameter`."""
        path = self.values.get("config_file", DEFAULT_FILE)
        from_file = _read_file(path, required="config_file" in self.values)
        try:
            merged = _merge(self.values, from_file)
            config = Config(**merged)
            config.check()
        except InvalidParameter as error:
            if from_file:
                raise InvalidParameter(f"unable to configure the engine with file {path}: {error}") from None
            raise
        return config


def parse_arguments(arguments: Sequence[str]) -> Parsed:
    """Read ``engined``'s arguments with the grammar of dockerd's (pflag). Raises `InvalidParameter`."""
    values: dict[str, Any] = {}
    special: dict[str, bool] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            raise InvalidParameter(f'"engined" accepts no arguments: {word}')
        if word.startswith("--"):
            _long_flag(word, rest, values, special)
        else:
            _short_flags(word, rest, values, special)
    return Parsed(values, **special)


_SPECIAL = {"--help": "help", "--version": "version", "--validate": "validate", "-h": "help", "-v": "version"}


def _long_flag(word: str, rest: list[str], values: dict[str, Any], special: dict[str, bool]) -> None:
    flag, equals, text = word.partition("=")
    if flag in _SPECIAL:
        special[_SPECIAL[flag]] = True
        return
    option = _BY_FLAG.get(flag)
    if option is None:
        raise InvalidParameter(f"unknown flag: {flag}")
    if not equals:
        if option.kind == "bool":
            text = "true"
        elif not rest:
            raise InvalidParameter(f"flag needs an argument: {flag}")
        else:
            text = rest.pop(0)
    _set(values, option, text, flag)


def _short_flags(word: str, rest: list[str], values: dict[str, Any], special: dict[str, bool]) -> None:
    letters = word[1:]
    while letters:
        flag, letters = f"-{letters[0]}", letters[1:]
        if flag in _SPECIAL:
            special[_SPECIAL[flag]] = True
            continue
        option = _BY_FLAG.get(flag)
        if option is None:
            raise InvalidParameter(f"unknown shorthand flag: '{flag[1]}' in {word}")
        if option.kind == "bool" and not letters.startswith("="):
            _set(values, option, "true", flag)
            continue
        text, letters = letters.removeprefix("="), ""
        if not text:
            if not rest:
                raise InvalidParameter(f"flag needs an argument: '{flag[1]}' in {word}")
            text = rest.pop(0)
        _set(values, option, text, flag)


def _set(values: dict[str, Any], option: Option, text: str, flag: str) -> None:
    try:
        value = _from_text(option, text)
    except ValueError as error:
        name = f"-{option.short}, --{option.flag}" if option.short else f"--{option.flag}"
        raise InvalidParameter(f'invalid argument "{text}" for "{name}" flag: {error}') from None
    if option.kind in ("list", "pools"):
        values[option.name] = (*values.get(option.name, ()), *value)
    elif isinstance(value, dict):
        values[option.name] = {**values.get(option.name, {}), **value}
    else:
        values[option.name] = value


def _from_text(option: Option, text: str) -> Any:
    match option.kind:
        case "bool":
            if text.lower() not in ("1", "t", "true", "0", "f", "false"):
                raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
            return text.lower() in ("1", "t", "true")
        case "int":
            if not re.fullmatch(r"[+-]?\d+", text):
                raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
            return int(text)
        case "bytes":
            return _bytes(text)
        case "list":
            return (text,)
        case "pools":
            return (_pool(text),)
        case "map" | "json":
            return _pair(option, text)
        case _:
            return text


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([bkmgt]?)i?b?", text.strip().lower())
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(match[1]) * _UNITS[match[2]])


def _pair(option: Option, text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if option.name == "runtimes":
        if not equals or not key or not value:
            raise ValueError("use name=path")
        return {key.lower(): {"path": value}}
    if option.name == "default_ulimits":
        return {key: _ulimit(key, value)}
    if option.name == "features":
        return {key: _from_text(dataclasses.replace(option, kind="bool"), value or "true")}
    if option.name == "default_network_opts":
        driver, _, rest = key, equals, value
        name, _, setting = rest.partition("=")
        return {driver: {name: setting}}
    if not equals:
        raise ValueError(f"invalid argument {text}, use key=value")
    return {key: value}


def _ulimit(name: str, text: str) -> dict[str, Any]:
    soft, _, hard = text.partition(":")
    if not re.fullmatch(r"-?\d+", soft) or (hard and not re.fullmatch(r"-?\d+", hard)):
        raise ValueError(f"invalid ulimit argument: {name}={text}")
    return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}


def _pool(text: str) -> dict[str, Any]:
    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    if set(pairs) != {"base", "size"} or not pairs["size"].isdigit():
        raise ValueError(f"invalid pool {text}: use base=CIDR,size=N")
    return {"base": pairs["base"], "size": int(pairs["size"])}


# -- the file ---------------------------------------------------------------------------------------------------


def _read_file(path: str, *, required: bool) -> dict[str, Any]:
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        if required:
            raise InvalidParameter(
                f"unable to configure the engine with file {path}: open {path}: no such file or directory"
            ) from None
        return {}
    except OSError as error:
        raise InvalidParameter(f"unable to configure the engine with file {path}: {error.strerror}") from None
    if not raw.strip():
        return {}
    try:
        content = msgspec.json.decode(raw.removeprefix(b"\xef\xbb\xbf"))
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"unable to configure the engine with file {path}: invalid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidParameter(f"unable to configure the engine with file {path}: the document must be an object")
    return content


def _merge(flags: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in content if key not in _BY_KEY]
    if unknown:
        raise InvalidParameter(
            f"the following directives don't match any configuration option: {', '.join(sorted(unknown))}"
        )
    merged = dict(flags)
    conflicts = []
    for key, raw in content.items():
        option = _BY_KEY[key]
        if raw is None:
            continue
        value = _from_json(option, key, raw)
        if option.name not in flags:
            merged[option.name] = value
        elif option.merged:
            merged[option.name] = {**value, **flags[option.name]}
        else:
            conflicts.append(f"{key}: (from flag: {_go(flags[option.name])}, from file: {_go(value)})")
    if conflicts:
        raise InvalidParameter(
            "the following directives are specified both as a flag and in the configuration file: "
            + ", ".join(conflicts)
        )
    return merged


def _from_json(option: Option, key: str, raw: Any) -> Any:
    expected: dict[str, tuple[type, ...]] = {
        "bool": (bool,),
        "int": (int,),
        "bytes": (int, str),
        "str": (str,),
        "list": (list,),
        "pools": (list,),
        "map": (dict,),
        "json": (dict,),
    }
    right = isinstance(raw, expected[option.kind]) and (option.kind == "bool" or not isinstance(raw, bool))
    if option.kind == "list" and key == "host-gateway-ip" and isinstance(raw, str):
        return (raw,)
    if not right or (option.kind == "list" and not all(isinstance(item, str) for item in raw)):
        raise InvalidParameter(f"{key}: wrong type of value in the configuration file: {_go(raw)}")
    if option.kind == "bytes":
        try:
            return _bytes(str(raw))
        except ValueError as error:
            raise InvalidParameter(f"{key}: {error}") from None
    return tuple(raw) if isinstance(raw, list) else raw


def _go(value: Any) -> str:
    """A value as Go's ``%v`` shows it."""
    match value:
        case bool():
            return "true" if value else "false"
        case list() | tuple():
            return f"[{' '.join(map(_go, value))}]"
        case dict():
            return "map[" + " ".join(f"{key}:{_go(item)}" for key, item in sorted(value.items())) + "]"
        case _:
            return str(value)


# -- checks -----------------------------------------------------------------------------------------------------


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        word = {"mtu": "default MTU", "shutdown_timeout": "shutdown timeout"}.get(name, name.replace("_", " "))
        raise InvalidParameter(f"invalid {word}: {value}")


def _check_address(name: str, value: str) -> None:
    try:
        ipaddress.ip_address(value or "0.0.0.0")  # noqa: S104 - parsed, not bound
    except ValueError:
        raise InvalidParameter(f"--{name.replace('_', '-')}: {value} is not an ip address") from None


def _check_unique_labels(labels: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        key, _, value = label.partition("=")
        if seen.setdefault(key, value) != value:
            raise InvalidParameter(f"conflict labels for {key}={value} and {key}={seen[key]}")


def _check_pool(pool: Mapping[str, Any]) -> None:
    try:
        network = ipaddress.ip_network(str(pool["base"]))
        size = int(pool["size"])
    except (KeyError, ValueError):
        raise InvalidParameter(f"invalid default-address-pools entry: {_go(dict(pool))}") from None
    if not network.prefixlen <= size <= network.max_prefixlen:
        raise InvalidParameter(f"the default-address-pools entry {network} has an invalid size {size}")


def usage() -> str:
    """The text of ``engined --help``."""
    lines = ["Usage:  engined [OPTIONS]", "", "A self-sufficient runtime for containers.", "", "Options:"]
    rows = []
    for option in _OPTIONS:
        if not option.flag:
            continue
        kind = {"bool": "", "list": " list", "pools": " pool-options", "str": " string", "json": " map"}.get(
            option.kind, f" {option.kind}"
        )
        left = f"-{option.short}, --{option.flag}" if option.short else f"    --{option.flag}"
        default = option.default
        shown = (
            f" (default {_go(default)})" if default and option.kind != "bool" and "default" not in option.help else ""
        )
        shown = " (default true)" if default is True else shown
        rows.append((option.flag, f"  {left}{kind}", option.help + shown))
    rows.append(("help", "      --help", "Print usage"))
    rows.append(("validate", "      --validate", "Validate the configuration and exit"))
    rows.append(("version", "  -v, --version", "Print version information and quit"))
    width = max(len(left) for _, left, _ in rows) + 3
    lines += [f"{left:<{width}}{text}" for _, left, text in sorted(rows)]
    return "\n".join(lines) + "\n"
