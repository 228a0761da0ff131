"""Host ports: who has which, and the process that holds them (on loopback only, unprivileged)."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from engine.drivers.network import PublishedPort
from engine.errors import Conflict
from engine_network_bridge.ports import BindFailed, Binding, HostPorts, PortHolder

ANY = ("0.0.0.0", "::")


class FakeHolder:
    """Holds nothing; ``busy`` are ports of other programs."""

    def __init__(self, *busy: int) -> None:
        self.busy = set(busy)
        self.held: dict[str, list[Binding]] = {}

    def open(self, endpoint: str, bindings: Sequence[Binding]) -> None:
        for index, binding in enumerate(bindings):
            if binding[2] in self.busy:
                raise BindFailed(index, errno.EADDRINUSE)
        self.held[endpoint] = list(bindings)

    def close(self, endpoint: str) -> None:
        self.held.pop(endpoint, None)

    def restore(self, desired: Mapping[str, list[Binding]]) -> list[tuple[str, int, int]]:
        self.held = dict(desired)
        return []


def host_ports(*busy: int) -> HostPorts:
    return HostPorts(FakeHolder(*busy))  # type: ignore[arg-type]


def publish(
    ports: HostPorts,
    endpoint: str,
    number: int = 0,
    end: int = 0,
    addresses: Sequence[str] = ANY,
    protocol: str = "tcp",
) -> list[int]:
    port = PublishedPort(container_port=80, protocol=protocol, host_ip="", host_port=number, host_port_end=end)
    return [p.host_port for p in ports.publish(endpoint, [(port, addresses)], {4: "127.0.0.1"}, proxy=True)]


def test_both_families_get_the_same_port() -> None:
    first, second = publish(host_ports(), "a")
    assert first == second >= 32768


def test_our_own_ports_conflict_by_address_family_and_protocol() -> None:
    ports = host_ports()
    publish(ports, "a", 8080)
    publish(ports, "b", 8080, protocol="udp")
    for addresses in (ANY, ["127.0.0.1"], ["::1"]):
        with pytest.raises(Conflict, match=r"^Bind for .*:8080 failed: port is already allocated$"):
            publish(ports, "c", 8080, addresses=addresses)
    ports.unpublish("a")
    publish(ports, "c", 8080, addresses=["127.0.0.1"])
    publish(ports, "d", 8080, addresses=["127.0.0.2"])
    with pytest.raises(Conflict, match=r"Bind for 0\.0\.0\.0:8080 failed"):
        publish(ports, "e", 8080)


def test_another_programs_port_is_named() -> None:
    with pytest.raises(Conflict, match=r"^failed to bind port 0\.0\.0\.0:8080/tcp: address already in use$"):
        publish(host_ports(8080), "a", 8080)


def test_where_there_is_a_choice_busy_ports_are_passed_over() -> None:
    ports = host_ports(9000)
    assert publish(ports, "a", 9000, 9002) == [9001, 9001]
    assert publish(ports, "b", 9000, 9002) == [9002, 9002]
    with pytest.raises(Conflict, match="port is already allocated"):
        publish(ports, "c", 9000, 9002)


def test_a_failed_publish_takes_nothing() -> None:
    ports = host_ports(8081)
    both = [
        (PublishedPort(container_port=1, protocol="tcp", host_ip="", host_port=number), ANY) for number in (8080, 8081)
    ]
    with pytest.raises(Conflict):
        ports.publish("a", both, {}, proxy=True)
    assert publish(ports, "b", 8080) == [8080, 8080]


def test_ports_of_running_containers_are_taken_after_a_restart() -> None:
    ports = host_ports()
    port = PublishedPort(container_port=80, protocol="tcp", host_ip="0.0.0.0", host_port=8080)
    ports.restore({"a": ([port], {4: "10.0.0.2"})}, proxy=True)
    with pytest.raises(Conflict):
        publish(ports, "b", 8080)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[PortHolder]:
    holder = PortHolder(tmp_path)
    yield holder
    holder.restore({})
    holder.disconnect()
    if holder._child:  # without ports and without an engine it ends by itself
        os.waitpid(holder._child, 0)


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that answers with what it got, in capitals, once the client has said all."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                said = b"".join(iter(lambda c=client: c.recv(65536), b""))  # type: ignore[misc]
                client.sendall(said.upper())

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def free_port(kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> int:
    with socket.socket(family, kind) as probe:
        probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def ask(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, timeout=10) as client:
        sender = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        sender.start()
        answer = b"".join(iter(lambda: client.recv(65536), b""))
        sender.join()
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_held_tcp_ports_carry_connections_with_half_close(holder: PortHolder, echo: int, host: str) -> None:
    number = free_port(family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    holder.open("a", [("tcp", host, number, "127.0.0.1", echo)])
    assert ask((host, number), b"hello") == b"HELLO"
    big = os.urandom(3 << 20).hex().encode()
    assert ask((host, number), big) == big.upper()


def test_held_udp_ports_carry_datagrams_both_ways(holder: PortHolder) -> None:
    number = free_port(socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        holder.open("a", [("udp", "127.0.0.1", number, "127.0.0.1", server.getsockname()[1])])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"ping", ("127.0.0.1", number))
            data, peer = server.recvfrom(100)
            server.sendto(data + b"!", peer)
            assert client.recvfrom(100) == (b"ping!", ("127.0.0.1", number))


def test_a_server_that_is_not_there_is_a_closed_connection(holder: PortHolder) -> None:
    number = free_port()
    holder.open("a", [("tcp", "127.0.0.1", number, "127.0.0.1", free_port())])
    with socket.create_connection(("127.0.0.1", number), timeout=10) as client:
        assert client.recv(1) == b""


def test_a_held_port_is_in_use_for_others_until_it_is_closed(holder: PortHolder) -> None:
    number = free_port()
    holder.open("a", [("tcp", "127.0.0.1", number, "", 80)])
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", number))
    with pytest.raises(BindFailed):
        holder.open("b", [("tcp", "127.0.0.1", free_port(), "", 80), ("tcp", "127.0.0.1", number, "", 80)])
    holder.close("a")
    socket.create_server(("127.0.0.1", number)).close()


def test_the_next_engine_finds_the_holder_and_its_ports(holder: PortHolder, echo: int, tmp_path: Path) -> None:
    kept, dropped = free_port(), free_port()
    binding: Binding = ("tcp", "127.0.0.1", kept, "127.0.0.1", echo)
    holder.open("a", [binding])
    holder.open("b", [("tcp", "127.0.0.1", dropped, "127.0.0.1", echo)])
    holder.disconnect()
    assert ask(("127.0.0.1", kept), b"x") == b"X"
    following = PortHolder(tmp_path)
    assert following.restore({"a": [binding]}) == []
    assert ask(("127.0.0.1", kept), b"x") == b"X"
    socket.create_server(("127.0.0.1", dropped)).close()
    following.disconnect()


def test_a_killed_holder_is_replaced_with_all_its_ports(holder: PortHolder, echo: int) -> None:
    first, second = free_port(), free_port()
    holder.open("a", [("tcp", "127.0.0.1", first, "127.0.0.1", echo)])
    os.kill(holder._child, signal.SIGKILL)
    os.waitpid(holder._child, 0)
    holder.open("b", [("tcp", "127.0.0.1", second, "127.0.0.1", echo)])
    assert [ask(("127.0.0.1", number), b"x") for number in (first, second)] == [b"X", b"X"]


def test_the_holder_keeps_nothing_of_the_engine_open(holder: PortHolder) -> None:
    leaked, other = os.pipe()
    os.set_inheritable(other, True)
    holder.open("a", [("tcp", "127.0.0.1", free_port(), "", 80)])
    os.close(other)
    with open(leaked, "rb", closefd=True) as end:
        assert end.read() == b"", "the other end is closed everywhere"
