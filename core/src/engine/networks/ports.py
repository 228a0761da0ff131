"""Published ports: from ``-p``, ``-P`` and ``EXPOSE`` to what a driver is asked, and back to what inspect shows."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from engine.drivers.network import PublishedPort
from engine.errors import InvalidParameter
from engine.model.container import Config, HostConfig, PortBinding

__all__ = ["check", "from_record", "plan", "shown"]

_PROTOCOLS = ("tcp", "udp", "sctp")


def check(config: Config, host_config: HostConfig) -> None:
    """Raise `InvalidParameter`, in dockerd's words, for ports that cannot be."""
    for text in config.exposed_ports or {}:
        _container_ports(text)
    for text, bindings in (host_config.port_bindings or {}).items():
        _container_ports(text)
        for binding in bindings or ():
            _host_ports(binding.host_port)
            if binding.host_ip:
                try:
                    ipaddress.ip_address(binding.host_ip)
                except ValueError:
                    raise InvalidParameter(f"invalid IP address: {binding.host_ip}") from None


def plan(config: Config, host_config: HostConfig) -> list[PublishedPort]:
    """Every port to publish, in the order of container ports and then of the request."""
    wanted: list[PublishedPort] = []
    bound = set()
    for text, bindings in (host_config.port_bindings or {}).items():
        for number, protocol in _container_ports(text):
            bound.add((number, protocol))
            for binding in bindings or [PortBinding()]:
                first, last = _host_ports(binding.host_port)
                wanted.append(
                    PublishedPort(
                        container_port=number,
                        protocol=protocol,
                        host_ip=str(ipaddress.ip_address(binding.host_ip)) if binding.host_ip else "",
                        host_port=first,
                        host_port_end=last if last > first else 0,
                    )
                )
    if host_config.publish_all_ports:
        for text in config.exposed_ports or {}:
            wanted += [
                PublishedPort(container_port=number, protocol=protocol, host_ip="", host_port=0)
                for number, protocol in _container_ports(text)
                if (number, protocol) not in bound
            ]
    return sorted(wanted, key=lambda port: (port.container_port, port.protocol))


def shown(
    config: Config, host_config: HostConfig, published: Sequence[PublishedPort]
) -> dict[str, list[PortBinding] | None]:
    """``NetworkSettings.Ports``: host addresses and ports of what is published, None for what is only exposed."""
    ports: dict[str, list[PortBinding] | None] = {}
    for text in (*(config.exposed_ports or {}), *(host_config.port_bindings or {})):
        for number, protocol in _container_ports(text):
            ports[f"{number}/{protocol}"] = None
    for port in published:
        key = f"{port.container_port}/{port.protocol}"
        binding = PortBinding(host_ip=port.host_ip, host_port=str(port.host_port))
        ports[key] = [*(ports.get(key) or []), binding]
    return ports


def from_record(ports: dict[str, list[PortBinding] | None]) -> tuple[PublishedPort, ...]:
    """The published ports of a running container, read back from its record."""
    found = []
    for text, bindings in ports.items():
        number, _, protocol = text.partition("/")
        found += [
            PublishedPort(
                container_port=int(number),
                protocol=protocol,
                host_ip=binding.host_ip,
                host_port=int(binding.host_port or 0),
            )
            for binding in bindings or ()
        ]
    return tuple(found)


def _container_ports(text: str) -> list[tuple[int, str]]:
    """``80``, ``80/udp``, ``8000-8010/tcp``."""
    ports, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in _PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {protocol}")
    first, last = _range(ports, text, empty=False)
    return [(number, protocol) for number in range(first, last + 1)]


def _host_ports(text: str) -> tuple[int, int]:
    return _range(text, text, empty=True)


def _range(text: str, shown_as: str, *, empty: bool) -> tuple[int, int]:
    if not text and empty:
        return 0, 0
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(n.isascii() and n.isdigit() and int(n) <= 65535 for n in numbers) or int(numbers[0]) > int(numbers[1]):
        raise InvalidParameter(f'invalid port specification: "{shown_as}"')
    if not empty and int(numbers[0]) == 0:
        raise InvalidParameter(f'invalid port specification: "{shown_as}"')
    return int(numbers[0]), int(numbers[1])
