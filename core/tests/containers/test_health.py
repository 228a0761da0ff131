"""Health: what results make of it, and when the next check is due."""

from __future__ import annotations

import pytest

from engine.containers.health import Health, Result, command, pause_before_next
from engine.containers.restart import RestartTracker
from engine.containers.views import status_text
from engine.model.container import Config, Container, ContainerState, HealthConfig, HostConfig, RestartPolicy
from engine.timestamps import rfc3339

SECOND = 10**9
START = 1_800_000_000 * SECOND


def result(code: int, after: int = 0) -> Result:
    moment = rfc3339(START + after * SECOND)
    return Result(moment, moment, code, "")


def feed(config: HealthConfig, *codes: int, every: int = 1) -> Health:
    health = Health()
    for number, code in enumerate(codes):
        health = health.after(result(code, number * every), config, START)
    return health


@pytest.mark.parametrize(
    ("codes", "status", "streak"),
    [
        ((1,), "starting", 1),
        ((1, 1), "unhealthy", 2),
        ((0,), "healthy", 0),
        ((0, 1), "healthy", 1),
        ((0, 1, -1), "unhealthy", 2),
        ((1, 1, 0), "healthy", 0),
    ],
)
def test_retries_failures_in_a_row_are_unhealthy_and_one_success_is_healthy(
    codes: tuple[int, ...], status: str, streak: int
) -> None:
    health = feed(HealthConfig(retries=2), *codes)

    assert (health.status, health.failing_streak) == (status, streak)


def test_failures_in_the_start_period_count_only_after_a_success() -> None:
    config = HealthConfig(retries=1, start_period=60 * SECOND)

    assert feed(config, 1, 1, 1).status == "starting"
    assert feed(config, 0, 1).status == "unhealthy"
    assert feed(config, 1, 1, 1, every=30).status == "unhealthy"


def test_the_last_five_results_are_kept() -> None:
    assert [kept.exit_code for kept in feed(HealthConfig(retries=99), 1, 2, 3, 4, 5, 6, 7).log] == [3, 4, 5, 6, 7]


def test_the_start_interval_applies_while_starting_in_the_start_period() -> None:
    config = HealthConfig(interval=30 * SECOND, start_period=10 * SECOND, start_interval=2 * SECOND)

    assert pause_before_next(config, "starting", 0) == 2
    assert pause_before_next(config, "healthy", 0) == 30
    assert pause_before_next(config, "starting", 11 * SECOND) == 30
    assert pause_before_next(HealthConfig(), "starting", 0) == 30


def container(health: HealthConfig | None, shell: list[str] | None = None, **state: object) -> Container:
    return Container(
        id="c" * 64,
        name="c",
        created=rfc3339(START),
        image_id="",
        chain_id=None,
        platform="linux/amd64",
        runtime="runc",
        store="vfs",
        log_driver="none",
        path="sleep",
        args=[],
        config=Config(healthcheck=health, shell=shell),
        host_config=HostConfig(),
        state=ContainerState(**state),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("test", "shell", "words"),
    [
        (None, None, None),
        ([], None, None),
        (["NONE"], None, None),
        (["CMD", "curl", "-f"], None, ["curl", "-f"]),
        (["CMD-SHELL", "a && b"], None, ["/bin/sh", "-c", "a && b"]),
        (["CMD-SHELL", "a"], ["bash", "-ec"], ["bash", "-ec", "a"]),
    ],
)
def test_a_check_runs_what_the_container_names(
    test: list[str] | None, shell: list[str] | None, words: list[str] | None
) -> None:
    assert command(container(HealthConfig(test=test), shell)) == words


@pytest.mark.parametrize(
    ("health", "note"),
    [("", ""), ("starting", " (health: starting)"), ("healthy", " (healthy)"), ("unhealthy", " (unhealthy)")],
)
def test_the_status_column_tells_the_health(health: str, note: str) -> None:
    running = container(None, status="running", started_at=rfc3339(START))

    assert status_text(running, health, START + 5 * SECOND) == f"Up 5 seconds{note}"


def test_on_unhealthy_restarts_after_a_failure_or_bad_health_only_and_counts() -> None:
    tracker = RestartTracker()
    policy = RestartPolicy(name="on-unhealthy", maximum_retry_count=2)

    def decide(code: int, unhealthy: bool, stopped: bool = False) -> bool:
        return tracker.decide(policy, exit_code=code, stopped_by_user=stopped, ran_for=1, unhealthy=unhealthy).restart

    assert not decide(0, unhealthy=False)
    assert not decide(0, unhealthy=True, stopped=True)
    assert decide(0, unhealthy=True)
    assert decide(3, unhealthy=False)
    assert not decide(0, unhealthy=True)
