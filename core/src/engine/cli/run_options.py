"""From the flags of ``run`` and ``create`` to the body of the API's create call, as the docker CLI does it."""

from __future__ import annotations

import os
import re

from engine.cli.failures import Failure
from engine.cli.flags import Flags, parse_bool, parse_int, parse_uint, parse_uint16
from engine.cli.units import parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

FLAGS = """
- add-host list Add a custom host-to-IP mapping (host:ip)
- annotation map Add an annotation to the container (passed through to the OCI runtime) (default map[])
a attach list Attach to STDIN, STDOUT or STDERR
- blkio-weight uint16 Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)
- blkio-weight-device list Block IO weight (relative device weight) (default [])
- cap-add list Add Linux capabilities
- cap-drop list Drop Linux capabilities
- cgroup-parent string Optional parent cgroup for the container
- cgroupns string Cgroup namespace to use (host|private); empty: as configured by the daemon
- cidfile string Write the container ID to the file
- cpu-count int CPU count (Windows only)
- cpu-percent int CPU percent (Windows only)
- cpu-period int Limit CPU CFS (Completely Fair Scheduler) period
- cpu-quota int Limit CPU CFS (Completely Fair Scheduler) quota
- cpu-rt-period int Limit CPU real-time period in microseconds
- cpu-rt-runtime int Limit CPU real-time runtime in microseconds
c cpu-shares int CPU shares (relative weight)
- cpus decimal Number of CPUs
- cpuset-cpus string CPUs in which to allow execution (0-3, 0,1)
- cpuset-mems string MEMs in which to allow execution (0-3, 0,1)
- device list Add a host device to the container
- device-cgroup-rule list Add a rule to the cgroup allowed devices list
- device-read-bps list Limit read rate (bytes per second) from a device (default [])
- device-read-iops list Limit read rate (IO per second) from a device (default [])
- device-write-bps list Limit write rate (bytes per second) to a device (default [])
- device-write-iops list Limit write rate (IO per second) to a device (default [])
- !disable-content-trust bool=true Skip image verification
- dns list Set custom DNS servers
- !dns-opt list Set DNS options
- dns-option list Set DNS options
- dns-search list Set custom DNS search domains
- domainname string Container NIS domain name
- entrypoint string Overwrite the default ENTRYPOINT of the image
e env list Set environment variables
- env-file list Read in a file of environment variables
- expose list Expose a port or a range of ports
- gpus gpu-request GPU devices to add to the container ('all' to pass all GPUs)
- group-add list Add additional groups to join
- health-cmd string Command to run to check health
- health-interval duration Time between running the check (ms|s|m|h) (default 0s)
- health-retries int Consecutive failures needed to report unhealthy
- health-start-interval duration Time between running the check during the start period (ms|s|m|h) (default 0s)
- health-start-period duration Start period for the container to initialize before starting health-retries countdown \
(ms|s|m|h) (default 0s)
- health-timeout duration Maximum time to allow one check to run (ms|s|m|h) (default 0s)
h hostname string Container host name
- init bool Run an init inside the container that forwards signals and reaps processes
i interactive bool Keep STDIN open even if not attached
- io-maxbandwidth bytes Maximum IO bandwidth limit for the system drive (Windows only)
- io-maxiops uint Maximum IOps limit for the system drive (Windows only)
- ip string IPv4 address (e.g., 172.30.100.104)
- ip6 string IPv6 address (e.g., 2001:db8::33)
- ipc string IPC mode to use
- isolation string Container isolation technology
- kernel-memory bytes Kernel memory limit
l label list Set meta data on a container
- label-file list Read in a line delimited file of labels
- link list Add link to another container
- link-local-ip list Container IPv4/IPv6 link-local addresses
- log-driver string Logging driver for the container
- log-opt list Log driver options
- mac-address string Container MAC address (e.g., 92:d0:c6:0a:29:33)
m memory bytes Memory limit
- memory-reservation bytes Memory soft limit
- memory-swap swap Swap limit equal to memory plus swap: '-1' to enable unlimited swap
- memory-swappiness int=-1 Tune container memory swappiness (0 to 100) (default -1)
- mount mount Attach a filesystem mount to the container
- name string Assign a name to the container
- !net network Connect a container to a network
- !net-alias list Add network-scoped alias for the container
- network network Connect a container to a network
- network-alias list Add network-scoped alias for the container
- no-healthcheck bool Disable any container-specified HEALTHCHECK
- oom-kill-disable bool Disable OOM Killer
- oom-score-adj int Tune host's OOM preferences (-1000 to 1000)
- pid string PID namespace to use
- pids-limit int Tune container pids limit (set -1 for unlimited)
- platform string Set platform if server is multi-platform capable
- privileged bool Give extended privileges to this container
p publish list Publish a container's port(s) to the host
P publish-all bool Publish all exposed ports to random ports
- pull string=missing Pull image before running ("always", "missing", "never") (default "missing")
q quiet bool Suppress the pull output
- read-only bool Mount the container's root filesystem as read only
- restart string=no Restart policy to apply when a container exits (default "no")
- rm bool Automatically remove the container and its associated anonymous volumes when it exits
- runtime string Runtime to use for this container
- security-opt list Security Options
- shm-size bytes Size of /dev/shm
- stop-signal string Signal to stop the container
- stop-timeout int Timeout (in seconds) to stop a container
- storage-opt list Storage driver options for the container
- sysctl map Sysctl options (default map[])
- tmpfs list Mount a tmpfs directory
t tty bool Allocate a pseudo-TTY
- ulimit ulimit Ulimit options (default [])
- use-api-socket bool Bind mount the API socket
u user string Username or UID (format: <name|uid>[:<group|gid>])
- userns string User namespace to use
- uts string UTS namespace to use
v volume list Bind mount a volume
- volume-driver string Optional volume driver for the container
- volumes-from list Mount volumes from the specified container(s)
w workdir string Working directory inside the container
"""
ALL_INTERFACES = ""
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}|([0-9a-fA-F]{4}\.){2}[0-9a-fA-F]{4}")
_CDI = re.compile(r"[A-Za-z][\w.-]*[A-Za-z0-9]/[A-Za-z][\w-]*[A-Za-z0-9]=[A-Za-z0-9][\w.:-]*")
_CGROUP_RULE = re.compile(r"[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}")


class OptionError(Failure):
    """The flags make no sense together; reported like a daemon's refusal."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 125)


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """``k=v`` texts as a map; a text without ``=`` has an empty value."""
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def _file_lines(path: str, flag: str, lookup: Callable[[str], str | None]) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            content = file.read().split("\n")
    except OSError as error:
        raise OptionError(f"--{flag}: open {path}: {(error.strerror or '').lower()}") from None
    found = []
    for line in content:
        line = line.removesuffix("\r").lstrip()
        if not line or line[0] == "#":
            continue
        name, equals, _ = line.partition("=")
        if not name:
            raise OptionError(f"--{flag}: invalid env file ({path}): no variable name on line '{line}'")
        if any(space in name for space in " \t"):
            raise OptionError(f"--{flag}: invalid env file ({path}): variable '{name}' contains whitespaces")
        if equals:
            found.append(line)
        elif (value := lookup(name)) is not None:
            found.append(f"{name}={value}")
    return found


def environment(files: Iterable[str], texts: Iterable[str]) -> list[str]:
    """``--env-file`` and ``--env``; a bare name takes the client's value."""
    result: list[str] = []
    for path in files:
        result += _file_lines(path, "env-file", os.environ.get)
    for text in texts:
        name, equals, _ = text.partition("=")
        if not name:
            raise OptionError(f'invalid argument "{text}" for "-e, --env" flag: invalid environment variable: {text}')
        value = os.environ.get(name)
        result.append(text if equals or value is None else f"{name}={value}")
    return result


def restart_policy(text: str) -> dict[str, Any]:
    """``no``, ``always``, ``unless-stopped``, ``on-failure[:count]``."""
    if not text:
        return {"Name": "", "MaximumRetryCount": 0}
    name, colon, count = text.partition(":")
    if colon and not name:
        raise OptionError("invalid restart policy format: no policy provided before colon")
    retries = 0
    if count:
        try:
            retries = parse_int(count)
        except ValueError:
            raise OptionError("invalid restart policy format: maximum retry count must be an integer") from None
    return {"Name": name, "MaximumRetryCount": retries}


def _port(text: str, what: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        low, high = parse_uint16(first), parse_uint16(last if dash else first)
    except ValueError:
        raise OptionError(f"invalid {what}: {text}") from None
    if high < low:
        raise OptionError(f"invalid {what}: invalid range specified for port: {text}" if what == "x" else
                          f"invalid {what}: {text}")  # fmt: skip
    return low, high


def published(text: str) -> Iterable[tuple[str, dict[str, str]]]:
    """One ``--publish``: container ports with the host addresses they are bound to."""
    if "=" in text:
        fields = {"protocol": "tcp"}
        for item in text.split(","):
            key, equals, value = item.partition("=")
            if not equals or not key:
                raise OptionError(f"invalid publish opts format (should be name=value but got '{item}')")
            fields[key] = value
        text = f"{fields.get('published', '')}:{fields.get('target', '')}/{fields['protocol']}"
    rest, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    *before, container = rest.rsplit(":", 1)
    host, address = "", ""
    if before:
        address, _, host = before[0].rpartition(":")
        address = address.strip()
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        if address and not _is_address(address):
            raise OptionError(f"invalid IP address: {address}")
    if not container:
        raise OptionError(f"no port specified: {text}<empty>")
    low, high = _port(container, "containerPort")
    host_low, host_high = _port(host, "hostPort") if host else (0, 0)
    if protocol not in ("tcp", "udp", "sctp"):
        raise OptionError(f"invalid proto: {protocol}")
    if host and high - low != host_high - host_low and high != low:
        raise OptionError(f"invalid ranges specified for container and host Ports: {container} and {host}")
    for offset in range(high - low + 1):
        binding = str(host_low + offset) if host else ""
        if high == low and host_low != host_high:
            binding = f"{host_low}-{host_high}"
        yield f"{low + offset}/{protocol}", {"HostIp": address, "HostPort": binding}


def _is_address(text: str) -> bool:
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text)
        except OSError:
            continue
        return True
    return False


def _exposed(text: str) -> Iterable[str]:
    if ":" in text:
        raise OptionError(f"invalid port format for --expose: {text}")
    ports, _, protocol = text.partition("/")
    try:
        first, dash, last = ports.partition("-")
        low, high = parse_uint16(first), parse_uint16(last if dash else first)
        if high < low:
            raise ValueError(f"invalid range specified for port: {text}")
    except ValueError as error:
        raise OptionError(f"invalid range format for --expose: {text}, error: {error}") from None
    return [f"{number}/{(protocol or 'tcp').lower()}" for number in range(low, high + 1)]


def mount(text: str) -> dict[str, Any]:
    """One ``--mount``. ValueError in docker's words."""
    import csv

    result: dict[str, Any] = {"Type": "volume"}
    options: dict[str, dict[str, Any]] = {}

    def group(name: str) -> dict[str, Any]:
        return options.setdefault(name, {"Labels": {}, "DriverConfig": {}} if name == "VolumeOptions" else {})

    def boolean(key: str, value: str) -> bool:
        try:
            return parse_bool(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}") from None

    for field in next(csv.reader([text]), []):
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals and key not in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive"):
            raise ValueError(f"invalid field '{field}' must be a key=value pair")
        value = value if equals else "true"
        if key == "type":
            result["Type"] = value.lower()
        elif key in ("source", "src"):
            result["Source"] = os.path.abspath(value) if value.startswith(".") else value
        elif key in ("target", "dst", "destination"):
            result["Target"] = value
        elif key in ("readonly", "ro"):
            result["ReadOnly"] = boolean(key, value)
        elif key == "consistency":
            result["Consistency"] = value.lower()
        elif key == "bind-propagation":
            group("BindOptions")["Propagation"] = value.lower()
        elif key == "bind-nonrecursive":
            group("BindOptions")["NonRecursive"] = boolean(key, value)
        elif key == "bind-recursive":
            names = {"enabled": "", "disabled": "NonRecursive", "writable": "ReadOnlyNonRecursive",
                     "readonly": "ReadOnlyForceRecursive"}  # fmt: skip
            if value not in names:
                raise ValueError(f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or "readonly")')
            if names[value]:
                group("BindOptions")[names[value]] = True
        elif key == "volume-subpath":
            group("VolumeOptions")["Subpath"] = value
        elif key == "volume-nocopy":
            group("VolumeOptions")["NoCopy"] = boolean(key, value)
        elif key == "volume-label":
            group("VolumeOptions")["Labels"].update(pairs([value]))
        elif key == "volume-driver":
            group("VolumeOptions")["DriverConfig"]["Name"] = value
        elif key == "volume-opt":
            group("VolumeOptions")["DriverConfig"].setdefault("Options", {}).update(pairs([value]))
        elif key == "image-subpath":
            group("ImageOptions")["Subpath"] = value
        elif key == "tmpfs-size":
            try:
                group("TmpfsOptions")["SizeBytes"] = parse_bytes(value)
            except ValueError:
                raise ValueError(f"invalid value for {key}: {value}") from None
        elif key == "tmpfs-mode":
            try:
                group("TmpfsOptions")["Mode"] = int(value, 8)
            except ValueError:
                raise ValueError(f"invalid value for {key}: {value}") from None
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if not result["Type"]:
        raise ValueError("type is required")
    if not result.get("Target"):
        raise ValueError("target is required")
    for name in ("VolumeOptions", "ImageOptions", "BindOptions", "TmpfsOptions"):
        kind = name.removesuffix("Options").lower()
        if name in options and result["Type"] != kind:
            raise ValueError(f"cannot mix '{kind}-*' options with mount type '{result['Type']}'")
    bind = options.get("BindOptions", {})
    for field, word in (("ReadOnlyNonRecursive", "writable"), ("ReadOnlyForceRecursive", "readonly")):
        if bind.get(field) and not result.get("ReadOnly"):
            raise ValueError(f"option 'bind-recursive={word}' requires 'readonly' to be specified in conjunction")
    if bind.get("ReadOnlyForceRecursive") and bind.get("Propagation") != "rprivate":
        raise ValueError("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
    return {**result, **options}


def ulimit(text: str) -> dict[str, Any]:
    """``name=soft[:hard]``. ValueError in docker's words."""
    name, equals, limits = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    known = "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
    if name not in known.split():
        raise ValueError(f"invalid ulimit type: {name}")
    soft, colon, hard = limits.partition(":")
    values = [parse_int(soft), parse_int(hard if colon else soft)]
    if values[1] != -1 and (values[0] > values[1] or values[0] == -1):
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {values[0]} > {values[1]}")
    return {"Name": name, "Hard": values[1], "Soft": values[0]}


def gpus(text: str) -> dict[str, Any]:
    """``--gpus``: ``all``, a count, or ``key=value`` fields. ValueError in docker's words."""
    import csv

    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}

    def count(value: str) -> int:
        if value == "all":
            return -1
        try:
            return parse_int(value)
        except ValueError:
            raise ValueError(f'invalid count ({value}): value must be either "all" or an integer') from None

    seen = set()
    for index, field in enumerate(next(csv.reader([text]), [])):
        key, equals, value = field.partition("=")
        if not equals and index:
            raise ValueError(f"invalid field '{field}' must be a key=value pair") if key != "all" else ValueError("x")
        if not equals:
            key, value = "count", field
        if key in seen:
            raise ValueError(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if key == "driver":
            request["Driver"] = value
        elif key == "count":
            request["Count"] = count(value)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = pairs(next(csv.reader([value]), []))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and not request["DeviceIDs"]:
        request["Count"] = 1
    return request


def _weighted(text: str) -> dict[str, Any]:
    path, colon, weight = text.partition(":")
    if not colon or not path:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    try:
        value = parse_uint(weight)
    except ValueError:
        value = -1
    if value and not 10 <= value <= 1000:
        raise ValueError(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": value}


def _throttled(size: bool) -> Callable[[str], dict[str, Any]]:
    def convert(text: str) -> dict[str, Any]:
        path, colon, rate = text.partition(":")
        if not colon or not path:
            raise ValueError(f"bad format: {text}")
        if not path.startswith("/dev/"):
            raise ValueError(f"bad format for device path: {text}")
        try:
            return {"Path": path, "Rate": parse_bytes(rate) if size else parse_uint(rate)}
        except ValueError:
            form = "<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
            raise ValueError(f"invalid rate for device: {text}. The correct format is <device-path>:"
                             + (form if size else "<number>. Number must be a positive integer")) from None  # fmt: skip

    return convert


def _device(text: str) -> dict[str, str]:
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise OptionError(f"bad format for path: {text}")

    def is_mode(mode: str) -> bool:
        return bool(mode) and not set(mode) - set("rwm") and len(set(mode)) == len(mode)

    source, target, mode = parts[0], parts[0], "rwm"
    if len(parts) == 3:
        target, mode = parts[1], parts[2]
        if not is_mode(mode):
            raise OptionError(f"bad mode specified: {mode}")
    elif len(parts) == 2:
        if is_mode(parts[1]):
            mode = parts[1]
        else:
            target = parts[1]
    if not target.startswith("/"):
        raise OptionError(f"{target} is not an absolute path")
    if len(parts) < 3:
        clean = os.path.normpath(target)
        source, target = (clean, clean) if source == target else (source, clean)
    return {"PathOnHost": source, "PathInContainer": target, "CgroupPermissions": mode}


def _security_options(texts: list[str]) -> list[str]:
    import json

    result = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals and key != "no-new-privileges":
            key, equals, value = text.partition(":")
        if (not equals or not value) and key != "no-new-privileges":
            raise OptionError(f'invalid --security-opt: "{text}"')
        if key == "seccomp" and value not in ("unconfined", "builtin"):
            try:
                with open(value, "rb") as file:
                    profile = json.load(file)
            except OSError as error:
                raise OptionError(f"opening seccomp profile ({value}) failed: open {value}: "
                                  f"{(error.strerror or '').lower()}") from None  # fmt: skip
            except ValueError as error:
                raise OptionError(f"compacting json for seccomp profile ({value}) failed: {error}") from None
            text = "seccomp=" + json.dumps(profile, separators=(",", ":"))
        result.append(text)
    return result


def _mode(name: str, text: str, kinds: set[str], label: str) -> str:
    kind, colon, rest = text.partition(":")
    if text in kinds or (kind == "container" and colon and rest and "container" in kinds):
        return text
    raise OptionError(f"--{name}: invalid {label} mode")


def _endpoint(text: str) -> tuple[str, dict[str, Any]]:
    """One ``--network``: its name and endpoint settings. ValueError in docker's words."""
    import csv

    if "=" not in text:
        return text, {}
    target = ""
    settings: dict[str, Any] = {}
    addresses: dict[str, Any] = {}
    for field in next(csv.reader([text])):
        key, equals, value = field.partition("=")
        key, value = key.strip().lower(), value.strip()
        if not equals:
            raise ValueError(f"invalid field {key}")
        if key == "name":
            target = value
        elif key == "alias":
            settings.setdefault("Aliases", []).append(value)
        elif key in ("ip", "ip6"):
            if not _is_address(value):
                raise ValueError(f"invalid ip address: {value}")
            addresses["IPv4Address" if key == "ip" else "IPv6Address"] = value
        elif key == "link-local-ip":
            addresses.setdefault("LinkLocalIPs", []).append(value)
        elif key == "mac-address":
            settings["MacAddress"] = value
        elif key == "driver-opt":
            option, equals, content = value.partition("=")
            if not equals:
                raise ValueError("invalid key value pair format in driver options")
            settings.setdefault("DriverOpts", {})[option.strip().lower()] = content.strip()
        elif key == "gw-priority":
            try:
                settings["GwPriority"] = parse_int(value)
            except ValueError as error:
                raise ValueError(f"invalid gw-priority ({value}): {error}") from None
        else:
            raise ValueError(f"invalid field key {key}")
    if not target:
        raise ValueError("network name/id is not specified")
    if addresses:
        settings["IPAMConfig"] = addresses
    return target, settings


def _user_defined(network: str) -> bool:
    return network not in ("", "default", "bridge", "host", "none") and not network.startswith("container:")


def _networks(flags: Flags) -> tuple[str, dict[str, Any]]:
    given = flags["network"] + flags["net"]
    chosen: list[tuple[str, dict[str, Any]]] = []
    for text in given:
        try:
            chosen.append(_endpoint(text))
        except ValueError as error:
            raise flags.invalid("network", text, error) from None
    aliases = flags["network-alias"] + flags["net-alias"]
    first, settings = chosen[0] if chosen else ("default", {})
    old = {"Aliases": aliases, "MacAddress": flags["mac-address"], "IPAMConfig": {
        key: value for key, value in (("IPv4Address", flags["ip"]), ("IPv6Address", flags["ip6"]),
                                      ("LinkLocalIPs", flags["link-local-ip"])) if value}}  # fmt: skip
    if _user_defined(first):
        old["Links"] = flags["link"]
    conflicts = {"Aliases": "--network-alias and per-network alias", "Links": "--link and per-network links",
                 "MacAddress": "--mac-address and per-network MAC address",
                 "IPAMConfig": "--ip and per-network IPv4 address"}  # fmt: skip
    for key, value in old.items():
        if value and settings.get(key):
            raise OptionError(f"conflicting options: cannot specify both {conflicts[key]}")
        if value:
            settings[key] = value
    for name, flag in (("ip", "IPv4Address"), ("ip6", "IPv6Address")):
        value = flags[name]
        if value and not _is_address(value):
            raise flags.invalid(name, value, f"failed to parse IP: {value!r}".replace("'", '"'))
        assert flag
    endpoints: dict[str, Any] = {}
    for name, extra in chosen or [("default", settings)]:
        if name in endpoints:
            raise OptionError(f'network "{name}" is specified multiple times')
        if not _user_defined(name):
            if extra.get("Aliases"):
                raise OptionError("network-scoped aliases are only supported for user-defined networks")
            if extra.get("Links"):
                raise OptionError("links are only supported for user-defined networks")
        if not _MAC.fullmatch(extra.get("MacAddress", "00:00:00:00:00:00").strip()):
            raise OptionError(f"{extra['MacAddress']} is not a valid mac address")
        endpoints[name] = extra
    kinds = {_user_defined(name) for name, _ in chosen}
    if len(kinds) > 1:
        raise OptionError("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
    if len(chosen) == 1 and not endpoints[first]:
        endpoints = {}
    return first if chosen else "default", endpoints


def _volumes(texts: list[str]) -> tuple[list[str], dict[str, Any]]:
    binds: list[str] = []
    anonymous: dict[str, Any] = {}
    for text in texts:
        parts = text.split(":")
        if not text or (any(not part for part in parts)):
            problem = "empty section between colons" if text else "empty volume spec"
            raise OptionError(f"invalid spec: {text}: {problem}" if text else f"invalid {problem}")
        if len(parts) == 1:
            anonymous[text] = {}
            continue
        if len(parts) > 3:
            raise OptionError(f"invalid spec: {text}: too many colons")
        if parts[0].startswith("."):
            text = ":".join([os.path.abspath(parts[0]), *parts[1:]])
        if text not in binds:
            binds.append(text)
    return binds, anonymous


def _health(flags: Flags) -> dict[str, Any] | None:
    fields = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod",
              "start-interval": "StartInterval", "retries": "Retries"}  # fmt: skip
    settings = {field: flags[f"health-{name}"] for name, field in fields.items()}
    wanted = bool(flags["health-cmd"]) or any(settings.values())
    if flags["no-healthcheck"]:
        if wanted:
            raise OptionError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not wanted:
        return None
    for name, field in fields.items():
        if settings[field] < 0:
            raise OptionError(f"--health-{name} cannot be negative")
    test = ["CMD-SHELL", flags["health-cmd"]] if flags["health-cmd"] else None
    return {"Test": test, **settings}


def _converted(flags: Flags, name: str, convert: Callable[[str], Any]) -> list[Any]:
    result = []
    for text in flags[name]:
        try:
            result.append(convert(text))
        except ValueError as error:
            raise flags.invalid(name, text, error) from None
    return result


def _added_host(text: str) -> str:
    host, mark, address = text.partition("=")
    if not mark or ":" in host:
        host, mark, address = text.partition(":")
    if not mark or not host:
        raise ValueError(f'bad format for add-host: "{text}"')
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if address != "host-gateway" and not _is_address(address):
        raise ValueError(f'invalid IP address in add-host: "{address}"')
    return f"{host}:{address}"


def _dns_server(text: str) -> str:
    if not _is_address(text.strip()):
        raise ValueError(f"IP address is not correctly formatted: {text}")
    return text.strip()


def _label(text: str) -> str:
    if not text.partition("=")[0].strip() and "=" in text:
        raise ValueError(f"invalid label '{text}': empty name")
    return text


def _cgroup_rule(text: str) -> str:
    if not _CGROUP_RULE.fullmatch(text):
        raise ValueError(f"invalid device cgroup format '{text}'")
    return text


def _stream(text: str) -> str:
    if text.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return text.lower()


def _link(text: str) -> str:
    if not text or text.count(":") > 1:
        raise ValueError("empty string specified for links" if not text else f"bad format for links: {text}")
    return text if ":" in text else f"{text}:{text}"


def resources(flags: Flags) -> dict[str, Any]:
    """The limits, a part of HostConfig."""
    names = {
        "CgroupParent": "cgroup-parent", "Memory": "memory", "MemoryReservation": "memory-reservation",
        "MemorySwap": "memory-swap", "MemorySwappiness": "memory-swappiness", "OomKillDisable": "oom-kill-disable",
        "NanoCpus": "cpus", "CpuCount": "cpu-count", "CpuPercent": "cpu-percent", "CpuShares": "cpu-shares",
        "CpuPeriod": "cpu-period", "CpusetCpus": "cpuset-cpus", "CpusetMems": "cpuset-mems", "CpuQuota": "cpu-quota",
        "CpuRealtimePeriod": "cpu-rt-period", "CpuRealtimeRuntime": "cpu-rt-runtime", "PidsLimit": "pids-limit",
        "BlkioWeight": "blkio-weight", "IOMaximumIOps": "io-maxiops", "IOMaximumBandwidth": "io-maxbandwidth",
    }  # fmt: skip
    swappiness = flags["memory-swappiness"]
    if not -1 <= swappiness <= 100:
        raise OptionError(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    devices = [device for device in flags["device"] if not _CDI.fullmatch(device)]
    requests = _converted(flags, "gpus", gpus)
    cdi = [device for device in flags["device"] if _CDI.fullmatch(device)]
    if cdi:
        requests.append({"Driver": "cdi", "Count": 0, "DeviceIDs": cdi, "Capabilities": None, "Options": None})
    return {
        **{field: flags[name] for field, name in names.items()},
        "KernelMemory": flags["kernel-memory"],
        "BlkioWeightDevice": _converted(flags, "blkio-weight-device", _weighted),
        "BlkioDeviceReadBps": _converted(flags, "device-read-bps", _throttled(True)),
        "BlkioDeviceWriteBps": _converted(flags, "device-write-bps", _throttled(True)),
        "BlkioDeviceReadIOps": _converted(flags, "device-read-iops", _throttled(False)),
        "BlkioDeviceWriteIOps": _converted(flags, "device-write-iops", _throttled(False)),
        "Ulimits": sorted(_converted(flags, "ulimit", ulimit), key=lambda limit: str(limit["Name"])),
        "DeviceCgroupRules": _converted(flags, "device-cgroup-rule", _cgroup_rule),
        "Devices": [_device(device) for device in devices],
        "DeviceRequests": requests or None,
    }


def create_body(flags: Flags, *, detach: bool = False, proxies: Iterable[str] = ()) -> dict[str, Any]:
    """The body of POST /containers/create. Raises `OptionError` and `engine.cli.flags.FlagError`."""
    image, *command = flags.arguments
    streams = _converted(flags, "attach", _stream)
    if detach and streams:
        raise OptionError("conflicting options: cannot specify both --attach and --detach")
    attach = {name: (not streams and name != "stdin") or name in streams for name in ("stdin", "stdout", "stderr")}
    attach["stdin"] = attach["stdin"] or flags["interactive"]
    if detach:
        attach = dict.fromkeys(attach, False)
    binds, anonymous = _volumes(flags["volume"])
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in flags["publish"]:
        for key, binding in published(text):
            bindings.setdefault(key, []).append(binding)
    exposed: dict[str, Any] = {key: {} for key in bindings}
    for text in flags["expose"]:
        exposed.update({key: {} for key in _exposed(text)})
    entrypoint = None
    if flags.changed("entrypoint"):
        entrypoint = [flags["entrypoint"]]
    labels = [line for path in flags["label-file"] for line in _file_lines(path, "label-file", lambda name: "")]
    security = _security_options(flags["security-opt"])
    unconfined = "systempaths=unconfined" in security
    restart = restart_policy(flags["restart"])
    if flags["rm"] and restart["Name"] not in ("", "no"):
        raise OptionError("conflicting options: cannot specify both --restart and --rm")
    if flags["log-driver"] == "none" and flags["log-opt"]:
        raise OptionError("invalid logging opts for driver none")
    if any("=" not in option for option in flags["storage-opt"]):
        raise OptionError("invalid storage option")
    mode, endpoints = _networks(flags)
    config: dict[str, Any] = {
        "Hostname": flags["hostname"],
        "Domainname": flags["domainname"],
        "User": flags["user"],
        "AttachStdin": attach["stdin"],
        "AttachStdout": attach["stdout"],
        "AttachStderr": attach["stderr"],
        "ExposedPorts": exposed,
        "Tty": flags["tty"],
        "OpenStdin": flags["interactive"],
        "StdinOnce": flags["interactive"] and attach["stdin"],
        "Env": [*proxies, *environment(flags["env-file"], flags["env"])],
        "Cmd": command or None,
        "Image": image,
        "Volumes": anonymous,
        "WorkingDir": flags["workdir"],
        "Entrypoint": entrypoint,
        "Labels": pairs([*labels, *_converted(flags, "label", _label)]),
        "StopSignal": flags["stop-signal"],
    }
    if flags["mac-address"]:
        config["MacAddress"] = flags["mac-address"]
    if flags.changed("stop-timeout"):
        config["StopTimeout"] = flags["stop-timeout"]
    health = _health(flags)
    if health is not None:
        config["Healthcheck"] = health
    host: dict[str, Any] = {
        "Binds": binds or None,
        "ContainerIDFile": flags["cidfile"],
        "LogConfig": {"Type": flags["log-driver"], "Config": pairs(flags["log-opt"])},
        "NetworkMode": mode,
        "PortBindings": bindings,
        "RestartPolicy": restart,
        "AutoRemove": flags["rm"],
        "VolumeDriver": flags["volume-driver"],
        "VolumesFrom": flags["volumes-from"] or None,
        "CapAdd": flags["cap-add"] or None,
        "CapDrop": flags["cap-drop"] or None,
        "CgroupnsMode": _mode("cgroupns", flags["cgroupns"], {"", "host", "private"}, "CGROUP"),
        "Dns": _converted(flags, "dns", _dns_server),
        "DnsOptions": flags["dns-option"] + flags["dns-opt"],
        "DnsSearch": flags["dns-search"],
        "ExtraHosts": _converted(flags, "add-host", _added_host) or None,
        "GroupAdd": flags["group-add"] or None,
        "IpcMode": flags["ipc"],
        "Links": _converted(flags, "link", _link) or None,
        "OomScoreAdj": flags["oom-score-adj"],
        "PidMode": _mode("pid", flags["pid"], {"", "host", "container"}, "PID"),
        "Privileged": flags["privileged"],
        "PublishAllPorts": flags["publish-all"],
        "ReadonlyRootfs": flags["read-only"],
        "SecurityOpt": [option for option in security if option != "systempaths=unconfined"] or None,
        "StorageOpt": pairs(flags["storage-opt"]),
        "Tmpfs": {text.partition(":")[0]: text.partition(":")[2] for text in flags["tmpfs"]},
        "UTSMode": _mode("uts", flags["uts"], {"", "host"}, "UTS"),
        "UsernsMode": _mode("userns", flags["userns"], {"", "host"}, "USER"),
        "ShmSize": flags["shm-size"],
        "Sysctls": pairs(flags["sysctl"]),
        "Runtime": flags["runtime"],
        "Isolation": flags["isolation"],
        "Annotations": pairs(flags["annotation"]),
        "Mounts": _converted(flags, "mount", mount),
        "MaskedPaths": [] if unconfined else None,
        "ReadonlyPaths": [] if unconfined else None,
        **resources(flags),
    }
    if flags.changed("init"):
        host["Init"] = flags["init"]
    return {**config, "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": endpoints}}
