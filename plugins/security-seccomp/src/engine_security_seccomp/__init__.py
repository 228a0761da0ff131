"""System call filter: the default profile, and profiles in Docker's JSON form (``--security-opt seccomp=...``)."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import InvalidParameter
from engine.hookspecs import hookimpl
from engine.model.admission import ContainerRequest
from engine.model.container import Container, HostConfig
from engine.model.security import parse_security_opts

__all__ = ["engine_configure", "engine_container_admit", "engine_oci_spec", "engine_security_options"]

_UNCONFINED = "unconfined"
_BUILTIN = frozenset(("builtin", "default", ""))
_KERNEL_SUPPORT = "/proc/sys/kernel/seccomp"
_LIMIT = 4 << 20
_COMPILED = "run.oci.seccomp_bpf_data"  # crun's annotation; see `engine_security_seccomp.compiled`


class _Default:
    """What containers that say nothing get: ``builtin``, ``unconfined``, or the text of the daemon's own profile."""

    name = "builtin"
    profile = "builtin"


@hookimpl
def engine_configure(options: Mapping[str, Any]) -> None:
    """Option ``profile`` (dockerd's ``seccomp-profile``): a file, ``unconfined`` or ``builtin``."""
    name = str(options.get("profile") or "builtin")
    _Default.name = _Default.profile = name
    if name == _UNCONFINED or name in _BUILTIN:
        return
    from engine_security_seccomp.profile import parse

    try:
        text = Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"opening seccomp profile ({name}) failed: {error}") from None
    if len(text) > _LIMIT:
        raise InvalidParameter(f"seccomp profile {name} is larger than {_LIMIT} bytes")
    parse(text)
    _Default.profile = text


@hookimpl
def engine_security_options() -> Sequence[str]:
    """``docker info`` names seccomp where the kernel has it."""
    return (f"name=seccomp,profile={_Default.name}",) if os.path.exists(_KERNEL_SUPPORT) else ()


@hookimpl
def engine_container_admit(request: ContainerRequest) -> None:
    """Refuse unreadable profiles, and any profile on a kernel without seccomp, at create."""
    wanted = _wanted(request.host_config)
    if wanted == _UNCONFINED or wanted in _BUILTIN:
        return
    if not os.path.exists(_KERNEL_SUPPORT):
        raise InvalidParameter("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
    from engine_security_seccomp.profile import parse

    parse(wanted)


@hookimpl(trylast=True)
def engine_oci_spec(container: Container, spec: MutableMapping[str, Any]) -> None:
    """Add the filter, resolved for the capabilities the container was given: therefore last."""
    annotations = spec.get("annotations", {})
    annotations.pop(_COMPILED, None)  # only ours counts
    wanted = _wanted(container.host_config)
    if wanted == _UNCONFINED or not os.path.exists(_KERNEL_SUPPORT):
        return
    from engine_security_seccomp.compiled import program
    from engine_security_seccomp.profile import builtin, machine, parse, resolve

    bounding = frozenset(spec["process"].get("capabilities", {}).get("bounding", ()))
    profile = builtin() if wanted in _BUILTIN else parse(wanted)
    seccomp = resolve(profile, bounding, *machine())
    if seccomp is not None:
        spec["linux"]["seccomp"] = seccomp
        compiled = program(seccomp)
        if compiled is not None:
            spec.setdefault("annotations", {})[_COMPILED] = compiled


def _wanted(host_config: HostConfig) -> str:
    """``unconfined``, ``builtin`` or JSON; a privileged container is only filtered when a profile was asked for."""
    asked = parse_security_opts(host_config.security_opt).seccomp
    if asked is None:
        return _UNCONFINED if host_config.privileged else _Default.profile
    return asked
