"""Route netlink, as much as network drivers need: messages packed by hand, several in one send.

A message is built by a function below and given to `Netlink.request`, which sends all of them in one system call
(the kernel handles them in order) and reads their acknowledgements. Attribute layouts are the kernel's
(include/uapi/linux/{rtnetlink,if_link,if_addr}.h); names here are the kernel's without the prefix.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

__all__ = ["Link", "Message", "Netlink"]

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR = 20, 21
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_REQUEST, _ACK, _DUMP, _EXCL, _CREATE, _REPLACE = 0x1, 0x4, 0x300, 0x200, 0x400, 0x100
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_NESTED = 0x8000

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_IFALIAS, _IFLA_NET_NS_FD = 20, 28
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_VLAN_ID, _MACVLAN_MODE, _IPVLAN_MODE, _IPVLAN_FLAGS = 1, 1, 1, 2
_BRPORT_MODE, _BRPORT_ISOLATED = 4, 33
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD = 0x02
_RTA_OIF, _RTA_GATEWAY = 4, 5
_IFF_UP = 1

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_INT = struct.Struct("=i")

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink request without its header; ``flags`` are those besides REQUEST and ACK."""

    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A network device as the kernel lists it; ``master`` is an index or 0."""

    index: int
    name: str
    kind: str
    alias: str
    master: int
    mac: str
    up: bool


def _attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + b"\0" * (-length % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _short(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=H", number))


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _link(index: int = 0, *, up: bool = False) -> bytes:
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, _IFF_UP if up else 0, _IFF_UP if up else 0)


def add_bridge(name: str, *, mac: str, mtu: int = 0) -> Message:
    """Create a bridge, still down. Fails with EEXIST when a link of that name exists."""
    body = _link() + _text(_IFLA_IFNAME, name) + _attribute(_IFLA_ADDRESS, _mac(mac))
    if mtu:
        body += _number(_IFLA_MTU, mtu)
    return Message(_NEWLINK, _CREATE | _EXCL, body + _nested(_IFLA_LINKINFO, _text(_INFO_KIND, "bridge")))


def add_veth(name: str, *, master: int, peer: str, peer_mac: str, peer_namespace: int, mtu: int = 0) -> Message:
    """Create a veth pair: ``name`` here, up and in the bridge ``master``; ``peer``, down, in the namespace open at
    the descriptor ``peer_namespace``."""
    size = _number(_IFLA_MTU, mtu) if mtu else b""
    inner = (
        _link()
        + _text(_IFLA_IFNAME, peer)
        + _attribute(_IFLA_ADDRESS, _mac(peer_mac))
        + _number(_IFLA_NET_NS_FD, peer_namespace)
        + size
    )
    info = _nested(_IFLA_LINKINFO, _text(_INFO_KIND, "veth"), _nested(_INFO_DATA, _attribute(_VETH_INFO_PEER, inner)))
    body = _link(up=True) + _text(_IFLA_IFNAME, name) + _number(_IFLA_MASTER, master) + size + info
    return Message(_NEWLINK, _CREATE | _EXCL, body)


def set_alias(name: str, alias: str) -> Message:
    """Set the free text (up to 255 bytes) that says whose link this is."""
    return Message(_NEWLINK, 0, _link() + _text(_IFLA_IFNAME, name) + _text(_IFLA_IFALIAS, alias))


def set_bridge_port(name: str, alias: str, *, hairpin: bool, isolated: bool) -> Message:
    """Label a bridge's port, and say whether frames may go back out of it and to other isolated ports."""
    data = _nested(
        _INFO_SLAVE_DATA, _attribute(_BRPORT_MODE, bytes([hairpin])), _attribute(_BRPORT_ISOLATED, bytes([isolated]))
    )
    info = _nested(_IFLA_LINKINFO, _text(_INFO_SLAVE_KIND, "bridge"), data)
    return Message(_NEWLINK, 0, _link() + _text(_IFLA_IFNAME, name) + _text(_IFLA_IFALIAS, alias) + info)


def set_up(index: int) -> Message:
    """Bring a link up."""
    return Message(_NEWLINK, 0, _link(index, up=True))


def set_master(index: int, master: int) -> Message:
    """Make a link a port of the bridge ``master``, and up."""
    return Message(_NEWLINK, 0, _link(index, up=True) + _number(_IFLA_MASTER, master))


def delete_link(index: int) -> Message:
    """Remove a link; of a veth pair, both ends."""
    return Message(_DELLINK, 0, _link(index))


def add_address(index: int, address: IPv4Interface | IPv6Interface) -> Message:
    """Add an address, or leave it as it is; IPv6 without duplicate detection (the engine allocated it)."""
    packed = address.ip.packed
    flags = _IFA_F_NODAD if address.version == 6 else 0
    body = _IFADDR.pack(
        socket.AF_INET6 if address.version == 6 else socket.AF_INET, address.network.prefixlen, flags, 0, index
    )
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    if address.version == 4 and address.network.prefixlen < 31:
        body += _attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return Message(_NEWADDR, _CREATE | _REPLACE, body)


def delete_address(index: int, address: IPv4Interface | IPv6Interface) -> Message:
    """Remove an address."""
    body = _IFADDR.pack(
        socket.AF_INET6 if address.version == 6 else socket.AF_INET, address.network.prefixlen, 0, 0, index
    )
    return Message(_DELADDR, 0, body + _attribute(_IFA_LOCAL, address.ip.packed))


def add_default_route(index: int, gateway: Address) -> Message:
    """A default route; EEXIST when there is one."""
    family = socket.AF_INET6 if gateway.version == 6 else socket.AF_INET
    body = _RTMSG.pack(family, 0, 0, 0, 254, 3, 0, 1, 0)  # table main, protocol boot, scope universe, unicast
    body += _attribute(_RTA_GATEWAY, gateway.packed) + _number(_RTA_OIF, index)
    return Message(_NEWROUTE, _CREATE | _EXCL, body)


def add_device_route(index: int, version: int) -> Message:
    """A default route without a gateway: everything is on this link; EEXIST when there is a default route."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    body = _RTMSG.pack(family, 0, 0, 0, 254, 3, 253, 1, 0)  # as above, but scope link
    return Message(_NEWROUTE, _CREATE | _EXCL, body + _number(_RTA_OIF, index))


def delete_default_route(version: int) -> Message:
    """Remove a default route; ESRCH when there is none."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return Message(_DELROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 254, 0, 255, 0, 0))


def add_vlan(name: str, parent: int, number: int) -> Message:
    """Create an 802.1Q sub-interface of the link ``parent``, still down."""
    info = _nested(_IFLA_LINKINFO, _text(_INFO_KIND, "vlan"), _nested(_INFO_DATA, _short(_VLAN_ID, number)))
    return Message(_NEWLINK, _CREATE | _EXCL, _link() + _text(_IFLA_IFNAME, name) + _number(_IFLA_LINK, parent) + info)


def add_dummy(name: str) -> Message:
    """Create a link that leads nowhere, still down."""
    info = _nested(_IFLA_LINKINFO, _text(_INFO_KIND, "dummy"))
    return Message(_NEWLINK, _CREATE | _EXCL, _link() + _text(_IFLA_IFNAME, name) + info)


def add_macvlan(name: str, parent: int, *, mode: int, mac: str, namespace: int, mtu: int = 0) -> Message:
    """Create a macvlan link of ``parent``, down, in the namespace open at ``namespace``; ``mode`` is MACVLAN_MODE_*."""
    info = _nested(_IFLA_LINKINFO, _text(_INFO_KIND, "macvlan"), _nested(_INFO_DATA, _number(_MACVLAN_MODE, mode)))
    return _child(name, parent, namespace, mtu, _attribute(_IFLA_ADDRESS, _mac(mac)) + info)


def add_ipvlan(name: str, parent: int, *, mode: int, flags: int, namespace: int, mtu: int = 0) -> Message:
    """Create an ipvlan link of ``parent``, down, in the namespace open at ``namespace``; IPVLAN_MODE_*, IPVLAN_F_*."""
    data = _nested(_INFO_DATA, _short(_IPVLAN_MODE, mode), _short(_IPVLAN_FLAGS, flags))
    return _child(name, parent, namespace, mtu, _nested(_IFLA_LINKINFO, _text(_INFO_KIND, "ipvlan"), data))


def _child(name: str, parent: int, namespace: int, mtu: int, rest: bytes) -> Message:
    body = _link() + _text(_IFLA_IFNAME, name) + _number(_IFLA_LINK, parent) + _number(_IFLA_NET_NS_FD, namespace)
    return Message(_NEWLINK, _CREATE | _EXCL, body + (_number(_IFLA_MTU, mtu) if mtu else b"") + rest)


class Netlink:
    """A route netlink socket in the network namespace of the thread that made it; usable from any thread after."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.settimeout(30)
        self._lock = threading.Lock()
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def try_request(self, *messages: Message) -> list[OSError | None]:
        """Have the kernel carry out all messages in order, whatever becomes of each; one outcome for each."""
        with self._lock:
            first = self._sequence + 1
            self._sequence += len(messages)
            self._socket.send(
                b"".join(
                    _HEADER.pack(16 + len(m.body), m.kind, _REQUEST | _ACK | m.flags, first + i, 0)
                    + m.body
                    + b"\0" * (-len(m.body) % 4)
                    for i, m in enumerate(messages)
                )
            )
            outcomes: list[OSError | None] = [None] * len(messages)
            missing = len(messages)
            while missing:
                for kind, flags, sequence, body in _messages(self._socket.recv(65536)):
                    if kind == _ERROR and sequence >= first:
                        outcomes[sequence - first] = _outcome(flags, body)
                        missing -= 1
            return outcomes

    def request(self, *messages: Message) -> None:
        """Like `try_request`; raises the first error (the others have been tried all the same)."""
        for error in self.try_request(*messages):
            if error is not None:
                raise error

    def link(self, name: str) -> Link | None:
        """The link called ``name``; None when there is none."""
        found = self._query(Message(_GETLINK, 0, _link() + _text(_IFLA_IFNAME, name)))
        return found[0] if found else None

    def links(self) -> list[Link]:
        """All links."""
        return self._query(Message(_GETLINK, _DUMP, _link()))

    def _query(self, message: Message) -> list[Link]:
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            header = _HEADER.pack(16 + len(message.body), message.kind, _REQUEST | message.flags, sequence, 0)
            self._socket.send(header + message.body)
            links: list[Link] = []
            while True:
                for kind, flags, number, body in _messages(self._socket.recv(1 << 18)):
                    if number != sequence:
                        continue
                    if kind == _ERROR:
                        error = _outcome(flags, body)
                        if error is None or isinstance(error, FileNotFoundError) or error.errno == 19:  # ENODEV
                            return links
                        raise error
                    if kind == _DONE:
                        return links
                    if kind == _NEWLINK:
                        links.append(_parse_link(body))
                        if not message.flags & _DUMP:
                            return links


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += max((length + 3) & ~3, 4)


def _outcome(flags: int, body: bytes) -> OSError | None:
    number = -_INT.unpack_from(body)[0]
    if number == 0:
        return None
    text = os.strerror(number)
    if flags & 0x200:  # NLM_F_ACK_TLVS: the kernel says more (after the errno and the request's header)
        for kind, value in _attributes(body[20:]):
            if kind == 1:
                text = f"{text} ({value.rstrip(bytes(1)).decode(errors='replace')})"
    return OSError(number, text)


def _parse_link(body: bytes) -> Link:
    _family, _type, index, flags, _change = _IFINFO.unpack_from(body)
    name = kind = alias = mac = ""
    master = 0
    for attribute, value in _attributes(body[16:]):
        if attribute == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif attribute == _IFLA_IFALIAS:
            alias = value.rstrip(b"\0").decode(errors="replace")
        elif attribute == _IFLA_ADDRESS:
            mac = value.hex(":")
        elif attribute == _IFLA_MASTER:
            master = struct.unpack("=I", value)[0]
        elif attribute == _IFLA_LINKINFO:
            for inner, data in _attributes(value):
                if inner == _INFO_KIND:
                    kind = data.rstrip(b"\0").decode(errors="replace")
    return Link(index, name, kind, alias, master, mac, bool(flags & _IFF_UP))
