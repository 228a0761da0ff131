"""Networks from the user's chair: addresses, published ports from every side, conflicts, isolation."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import urllib.request

import pytest
from harness import Client, connects, wait_for

SERVE = ("sh", "-c", "echo served > /var/www/index.html; exec httpd -f -p 80 -h /var/www")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def test_a_container_has_an_address_on_the_default_bridge(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sleep", "300")
    settings = cli.inspect(name)["NetworkSettings"]

    inside = cli("exec", name, "ip", "-o", "-4", "addr", "show", "eth0").out
    network = settings["Networks"]["bridge"]

    assert network["IPAddress"] in inside
    assert network["MacAddress"] in cli("exec", name, "cat", "/sys/class/net/eth0/address").out
    assert f"default via {network['Gateway']}" in cli("exec", name, "ip", "route").out
    assert network["IPAddress"] in cli("exec", name, "cat", "/etc/hosts").out


def test_containers_of_one_network_reach_each_other_by_address(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", *SERVE)
    address = cli.inspect(name)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]

    assert cli("run", "--rm", "bb", "sh", "-c", f"sleep 0.2; wget -qO- http://{address}").out == "served\n"


def test_a_published_port_answers_from_every_side(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "-p", "8080:80", "bb", *SERVE)
    gateway = cli.inspect(name)["NetworkSettings"]["Networks"]["bridge"]["Gateway"]
    wait_for(lambda: connects("127.0.0.1", 8080), "the server")

    assert get("http://127.0.0.1:8080/") == "served\n"
    assert get(f"http://{gateway}:8080/") == "served\n"
    if socket.has_ipv6:
        assert get("http://[::1]:8080/") == "served\n"
    assert cli("exec", name, "wget", "-qO-", f"http://{gateway}:8080").out == "served\n"
    assert cli("run", "--rm", "bb", "wget", "-qO-", f"http://{gateway}:8080").out == "served\n"
    assert "0.0.0.0:8080->80/tcp" in cli("ps", "--format", "{{.Ports}}", "--filter", f"name={name}").out
    assert "80/tcp -> 0.0.0.0:8080" in cli("port", name).out
    cli("stop", "-t", "0", name)
    wait_for(lambda: not connects("127.0.0.1", 8080), "the port to close")


def test_a_host_port_serves_one_container_only(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "-p", "8081:80", "bb", "sleep", "300")

    result = cli("run", "-d", "--name", f"{name}-2", "-p", "8081:80", "bb", "sleep", "300", check=False)

    assert result.code == 125
    assert "port is already allocated" in result.err
    cli("rm", "-f", name)
    cli("start", f"{name}-2")
    cli("rm", "-f", f"{name}-2")


def test_a_port_of_another_process_is_respected(cli: Client, name: str) -> None:
    with socket.create_server(("0.0.0.0", 8082)):
        result = cli("run", "-d", "--name", name, "-p", "8082:80", "bb", "sleep", "300", check=False)

    assert result.code == 125
    assert "address already in use" in result.err


def test_ports_can_be_chosen_by_the_engine(cli: Client, name: str) -> None:
    cli(
        "run",
        "-d",
        "--name",
        name,
        "-P",
        "--expose",
        "80",
        "-p",
        "127.0.0.1::81",
        "-p",
        "8090-8092:90-92",
        "bb",
        *SERVE,
    )

    shown = cli("port", name).out
    match = re.search(r"^80/tcp -> 0\.0\.0\.0:(\d+)$", shown, re.MULTILINE)

    assert match
    wait_for(lambda: connects("127.0.0.1", int(match[1])), "the server")
    assert get(f"http://127.0.0.1:{match[1]}/") == "served\n"
    assert re.search(r"^81/tcp -> 127\.0\.0\.1:\d+$", shown, re.MULTILINE)
    assert "92/tcp -> 0.0.0.0:8092" in shown


def test_none_and_host_are_what_they_say(cli: Client) -> None:
    assert cli("run", "--rm", "--network", "none", "bb", "ls", "/sys/class/net").out.split() == ["lo"]
    ours = socket.if_nameindex()
    inside = cli("run", "--rm", "--network", "host", "bb", "ls", "/sys/class/net").out.split()
    assert {name for _, name in ours if not name.startswith(("veth", "v"))} <= set(inside)


def test_a_container_can_share_the_network_of_another(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", *SERVE)

    shared = cli("run", "--rm", "--network", f"container:{name}", "bb", "sh", "-c", "sleep 0.2; wget -qO- 127.0.0.1")

    assert shared.out == "served\n"


def test_user_networks_are_isolated_from_each_other(cli: Client, name: str) -> None:
    first, second = f"{name}-a", f"{name}-b"
    cli("network", "create", "--subnet", "10.77.1.0/24", first)
    cli("network", "create", "--subnet", "10.77.2.0/24", second)
    try:
        cli("run", "-d", "--name", name, "--network", first, "--ip", "10.77.1.77", "bb", *SERVE)
        probe = ("bb", "ping", "-c", "1", "-W", "2", "10.77.1.77")
        assert cli("run", "--rm", "--network", first, *probe).code == 0
        assert cli("run", "--rm", "--network", second, *probe, check=False).code == 1
        assert "10.77.1.77/24" in cli("network", "inspect", first).out
        refused = cli("network", "rm", first, check=False)
        assert refused.code == 1
        assert "has active endpoints" in refused.err
    finally:
        cli("rm", "-f", name, check=False)
        cli("network", "rm", first, second)


def test_a_running_container_can_be_connected_and_disconnected(cli: Client, name: str) -> None:
    network = f"{name}-n"
    cli("network", "create", network)
    try:
        cli("run", "-d", "--name", name, "bb", "sleep", "300")
        cli("network", "connect", network, name)
        assert cli("exec", name, "ls", "/sys/class/net").out.split() == ["eth0", "eth1", "lo"]
        cli("network", "disconnect", network, name)
        assert cli("exec", name, "ls", "/sys/class/net").out.split() == ["eth0", "lo"]
    finally:
        cli("rm", "-f", name, check=False)
        cli("network", "rm", network)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("network", "create", "-d", "nosuch", "x"), 'plugin "nosuch" not found'),
        (("network", "create", "--subnet", "10.0.0.0/99", "x"), "invalid"),
        (("network", "rm", "bridge"), "bridge is a pre-defined network and cannot be removed"),
        (("network", "inspect", "nosuch"), ("network nosuch not found", "No such network: nosuch")),
    ],
)
def test_network_mistakes_are_explained(cli: Client, args: tuple[str, ...], words: str | tuple[str, ...]) -> None:
    result = cli(*args, check=False)

    assert result.code == 1
    assert any(text in result.err for text in ([words] if isinstance(words, str) else words)), result


def test_an_address_can_be_asked_for_in_a_subnet_the_user_chose(cli: Client, name: str) -> None:
    network = f"{name[:40]}-n"
    cli("network", "create", network)
    try:
        subnet = json.loads(cli("network", "inspect", network).out)[0]["IPAM"]["Config"][0]["Subnet"]
        address = str(ipaddress.ip_network(subnet)[77])
        result = cli("run", "--rm", "--network", network, "--ip", address, "bb", "true", check=False)
        assert result.code == 125
        assert "supported only when connecting to networks with user configured subnets" in result.err
    finally:
        cli("network", "rm", network)


def test_networks_can_be_made_from_a_configuration(cli: Client, name: str) -> None:
    paper, made = f"{name[:40]}-c", f"{name[:40]}-n"
    cli("network", "create", "--config-only", "--subnet", "10.74.0.0/24", "--label", "kind=paper", paper)
    try:
        cli("network", "create", "--config-from", paper, made)
        body = json.loads(cli("network", "inspect", made).out)[0]
        assert body["IPAM"]["Config"][0]["Subnet"] == "10.74.0.0/24"
        assert body["ConfigFrom"] == {"Network": paper}
        assert body["Driver"] == "bridge"
        assert json.loads(cli("network", "inspect", paper).out)[0]["ConfigOnly"] is True
        refused = cli("network", "rm", paper, check=False)
        assert refused.code == 1
        assert f'configuration network "{paper}" is in use' in refused.err
        assert cli("run", "--rm", "--network", made, "bb", "ip", "-4", "addr").out.count("10.74.0.") >= 1
        cli("network", "rm", made)
    finally:
        cli("network", "rm", paper)


def test_the_gateway_follows_priority_on_live_connect(cli: Client, name: str, target: str) -> None:
    if target != "engine":
        pytest.skip("--gw-priority is Docker 28's")
    low, high = f"{name[:30]}-l", f"{name[:30]}-h"
    cli("network", "create", "--subnet", "10.73.1.0/24", low)
    cli("network", "create", "--subnet", "10.73.2.0/24", high)
    try:
        cli("run", "-d", "--name", name, "--network", low, "-p", "8083:80", "bb", *SERVE)
        cli("network", "connect", "--gw-priority", "5", high, name)
        assert "default via 10.73.2.1" in cli("exec", name, "ip", "route").out
        assert get("http://127.0.0.1:8083/") == "served\n"
        cli("network", "disconnect", high, name)
        assert "default via 10.73.1.1" in cli("exec", name, "ip", "route").out
        assert get("http://127.0.0.1:8083/") == "served\n"
    finally:
        cli("rm", "-f", name, check=False)
        cli("network", "rm", low, high)


def test_a_pool_that_is_exhausted_says_so_and_recovers(cli: Client, name: str) -> None:
    network = f"{name[:40]}-n"
    cli("network", "create", "--subnet", "10.72.0.0/30", network)
    try:
        cli("run", "-d", "--name", name, "--network", network, "bb", "sleep", "300")
        full = cli("run", "--rm", "--network", network, "bb", "true", check=False)
        assert full.code == 125
        assert "no available" in full.err
        cli("rm", "-f", name)
        assert cli("run", "--rm", "--network", network, "bb", "true").code == 0
    finally:
        cli("rm", "-f", name, check=False)
        cli("network", "rm", network)
