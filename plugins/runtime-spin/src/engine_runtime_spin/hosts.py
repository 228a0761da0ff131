"""``allowed_outbound_hosts``: which requests a component may send.

Forms: ``scheme://host:port``, ``scheme://*.domain``, ``*://host:*``, an address range (``http://10.0.0.0/8``); without
a port the scheme's own. Source: Spin's manifest reference.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

__all__ = ["allows"]

_PORTS = {"http": 80, "https": 443, "redis": 6379, "mysql": 3306, "postgres": 5432}


def allows(patterns: Sequence[str], url: str) -> bool:
    """Whether one of ``patterns`` covers ``url``; none covers anything when the list is empty."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return False
    return any(_covers(pattern, parts.scheme, host, port) for pattern in patterns)


def _covers(pattern: str, scheme: str, host: str, port: int) -> bool:
    wanted, separator, place = pattern.partition("://")
    if not separator or wanted not in ("*", scheme):
        return False
    network = "/" in place and place.count("/") == 1 and not place.endswith("/")
    place = place.rstrip("/")
    name, colon, wanted_port = place.rpartition(":")
    if not colon or place.endswith("]"):
        name, wanted_port = place, ""
    if wanted_port == "":
        if port != _PORTS.get(scheme, 0) and wanted != "*":
            return False
    elif wanted_port != "*":
        first, _, last = wanted_port.partition("..")
        if not first.isdigit() or not int(first) <= port < (int(last) if last.isdigit() else int(first) + 1):
            return False
    return _names(name.strip("[]").lower(), host.lower(), network=network)


def _names(pattern: str, host: str, *, network: bool) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    if network:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    return pattern == host
