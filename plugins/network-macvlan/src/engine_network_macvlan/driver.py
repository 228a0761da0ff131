"""The macvlan driver: each container has a MAC address of its own on the parent's network; no bridge, no NAT."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from engine import netlink
from engine.drivers.network import Endpoint, Network
from engine.drivers.parent_link import Parent, ParentLinkDriver
from engine.errors import Forbidden, InvalidParameter

__all__ = ["MacvlanDriver"]

_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}


class MacvlanDriver(ParentLinkDriver):
    """macvlan links; options ``parent`` and ``macvlan_mode`` as Docker's."""

    kind = "macvlan"

    def mode(self, options: Mapping[str, str]) -> str:
        mode = options.get("macvlan_mode", "") or "bridge"
        if mode not in _MODES:
            raise InvalidParameter(
                f"requested macvlan mode '{mode}' is not valid, 'bridge' mode is the macvlan driver default"
            )
        return mode

    def check_sharing(self, network: Network, mode: str, other: Parent) -> None:
        if mode == "passthru":
            raise Forbidden(
                f"cannot use mode passthru, macvlan network {other.network.id} is already using parent interface "
                f"{other.name}"
            )
        if other.mode == "passthru":
            raise Forbidden(
                f"macvlan network {other.network.id} is already using parent interface {other.name} in mode passthru"
            )

    def create_endpoint(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Choose the MAC address: Docker's 02:42 and the IPv4 address."""
        if endpoint.mac:
            return endpoint
        tail = endpoint.ipv4.ip.packed if endpoint.ipv4 is not None else secrets.token_bytes(4)
        return replace(endpoint, mac="02:42:" + tail.hex(":"))

    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """Nothing was reserved."""

    def child(self, parent: Parent, endpoint: Endpoint, interface: str, namespace: int) -> netlink.Message:
        return netlink.add_macvlan(
            interface,
            parent.index,
            mode=_MODES[parent.mode],
            mac=endpoint.mac,
            namespace=namespace,
            mtu=int(parent.network.options.get("com.docker.network.driver.mtu", "") or 0),
        )

    def gateways(self, parent: Parent) -> Mapping[int, IPv4Address | IPv6Address | None]:
        return {pool.subnet.version: pool.gateway for pool in parent.network.subnets if pool.gateway is not None}
