"""Why A can or cannot reach B: every station on the way is looked at in the kernel, and then the way is tried.

The stations are name, address, route, what the network's driver knows of its own part (bridge, links, firewall), the
socket that listens, and a connection made as A would make it. A station that is not as it should be says what would
put it right. Everything here blocks briefly and is for worker threads; what is looked at is decided by
`engine.networks.Networks`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine import kernel
from engine.drivers.network import AddressPolicy, Finding, PublishedPort
from engine.networks import dns
from engine.networks.attachments import Live, Plug
from engine.networks.policies import denied_by
from engine.networks.sockets import Listener, listeners, owners

__all__ = ["Side", "between", "port", "report", "steps"]

_T = TypeVar("_T")
_PATIENCE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One end of the way. ``path`` is its network namespace, None for the host's; ``live`` is missing for the host, for
    an address outside and for a container that shares another's network."""

    name: str
    path: Path | None = None
    live: Live | None = None
    problem: str = ""
    address: str = ""


def report(findings: Sequence[Finding], **about: object) -> dict[str, Any]:
    """The body of the API's answer; reachable when nothing is wrong."""
    body: dict[str, Any] = {key.capitalize(): value for key, value in about.items()}
    return {**body, "Reachable": all(finding.ok for finding in findings), "Steps": steps(findings)}


def steps(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as the API shows them."""
    return [{"Check": f.check, "Ok": f.ok, "Detail": f.detail, "Fix": f.fix} for f in findings]


def between(
    source: Side, target: Side, number: int, protocol: str, policies: Sequence[AddressPolicy] = ()
) -> list[Finding]:
    """From ``source`` to ``target``, at port ``number`` (0: any), where ``policies`` are in force."""
    found: list[Finding] = []
    for side in (source, target):
        if side.problem:
            found.append(Finding("container", False, f"{side.name} {side.problem}", f"engine start {side.name}"))
    if found:
        return found
    if source.path == target.path and not target.address:
        where = "the host's network" if source.path is None else "one network namespace"
        found.append(Finding("network", True, f"{source.name} and {target.name} share {where}: use localhost"))
        return found + _service(source, target, "127.0.0.1", number, protocol)
    shared = _shared(source, target)
    if shared is not None:
        address = str((shared[1].endpoint.ipv4 or shared[1].endpoint.ipv6).ip)  # type: ignore[union-attr]
        found.append(Finding("network", True, f"both are on {shared[0].name}: {target.name} is {address} there"))
        found.append(_name(source, shared[1], target, address))
        found.append(_route(source, address))
        own = str((shared[0].endpoint.ipv4 or shared[0].endpoint.ipv6).ip)  # type: ignore[union-attr]
        denied = denied_by(policies, own, address, number, protocol)
        if denied is not None:
            text = f"network policy {denied.name} denies connections from {source.name} to {target.name}"
            found.append(Finding("policy", False, text, f"engine network policy rm {denied.name}"))
        for plug in shared:
            found += plug.driver.diagnose(plug.network, plug.endpoint)
    elif target.address:
        address = target.address
        found.append(Finding("network", True, f"{address} is outside the engine's networks"))
        found.append(_route(source, address))
        if source.live is not None and source.live.gateway is not None:
            gateway = source.live.gateway
            found += gateway.driver.diagnose(gateway.network, gateway.endpoint)
    elif source.path is None and target.live is not None:
        return found + _from_host(source, target, number, protocol)
    else:
        return found + _apart(source, target, number)
    return _unique(found) + _service(source, target, address, number, protocol)


def _shared(source: Side, target: Side) -> tuple[Plug, Plug] | None:
    """Their endpoints on the first network both are on."""
    if source.live is None or target.live is None:
        return None
    theirs = {plug.network.id: plug for plug in target.live.plugs}
    for plug in source.live.plugs:
        other = theirs.get(plug.network.id)
        if other is not None and (other.endpoint.ipv4 or other.endpoint.ipv6):
            return plug, other
    return None


def _apart(source: Side, target: Side, number: int) -> list[Finding]:
    """No network in common: through a published port, or not at all."""
    networks = [plug.name for plug in source.live.plugs] if source.live else ["the host's network"]
    others = [plug.name for plug in target.live.plugs] if target.live else ["the host's network"]
    text = f"{source.name} is on {', '.join(networks) or 'none'}, {target.name} on {', '.join(others) or 'none'}"
    fix = f"engine network connect {others[0]} {source.name}" if target.live and target.live.plugs else ""
    published = _published(target, number)
    if published is not None:
        host = published.host_ip if not ipaddress.ip_address(published.host_ip).is_unspecified else "an address"
        text += f"; networks are isolated, but {host} of the host has it at port {published.host_port}"
    elif number and target.live:
        text += "; networks are isolated from each other, and the port is not published"
    return [Finding("network", False, text, fix)]


def _from_host(source: Side, target: Side, number: int, protocol: str) -> list[Finding]:
    assert target.live is not None
    plug = next((plug for plug in target.live.plugs if plug.endpoint.ipv4 or plug.endpoint.ipv6), None)
    if plug is None:
        return [
            Finding("network", False, f"{target.name} has no address", f"engine network connect bridge {target.name}")
        ]
    address = str((plug.endpoint.ipv4 or plug.endpoint.ipv6).ip)  # type: ignore[union-attr]
    found = [Finding("network", True, f"{target.name} is {address} on {plug.name}"), _route(source, address)]
    found += plug.driver.diagnose(plug.network, plug.endpoint)
    return found + _service(source, target, address, number, protocol)


def _published(target: Side, number: int) -> PublishedPort | None:
    ports = target.live.published if target.live else ()
    return next((port for port in ports if port.container_port == number), None)


def port(number: int, protocol: str, holders: Sequence[tuple[Side, PublishedPort]]) -> list[Finding]:
    """A port of the host: whose it is, and whether what is behind it answers. ``holders`` publish it."""
    here = [each for each in listeners() if each.port == number and each.protocol == protocol]
    processes = owners([each.inode for each in here])
    if not holders:
        if not here:
            return [
                Finding(
                    "port",
                    False,
                    f"no container publishes {number}/{protocol}, and no program of the host listens there",
                    f"engine run -p {number}:CONTAINER_PORT ...",
                )
            ]
        texts = [f"{each} is {_process(processes.get(each.inode))}" for each in here]
        return [Finding("port", True, f"no container publishes it; {'; '.join(texts)}")]
    found: list[Finding] = []
    for side, published in holders:
        host = f"[{published.host_ip}]" if ":" in published.host_ip else published.host_ip
        text = f"{host}:{number}/{protocol} is {side.name}'s {published.container_port}/{protocol}"
        found.append(Finding("port", True, text))
        live = side.live
        if live is not None and live.publisher is not None:
            found += live.publisher.driver.diagnose(live.publisher.network, live.publisher.endpoint)
    if not here:
        text = f"no process of the host holds {number}/{protocol}: another program could take it"
        found.append(Finding("reservation", False, text, "restart the engine"))
    side, published = holders[0]
    found += _listening(side, published.container_port, protocol)
    address = ipaddress.ip_address(published.host_ip)
    loopback = "::1" if address.version == 6 else "127.0.0.1"
    found.append(_try("the host", None, loopback if address.is_unspecified else str(address), number, protocol))
    return _unique(found)


def _process(owner: tuple[int, str] | None) -> str:
    return f"{owner[1]} (process {owner[0]})" if owner else "of a process that cannot be seen"


# -- stations ----------------------------------------------------------------------------------------------------


def _name(source: Side, plug: Plug, target: Side, address: str) -> Finding:
    """What the resolver says, asked as the container does."""
    if not plug.names:
        text = f"{plug.name} has no names: containers there find each other by address, here {address}"
        return Finding("name", True, text)
    assert source.path is not None
    try:
        answers = kernel.in_namespace(source.path, lambda: _resolve(plug.names[0]))
    except OSError as error:
        text = f"the resolver at {dns.ADDRESS} does not answer: {error.strerror or error}"
        return Finding("name", False, text, "restart the engine")
    if address in answers:
        return Finding("name", True, f"{plug.names[0]} resolves to {address} (also: {', '.join(plug.names[1:])})")
    return Finding("name", False, f"{plug.names[0]} resolves to {answers or 'nothing'} instead of {address}")


def _resolve(name: str) -> list[str]:
    """The IPv4 addresses 127.0.0.11 knows, in the calling thread's namespace."""
    identifier = random.randrange(1 << 16)  # noqa: S311 - tells answers apart, nobody guesses in there
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    query = struct.pack("!HHHHHH", identifier, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect((dns.ADDRESS, 53))
        sock.send(query)
        answer = sock.recv(4096)
    count, offset = struct.unpack_from("!H", answer, 6)[0], len(query)
    return [socket.inet_ntoa(answer[offset + 16 * i + 12 : offset + 16 * i + 16]) for i in range(count)]


def _route(side: Side, address: str) -> Finding:
    """What the kernel would use as source: connecting a datagram socket sends nothing."""

    def look() -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect((address, 9))
            return str(sock.getsockname()[0])

    try:
        own = _in(side.path, look)
    except OSError as error:
        text = f"{side.name} has no route to {address}: {os.strerror(error.errno or errno.ENETUNREACH)}"
        fix = "an internal network leads nowhere else: connect the container to another one, too"
        return Finding("route", False, text, fix)
    return Finding("route", True, f"{side.name} sends to {address} from {own}")


def _listening(side: Side, number: int, protocol: str) -> list[Finding]:
    if not number or side.address:
        return []
    try:
        every = [each for each in listeners(side.path) if each.protocol == protocol and not _resolvers(each)]
    except OSError as error:
        return [Finding("listener", False, f"the network of {side.name} cannot be looked at: {error.strerror}")]
    here = [each for each in every if each.port == number]
    if not here:
        others = ", ".join(sorted({str(each.port) for each in every}, key=int)) or "nothing"
        text = f"nobody in {side.name} listens on {number}/{protocol} (listening: {others})"
        return [Finding("listener", False, text, f"see the program's log: engine logs {side.name}")]
    if all(each.loopback for each in here):
        text = f"{side.name} listens on {here[0]} only, which is its own loopback"
        return [Finding("listener", False, text, "have the program listen on 0.0.0.0")]
    return [Finding("listener", True, f"{side.name} listens on {', '.join(map(str, here))}")]


def _resolvers(listener: Listener) -> bool:
    return str(listener.address) == dns.ADDRESS


def _service(source: Side, target: Side, address: str, number: int, protocol: str) -> list[Finding]:
    found = _listening(target, number, protocol)
    if number and protocol == "tcp":
        found.append(_try(source.name, source.path, address, number, protocol))
    return found


def _try(who: str, path: Path | None, address: str, number: int, protocol: str) -> Finding:
    if protocol != "tcp":
        return Finding("attempt", True, f"{protocol} has no connection to try")
    shown = f"[{address}]:{number}" if ":" in address else f"{address}:{number}"

    def connect() -> None:
        socket.create_connection((address, number), timeout=_PATIENCE).close()

    try:
        _in(path, connect)
    except ConnectionRefusedError:
        return Finding("attempt", False, f"{who} is refused at {shown}: nobody listens there")
    except TimeoutError:
        text = f"{who} gets no answer from {shown}: something on the way drops the packets"
        return Finding("attempt", False, text, "look for foreign rules: nft list ruleset; iptables -S FORWARD")
    except OSError as error:
        return Finding("attempt", False, f"{who} cannot connect to {shown}: {error.strerror or error}")
    return Finding("attempt", True, f"{who} connects to {shown}")


def _in(path: Path | None, function: Callable[[], _T]) -> _T:
    return function() if path is None else kernel.in_namespace(path, function)


def _unique(findings: Sequence[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))
