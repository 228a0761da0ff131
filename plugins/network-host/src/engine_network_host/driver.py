"""The host driver: endpoints exist in the books only."""

from __future__ import annotations

from pathlib import Path

from engine.drivers.network import Endpoint, Joined, Network, NetworkDriver
from engine.errors import NotSupported

__all__ = ["HostDriver"]


class HostDriver(NetworkDriver):
    """Neither sandbox nor publishing: a container's ports are the host's."""

    def create_network(self, network: Network) -> None:
        """The host's network is always there."""

    def delete_network(self, network_id: str) -> None:
        """It stays."""

    def create_endpoint(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Nothing to reserve."""
        return endpoint

    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """Nothing was reserved."""

    def join(self, network: Network, endpoint: Endpoint, sandbox: Path, *, interface: str) -> Joined:
        """Never possible: a sandbox is what this driver does without."""
        raise NotSupported("network driver host has no sandbox to join")

    def leave(self, network_id: str, endpoint_id: str, sandbox: Path) -> None:
        """Nothing was joined."""
