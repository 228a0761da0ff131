"""No network: a namespace with nothing but loopback.

The driver is called ``null``, as in Docker; the network made with it is ``none``.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_network_drivers"]


@hookimpl
def engine_network_drivers() -> Sequence[DriverDescription]:
    """The driver ``null``."""
    return [
        DriverDescription(
            name="null",
            aliases=("none",),
            loader="engine_network_none.driver:NullDriver",
            summary="A network namespace with nothing but loopback",
            capabilities=frozenset({"sandbox"}),
        )
    ]
