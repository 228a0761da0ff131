"""Bridge networks: Linux bridge, veth, NAT and published ports by nftables maps."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_network_drivers"]


@hookimpl
def engine_network_drivers() -> Sequence[DriverDescription]:
    """The driver ``bridge``."""
    return [
        DriverDescription(
            name="bridge",
            loader="engine_network_bridge.driver:BridgeDriver",
            summary="Containers on a Linux bridge of this host, behind NAT",
            capabilities=frozenset({"sandbox", "publish", "policy"}),
            options={
                "userland-proxy": "Carry connections the kernel cannot, such as those to [::1] (default true)",
                "ip-forward": "Turn the host's IP forwarding on when a network needs it (default true)",
            },
        )
    ]
