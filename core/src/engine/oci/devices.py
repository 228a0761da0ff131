"""Device nodes and device rules of a container, found out from the host.

This is the part of the OCI spec that needs to look at the host's ``/dev``; `engine.oci.spec` turns the plan made
here into JSON without looking at anything.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from engine.errors import InvalidParameter
from engine.model.container import DeviceMapping, HostConfig

__all__ = ["Device", "DevicePlan", "DeviceRule", "plan", "validate"]

_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")
_SKIPPED_DIRECTORIES = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"))
_MAX_MAJOR = (1 << 12) - 1
_MAX_MINOR = (1 << 20) - 1


@dataclass(frozen=True, slots=True)
class Device:
    """A node to make inside: ``path`` in the container, ``kind`` c or b, permission bits, owner."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """An entry of the device cgroup; None as number means any."""

    allow: bool
    kind: str | None = None
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


DEFAULT_RULES = (
    DeviceRule(False),
    DeviceRule(True, "c", 1, 5),
    DeviceRule(True, "c", 1, 3),
    DeviceRule(True, "c", 1, 9),
    DeviceRule(True, "c", 1, 8),
    DeviceRule(True, "c", 5, 0),
    DeviceRule(True, "c", 5, 1),
    DeviceRule(False, "c", 10, 229),
)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """All about devices that the OCI spec needs. ``block`` maps a host path used by a blkio limit to (major, minor)."""

    nodes: tuple[Device, ...] = ()
    rules: tuple[DeviceRule, ...] = DEFAULT_RULES
    block: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def plan(host_config: HostConfig) -> DevicePlan:
    """Look up everything the container may use. Blocks on the file system: worker threads only.

    Raises `InvalidParameter` in dockerd's words for missing devices and bad rules.
    """
    for request in host_config.device_requests or ():
        if request.driver == "cdi":
            continue  # see `engine.oci.cdi`
        groups = " ".join("[" + " ".join(group) + "]" for group in request.capabilities or [])
        raise InvalidParameter(f'could not select device driver "{request.driver}" with capabilities: [{groups}]')
    nodes: list[Device] = []
    rules: list[DeviceRule] = list(DEFAULT_RULES)
    if host_config.privileged:
        nodes += _host_devices("/dev")
        rules = [DeviceRule(True)]
        for mapping in host_config.devices or ():
            if mapping.path_on_host != (mapping.path_in_container or mapping.path_on_host):
                nodes += _mapped(mapping)
    else:
        for mapping in host_config.devices or ():
            found = _mapped(mapping)
            nodes += found
            access = mapping.cgroup_permissions or "rwm"
            rules += [DeviceRule(True, node.kind, node.major, node.minor, access) for node in found]
        for text in host_config.device_cgroup_rules or ():
            rules.append(parse_rule(text))
    return DevicePlan(tuple(nodes), tuple(rules), _block_devices(host_config))


def validate(host_config: HostConfig) -> None:
    """Refuse at create what `plan` would refuse for its grammar; does not look at the host."""
    for mapping in host_config.devices or ():
        permissions = mapping.cgroup_permissions
        if set(permissions) - set("rwm") or len(set(permissions)) != len(permissions):
            raise InvalidParameter(f"invalid device mode: {permissions}")
    for text in host_config.device_cgroup_rules or ():
        parse_rule(text)


def parse_rule(text: str) -> DeviceRule:
    """``c 13:* rmw`` of ``--device-cgroup-rule``."""
    if text == "a":
        return DeviceRule(True, "a")
    match = _RULE.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"invalid device cgroup rule format: '{text}'")
    kind, major, minor, access = match.groups()
    if kind == "a":
        if (major, minor) != ("*", "*") or len(access) != 3:
            raise InvalidParameter(
                "although this cgroup rule is technically correct, because 'a' maps to 'a *:* rwm' regardless of "
                f"what comes next, this format is partially ineffective: '{text}'"
            )
        return DeviceRule(True, "a")
    return DeviceRule(
        True, kind, _number(text, "major", major, _MAX_MAJOR), _number(text, "minor", minor, _MAX_MINOR), access
    )


def _number(text: str, what: str, number: str, limit: int) -> int | None:
    if number == "*":
        return None
    if int(number) > limit:
        raise InvalidParameter(f"invalid {what} value in device cgroup rule format: '{text}'")
    return int(number)


def _mapped(mapping: DeviceMapping) -> list[Device]:
    inside = mapping.path_in_container or mapping.path_on_host
    path = os.path.realpath(mapping.path_on_host)
    try:
        if os.path.isdir(path):
            found = list(_host_devices(path))
            if found:
                return [_moved(device, inside + device.path.removeprefix(path)) for device in found]
            reason = "not a device node"
        else:
            device = _device(path)
            if device is not None:
                return [_moved(device, inside)]
            reason = "not a device node"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise InvalidParameter(
        f'error gathering device information while adding custom device "{mapping.path_on_host}": {reason}'
    )


def _moved(device: Device, path: str) -> Device:
    return Device(path, device.kind, device.major, device.minor, device.mode, device.uid, device.gid)


def _device(path: str) -> Device | None:
    facts = os.lstat(path)
    if not (stat.S_ISBLK(facts.st_mode) or stat.S_ISCHR(facts.st_mode)):
        return None
    major, minor = os.major(facts.st_rdev), os.minor(facts.st_rdev)
    if major == 0:
        return None  # overlayfs whiteouts and the like are no devices
    kind = "b" if stat.S_ISBLK(facts.st_mode) else "c"
    return Device(path, kind, major, minor, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid)


def _host_devices(root: str) -> Iterator[Device]:
    """Every device node below ``root`` that makes sense in a container."""
    with os.scandir(root) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        try:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _SKIPPED_DIRECTORIES:
                    yield from _host_devices(entry.path)
            elif entry.name != "console":
                device = _device(entry.path)
                if device is not None:
                    yield device
        except FileNotFoundError:
            continue  # hot-unplugged while we looked


def _block_devices(host_config: HostConfig) -> dict[str, tuple[int, int]]:
    numbers: dict[str, tuple[int, int]] = {}
    throttled = (
        host_config.blkio_weight_device,
        host_config.blkio_device_read_bps,
        host_config.blkio_device_write_bps,
        host_config.blkio_device_read_iops,
        host_config.blkio_device_write_iops,
    )
    for devices in throttled:
        for device in devices or ():
            try:
                facts = os.stat(device.path)
            except OSError as error:
                raise InvalidParameter(f"{device.path}: {(error.strerror or str(error)).lower()}") from None
            numbers[device.path] = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
    return numbers
