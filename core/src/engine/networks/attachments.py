"""Containers on networks, the kernel's side: a sandbox, its endpoints, the ports published through one of them.

The functions here run on a worker thread in one go (a start should not hop between threads for each step), know
drivers and sandboxes, and nothing of records, names or addresses: those are decided by `engine.networks`.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from engine import kernel
from engine.drivers.network import Endpoint, Joined, Network, NetworkDriver, PublishedPort
from engine.errors import Conflict, EngineError
from engine.netlink import Netlink, add_address
from engine.networks import sandbox
from engine.networks.dns import Description, Resolver, describe

__all__ = ["Live", "Plug", "add", "detach", "disconnect", "names_of", "rejoin", "restorable", "set_up"]

_SIOCGIFHWADDR = 0x8927

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Plug:
    """One endpoint of a running container. ``routes``: it can be the way out. ``names`` are what others on the network
    find it by, ``links`` its own words for others; without names there is no name resolution on this network.

    ``interface`` is empty for a container taken over from an earlier daemon, until somebody needs it (`_interfaces`).
    """

    name: str  # of the network, the key in the container's record
    network: Network
    driver: NetworkDriver
    endpoint: Endpoint
    routes: bool
    priority: int = 0
    names: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    link_local: Sequence[IPv4Interface | IPv6Interface] = ()
    interface: str = ""
    joined: Joined | None = None
    reserved: tuple[str, ...] = ()  # addresses the engine allocated for it; a driver may have chosen others

    @property
    def rank(self) -> tuple[bool, int, str]:
        """What puts the endpoints of a container in order: the smallest is its gateway."""
        return not self.routes, -self.priority, self.name


@dataclass(slots=True, kw_only=True)
class Live:
    """What a running container has: its sandbox (no ``path``: the host's), its endpoints, the gateway's first.

    ``wanted`` are the ports to publish, ``published`` those that are, through the first plug that routes. ``servers``
    are the nameservers the user asked for, ``ndots`` whether the user wants dots in names for servers outside.
    """

    container_id: str
    container_name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    sandbox_id: str
    path: Path | None
    plugs: list[Plug] = field(default_factory=list)
    wanted: tuple[PublishedPort, ...] = ()
    published: tuple[PublishedPort, ...] = ()
    publisher: Plug | None = None
    servers: tuple[str, ...] = ()
    ndots: bool = False

    @property
    def gateway(self) -> Plug | None:
        """The endpoint the default route goes through."""
        return next((plug for plug in self.plugs if plug.routes), None)


def set_up(live: Live, resolver: Resolver) -> None:
    """Make the sandbox, connect every endpoint in order (the gateway's route is the first), publish; or nothing."""
    with ExitStack() as undo:
        undo.callback(detach, live, resolver)
        if live.path is not None:
            sandbox.create(live.path)
        for plug in live.plugs:
            _connect(live, plug)
        _publish(live)
        if (description := names_of(live)) is not None:
            resolver.update({live.sandbox_id: description})
        undo.pop_all()


def names_of(live: Live) -> Description | None:
    """What the resolver is told; None for a container that needs none, as on the default networks alone."""
    named = [plug for plug in live.plugs if plug.names]
    if live.path is None or not named:
        return None
    endpoints = [
        {
            "network": plug.network.id,
            "suffix": plug.network.name,
            "names": plug.names,
            "addresses": [str(a.ip) for a in (plug.endpoint.ipv4, plug.endpoint.ipv6) if a is not None],
            "links": plug.links,
        }
        for plug in named
    ]
    return describe(live.path, endpoints, servers=live.servers, forward=live.gateway is not None, ndots=live.ndots)


def add(live: Live, plug: Plug, resolver: Resolver) -> None:
    """Connect one more endpoint to a running container, under the first free of ``eth0``, ``eth1``...; or nothing.

    When the new one outranks the gateway, the default route and the published ports move to it.
    """
    if live.path is not None:
        used = _interfaces(live)
        plug.interface = next(name for number in range(len(used) + 1) if (name := f"eth{number}") not in used)
    before = live.gateway
    _connect(live, plug)
    live.plugs.append(plug)
    live.plugs.sort(key=lambda each: each.rank)
    try:
        if before is not None and live.gateway is plug:
            _unpublish(live)
            _route_through(live, plug)
        _publish(live)
        if (description := names_of(live)) is not None:
            resolver.update({live.sandbox_id: description})
    except BaseException:
        disconnect(live, plug, resolver)
        raise


def rejoin(live: Live) -> list[str]:
    """After a crash: connect again what a running container is recorded to be connected to and is not, because the
    daemon died in the midst of a disconnect; returns the names of those networks."""
    if live.path is None or not sandbox.exists(live.path):
        return []
    found = kernel.in_namespace(live.path, _interfaces_here)
    lost = [plug for plug in live.plugs if plug.joined is not None and plug.endpoint.mac not in ("", *found)]
    for plug in lost:
        used = set(found.values())
        plug.interface = next(name for number in range(len(used) + 1) if (name := f"eth{number}") not in used)
        _connect(live, plug)
        found[plug.endpoint.mac] = plug.interface
    return [plug.name for plug in lost]


def _route_through(live: Live, gateway: Plug) -> None:
    """Put the default route on ``gateway``: joining again is harmless, and sets the route that is missing then."""
    if live.path is not None and "sandbox" in gateway.driver.capabilities:
        _interfaces(live)
        kernel.in_namespace(live.path, sandbox.drop_default_routes)
        gateway.driver.join(gateway.network, gateway.endpoint, live.path, interface=gateway.interface)


def _connect(live: Live, plug: Plug) -> None:
    plug.endpoint = plug.driver.create_endpoint(plug.network, plug.endpoint)
    if live.path is None or "sandbox" not in plug.driver.capabilities:
        return
    try:
        joined = plug.joined = plug.driver.join(plug.network, plug.endpoint, live.path, interface=plug.interface)
        if joined.ipv4 is not None or joined.ipv6 is not None:
            plug.endpoint = replace(plug.endpoint, ipv4=joined.ipv4, ipv6=joined.ipv6, mac=joined.mac)
        if plug.link_local:
            kernel.in_namespace(live.path, lambda: _add_addresses(plug.interface, plug.link_local))
    except BaseException:
        _try(plug.driver.delete_endpoint, plug.network.id, plug.endpoint.id)
        raise


def _add_addresses(interface: str, addresses: Sequence[IPv4Interface | IPv6Interface]) -> None:
    index = socket.if_nametoindex(interface)
    with Netlink() as link:
        link.request(*(add_address(index, address) for address in addresses))


def _publish(live: Live) -> None:
    """Publish the wanted ports through the gateway, if they are not; a network without a way out publishes nothing."""
    gateway = live.gateway
    if gateway is None or live.publisher is gateway or not live.wanted or "publish" not in gateway.driver.capabilities:
        return
    try:
        live.published = gateway.driver.publish(gateway.network, gateway.endpoint, live.wanted)
    except Conflict as error:
        raise EngineError(
            f"driver failed programming external connectivity on endpoint {live.container_name} "
            f"({gateway.endpoint.id}): {error}"
        ) from error
    live.publisher = gateway


def _unpublish(live: Live) -> None:
    if live.publisher is not None:
        _try(live.publisher.driver.unpublish, live.publisher.network.id, live.publisher.endpoint.id)
        live.publisher, live.published = None, ()


def disconnect(live: Live, plug: Plug, resolver: Resolver) -> None:
    """Take one endpoint out of a running sandbox; ports and the default route move to the next one that routes."""
    was_gateway = live.gateway is plug
    if live.publisher is plug:
        _unpublish(live)
    if live.path is not None and plug.joined is not None:
        _try(plug.driver.leave, plug.network.id, plug.endpoint.id, live.path)
    _try(plug.driver.delete_endpoint, plug.network.id, plug.endpoint.id)
    if plug in live.plugs:
        live.plugs.remove(plug)
    if plug.names:
        _try(resolver.update, {live.sandbox_id: names_of(live)})
    gateway = live.gateway
    if was_gateway and gateway is not None and live.path is not None:
        _route_through(live, gateway)
        _publish(live)


def detach(live: Live, resolver: Resolver) -> None:
    """Release everything, each step whatever became of the others. The sandbox goes before its endpoints: the kernel
    then removes their interfaces in the background, where a deletion here would wait tens of milliseconds."""
    _unpublish(live)
    if any(plug.names for plug in live.plugs):  # its sockets would keep the sandbox
        _try(resolver.update, {live.sandbox_id: None})
    if live.path is not None:
        _try(sandbox.delete, live.path)
    for plug in live.plugs:
        if live.path is not None and plug.joined is not None:
            _try(plug.driver.leave, plug.network.id, plug.endpoint.id, live.path)
        _try(plug.driver.delete_endpoint, plug.network.id, plug.endpoint.id)


def _interfaces(live: Live) -> set[str]:
    """Names of the interfaces in the sandbox; plugs that do not know theirs learn it, by MAC address."""
    assert live.path is not None
    found = kernel.in_namespace(live.path, _interfaces_here)
    for plug in live.plugs:
        plug.interface = plug.interface or found.get(plug.endpoint.mac, "")
    return set(found.values())


def _interfaces_here() -> dict[str, str]:
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        for _, name in socket.if_nameindex():
            answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
            found[answer[18:24].hex(":")] = name
    return found


def restorable(lives: Sequence[Live]) -> dict[str, list[tuple[Endpoint, tuple[PublishedPort, ...]]]]:
    """Of running containers, what each network's driver has to restore: by network id."""
    found: dict[str, list[tuple[Endpoint, tuple[PublishedPort, ...]]]] = {}
    for live in lives:
        for plug in live.plugs:
            ports = live.published if live.publisher is plug else ()
            found.setdefault(plug.network.id, []).append((plug.endpoint, ports))
    return found


def _try(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except Exception:
        _log.exception("releasing a container's network", extra={"step": getattr(function, "__qualname__", "")})
