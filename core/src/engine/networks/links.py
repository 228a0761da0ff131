"""``--link`` on the default bridge, which has no names of its own: entries in the hosts file and variables.

A container keeps its links as ``id:alias`` in ``HostConfig.Links``, so that they outlive a rename of the other; clients
see ``/other:/container/alias``. On user-defined networks links are names of an endpoint and none of this applies.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine.errors import InvalidParameter
from engine.model.container import HostConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.model.container import Container

__all__ = ["environment", "legacy", "parse"]

_NOT_IN_NAMES = re.compile("[^A-Za-z0-9_]")
_PRIVATE = ("PATH", "HOME")


def parse(text: str) -> tuple[str, str]:
    """``name:alias``, ``name`` or ``/name:/parent/alias`` as (name, alias)."""
    if not text or text.count(":") > 1:
        raise InvalidParameter(f"bad format for links: {text}")
    name, _, alias = text.partition(":")
    return name.strip("/"), (alias or name).strip("/").rpartition("/")[2]


def legacy(host_config: HostConfig) -> list[tuple[str, str]]:
    """(container, alias) of the links that are this module's: those of a container on the default bridge."""
    if host_config.network_mode not in ("", "default", "bridge"):
        return []
    return [parse(link) for link in host_config.links or ()]


def environment(parent: str, alias: str, other: Container, address: str) -> list[str]:
    """What container ``parent`` is told about the ports and variables of the one it links to."""
    prefix = _NOT_IN_NAMES.sub("_", alias).upper()
    ports = sorted(other.config.exposed_ports or {}, key=_by_number)
    lines = []
    for index, port in enumerate(ports):
        number, protocol = _split(port)
        url = f"{protocol}://{address}:{number}"
        if index == 0:
            lines.append(f"{prefix}_PORT={url}")
        name = f"{prefix}_PORT_{number}_{protocol.upper()}"
        lines += [f"{name}={url}", f"{name}_ADDR={address}", f"{name}_PORT={number}", f"{name}_PROTO={protocol}"]
    lines.append(f"{prefix}_NAME=/{parent}/{alias}")
    return [*lines, *_their_variables(prefix, other.config.env or ())]


def _split(port: str) -> tuple[str, str]:
    number, _, protocol = port.partition("/")
    return number, protocol or "tcp"


def _by_number(port: str) -> tuple[str, int]:
    number, protocol = _split(port)
    return protocol, int(number.partition("-")[0])


def _their_variables(prefix: str, env: Iterable[str]) -> list[str]:
    return [f"{prefix}_ENV_{entry}" for entry in env if "=" in entry and entry.partition("=")[0] not in _PRIVATE]
