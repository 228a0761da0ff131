"""Networks and endpoints in the shapes of the Docker Engine API."""

from __future__ import annotations

import msgspec
from msgspec import field

__all__ = ["IPAM", "EndpointIPAMConfig", "EndpointSettings", "IPAMConfig", "NetworkRecord"]


class _Struct(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Base of the API's values: immutable, keyword-only, ``PascalCase`` on the wire."""


class EndpointIPAMConfig(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Addresses a user asked for."""

    ipv4_address: str = field(default="", name="IPv4Address")
    ipv6_address: str = field(default="", name="IPv6Address")
    link_local_ips: list[str] | None = field(default=None, name="LinkLocalIPs")


class EndpointSettings(_Struct, frozen=True, kw_only=True):
    """A container's endpoint in one network: what was asked for, and - while it runs - what it got."""

    ipam_config: EndpointIPAMConfig | None = field(default=None, name="IPAMConfig")
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0
    network_id: str = field(default="", name="NetworkID")
    endpoint_id: str = field(default="", name="EndpointID")
    gateway: str = ""
    ip_address: str = field(default="", name="IPAddress")
    ip_prefix_len: int = field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = field(default="", name="IPv6Gateway")
    global_ipv6_address: str = field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = field(default=0, name="GlobalIPv6PrefixLen")
    dns_names: list[str] | None = field(default=None, name="DNSNames")


class IPAMConfig(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One address pool."""

    subnet: str = ""
    ip_range: str = field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = field(default=None, name="AuxiliaryAddresses")


class IPAM(_Struct, frozen=True, kw_only=True):
    """Address management of a network."""

    driver: str = "default"
    options: dict[str, str] | None = None
    config: list[IPAMConfig] = []


class NetworkRecord(_Struct, frozen=True, kw_only=True):
    """The engine's record of a network, persisted as one row; ``docker network inspect`` without ``Containers``."""

    name: str
    id: str
    created: str
    scope: str = "local"
    driver: str = "bridge"
    enable_ipv4: bool = field(default=True, name="EnableIPv4")
    enable_ipv6: bool = field(default=False, name="EnableIPv6")
    ipam: IPAM = field(default=IPAM(), name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: dict[str, str] = field(default_factory=lambda: {"Network": ""})
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    configured: list[str] = []
    """The subnets the user chose, where addresses may be asked for; not part of the API's body."""
