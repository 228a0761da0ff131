"""macvlan on this kernel: modes, who reaches whom, parents, and the words for what cannot be."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from engine import kernel
from engine.drivers import DriverContext
from engine.drivers.network import Endpoint, Network, Subnet
from engine.errors import Forbidden, InvalidParameter, NotSupported
from engine.netlink import Netlink
from engine.networks import sandbox
from engine_network_macvlan.driver import MacvlanDriver

pytestmark = pytest.mark.root


class Lab:
    def __init__(self, driver: MacvlanDriver, root: Path) -> None:
        self.driver, self.root = driver, root
        self.paths: list[Path] = []

    def network(self, number: int = 1, *, internal: bool = False, **options: str) -> Network:
        pool = Subnet(subnet=ip_network(f"192.0.{number}.0/24"), gateway=ip_address(f"192.0.{number}.1"))
        options = {"parent": "eth7", **options}
        network = Network(id=f"{number:02x}" * 32, name="n", subnets=(pool,), internal=internal, options=options)
        self.driver.create_network(network)
        return network

    def container(self, network: Network, number: int) -> Path:
        path = self.root / "netns" / f"c{number}-{network.id[:4]}"
        sandbox.create(path)
        self.paths.append(path)
        address = ip_interface(f"{network.subnets[0].subnet.network_address + number}/24")
        endpoint = Endpoint(id=f"{number:064x}", network_id=network.id, container_id="c", ipv4=address)
        endpoint = self.driver.create_endpoint(network, endpoint)
        self.driver.join(network, endpoint, path, interface="eth0")
        return path


@pytest.fixture
def lab(private_network: None, driver_context: Callable[..., DriverContext], tmp_path: Path) -> Iterator[Lab]:
    """The host's eth7 leads to a neighbour at 192.0.1.1."""
    made = Lab(MacvlanDriver(driver_context("macvlan")), tmp_path)
    outside = tmp_path / "netns" / "outside"
    sandbox.create(outside)
    for command in (
        f"ip link add eth7 type veth peer name up netns {outside}",
        "ip link set eth7 up",
        f"nsenter --net={outside} ip address add 192.0.1.1/24 dev up",
        f"nsenter --net={outside} ip link set dev up up",
    ):
        subprocess.run(command.split(), check=True)
    made.paths.append(outside)
    yield made
    made.driver.close()
    for path in made.paths:
        sandbox.delete(path)


def reaches(path: Path, target: Path, address: str) -> bool:
    server = kernel.in_namespace(target, lambda: socket.create_server(("0.0.0.0", 0)))
    with server:
        try:
            kernel.in_namespace(
                path, lambda: socket.create_connection((address, server.getsockname()[1]), timeout=2)
            ).close()
        except OSError:
            return False
        return True


def mac(path: Path) -> str:
    def read() -> str:
        with Netlink() as inside:
            link = inside.link("eth0")
            assert link is not None
            return link.mac

    return kernel.in_namespace(path, read)


def test_a_container_is_a_machine_on_the_parents_network(lab: Lab) -> None:
    network = lab.network()
    first, second = lab.container(network, 10), lab.container(network, 11)
    outside = lab.paths[0]

    assert reaches(first, outside, "192.0.1.1")
    assert reaches(outside, first, "192.0.1.10")
    assert reaches(first, second, "192.0.1.11")
    neighbours = subprocess.run(
        ["nsenter", f"--net={outside}", "ip", "neighbour"], capture_output=True, text=True, check=True
    ).stdout
    assert mac(first) != mac(second)
    assert f"192.0.1.10 dev up lladdr {mac(first)}" in neighbours
    routes = subprocess.run(["nsenter", f"--net={first}", "ip", "route"], capture_output=True, text=True, check=True)
    assert "default via 192.0.1.1 dev eth0" in routes.stdout


def test_private_containers_do_not_reach_each_other(lab: Lab) -> None:
    network = lab.network(macvlan_mode="private")
    first, second = lab.container(network, 10), lab.container(network, 11)

    assert reaches(first, lab.paths[0], "192.0.1.1")
    assert not reaches(first, second, "192.0.1.11")


def test_networks_may_share_a_parent_but_not_with_passthru(lab: Lab) -> None:
    lab.network(1)
    lab.network(2)
    with pytest.raises(Forbidden, match=r"cannot use mode passthru, macvlan network .* is already using parent"):
        lab.network(3, macvlan_mode="passthru")


def test_passthru_has_the_parent_for_itself(lab: Lab) -> None:
    network = lab.network(1, macvlan_mode="passthru")
    lab.container(network, 10)
    with pytest.raises(Forbidden, match="in mode passthru"):
        lab.network(2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parent": "nosuch0"}, "invalid subinterface vlan name nosuch0, example formatting is eth0.10"),
        ({"parent": "nosuch0.10"}, "-o parent interface was not found on the host: nosuch0"),
        ({"parent": "eth7.4095"}, "vlan id must be between 1-4094, received: 4095"),
        ({"parent": "eth7.x"}, "vlan id must be between 1-4094, received: x"),
        ({"parent": "lo"}, "loopback interface is not a valid macvlan parent link"),
        (
            {"macvlan_mode": "zz"},
            "requested macvlan mode 'zz' is not valid, 'bridge' mode is the macvlan driver default",
        ),
    ],
)
def test_mistakes_are_explained(lab: Lab, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        lab.network(**options)
    assert str(caught.value) == words


def test_a_vlan_is_made_and_removed_or_its_absence_is_named(lab: Lab) -> None:
    """Here the kernel decides; integration/vm/networks.sh runs this where there is 802.1Q."""
    try:
        network = lab.network(1, parent="eth7.100")
    except NotSupported as error:
        assert "8021q" in str(error)  # noqa: PT017 - either outcome is right
        return
    outside = lab.paths[0]
    for command in (
        "ip link add link up name up.100 type vlan id 100",
        "ip address add 192.0.1.77/24 dev up.100",
        "ip address delete 192.0.1.1/24 dev up",
        "ip link set dev up.100 up",
    ):
        subprocess.run(["nsenter", f"--net={outside}", *command.split()], check=True)
    assert reaches(lab.container(network, 10), outside, "192.0.1.77")
    same = lab.network(2, parent="eth7.100")
    with Netlink() as netlink:
        lab.driver.delete_network(network.id)
        assert netlink.link("eth7.100")  # the other network is on it
        lab.driver.delete_network(same.id)
        assert netlink.link("eth7.100") is None
        subprocess.run("ip link add link eth7 name eth7.200 type vlan id 200".split(), check=True)
        lab.driver.delete_network(lab.network(3, parent="eth7.200").id)
        assert netlink.link("eth7.200")  # an administrator's
