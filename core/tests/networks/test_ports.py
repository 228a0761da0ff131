"""From -p, -P and EXPOSE to what drivers are asked."""

from __future__ import annotations

import pytest

from engine.drivers.network import PublishedPort
from engine.errors import InvalidParameter
from engine.model.container import Config, HostConfig, PortBinding
from engine.networks.ports import check, from_record, plan, shown


def bindings(**ports: list[PortBinding] | None) -> HostConfig:
    return HostConfig(port_bindings={key.replace("_", "/").removeprefix("p"): value for key, value in ports.items()})


def port(container: int, host: int = 0, *, protocol: str = "tcp", ip: str = "", end: int = 0) -> PublishedPort:
    return PublishedPort(container_port=container, protocol=protocol, host_ip=ip, host_port=host, host_port_end=end)


def test_a_binding_names_address_port_and_range() -> None:
    wanted = bindings(
        p80_tcp=[PortBinding(host_ip="127.0.0.1", host_port="8080"), PortBinding(host_port="9000-9010")],
        p53_udp=[PortBinding()],
    )
    assert plan(Config(), wanted) == [
        port(53, protocol="udp"),
        port(80, 8080, ip="127.0.0.1"),
        port(80, 9000, end=9010),
    ]


def test_a_port_without_bindings_gets_one_of_the_engines_choice() -> None:
    assert plan(Config(), bindings(p80_tcp=None)) == [port(80)]


def test_publish_all_adds_what_is_exposed_and_not_bound() -> None:
    config = Config(exposed_ports={"80/tcp": {}, "8000-8001": {}})
    host_config = HostConfig(publish_all_ports=True, port_bindings={"80/tcp": [PortBinding(host_port="1")]})
    assert plan(config, host_config) == [port(80, 1), port(8000), port(8001)]


def test_inspect_shows_exposed_ports_as_null_and_the_record_reads_back() -> None:
    config = Config(exposed_ports={"80/tcp": {}, "443": {}})
    published = [port(80, 32768, ip="0.0.0.0"), port(80, 32768, ip="::")]
    ports = shown(config, HostConfig(), published)
    assert ports == {
        "80/tcp": [PortBinding(host_ip="0.0.0.0", host_port="32768"), PortBinding(host_ip="::", host_port="32768")],
        "443/tcp": None,
    }
    assert from_record(ports) == tuple(published)


@pytest.mark.parametrize("key", ["x/tcp", "0/tcp", "65536/tcp", "90-80/tcp", "-1/tcp", "/tcp"])
def test_bad_container_ports_are_refused(key: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid port specification"):
        check(Config(), HostConfig(port_bindings={key: [PortBinding()]}))


@pytest.mark.parametrize("text", ["x", "99999", "10-1", "1-x"])
def test_bad_host_ports_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid port specification"):
        check(Config(), HostConfig(port_bindings={"80/tcp": [PortBinding(host_port=text)]}))


def test_unknown_protocols_and_bad_addresses_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="invalid proto: icmp"):
        check(Config(exposed_ports={"80/icmp": {}}), HostConfig())
    with pytest.raises(InvalidParameter, match=r"invalid IP address: 1\.2\.3"):
        check(Config(), HostConfig(port_bindings={"80/tcp": [PortBinding(host_ip="1.2.3")]}))
