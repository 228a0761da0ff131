"""Which URLs serve a registry: its own, docker.io's mirrors, plain HTTP where that is allowed, certificates by host.

The rules are dockerd's: TLS for everyone; loopback addresses and ``insecure-registries`` (names or CIDRs) may also
have unverified TLS or plain HTTP, tried in this order.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from engine.errors import InvalidParameter

__all__ = ["DOCKER_HUB", "Endpoint", "RegistryOptions", "endpoints", "is_insecure"]

DOCKER_HUB = "docker.io"
_HUB_HOST = "registry-1.docker.io"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """The daemon's settings about registries; names and meanings are those of daemon.json."""

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    certificates: Path = Path("/etc/docker/certs.d")
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    attempts: int = 5


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place to speak the protocol with: ``url`` without a trailing slash; ``verify`` False skips TLS checks."""

    url: str
    verify: bool = True
    mirror: bool = False

    @property
    def host(self) -> str:
        """Host and port as in the URL."""
        return urlsplit(self.url).netloc


def endpoints(domain: str, options: RegistryOptions, *, push: bool = False) -> list[Endpoint]:
    """Where to ask for the repositories of ``domain``, in order. Mirrors serve docker.io's pulls only."""
    if domain in _HUB_NAMES:
        mirrors = [] if push else [_mirror(url, options) for url in options.mirrors]
        return [*mirrors, Endpoint(f"https://{_HUB_HOST}")]
    if is_insecure(domain, options.insecure):
        return [Endpoint(f"https://{domain}", verify=False), Endpoint(f"http://{domain}", verify=False)]
    return [Endpoint(f"https://{domain}")]


def _mirror(url: str, options: RegistryOptions) -> Endpoint:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise InvalidParameter(f"invalid mirror: unsupported scheme or user information in {parts.scheme}://...")
    verify = not is_insecure(parts.netloc, options.insecure)
    return Endpoint(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", verify=verify, mirror=True)


def is_insecure(host: str, insecure: tuple[str, ...]) -> bool:
    """Whether ``host`` (with or without a port) may be spoken to without verified TLS. Names are not resolved."""
    name = urlsplit(f"//{host}").hostname or host
    if name == "localhost" or host in insecure or name in insecure:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if address.is_loopback:
        return True
    networks = [text for text in insecure if "/" in text]
    return any(address in ipaddress.ip_network(text, strict=False) for text in networks)
