"""Network drivers: the data plane under CNM's three nouns.

A *network* is a set of endpoints that can talk to each other. A *sandbox* is a container's network stack
(a network namespace, a path). An *endpoint* connects one sandbox to one network. Creating and joining are two
calls because they fail differently: `create_endpoint` reserves (names, ports on a switch, addresses the driver
wants to choose) and can be undone cheaply, `join` moves an interface into a namespace that may vanish.

The core allocates addresses (IPAM), names and ids, and keeps the records; the driver only programs the kernel
and can be asked to do it all again after a reboot or a crash (`restore`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

from engine.drivers import DriverContext
from engine.errors import NotSupported

__all__ = [
    "AddressPolicy",
    "Endpoint",
    "Finding",
    "Joined",
    "Network",
    "NetworkDriver",
    "PublishedPort",
    "Route",
    "Subnet",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """One IPAM pool of a network: the subnet, and the gateway's own address in it (the bridge's)."""

    subnet: IPv4Network | IPv6Network
    gateway: IPv4Address | IPv6Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network as its driver sees it. ``id`` is 64 hex digits; ``options`` are Docker's driver options by name."""

    id: str
    name: str
    subnets: tuple[Subnet, ...] = ()
    internal: bool = False
    ipv6: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place in a network. Addresses carry the subnet's prefix length; ``mac`` is lower-case hex."""

    id: str
    network_id: str
    container_id: str
    ipv4: IPv4Interface | None = None
    ipv6: IPv6Interface | None = None
    mac: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route inside the sandbox; ``destination`` as CIDR text, ``gateway`` empty for on-link."""

    destination: str
    gateway: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What `join` did: the interface's name inside the sandbox, its MAC, and what the core may route through it.

    ``ipv4`` and ``ipv6`` are set by drivers with an address management of their own, in place of the endpoint's.
    """

    interface: str
    mac: str
    gateway_ipv4: str = ""
    gateway_ipv6: str = ""
    routes: tuple[Route, ...] = ()
    ipv4: IPv4Interface | None = None
    ipv6: IPv6Interface | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """``host_ip`` is an address (``0.0.0.0`` and ``::`` mean all of a family; empty means the driver's default, usually
    both). ``host_port`` 0 asks the driver to choose one; ``host_port_end`` above it makes a range to choose from.
    """

    container_port: int
    protocol: str  # tcp, udp, sctp
    host_ip: str
    host_port: int
    host_port_end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPolicy:
    """Connections between addresses, allowed or denied: ``pairs`` of source ('' for any) and target, at ``ports``
    (protocol, number; none means all). Earlier policies win over later ones."""

    name: str
    allow: bool
    pairs: tuple[tuple[str, str], ...] = ()
    ports: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``check`` is what in a word, ``detail`` what was found, ``fix`` what would help."""

    check: str
    ok: bool
    detail: str
    fix: str = ""


class NetworkDriver(ABC):
    """Capabilities: ``publish`` (publish and unpublish), ``policy`` (set_policies), ``sandbox`` (containers get their
    own network namespace; without it - host, container - the core makes none and never calls join).

    ``scope`` is ``local`` or ``swarm``.
    """

    capabilities: frozenset[str] = frozenset()
    scope: str = "local"

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    @abstractmethod
    def create_network(self, network: Network) -> None:
        """Make the network exist in the kernel. Unknown or invalid options: `InvalidParameter`."""

    @abstractmethod
    def delete_network(self, network_id: str) -> None:
        """Remove it. The core has made sure that it has no endpoints."""

    @abstractmethod
    def create_endpoint(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Reserve; returns the endpoint with what the driver chose (MAC, addresses) filled in."""

    @abstractmethod
    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """Undo `create_endpoint`."""

    @abstractmethod
    def join(self, network: Network, endpoint: Endpoint, sandbox: Path, *, interface: str) -> Joined:
        """Put an interface for the endpoint into the network namespace bind-mounted at ``sandbox``.

        ``interface`` is the name wanted inside (``eth0``...). Sets addresses, on-link routes and link state;
        the default route is set too when the network is not internal and none exists yet.
        """

    @abstractmethod
    def leave(self, network_id: str, endpoint_id: str, sandbox: Path) -> None:
        """Undo `join`; the sandbox may already be gone."""

    def complete(self, network: Network) -> Network:
        """Fill in the options the driver chooses by itself and users should see (the default bridge's link name).

        Called before `create_network` makes a network of the engine's own, and again at every start; the result is
        recorded. May look at the kernel, changes nothing. A driver that shows no such options returns ``network``.
        """
        return network

    def publish(
        self, network: Network, endpoint: Endpoint, ports: Sequence[PublishedPort]
    ) -> tuple[PublishedPort, ...]:
        """Make container ports reachable at host ports; all or nothing; returns them with the host ports chosen.

        A host port in use (by another container or by a process) is `Conflict` with dockerd's text
        ``Bind for 0.0.0.0:8080 failed: port is already allocated``.
        """
        raise NotSupported(f"network driver {self.context.name} cannot publish ports")

    def unpublish(self, network_id: str, endpoint_id: str) -> None:
        """Undo `publish`, all ports of the endpoint."""
        raise NotSupported(f"network driver {self.context.name} cannot publish ports")

    def set_policies(self, policies: Sequence[AddressPolicy]) -> None:
        """Enforce exactly these between containers of this driver's networks; connections under way go on."""
        raise NotSupported(f"network driver {self.context.name} cannot enforce policies")

    def diagnose(self, network: Network, endpoint: Endpoint) -> Sequence[Finding]:
        """What the kernel has of this endpoint, looked at now: each link, rule or setting its packets need.

        Changes nothing and never raises for what is wrong, that is what it tells. For ``engine explain``.
        """
        return ()

    def restore(  # noqa: B027 - optional: a driver without kernel state has nothing to restore
        self, networks: Sequence[Network], endpoints: Sequence[tuple[Endpoint, tuple[PublishedPort, ...]]]
    ) -> None:
        """Called once at start with all that should exist: make it so and remove everything of this instance
        that is not in it. Endpoints are those of running containers; their interfaces are in place."""
