"""``engine explain``: the answer and the reason, for every way things can be in the way."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator

import pytest
from harness import Client, Daemon, Result, connects, wait_for

SERVE = ("sh", "-c", "echo served > /var/www/index.html; exec httpd -f -p 80 -h /var/www")


@pytest.fixture
def cli(daemon: Daemon, home: object, target: str) -> Client:
    if target != "engine":
        pytest.skip("dockerd explains nothing")
    return Client("engine", daemon, home)  # type: ignore[arg-type]


@pytest.fixture
def net(cli: Client) -> Iterator[str]:
    cli("network", "create", "--subnet", "10.76.0.0/24", "explained")
    yield "explained"
    for container in cli("ps", "-aq", "--filter", "name=ex-").out.split():
        cli("rm", "-f", container)
    cli("network", "rm", "explained")


def explain(cli: Client, *args: str) -> tuple[bool, dict[str, dict[str, object]], Result]:
    result = cli("explain", "--format", "json", *args, check=False)
    assert result.code in (0, 1), result
    answer = json.loads(result.out)
    assert answer["Reachable"] == (result.code == 0)
    return answer["Reachable"], {step["Check"]: step for step in answer["Steps"]}, result


def test_a_way_is_shown_station_by_station(cli: Client, net: str) -> None:
    cli("run", "-d", "--name", "ex-a", "--network", net, "bb", "sleep", "300")
    cli("run", "-d", "--name", "ex-b", "--network", net, "-p", "8077:80", "bb", *SERVE)
    wait_for(lambda: connects("127.0.0.1", 8077), "the server")

    yes, steps, _ = explain(cli, "ex-a", "ex-b:80")
    shown = cli("explain", "ex-a", "ex-b:80").out

    assert yes
    assert list(steps) == ["network", "name", "route", "bridge", "link", "firewall", "listener", "attempt"]
    assert "ex-b resolves to 10.76.0." in shown
    assert "ex-a -> ex-b at port 80/tcp: yes" in shown
    assert explain(cli, "host", "ex-b:80")[0]
    assert explain(cli, "--port", "8077")[0]

    yes, steps, _ = explain(cli, "ex-a", "ex-b:81")
    assert not yes
    assert "listening: 80" in str(steps["listener"]["Detail"])
    assert "refused" in str(steps["attempt"]["Detail"])


def test_what_is_in_the_way_is_named(cli: Client, net: str) -> None:
    cli("run", "-d", "--name", "ex-a", "--network", net, "bb", "sleep", "300")
    cli("run", "-d", "--name", "ex-b", "--network", net, "bb", "httpd", "-f", "-p", "127.0.0.1:80")
    cli("run", "-d", "--name", "ex-c", "bb", *SERVE)
    cli("create", "--name", "ex-d", "bb", "true")

    _, apart, _ = explain(cli, "ex-a", "ex-c:80")
    assert "networks are isolated" in str(apart["network"]["Detail"])
    assert apart["network"]["Fix"] == "engine network connect bridge ex-a"
    assert "is not running (created)" in str(explain(cli, "ex-a", "ex-d")[1]["container"]["Detail"])
    assert cli("explain", "ex-a", "nosuch", check=False).code == 1

    assert "its own loopback" in str(explain(cli, "ex-a", "ex-b:80")[1]["listener"]["Detail"])

    bridge = f"br-{json.loads(cli('network', 'inspect', net).out)[0]['Id'][:12]}"
    subprocess.run(["ip", "link", "set", bridge, "down"], check=True)
    yes, steps, _ = explain(cli, "ex-a", "ex-b:80")
    assert not yes
    assert steps["bridge"]["Fix"] == f"ip link set {bridge} up"
    subprocess.run(["ip", "link", "set", bridge, "up"], check=True)


def test_a_port_of_the_host_has_an_owner(cli: Client) -> None:
    assert "no container publishes" in str(explain(cli, "--port", "8078")[1]["port"]["Detail"])
    with socket.create_server(("127.0.0.1", 8078)):
        yes, steps, _ = explain(cli, "--port", "8078")
        assert yes
        assert "process" in str(steps["port"]["Detail"])


def test_a_policy_forbids_by_label_and_says_so(cli: Client, net: str) -> None:
    for name in ("web", "api"):
        cli("run", "-d", "--name", f"ex-{name}", "--label", f"role={name}", "--network", net, "bb", "sleep", "300")
    cli("network", "policy", "create", "--deny", "--to", "role=db", "ex-closed")
    cli("network", "policy", "create", "--allow", "--from", "role=api", "--to", "role=db", "ex-api")
    try:
        cli("run", "-d", "--name", "ex-db", "--label", "role=db", "--network", net, "bb", *SERVE)
        wait_for(lambda: explain(cli, "ex-api", "ex-db:80")[0], "the server")
        yes, steps, _ = explain(cli, "ex-web", "ex-db:80")
        assert not yes
        assert "ex-closed denies" in str(steps["policy"]["Detail"])
        assert "no answer" in str(steps["attempt"]["Detail"])
        assert cli("exec", "ex-db", "ping", "-c", "1", "-W", "2", "ex-web").code == 0  # answers come back
        assert "ex-closed   deny" in cli("network", "policy", "ls").out
        cli("network", "policy", "rm", "ex-closed")
        assert explain(cli, "ex-web", "ex-db:80")[0]
    finally:
        cli("network", "policy", "rm", "ex-closed", "ex-api", check=False)


def test_the_doctor_tells_what_the_outside_can_reach(cli: Client, net: str) -> None:
    cli("run", "-d", "--name", "ex-p", "--network", net, "-p", "8079:80", "-p", "127.0.0.1:8084:81", "bb", *SERVE)

    shown = cli("doctor").out
    bridge = f"br-{json.loads(cli('network', 'inspect', net).out)[0]['Id'][:12]}"
    subprocess.run(["ip", "link", "set", bridge, "down"], check=True)
    sick = cli("doctor", check=False)
    subprocess.run(["ip", "link", "set", bridge, "up"], check=True)

    assert "0.0.0.0:8079/tcp is ex-p's 80: whoever reaches any address of this host reaches it" in shown
    assert "127.0.0.1:8084/tcp is ex-p's 81: only this host reaches it" in shown
    assert sick.code == 1
    assert f"bridge {bridge} of {net} is down" in sick.out
