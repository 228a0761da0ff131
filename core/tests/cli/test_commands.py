"""Whole commands against a recording daemon: what is sent, what is printed, which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.cli import main
from engine.cli.client import Client
from engine.cli.commands import ALIASES, GROUPS, dispatch, find, rows
from engine.cli.failures import ApiFailure
from engine.cli.flags import declare

sys.path.insert(0, str(Path(__file__).parent))
from recorder import Recorder

WEB = {
    "Id": "0123456789ab" * 5 + "0123", "Names": ["/web", "/other/alias"], "Image": "nginx:1", "ImageID": "sha256:1",
    "Command": "nginx -g 'daemon off;'", "Created": 0, "State": "running", "Status": "Up 3 seconds",
    "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}], "Labels": {"a": "<b>"},
    "Mounts": [], "NetworkSettings": {"Networks": {"bridge": {}}},
}  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    for name in list(os.environ):
        if name.startswith(("ENGINE_", "DOCKER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    answers = {
        ("GET", "/containers/json"): (200, [WEB]),
        ("GET", "/containers/web/json"): (200, {"Id": WEB["Id"], "State": {"Status": "running"}}),
        ("POST", "/containers/web/stop"): (204, ""),
        ("POST", "/containers/gone/stop"): (404, {"message": "No such container: gone"}),
        ("POST", f"/containers/{'ab' * 32}/start"): (204, ""),
        ("GET", "/version"): (200, {"ApiVersion": "1.47", "Components": [{"Name": "Engine", "Version": "1"}]}),
        ("POST", "/volumes/create"): (201, {"Name": "v"}),
        ("POST", "/containers/prune"): (200, {"ContainersDeleted": ["x"], "SpaceReclaimed": 2500}),
    }
    with Recorder(tmp_path / "s", answers) as recorder:
        monkeypatch.setenv("ENGINE_HOST", recorder.host)
        yield recorder


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def test_ps_prints_dockers_table(daemon: Recorder, run: Run) -> None:
    code, out, _ = run("ps")
    header, line = out.splitlines()
    assert code == 0
    assert header == (
        "CONTAINER ID   IMAGE     COMMAND                  CREATED        STATUS         PORTS                  NAMES"
    )
    assert line.startswith('0123456789ab   nginx:1   "nginx -g \'daemon of…"   5')
    assert line.endswith(" ago   Up 3 seconds   0.0.0.0:8080->80/tcp   web")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-q"], "0123456789ab\n"),
        (["--format", "{{.Names}}:{{.Label \"a\"}}"], "web:<b>\n"),
        (["--format", "table {{.Names}}\t{{.Networks}}"], "NAMES     NETWORKS\nweb       bridge\n"),
        (["--no-trunc", "--format", "{{.Names}} {{.Command}}"], "web,other/alias \"nginx -g 'daemon off;'\"\n"),
    ],
)  # fmt: skip
def test_ps_formats(daemon: Recorder, run: Run, words: list[str], text: str) -> None:
    assert run("ps", *words)[:2] == (0, text)


def test_ps_as_json_lines(daemon: Recorder, run: Run) -> None:
    out = run("container", "ls", "--format", "json")[1]
    assert json.loads(out)["Labels"] == "a=<b>"
    assert "\\u003cb\\u003e" in out


def test_psformat_of_the_configuration_is_used(daemon: Recorder, run: Run, tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text('{"psFormat": "{{.ID}}", "HttpHeaders": {"X-Test": "1"}}')
    assert run("ps")[1] == "0123456789ab\n"
    assert daemon.heads[-1]["x-test"] == "1"


def test_ps_sends_its_filters(daemon: Recorder, run: Run) -> None:
    run("ps", "-a", "-f", "name=x", "--filter", "name=y", "-n", "3", "-s")
    assert daemon.requests[-1][1] == (
        "/containers/json?all=1&limit=3&size=1&filters=%7B%22name%22%3A%7B%22x%22%3Atrue%2C%22y%22%3Atrue%7D%7D"
    )


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["nope"], 1, "engine: unknown command: engine nope\n\nRun 'engine --help' for more information\n"),
        (["container", "nope"], 1, "engine: unknown command: engine container nope\n\nUsage:  engine container\n\n"
         "Run 'engine container --help' for more information\n"),
        (["run"], 1, "engine: 'engine run' requires at least 1 argument\n\n"
         "Usage:  engine run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nSee 'engine run --help' for more information\n"),
        (["rename", "a"], 1, "engine: 'engine rename' requires 2 arguments\n\n"
         "Usage:  engine rename CONTAINER NEW_NAME\n\nRun 'engine rename --help' for more information\n"),
        (["ps", "x"], 1, "engine: 'engine ps' accepts no arguments\n\nUsage:  engine ps [OPTIONS]\n\n"
         "Run 'engine ps --help' for more information\n"),
        (["run", "--nope"], 125, "unknown flag: --nope\n\nUsage:  engine run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\n"
         "Run 'engine run --help' for more information\n"),
        (["stop", "gone"], 1, "Error response from daemon: No such container: gone\n"),
        (["ps", "--format", "{{.Nope}}"], 1, 'failed to execute template: template: :1:2: executing "" at <.Nope>: '
         "can't evaluate field Nope in type *formatter.ContainerContext\n"),
        (["ps", "--format", "{{.ID"], 1, "failed to parse template: template: :1: unclosed action\n"),
        (["inspect", "-f", "{{.Nope}}", "web"], 1, 'template parsing error: template: :1:2: executing "" at <.Nope>: '
         'map has no entry for key "Nope"\n'),
        (["inspect", "nosuch"], 1, "Error: No such object: nosuch\n"),
        (["run", "--rm", "--restart", "always", "bb"], 125, "engine: conflicting options: cannot specify both "
         "--restart and --rm\n\nRun 'engine run --help' for more information\n"),
        (["create", "-p", "99999:1", "bb"], 125, "engine: invalid hostPort: 99999\n\n"
         "Run 'engine create --help' for more information\n"),
    ],
)  # fmt: skip
def test_failures_have_dockers_words_and_codes(
    daemon: Recorder, run: Run, words: list[str], code: int, text: str
) -> None:
    got, _, err = run(*words)
    assert err == text
    assert got == code


def test_what_worked_is_echoed_before_what_failed(daemon: Recorder, run: Run) -> None:
    assert run("stop", "gone", "web", "-t", "2") == (
        1,
        "web\n",
        "Error response from daemon: No such container: gone\n",
    )
    assert ("POST", "/containers/web/stop?t=2", None) in daemon.requests


def test_an_unreachable_daemon_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINE_HOST", f"unix://{tmp_path}/none")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = f"Cannot connect to the Docker daemon at unix://{tmp_path}/none. Is the docker daemon running?"
    assert run("ps") == (1, "", expected + "\n")
    code, _, err = run("run", "bb")
    assert (code, err) == (125, f"engine: {expected}\n\nRun 'engine run --help' for more information\n")


def test_the_address_comes_from_flags_then_ours_then_dockers_environment(
    daemon: Recorder, run: Run, tmp_path: Path
) -> None:
    host = os.environ.pop("ENGINE_HOST")
    os.environ["DOCKER_HOST"] = "unix:///docker-only"
    assert "unix:///docker-only" in run("ps")[2]
    os.environ["ENGINE_HOST"] = "unix:///ours"
    assert "unix:///ours" in run("ps")[2]
    assert run("-H", host, "ps", "-q")[0] == 0
    del os.environ["DOCKER_HOST"], os.environ["ENGINE_HOST"]
    assert run("context", "create", "lab", "--docker", f"host={host}")[0] == 0
    assert run("--context", "lab", "ps", "-q")[0] == 0
    assert run("context", "use", "lab")[:2] == (0, "lab\n")
    assert run("ps", "-q")[1] == "0123456789ab\n"
    os.environ["ENGINE_HOST"] = host


def test_run_detached_creates_and_starts(daemon: Recorder, run: Run) -> None:
    code, out, _ = run(
        "run", "-d", "--name", "x", "-e", "A=b", "--cidfile", f"{os.environ['HOME']}/cid", "bb", "sleep", "9"
    )
    assert (code, out) == (0, "ab" * 32 + "\n")
    assert [request[1] for request in daemon.requests] == [
        "/containers/create?name=x",
        f"/containers/{'ab' * 32}/start",
    ]
    assert daemon.body["Cmd"] == ["sleep", "9"]
    assert daemon.body["Env"] == ["A=b"]
    assert daemon.body["AttachStdout"] is False
    assert Path(os.environ["HOME"], "cid").read_text() == "ab" * 32


def test_a_cidfile_does_not_outlive_a_failed_create(daemon: Recorder, run: Run, tmp_path: Path) -> None:
    daemon.answers["POST", "/containers/create"] = (409, {"message": "Conflict."})
    assert run("create", "--cidfile", str(tmp_path / "cid"), "bb")[0] == 1
    assert not (tmp_path / "cid").exists()


def test_a_missing_image_is_pulled_once(daemon: Recorder, run: Run) -> None:
    daemon.answers["POST", "/containers/create"] = (404, {"message": "No such image: nosuch:latest"})
    daemon.answers["POST", "/images/create"] = (200, b'{"status":"Status: ok"}\n')
    code, _, err = run("run", "--rm", "nosuch")
    assert code == 125
    assert err.startswith("Unable to find image 'nosuch:latest' locally\nStatus: ok\n")
    paths = [request[1] for request in daemon.requests]
    assert paths == ["/containers/create", "/images/create?fromImage=nosuch&tag=latest", "/containers/create"]


def test_pull_never_does_not_pull(daemon: Recorder, run: Run) -> None:
    daemon.answers["POST", "/containers/create"] = (404, {"message": "No such image: nosuch:latest"})
    assert run("run", "--pull", "never", "nosuch")[0] == 125
    assert len(daemon.requests) == 1


def test_stored_credentials_go_with_a_pull(daemon: Recorder, run: Run, tmp_path: Path) -> None:
    import base64

    (tmp_path / ".docker").mkdir()
    auth = base64.b64encode(b"me:secret").decode()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": {"r.local:5000": {"auth": auth}}}))
    daemon.answers["POST", "/images/create"] = (200, b'{"status":"x"}\n')
    code, out, _ = run("pull", "r.local:5000/a/b")
    assert (code, out) == (0, "Using default tag: latest\nx\nr.local:5000/a/b:latest\n")
    sent = json.loads(base64.urlsafe_b64decode(daemon.heads[-1]["x-registry-auth"]))
    assert sent == {"username": "me", "password": "secret", "serveraddress": "r.local:5000"}


def test_a_credential_helper_is_asked(
    daemon: Recorder, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64

    helper = tmp_path / "docker-credential-fake"
    helper.write_text('#!/bin/sh\nread server\necho "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"for $server\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text('{"credsStore": "fake"}')
    daemon.answers["POST", "/images/create"] = (200, b'{"status":"x"}\n')
    run("pull", "-q", "bb")
    sent = json.loads(base64.urlsafe_b64decode(daemon.heads[-1]["x-registry-auth"]))
    assert sent["identitytoken"].startswith("for ")


def test_prune_asks_first_and_reports(daemon: Recorder, run: Run) -> None:
    assert run("container", "prune", "-f") == (0, "Deleted Containers:\nx\n\nTotal reclaimed space: 2.5kB\n", "")


def norm(value: Any) -> Any:
    """A body without what Go's JSON has only because its types have zero values."""
    if isinstance(value, dict):
        kept = {key: norm(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", 0, False, [], {})}
    return [norm(item) for item in value] if isinstance(value, list) else value


# Taken from what docker CLI 28.2.2 sends; values it sends with every request are in ALWAYS.
ALWAYS = {"MemorySwappiness": -1, "NetworkMode": "default", "RestartPolicy": {"Name": "no"}}


@pytest.mark.parametrize(
    ("words", "config", "host"),
    [
        ("-it bb", {"Tty": True, "OpenStdin": True, "AttachStdin": True, "StdinOnce": True}, {}),
        ("--add-host c:host-gateway --add-host d=[::2] bb", {}, {"ExtraHosts": ["c:host-gateway", "d:::2"]}),
        ("--cap-add net_admin --cap-drop ALL bb", {}, {"CapAdd": ["CAP_NET_ADMIN"], "CapDrop": ["ALL"]}),
        ("--cpus 1.5 -c 512 -m 1g --memory-swap -1 --pids-limit 5 bb", {},
         {"NanoCpus": 1500000000, "CpuShares": 512, "Memory": 1 << 30, "MemorySwap": -1, "PidsLimit": 5}),
        ("--device /dev/zero:/dev/z:r --device v.com/gpu=0 bb", {},
         {"Devices": [{"PathOnHost": "/dev/zero", "PathInContainer": "/dev/z", "CgroupPermissions": "r"}],
          "DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["v.com/gpu=0"]}]}),
        ("--gpus all bb", {}, {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]}),
        ("--health-cmd x --health-interval 1m bb",
         {"Healthcheck": {"Test": ["CMD-SHELL", "x"], "Interval": 60 * 10**9}}, {}),
        ("-p 127.0.0.1:82:82/udp -p 5000-5010:77 --expose 90 bb",
         {"ExposedPorts": {"82/udp": {}, "77/tcp": {}, "90/tcp": {}}},
         {"PortBindings": {"82/udp": [{"HostIp": "127.0.0.1", "HostPort": "82"}],
                           "77/tcp": [{"HostPort": "5000-5010"}]}}),
        ("-v /a:/b:ro -v named:/c -v /anon bb", {"Volumes": {"/anon": {}}}, {"Binds": ["/a:/b:ro", "named:/c"]}),
        ("--mount type=tmpfs,dst=/x,tmpfs-size=10m,tmpfs-mode=1770 bb", {},
         {"Mounts": [{"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"SizeBytes": 10 << 20, "Mode": 0o1770}}]}),
        ("--ulimit nofile=1:2 --ulimit core=0 bb", {},
         {"Ulimits": [{"Name": "core"}, {"Name": "nofile", "Soft": 1, "Hard": 2}]}),
        ("--security-opt systempaths=unconfined --security-opt no-new-privileges bb", {},
         {"SecurityOpt": ["no-new-privileges"]}),
        ("--restart on-failure:3 --entrypoint /e -w /w -u 1:2 -h n bb a",
         {"Entrypoint": ["/e"], "WorkingDir": "/w", "User": "1:2", "Hostname": "n", "Cmd": ["a"]},
         {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}),
    ],
)  # fmt: skip
def test_flags_become_the_body_the_docker_cli_sends(
    daemon: Recorder, run: Run, words: str, config: dict[str, Any], host: dict[str, Any]
) -> None:
    assert run("create", *words.split())[0] == 0
    body = norm(daemon.body)
    sent_host = body.pop("HostConfig")
    sent_host.pop("ConsoleSize", None)
    sent_host["RestartPolicy"].setdefault("Name", "no")
    if not any(sent_host.get("ConsoleSize", [])):
        sent_host.pop("ConsoleSize", None)
    body.pop("NetworkingConfig", None)

    def plain(value: Any) -> Any:
        return norm(value)

    assert plain(sent_host) == plain({**ALWAYS, **host})
    attach = {"AttachStdout": True, "AttachStderr": True, "Image": "bb"}
    assert plain(body) == plain({**attach, **config})


def test_every_command_loads_and_has_help(daemon: Recorder, run: Run) -> None:
    for row in rows():
        words = row.path.split()
        code, out, err = run(*words, "--help")
        assert (code, err) == (0, ""), row.path
        assert out.startswith(f"Usage:  engine {row.path}"), row.path
        names = [flag.name for flag in declare(row.load().flags)]
        assert len(names) == len(set(names)), row.path
    for alias, path in ALIASES.items():
        assert find(alias) is not None, alias
        assert path.split()[0] in GROUPS


def imported(words: list[str]) -> set[str]:
    code = (
        "import sys\nfrom engine.cli import main\n"
        f"try:\n    main({words!r})\nfinally:\n    sys.stderr.write('\\n'.join(sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    return set(result.stderr.split())


HEAVY = {"argparse", "http.client", "typing", "asyncio", "re", "enum", "json", "socket", "ssl", "email", "dataclasses",
         "subprocess", "threading", "contextlib", "signal", "hashlib", "urllib.parse"}  # fmt: skip


@pytest.mark.parametrize(
    "words", [["--help"], ["ps"], ["ps", "-aq"], ["stop", "web"], ["run", "-d", "bb", "true"], ["version"]]
)
def test_common_commands_import_next_to_nothing(daemon: Recorder, words: list[str]) -> None:
    modules = imported(words)
    assert not modules & HEAVY
    ours = {name for name in modules if name.partition(".")[0] == "engine" and not name.startswith("engine.cli")}
    assert ours <= {"engine", "engine.errors"}
    outside = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"engine", "__main__"}
    assert not outside


def test_dispatch_returns_the_exit_code(daemon: Recorder) -> None:
    assert dispatch(["ps", "-q"], os.environ) == 0


@pytest.mark.parametrize("path", ["/_ping", "/nothing"])
def test_the_answer_to_head_has_no_body_whatever_its_length_says(daemon: Recorder, path: str) -> None:
    client = Client(daemon.host)
    for _ in range(2):  # the connection stays usable
        if path == "/_ping":
            assert client.request("HEAD", path).read() == b""
        else:
            with pytest.raises(ApiFailure) as caught:
                client.request("HEAD", path)
            assert caught.value.status == 404
    client.close()
