"""The main job: run, look, stop, remove; with the docker CLI and with ours."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from harness import Client, Daemon, wait_for


def test_run_prints_and_passes_the_exit_code_through(cli: Client) -> None:
    assert cli("run", "--rm", "bb", "echo", "Hello World").out == "Hello World\n"
    for code in (0, 3, 9):
        assert cli("run", "--rm", "bb", "sh", "-c", f"exit {code}", check=False).code == code


def test_rm_on_exit_leaves_no_container(cli: Client) -> None:
    cli("run", "--rm", "--name", "leaves-nothing", "bb", "true")

    wait_for(lambda: "leaves-nothing" not in cli("ps", "-a").out, "the container to be removed")


def test_stdout_and_stderr_stay_apart(cli: Client) -> None:
    result = cli("run", "--rm", "bb", "sh", "-c", "echo out; echo err >&2")

    assert (result.out, result.err) == ("out\n", "err\n")


def test_standard_input_reaches_the_container_and_its_end_too(cli: Client) -> None:
    assert cli("run", "--rm", "-i", "bb", "cat", input="one\ntwo\n").out == "one\ntwo\n"
    assert cli("run", "--rm", "-i", "bb", "wc", "-c", input=b"x" * 1_000_000).out.strip() == "1000000"


def test_a_large_output_arrives_whole(cli: Client) -> None:
    result = cli("run", "--rm", "bb", "sh", "-c", "dd if=/dev/zero bs=1M count=30 2>/dev/null | tr '\\0' x")

    assert len(result.out) == 30 * 1024 * 1024


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("bb", "nosuch"), 127, "executable file not found in $PATH"),
        (("bb", "/nosuch"), 127, "no such file or directory"),
        (("bb", "/etc"), 126, ("permission denied", "is a directory")),
        (("nosuchimg:zz",), 125, "Unable to find image 'nosuchimg:zz' locally"),
        (("--runtime", "kata", "bb"), 125, ("unknown or invalid runtime name: kata", "Unknown runtime specified kata")),
        (("--network", "nosuch", "bb"), 125, "network nosuch not found"),
        (("-m", "1m", "bb"), 125, "Minimum memory limit allowed is 6MB"),
        (("--restart", "bad", "bb"), 125, "invalid restart policy"),
        (("-v", "/a:/b:zz", "bb"), 125, "invalid mode: zz"),
        (("-p", "99999:80", "bb"), 125, "invalid"),
        (("Bad Name",), 125, "invalid reference format"),
        (("--nosuchflag", "bb"), 125, "unknown flag: --nosuchflag"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_run_says_why_with_dockers_code(
    cli: Client, args: tuple[str, ...], code: int, words: str | tuple[str, ...]
) -> None:
    result = cli("run", *args, check=False)

    assert result.code == code, result
    assert any(text in result.err for text in ([words] if isinstance(words, str) else words)), result


def test_detached_containers_print_their_id_and_run(cli: Client, name: str) -> None:
    identifier = cli("run", "-d", "--name", name, "bb", "sleep", "300").out.strip()

    assert re.fullmatch(r"[0-9a-f]{64}", identifier)
    listed = cli("ps", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Status}} {{.Image}}").out
    assert f"{identifier} {name} Up " in listed
    state = cli.inspect(name)["State"]
    assert state["Running"] is True
    assert Path(f"/proc/{state['Pid']}").exists()


def test_a_taken_name_is_refused_in_dockers_words(cli: Client, name: str) -> None:
    identifier = cli("create", "--name", name, "bb").out.strip()

    result = cli("run", "--name", name, "bb", check=False)

    assert result.code == 125
    assert (
        f'Conflict. The container name "/{name}" is already in use by container "{identifier}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    ) in result.err


def test_the_life_of_a_container(cli: Client, name: str) -> None:
    cli("create", "--name", name, "bb", "sh", "-c", "trap 'exit 0' TERM; touch /x; while true; do sleep 0.1; done")
    assert cli.inspect(name)["State"]["Status"] == "created"

    assert cli("start", name).out.strip() == name
    wait_for(lambda: cli("exec", name, "ls", "/x", check=False).code == 0, "the file")
    first = cli.inspect(name)["State"]["Pid"]
    assert cli("stop", name).out.strip() == name
    state = cli.inspect(name)["State"]
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 0, 0)

    cli("start", name)
    assert cli("exec", name, "ls", "/x").out == "/x\n"
    assert cli.inspect(name)["State"]["Pid"] != first
    cli("restart", "-t", "1", name)
    cli("kill", name)
    assert cli("wait", name).out.strip() == "137"
    cli("rename", name, f"{name}-2")
    cli("rename", f"{name}-2", name)
    assert cli("rm", name).out.strip() == name
    assert cli("inspect", name, check=False).code == 1


def test_a_running_container_is_not_removed_without_force(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sleep", "300")

    result = cli("rm", name, check=False)

    assert result.code == 1
    assert "container is running: stop the container before removing or force remove" in result.err or (
        "You cannot remove a running container" in result.err
    )
    cli("rm", "-f", name)


def test_a_process_that_ignores_term_is_killed_after_the_timeout(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sh", "-c", "trap '' TERM; while true; do sleep 1; done")

    cli("stop", "-t", "1", name)

    assert cli.inspect(name)["State"]["ExitCode"] == 137


def test_logs_follow_and_choose(cli: Client, name: str) -> None:
    cli("run", "--name", name, "bb", "sh", "-c", "echo one; echo two >&2; sleep 0.1; echo three")

    result = cli("logs", name)
    assert (result.out, result.err) == ("one\nthree\n", "two\n")
    assert cli("logs", "--tail", "1", name).out == "three\n"
    stamped = cli("logs", "-t", "--tail", "1", name).out
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z three\n", stamped)
    assert cli("logs", "-f", name).out == "one\nthree\n"


def test_logs_follow_a_running_container_to_its_end(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done")

    assert cli("logs", "-f", name, timeout=30).out == "1\n2\n3\n4\n5\n"


def test_exec_runs_inside_with_its_own_code_environment_user_and_directory(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sleep", "300")

    assert cli("exec", name, "sh", "-c", "echo $$ $PPID").out.split()[1] == "0"
    assert cli("exec", name, "sh", "-c", "exit 9", check=False).code == 9
    settings = ("-e", "COLOUR=blue", "-u", "user", "-w", "/tmp")
    shown = cli("exec", *settings, name, "sh", "-c", "echo $COLOUR $(id -u) $(pwd)")
    assert shown.out == "blue 1000 /tmp\n"
    assert cli("exec", "-i", name, "cat", input="piped").out == "piped"
    missing = cli("exec", name, "nosuch", check=False)
    assert missing.code in (126, 127)
    assert "executable file not found in $PATH" in missing.out + missing.err


def test_the_containers_settings_reach_the_process(cli: Client) -> None:
    options = ("--hostname", "box", "-e", "A=b", "-w", "/var/www", "-u", "user:extra", "--entrypoint", "sh")

    result = cli("run", "--rm", *options, "bb", "-c", "hostname; echo $A; pwd; id -u; id -g")

    assert result.out.split() == ["box", "b", "/var/www", "1000", "2000"]


def test_defence_in_depth_is_on_from_the_first_container(cli: Client) -> None:
    result = cli("run", "--rm", "bb", "sh", "-c", "grep -E 'Cap|Seccomp:|NoNewPrivs' /proc/self/status; ls /proc/acpi")

    assert "CapEff:\t00000000a80425fb" in result.out
    assert "CapInh:\t0000000000000000" in result.out
    assert "Seccomp:\t2" in result.out
    assert cli("run", "--rm", "bb", "unshare", "-r", "true", check=False).code != 0
    assert cli("run", "--rm", "bb", "sh", "-c", "echo 1 >/proc/sysrq-trigger", check=False).code != 0
    assert cli("run", "--rm", "bb", "sh", "-c", "cat /proc/kcore | wc -c").out.strip() == "0"
    dropped = cli("run", "--rm", "--cap-drop", "ALL", "--cap-add", "CHOWN", "bb", "grep", "CapEff", "/proc/self/status")
    assert dropped.out == "CapEff:\t0000000000000001\n"


def test_namespaces_are_the_containers_own(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sleep", "300")
    pid = cli.inspect(name)["State"]["Pid"]

    for kind in ("pid", "net", "mnt", "ipc", "uts"):
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()


def test_volumes_binds_and_tmpfs(cli: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")

    assert cli("run", "--rm", "-v", f"{tmp_path}:/m:ro", "bb", "cat", "/m/file").out == "from the host"
    refused = cli("run", "--rm", "-v", f"{tmp_path}:/m:ro", "bb", "touch", "/m/new", check=False)
    assert "Read-only file system" in refused.err
    volume = f"vol-{cli.program}"
    cli("run", "--rm", "-v", f"{volume}:/data", "bb", "sh", "-c", "echo kept > /data/f")
    mount = f"type=volume,source={volume},target=/d"
    assert cli("run", "--rm", "--mount", mount, "bb", "cat", "/d/f").out == "kept\n"
    assert cli("run", "--rm", "--tmpfs", "/t", "bb", "sh", "-c", "grep ' /t ' /proc/mounts").out.startswith(
        "tmpfs /t tmpfs"
    )
    assert cli("run", "--rm", "--read-only", "bb", "touch", "/x", check=False).code == 1
    missing = cli("run", "--rm", "--mount", "type=bind,source=/nosuch,target=/d", "bb", check=False)
    assert (missing.code, "bind source path does not exist: /nosuch" in missing.err) == (125, True)
    assert cli("volume", "rm", volume).out.strip() == volume


def test_restart_policies_restart(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "--restart", "on-failure:2", "bb", "sh", "-c", "exit 3")

    wait_for(
        lambda: cli.inspect(name)["RestartCount"] == 2 and not cli.inspect(name)["State"]["Running"], "two restarts"
    )
    assert cli.inspect(name)["State"]["ExitCode"] == 3


def test_memory_limits_kill_and_say_so(cli: Client, name: str) -> None:
    result = cli("run", "--name", name, "-m", "16m", "bb", "sh", "-c", "tail /dev/zero", check=False)

    assert result.code == 137
    assert cli.inspect(name)["State"]["OOMKilled"] is True


def test_ps_inspect_and_events_agree(cli: Client, name: str) -> None:
    since = f"{time.time():.9f}"
    cli("run", "--name", name, "bb", "true")
    cli("rm", name)

    wanted = ["create", "attach", "start", "die", "destroy"]
    lines = cli(
        "events",
        "--since",
        since,
        "--until",
        f"{time.time():.9f}",
        "--filter",
        f"container={name}",
        "--format",
        "{{json .}}",
    ).out
    actions = [json.loads(line)["Action"] for line in lines.splitlines()]
    assert [action for action in actions if action in wanted] == wanted


def test_without_a_daemon_the_message_says_what_to_do(cli: Client, daemon: Daemon) -> None:
    result = subprocess.run(
        cli.argv("-H", "unix:///nope", "ps"), capture_output=True, text=True, env=cli.environment, timeout=30
    )

    assert result.returncode == 1
    assert "Cannot connect to the Docker daemon at unix:///nope. Is the docker daemon running?" in result.stderr
