"""The files that tell a container about its networks - hosts, resolv.conf, hostname - as text; reads only the host's.

On user-defined networks names are answered by the engine's own DNS server: its address replaces the nameservers, which
become the servers it forwards to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["edited", "hosts", "resolv_conf"]

_LOCAL_HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_DEFAULT_SERVERS = ("8.8.8.8", "8.8.4.4")
_DEFAULT_SERVERS6 = ("2001:4860:4860::8888", "2001:4860:4860::8844")
_SYSTEMD_STUB = ["127.0.0.53"]


def hosts(
    *,
    hostname: str,
    domainname: str,
    addresses: Iterable[str],
    extra: Iterable[tuple[str, str]],
    origin: str | None = None,
) -> str:
    """``/etc/hosts``: local names (or ``origin``, the host's file), ``extra`` (address, names), then the container.

    ``addresses`` are the container's own, each gets the host name, with the domain in front if there is one.
    """
    lines = [origin.rstrip("\n") + "\n" if origin is not None else _LOCAL_HOSTS]
    lines += [f"{address}\t{names}\n" for address, names in extra]
    names = f"{hostname}.{domainname} {hostname}" if domainname else hostname
    lines += [f"{address}\t{names}\n" for address in addresses if hostname]
    return "".join(lines)


def resolv_conf(
    *,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    ipv6: bool = False,
    host_network: bool = False,
    resolver: str = "",
    etc: Path = Path("/etc/resolv.conf"),
    systemd: Path = Path("/run/systemd/resolve/resolv.conf"),
) -> str:
    """``/etc/resolv.conf``: the host's, with what was asked for in place of what the host has.

    Nameservers on loopback are the host's alone and left out (not with ``host_network``), so are IPv6 ones for a
    container without IPv6; systemd's stub is replaced by the servers behind it. Without any left, Google's, as Docker.
    ``search`` of ``["."]`` means none. ``resolver`` is the address of the engine's own server, which wants to see
    single labels first (``ndots:0``, unless the user says otherwise) and whose servers are told in a comment.
    """
    text = _read(etc)
    found = _parse(text)
    if found["nameserver"] == _SYSTEMD_STUB and not host_network:
        text = _read(systemd) or text
        found = _parse(text)
    if host_network and not (servers or search or options):
        return text
    if servers:
        found["nameserver"] = list(servers)
    elif not host_network:
        usable = [s for s in found["nameserver"] if _usable(s, ipv6)]
        found["nameserver"] = usable or [*_DEFAULT_SERVERS, *(_DEFAULT_SERVERS6 if ipv6 else ())]
    if search:
        found["search"] = [] if list(search) == ["."] else list(search)
    if options:
        found["options"] = list(options)
    comment = ""
    if resolver:
        comment = f"\n# ExtServers: [{' '.join(servers) or 'the host, as in its ' + str(etc)}]\n"
        found["nameserver"] = [resolver]
        if not any(option.startswith("ndots:") for option in found["options"]):
            found["options"].append("ndots:0")
    lines = [f"nameserver {server}\n" for server in found["nameserver"]]
    lines += [f"{key} {' '.join(found[key])}\n" for key in ("search", "options") if found[key]]
    return "".join(lines) + comment


def edited(current: str, before: str, after: str) -> str:
    """``current``, a hosts file that was ``before`` when we wrote it, with the changes from there to ``after``: lines a
    user added stay."""
    old, new = before.splitlines(), after.splitlines()
    kept = [line for line in current.splitlines() if line in new or line not in old]
    return "".join(f"{line}\n" for line in [*kept, *(line for line in new if line not in kept)])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _parse(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) < 2:
            continue
        key = "search" if words[0] == "domain" else words[0]
        if key == "nameserver":
            found[key].append(words[1])
        elif key == "search":
            found[key] = words[1:]
        elif key == "options":
            found[key] += words[1:]
    return found


def _usable(server: str, ipv6: bool) -> bool:
    try:
        address = ipaddress.ip_address(server.partition("%")[0])
    except ValueError:
        return False
    return not address.is_loopback and (ipv6 or address.version == 4)
