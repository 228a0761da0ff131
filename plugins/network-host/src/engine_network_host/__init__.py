"""The host's own network stack: containers run in the namespace the engine runs in.

There is nothing to make or remove; the absent capability ``sandbox`` tells the core not to give such a container a
network namespace, so `join` is never called.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_network_drivers"]


@hookimpl
def engine_network_drivers() -> Sequence[DriverDescription]:
    """The driver ``host``."""
    return [
        DriverDescription(
            name="host",
            loader="engine_network_host.driver:HostDriver",
            summary="The host's own network stack, without isolation",
        )
    ]
