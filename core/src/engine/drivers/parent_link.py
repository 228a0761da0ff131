"""What drivers have in common that put containers right onto a link of the host: macvlan and ipvlan.

A network has a parent link. ``parent=eth0`` names one that exists; ``parent=eth0.100`` one that is made as the VLAN 100
of eth0 when it does not, and removed with the last network on it if this engine made it (its alias says so). Without a
parent, or for an internal network without one, a dummy link is made: its containers reach each other and nobody else.
"""

from __future__ import annotations

import errno
import os
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from engine import kernel, netlink
from engine.drivers import DriverContext
from engine.drivers.network import Endpoint, Joined, Network, NetworkDriver, PublishedPort
from engine.errors import EngineError, InvalidParameter, NotFound, NotSupported
from engine.netlink import Netlink

__all__ = ["Parent", "ParentLinkDriver"]

_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPROTONOSUPPORT)


@dataclass(frozen=True, slots=True)
class Parent:
    """A network's parent link; ``mode`` is the driver's, as the user wrote it."""

    network: Network
    name: str
    index: int
    mode: str


class ParentLinkDriver(NetworkDriver):
    """Networks on a parent link. A subclass says how a child is made and what modes there are."""

    capabilities = frozenset({"sandbox"})
    kind = ""
    """The kernel's name for a child link, which is the driver's as well."""

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._owner = f"engine-{context.instance}"
        self._netlink = Netlink()
        self._parents: dict[str, Parent] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the socket; everything in the kernel stays."""
        self._netlink.close()

    # -- what a subclass says --------------------------------------------------------------------------------

    @abstractmethod
    def mode(self, options: Mapping[str, str]) -> str:
        """The mode the options ask for; raises `InvalidParameter`."""

    @abstractmethod
    def check_sharing(self, network: Network, mode: str, other: Parent) -> None:
        """Raise `Forbidden` when ``network`` cannot have the parent link of ``other``."""

    @abstractmethod
    def child(self, parent: Parent, endpoint: Endpoint, interface: str, namespace: int) -> netlink.Message:
        """The request that makes the endpoint's link in the namespace."""

    @abstractmethod
    def gateways(self, parent: Parent) -> Mapping[int, IPv4Address | IPv6Address | None]:
        """For each IP version with a default route its gateway, None for "all is on the link"."""

    # -- networks --------------------------------------------------------------------------------------------

    def create_network(self, network: Network) -> None:
        """Find or make the parent link."""
        mode = self.mode(network.options)
        with self._lock:
            name = self._parent_name(network)
            for other in self._parents.values():
                if other.name == name and other.network.id != network.id:
                    self.check_sharing(network, mode, other)
            self._parents[network.id] = Parent(network, name, self._ensure_parent(network, name), mode)

    def delete_network(self, network_id: str) -> None:
        """Remove the parent link if this engine made it and no other network is on it."""
        with self._lock:
            parent = self._parents.pop(network_id, None)
            if parent is None or any(other.name == parent.name for other in self._parents.values()):
                return
            link = self._netlink.link(parent.name)
            if link is not None and link.alias.startswith(f"{self._owner} {self.kind}-parent"):
                self._netlink.request(netlink.delete_link(link.index))

    def _parent_name(self, network: Network) -> str:
        name = network.options.get("parent", "")
        if name == "lo":
            raise InvalidParameter(f"loopback interface is not a valid {self.kind} parent link")
        return name or f"dm-{network.id[:12]}"

    def _ensure_parent(self, network: Network, name: str) -> int:
        link = self._netlink.link(name)
        if link is None:
            if network.options.get("parent"):
                self._make_vlan(name)
            else:
                self._make(netlink.add_dummy(name), "dummy links (CONFIG_DUMMY); name a parent with -o parent=eth0")
            self._netlink.request(netlink.set_alias(name, f"{self._owner} {self.kind}-parent {network.id}"))
            link = self._netlink.link(name)
            if link is None:
                raise EngineError(f"parent link {name} vanished while it was made")
        if link.alias.startswith(f"{self._owner} {self.kind}-parent"):
            self._netlink.request(netlink.set_up(link.index))
        return link.index

    def _make_vlan(self, name: str) -> None:
        base, dot, digits = name.rpartition(".")
        if not dot or not base:
            raise InvalidParameter(f"invalid subinterface vlan name {name}, example formatting is eth0.10")
        if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits) <= 4094:
            raise InvalidParameter(f"vlan id must be between 1-4094, received: {digits}")
        if len(name) > 15:
            raise InvalidParameter(f"parent interface name {name} is longer than 15 characters")
        parent = self._netlink.link(base)
        if parent is None:
            raise InvalidParameter(f"-o parent interface was not found on the host: {base}")
        self._make(netlink.add_vlan(name, parent.index, int(digits)), "802.1Q VLANs (module 8021q)")

    def _make(self, message: netlink.Message, feature: str) -> None:
        (error,) = self._netlink.try_request(message)
        if error is not None and error.errno in _UNKNOWN:
            raise NotSupported(f"network driver {self.context.name}: this kernel has no {feature}")
        if error is not None:
            raise EngineError(f"failed to make the parent link: {error.strerror}")

    # -- endpoints -------------------------------------------------------------------------------------------

    def join(self, network: Network, endpoint: Endpoint, sandbox: Path, *, interface: str) -> Joined:
        """Make the child link in the sandbox, with its addresses and routes."""
        with self._lock:
            parent = self._parents.get(network.id)
        if parent is None:
            raise NotFound(f"network {network.id} not found")
        try:
            namespace = os.open(sandbox, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"sandbox {sandbox} does not exist") from None
        try:
            (error,) = self._netlink.try_request(self.child(parent, endpoint, interface, namespace))
        finally:
            os.close(namespace)
        if error is not None and error.errno in _UNKNOWN:
            raise NotSupported(f"network driver {self.context.name}: this kernel has no {self.kind} links")
        if error is not None and error.errno != errno.EEXIST:
            raise EngineError(f"failed to make the {self.kind} link on {parent.name}: {error.strerror}")
        gateways = {} if network.internal or not network.options.get("parent") else self.gateways(parent)
        try:
            mac = kernel.in_namespace(sandbox, lambda: _configure(interface, endpoint, gateways))
        except OSError as failure:
            self.leave(network.id, endpoint.id, sandbox)
            raise EngineError(f"failed to set up interface {interface} in the sandbox: {failure}") from failure
        return Joined(
            interface=interface,
            mac=mac,
            gateway_ipv4=str(gateways.get(4) or "") if endpoint.ipv4 is not None else "",
            gateway_ipv6=str(gateways.get(6) or "") if endpoint.ipv6 is not None else "",
        )

    def leave(self, network_id: str, endpoint_id: str, sandbox: Path) -> None:
        """Remove the link; with the sandbox gone the kernel has."""
        if sandbox.exists():
            kernel.in_namespace(sandbox, lambda: _remove(endpoint_id))

    def restore(
        self, networks: Sequence[Network], endpoints: Sequence[tuple[Endpoint, tuple[PublishedPort, ...]]]
    ) -> None:
        """Find or make the parents again and remove those that no network has any more."""
        for network in networks:
            try:
                self.create_network(network)
            except EngineError as error:
                self._unusable(network, error)
        kept = {parent.name for parent in self._parents.values()}
        for link in self._netlink.links():
            if link.alias.startswith(f"{self._owner} {self.kind}-parent") and link.name not in kept:
                self._netlink.request(netlink.delete_link(link.index))

    def _unusable(self, network: Network, error: EngineError) -> None:
        import logging

        logging.getLogger(__name__).warning(
            "a network cannot be restored", extra={"network": network.id, "error": str(error)}
        )


def _alias(endpoint_id: str) -> str:
    return f"endpoint {endpoint_id}"


def _configure(interface: str, endpoint: Endpoint, gateways: Mapping[int, IPv4Address | IPv6Address | None]) -> str:
    """Inside the sandbox: label, addresses, up, default routes where there is none yet; returns the link's MAC."""
    with Netlink() as inside:
        link = inside.link(interface)
        if link is None:
            raise OSError(errno.ENODEV, f"no interface {interface}")
        addresses = [address for address in (endpoint.ipv4, endpoint.ipv6) if address is not None]
        inside.request(
            netlink.set_alias(interface, _alias(endpoint.id)),
            *(netlink.add_address(link.index, address) for address in addresses),
            netlink.set_up(link.index),
        )
        for version in {address.version for address in addresses} & set(gateways):
            gateway = gateways[version]
            (error,) = inside.try_request(
                netlink.add_device_route(link.index, version)
                if gateway is None
                else netlink.add_default_route(link.index, gateway)
            )
            if error is not None and error.errno != errno.EEXIST:
                raise error
        return link.mac


def _remove(endpoint_id: str) -> None:
    with Netlink() as inside:
        for link in inside.links():
            if link.alias == _alias(endpoint_id):
                inside.request(netlink.delete_link(link.index))
