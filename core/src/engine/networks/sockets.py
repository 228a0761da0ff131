"""Who listens where: the sockets of a network namespace, read from /proc/net."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine import kernel

__all__ = ["Listener", "listeners", "owners"]

_LISTEN, _UNCONNECTED = "0A", "07"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that takes connections (TCP) or datagrams from anybody (UDP)."""

    protocol: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    inode: int

    @property
    def everywhere(self) -> bool:
        """Whether it listens on every address."""
        return self.address.is_unspecified

    @property
    def loopback(self) -> bool:
        """Whether only its own namespace reaches it."""
        return self.address.is_loopback

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}/{self.protocol}"


def listeners(sandbox: Path | None = None) -> list[Listener]:
    """All listening sockets in the namespace at ``sandbox``, or in that of the engine."""
    return _read() if sandbox is None else kernel.in_namespace(sandbox, _read)


def _read() -> list[Listener]:
    found = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        protocol = name[:3]
        wanted = _LISTEN if protocol == "tcp" else _UNCONNECTED
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == wanted:
                host, _, port = fields[1].partition(":")
                found.append(Listener(protocol, _address(host), int(port, 16), int(fields[9])))
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel prints addresses as 32-bit words of the machine's byte order."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    packed = b"".join(words)
    return ipaddress.IPv4Address(packed) if len(packed) == 4 else ipaddress.IPv6Address(packed)


def owners(inodes: Collection[int]) -> Mapping[int, tuple[int, str]]:
    """Process id and name of a process that has each socket open, where one is to be seen."""
    found: dict[int, tuple[int, str]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or len(found) == len(wanted):
            continue
        try:
            with os.scandir(f"/proc/{entry}/fd") as descriptors:
                for descriptor in descriptors:
                    inode = wanted.get(os.readlink(descriptor.path))
                    if inode is not None:
                        found[inode] = (int(entry), Path(f"/proc/{entry}/comm").read_text().strip())
        except OSError:
            continue
    return found
