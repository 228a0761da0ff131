"""AppArmor: the profile ``engine-default``, and ``--security-opt apparmor=PROFILE|unconfined``."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from engine.errors import InvalidParameter
from engine.hookspecs import hookimpl
from engine.model.admission import ContainerRequest
from engine.model.container import Container, HostConfig
from engine.model.security import parse_security_opts
from engine_security_apparmor.kernel import DEFAULT, AppArmor

__all__ = [
    "engine_configure",
    "engine_container_admit",
    "engine_exec_process",
    "engine_oci_spec",
    "engine_security_options",
]

UNCONFINED = "unconfined"
_ALIASES = {"docker-default": DEFAULT}

apparmor = AppArmor()


@hookimpl
def engine_configure(options: Mapping[str, Any]) -> None:
    """Option ``profile``: what containers get that name none."""
    profile = str(options.get("profile") or DEFAULT)
    if profile not in (DEFAULT, UNCONFINED) and not apparmor.enabled:
        raise InvalidParameter(f"AppArmor is not enabled in this kernel: profile {profile} cannot be applied")
    apparmor.default = profile


@hookimpl
def engine_security_options() -> Sequence[str]:
    """``docker info`` names AppArmor where the kernel has it."""
    return ("name=apparmor",) if apparmor.enabled else ()


@hookimpl
def engine_container_admit(request: ContainerRequest) -> None:
    """Refuse a profile that nobody could enforce."""
    asked = _asked(request.host_config)
    if asked in ("", UNCONFINED):
        return
    if not apparmor.enabled:
        raise InvalidParameter(f"AppArmor is not enabled in this kernel: profile {asked} cannot be applied")
    if asked != DEFAULT and asked not in apparmor.loaded():
        raise InvalidParameter(f"AppArmor profile {asked} is not loaded: load it with apparmor_parser -r FILE")


@hookimpl
def engine_oci_spec(container: Container, spec: MutableMapping[str, Any]) -> None:
    """Name the profile of the container's first process, and see that it is loaded."""
    _apply(spec["process"], _asked(container.host_config), container.host_config.privileged)


@hookimpl
def engine_exec_process(container: Container, process: MutableMapping[str, Any], privileged: bool) -> None:
    """An exec session gets the container's profile; ``exec --privileged`` none."""
    _apply(process, _asked(container.host_config), privileged)


def _apply(process: MutableMapping[str, Any], asked: str, privileged: bool) -> None:
    if not apparmor.enabled:
        return
    profile = asked or (UNCONFINED if privileged else apparmor.default)
    if profile == DEFAULT:
        apparmor.load()
    process["apparmorProfile"] = profile


def _asked(host_config: HostConfig) -> str:
    asked = parse_security_opts(host_config.security_opt).apparmor or ""
    return _ALIASES.get(asked, asked)
