"""Containers beyond the main job: health, faults, limits, what survives, and what must not leak."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness import Client, Daemon, wait_for

QUICK = ("--health-interval=0.2s", "--health-timeout=1s", "--health-retries=2")


def health(client: Client, name: str) -> dict[str, object]:
    return dict(client.inspect(name)["State"]["Health"])


def status_of(client: Client, name: str) -> str:
    return client("ps", "-a", "--filter", f"name=^{name}$", "--format", "{{.Status}}").out.strip()


# -- health -------------------------------------------------------------------------------------------------


def test_health_goes_from_starting_over_healthy_to_unhealthy_and_tells_of_it(docker: Client, name: str) -> None:
    since = str(time.time())
    check = "test -e /ok && echo fine"
    docker("run", "-d", "--name", name, *QUICK, "--health-cmd", check, "bb", "sh", "-c", "sleep 1; >/ok; sleep 99")
    assert health(docker, name)["Status"] == "starting"
    assert status_of(docker, name).endswith("(health: starting)")

    docker("exec", name, "touch", "/ok")
    wait_for(lambda: health(docker, name)["Status"] == "healthy", "health")
    assert status_of(docker, name).endswith("(healthy)")
    assert docker("ps", "-q", "--filter", "health=healthy", "--filter", f"name={name}").out
    assert not docker("ps", "-q", "--filter", "health=unhealthy", "--filter", f"name={name}").out
    last = health(docker, name)["Log"][-1]  # type: ignore[index]
    assert (last["ExitCode"], last["Output"]) == (0, "fine\n")
    wait_for(lambda: len(health(docker, name)["Log"]) == 5, "five results")  # type: ignore[arg-type]

    docker("exec", name, "rm", "/ok")
    wait_for(lambda: health(docker, name)["Status"] == "unhealthy", "bad health")
    assert int(health(docker, name)["FailingStreak"]) >= 2  # type: ignore[call-overload]
    assert len(health(docker, name)["Log"]) == 5  # type: ignore[arg-type]
    docker("stop", "-t", "0", name)
    lines = docker(
        "events", "--since", since, "--until", str(time.time()), "--filter", f"container={name}", "--format",
        "{{.Action}}",
    ).out.splitlines()  # fmt: skip
    assert [line for line in lines if line.startswith("health_status")] == [
        "health_status: healthy",
        "health_status: unhealthy",
    ]
    assert f"exec_create: /bin/sh -c {check}" in lines
    assert f"exec_start: /bin/sh -c {check}" in lines
    assert "exec_die" in lines


def test_a_check_that_takes_too_long_fails_and_long_output_is_cut(docker: Client, name: str) -> None:
    options = ("--health-interval=0.2s", "--health-timeout=0.3s", "--health-retries=1")
    docker("run", "-d", "--name", name, *options, "--health-cmd", "echo begun; sleep 9", "bb", "sleep", "99")
    wait_for(lambda: health(docker, name)["Status"] == "unhealthy", "bad health")
    last = health(docker, name)["Log"][-1]  # type: ignore[index]
    assert last["ExitCode"] == -1
    assert last["Output"].startswith("Health check exceeded timeout (300ms)")
    docker("rm", "-f", name)

    docker("run", "-d", "--name", name, *QUICK, "--health-cmd", "yes | head -c 9000", "bb", "sleep", "99")
    wait_for(lambda: health(docker, name)["Status"] == "healthy", "health")
    output = health(docker, name)["Log"][-1]["Output"]  # type: ignore[index]
    assert output == "y\n" * 2048 + "..."


def test_failures_in_the_start_period_do_not_count(docker: Client, name: str) -> None:
    options = ("--health-interval=30s", "--health-start-period=60s", "--health-start-interval=0.2s")
    docker(
        "run", "-d", "--name", name, *options, "--health-retries=1", "--health-cmd", "test -e /ok", "bb", "sleep", "9"
    )
    wait_for(lambda: len(health(docker, name)["Log"]) >= 3, "three checks")  # type: ignore[arg-type]
    assert (health(docker, name)["Status"], health(docker, name)["FailingStreak"]) == ("starting", 0)

    docker("exec", name, "touch", "/ok")
    wait_for(lambda: health(docker, name)["Status"] == "healthy", "health")


def test_no_healthcheck_means_none(docker: Client, name: str) -> None:
    docker("run", "-d", "--name", name, "--no-healthcheck", "bb", "sleep", "9")

    assert "Health" not in docker.inspect(name)["State"]
    assert docker("ps", "-q", "--filter", "health=none", "--filter", f"name={name}").out


def test_health_survives_the_daemon(own_daemon: Callable[..., Daemon], home: object, target: str) -> None:
    if target == "dockerd":
        pytest.skip("dockerd starts over")
    daemon = own_daemon()
    client = Client("docker", daemon, home)  # type: ignore[arg-type]
    client("run", "-d", "--name", "checked", "--health-interval=1s", "--health-cmd", "true", "bb", "sleep", "99")
    wait_for(lambda: health(client, "checked")["Status"] == "healthy", "health")
    daemon.stop(9)
    daemon.start()
    assert health(client, "checked")["Status"] == "healthy"
    checks = health(client, "checked")["Log"]
    wait_for(lambda: health(client, "checked")["Log"] != checks, "checks to go on")


def test_on_unhealthy_restarts_what_fails_its_check(daemon: Daemon, home: object, name: str, target: str) -> None:
    if target == "dockerd":
        pytest.skip("dockerd does not know it")
    client = Client("engine", daemon, home)  # type: ignore[arg-type]
    refused = client("run", "-d", "--name", name, "--restart", "on-unhealthy", "bb", "true", check=False)
    assert "needs a health check" in refused.err
    client(
        "run", "-d", "--name", name, "--restart", "on-unhealthy:2", *QUICK, "--stop-timeout", "0",
        "--health-cmd", "false", "bb", "sleep", "99",
    )  # fmt: skip
    wait_for(lambda: client.inspect(name)["RestartCount"] == 2, "two restarts")
    wait_for(lambda: client.inspect(name)["State"]["Status"] == "exited", "the end")
    assert client.inspect(name)["RestartCount"] == 2
