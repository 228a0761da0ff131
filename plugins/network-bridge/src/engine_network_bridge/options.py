"""Docker's options of bridge networks, parsed and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from engine.drivers.network import Network
from engine.errors import InvalidParameter

__all__ = ["BRIDGE_NAME", "DEFAULT_BRIDGE", "BridgeOptions", "parse"]

_PREFIX = "com.docker.network.bridge."
BRIDGE_NAME = f"{_PREFIX}name"
DEFAULT_BRIDGE = f"{_PREFIX}default_bridge"
_INTERFACE = re.compile(r"[A-Za-z0-9_.\-@]{1,15}")
_MODES = ("nat", "nat-unprotected", "routed", "isolated")
_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeOptions:
    """``bridge`` is the link's name, ``named`` whether the user chose it. ``binding`` is the host address ports are
    published on when the user names none; None means every address of both families. ``mtu`` 0 is the kernel's default.
    """

    bridge: str
    named: bool = False
    default: bool = False
    icc: bool = True
    masquerade: bool = True
    binding: IPv4Address | IPv6Address | None = None
    mtu: int = 0
    mode4: str = "nat"
    mode6: str = "nat"
    inhibit_address: bool = False


def parse(network: Network) -> BridgeOptions:
    """Options of ``network``; unknown ones are kept for other tools, as Docker does. Raises `InvalidParameter`."""
    options = network.options
    name = options.get(BRIDGE_NAME, "")
    if name and (not _INTERFACE.fullmatch(name) or name in (".", "..")):
        raise InvalidParameter(f"invalid bridge name {name!r}: interface names are 1 to 15 characters")
    binding = options.get(f"{_PREFIX}host_binding_ipv4", "")
    try:
        address = ip_address(binding) if binding else None
    except ValueError:
        raise InvalidParameter(f"invalid IP address {binding} in {_PREFIX}host_binding_ipv4") from None
    if address is not None and address.is_unspecified and address.version == 4:
        address = None
    modes = [_mode(options, f"gateway_mode_ipv{version}", network.internal) for version in (4, 6)]
    return BridgeOptions(
        bridge=name or f"br-{network.id[:12]}",
        named=bool(name),
        default=_boolean(options, DEFAULT_BRIDGE, default=False),
        icc=_boolean(options, f"{_PREFIX}enable_icc", default=True),
        masquerade=_boolean(options, f"{_PREFIX}enable_ip_masquerade", default=True),
        binding=address,
        mtu=_mtu(options.get("com.docker.network.driver.mtu", "")),
        mode4=modes[0],
        mode6=modes[1],
        inhibit_address=_boolean(options, f"{_PREFIX}inhibit_ipv4", default=False) or "isolated" in modes,
    )


def _boolean(options: Mapping[str, str], key: str, *, default: bool) -> bool:
    text = options.get(key, "")
    if not text:
        return default
    if text.lower() not in _BOOLEANS:
        raise InvalidParameter(f'invalid value for {key}: strconv.ParseBool: parsing "{text}": invalid syntax')
    return _BOOLEANS[text.lower()]


def _mtu(text: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 65535 or 0 < int(text) < 68:
        raise InvalidParameter(f"invalid MTU {text}: a number from 68 to 65535")
    return int(text)


def _mode(options: Mapping[str, str], name: str, internal: bool) -> str:
    mode = options.get(_PREFIX + name, "") or "nat"
    if mode not in _MODES:
        raise InvalidParameter(f'unknown gateway mode "{mode}": one of {", ".join(_MODES)}')
    if mode == "isolated" and not internal:
        raise InvalidParameter("gateway mode 'isolated' can only be used for an internal network")
    return mode
