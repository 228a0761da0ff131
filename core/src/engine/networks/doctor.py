"""What about this host's networks deserves attention: what the outside reaches, what the kernel lacks, who interferes.

Looks and changes nothing; blocks briefly, for worker threads. Findings that are not ``ok`` are what a user should act
on; the others are what a user may want to know.
"""

from __future__ import annotations

import gzip
import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.drivers.network import Finding
from engine.model.network import NetworkRecord
from engine.networks.attachments import Live

__all__ = ["examine"]

_FEATURES = {
    "CONFIG_NF_TABLES": "no firewall: bridge networks cannot work",
    "CONFIG_BRIDGE": "no bridge networks",
    "CONFIG_BRIDGE_NETFILTER": "no policies between containers of one network",
    "CONFIG_MACVLAN": "no macvlan networks",
    "CONFIG_IPVLAN": "no ipvlan networks",
    "CONFIG_VLAN_8021Q": "no VLAN sub-interfaces (-o parent=eth0.100)",
    "CONFIG_DUMMY": "no macvlan or ipvlan networks without a parent",
    "CONFIG_VXLAN": "no overlay networks",
}
_NEEDED = ("CONFIG_NF_TABLES", "CONFIG_BRIDGE")
_IFF_PROMISC = 0x100


def examine(records: Sequence[NetworkRecord], lives: Sequence[Live]) -> list[Finding]:
    """All findings, what is wrong first."""
    found = [*_published(lives), *_features(_kernel_config()), *_forwarding(), *_parents(records)]
    for live in lives:
        for plug in live.plugs:
            found += [each for each in plug.driver.diagnose(plug.network, plug.endpoint) if not each.ok]
    return sorted(dict.fromkeys(found), key=lambda each: each.ok)


def _published(lives: Sequence[Live]) -> list[Finding]:
    found = []
    for live in lives:
        for port in live.published:
            address = ipaddress.ip_address(port.host_ip)
            host = f"[{address}]" if address.version == 6 else str(address)
            who = (
                "only this host reaches it"
                if address.is_loopback
                else "whoever reaches any address of this host reaches it"
                if address.is_unspecified
                else f"whoever reaches {address} reaches it"
            )
            text = f"{host}:{port.host_port}/{port.protocol} is {live.container_name}'s {port.container_port}: {who}"
            found.append(Finding("published", True, text))
    return found


def _kernel_config() -> Mapping[str, str]:
    """The running kernel's configuration; empty where it does not tell."""
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{os.uname().release}")):
        try:
            raw = path.read_bytes()
        except OSError:
            continue
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(errors="replace")
        return dict(line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_") and "=" in line)
    return {}


def _features(config: Mapping[str, str]) -> list[Finding]:
    if not config:
        return [Finding("kernel", True, "the kernel does not tell its configuration (/proc/config.gz, /boot/config-*)")]
    missing = [name for name in _FEATURES if config.get(name) not in ("y", "m")]
    return [Finding("kernel", name not in _NEEDED, f"{name} is off: {_FEATURES[name]}") for name in missing]


def _forwarding() -> list[Finding]:
    if Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() != "0":
        return []
    return [Finding("forwarding", False, "the host does not forward packets", "sysctl net.ipv4.ip_forward=1")]


def _parents(records: Sequence[NetworkRecord]) -> list[Finding]:
    """What macvlan wants of its parent link, and what it cannot do."""
    found = []
    for record in records:
        parent = record.options.get("parent", "")
        if record.driver != "macvlan" or not parent:
            continue
        link = Path("/sys/class/net", parent)
        if (link / "wireless").exists():
            text = f"{record.name}: wireless links take one MAC address only, {parent} will drop its containers' frames"
            found.append(Finding("macvlan", False, text, "use the driver ipvlan"))
            continue
        try:
            promiscuous = int((link / "flags").read_text(), 16) & _IFF_PROMISC
        except (OSError, ValueError):
            found.append(Finding("macvlan", False, f"{record.name}: its parent link {parent} is gone"))
            continue
        text = f"{record.name}: this host itself does not reach containers on {parent}, the kernel keeps them apart"
        if not promiscuous:
            text += f"; if others do not either, {parent} (or its virtual switch) needs promiscuous mode"
        found.append(Finding("macvlan", True, text))
    return found
