"""Containers that share the MAC address of a link of the host, by IP."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_network_drivers"]


@hookimpl
def engine_network_drivers() -> Sequence[DriverDescription]:
    """The driver ``ipvlan``."""
    return [
        DriverDescription(
            name="ipvlan",
            loader="engine_network_ipvlan.driver:IpvlanDriver",
            summary="Containers that share the MAC address of a link of the host, by IP",
            capabilities=frozenset({"sandbox"}),
        )
    ]
