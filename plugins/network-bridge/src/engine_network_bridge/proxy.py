"""The port holder: one small process per engine that owns the host's side of all published ports.

Started as ``python -I -S proxy.py`` with a listening unix socket as standard input; stdlib only, imported by nobody
(`engine_network_bridge.ports` is the other side). It holds a bound socket for every published port, so that other
programs get "address already in use", and carries what the kernel's NAT cannot: connections to ``[::1]`` and from IPv6
to containers without IPv6. It outlives the engine; the next engine connects to the same socket and says which ports
should exist (`sync`). Without ports it ends: at once when no engine is connected, else after a minute.

Requests and answers are JSON objects, one a line:

    {"op": "open", "id": ENDPOINT, "ports": [[PROTOCOL, HOST_IP, HOST_PORT, CONTAINER_IP, CONTAINER_PORT], ...]}
        -> {"error": null} or {"error": ERRNO, "index": I}; all or nothing. No CONTAINER_IP: hold, but do not serve
    {"op": "close", "id": ENDPOINT}            -> {"error": null}
    {"op": "sync", "endpoints": {ID: PORTS}}   -> {"error": null, "failed": [[ID, I, ERRNO], ...]}

TCP is spliced in the kernel, without copying; every socket is edge-triggered and non-blocking, and a busy connection
yields after `_TURNS` transfers.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
import time
from collections.abc import Callable

_CHUNK = 1 << 16
_TURNS = 16
_LINGER = 60.0
_UDP_IDLE = 90.0
_EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_PROTOCOLS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, 132),
}

Port = tuple[str, str, int, str, int]


def bind(port: Port) -> socket.socket | None:
    """A socket that reserves the port; None where the kernel does not know the protocol (then nobody can take it)."""
    protocol, host, number, target, _ = port
    kind, code = _PROTOCOLS[protocol]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, code)
    except OSError as error:
        if protocol == "sctp" and error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        raise
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:  # as every server does: connections in TIME_WAIT are no conflict
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, number))
        if kind == socket.SOCK_STREAM:
            sock.listen(1024 if target else 0)
    except BaseException:
        sock.close()
        raise
    return sock


class Loop:
    """epoll with a callback for each descriptor, a list of those that yielded, and a clock for idle UDP flows."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.again: list[Callable[[], None]] = []

    def add(self, fd: int, callback: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self.callbacks[fd] = callback
        self.epoll.register(fd, events)

    def remove(self, fd: int) -> None:
        if self.callbacks.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def turn(self, timeout: float) -> None:
        again, self.again = self.again, []
        for callback in again:
            callback()
        for fd, _ in self.epoll.poll(0 if self.again else timeout, 256):
            callback_or_none = self.callbacks.get(fd)
            if callback_or_none is not None:
                callback_or_none()


class Half:
    """One direction of a connection: socket to socket through a pipe."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.pending = 0
        self.ended = False
        self.done = False

    def pump(self) -> bool:
        """Move what can be moved; True when there may be more at once."""
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        for _ in range(_TURNS):
            try:
                if not self.pending and not self.ended:
                    self.pending = os.splice(self.source.fileno(), self.writer, _CHUNK, flags=flags)
                    self.ended = self.pending == 0
                if self.pending:
                    self.pending -= os.splice(self.reader, self.target.fileno(), self.pending, flags=flags)
            except BlockingIOError:
                return False
            if self.ended and not self.pending:
                self.done = True
                self.target.shutdown(socket.SHUT_WR)
                return False
        return True

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Connection:
    """A client's TCP connection and ours to the container."""

    def __init__(self, loop: Loop, client: socket.socket, target: tuple[str, int]) -> None:
        self.loop, self.client = loop, client
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        self.server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.halves: list[Half] = []
        self.open = True
        try:
            status = self.server.connect_ex(target)
            if status not in (0, errno.EINPROGRESS):
                raise OSError(status, os.strerror(status))
            for sock in (client, self.server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop.add(self.server.fileno(), self.connected, select.EPOLLOUT)
        except OSError:
            self.close()

    def connected(self) -> None:
        if self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close()
            return
        try:
            self.halves.append(Half(self.client, self.server))
            self.halves.append(Half(self.server, self.client))
        except OSError:
            self.close()
            return
        self.loop.remove(self.server.fileno())
        for sock in (self.client, self.server):
            self.loop.add(sock.fileno(), self.pump, _EDGE)
        self.pump()

    def pump(self) -> None:
        if not self.open:
            return
        try:
            more = [half.pump() for half in self.halves if not half.done]
        except OSError:
            self.close()
            return
        if not more or all(half.done for half in self.halves):
            self.close()
        elif any(more):
            self.loop.again.append(self.pump)

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        for sock in (self.client, self.server):
            self.loop.remove(sock.fileno())
            sock.close()
        for half in self.halves:
            half.close()


class Listener:
    """A reserved port; `serve` makes it carry traffic too."""

    def __init__(self, loop: Loop, port: Port) -> None:
        self.loop, self.port = loop, port
        self.sock = bind(port)
        self.flows: dict[tuple[str, int], tuple[socket.socket, list[float]]] = {}

    def serve(self) -> None:
        protocol, _, _, target, _ = self.port
        if self.sock is not None and target and protocol in ("tcp", "udp"):
            self.loop.add(self.sock.fileno(), self.accept if protocol == "tcp" else self.receive)

    def accept(self) -> None:
        assert self.sock is not None
        for _ in range(_TURNS):
            try:
                client, _ = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    refuse(self.sock)
                continue
            client.setblocking(False)
            try:
                Connection(self.loop, client, self.port[3:])
            except OSError:
                client.close()

    def receive(self) -> None:
        assert self.sock is not None
        for _ in range(_TURNS):
            try:
                data, client = self.sock.recvfrom(_CHUNK)
            except OSError:
                return
            flow = self.flows.get(client)
            try:
                if flow is None:
                    flow = self.flow(client)
                flow[1][0] = time.monotonic()
                flow[0].send(data)
            except OSError:
                continue  # as the network would: the datagram is lost

    def flow(self, client: tuple[str, int]) -> tuple[socket.socket, list[float]]:
        family = socket.AF_INET6 if ":" in self.port[3] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(self.port[3:])
        except OSError:
            sock.close()
            raise
        used = [0.0]

        def answer() -> None:
            for _ in range(_TURNS):
                try:
                    data = sock.recv(_CHUNK)
                    used[0] = time.monotonic()
                    if self.sock is not None:
                        self.sock.sendto(data, client)
                except OSError:
                    return

        self.flows[client] = (sock, used)
        self.loop.add(sock.fileno(), answer)
        return self.flows[client]

    def expire(self, before: float) -> None:
        for client, (sock, used) in list(self.flows.items()):
            if used[0] < before:
                del self.flows[client]
                self.loop.remove(sock.fileno())
                sock.close()

    def close(self) -> None:
        self.expire(float("inf"))
        if self.sock is not None:
            self.loop.remove(self.sock.fileno())
            self.sock.close()


_spare = -1  # a descriptor to give up when there are no more


def refuse(sock: socket.socket) -> None:
    """Out of descriptors: take the waiting connection with the spare one and close it, rather than spin on it."""
    global _spare
    if _spare >= 0:
        os.close(_spare)
        _spare = -1
    try:
        sock.accept()[0].close()
        _reserve()
    except OSError:
        pass  # the client left, or somebody took the descriptor: the next one refused makes do without


def _reserve() -> None:
    """Keep one descriptor for `refuse`."""
    global _spare
    _spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class Holder:
    """All ports by endpoint, and the engines connected (one, or two for a moment while it restarts)."""

    def __init__(self, control: socket.socket) -> None:
        self.loop = Loop()
        self.control = control
        self.engines: dict[int, tuple[socket.socket, bytearray]] = {}
        self.endpoints: dict[str, list[Listener]] = {}
        self.greeted = False
        control.setblocking(False)
        self.loop.add(control.fileno(), self.engine)

    def engine(self) -> None:
        try:
            sock, _ = self.control.accept()
        except OSError:
            return
        sock.setblocking(True)
        sock.settimeout(10)
        self.greeted = True
        self.engines[sock.fileno()] = (sock, bytearray())
        self.loop.add(sock.fileno(), lambda: self.hear(sock.fileno()))

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

    def answer(self, request: dict[str, object]) -> dict[str, object]:
        if request["op"] == "open":
            return self.open(str(request["id"]), request["ports"])  # type: ignore[arg-type]
        if request["op"] == "close":
            self.close(str(request["id"]))
            return {"error": None}
        wanted: dict[str, list[Port]] = request["endpoints"]  # type: ignore[assignment]
        failed: list[list[object]] = []
        for endpoint in set(self.endpoints) - set(wanted):
            self.close(endpoint)
        for endpoint, ports in wanted.items():
            if [listener.port for listener in self.endpoints.get(endpoint, [])] == [tuple(port) for port in ports]:
                continue
            self.close(endpoint)
            outcome = self.open(endpoint, ports)
            if outcome["error"]:
                failed.append([endpoint, outcome["index"], outcome["error"]])
        return {"error": None, "failed": failed}

    def open(self, endpoint: str, ports: list[Port]) -> dict[str, object]:
        self.close(endpoint)
        listeners: list[Listener] = []
        for index, port in enumerate(ports):
            try:
                listeners.append(Listener(self.loop, tuple(port)))  # type: ignore[arg-type]
            except OSError as error:
                for listener in listeners:
                    listener.close()
                return {"error": error.errno or errno.EIO, "index": index}
        for listener in listeners:
            listener.serve()
        self.endpoints[endpoint] = listeners
        return {"error": None}

    def close(self, endpoint: str) -> None:
        for listener in self.endpoints.pop(endpoint, []):
            listener.close()

    def run(self) -> None:
        """Until there is nothing to hold."""
        idle_since: float | None = None
        while True:
            if self.endpoints:
                idle_since = None
            elif self.greeted and not self.engines:
                return
            elif idle_since is None:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= _LINGER:
                return
            flows = any(listener.flows for listeners in self.endpoints.values() for listener in listeners)
            self.loop.turn(-1 if self.endpoints and not flows else _UDP_IDLE / 3 if flows else 5)
            if flows:
                before = time.monotonic() - _UDP_IDLE
                for listeners in self.endpoints.values():
                    for listener in listeners:
                        listener.expire(before)


def main() -> None:
    """Serve on the listening socket that is standard input; nothing else of the engine's is kept open."""
    os.closerange(3, 1 << 20)
    _reserve()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.chdir("/")
    Holder(socket.socket(fileno=os.dup(0))).run()


if __name__ == "__main__":
    main()
