"""Networks made by CNI plugins."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_network_drivers"]


@hookimpl
def engine_network_drivers() -> Sequence[DriverDescription]:
    """The driver ``cni``."""
    return [
        DriverDescription(
            name="cni",
            loader="engine_network_cni.driver:CniDriver",
            summary="Networks made by CNI plugins",
            capabilities=frozenset({"sandbox"}),
            options={
                "bin-dir": "Where the plugins are, separated by colons (default /opt/cni/bin:/usr/lib/cni)",
                "conf-dir": "Where networks are looked for (default /etc/cni/net.d)",
            },
        )
    ]
