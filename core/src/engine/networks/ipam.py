"""Address management: which subnet a network gets, and which address an endpoint.

Everything is in memory and rebuilt at start from the records of networks and of running containers, so no address
can leak. Addresses are handed out in turn - the next free one after the last given - so that a freed address rests
as long as possible and stale ARP and DNS answers hurt least. Used from the event loop only; nothing blocks but
`host_routes`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from engine.errors import AlreadyExists, Conflict, Forbidden, InvalidParameter
from engine.model.network import IPAMConfig

__all__ = ["DEFAULT_POOLS", "AddressPool", "Ipam", "check", "host_routes", "parse_pools"]

Subnet: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class AddressPool:
    """``base`` is cut into subnets of prefix length ``size`` for networks that name none."""

    base: Subnet
    size: int


DEFAULT_POOLS: tuple[AddressPool, ...] = (
    *(AddressPool(ipaddress.ip_network(f"172.{second}.0.0/16"), 16) for second in range(17, 32)),
    AddressPool(ipaddress.ip_network("192.168.0.0/16"), 20),
)
"""Docker's."""

_OVERLAP = "invalid pool request: Pool overlaps with other one on this address space"


def parse_pools(entries: Iterable[Mapping[str, object]]) -> tuple[AddressPool, ...]:
    """The daemon's ``default-address-pools``: ``[{"base": "10.0.0.0/8", "size": 24}]``."""
    pools = []
    for entry in entries:
        base, size = str(entry.get("base", "")), entry.get("size")
        try:
            subnet = ipaddress.ip_network(base)
        except ValueError:
            raise InvalidParameter(f"invalid base pool {base!r}: invalid CIDR block notation") from None
        if not isinstance(size, int) or not subnet.prefixlen <= size <= subnet.max_prefixlen:
            raise InvalidParameter(f"invalid pools size: {size} for base {base}")
        pools.append(AddressPool(subnet, size))
    return tuple(pools)


def check(configs: Sequence[IPAMConfig], *, ipv6: bool) -> None:
    """Docker's checks of a request's IPAM configuration; all problems in one `InvalidParameter`."""
    problems = [problem for config in configs for problem in _problems(config, ipv6)]
    if problems:
        raise InvalidParameter("invalid network config:\n" + "\n".join(problems))


def _problems(config: IPAMConfig, ipv6: bool) -> list[str]:
    if not config.subnet:
        if config.ip_range or config.gateway or config.auxiliary_addresses:
            return ["invalid ipam config: a subnet is needed with ip-range, gateway or auxiliary addresses"]
        return []
    try:
        interface = ipaddress.ip_interface(config.subnet)
    except ValueError:
        return [f"invalid subnet {config.subnet}: invalid CIDR block notation"]
    subnet = interface.network
    found = []
    if "/" not in config.subnet:
        found.append(f"invalid subnet {config.subnet}: invalid CIDR block notation")
    elif interface.ip != subnet.network_address:
        found.append(f"invalid subnet {config.subnet}: it should be {subnet}")
    if subnet.version == 6 and not ipv6:
        found.append(f"invalid subnet {config.subnet}: IPv6 has not been enabled for this network")
    found += _range_problems(config.ip_range, subnet)
    found += _address_problems("gateway", config.gateway, subnet)
    for address in (config.auxiliary_addresses or {}).values():
        found += _address_problems("auxiliary address", address, subnet)
    return found


def _range_problems(text: str, subnet: Subnet) -> list[str]:
    if not text:
        return []
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return [f"invalid ip-range {text}: invalid CIDR block notation"]
    inner = interface.network
    if inner.version != subnet.version:
        return [f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"]
    if inner.prefixlen < subnet.prefixlen:
        return [f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}"]
    if interface.ip not in subnet:
        return [f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range"]
    if interface.ip != inner.network_address:
        return [f"invalid ip-range {text}: it should be {inner}"]
    return []


def _address_problems(what: str, text: str, subnet: Subnet) -> list[str]:
    if not text:
        return []
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return [f"invalid {what} {text}: invalid address"]
    if address.version != subnet.version:
        return [f"invalid {what} {text}: parent subnet is an IPv{subnet.version} block"]
    if address not in subnet:
        return [f"invalid {what} {text}: parent subnet {subnet} doesn't contain this address"]
    return []


def host_routes(proc: Path = Path("/proc/self/net")) -> list[Subnet]:
    """Destinations of the host's routes, default routes left out: subnets no network of ours should get by itself."""
    found: list[Subnet] = []
    for line in _lines(proc / "route")[1:]:
        fields = line.split()
        destination = ipaddress.IPv4Address(bytes.fromhex(fields[1])[::-1])
        mask = ipaddress.IPv4Address(bytes.fromhex(fields[7])[::-1])
        found.append(ipaddress.IPv4Network(f"{destination}/{mask}", strict=False))
    for line in _lines(proc / "ipv6_route"):
        fields = line.split()
        found.append(ipaddress.IPv6Network((bytes.fromhex(fields[0]), int(fields[1], 16)), strict=False))
    return [subnet for subnet in found if subnet.prefixlen]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []


@dataclass(slots=True)
class _Pool:
    subnet: Subnet
    first: int
    last: int
    reserved: frozenset[int]
    used: set[int] = field(default_factory=set)
    cursor: int = 0

    def take(self, wanted: Address | None) -> Interface | None:
        """An address, or None when there is none left. A wanted one may lie outside the ip-range."""
        if wanted is not None:
            number = int(wanted)
            if number in self.used or number in self.reserved:
                raise AlreadyExists("Address already in use")
            self.used.add(number)
            return self._interface(number)
        size = self.last - self.first + 1
        if len(self.used) + len(self.reserved) >= size and all(
            n in self.used or n in self.reserved for n in range(self.first, self.last + 1)
        ):
            return None
        number = max(self.cursor, self.first)
        while number in self.used or number in self.reserved or number > self.last:
            number = self.first if number >= self.last else number + 1
        self.used.add(number)
        self.cursor = number + 1
        return self._interface(number)

    def _interface(self, number: int) -> Interface:
        kind = ipaddress.IPv4Interface if self.subnet.version == 4 else ipaddress.IPv6Interface
        return kind((number, self.subnet.prefixlen))


class Ipam:
    """The pools of all networks of this engine."""

    def __init__(self, pools: Sequence[AddressPool] = DEFAULT_POOLS) -> None:
        self._defaults = tuple(pools)
        self._networks: dict[str, list[_Pool]] = {}

    def add_network(
        self,
        network_id: str,
        configs: Sequence[IPAMConfig],
        *,
        ipv4: bool = True,
        ipv6: bool = False,
        avoid: Sequence[Subnet] = (),
    ) -> list[IPAMConfig]:
        """Reserve the network's pools; returns the configuration with subnets and gateways filled in.

        Families asked for without a subnet get one from the default pools that overlaps neither another network nor
        ``avoid`` (see `host_routes`). Raises `Forbidden` for an overlap, `InvalidParameter` for a bad configuration.
        """
        check(configs, ipv6=ipv6)
        complete = [config for config in configs if config.subnet]
        versions = {ipaddress.ip_network(config.subnet).version for config in complete}
        taken = [pool.subnet for pools in self._networks.values() for pool in pools]
        for version, wanted in ((4, ipv4), (6, ipv6)):
            if wanted and version not in versions:
                complete.append(IPAMConfig(subnet=str(self._choose(version, [*taken, *avoid], network_id))))
        pools = []
        filled = []
        for config in complete:
            subnet = ipaddress.ip_network(config.subnet)
            if any(subnet.version == other.version and subnet.overlaps(other) for other in taken):
                raise Forbidden(_OVERLAP)
            taken.append(subnet)
            pool, config = _make_pool(subnet, config)
            pools.append(pool)
            filled.append(config)
        self._networks[network_id] = pools
        return filled

    def remove_network(self, network_id: str) -> None:
        """Free the network's pools and all addresses in them."""
        self._networks.pop(network_id, None)

    def allocate(self, network_id: str, version: int, wanted: str = "") -> Interface | None:
        """An address for an endpoint; None when the network has no pool of that family.

        ``wanted`` asks for one. Raises `AlreadyExists` (``Address already in use``), `InvalidParameter` when it is in
        no subnet of the network, `Conflict` when the pools are exhausted.
        """
        pools = [pool for pool in self._networks.get(network_id, ()) if pool.subnet.version == version]
        if wanted:
            address = _parse_address(wanted, version)
            for pool in pools:
                if address in pool.subnet:
                    return pool.take(address)
            raise InvalidParameter(
                f"invalid config for network {network_id}: invalid endpoint settings:\n"
                f"no configured subnet contains IP address {wanted}"
            )
        for pool in pools:
            if (found := pool.take(None)) is not None:
                return found
        if pools:
            raise Conflict(f"no available IPv{version} addresses on this network's address pools: {network_id}")
        return None

    def claim(self, network_id: str, address: str) -> None:
        """Note at start that a running container has ``address``; never fails."""
        number = ipaddress.ip_address(address)
        for pool in self._networks.get(network_id, ()):
            if number in pool.subnet:
                pool.used.add(int(number))
                pool.cursor = max(pool.cursor, int(number) + 1)

    def release(self, network_id: str, address: str) -> None:
        """Give an address back; giving back what is free is fine."""
        number = ipaddress.ip_address(address)
        for pool in self._networks.get(network_id, ()):
            if number in pool.subnet:
                pool.used.discard(int(number))

    def _choose(self, version: int, taken: Sequence[Subnet], network_id: str) -> Subnet:
        blocked = [subnet for subnet in taken if subnet.version == version]
        for pool in self._defaults:
            if pool.base.version != version:
                continue
            for candidate in pool.base.subnets(new_prefix=pool.size):
                if not any(candidate.overlaps(other) for other in blocked):
                    return candidate
        if version == 6:  # as Docker: a unique local /64, here derived from the network's id
            return ipaddress.IPv6Network((bytes.fromhex("fd" + network_id[:14]) + bytes(8), 64))
        raise Forbidden("all predefined address pools have been fully subnetted")


def _parse_address(text: str, version: int) -> Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != version:
        raise InvalidParameter(f"invalid IPv{version} address: {text}")
    return address


def _make_pool(subnet: Subnet, config: IPAMConfig) -> tuple[_Pool, IPAMConfig]:
    inner = ipaddress.ip_network(config.ip_range) if config.ip_range else subnet
    first, last = int(inner.network_address), int(inner.broadcast_address)
    reserved = {int(ipaddress.ip_address(a)) for a in (config.auxiliary_addresses or {}).values()}
    small = subnet.max_prefixlen - subnet.prefixlen <= 1  # RFC 3021: no network and broadcast address
    if not small:
        reserved.add(int(subnet.network_address))
        if subnet.version == 4:
            reserved.add(int(subnet.broadcast_address))
    if config.gateway:
        gateway = int(ipaddress.ip_address(config.gateway))
    else:
        gateway = next((n for n in range(first, last + 1) if n not in reserved), -1)
        if gateway < 0:
            raise Conflict("failed to allocate gateway (): no available addresses on this network's address pools")
    reserved.add(gateway)
    filled = IPAMConfig(
        subnet=config.subnet,
        ip_range=config.ip_range,
        gateway=str(ipaddress.IPv4Address(gateway) if subnet.version == 4 else ipaddress.IPv6Address(gateway)),
        auxiliary_addresses=config.auxiliary_addresses,
    )
    return _Pool(subnet, first, last, frozenset(reserved)), filled
