"""CDI, the Container Device Interface: ``--device vendor.com/class=name`` after a specification of the vendor's.

Specifications are JSON or YAML files in the host's CDI directories; a later directory wins over an earlier one. What a
device needs - nodes, mounts, environment, hooks, groups - is edited into the container's OCI spec at its start.
Source: the CDI specification 0.8 (github.com/cncf-tags/container-device-interface).
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError, InvalidParameter
from engine.model.container import DeviceRequest

__all__ = ["DIRECTORIES", "Edits", "inject", "resolve", "wanted"]

log = logging.getLogger(__name__)

DIRECTORIES = (Path("/etc/cdi"), Path("/var/run/cdi"))
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z][\w-]*=[A-Za-z0-9][\w.:-]*")
_HOOKS = {
    "prestart": "prestart",
    "createRuntime": "createRuntime",
    "createContainer": "createContainer",
    "startContainer": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A node to make in the container; what is not said is that of ``host_path``."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class CdiMount(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A bind mount, or one of another ``type``."""

    host_path: str
    container_path: str
    options: list[str] = []
    type: str = ""


class Hook(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A program of the host's to run at a point of the container's life."""

    hook_name: str
    path: str
    args: list[str] = []
    env: list[str] = []
    timeout: int | None = None


class Edits(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one device, or a whole specification, changes."""

    env: list[str] = []
    device_nodes: list[DeviceNode] = []
    mounts: list[CdiMount] = []
    hooks: list[Hook] = []
    additional_gids: list[int] = msgspec.field(default_factory=list, name="additionalGids")


class Device(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One name of a specification."""

    name: str
    container_edits: Edits = Edits()


class Specification(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One file."""

    cdi_version: str = ""
    kind: str
    devices: list[Device] = []
    container_edits: Edits = Edits()


def wanted(requests: Iterable[DeviceRequest] | None) -> list[str]:
    """The CDI devices among ``requests``, by their full names. `InvalidParameter` for what is no such name."""
    names = [name for request in requests or () if request.driver == "cdi" for name in request.device_ids or ()]
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidParameter(f'invalid CDI device name "{name}": expected vendor.com/class=name')
    return names


def resolve(names: Sequence[str], directories: Sequence[Path] = DIRECTORIES) -> list[Edits]:
    """The edits of all devices ``names``, each specification's own once and before those of its devices.

    Blocks on the file system. A file that cannot be read is logged and left out, as other devices do not need it.
    """
    known: dict[str, tuple[Specification, Device]] = {}
    for directory in directories:
        for specification in _specifications(directory):
            for device in specification.devices:
                known[f"{specification.kind}={device.name}"] = (specification, device)
    missing = [name for name in names if name not in known]
    if missing:
        raise EngineError(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}")
    edits: list[Edits] = []
    seen: set[int] = set()
    for name in names:
        specification, device = known[name]
        if id(specification) not in seen:
            seen.add(id(specification))
            edits.append(specification.container_edits)
        edits.append(device.container_edits)
    return edits


def _specifications(directory: Path) -> Iterable[Specification]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        path = directory / name
        if path.suffix not in (".json", ".yaml", ".yml"):
            continue
        try:
            body = path.read_bytes()
            if path.suffix == ".json":
                yield msgspec.json.decode(body, type=Specification)
            else:
                yield msgspec.yaml.decode(body, type=Specification)
        except (OSError, msgspec.MsgspecError, ImportError) as error:
            log.warning("a CDI specification cannot be read", extra={"path": str(path), "error": str(error)})


def inject(spec: dict[str, Any], edits: Sequence[Edits]) -> None:
    """Edit the OCI ``spec``. Looks at the host's device nodes: worker threads only."""
    process, linux = spec["process"], spec["linux"]
    for edit in edits:
        _environment(process, edit.env)
        for node in edit.device_nodes:
            _node(linux, node)
        for mount in edit.mounts:
            spec["mounts"].append(
                {
                    "destination": mount.container_path,
                    "source": mount.host_path,
                    "type": mount.type or "bind",
                    "options": mount.options or ["rbind", "ro", "nosuid", "nodev"],
                }
            )
        for hook in edit.hooks:
            _hook(spec, hook)
        if edit.additional_gids:
            gids = process["user"].setdefault("additionalGids", [])
            gids += [gid for gid in edit.additional_gids if gid not in gids]


def _environment(process: dict[str, Any], lines: Sequence[str]) -> None:
    names = {line.partition("=")[0] for line in lines}
    kept = [line for line in process.get("env", []) if line.partition("=")[0] not in names]
    process["env"] = [*kept, *lines]


def _node(linux: dict[str, Any], node: DeviceNode) -> None:
    kind, major, minor, mode = node.type, node.major, node.minor, node.file_mode
    uid, gid = node.uid, node.gid
    if not kind or major is None or minor is None:
        path = node.host_path or node.path
        try:
            facts = os.stat(path)
        except OSError as error:
            raise EngineError(
                f"CDI device injection failed: {path}: {(error.strerror or str(error)).lower()}"
            ) from None
        if not stat.S_ISBLK(facts.st_mode) and not stat.S_ISCHR(facts.st_mode):
            raise EngineError(f"CDI device injection failed: {path}: not a device node")
        kind = "b" if stat.S_ISBLK(facts.st_mode) else "c"
        major, minor = os.major(facts.st_rdev), os.minor(facts.st_rdev)
        mode = stat.S_IMODE(facts.st_mode) if mode is None else mode
        uid = facts.st_uid if uid is None else uid
        gid = facts.st_gid if gid is None else gid
    entry: dict[str, Any] = {"path": node.path, "type": kind, "major": major, "minor": minor}
    found: Mapping[str, int | None] = {"fileMode": mode, "uid": uid, "gid": gid}
    entry |= {key: value for key, value in found.items() if value is not None}
    devices = linux.setdefault("devices", [])
    devices[:] = [device for device in devices if device["path"] != node.path] + [entry]
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    rules.append({"allow": True, "type": kind, "major": major, "minor": minor, "access": node.permissions or "rwm"})


def _hook(spec: dict[str, Any], hook: Hook) -> None:
    if hook.hook_name not in _HOOKS:
        raise EngineError(f'CDI device injection failed: unknown hook name "{hook.hook_name}"')
    entry: dict[str, Any] = {"path": hook.path}
    if hook.args:
        entry["args"] = hook.args
    if hook.env:
        entry["env"] = hook.env
    if hook.timeout is not None:
        entry["timeout"] = hook.timeout
    spec.setdefault("hooks", {}).setdefault(_HOOKS[hook.hook_name], []).append(entry)
