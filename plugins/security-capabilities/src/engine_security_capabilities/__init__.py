"""Linux capabilities: Docker's default set, ``--cap-add``, ``--cap-drop``, ``--privileged``.

A container is given capabilities in its bounding, effective and permitted sets only: nothing is inheritable or
ambient (CVE-2022-24769), so a process of a non-root user holds none. What the engine itself lacks is never asked
for - the kernel would refuse the whole container.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import EngineError, InvalidParameter
from engine.hookspecs import hookimpl
from engine.model.admission import ContainerRequest
from engine.model.container import Container, HostConfig

__all__ = ["DEFAULT", "KNOWN", "engine_container_admit", "engine_exec_process", "engine_oci_spec", "granted", "held"]

KNOWN = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
        "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
        "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
"""Every capability by its number in the kernel (linux/capability.h)."""

DEFAULT = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
        "AUDIT_WRITE"
    ).split()
)
"""What a container gets when nothing is said: mask 00000000a80425fb."""

_ALL = "ALL"


@cache
def held(status: Path = Path("/proc/self/status")) -> tuple[str, ...]:
    """The capabilities this process can pass on, in the kernel's order; read once, since the engine drops none."""
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return tuple(name for number, name in enumerate(KNOWN) if mask >> number & 1)
    raise EngineError(f"{status} does not say which capabilities this process holds")


def normalise(names: Sequence[str] | None, available: Sequence[str]) -> list[str]:
    """``net_admin``, ``CAP_NET_ADMIN`` -> ``CAP_NET_ADMIN``; ``ALL`` stays.

    Raises `InvalidParameter` for names the kernel does not have, and for those the engine does not hold.
    """
    normalised = []
    for name in names or ():
        full = name.upper()
        if full != _ALL:
            full = full if full.startswith("CAP_") else f"CAP_{full}"
            if full not in KNOWN:
                raise InvalidParameter(f'unknown capability: "{full}"')
            if full not in available:
                raise InvalidParameter(
                    f'capability not supported by your kernel or not available in the current environment: "{full}"'
                )
        normalised.append(full)
    return normalised


def granted(host_config: HostConfig, available: Sequence[str]) -> list[str]:
    """The container's capabilities: what was asked for, of those ``available``; each once."""
    if host_config.privileged:
        return list(available)
    add = normalise(host_config.cap_add, available)
    drop = normalise(host_config.cap_drop, KNOWN)  # dropping what nobody holds is no mistake
    if _ALL in add:
        wanted = [name for name in available if name not in drop]
    elif _ALL in drop:
        wanted = add
    else:
        wanted = [name for name in DEFAULT if name not in drop and name in available] + add
    return list(dict.fromkeys(wanted))


@hookimpl
def engine_container_admit(request: ContainerRequest) -> None:
    """Refuse unknown capabilities at create."""
    available = held()
    options = (
        ("CapAdd", request.host_config.cap_add, available),
        ("CapDrop", request.host_config.cap_drop, KNOWN),
    )
    for option, names, accepted in options:
        try:
            normalise(names, accepted)
        except InvalidParameter as error:
            raise InvalidParameter(f"invalid {option}: {error}") from None


@hookimpl
def engine_oci_spec(container: Container, spec: MutableMapping[str, Any]) -> None:
    """Give the container's first process its capabilities."""
    _apply(spec["process"], granted(container.host_config, held()))


@hookimpl
def engine_exec_process(container: Container, process: MutableMapping[str, Any], privileged: bool) -> None:
    """Give an exec session the container's capabilities, or all with ``exec --privileged``."""
    available = held()
    _apply(process, list(available) if privileged else granted(container.host_config, available))


def _apply(process: MutableMapping[str, Any], names: list[str]) -> None:
    # As execve does for anyone but root, so that nothing runs with more in between.
    usable = names if process["user"]["uid"] == 0 else []
    process["capabilities"] = {"bounding": names, "effective": list(usable), "permitted": list(usable)}
