"""The state machine of containers, among fakes."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.containers.attach import parse_keys
from engine.containers.execs import ExecConfig
from engine.errors import AlreadyExists, Conflict, EngineError, InvalidParameter, NotFound, NotModified, StartFailed
from engine.model.container import Config, HostConfig, RestartPolicy
from engine.model.filters import Filters

_spec = importlib.util.spec_from_file_location("containers_fakes", Path(__file__).with_name("containers_fakes.py"))
assert _spec
assert _spec.loader
fakes = importlib.util.module_from_spec(_spec)
sys.modules["containers_fakes"] = fakes
_spec.loader.exec_module(fakes)

Scenario = Callable[[Any], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    """Run a scenario in a fresh world. The pid of fake processes is our own, which has an identity and a user."""
    monkeypatch.setattr("engine.containers.start.process_identity", lambda pid: ("boot", 1))
    monkeypatch.setattr("engine.containers.start.users.find", lambda *a: SimpleNamespace(uid=0, gid=0, groups=()))
    monkeypatch.setattr("engine.containers.start.ocispec.build", lambda *a, **k: {})

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with fakes.world(tmp_path) as world:
                await scenario(world)

        asyncio.run(main())

    return run


async def _create(world: Any, name: str = "aa", **options: Any) -> str:
    config = options.pop("config", Config(image="busybox", cmd=["true"]))
    container_id, _ = await world.containers.create(name, config, HostConfig(**options))
    return str(container_id)


async def _run(world: Any, name: str = "aa", **options: Any) -> str:
    container_id = await _create(world, name, **options)
    await world.containers.start(container_id)
    return container_id


def _state(world: Any, ref: str = "aa") -> Any:
    return world.containers.get(ref).state


# -- create ------------------------------------------------------------------------------------------------------


def test_a_created_container_has_the_images_defaults_and_is_found_by_name_id_and_prefix(play: Any) -> None:
    async def scenario(world: Any) -> None:
        config = Config(image="busybox", env=["A=1"])
        container_id, warnings = await world.containers.create("web", config, HostConfig())
        container = world.containers.get("web")
        assert warnings == []
        assert (container.path, container.args) == ("sh", [])
        assert container.config.env == ["A=1", "PATH=/bin"]
        assert container.config.labels == {"from": "image"}
        assert container.config.hostname == container_id[:12]
        assert container.host_config.network_mode == "bridge"
        for ref in ("/web", container_id, container_id[:7]):
            assert world.containers.get(ref) is container
        assert world.actions() == ["create"]
        assert world.events[0][1] == {"from": "image", "image": "busybox", "name": "web"}

    play(scenario)


def test_of_parallel_creates_of_one_name_exactly_one_wins(play: Any) -> None:
    async def scenario(world: Any) -> None:
        outcomes = await asyncio.gather(*(_create(world) for _ in range(8)), return_exceptions=True)
        winners = [outcome for outcome in outcomes if isinstance(outcome, str)]
        losers = [outcome for outcome in outcomes if isinstance(outcome, AlreadyExists)]
        assert len(winners) == 1
        assert len(losers) == 7
        assert str(losers[0]) == (
            f'Conflict. The container name "/aa" is already in use by container "{winners[0]}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )
        assert world.journal.count("create_rootfs") == 1

    play(scenario)


@pytest.mark.parametrize("step", ["admit", "create_rootfs", "resolve"])
def test_a_failed_create_leaves_nothing_and_frees_the_name(play: Any, step: str, tmp_path: Path) -> None:
    async def scenario(world: Any) -> None:
        world.journal.fail[step] = EngineError("no")
        with pytest.raises(EngineError, match="no"):
            await _create(world)
        world.journal.fail.clear()
        assert not list((tmp_path / "containers").iterdir())
        assert world.containers.list(all=True) == []
        await _create(world)

    play(scenario)


@pytest.mark.parametrize(
    ("config", "host_config", "message"),
    [
        ({"image": "nosuch"}, {}, "No such image: nosuch:latest"),
        ({}, {}, "No command specified"),
        ({}, {"memory": 1024}, "Minimum memory limit allowed is 6MB"),
        ({}, {"restart_policy": RestartPolicy(name="bad")}, "invalid restart policy 'bad'"),
        (
            {},
            {"restart_policy": RestartPolicy(name="always"), "auto_remove": True},
            "can't create 'AutoRemove' container with restart policy",
        ),
        ({"working_dir": "x"}, {}, "the working directory 'x' is invalid, it needs to be an absolute path"),
        ({"stop_signal": "NOPE"}, {}, "Invalid signal: NOPE"),
        ({}, {"pid_mode": "bad"}, "invalid PID mode: bad"),
        ({}, {"extra_hosts": ["x"]}, 'bad format for add-host: "x"'),
        ({}, {"ipc_mode": "container:nosuch"}, "No such container: nosuch"),
    ],
)
def test_a_bad_request_is_refused_in_dockerds_words(play: Any, config: Any, host_config: Any, message: str) -> None:
    async def scenario(world: Any) -> None:
        with pytest.raises(EngineError) as caught:
            await world.containers.create("aa", Config(**config), HostConfig(**host_config))
        assert str(caught.value).startswith(message)

    play(scenario)


def test_names_docker_refuses_are_refused(play: Any) -> None:
    async def scenario(world: Any) -> None:
        with pytest.raises(InvalidParameter) as caught:
            await _create(world, "A B")
        assert str(caught.value) == "Invalid container name (A B), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"

    play(scenario)


# -- start and exit ----------------------------------------------------------------------------------------------


def test_a_started_container_runs_and_its_exit_is_recorded_told_and_cleaned_up(play: Any) -> None:
    async def scenario(world: Any) -> None:
        container_id = await _run(world)
        assert _state(world).status == "running"
        assert world.containers.get("aa").networks["bridge"].ip_address == "10.0.0.2"
        with pytest.raises(NotModified):
            await world.containers.start("aa")
        waiter = world.containers.wait("aa", "not-running")
        world.monitor.end(3)
        assert await waiter == (3, "")
        assert _state(world).exit_code == 3
        await world.until(lambda: "delete_runtime" in world.journal and "unmount_rootfs" in world.journal)
        assert world.containers.get("aa").networks["bridge"].ip_address == ""
        assert world.actions() == ["create", "start", "die"]
        assert world.events[-1][1]["exitCode"] == "3"
        assert await world.containers.wait(container_id) == (3, "")

    play(scenario)


STEPS = ["mount_rootfs", "mount_volumes", "attach", "hook", "launch", "spawn", "monitor_start"]


@pytest.mark.parametrize("step", STEPS)
def test_whatever_step_of_a_start_fails_everything_before_it_is_undone(play: Any, step: str, tmp_path: Path) -> None:
    undone = {
        "mount_rootfs": "unmount_rootfs",
        "mount_volumes": "unmount_volumes",
        "attach": "detach",
        "launch": "delete_runtime",
    }

    async def scenario(world: Any) -> None:
        await _create(world)
        world.journal.fail[step] = EngineError("no")
        with pytest.raises(EngineError, match="no"):
            await world.containers.start("aa")
        for done, undo in undone.items():
            if done in world.journal and done != step:
                assert undo in world.journal, f"{done} was not undone"
        assert not list((tmp_path / "run").iterdir())
        assert (_state(world).status, _state(world).exit_code, _state(world).error) == ("created", 128, "no")
        assert all(monitor.closed for monitor in world.launcher.monitors)
        world.journal.fail.clear()
        await world.containers.start("aa")
        assert _state(world).status == "running"

    play(scenario)


def test_a_missing_command_is_127_with_the_runtimes_words(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _create(world)
        world.journal.fail["monitor_start"] = fakes.launch_failed("exec: not found")
        with pytest.raises(StartFailed, match="exec: not found"):
            await world.containers.start("aa")
        assert (_state(world).exit_code, _state(world).status) == (127, "created")
        assert world.actions() == ["create"]

    play(scenario)


def test_auto_remove_removes_after_the_exit_and_after_a_failed_start(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _run(world, auto_remove=True)
        waiter = world.containers.wait("aa", "removed")
        world.monitor.end(5)
        assert await waiter == (5, "")
        assert world.actions() == ["create", "start", "die", "destroy"]
        assert "release anonymous=True" in world.journal
        await _create(world, auto_remove=True)
        world.journal.fail["spawn"] = EngineError("no")
        with pytest.raises(EngineError):
            await world.containers.start("aa")
        with pytest.raises(NotFound):
            world.containers.get("aa")

    play(scenario)


def test_the_next_start_waits_for_the_last_runs_clean_up(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _run(world)
        world.monitor.end(0)
        await world.containers.wait("aa")
        world.journal.clear()
        await world.containers.start("aa")
        assert world.journal.index("unmount_rootfs") < world.journal.index("mount_rootfs")

    play(scenario)


# -- stop, kill, restart -----------------------------------------------------------------------------------------


def test_stop_sends_the_stop_signal_then_kills(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _run(world, config=Config(image="busybox", stop_signal="SIGUSR1"))
        await world.containers.stop("aa", timeout=0)
        assert world.monitor.signals == [10, 9]
        assert _state(world).exit_code == 137
        assert world.actions() == ["create", "start", "kill", "kill", "die", "stop"]
        with pytest.raises(NotModified):
            await world.containers.stop("aa")

    play(scenario)


def test_stop_during_start_waits_for_the_start_and_stops_it(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _create(world)
        starting = asyncio.ensure_future(world.containers.start("aa"))
        await asyncio.sleep(0)
        await world.containers.stop("aa")
        await starting
        assert _state(world).status == "exited"
        assert world.actions() == ["create", "start", "kill", "die", "stop"]

    play(scenario)


def test_killing_what_does_not_run_is_a_conflict_and_a_bad_signal_is_refused(play: Any) -> None:
    async def scenario(world: Any) -> None:
        container_id = await _create(world)
        with pytest.raises(Conflict) as caught:
            await world.containers.kill("aa")
        assert str(caught.value) == f"container {container_id} is not running"
        with pytest.raises(InvalidParameter, match="Invalid signal: WHAT"):
            await world.containers.kill("aa", "WHAT")

    play(scenario)


def test_restart_keeps_an_auto_remove_container(play: Any) -> None:
    async def scenario(world: Any) -> None:
        container_id = await _run(world, auto_remove=True)
        await world.containers.restart("aa")
        assert world.containers.get("aa").id == container_id
        assert _state(world).status == "running"
        assert world.actions() == ["create", "start", "kill", "die", "stop", "start", "restart"]

    play(scenario)


# -- restart policies --------------------------------------------------------------------------------------------


def test_on_failure_restarts_with_growing_delays_until_its_count_is_used_up(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _create(world, restart_policy=RestartPolicy(name="on-failure", maximum_retry_count=3))
        await world.containers.start("aa")
        over = world.containers.wait("aa", "not-running")
        for run in range(1, 5):
            await world.until(lambda run=run: len(world.launcher.monitors) == run and _state(world).status == "running")
            world.monitor.end(1)
        assert await over == (1, "")  # told of the first end, as dockerd tells it: waiting for a restart is no running
        await world.until(lambda: _state(world).status == "exited")
        assert world.clock.delays == [0.1, 0.2, 0.4]
        assert _state(world).restart_count == 3

    play(scenario)


def test_always_restarts_after_success_but_not_after_a_stop(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _run(world, restart_policy=RestartPolicy(name="always"))
        world.monitor.end(0)
        await world.until(lambda: len(world.launcher.monitors) == 2 and _state(world).status == "running")
        await world.containers.stop("aa")
        assert _state(world).status == "exited"
        assert len(world.launcher.monitors) == 2

    play(scenario)


def test_a_stop_while_waiting_to_restart_ends_the_restarting(play: Any) -> None:
    async def scenario(world: Any) -> None:
        world.clock.hold = asyncio.Event()
        await _run(world, restart_policy=RestartPolicy(name="always"))
        world.monitor.end(1)
        await world.until(lambda: _state(world).status == "restarting" and bool(world.clock.delays))
        assert world.containers.inspect("aa")["State"]["Running"] is True
        await world.containers.stop("aa")
        world.clock.hold.set()
        await asyncio.sleep(0)
        assert _state(world).status == "exited"
        assert len(world.launcher.monitors) == 1

    play(scenario)


# -- remove, rename, prune ---------------------------------------------------------------------------------------


def test_a_running_container_is_removed_only_by_force(play: Any) -> None:
    async def scenario(world: Any) -> None:
        container_id = await _run(world)
        with pytest.raises(Conflict) as caught:
            await world.containers.remove("aa")
        assert str(caught.value) == (
            f"You cannot remove a running container {container_id}. "
            "Stop the container before attempting removal or force remove"
        )
        await world.containers.remove("aa", force=True)
        assert world.actions()[-3:] == ["kill", "die", "destroy"]
        with pytest.raises(NotFound, match="No such container: aa"):
            world.containers.get("aa")
        await _create(world)

    play(scenario)


def test_a_removal_that_fails_leaves_a_dead_container_that_can_be_removed_later(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _create(world)
        world.journal.fail["remove_rootfs"] = EngineError("device or resource busy")
        with pytest.raises(EngineError, match="busy"):
            await world.containers.remove("aa")
        assert _state(world).status == "dead"
        world.journal.fail.clear()
        await world.containers.remove("aa")
        assert world.containers.list(all=True) == []

    play(scenario)


def test_rename_moves_the_name_and_refuses_one_that_is_taken(play: Any) -> None:
    async def scenario(world: Any) -> None:
        first, second = await _create(world, "aa"), await _create(world, "bb")
        with pytest.raises(AlreadyExists, match=f'"/bb" is already in use by container "{second}"'):
            await world.containers.rename("aa", "bb")
        await world.containers.rename("aa", "cc")
        assert world.containers.get("cc").id == first
        with pytest.raises(NotFound):
            world.containers.get("aa")
        assert world.events[-1] == ("rename", world.events[-1][1] | {"oldName": "/aa", "name": "cc"})

    play(scenario)


def test_prune_removes_stopped_containers_only(play: Any) -> None:
    async def scenario(world: Any) -> None:
        stopped = await _create(world, "stopped")
        await _run(world, "running")
        report = await world.containers.prune(Filters())
        assert report == {"ContainersDeleted": [stopped], "SpaceReclaimed": 7}
        assert [entry["Names"] for entry in world.containers.list()] == [["/running"]]

    play(scenario)


def test_pause_and_unpause_change_state_and_refuse_the_wrong_one(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _run(world)
        with pytest.raises(Conflict, match="is not paused"):
            await world.containers.unpause("aa")
        await world.containers.pause("aa")
        assert world.containers.list()[0]["Status"].endswith("(Paused)")
        with pytest.raises(Conflict, match="is paused, unpause the container before exec"):
            await world.execs.create("aa", ExecConfig(cmd=["true"]))
        await world.containers.unpause("aa")
        assert _state(world).status == "running"

    play(scenario)


# -- attach ------------------------------------------------------------------------------------------------------


def test_a_client_that_attaches_before_the_start_is_there_before_the_process(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _create(world)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await world.containers.attach("aa", SimpleNamespace(sock=theirs, leftover=b""), stdin=True)
            await world.containers.start("aa")
            ((sock, options, pid_then),) = world.monitor.attached
            assert sock is theirs
            assert options["stdin"] is False, "the container's stdin is not open"
            assert pid_then is None, "attached after the process had started"
        assert world.actions() == ["create", "attach", "start"]

    play(scenario)


def test_a_failed_start_sends_waiting_clients_away(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _create(world)
        ours, theirs = socket.socketpair()
        with ours:
            await world.containers.attach("aa", SimpleNamespace(sock=theirs, leftover=b""))
            world.journal.fail["attach"] = EngineError("no")
            with pytest.raises(EngineError):
                await world.containers.start("aa")
            assert ours.recv(1) == b""

    play(scenario)


def test_detach_keys_are_parsed_as_docker_writes_them() -> None:
    assert parse_keys("") == b"\x10\x11"
    assert parse_keys("ctrl-a,x,ctrl-\\") == b"\x01x\x1c"
    with pytest.raises(InvalidParameter, match="Invalid detach keys"):
        parse_keys("ctrl-1")


# -- what an earlier daemon left ---------------------------------------------------------------------------------


def test_records_survive_and_what_was_half_made_is_removed(play: Any, tmp_path: Path) -> None:
    async def scenario(world: Any) -> None:
        kept = await _create(world)
        await world.close()
        orphan = tmp_path / "containers" / ("f" * 64)
        orphan.mkdir()
        world.build()
        await world.containers.start_service()
        assert world.containers.get("aa").id == kept
        assert not orphan.exists()

    play(scenario)


def test_an_exit_nobody_saw_is_recorded_with_its_code(play: Any, tmp_path: Path) -> None:
    async def scenario(world: Any) -> None:
        container_id = await _run(world)
        await world.close()
        exit_file = tmp_path / "containers" / container_id / "exit.json"
        exit_file.write_text('{"code": 7, "oom_killed": false, "finished_ns": 1800000000000000000}')
        world.build()
        await world.containers.start_service()
        assert (_state(world).status, _state(world).exit_code) == ("exited", 7)
        assert _state(world).finished_at == "2027-01-15T08:00:00Z"
        assert world.actions()[-1] == "die"

    play(scenario)


def test_a_removal_that_was_interrupted_is_finished(play: Any) -> None:
    async def scenario(world: Any) -> None:
        container_id = await _create(world)
        await world.containers.change_state(container_id, status="removing")
        await world.close()
        world.build()
        await world.containers.start_service()
        assert world.containers.list(all=True) == []

    play(scenario)


@pytest.mark.parametrize(
    ("policy", "stopped", "code", "starts"),
    [
        ("no", False, 1, False),
        ("always", False, 0, True),
        ("always", True, 0, True),
        ("unless-stopped", False, 0, True),
        ("unless-stopped", True, 0, False),
        ("on-failure", False, 1, True),
        ("on-failure", False, 0, False),
    ],
)
def test_restart_policies_decide_what_a_starting_daemon_starts(
    play: Any, policy: str, stopped: bool, code: int, starts: bool
) -> None:
    async def scenario(world: Any) -> None:
        container_id = await _run(world)
        world.monitor.end(code)
        await world.containers.wait("aa")
        container = world.containers.get("aa")
        await world.containers.update("aa", HostConfig(restart_policy=RestartPolicy(name=policy)))
        await world.containers.change_state(container.id, manually_stopped=stopped)
        await world.until(lambda: not (world.root / "run" / container_id).exists())
        await world.close()
        world.build()
        await world.containers.start_service()
        if starts:
            await world.until(lambda: _state(world).status == "running")
        else:
            await asyncio.sleep(0)
            assert _state(world).status == "exited"

    play(scenario)


# -- list --------------------------------------------------------------------------------------------------------


def test_list_shows_running_newest_first_and_filters(play: Any) -> None:
    async def scenario(world: Any) -> None:
        await _run(world, "old")
        await _run(world, "new", config=Config(image="busybox", labels={"k": "v"}))
        await _create(world, "idle")

        def names(filters: dict[str, list[str]] | None = None, **kw: Any) -> list[str]:
            return [entry["Names"][0][1:] for entry in world.containers.list(Filters(filters), **kw)]

        assert names() == ["new", "old"]
        assert names(all=True) == ["idle", "new", "old"]
        assert names(limit=1) == ["idle"]
        assert names({"status": ["created"]}) == ["idle"]
        assert names({"label": ["k=v"]}) == ["new"]
        assert names({"name": ["ne"]}) == ["new"]
        assert names({"before": ["new"]}) == ["old"]
        assert names({"network": ["bridge"]}, all=True) == ["idle", "new", "old"]
        with pytest.raises(InvalidParameter, match="invalid filter 'nope'"):
            names({"nope": ["x"]})

    play(scenario)
