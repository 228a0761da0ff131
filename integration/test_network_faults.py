"""Networks when things go wrong: a bridge deleted, the daemon killed amid connects, pools used up, crowds."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Client, Daemon

from engine_network_bridge.watch import count_rules


@pytest.fixture
def daemon_and_cli(own_daemon: Callable[..., Daemon], home: Path, target: str) -> tuple[Daemon, Client]:
    if target != "engine":
        pytest.skip("about this engine's own recovery")
    daemon = own_daemon()
    return daemon, Client("docker", daemon, home)


def links() -> set[str]:
    """Names of bridges and veths of this namespace."""
    shown = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    return {link["ifname"] for link in shown if link["ifname"].startswith(("br-", "veth"))}


def bridge_of(cli: Client, network: str) -> str:
    return f"br-{json.loads(cli('network', 'inspect', network).out)[0]['Id'][:12]}"


def test_a_deleted_bridge_is_reported_and_put_back(daemon_and_cli: tuple[Daemon, Client], home: Path) -> None:
    daemon, cli = daemon_and_cli
    cli("network", "create", "torn")
    for name in ("one", "two"):
        cli("run", "-d", "--name", name, "--network", "torn", "bb", "sleep", "600")
    bridge = bridge_of(cli, "torn")

    subprocess.run(["ip", "link", "delete", bridge], check=True)
    told = Client("engine", daemon, home)("explain", "one", "two", check=False)
    assert told.code == 1
    assert f"bridge {bridge} of torn is gone" in told.out

    daemon.stop()
    daemon.start()
    assert cli("exec", "one", "ping", "-c", "1", "-W", "5", "two").code == 0
    cli("rm", "-f", "one", "two")
    cli("network", "rm", "torn")
    assert bridge not in links()


def test_a_daemon_killed_amid_connects_leaves_nothing_half_made(daemon_and_cli: tuple[Daemon, Client]) -> None:
    daemon, cli = daemon_and_cli
    before = links()
    cli("run", "-d", "--name", "moved", "bb", "sleep", "600")
    for number in range(6):
        cli("network", "create", "--subnet", f"10.71.{number}.0/24", f"n{number}")
    done = threading.Event()

    def connect() -> None:
        number = 0
        while not done.is_set():
            number = (number + 1) % 6
            cli("network", "connect", f"n{number}", "moved", check=False)
            cli("network", "disconnect", f"n{number}", "moved", check=False)

    thread = threading.Thread(target=connect)
    thread.start()
    for pause in (0.15, 0.2, 0.25):
        done.wait(pause)
        daemon.stop(signal.SIGKILL)
        daemon.start()
    done.set()
    thread.join()

    recorded = set(cli.inspect("moved")["NetworkSettings"]["Networks"])
    inside = cli("exec", "moved", "ls", "/sys/class/net").out.split()
    assert len([name for name in inside if name.startswith("eth")]) == len(recorded)
    for number in range(6):
        cli("network", "disconnect", "-f", f"n{number}", "moved", check=False)
        cli("network", "connect", "--ip", f"10.71.{number}.9", f"n{number}", "moved")
    cli("rm", "-f", "moved")
    for number in range(6):
        cli("network", "rm", f"n{number}")
    assert links() <= before | {"docker0", f"br-{_instance(daemon)}"}


def _instance(daemon: Daemon) -> str:
    return hashlib.sha256(str((daemon.directory / "data").resolve()).encode()).hexdigest()[:8]


def test_default_pools_end_and_come_back(own_daemon: Callable[..., Daemon], home: Path) -> None:
    daemon = own_daemon("--default-address-pool", "base=10.70.0.0/22,size=24", "--bip", "10.69.0.1/24", image=False)
    cli = Client("docker", daemon, home)
    for number in range(4):
        cli("network", "create", f"n{number}")

    full = cli("network", "create", "one-too-many", check=False)

    assert full.code == 1
    assert "all predefined address pools have been fully subnetted" in full.err
    cli("network", "rm", "n2")
    cli("network", "create", "again")
    assert json.loads(cli("network", "inspect", "again").out)[0]["IPAM"]["Config"][0]["Subnet"] == "10.70.2.0/24"
    for name in ("n0", "n1", "n3", "again"):
        cli("network", "rm", name)


def test_two_hundred_networks_come_and_go(daemon_and_cli: tuple[Daemon, Client]) -> None:
    """And the last costs the kernel what the first did: the rules are the same number."""
    daemon, _ = daemon_and_cli
    before = links()

    class Unix(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(daemon.socket))

    connection = Unix("d", timeout=60)

    def call(method: str, path: str, body: object = None) -> None:
        data = json.dumps(body) if body else None
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        assert answer.status < 300, answer.read()
        answer.read()

    def rules() -> int:
        return count_rules(f"engine-{_instance(daemon)}")

    few = rules()
    for number in range(200):
        pool = {"Subnet": f"10.68.{number}.0/24"}
        call("POST", "/networks/create", {"Name": f"crowd{number}", "IPAM": {"Config": [pool]}})
    assert rules() == few
    assert len(links() - before) >= 200
    for number in range(200):
        call("DELETE", f"/networks/crowd{number}")
    assert len(links() - before) <= 1
    assert rules() == few
    connection.close()
