"""The resolver: one small process per engine that is the DNS server 127.0.0.11 of every container that needs one.

Started as ``python -I -S resolver.py`` with a listening unix socket as standard input; stdlib only, imported by nobody
(`engine.networks.dns` is the other side). For each sandbox it opens a UDP and a TCP socket on 127.0.0.11 *inside* the
sandbox's network namespace, on a port the kernel chooses, and two nftables rules there lead port 53 to them: a
container may bind port 53 itself (a DNS server in a container does), which listening on 127.0.0.11:53 would forbid.
It outlives the engine, so names resolve while that is away; the next engine connects to the same socket and says what
should be (`sync`). Without sandboxes it ends.

Requests and answers are JSON objects, one a line; ``SANDBOX`` says all about one container:

    {"path": NAMESPACE, "endpoints": [{"network": ID, "suffix": NETWORK_NAME, "names": [...], "addresses": [...],
      "links": {ALIAS: NAME}}, ...], "servers": [ADDRESS, ...] or null for the host's, "forward": BOOL, "ndots": BOOL}

    {"op": "set", "sandboxes": {ID: SANDBOX or null}}  -> {"failed": {ID: TEXT}}; null removes
    {"op": "sync", "sandboxes": {ID: SANDBOX}}         -> {"failed": {ID: TEXT}}; these and no others

Names are looked up in the networks of the asking container, in the order of its endpoints, also as ``name.network``;
everything else is forwarded from inside its namespace (to servers on the host's loopback: from the host's). The host's
resolv.conf is read again whenever it has changed. An answer already given is kept ready made, until names change.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import json
import os
import random
import resource
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

ADDRESS = "127.0.0.11"
TTL = 600
A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
NXDOMAIN, SERVFAIL, REFUSED, FORMERR, NOTIMP = 3, 2, 5, 1, 4
_TURNS = 64  # datagrams answered before another socket has its turn; orders in which addresses are given
_READY = 4096  # answers kept ready for one sandbox
_PATIENCE = 4.0  # seconds a server is given, as Docker's
_SERVERS = 3
_FORWARDS = 1024  # queries under way for one sandbox
_LINGER = 60.0
_TCP_IDLE = 10.0
_UDP_SIZE = 1232  # what we announce and accept by EDNS: fits every path
_DEFAULTS = ("8.8.8.8", "8.8.4.4")
_HEADER = struct.Struct("!HHHHHH")
_CLONE_NEWNET = 0x40000000


# -- network namespaces ------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_home = -1  # the host's namespace


class inside(contextlib.ContextDecorator):
    """The (one) thread is in the namespace open at ``fd`` for a moment; negative: stay."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> None:
        if self.fd >= 0 and _libc.setns(self.fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot enter the network namespace")

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0 and _libc.setns(_home, _CLONE_NEWNET):
            os._exit(1)  # in the wrong namespace nothing may go on


def redirect(udp: int, tcp: int) -> None:
    """In the current namespace: lead 127.0.0.11:53 to the ports ``udp`` and ``tcp``, in place of what was there.

    The same as  table ip engine-dns { chain output { type nat hook output priority -100;
    ip daddr 127.0.0.11 udp dport 53 dnat to :UDP;  ip daddr 127.0.0.11 tcp dport 53 dnat to :TCP } }
    """
    table = _attribute(1, b"engine-dns\0")
    hook = _attribute(0x8000 | 4, _attribute(1, struct.pack("!I", 3)) + _attribute(2, struct.pack("!i", -100)))
    messages: list[tuple[int, int, bytes, bytes]] = [
        (16, 0, struct.pack("!BBH", 0, 0, 10), b""),  # batch begin, of nftables
        (0, 0x400, _family(), table),  # the table, so that there is one to delete
        (2, 0, _family(), table),
        (0, 0x400, _family(), table),
        (3, 0x400, _family(), table + _attribute(3, b"output\0") + hook + _attribute(7, b"nat\0")),
        (6, 0xC00, _family(), table + _rule(socket.IPPROTO_UDP, udp)),
        (6, 0xC00, _family(), table + _rule(socket.IPPROTO_TCP, tcp)),
        (17, 0, struct.pack("!BBH", 0, 0, 10), b""),
    ]
    data = bytearray()
    for number, (kind, flags, head, body) in enumerate(messages):
        payload = head + body
        batch = kind in (16, 17)
        data += struct.pack(
            "=IHHII", 16 + len(payload), kind if batch else 0xA00 | kind, 1 | flags | (0 if batch else 4), number, 0
        )
        data += payload
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as netlink:
        netlink.settimeout(10)
        netlink.send(data)
        missing = len(messages) - 2
        while missing:
            answer = netlink.recv(65536)
            offset = 0
            while offset + 20 <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, offset)
                if kind == 2:
                    number = -struct.unpack_from("=i", answer, offset + 16)[0]
                    if number:
                        raise OSError(number, f"nftables: {os.strerror(number)}")
                    missing -= 1
                offset += (length + 3) & ~3


def _family() -> bytes:
    return struct.pack("!BBH", socket.AF_INET, 0, 0)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value))


def _expression(name: bytes, *attributes: bytes) -> bytes:
    return _attribute(0x8001, _attribute(1, name + b"\0") + _attribute(0x8002, b"".join(attributes)))


def _compare(data: bytes) -> bytes:
    return _expression(b"cmp", _number(1, 1), _number(2, 0), _attribute(0x8003, _attribute(1, data)))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression(b"payload", _number(1, 1), _number(2, base), _number(3, offset), _number(4, length))


def _rule(protocol: int, port: int) -> bytes:
    parts = [
        _payload(1, 16, 4) + _compare(socket.inet_aton(ADDRESS)),  # ip daddr
        _expression(b"meta", _number(1, 1), _number(2, 16)) + _compare(bytes([protocol])),  # meta l4proto
        _payload(2, 2, 2) + _compare(struct.pack("!H", 53)),  # th dport
        _expression(b"immediate", _number(1, 1), _attribute(0x8002, _attribute(1, struct.pack("!H", port)))),
        # dnat, ip, port from register 1, "the port is given"
        _expression(b"nat", _number(1, 1), _number(2, socket.AF_INET), _number(5, 1), _number(7, 2)),
    ]
    return _attribute(2, b"output\0") + _attribute(0x8004, b"".join(parts))


# -- messages ----------------------------------------------------------------------------------------------------


def wire_name(name: str) -> bytes:
    """A name as labels, lower case, without the root's; empty for one that DNS cannot say (a label over 63 bytes)."""
    labels = name.lower().encode().rstrip(b".").split(b".")
    if not all(0 < len(label) < 64 for label in labels):
        return b""
    return b"".join(bytes([len(label)]) + label for label in labels)


def question_end(query: bytes) -> int:
    """Where the first question ends; 0 when the message is none or bad."""
    offset = 12
    length = len(query)
    while offset < length:
        size = query[offset]
        if size == 0:
            return offset + 5 if offset + 5 <= length else 0
        if size > 63:
            return 0
        offset += size + 1
    return 0


def payload_size(query: bytes, end: int) -> int:
    """What the client can take by UDP according to its EDNS record; 0 when it has none."""
    if not query[10] and not query[11]:
        return 0
    offset = end
    try:
        for _ in range(sum(_HEADER.unpack_from(query)[3:])):
            while query[offset]:
                if query[offset] >= 0xC0:
                    offset += 1
                    break
                offset += query[offset] + 1
            offset += 1
            kind, size, _, length = struct.unpack_from("!HHIH", query, offset)
            if kind == OPT:
                return max(512, int(size))
            offset += 10 + length
    except (IndexError, struct.error):
        pass
    return 0


_OPT_RECORD = b"\0" + struct.pack("!HHIH", OPT, _UDP_SIZE, 0, 0)


def reply(
    query: bytes, end: int, answers: list[bytes] | tuple[bytes, ...] = (), *, code: int = 0, limit: int = 65535
) -> bytes:
    """The answer to ``query``; with too many ``answers`` for ``limit``, some of them and the bit that says so."""
    opt = _OPT_RECORD if payload_size(query, end) else b""
    room = limit - end - len(opt)
    size = 0
    for count, answer in enumerate(answers):
        size += len(answer)
        if size > room:
            answers = answers[:count]
            code |= 0x200
            break
    flags = 0x8080 | (struct.unpack_from("!H", query, 2)[0] & 0x7900) | code  # answer, recursion available
    header = query[:2] + struct.pack("!HHHHH", flags, 1, len(answers), 0, 1 if opt else 0)
    return b"".join((header, query[12:end], *answers, opt))


def _record(kind: int, data: bytes) -> bytes:
    return struct.pack("!HHHIH", 0xC00C, kind, 1, TTL, len(data)) + data


# -- names -------------------------------------------------------------------------------------------------------


class Network:
    """The names of one network: wire name -> the records of all endpoints that have it."""

    def __init__(self) -> None:
        self.names: dict[bytes, dict[int, list[bytes]]] = {}
        self.addresses: dict[bytes, bytes] = {}  # wire name of in-addr.arpa -> PTR record


class Names:
    """All networks, made from the descriptions of sandboxes when first needed after a change."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.networks: dict[str, Network] = {}
        self.stale: set[str] = set()

    def network(self, identifier: str) -> Network:
        if identifier in self.stale or identifier not in self.networks:
            self.stale.discard(identifier)
            self.networks[identifier] = network = Network()
            for sandbox in self.sandboxes.values():
                for endpoint in sandbox.endpoints:
                    if endpoint["network"] == identifier:
                        _enter(network, endpoint)
        return self.networks[identifier]

    def changed(self, *identifiers: str) -> None:
        """Names of these networks changed: forget what was made of them."""
        self.stale.update(identifiers)
        for sandbox in self.sandboxes.values():
            if not self.stale.isdisjoint(sandbox.networks):
                sandbox.ready.clear()


def _enter(network: Network, endpoint: dict) -> None:  # type: ignore[type-arg]
    suffix = wire_name(endpoint["suffix"])
    for text in endpoint["addresses"]:
        address = ipaddress.ip_address(text)
        kind = A if address.version == 4 else AAAA
        record = _record(kind, address.packed)
        wires = [wire for name in endpoint["names"] if (wire := wire_name(name))]
        for wire in wires:
            for key in (wire + b"\0", wire + suffix + b"\0"):
                network.names.setdefault(key, {A: [], AAAA: []})[kind].append(record)
        if wires:
            network.addresses[wire_name(address.reverse_pointer) + b"\0"] = _record(PTR, wires[0] + suffix + b"\0")


# -- upstream ----------------------------------------------------------------------------------------------------


class HostServers:
    """The nameservers of the host's resolv.conf, as they are now."""

    def __init__(self) -> None:
        self.seen: tuple[int, int] | None = None
        self.servers: list[str] = []

    def now(self) -> list[str]:
        try:
            status = os.stat("/etc/resolv.conf")
            seen = (status.st_mtime_ns, status.st_ino)
        except OSError:
            seen = (0, 0)
        if seen != self.seen:
            self.seen = seen
            self.servers = _nameservers("/etc/resolv.conf") or list(_DEFAULTS)
        return self.servers


def _nameservers(path: str) -> list[str]:
    found = []
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver" and _valid(words[1]) and words[1] != ADDRESS:
                found.append(words[1])
    return found


def _valid(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


class Forward:
    """One query on its way to the outside: server after server, by UDP or (for a client that came by TCP) by TCP."""

    def __init__(self, sandbox: Sandbox, query: bytes, end: int, answer: Callable[[bytes], None], *, tcp: bool) -> None:
        self.sandbox, self.query, self.end, self.answer, self.tcp = sandbox, query, end, answer, tcp
        self.servers = sandbox.upstream()[:_SERVERS]
        self.sock: socket.socket | None = None
        self.deadline = 0.0
        self.heard = b""
        self.last = b""  # what a server said that others may know better
        sandbox.forwards += 1
        self.next()

    def next(self) -> None:
        """Ask the next server; without one, answer what is known."""
        self.drop()
        while self.servers:
            server = self.servers.pop(0)
            try:
                self.ask(server)
            except OSError:
                self.drop()
                continue
            return
        self.finish(self.last or reply(self.query, self.end, code=SERVFAIL))

    def ask(self, server: str) -> None:
        host = self.sandbox.on_host and ipaddress.ip_address(server.partition("%")[0]).is_loopback
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        kind = socket.SOCK_STREAM if self.tcp else socket.SOCK_DGRAM
        with inside(-1 if host else self.sandbox.namespace):
            self.sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            status = self.sock.connect_ex((server, 53))
        if status not in (0, errno.EINPROGRESS):
            raise OSError(status, "connect")
        loop = self.sandbox.loop
        self.deadline = time.monotonic() + _PATIENCE
        loop.waiting.append((self.deadline, self))
        if self.tcp:
            loop.add(self.sock.fileno(), self.connected, select.EPOLLOUT)
        else:
            self.sock.send(self.query)
            loop.add(self.sock.fileno(), self.receive)

    def connected(self) -> None:
        assert self.sock is not None
        try:
            self.sock.sendall(struct.pack("!H", len(self.query)) + self.query)
        except OSError:
            self.next()
            return
        self.heard = b""
        self.sandbox.loop.remove(self.sock.fileno())
        self.sandbox.loop.add(self.sock.fileno(), self.receive)

    def receive(self) -> None:
        assert self.sock is not None
        try:
            data = self.sock.recv(65537)
        except BlockingIOError:
            return
        except OSError:  # refused: nobody serves there
            self.next()
            return
        if self.tcp:
            if not data:
                self.next()
                return
            self.heard += data
            if len(self.heard) < 2 or len(self.heard) - 2 < (size := struct.unpack_from("!H", self.heard)[0]):
                return
            data = self.heard[2 : 2 + size]
        if len(data) < 12 or data[:2] != self.query[:2] or not data[2] & 0x80:
            return  # not an answer to this
        if question_end(data) and data[12 : self.end].lower() != self.query[12 : self.end].lower():
            return
        if data[3] & 0x0F in (SERVFAIL, REFUSED, NOTIMP) and self.servers:
            self.last = data
            self.next()
            return
        self.finish(data)

    def drop(self) -> None:
        if self.sock is not None:
            self.sandbox.loop.remove(self.sock.fileno())
            self.sock.close()
            self.sock = None

    def finish(self, data: bytes) -> None:
        self.drop()
        self.servers = []
        if self.sandbox.forwards > 0:
            self.sandbox.forwards -= 1
        self.answer(data)


# -- sandboxes ---------------------------------------------------------------------------------------------------


class Loop:
    """epoll with a callback for each descriptor, and deadlines: all patience is equal, so a queue keeps them sorted."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.waiting: deque[tuple[float, Forward]] = deque()

    def add(self, fd: int, callback: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self.callbacks[fd] = callback
        self.epoll.register(fd, events)

    def remove(self, fd: int) -> None:
        if self.callbacks.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def turn(self, timeout: float) -> None:
        if self.waiting:
            timeout = max(0.0, min(timeout if timeout >= 0 else 3600, self.waiting[0][0] - time.monotonic()))
        for fd, _ in self.epoll.poll(timeout, 256):
            callback = self.callbacks.get(fd)
            if callback is not None:
                callback()
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            deadline, late = self.waiting.popleft()
            if late.sock is not None and late.deadline == deadline:  # else it was answered, or asks the next one
                late.next()


class Stream:
    """One client's TCP connection: queries with their length in front, answered in order of arrival."""

    def __init__(self, sandbox: Sandbox, sock: socket.socket) -> None:
        self.sandbox, self.sock = sandbox, sock
        self.buffer = b""
        self.used = time.monotonic()
        sandbox.streams.add(self)
        sandbox.loop.add(sock.fileno(), self.receive)

    def receive(self) -> None:
        self.used = time.monotonic()
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.buffer += data
        while len(self.buffer) >= 2 and len(self.buffer) - 2 >= (size := struct.unpack_from("!H", self.buffer)[0]):
            query, self.buffer = self.buffer[2 : 2 + size], self.buffer[2 + size :]
            self.sandbox.handle(query, self.send, tcp=True)

    def send(self, answer: bytes) -> None:
        if self in self.sandbox.streams:
            try:
                self.sock.sendall(struct.pack("!H", len(answer)) + answer)
            except OSError:  # also one that does not read what it asked for
                self.close()

    def close(self) -> None:
        if self in self.sandbox.streams:
            self.sandbox.streams.discard(self)
            self.sandbox.loop.remove(self.sock.fileno())
            self.sock.close()


class Ready:
    """Answers to one question without their first two bytes, given in turn."""

    __slots__ = ("answers", "turn")

    def __init__(self, answers: list[bytes], turn: int) -> None:
        self.answers, self.turn = answers, turn


class Sandbox:
    """One container's view: its sockets, its networks, where it forwards to."""

    def __init__(self, loop: Loop, names: Names, host: HostServers, path: str) -> None:
        self.loop, self.names, self.host, self.path = loop, names, host, path
        self.endpoints: list[dict] = []  # type: ignore[type-arg]
        self.networks: list[str] = []
        self.servers: list[str] | None = None
        self.forward = True
        self.on_host = True
        self.ndots = False
        self.forwards = 0
        self.streams: set[Stream] = set()
        self.ready: dict[bytes, Ready] = {}
        self.namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with inside(self.namespace):
                self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                self.udp.bind((ADDRESS, 0))
                self.tcp = socket.socket(
                    socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                )
                self.tcp.bind((ADDRESS, 0))
                self.tcp.listen(128)
                redirect(self.udp.getsockname()[1], self.tcp.getsockname()[1])
        except BaseException:
            os.close(self.namespace)
            raise
        loop.add(self.udp.fileno(), self.receive)
        loop.add(self.tcp.fileno(), self.accept)

    def describe(self, told: dict) -> None:  # type: ignore[type-arg]
        """Take over what the engine says about the container."""
        self.endpoints = told["endpoints"]
        self.networks = [endpoint["network"] for endpoint in self.endpoints]
        self.links = [
            (endpoint["network"], {wire_name(a) + b"\0": wire_name(n) + b"\0" for a, n in endpoint["links"].items()})
            for endpoint in self.endpoints
        ]
        self.servers, self.forward, self.ndots = told["servers"], told["forward"], told["ndots"]
        self.on_host = self.servers is None
        self.ready.clear()

    def close(self) -> None:
        for sock in (self.udp, self.tcp):
            self.loop.remove(sock.fileno())
            sock.close()
        for stream in list(self.streams):
            stream.close()
        for _, forward in self.loop.waiting:
            if forward.sandbox is self:
                forward.drop()
        os.close(self.namespace)

    def upstream(self) -> list[str]:
        return [server for server in (self.host.now() if self.servers is None else self.servers) if server != ADDRESS]

    def receive(self) -> None:
        udp, ready = self.udp, self.ready
        for _ in range(_TURNS):
            try:
                query, client = udp.recvfrom(4096)
            except OSError:
                return
            kept = ready.get(query[2:])
            if kept is not None:  # asked before in just these words
                kept.turn = turn = (kept.turn + 1) % len(kept.answers)
                try:
                    udp.sendto(query[:2] + kept.answers[turn], client)
                except OSError:
                    return
                continue

            def send(answer: bytes, client: tuple[str, int] = client) -> None:
                with contextlib.suppress(OSError):
                    udp.sendto(answer, client)

            self.handle(query, send, tcp=False)

    def accept(self) -> None:
        for stream in list(self.streams):
            if stream.used < time.monotonic() - _TCP_IDLE:
                stream.close()
        try:
            sock, _ = self.tcp.accept()
        except OSError:
            return
        sock.setblocking(False)
        Stream(self, sock)

    def handle(self, query: bytes, send: Callable[[bytes], None], *, tcp: bool) -> None:
        """Answer one query, now or when somebody else has."""
        if len(query) < 12 or query[2] & 0x80:
            return
        end = question_end(query)
        if query[2] & 0x78:
            send(query[:2] + struct.pack("!HHHHH", 0x8080 | NOTIMP | (query[2] & 0x78) << 8, 0, 0, 0, 0))
            return
        if not end or query[4:6] != b"\0\1":
            send(query[:2] + struct.pack("!HHHHH", 0x8080 | FORMERR, 0, 0, 0, 0))
            return
        name = query[12 : end - 4].lower()
        kind, group = struct.unpack_from("!HH", query, end - 4)
        found = self.find(name, kind) if group in (1, ANY) else None
        if found is not None:
            self.give(query, end, found, send, tcp=tcp)
        elif self.ndots and kind in (A, AAAA) and len(name) == name[0] + 2:
            send(reply(query, end, code=NXDOMAIN))
        elif not self.forward or self.forwards >= _FORWARDS:
            send(reply(query, end, code=SERVFAIL))
        else:
            Forward(self, query, end, send, tcp=tcp)

    def give(self, query: bytes, end: int, found: list[bytes], send: Callable[[bytes], None], *, tcp: bool) -> None:
        if tcp:
            send(reply(query, end, found))
            return
        limit = payload_size(query, end) or 512
        step = max(1, len(found) // _TURNS)
        orders = [found[first:] + found[:first] for first in range(0, len(found), step)] or [[]]
        turns = [reply(query, end, order, limit=limit)[2:] for order in orders]
        turn = random.randrange(len(turns))  # noqa: S311 - spreads load, hides nothing
        if len(self.ready) >= _READY:
            self.ready.clear()
        self.ready[query[2:]] = Ready(turns, turn)
        send(query[:2] + turns[turn])

    def find(self, name: bytes, kind: int) -> list[bytes] | None:
        """Records of ``kind`` for a name of ours: none when it has others; None when the name is not ours."""
        known = False
        for identifier, links in self.links:
            network = self.names.network(identifier)
            if kind == PTR and name in network.addresses:
                return [network.addresses[name]]
            records = network.names.get(links.get(name, name)) or network.names.get(name)
            if records is not None:
                known = True
                if records.get(kind):
                    return records[kind]
        return [] if known else None


# -- the process -------------------------------------------------------------------------------------------------


class Resolver:
    """All sandboxes, and the engines connected (one, or two for a moment while it restarts)."""

    def __init__(self, control: socket.socket) -> None:
        self.loop = Loop()
        self.names = Names()
        self.host = HostServers()
        self.control = control
        self.engines: dict[int, tuple[socket.socket, bytearray]] = {}
        self.greeted = False
        control.setblocking(False)
        self.loop.add(control.fileno(), self.engine)

    def engine(self) -> None:
        try:
            sock, _ = self.control.accept()
        except OSError:
            return
        sock.settimeout(10)
        self.greeted = True
        fd = sock.fileno()
        self.engines[fd] = (sock, bytearray())
        self.loop.add(fd, lambda: self.hear(fd))

    def hear(self, fd: int) -> None:
        sock, buffer = self.engines[fd]
        try:
            data = sock.recv(1 << 20)
            buffer += data
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                sock.sendall(json.dumps(self.answer(json.loads(line))).encode() + b"\n")
        except (OSError, ValueError, KeyError, TypeError):
            data = b""
        if not data:
            del self.engines[fd]
            self.loop.remove(fd)
            sock.close()

    def answer(self, request: dict) -> dict[str, object]:  # type: ignore[type-arg]
        told = request["sandboxes"]
        failed: dict[str, str] = {}
        if request["op"] == "sync":
            for identifier in set(self.names.sandboxes) - set(told):
                self.drop(identifier)
        for identifier, description in told.items():
            try:
                self.put(identifier, description)
            except OSError as error:
                failed[identifier] = error.strerror or str(error)
                self.drop(identifier)
        return {"failed": failed}

    def put(self, identifier: str, description: dict | None) -> None:  # type: ignore[type-arg]
        sandboxes = self.names.sandboxes
        if description is None:
            self.drop(identifier)
            return
        sandbox = sandboxes.get(identifier)
        if sandbox is not None and sandbox.path != description["path"]:
            self.drop(identifier)
            sandbox = None
        before: list[str] = []
        if sandbox is None:
            sandbox = sandboxes[identifier] = Sandbox(self.loop, self.names, self.host, description["path"])
        else:
            before = sandbox.networks
        sandbox.describe(description)
        self.names.changed(*before, *sandbox.networks)

    def drop(self, identifier: str) -> None:
        sandbox = self.names.sandboxes.pop(identifier, None)
        if sandbox is not None:
            sandbox.close()
            self.names.changed(*sandbox.networks)
            used = {network for other in self.names.sandboxes.values() for network in other.networks}
            for network in set(sandbox.networks) - used:
                self.names.networks.pop(network, None)
                self.names.stale.discard(network)

    def run(self) -> None:
        """Until there is nobody to serve."""
        idle_since: float | None = None
        while True:
            if self.names.sandboxes:
                idle_since = None
            elif self.greeted and not self.engines:
                return
            elif idle_since is None:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= _LINGER:
                return
            self.loop.turn(-1 if self.names.sandboxes else 5)


def main() -> None:
    """Serve on the listening socket that is standard input; nothing else of the engine's is kept open."""
    global _home
    os.closerange(3, 1 << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.chdir("/")
    _home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    Resolver(socket.socket(fileno=os.dup(0))).run()


if __name__ == "__main__":
    main()
