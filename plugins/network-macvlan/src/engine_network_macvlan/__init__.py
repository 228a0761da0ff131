"""Containers with their own MAC address on a link of the host, VLANs included."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_network_drivers"]


@hookimpl
def engine_network_drivers() -> Sequence[DriverDescription]:
    """The driver ``macvlan``."""
    return [
        DriverDescription(
            name="macvlan",
            loader="engine_network_macvlan.driver:MacvlanDriver",
            summary="Containers with their own MAC address on a link of the host, VLANs included",
            capabilities=frozenset({"sandbox"}),
        )
    ]
