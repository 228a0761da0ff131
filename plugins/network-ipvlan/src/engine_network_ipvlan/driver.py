"""The ipvlan driver: containers on the parent's network under the parent's MAC address, told apart by IP."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from engine import netlink
from engine.drivers.network import Endpoint, Network
from engine.drivers.parent_link import Parent, ParentLinkDriver
from engine.errors import Forbidden, InvalidParameter

__all__ = ["IpvlanDriver"]

_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}


class IpvlanDriver(ParentLinkDriver):
    """ipvlan links; options ``parent``, ``ipvlan_mode`` and ``ipvlan_flag`` as Docker's."""

    kind = "ipvlan"

    def mode(self, options: Mapping[str, str]) -> str:
        mode, flag = options.get("ipvlan_mode", "") or "l2", options.get("ipvlan_flag", "") or "bridge"
        if mode not in _MODES:
            raise InvalidParameter(
                f"requested ipvlan mode '{mode}' is not valid, 'l2' mode is the ipvlan driver default"
            )
        if flag not in _FLAGS:
            raise InvalidParameter(
                f"requested ipvlan flag '{flag}' is not valid, 'bridge' is the ipvlan driver default"
            )
        return f"{mode} {flag}"

    def check_sharing(self, network: Network, mode: str, other: Parent) -> None:
        """The kernel has one mode for all children of a link."""
        if mode != other.mode:
            raise Forbidden(
                f"network {other.network.id} is already using parent interface {other.name} in another mode "
                f"({other.mode})"
            )

    def create_endpoint(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """The MAC address is the parent's: one of its own is an error."""
        if endpoint.mac:
            raise InvalidParameter("ipvlan driver does not support custom MAC addresses")
        return endpoint

    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """Nothing was reserved."""

    def child(self, parent: Parent, endpoint: Endpoint, interface: str, namespace: int) -> netlink.Message:
        mode, _, flag = parent.mode.partition(" ")
        return netlink.add_ipvlan(
            interface,
            parent.index,
            mode=_MODES[mode],
            flags=_FLAGS[flag],
            namespace=namespace,
            mtu=int(parent.network.options.get("com.docker.network.driver.mtu", "") or 0),
        )

    def gateways(self, parent: Parent) -> Mapping[int, IPv4Address | IPv6Address | None]:
        if not parent.mode.startswith("l2"):  # layer 3: the parent routes, there is no neighbour to name
            return {pool.subnet.version: None for pool in parent.network.subnets}
        return {pool.subnet.version: pool.gateway for pool in parent.network.subnets if pool.gateway is not None}
