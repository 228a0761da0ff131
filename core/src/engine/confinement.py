"""What confines a running container, read from the kernel: not what was asked for, but what applies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import Conflict

__all__ = ["report"]

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_SECCOMP = {"0": "disabled", "1": "strict", "2": "filter"}
_SETS = {
    "Inheritable": "CapInh",
    "Permitted": "CapPrm",
    "Effective": "CapEff",
    "Bounding": "CapBnd",
    "Ambient": "CapAmb",
}
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
    "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()


def report(pid: int, bundle: Path, *, proc: Path = Path("/proc")) -> dict[str, Any]:
    """The facts of the process ``pid`` of the container whose OCI bundle is ``bundle``. Blocks on /proc.

    Raises `Conflict` when the process is gone.
    """
    process = proc / str(pid)
    try:
        status = _status(process / "status")
        namespaces = {kind: _namespace(proc, pid, kind) for kind in _NAMESPACES}
        profile = _label(process / "attr/current")
        users = [line.split() for line in (process / "uid_map").read_text().splitlines()]
    except (FileNotFoundError, ProcessLookupError):
        raise Conflict("container is not running: what confines it is known while it runs") from None
    spec = _spec(bundle / "config.json")
    linux = spec.get("linux", {})
    filters = status.get("Seccomp_filters")
    return {
        "Pid": pid,
        "User": {"Uids": status["Uid"].split(), "Gids": status["Gid"].split(), "Groups": status["Groups"].split()},
        "Capabilities": {name: _capabilities(status[key]) for name, key in _SETS.items() if key in status},
        "NoNewPrivileges": status.get("NoNewPrivs") == "1",
        "Seccomp": {
            "Mode": _SECCOMP.get(status.get("Seccomp", "0"), "unknown"),
            "Filters": int(filters) if filters else None,
            "DefaultAction": (linux.get("seccomp") or {}).get("defaultAction", ""),
        },
        "MandatoryAccessControl": profile,
        "Namespaces": namespaces,
        "UserMapping": [{"Inside": int(a), "Outside": int(b), "Count": int(c)} for a, b, c in users],
        "MaskedPaths": linux.get("maskedPaths") or [],
        "ReadonlyPaths": linux.get("readonlyPaths") or [],
        "ReadonlyRootfs": bool((spec.get("root") or {}).get("readonly")),
        "Devices": [_device(rule) for rule in (linux.get("resources") or {}).get("devices") or () if rule["allow"]],
    }


def _status(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _namespace(proc: Path, pid: int, kind: str) -> str:
    """``private``, ``host`` (the engine's own), or ``none`` where the kernel has no such namespaces."""
    try:
        theirs = os.readlink(proc / str(pid) / "ns" / kind)
        return "host" if theirs == os.readlink(proc / "self/ns" / kind) else "private"
    except FileNotFoundError:
        if not (proc / str(pid)).exists():
            raise
        return "none"


def _label(path: Path) -> str:
    """AppArmor's or SELinux's name for the process; empty where neither is there."""
    try:
        return path.read_bytes().rstrip(b"\0\n").decode()
    except OSError:
        return ""


def _capabilities(mask: str) -> list[str]:
    bits = int(mask, 16)
    return [f"CAP_{name}" for number, name in enumerate(_CAPABILITIES) if bits >> number & 1]


def _device(rule: Mapping[str, Any]) -> str:
    numbers = ":".join("*" if rule.get(key) is None else str(rule[key]) for key in ("major", "minor"))
    return f"{rule.get('type', 'a')} {numbers} {rule.get('access', 'rwm')}"


def _spec(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return {}  # a runtime that is none of OCI's
    return found
