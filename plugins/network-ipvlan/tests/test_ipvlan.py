"""ipvlan: the words for what cannot be, and the feature named where the kernel lacks it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from engine import kernel
from engine.drivers import DriverContext
from engine.drivers.network import Endpoint, Network, Subnet
from engine.errors import Forbidden, InvalidParameter, NotSupported
from engine.networks import sandbox
from engine_network_ipvlan.driver import IpvlanDriver

pytestmark = pytest.mark.root


def network(number: int = 1, **options: str) -> Network:
    pool = Subnet(subnet=ip_network(f"192.0.{number}.0/24"), gateway=ip_address(f"192.0.{number}.1"))
    return Network(id=f"{number:02x}" * 32, name="n", subnets=(pool,), options={"parent": "eth7", **options})


@pytest.fixture
def driver(private_network: None, driver_context: Callable[..., DriverContext]) -> Iterator[IpvlanDriver]:
    subprocess.run("ip link add eth7 type veth peer name up".split(), check=True)
    subprocess.run("ip link set eth7 up".split(), check=True)
    made = IpvlanDriver(driver_context("ipvlan"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ipvlan_mode": "zz"}, "requested ipvlan mode 'zz' is not valid, 'l2' mode is the ipvlan driver default"),
        ({"ipvlan_flag": "zz"}, "requested ipvlan flag 'zz' is not valid, 'bridge' is the ipvlan driver default"),
        ({"parent": "nosuch0"}, "invalid subinterface vlan name nosuch0, example formatting is eth0.10"),
    ],
)
def test_mistakes_are_explained(driver: IpvlanDriver, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        driver.create_network(network(**options))
    assert str(caught.value) == words


def test_one_parent_has_one_mode(driver: IpvlanDriver) -> None:
    driver.create_network(network(1))
    driver.create_network(network(2))
    with pytest.raises(Forbidden, match="in another mode"):
        driver.create_network(network(3, ipvlan_mode="l3"))


def test_a_mac_address_cannot_be_chosen(driver: IpvlanDriver) -> None:
    with pytest.raises(InvalidParameter, match="custom MAC"):
        driver.create_endpoint(network(), Endpoint(id="1", network_id="n", container_id="c", mac="02:00:00:00:00:01"))


def test_layer_3_routes_through_the_link_or_the_kernel_lacks_it(driver: IpvlanDriver, tmp_path: Path) -> None:
    made = network(1, ipvlan_mode="l3")
    driver.create_network(made)
    path = tmp_path / "netns" / "c"
    sandbox.create(path)
    endpoint = Endpoint(id="1" * 64, network_id=made.id, container_id="c", ipv4=ip_interface("192.0.1.10/24"))
    try:
        driver.join(made, endpoint, path, interface="eth0")
    except NotSupported as error:
        assert "this kernel has no ipvlan links" in str(error)  # noqa: PT017 - either outcome is right
    else:
        routes = kernel.in_namespace(path, lambda: Path("/proc/thread-self/net/route").read_text().split("\n")[1:])
        assert any(line.split()[:3] == ["eth0", "00000000", "00000000"] for line in routes if line)
    finally:
        sandbox.delete(path)
