"""The firewall as data: the one nftables table of an engine, and the elements networks and ports put into its sets.

Nothing here touches the kernel. Every network and every published port is some set elements; there is no rule and no
chain per object, so a packet costs the same with one port and with ten thousand, and so does a change.

Forwarding decides only about packets that enter or leave one of our bridges; everything else of the host passes by.
Addresses on 127.0.0.0/8 reach containers through DNAT and ``route_localnet`` of the bridge, so packets from a
container that claim or seek such an address are dropped first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from engine.drivers.network import AddressPolicy, Network, PublishedPort
from engine_network_bridge.options import BridgeOptions

__all__ = ["Element", "add", "delete", "network_elements", "port_elements", "table"]


@dataclass(frozen=True, slots=True, order=True)
class Element:
    """``key`` (and for maps ``value``) as nft writes them, in the set or map ``set``."""

    set: str
    key: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.key} : {self.value}" if self.value else self.key


_SETS = {
    # published ports: protocol . host port -> container address . port; the *ip* maps for one host address only
    "pub4": "map pub4 { type inet_proto . inet_service : ipv4_addr . inet_service;",
    "pub6": "map pub6 { type inet_proto . inet_service : ipv6_addr . inet_service;",
    "pubip4": "map pubip4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;",
    "pubip6": "map pubip6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;",
    # ports open at the container's own address (gateway mode routed)
    "open4": "set open4 { type ipv4_addr . inet_proto . inet_service;",
    "open6": "set open6 { type ipv6_addr . inet_proto . inet_service;",
    "bridges": "set bridges { type ifname;",
    "same": "set same { type ifname . ifname;",  # bridges whose containers may talk to each other
    "internal": "set internal { type ifname;",  # bridges with no way out
    "exposed4": "set exposed4 { type ifname;",  # bridges whose containers may be reached directly
    "exposed6": "set exposed6 { type ifname;",
    "masq4": "set masq4 { type ifname;",  # bridges whose containers leave with the host's address
    "masq6": "set masq6 { type ifname;",
    "hairpin4": "set hairpin4 { type ifname . ipv4_addr; flags interval;",  # bridge . its subnet
    "hairpin6": "set hairpin6 { type ifname . ipv6_addr; flags interval;",
}

_CHAINS = """\
  chain prerouting_raw {
    type filter hook prerouting priority raw; policy accept;
    iifname @bridges ip daddr 127.0.0.0/8 drop
    iifname @bridges ip saddr 127.0.0.0/8 drop
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    fib daddr type local jump published
  }
  chain output {
    type nat hook output priority -100; policy accept;
    ip6 daddr { ::1, fe80::/10 } return
    fib daddr type local jump published
  }
  chain published {
    dnat ip to ip daddr . meta l4proto . th dport map @pubip4
    dnat ip to meta l4proto . th dport map @pub4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @pubip6
    dnat ip6 to meta l4proto . th dport map @pub6
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    ct status dnat oifname . ip saddr @hairpin4 masquerade
    ct status dnat oifname . ip6 saddr @hairpin6 masquerade
    oifname @bridges ct status dnat ip saddr 127.0.0.0/8 masquerade
    meta nfproto ipv4 iifname @masq4 oifname != @bridges masquerade
    meta nfproto ipv6 iifname @masq6 oifname != @bridges masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname @bridges goto containers
    oifname @bridges goto containers
%s  }
  chain containers {
    ct state vmap { established : accept, related : accept, invalid : drop }
%s    iifname . oifname @same accept
    iifname @internal drop
    oifname @internal drop
    ct status dnat accept
    ip daddr . meta l4proto . th dport @open4 accept
    ip6 daddr . meta l4proto . th dport @open6 accept
    meta nfproto ipv4 oifname @exposed4 accept
    meta nfproto ipv6 oifname @exposed6 accept
    oifname @bridges drop
    accept
  }
"""


def table(
    name: str, elements: Iterable[Element], *, guard: bool = False, policies: Sequence[AddressPolicy] = ()
) -> str:
    """The command that makes the table, with ``elements``, new or in place of what is there, as one transaction.

    A policy is one set of address pairs for each IP version, and one rule on it in front of what lets packets pass.
    ``guard`` drops forwarding that concerns no bridge of ours: for a host that did not forward before we made it.
    """
    by_set: dict[str, list[Element]] = {}
    for element in elements:
        by_set.setdefault(element.set, []).append(element)
    lines = [f"table inet {name} {{}}", f"delete table inet {name}", f"table inet {name} {{"]
    for key, declaration in _SETS.items():
        found = by_set.get(key)
        content = f" elements = {{ {', '.join(map(str, sorted(found)))} }}" if found else ""
        lines.append(f"  {declaration}{content} }}")
    verdicts = []
    for number, policy in enumerate(policies):
        for version, any_source in ((4, "0.0.0.0/0"), (6, "::/0")):
            pairs = [pair for pair in policy.pairs if (":" in pair[1]) == (version == 6)]
            if not pairs:
                continue
            members = ", ".join(sorted(f"{source or any_source} . {target}" for source, target in pairs))
            kind, family = f"ipv{version}_addr", "ip" if version == 4 else "ip6"
            lines.append(
                f"  set policy{number}v{version} {{ type {kind} . {kind}; flags interval; elements = {{ {members} }} }}"
            )
            match = f"{family} saddr . {family} daddr @policy{number}v{version}"
            ports = ", ".join(f"{protocol} . {port}" for protocol, port in policy.ports)
            match += f" meta l4proto . th dport {{ {ports} }}" if ports else ""
            verdicts.append(f'    {match} {"accept" if policy.allow else "drop"} comment "{policy.name}"\n')
    lines.append(_CHAINS % ("    drop\n" if guard else "", "".join(verdicts)) + "}")
    return "\n".join(lines) + "\n"


def add(name: str, elements: Iterable[Element]) -> str:
    """The command that adds ``elements`` (fails if a key is there with another value)."""
    return _each("add", name, elements)


def delete(name: str, elements: Iterable[Element]) -> str:
    """The command that removes ``elements`` (fails if one is missing)."""
    return _each("delete", name, elements)


def _each(verb: str, name: str, elements: Iterable[Element]) -> str:
    by_set: dict[str, list[str]] = {}
    for element in elements:
        by_set.setdefault(element.set, []).append(str(element))
    return "".join(f"{verb} element inet {name} {key} {{ {', '.join(found)} }}\n" for key, found in by_set.items())


def network_elements(network: Network, options: BridgeOptions) -> list[Element]:
    """What a network puts into the sets."""
    bridge = f'"{options.bridge}"'
    elements = [Element("bridges", bridge)]
    if options.icc:
        elements.append(Element("same", f"{bridge} . {bridge}"))
    if network.internal:
        elements.append(Element("internal", bridge))
    for version, mode in ((4, options.mode4), (6, options.mode6)):
        subnets = [pool.subnet for pool in network.subnets if pool.subnet.version == version]
        if not subnets:
            continue
        elements += [Element(f"hairpin{version}", f"{bridge} . {subnet}") for subnet in subnets]
        if options.masquerade and mode in ("nat", "nat-unprotected") and not network.internal:
            elements.append(Element(f"masq{version}", bridge))
        if mode == "nat-unprotected":
            elements.append(Element(f"exposed{version}", bridge))
    return elements


def port_elements(
    ports: Iterable[PublishedPort], address4: str, address6: str, *, options: BridgeOptions
) -> list[Element]:
    """What published ports put into the sets; ``address4`` and ``address6`` are the container's ('' if it has none)."""
    elements: list[Element] = []
    for port in ports:
        host = ip_address(port.host_ip)
        address, version, mode = (
            (address4, 4, options.mode4) if isinstance(host, IPv4Address) else (address6, 6, options.mode6)
        )
        if not address:
            continue  # reachable through the proxy only
        if mode == "routed":
            elements.append(Element(f"open{version}", f"{address} . {port.protocol} . {port.container_port}"))
            continue
        key = f"{port.protocol} . {port.host_port}"
        value = f"{address} . {port.container_port}"
        if host.is_unspecified:
            elements.append(Element(f"pub{version}", key, value))
        elif host not in _LOOPBACK6:
            elements.append(Element(f"pubip{version}", f"{host} . {key}", value))
    return elements


_LOOPBACK6 = (ip_address("::1"),)
