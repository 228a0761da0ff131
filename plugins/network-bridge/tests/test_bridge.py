"""The bridge driver on this kernel, in a network namespace of the test's own: who reaches whom, and what stays behind.

The lab is a host (the test's namespace), containers (sandboxes), and a world outside connected by a veth pair.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from engine import kernel
from engine.drivers import DriverContext
from engine.drivers.network import Endpoint, Network, PublishedPort, Subnet
from engine.errors import Conflict
from engine.netlink import Netlink
from engine.networks import sandbox
from engine.testing.networks import link_up
from engine_network_bridge.driver import BridgeDriver
from engine_network_bridge.watch import count_rules

pytestmark = pytest.mark.root

OPTION = "com.docker.network.bridge."
HOST, OUTSIDE = "198.51.100.1", "198.51.100.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Lab:
    def __init__(self, context: DriverContext, root: Path) -> None:
        self.context, self.root = context, root
        self.driver = BridgeDriver(context)
        self.sandboxes: dict[str, Path] = {}
        self.networks: dict[str, Network] = {}
        self.endpoints: dict[str, tuple[Endpoint, tuple[PublishedPort, ...]]] = {}
        self.servers: list[socket.socket] = []
        self.threads: list[threading.Thread] = []

    def network(self, number: int = 1, *, internal: bool = False, ipv6: bool = False, **options: str) -> Network:
        pools = [Subnet(subnet=ip_network(f"10.{number}.0.0/24"), gateway=ip_address(f"10.{number}.0.1"))]
        if ipv6:
            pools.append(Subnet(subnet=ip_network(f"fd00:{number}::/64"), gateway=ip_address(f"fd00:{number}::1")))
        network = Network(
            id=f"{number:02x}" * 32,
            name=f"n{number}",
            subnets=tuple(pools),
            internal=internal,
            ipv6=ipv6,
            options={OPTION + key: value for key, value in options.items()},
        )
        self.driver.create_network(network)
        self.networks[network.id] = network
        return network

    def container(self, name: str, network: Network) -> Endpoint:
        number = len(self.endpoints) + 2
        path = self.sandboxes[name] = self.root / "netns" / name
        sandbox.create(path)
        four, six = network.subnets[0].subnet, network.subnets[1].subnet if network.ipv6 else None
        endpoint = Endpoint(
            id=f"{number:064x}",
            network_id=network.id,
            container_id=name,
            ipv4=ip_interface(f"{four.network_address + number}/24"),
            ipv6=ip_interface(f"{six.network_address + number}/64") if six else None,
        )
        endpoint = self.driver.create_endpoint(network, endpoint)
        self.driver.join(network, endpoint, path, interface="eth0")
        self.endpoints[name] = (endpoint, ())
        return endpoint

    def publish(self, name: str, host_port: int, host_ip: str = "", protocol: str = "tcp") -> None:
        endpoint, before = self.endpoints[name]
        port = PublishedPort(container_port=80, protocol=protocol, host_ip=host_ip, host_port=host_port)
        published = self.driver.publish(self.networks[endpoint.network_id], endpoint, [port])
        self.endpoints[name] = (endpoint, before + published)

    def serve(self, where: str, port: int = 80) -> None:
        """A server that tells each client the address it sees."""
        family = socket.AF_INET6 if where != "outside" and self.endpoints[where][0].ipv6 else socket.AF_INET
        dual = family == socket.AF_INET6
        server = kernel.in_namespace(
            self.sandboxes[where], lambda: socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        )
        self.servers.append(server)

        def loop() -> None:
            while True:
                try:
                    client, peer = server.accept()
                except OSError:
                    return
                with client:
                    client.sendall(peer[0].removeprefix("::ffff:").encode())

        self.threads.append(threading.Thread(target=loop))
        self.threads[-1].start()

    def ask(self, where: str, address: str, port: int = 80, *, timeout: float = 5) -> str | None:
        """The address the server saw; None when the connection failed (dropped or refused).

        The patience outlives a SYN's retransmission: IPv6 on links just made needs up to a second.
        """

        def fetch() -> str | None:
            try:
                with socket.create_connection((address, port), timeout=timeout) as client:
                    return client.recv(100).decode() or None
            except OSError:
                return None

        return fetch() if where == "host" else kernel.in_namespace(self.sandboxes[where], fetch)

    def outside(self) -> None:
        """A neighbour of the host, which (ill-behaved) routes to the containers through it."""
        path = self.sandboxes["outside"] = self.root / "netns" / "outside"
        sandbox.create(path)
        ip("link", "add", "uplink", "type", "veth", "peer", "name", "up", "netns", str(path))
        ip("address", "add", f"{HOST}/24", "dev", "uplink")
        ip("-6", "address", "add", "fd99::1/64", "dev", "uplink", "nodad")
        ip("link", "set", "uplink", "up")
        inside = ("nsenter", f"--net={path}", "ip")
        for command in (
            f"address add {OUTSIDE}/24 dev up",
            "-6 address add fd99::2/64 dev up nodad",
            "link set dev up up",
            f"route add 10.0.0.0/8 via {HOST}",
        ):
            subprocess.run([*inside, *command.split()], check=True, capture_output=True)

    def links(self) -> set[str]:
        with Netlink() as netlink:
            return {link.name for link in netlink.links() if link.name not in ("lo", "uplink", "ifb0", "ifb1")}

    def stop(self, name: str) -> None:
        endpoint, _ = self.endpoints.pop(name)
        path = self.sandboxes.pop(name)
        self.driver.unpublish(endpoint.network_id, endpoint.id)
        sandbox.delete(path)
        self.driver.leave(endpoint.network_id, endpoint.id, path)
        self.driver.delete_endpoint(endpoint.network_id, endpoint.id)

    def rules(self) -> str:
        name = f"engine-{self.context.instance}"
        return subprocess.run(["nft", "list", "table", "inet", name], check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        for server in self.servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
        for thread in self.threads:
            thread.join()
        child = self.driver._holder._child
        self.driver._holder.restore({})
        self.driver.close()
        for path in self.sandboxes.values():
            sandbox.delete(path)
        if child:
            os.waitpid(child, 0)


@pytest.fixture
def lab(private_network: None, driver_context: Callable[..., DriverContext], tmp_path: Path) -> Iterator[Lab]:
    link_up("lo")
    lab = Lab(driver_context("bridge"), tmp_path)
    yield lab
    lab.close()


@pytest.mark.parametrize("filtering", ["0", "1"], ids=["bridges unfiltered", "bridges filtered"])
def test_a_published_port_is_reached_from_everywhere(lab: Lab, filtering: str) -> None:
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text(filtering)
    one, two = lab.network(1), lab.network(2)
    lab.outside()
    lab.container("web", one)
    lab.container("sibling", one)
    lab.container("stranger", two)
    lab.serve("web")
    lab.publish("web", 8080)
    assert lab.ask("host", "127.0.0.1", 8080) == "10.1.0.1"
    assert lab.ask("host", HOST, 8080) == HOST
    assert lab.ask("host", "::1", 8080) == "10.1.0.1"
    assert lab.ask("web", "10.1.0.1", 8080) == "10.1.0.1", "hairpin"
    assert lab.ask("sibling", HOST, 8080) == "10.1.0.1"
    assert lab.ask("stranger", HOST, 8080) == "10.2.0.4"
    assert lab.ask("outside", HOST, 8080) == OUTSIDE, "the source address is kept"
    assert lab.ask("outside", "fd99::1", 8080) == "10.1.0.1", "IPv6 goes through the holder"
    lab.stop("web")
    assert lab.ask("host", "127.0.0.1", 8080, timeout=0.4) is None
    assert lab.ask("outside", HOST, 8080, timeout=0.4) is None


def test_networks_are_isolated_and_nothing_outside_reaches_unpublished_ports(lab: Lab) -> None:
    lab.outside()
    one, two = lab.network(1), lab.network(2)
    lab.container("web", one)
    lab.container("sibling", one)
    lab.container("stranger", two)
    lab.serve("web")
    assert lab.ask("sibling", "10.1.0.2") == "10.1.0.3"
    assert lab.ask("host", "10.1.0.2") == "10.1.0.1"
    assert lab.ask("stranger", "10.1.0.2", timeout=0.4) is None
    assert lab.ask("outside", "10.1.0.2", timeout=0.4) is None
    lab.publish("web", 8080)
    assert lab.ask("outside", "10.1.0.2", timeout=0.4) is None, "a published port is open at the host's address only"


def test_containers_go_out_with_the_hosts_address(lab: Lab) -> None:
    lab.outside()
    lab.container("inside", lab.network(1))
    lab.container("routed", lab.network(2, enable_ip_masquerade="false"))
    lab.serve("outside", 80)
    assert lab.ask("inside", OUTSIDE) == HOST
    assert lab.ask("routed", OUTSIDE) == "10.2.0.3"


def test_an_internal_network_talks_within_only(lab: Lab) -> None:
    lab.outside()
    inner = lab.network(1, internal=True)
    lab.container("one", inner)
    lab.container("two", inner)
    lab.container("web", lab.network(2))
    for name in ("one", "outside", "web"):
        lab.serve(name)
    lab.publish("web", 8080)
    assert lab.ask("two", "10.1.0.2") == "10.1.0.3"
    assert lab.ask("two", OUTSIDE, timeout=0.4) is None
    kernel.in_namespace(lab.sandboxes["two"], lambda: ip("route", "add", "default", "via", "10.1.0.1"))
    assert lab.ask("two", OUTSIDE, timeout=0.4) is None, "not even with a route of its own"
    assert lab.ask("two", "10.2.0.4", timeout=0.4) is None


@pytest.mark.parametrize("filtering", ["0", "1"], ids=["bridges unfiltered", "bridges filtered"])
def test_without_icc_containers_do_not_reach_each_other(lab: Lab, filtering: str) -> None:
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text(filtering)
    network = lab.network(1, enable_icc="false")
    lab.container("one", network)
    lab.container("two", network)
    lab.serve("one")
    assert lab.ask("two", "10.1.0.2", timeout=0.4) is None
    assert lab.ask("host", "10.1.0.2") == "10.1.0.1"


def test_a_port_on_loopback_is_not_reached_from_outside(lab: Lab) -> None:
    lab.outside()
    lab.container("web", lab.network(1))
    lab.serve("web")
    lab.publish("web", 8080, "127.0.0.1")
    assert lab.ask("host", "127.0.0.1", 8080) == "10.1.0.1"
    assert lab.ask("outside", HOST, 8080, timeout=0.4) is None
    assert lab.ask("host", HOST, 8080, timeout=0.4) is None


def test_ipv6_containers_are_published_on_ipv6(lab: Lab) -> None:
    lab.outside()
    network = lab.network(1, ipv6=True)
    lab.container("web", network)
    lab.container("sibling", network)
    lab.serve("web")
    lab.publish("web", 8080)
    assert lab.ask("outside", "fd99::1", 8080) == "fd99::2"
    assert lab.ask("sibling", "fd00:1::2") == "fd00:1::3"
    assert lab.ask("host", "::1", 8080) == "fd00:1::1"
    assert lab.ask("sibling", "fd99::1", 8080) == "fd00:1::1", "hairpin"
    lab.serve("outside", 81)
    assert lab.ask("sibling", OUTSIDE, 81) == HOST


def test_ports_in_use_are_conflicts_and_take_nothing(lab: Lab) -> None:
    network = lab.network(1)
    lab.container("web", network)
    lab.container("other", network)
    lab.publish("web", 8080)
    before = lab.rules()
    with pytest.raises(Conflict, match=r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"):
        lab.publish("other", 8080)
    with socket.create_server(("0.0.0.0", 9000)), pytest.raises(Conflict, match="9000/tcp: address already in use"):
        lab.publish("other", 9000)
    assert lab.rules() == before


def test_an_endpoint_configures_what_it_should(lab: Lab) -> None:
    endpoint = lab.container("web", lab.network(1))
    assert endpoint.mac == "02:42:0a:01:00:02"
    path = lab.sandboxes["web"]

    def look() -> str:
        return subprocess.run(["ip", "-o", "address"], check=True, capture_output=True, text=True).stdout

    shown = kernel.in_namespace(path, look)
    assert "eth0    inet 10.1.0.2/24 brd 10.1.0.255" in shown
    assert "eth0    inet6" not in shown, "no link-local address in a network without IPv6"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"


def test_a_new_engine_takes_over_without_interruption_and_removes_leftovers(lab: Lab) -> None:
    kept, gone = lab.network(1), lab.network(2)
    lab.container("web", kept)
    lab.container("lost", kept)
    lab.container("old", gone)
    lab.serve("web")
    lab.publish("web", 8080)
    ip("link", "add", "foreign", "type", "bridge")
    connection = socket.create_connection(("127.0.0.1", 8080), timeout=5)
    child = lab.driver._holder._child
    lab.driver.close()
    lab.driver = BridgeDriver(lab.context)
    lab.driver._holder._child = child
    before = lab.links()
    lab.driver.restore([kept], [lab.endpoints["web"]])
    assert connection.recv(100) == b"10.1.0.1"
    connection.close()
    assert before - lab.links() > {"br-020202020202"}
    assert len(lab.links()) == 3, "bridge, veth of web, and the foreign bridge"
    assert lab.ask("host", "127.0.0.1", 8080) == "10.1.0.1"
    assert lab.ask("host", "::1", 8080) == "10.1.0.1"
    lab.container("third", kept)
    with pytest.raises(Conflict):
        lab.publish("third", 8080)


def test_a_deleted_bridge_and_a_flushed_rule_set_are_repaired(lab: Lab) -> None:
    network = lab.network(1)
    lab.container("web", network)
    lab.serve("web")
    lab.publish("web", 8080)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    lab.container("other", network)
    lab.publish("other", 8081)
    assert lab.ask("host", "127.0.0.1", 8080) == "10.1.0.1"
    ip("link", "delete", "br-010101010101")
    lab.driver.restore([network], [lab.endpoints["web"], lab.endpoints["other"]])
    assert lab.ask("host", "127.0.0.1", 8080) == "10.1.0.1"
    assert lab.ask("other", "10.1.0.2") == "10.1.0.3"


def test_nothing_is_left_when_everything_is_removed(lab: Lab) -> None:
    network = lab.network(1)
    for name in ("one", "two"):
        lab.container(name, network)
    lab.publish("one", 8080)
    lab.publish("two", 8080, protocol="udp")
    for name in ("one", "two"):
        lab.stop(name)
    lab.driver.delete_network(network.id)
    lab.driver.close()  # waits for the reaper, which looks once at each veth
    lab.driver = BridgeDriver(lab.context)
    lab.driver.restore([], [])
    assert lab.links() == set()
    assert "elements" not in lab.rules()


def test_the_default_bridge_is_docker0_unless_it_is_somebody_elses(lab: Lab) -> None:
    default = Network(id="ff" * 32, name="bridge", options={OPTION + "default_bridge": "true"})
    assert lab.driver.complete(default).options[OPTION + "name"] == "docker0"
    ip("link", "add", "docker0", "type", "bridge")
    name = lab.driver.complete(default).options[OPTION + "name"]
    assert name == f"br-{lab.context.instance}"
    with pytest.raises(Conflict):
        lab.network(1, name="lo")


@pytest.mark.parametrize("program", ["iptables-legacy", "iptables-nft"])
@pytest.mark.parametrize("chain", ["FORWARD", "DOCKER-USER"])
def test_an_iptables_that_drops_forwarding_lets_our_bridges_pass(lab: Lab, program: str, chain: str) -> None:
    def iptables(*arguments: str) -> str:
        return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout

    if chain == "DOCKER-USER":
        iptables("-N", chain)
        iptables("-A", "FORWARD", "-j", chain)
    iptables("-P", "FORWARD", "DROP")
    before = iptables("-S")
    lab.outside()
    network = lab.network(1)
    lab.container("web", network)
    lab.serve("web")
    lab.publish("web", 8080)
    assert lab.ask("outside", HOST, 8080) == OUTSIDE
    assert lab.ask("outside", "10.1.0.2", timeout=0.4) is None
    assert f"-A {chain} -i br-010101010101" in iptables("-S")
    lab.driver.delete_network(network.id)
    assert iptables("-S") == before


def test_a_flushed_rule_set_comes_back_by_itself(lab: Lab) -> None:
    network = lab.network()
    lab.container("a", network)
    lab.publish("a", 8080)
    before = lab.rules()

    subprocess.run(["nft", "flush", "ruleset"], check=True)
    deadline = time.monotonic() + 10
    while count_rules(f"engine-{lab.context.instance}") == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert lab.rules() == before


def test_published_ports_pass_the_administrators_chain(lab: Lab) -> None:
    """An nftables table of the administrator's own, before ours, has the last word about dropping."""
    lab.outside()
    network = lab.network()
    lab.container("a", network)
    lab.publish("a", 8080)
    lab.serve("a")
    assert lab.ask("outside", HOST, 8080) == OUTSIDE
    table = (
        "table inet mine {\n chain forward {\n type filter hook forward priority filter - 10;\n"
        f"meta l4proto tcp ct original proto-dst 8080 ip saddr {OUTSIDE} drop\n}}\n}}\n"
    )
    subprocess.run(["nft", "-f", "-"], input=table.encode(), check=True)
    assert lab.ask("outside", HOST, 8080, timeout=0.5) is None
