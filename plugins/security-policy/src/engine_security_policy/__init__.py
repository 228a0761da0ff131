"""Policies of this host: what may be created, executed and pulled; a refusal names its rule."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidParameter
from engine.hookspecs import hookimpl
from engine.model.admission import ContainerRequest
from engine.model.container import Container

if TYPE_CHECKING:
    from engine_security_policy.policies import Policies

__all__ = [
    "engine_configure",
    "engine_container_admit",
    "engine_exec_process",
    "engine_image_verify",
    "engine_volume_admit",
]

_in_force: list[Policies] = []  # none, or the one the daemon was configured with


@hookimpl
def engine_configure(options: Mapping[str, Any]) -> None:
    """Read the policy files; one that cannot be trusted or understood stops the daemon."""
    while _in_force:
        _in_force.pop().close()
    unknown = set(options) - {"files", "timeout"}
    if unknown:
        raise InvalidParameter(f"unknown option: {', '.join(sorted(unknown))}")
    files = options.get("files") or ()
    if not isinstance(files, list | tuple) or not all(isinstance(file, str) for file in files):
        raise InvalidParameter("files must be a list of paths")
    if files:
        from engine_security_policy.policies import Policies

        _in_force.append(Policies.load(files, timeout=float(options.get("timeout") or 2.0)))


@hookimpl
def engine_container_admit(request: ContainerRequest) -> None:
    """Ask every policy about a container to be created."""
    for policies in _in_force:
        policies.create(request)


@hookimpl(trylast=True)
def engine_exec_process(container: Container, process: MutableMapping[str, Any], privileged: bool) -> None:
    """Ask every policy about a process to be started in a container."""
    for policies in _in_force:
        policies.exec(container, process, privileged)


@hookimpl
def engine_image_verify(reference: str, descriptor: Mapping[str, Any]) -> None:
    """Ask every policy about an image to be pulled."""
    for policies in _in_force:
        policies.pull(reference, descriptor)


@hookimpl
def engine_volume_admit(name: str, driver: str, options: Mapping[str, str]) -> None:
    """Ask every policy about a volume to be created."""
    for policies in _in_force:
        policies.volume(name, driver, options)
