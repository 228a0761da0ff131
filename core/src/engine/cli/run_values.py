"""The values of ``run``'s flags that have a grammar of their own: ports, mounts, devices, limits, networks.

Functions that a flag calls while it is parsed raise ValueError in docker's words; those that docker calls after parsing
raise `OptionError`.
"""

from __future__ import annotations

import os

from engine.cli.failures import Failure
from engine.cli.flags import parse_bool, parse_int, parse_uint, parse_uint16
from engine.cli.units import parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MAC = r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}|([0-9a-fA-F]{4}\.){2}[0-9a-fA-F]{4}"
CDI = r"[A-Za-z][\w.-]*[A-Za-z0-9]/[A-Za-z][\w-]*[A-Za-z0-9]=[A-Za-z0-9][\w.:-]*"
_CGROUP_RULE = r"[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}"


def matches(pattern: str, text: str) -> bool:
    """Whether all of ``text`` fits; re is imported only for the few flags that need it."""
    import re

    return re.fullmatch(pattern, text) is not None


class OptionError(Failure):
    """The flags make no sense together; reported like a daemon's refusal."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 125)


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """``k=v`` texts as a map; a text without ``=`` has an empty value."""
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


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
        if address and not is_address(address):
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


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    import _socket

    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text)
        except OSError:
            continue
        return True
    return False


def exposed(text: str) -> Iterable[str]:
    """The ports of one ``--expose``."""
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
                raise ValueError(
                    f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or "readonly")'
                )
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
        elif key == "idmap":
            result["IDMap"] = value
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
        raise ValueError(
            "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
        )
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
            raise ValueError(
                f'invalid count ({value}): value must be either "all" or an integer: invalid syntax'
            ) from None

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


def weighted(text: str) -> dict[str, Any]:
    """``device:weight`` of ``--blkio-weight-device``."""
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


def throttled(size: bool) -> Callable[[str], dict[str, Any]]:
    """The reader of ``device:rate``, a size or a count."""

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


def device_mapping(text: str) -> dict[str, str]:
    """One ``--device``."""
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


def endpoint(text: str) -> tuple[str, dict[str, Any]]:
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
            if not is_address(value):
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


def added_host(text: str) -> str:
    """One ``--add-host``, as the API wants it."""
    host, mark, address = text.partition("=")
    if not mark or ":" in host:
        host, mark, address = text.partition(":")
    if not mark or not host:
        raise ValueError(f'bad format for add-host: "{text}"')
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if address != "host-gateway" and not is_address(address):
        raise ValueError(f'invalid IP address in add-host: "{address}"')
    return f"{host}:{address}"


def dns_server(text: str) -> str:
    """One ``--dns``."""
    if not is_address(text.strip()):
        raise ValueError(f"IP address is not correctly formatted: {text}")
    return text.strip()


def checked_label(text: str) -> str:
    """One ``--label``, checked."""
    if not text.partition("=")[0].strip() and "=" in text:
        raise ValueError(f"invalid label '{text}': empty name")
    return text


def cgroup_rule(text: str) -> str:
    """One ``--device-cgroup-rule``, checked."""
    if not matches(_CGROUP_RULE, text):
        raise ValueError(f"invalid device cgroup format '{text}'")
    return text


def attached_stream(text: str) -> str:
    """One ``--attach``."""
    if text.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return text.lower()


def linked(text: str) -> str:
    """One ``--link``, checked."""
    if not text or text.count(":") > 1:
        raise ValueError("empty string specified for links" if not text else f"bad format for links: {text}")
    return text


_KERNEL_SYSCTLS = {f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()}


def sysctl(text: str) -> str:
    """One ``--sysctl``: only those of a container's own namespaces are allowed."""
    name = text.partition("=")[0]
    if "=" not in text or not (name in _KERNEL_SYSCTLS or name.startswith(("net.", "fs.mqueue."))):
        raise ValueError(f"sysctl '{text}' is not allowed")
    return text


def effective_capabilities(added: Iterable[str], dropped: Iterable[str]) -> tuple[list[str], list[str]]:
    """``--cap-add`` and ``--cap-drop`` as the API wants them: normalised and sorted; ALL stands for the rest."""

    def normal(names: Iterable[str]) -> set[str]:
        upper = {name.strip().upper() for name in names}
        if "ALL" in upper or "CAP_ALL" in upper:
            return {"ALL"}
        return {name if name.startswith("CAP_") else f"CAP_{name}" for name in upper if name}

    plus, minus = normal(added), normal(dropped)
    return sorted(plus), sorted(minus)
