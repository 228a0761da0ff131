"""The daemon may stop, be killed and come back: containers run on, and nothing acknowledged is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Client, Daemon, connects, wait_for

DaemonFactory = Callable[..., Daemon]
TICK = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"


@pytest.fixture(autouse=True)
def _ours_only(target: str) -> None:
    if target == "dockerd":
        pytest.skip("dockerd does this with --live-restore only, and not after kill -9 of containerd")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "terminate"])
def test_containers_survive_with_their_logs(own_daemon: DaemonFactory, home: Path, number: signal.Signals) -> None:
    daemon = own_daemon()
    docker = Client("docker", daemon, home)
    docker("run", "-d", "--name", "ticker", "-p", "8300:80", "bb", "sh", "-c", f"httpd -p 80 -h /; {TICK}")
    before = docker.inspect("ticker")["State"]
    wait_for(lambda: connects("127.0.0.1", 8300), "the server")

    daemon.stop(number)
    assert Path(f"/proc/{before['Pid']}").exists()
    assert connects("127.0.0.1", 8300), "published ports work without the daemon"
    time.sleep(0.3)
    daemon.start()

    after = docker.inspect("ticker")["State"]
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    lines = docker("logs", "ticker").out.split()
    assert lines == [str(number) for number in range(1, len(lines) + 1)], "no line lost, none twice"
    assert docker("exec", "ticker", "echo", "in").out == "in\n"
    docker("stop", "-t", "0", "ticker")
    assert docker.inspect("ticker")["State"]["ExitCode"] == 137


def test_an_exit_while_the_daemon_is_down_is_collected_with_its_code_and_time(
    own_daemon: DaemonFactory, home: Path
) -> None:
    daemon = own_daemon()
    docker = Client("docker", daemon, home)
    docker("run", "-d", "--name", "ends", "bb", "sh", "-c", "sleep 1; echo last words; exit 42")
    daemon.stop(signal.SIGKILL)
    ended = time.time() + 1
    time.sleep(2.5)
    daemon.start()

    state = docker.inspect("ends")["State"]

    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 42, 0)
    finished = subprocess.run(["date", "-d", state["FinishedAt"], "+%s"], capture_output=True, text=True, check=True)
    assert abs(int(finished.stdout) - ended) < 2
    assert docker("logs", "ends").out == "last words\n"


def test_restart_policies_are_applied_when_the_daemon_comes_back(own_daemon: DaemonFactory, home: Path) -> None:
    daemon = own_daemon()
    docker = Client("docker", daemon, home)
    for policy in ("always", "unless-stopped", "no"):
        docker("run", "-d", "--name", policy, "--restart", policy, "bb", "sleep", "1000")
        docker("run", "-d", "--name", f"{policy}-stopped", "--restart", policy, "bb", "sleep", "1000")
        docker("stop", "-t", "0", f"{policy}-stopped")
    pids = [docker.inspect(policy)["State"]["Pid"] for policy in ("always", "unless-stopped", "no")]
    daemon.stop(signal.SIGKILL)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    daemon.start()

    def running() -> set[str]:
        return set(docker("ps", "--format", "{{.Names}}").out.split())

    wait_for(lambda: running() == {"always", "unless-stopped", "always-stopped"}, "the policies", patience=10)


def test_everything_acknowledged_is_there_after_kill_9_at_random_moments(own_daemon: DaemonFactory, home: Path) -> None:
    daemon = own_daemon()
    docker = Client("docker", daemon, home)
    chance = random.Random(7)
    acknowledged: set[str] = set()
    removed: set[str] = set()
    script = f"for i in 1 2 3 4 5 6 7 8; do id=$({docker.argv()[0]} run -d bb sleep 1000) && echo $id; done"
    for cycle in range(6):
        work = subprocess.Popen(
            ["sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=docker.environment,
        )
        time.sleep(chance.uniform(0.05, 0.6))
        daemon.stop(signal.SIGKILL)
        out, _ = work.communicate(timeout=60)
        acknowledged |= set(out.split())
        daemon.start()
        known = set(docker("ps", "-aq", "--no-trunc").out.split())
        assert acknowledged - removed <= known
        for identifier in sorted(acknowledged - removed):
            assert docker("inspect", "-f", "{{.State.Running}}", identifier).out == "true\n", cycle
        victim = next(iter(sorted(acknowledged - removed)), None)
        if victim:
            docker("rm", "-f", victim)
            removed.add(victim)
    docker("run", "--rm", "bb", "true")


def test_two_daemons_live_side_by_side(own_daemon: DaemonFactory, home: Path) -> None:
    first, second = own_daemon(), own_daemon()
    clients = [Client("docker", daemon, home) for daemon in (first, second)]
    for number, client in enumerate(clients):
        client(
            "run", "-d", "--name", "same-name", "-p", f"831{number}:80", "bb", "httpd", "-f", "-p", "80", "-h", "/etc"
        )
    for number in range(2):
        wait_for(lambda number=number: connects("127.0.0.1", 8310 + number), "the server")

    addresses = {
        client.inspect("same-name")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] for client in clients
    }

    assert len(addresses) == 2
    clients[0]("rm", "-f", "same-name")
    assert connects("127.0.0.1", 8311)


def test_the_socket_belongs_to_root_and_the_group(own_daemon: DaemonFactory) -> None:
    daemon = own_daemon(image=False)

    status = daemon.socket.stat()

    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_uid == 0


def test_a_second_daemon_on_the_same_root_is_refused(own_daemon: DaemonFactory) -> None:
    daemon = own_daemon(image=False)

    second = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=30)

    assert second.returncode != 0
    assert str(daemon.directory) in second.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nosuchflag"], "unknown flag: --nosuchflag"),
        (["--log-level", "loud"], "loud"),
        (["-H", "nonsense://x"], "nonsense"),
        (["--bip", "300.1.1.1/24"], "300.1.1.1/24"),
    ],
)
def test_flags_that_make_no_sense_stop_the_daemon_with_a_reason(
    scratch: Path, arguments: list[str], words: str, tmp_path: Path
) -> None:
    daemon = Daemon("engine", tmp_path, arguments)
    (tmp_path / "daemon.json").write_text("{}")

    done = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=30)

    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_configuration_file_is_explained(tmp_path: Path) -> None:
    daemon = Daemon("engine", tmp_path)
    for content, words in (("{", "invalid"), ('{"nosuchkey": 1}', "nosuchkey"), ('{"debug": "yes"}', "debug")):
        (tmp_path / "daemon.json").write_text(content)
        done = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=30)
        assert done.returncode != 0
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_nothing_is_left_when_everything_was_removed(own_daemon: DaemonFactory, home: Path) -> None:
    daemon = own_daemon()
    docker = Client("docker", daemon, home)
    docker("run", "--rm", "-p", "8320:80", "-v", "/data", "bb", "true")
    settle(daemon)
    before = traces(daemon)

    for number in range(15):
        docker("run", "--rm", "-p", "8320:80", "-v", "/data", "--name", f"cycle-{number}", "bb", "sh", "-c", "echo x")
    for _ in range(5):
        docker("run", "-p", "8320:80", "bb", "/nosuch", check=False)
    docker("run", "-d", "--name", "last", "bb", "sleep", "1000")
    docker("exec", "last", "true")
    docker("rm", "-f", "last")
    for identifier in docker("ps", "-aq").out.split():
        docker("rm", "-v", identifier)
    settle(daemon)

    def left() -> dict[str, object]:
        now = traces(daemon)
        return {key: (before[key], now[key]) for key in now if now[key] != before[key]}

    deadline = time.monotonic() + 15
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left() == {}


def settle(daemon: Daemon) -> None:
    wait_for(lambda: not any("monitor" in line for line in processes(daemon)), "the monitors to end")


def processes(daemon: Daemon) -> list[str]:
    """Command lines of all processes that mention this daemon's directory."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(daemon.directory) in line:
                found.append(line)
    return sorted(found)


def traces(daemon: Daemon) -> dict[str, object]:
    """All a daemon can leave on a machine."""
    text = str(daemon.directory)
    assert daemon.process is not None
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if text in line]
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout)
    ruleset = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    cgroups = [str(path) for path in Path("/sys/fs/cgroup").glob("*/engine*/*") if path.is_dir()]
    containers = [path.name for path in (daemon.directory / "data" / "containers").glob("*")]
    volumes = [path.name for path in (daemon.directory / "data" / "volumes").glob("[!.]*")]  # dots: going, going
    return {
        "mounts": len(mounts),
        "links": sorted(link["ifname"] for link in links),
        "ruleset": ruleset,
        "cgroups": sorted(cgroups),
        "processes": len(processes(daemon)),
        "descriptors": len(os.listdir(f"/proc/{daemon.process.pid}/fd")),
        "containers": containers,
        "volumes": volumes,
        "netns": len(list((daemon.directory / "run" / "netns").glob("*"))),
    }
