"""macvlan and ipvlan networks from the user's chair, on a veth of the test's network namespace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from harness import Client


@pytest.fixture
def parent(daemon: object) -> Iterator[str]:
    """A link of the host whose other end has 192.0.2.1, in a namespace of its own."""
    for command in (
        "ip netns add mvpeer",
        "ip link add mvpar0 type veth peer name peer0 netns mvpeer",
        "ip link set mvpar0 up",
        "ip -n mvpeer address add 192.0.2.1/24 dev peer0",
        "ip -n mvpeer link set peer0 up",
    ):
        subprocess.run(command.split(), check=True)
    yield "mvpar0"
    subprocess.run(["ip", "link", "delete", "mvpar0"], check=True)
    subprocess.run(["ip", "netns", "delete", "mvpeer"], check=True)


@pytest.fixture
def network(cli: Client, parent: str, name: str) -> Iterator[str]:
    text = f"{name[:40]}-n"
    cli("network", "create", "-d", "macvlan", "--subnet", "192.0.2.0/24", "--gateway", "192.0.2.1",
        "-o", f"parent={parent}", text)  # fmt: skip
    yield text
    for container in cli("ps", "-aq", "--filter", f"network={text}").out.split():
        cli("rm", "-f", container)
    cli("network", "rm", text)


def test_containers_have_a_mac_of_their_own_and_reach_the_parents_network(cli: Client, network: str) -> None:
    cli("run", "-d", "--name", "mv1", "--network", network, "--ip", "192.0.2.10", "bb", "sleep", "300")
    cli("run", "-d", "--name", "mv2", "--network", network, "--ip", "192.0.2.11", "bb", "sleep", "300")

    assert cli("exec", "mv1", "ping", "-c", "1", "-W", "2", "192.0.2.1").code == 0
    assert cli("exec", "mv1", "ping", "-c", "1", "-W", "2", "mv2").code == 0  # by name, as on any user network
    inside = cli("exec", "mv1", "cat", "/sys/class/net/eth0/address").out.strip()
    assert inside == cli.inspect("mv1")["NetworkSettings"]["Networks"][network]["MacAddress"]
    seen = subprocess.run("ip -n mvpeer neighbour".split(), capture_output=True, text=True, check=True).stdout
    assert f"192.0.2.10 dev peer0 lladdr {inside}" in seen
    assert "default via 192.0.2.1" in cli("exec", "mv1", "ip", "route").out


def test_a_chosen_mac_address_is_the_links(cli: Client, network: str) -> None:
    mac = "02:11:22:33:44:55"
    shown = cli("run", "--rm", "--network", network, "--mac-address", mac, "bb", "cat", "/sys/class/net/eth0/address")

    assert shown.out.strip() == mac


def test_a_parent_that_cannot_be_is_explained(cli: Client) -> None:
    result = cli("network", "create", "-d", "macvlan", "--subnet", "192.0.3.0/24", "-o", "parent=nosuch0", "x",
                 check=False)  # fmt: skip

    assert result.code == 1
    assert "invalid subinterface vlan name nosuch0, example formatting is eth0.10" in result.err


def test_a_mode_that_is_none_is_explained(cli: Client, parent: str) -> None:
    for driver, option in (("macvlan", "macvlan_mode"), ("ipvlan", "ipvlan_mode")):
        result = cli("network", "create", "-d", driver, "--subnet", "192.0.3.0/24", "-o", f"parent={parent}",
                     "-o", f"{option}=zz", "x", check=False)  # fmt: skip
        assert result.code == 1
        assert f"requested {driver} mode 'zz' is not valid" in result.err
