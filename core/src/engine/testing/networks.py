"""Conformance of network drivers (`engine.drivers.network`); needs root. Runs in a network namespace of its own.

The oracle is the kernel: `/proc/net` and sockets inside the sandboxes, never the driver's own records.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from engine import kernel
from engine.drivers.network import Endpoint, Network, NetworkDriver, PublishedPort, Subnet
from engine.errors import Conflict, NotSupported

__all__ = ["NetworkConformance"]

SIOCGIFADDR = 0x8915
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def link_up(name: str) -> None:
    """Bring a link of the current namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14s", name.encode(), IFF_UP, b"")
        fcntl.ioctl(probe, SIOCSIFFLAGS, request)


def address_of(interface: str) -> str:
    """The IPv4 address of a link of the current namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface.encode()))
    return socket.inet_ntoa(answer[20:24])


def links() -> set[str]:
    """Names of the links of the current namespace."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines}


def _make_sandbox(path: Path) -> None:
    path.touch()
    failure: list[BaseException] = []

    def make() -> None:
        try:
            kernel.unshare(kernel.CLONE_NEWNET)
            link_up("lo")
            kernel.mount("/proc/thread-self/ns/net", path, flags=kernel.MS_BIND)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


@pytest.mark.root
class NetworkConformance:
    """Subclass and provide ``driver``. ``options`` are network options that work; ``subnet`` is the pool used."""

    options: dict[str, str] = {}
    subnet = IPv4Network("10.231.7.0/24")

    @pytest.fixture
    def driver(self, private_network: None) -> NetworkDriver:
        """The driver under test; take ``private_network`` first."""
        raise NotImplementedError

    @pytest.fixture
    def network(self) -> Network:
        """The network the tests create."""
        pool = Subnet(subnet=self.subnet, gateway=self.subnet.network_address + 1)
        return Network(id="ab" * 32, name="conformance", subnets=(pool,), options=self.options)

    @pytest.fixture
    def sandboxes(self, driver: NetworkDriver, tmp_path: Path) -> Iterator[list[Path]]:
        """Two network namespaces with nothing but loopback."""
        if "sandbox" not in driver.capabilities:
            pytest.skip(f"network driver {driver.context.name} does not claim sandbox")
        link_up("lo")
        paths = [tmp_path / "sandbox-1", tmp_path / "sandbox-2"]
        for path in paths:
            _make_sandbox(path)
        yield paths
        for path in paths:
            kernel.umount(path, kernel.MNT_DETACH)

    def endpoint(self, number: int) -> Endpoint:
        """The ``number``-th endpoint: address .10 + number."""
        address = IPv4Interface((self.subnet.network_address + 10 + number, self.subnet.prefixlen))
        return Endpoint(id=f"{number:064x}", network_id="ab" * 32, container_id=f"{number + 100:064x}", ipv4=address)

    def test_networks_come_and_go_without_a_trace(self, driver: NetworkDriver, network: Network) -> None:
        """Creating and deleting twice each; the namespace's links are what they were."""
        before = links()
        driver.create_network(network)
        driver.create_network(network)
        driver.delete_network(network.id)
        driver.delete_network(network.id)
        assert links() == before

    def test_a_joined_sandbox_has_the_interface_with_its_address(
        self, driver: NetworkDriver, network: Network, sandboxes: list[Path]
    ) -> None:
        """Name, address and MAC are inside; after `leave` they are not."""
        driver.create_network(network)
        endpoint = driver.create_endpoint(network, self.endpoint(1))
        joined = driver.join(network, endpoint, sandboxes[0], interface="eth0")
        if endpoint.ipv4 is not None and joined.interface:
            assert joined.interface in kernel.in_namespace(sandboxes[0], links)
            assert kernel.in_namespace(sandboxes[0], lambda: address_of("eth0")) == str(endpoint.ipv4.ip)
        driver.leave(network.id, endpoint.id, sandboxes[0])
        driver.leave(network.id, endpoint.id, sandboxes[0])
        assert kernel.in_namespace(sandboxes[0], links) <= {"lo"}
        driver.delete_endpoint(network.id, endpoint.id)
        driver.delete_endpoint(network.id, endpoint.id)
        driver.delete_network(network.id)

    def test_sandboxes_of_one_network_reach_each_other(
        self, driver: NetworkDriver, network: Network, sandboxes: list[Path]
    ) -> None:
        """TCP from one to the other by address."""
        driver.create_network(network)
        endpoints = [driver.create_endpoint(network, self.endpoint(number)) for number in (1, 2)]
        joined = [
            driver.join(network, endpoint, sandbox, interface="eth0")
            for endpoint, sandbox in zip(endpoints, sandboxes, strict=True)
        ]
        if not all(result.interface for result in joined):
            pytest.skip(f"network driver {driver.context.name} connects nothing")
        assert endpoints[0].ipv4 is not None
        server = kernel.in_namespace(sandboxes[0], lambda: socket.create_server(("0.0.0.0", 7000)))
        target = (str(endpoints[0].ipv4.ip), 7000)
        client = kernel.in_namespace(sandboxes[1], lambda: socket.create_connection(target, timeout=5))
        with server, client:
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(5) == b"hello"
        for endpoint, sandbox in zip(endpoints, sandboxes, strict=True):
            driver.leave(network.id, endpoint.id, sandbox)
            driver.delete_endpoint(network.id, endpoint.id)
        driver.delete_network(network.id)

    def test_a_published_port_answers_and_conflicts(
        self, driver: NetworkDriver, network: Network, sandboxes: list[Path]
    ) -> None:
        """From the host by loopback; a second user of the host port is refused, and free again after `unpublish`."""
        if "publish" not in driver.capabilities:
            with pytest.raises(NotSupported):
                driver.publish(network, self.endpoint(1), [])
            return
        driver.create_network(network)
        endpoints = [driver.create_endpoint(network, self.endpoint(number)) for number in (1, 2)]
        for endpoint, sandbox in zip(endpoints, sandboxes, strict=True):
            driver.join(network, endpoint, sandbox, interface="eth0")
        wanted = PublishedPort(container_port=80, protocol="tcp", host_ip="0.0.0.0", host_port=18080)
        assert driver.publish(network, endpoints[0], [wanted]) == (wanted,)
        server = kernel.in_namespace(sandboxes[0], lambda: socket.create_server(("0.0.0.0", 80)))
        with server, socket.create_connection(("127.0.0.1", 18080), timeout=5) as client:
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"hi")
                assert client.recv(2) == b"hi"
        with pytest.raises(Conflict, match="port is already allocated"):
            driver.publish(network, endpoints[1], [wanted])
        driver.unpublish(network.id, endpoints[0].id)
        driver.unpublish(network.id, endpoints[0].id)
        chosen = driver.publish(
            network, endpoints[1], [wanted, PublishedPort(container_port=81, protocol="tcp", host_ip="", host_port=0)]
        )
        assert chosen[0] == wanted
        assert chosen[1].host_port > 0
        driver.unpublish(network.id, endpoints[1].id)
        for endpoint, sandbox in zip(endpoints, sandboxes, strict=True):
            driver.leave(network.id, endpoint.id, sandbox)
            driver.delete_endpoint(network.id, endpoint.id)
        driver.delete_network(network.id)

    def test_a_vanished_sandbox_can_still_be_left(
        self, driver: NetworkDriver, network: Network, sandboxes: list[Path]
    ) -> None:
        """After a crash the namespace may be gone."""
        driver.create_network(network)
        endpoint = driver.create_endpoint(network, self.endpoint(1))
        driver.join(network, endpoint, sandboxes[0], interface="eth0")
        gone = sandboxes[0].with_name("gone")
        driver.leave(network.id, endpoint.id, gone)
        driver.delete_endpoint(network.id, endpoint.id)
        driver.delete_network(network.id)

    def test_restore_with_nothing_removes_leftovers(self, driver: NetworkDriver, network: Network) -> None:
        """What a crash left behind goes when nothing should exist."""
        before = links()
        driver.create_network(network)
        driver.restore([], [])
        assert links() == before
