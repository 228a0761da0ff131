"""The null driver: joining adds no interface, so loopback is all a container has."""

from __future__ import annotations

from pathlib import Path

from engine.drivers.network import Endpoint, Joined, Network, NetworkDriver

__all__ = ["NullDriver"]


class NullDriver(NetworkDriver):
    """A sandbox of its own and nothing in it."""

    capabilities = frozenset({"sandbox"})

    def create_network(self, network: Network) -> None:
        """Nothing to make."""

    def delete_network(self, network_id: str) -> None:
        """Nothing was made."""

    def create_endpoint(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Nothing to reserve."""
        return endpoint

    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """Nothing was reserved."""

    def join(self, network: Network, endpoint: Endpoint, sandbox: Path, *, interface: str) -> Joined:
        """Leave the sandbox as it is; ``interface`` in the answer is empty because there is none."""
        return Joined(interface="", mac="")

    def leave(self, network_id: str, endpoint_id: str, sandbox: Path) -> None:
        """Nothing was joined."""
