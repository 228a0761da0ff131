"""Address management: pools that do not overlap, addresses that come back, errors in Docker's words."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from engine.errors import AlreadyExists, Conflict, Forbidden, InvalidParameter
from engine.model.network import IPAMConfig
from engine.networks.ipam import DEFAULT_POOLS, Ipam, check, host_routes, parse_pools


def pool(subnet: str, **settings: object) -> IPAMConfig:
    return IPAMConfig(subnet=subnet, **settings)  # type: ignore[arg-type]


def allocate(ipam: Ipam, wanted: str = "", version: int = 4) -> str:
    return str(ipam.allocate("n", version, wanted))


def test_networks_get_dockers_pools_in_order_and_skip_what_the_host_uses() -> None:
    ipam = Ipam()
    avoid = [ip_network("172.18.5.0/24")]
    subnets = [ipam.add_network(str(i), [], avoid=avoid)[0].subnet for i in range(15)]
    assert subnets[:2] == ["172.17.0.0/16", "172.19.0.0/16"]
    assert subnets[13:] == ["172.31.0.0/16", "192.168.0.0/20"][: len(subnets[13:])]
    assert len(DEFAULT_POOLS) == 16


def test_the_first_address_is_the_gateway_and_containers_follow() -> None:
    ipam = Ipam()
    assert ipam.add_network("n", [pool("10.0.0.0/24")]) == [pool("10.0.0.0/24", gateway="10.0.0.1")]
    assert [allocate(ipam) for _ in range(2)] == ["10.0.0.2/24", "10.0.0.3/24"]


def test_a_freed_address_rests_until_the_pool_has_been_round() -> None:
    ipam = Ipam()
    ipam.add_network("n", [pool("10.0.0.0/29")])
    first = allocate(ipam)
    ipam.release("n", first.partition("/")[0])
    assert [allocate(ipam) for _ in range(5)] == [f"10.0.0.{n}/29" for n in (3, 4, 5, 6, 2)]
    with pytest.raises(Conflict, match="no available IPv4 addresses on this network's address pools"):
        allocate(ipam)


def test_gateway_ip_range_and_auxiliary_addresses_are_respected() -> None:
    ipam = Ipam()
    config = pool("10.0.0.0/24", ip_range="10.0.0.16/30", gateway="10.0.0.16", auxiliary_addresses={"r": "10.0.0.17"})
    assert ipam.add_network("n", [config]) == [config]
    assert [allocate(ipam), allocate(ipam)] == ["10.0.0.18/24", "10.0.0.19/24"]
    assert allocate(ipam, "10.0.0.200") == "10.0.0.200/24"
    with pytest.raises(Conflict):
        allocate(ipam)


@pytest.mark.parametrize("taken", ["10.0.0.1", "10.0.0.9", "10.0.0.0", "10.0.0.255"])
def test_an_address_in_use_or_reserved_cannot_be_asked_for(taken: str) -> None:
    ipam = Ipam()
    ipam.add_network("n", [pool("10.0.0.0/24")])
    ipam.claim("n", "10.0.0.9")
    with pytest.raises(AlreadyExists, match="Address already in use"):
        allocate(ipam, taken)


def test_an_address_outside_every_subnet_is_refused() -> None:
    ipam = Ipam()
    ipam.add_network("n", [pool("10.0.0.0/24")])
    with pytest.raises(InvalidParameter, match=r"no configured subnet contains IP address 10\.1\.0\.1"):
        allocate(ipam, "10.1.0.1")


def test_overlapping_pools_are_refused_until_the_other_network_is_gone() -> None:
    ipam = Ipam()
    ipam.add_network("a", [pool("10.0.0.0/8")])
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space"):
        ipam.add_network("b", [pool("10.3.0.0/16")])
    ipam.remove_network("a")
    ipam.add_network("b", [pool("10.3.0.0/16")])


def test_subnets_of_one_request_may_not_overlap_each_other() -> None:
    with pytest.raises(Forbidden):
        Ipam().add_network("a", [pool("10.0.0.0/16"), pool("10.0.1.0/24")])


def test_exhausted_default_pools_say_so() -> None:
    ipam = Ipam(parse_pools([{"base": "10.0.0.0/24", "size": 25}]))
    ipam.add_network("a", [])
    ipam.add_network("b", [])
    with pytest.raises(Forbidden, match="all predefined address pools have been fully subnetted"):
        ipam.add_network("c", [])


def test_ipv6_without_a_subnet_gets_a_unique_local_one() -> None:
    ipam = Ipam()
    configs = ipam.add_network("abcdef0123456789", [], ipv6=True)
    assert [c.subnet for c in configs] == ["172.17.0.0/16", "fdab:cdef:123:4567::/64"]
    assert str(ipam.allocate("abcdef0123456789", 6)) == "fdab:cdef:123:4567::2/64"


def test_a_subnet_of_two_addresses_uses_both() -> None:
    ipam = Ipam()
    ipam.add_network("n", [pool("10.0.0.0/31")])
    assert allocate(ipam) == "10.0.0.1/31"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (pool("nonsense"), "invalid subnet nonsense: invalid CIDR block notation"),
        (pool("10.0.0.0"), "invalid subnet 10.0.0.0: invalid CIDR block notation"),
        (pool("10.0.0.7/24"), "invalid subnet 10.0.0.7/24: it should be 10.0.0.0/24"),
        (
            pool("10.0.0.0/24", gateway="10.1.0.1"),
            "invalid gateway 10.1.0.1: parent subnet 10.0.0.0/24 doesn't contain",
        ),
        (pool("10.0.0.0/24", gateway="x"), "invalid gateway x: invalid address"),
        (pool("10.0.0.0/24", ip_range="10.0.0.0/16"), "CIDR block is bigger than its parent subnet 10.0.0.0/24"),
        (pool("10.0.0.0/24", ip_range="10.9.0.0/28"), "parent subnet 10.0.0.0/24 doesn't contain ip-range"),
        (pool("10.0.0.0/24", ip_range="fd00::/64"), "parent subnet is an IPv4 block"),
        (pool("10.0.0.0/24", auxiliary_addresses={"a": "1.2.3.4"}), "invalid auxiliary address 1.2.3.4: parent subnet"),
        (pool("fd00::/64"), "IPv6 has not been enabled"),
    ],
)
def test_bad_configurations_are_refused_in_dockers_words(config: IPAMConfig, problem: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check([config], ipv6=False)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "entry", [{"base": "x", "size": 24}, {"base": "10.0.0.0/24", "size": 16}, {"base": "10.0.0.0/8"}]
)
def test_bad_default_pools_are_refused(entry: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter):
        parse_pools([entry])


def test_host_routes_are_read_from_proc_without_default_routes(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    zero = "0" * 32
    (tmp_path / "ipv6_route").write_text(
        f"fd{'0' * 30} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0\n"
        f"{zero} 00 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0\n"
    )
    assert host_routes(tmp_path) == [ip_network("192.0.2.0/24"), ip_network("fd00::/64")]
