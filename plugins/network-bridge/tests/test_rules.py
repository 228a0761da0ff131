"""Options, elements and the table, as text; nothing here touches the kernel."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from engine.drivers.network import Network, PublishedPort, Subnet
from engine.errors import InvalidParameter
from engine_network_bridge.options import parse
from engine_network_bridge.rules import Element, add, delete, network_elements, port_elements, table

PREFIX = "com.docker.network.bridge."


def network(*, internal: bool = False, ipv6: bool = False, **options: str) -> Network:
    pools = [Subnet(subnet=ip_network("10.0.0.0/24"), gateway=ip_address("10.0.0.1"))]
    if ipv6:
        pools.append(Subnet(subnet=ip_network("fd00::/64"), gateway=ip_address("fd00::1")))
    named = {PREFIX + key: value for key, value in options.items()}
    return Network(id="ab" * 32, name="n", subnets=tuple(pools), internal=internal, ipv6=ipv6, options=named)


def elements(of: Network) -> list[str]:
    return [f"{element.set} {element}" for element in network_elements(of, parse(of))]


def port(host_ip: str, host_port: int = 8080, protocol: str = "tcp") -> PublishedPort:
    return PublishedPort(container_port=80, protocol=protocol, host_ip=host_ip, host_port=host_port)


def published(*ports: PublishedPort, six: str = "", **options: str) -> list[str]:
    found = port_elements(ports, "10.0.0.2", six, options=parse(network(**options)))
    return [f"{element.set} {element}" for element in found]


def test_a_plain_network_talks_within_and_leaves_masqueraded() -> None:
    assert elements(network()) == [
        'bridges "br-abababababab"',
        'same "br-abababababab" . "br-abababababab"',
        'hairpin4 "br-abababababab" . 10.0.0.0/24',
        'masq4 "br-abababababab"',
    ]


def test_options_change_what_a_network_may_do() -> None:
    assert 'masq4 "b"' not in elements(network(name="b", enable_ip_masquerade="false"))
    assert 'same "b" . "b"' not in elements(network(name="b", enable_icc="false"))
    assert 'masq4 "b"' not in elements(network(name="b", gateway_mode_ipv4="routed"))
    assert 'exposed4 "b"' in elements(network(name="b", gateway_mode_ipv4="nat-unprotected"))
    internal = elements(network(name="b", internal=True))
    assert 'internal "b"' in internal
    assert 'masq4 "b"' not in internal
    assert {'masq6 "b"', 'hairpin6 "b" . fd00::/64'} <= set(elements(network(name="b", ipv6=True)))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a name that is too long"},
        {"name": "a/b"},
        {"enable_icc": "maybe"},
        {"host_binding_ipv4": "nonsense"},
        {"gateway_mode_ipv4": "magic"},
        {"gateway_mode_ipv4": "isolated"},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(InvalidParameter):
        parse(network(**options))


def test_a_port_on_all_addresses_and_on_one() -> None:
    assert published(port("0.0.0.0"), port("192.0.2.1", 9000, "udp")) == [
        "pub4 tcp . 8080 : 10.0.0.2 . 80",
        "pubip4 192.0.2.1 . udp . 9000 : 10.0.0.2 . 80",
    ]


def test_ipv6_is_mapped_only_for_containers_that_have_it() -> None:
    assert published(port("::")) == []
    assert published(port("::"), port("fd00::9"), port("::1"), six="fd00::2") == [
        "pub6 tcp . 8080 : fd00::2 . 80",
        "pubip6 fd00::9 . tcp . 8080 : fd00::2 . 80",
    ]


def test_a_routed_network_opens_the_containers_own_port() -> None:
    assert published(port("0.0.0.0"), gateway_mode_ipv4="routed") == ["open4 10.0.0.2 . tcp . 80"]


def test_changes_are_one_line_for_each_set() -> None:
    changes = [Element("pub4", "tcp . 1", "a . 1"), Element("pub4", "tcp . 2", "b . 2"), Element("bridges", '"b"')]
    assert add("t", changes) == (
        'add element inet t pub4 { tcp . 1 : a . 1, tcp . 2 : b . 2 }\nadd element inet t bridges { "b" }\n'
    )
    assert delete("t", changes[2:]) == 'delete element inet t bridges { "b" }\n'


def test_the_table_replaces_itself_and_only_itself() -> None:
    text = table("engine-x", [Element("bridges", '"b"')])
    assert text.startswith("table inet engine-x {}\ndelete table inet engine-x\ntable inet engine-x {\n")
    assert 'set bridges { type ifname; elements = { "b" } }' in text
    assert "flush" not in text
    assert "oifname @bridges goto containers\n  }" in text
    assert "oifname @bridges goto containers\n    drop\n  }" in table("engine-x", [], guard=True)
