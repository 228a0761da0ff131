"""Containers beyond the main job: health, faults, limits, what survives, and what must not leak."""

from __future__ import annotations

import fcntl
import http.client
import io
import json
import os
import pty
import re
import select
import shutil
import socket
import struct
import tarfile
import termios
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def test_health_survives_the_daemon(own_daemon: Callable[..., Daemon], home: Path, target: str) -> None:
    if target == "dockerd":
        pytest.skip("dockerd starts over")
    daemon = own_daemon()
    client = Client("docker", daemon, home)
    client("run", "-d", "--name", "checked", "--health-interval=1s", "--health-cmd", "true", "bb", "sleep", "99")
    wait_for(lambda: health(client, "checked")["Status"] == "healthy", "health")
    daemon.stop(9)
    daemon.start()
    assert health(client, "checked")["Status"] == "healthy"
    checks = health(client, "checked")["Log"]
    wait_for(lambda: health(client, "checked")["Log"] != checks, "checks to go on")


def test_on_unhealthy_restarts_what_fails_its_check(daemon: Daemon, home: Path, name: str, target: str) -> None:
    if target == "dockerd":
        pytest.skip("dockerd does not know it")
    client = Client("engine", daemon, home)
    refused = client("run", "-d", "--name", name, "--restart", "on-unhealthy", "bb", "true", check=False)
    assert "needs a health check" in refused.err
    client(
        "run", "-d", "--name", name, "--restart", "on-unhealthy:2", *QUICK, "--stop-timeout", "0",
        "--health-cmd", "false", "bb", "sleep", "99",
    )  # fmt: skip
    wait_for(lambda: client.inspect(name)["RestartCount"] == 2, "two restarts")
    wait_for(lambda: client.inspect(name)["State"]["Status"] == "exited", "the end")
    assert client.inspect(name)["RestartCount"] == 2


# -- bad input and faults -------------------------------------------------------------------------------------


def request(
    daemon: Daemon, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
) -> tuple[int, dict[str, object]]:
    """One raw request; status and decoded body."""
    connection = UnixConnection(str(daemon.socket))
    try:
        connection.request(method, path, body or None, {"Content-Type": content_type} if body else {})
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data.startswith(b"{") else {}
    finally:
        connection.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the daemon's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"Image": 7}',
        b'{"Image":"bb","HostConfig":{"Memory":"lots"}}',
        b"\xff\xfe",
        b"{}{",
    ],
)
def test_a_malformed_body_is_refused_as_a_bad_request(daemon: Daemon, target: str, body: bytes) -> None:
    status, answer = request(daemon, "POST", "/containers/create", body)

    assert status == 400 or (target == "dockerd" and status == 500)  # 20.10 called it its own fault
    assert answer["message"]


def test_unknown_fields_are_ignored_and_a_body_that_is_none_is_refused(daemon: Daemon, name: str) -> None:
    body = json.dumps({"Image": "bb", "Nonsense": {"a": [1]}, "HostConfig": {"Weird": 1}}).encode()
    assert request(daemon, "POST", f"/containers/create?name={name}", body)[0] == 201
    assert request(daemon, "POST", "/containers/create", b"Image=bb", "text/plain")[0] in (400, 415)


@pytest.mark.parametrize("wrong", ["a/b", "../x", "-x", "x y", "a", "é"])
def test_names_docker_refuses_are_refused(daemon: Daemon, wrong: str) -> None:
    path = f"/containers/create?name={urllib.parse.quote(wrong, safe='')}"
    status, answer = request(daemon, "POST", path, b'{"Image":"bb"}')

    assert status == 400
    assert "Invalid container name" in str(answer["message"])


def test_a_prefix_of_two_ids_is_ambiguous(daemon: Daemon, docker: Client) -> None:
    made: dict[str, str] = {}
    twin = ""
    while not twin:
        _, answer = request(daemon, "POST", "/containers/create", b'{"Image":"bb","Cmd":["true"]}')
        identifier = str(answer["Id"])
        twin = made.get(identifier[0], "")
        made[identifier[0]] = made.get(identifier[0]) or identifier
        made[identifier] = identifier
    try:
        status, answer = request(daemon, "GET", f"/containers/{twin[0]}/json")
        assert status in (400, 404)
        assert "multiple IDs found with provided prefix" in str(answer["message"]) or target_says_none(answer)
    finally:
        docker("rm", "-f", *{identifier for key, identifier in made.items() if len(key) == 64})


def target_says_none(answer: dict[str, object]) -> bool:
    """dockerd's other answer to an ambiguous prefix."""
    return "No such container" in str(answer["message"])


def test_of_many_clients_that_want_one_name_exactly_one_wins(daemon: Daemon, name: str) -> None:
    def create(_: int) -> tuple[int, dict[str, object]]:
        return request(daemon, "POST", f"/containers/create?name={name}", b'{"Image":"bb","Cmd":["sleep","99"]}')

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(create, range(12)))
        assert sorted(status for status, _ in answers) == [201] + [409] * 11
        winner = next(str(answer["Id"]) for status, answer in answers if status == 201)
        assert all("already in use by container" in str(a["message"]) for status, a in answers if status == 409)

        starts = list(pool.map(lambda _: request(daemon, "POST", f"/containers/{name}/start")[0], range(12)))
        assert sorted(starts) == [204] + [304] * 11
        stops = list(pool.map(lambda _: request(daemon, "POST", f"/containers/{name}/stop?t=0")[0], range(12)))
        assert set(stops) <= {204, 304}
        assert 204 in stops
        removals = list(pool.map(lambda _: request(daemon, "DELETE", f"/containers/{winner}")[0], range(12)))
        assert removals.count(204) == 1
        assert set(removals) <= {204, 404, 409}


def test_stop_during_start_stops_and_rm_during_stats_ends_them(daemon: Daemon, docker: Client, name: str) -> None:
    docker("create", "--name", name, "bb", "sleep", "99")
    with ThreadPoolExecutor(2) as pool:
        starting = pool.submit(request, daemon, "POST", f"/containers/{name}/start")
        stopping = pool.submit(request, daemon, "POST", f"/containers/{name}/stop?t=0")
        assert starting.result()[0] == 204
        assert stopping.result()[0] in (204, 304)
    docker("start", name)
    connection = UnixConnection(str(daemon.socket))
    connection.request("GET", f"/containers/{name}/stats")
    answer = connection.getresponse()
    assert json.loads(answer.readline())["name"] == f"/{name}"
    docker("rm", "-f", name)
    answer.read()  # ends
    connection.close()


def test_exec_into_what_does_not_run_says_why(docker: Client, name: str) -> None:
    docker("run", "-d", "--name", name, "bb", "sleep", "99")
    docker("pause", name)
    assert "is paused, unpause the container before exec" in docker("exec", name, "true", check=False).err
    docker("unpause", name)
    docker("stop", "-t", "0", name)
    assert "is not running" in docker("exec", name, "true", check=False).err
    docker("rm", name)
    docker("run", "-d", "--name", name, "--restart", "always", "bb", "false")
    wait_for(lambda: docker.inspect(name)["State"]["Status"] == "restarting", "a restart", 30)
    refused = docker("exec", name, "true", check=False)
    assert refused.code != 0
    assert "is restarting" in refused.err or "is not running" in refused.err


def test_clients_that_vanish_or_never_read_do_not_hold_the_container(daemon: Daemon, docker: Client, name: str) -> None:
    docker(
        "run",
        "-d",
        "-i",
        "--name",
        name,
        "bb",
        "sh",
        "-c",
        "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done",
    )
    deaf = []
    for path in (f"/containers/{name}/attach?stream=1&stdout=1&stdin=1", f"/containers/{name}/logs?follow=1&stdout=1"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(daemon.socket))
        verb = "POST" if "attach" in path else "GET"
        sock.sendall(
            f"{verb} {path} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            "Content-Length: 0\r\n\r\n".encode()
        )
        deaf.append(sock)  # never read
    gone = socket.socket(socket.AF_UNIX)
    gone.connect(str(daemon.socket))
    gone.sendall(
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    gone.close()

    size = len(docker("logs", "--tail", "5", name).out)
    assert size > 0
    started = time.monotonic()
    docker("stop", "-t", "0", name)
    assert time.monotonic() - started < 10
    for sock in deaf:
        sock.close()


def test_a_runtime_that_crashes_or_hangs_is_reported_and_leaves_nothing(
    own_daemon: Callable[..., Daemon], home: Path, tmp_path: Path, target: str
) -> None:
    if target == "dockerd":
        pytest.skip("containerd's shim needs a real runtime")
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    odd = tmp_path / "odd"
    odd.write_text(
        '#!/bin/sh\ncase "$*" in *--version*|*features*) exec runc "$@";; esac\necho "it broke" >&2; exit 7\n'
    )
    odd.chmod(0o755)
    daemon = own_daemon(config={"runtimes": {"crash": {"path": str(crash)}, "odd": {"path": str(odd)}}})
    client = Client("docker", daemon, home)
    for runtime in ("crash", "odd"):
        result = client("run", "--name", runtime, "--runtime", runtime, "bb", "true", check=False)
        assert result.code in (125, 126, 127), result
        assert result.err.strip()
        assert client.inspect(runtime)["State"]["Status"] == "created"
        client("rm", runtime)
    assert client("run", "--rm", "bb", "echo", "fine").out == "fine\n"


def leftovers(daemon: Daemon) -> dict[str, int]:
    """What a daemon holds: descriptors, mounts, interfaces, processes, cgroups, directories."""
    assert daemon.process is not None
    own = str(daemon.directory)
    mounts = Path(f"/proc/{daemon.process.pid}/mountinfo").read_text().splitlines()
    return {
        "descriptors": len(os.listdir(f"/proc/{daemon.process.pid}/fd")),
        "mounts": sum(own in line for line in mounts),
        "interfaces": len(os.listdir(f"/proc/{daemon.process.pid}/net/dev_snmp6")),
        "children": len(Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()),
        "containers": sum(1 for _ in (daemon.directory / "data" / "containers").iterdir()),
        "bundles": sum(1 for _ in (daemon.directory / "run").rglob("config.json")),
    }


def test_two_hundred_runs_leave_nothing_behind(daemon: Daemon, target: str) -> None:
    def cycle(number: int) -> None:
        command = {"Image": "bb", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none" if number % 10 else "bridge"}}
        _, made = request(daemon, "POST", "/containers/create", json.dumps(command).encode())
        assert request(daemon, "POST", f"/containers/{made['Id']}/start")[0] == 204
        assert request(daemon, "POST", f"/containers/{made['Id']}/wait")[1]["StatusCode"] == 0
        assert request(daemon, "DELETE", f"/containers/{made['Id']}?v=1")[0] == 204

    if target == "dockerd":
        pytest.skip("dockerd's own business")
    for number in range(3):
        cycle(number)
    before = leftovers(daemon)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(cycle, range(200)))
    wait_for(
        lambda: all(
            after <= before[key] + (8 if key == "descriptors" else 0) for key, after in leftovers(daemon).items()
        ),
        f"everything to be given back: {before}, {leftovers(daemon)}",
    )


# -- attach over WebSocket, copy ------------------------------------------------------------------------------


def test_attach_over_a_websocket_passes_messages_both_ways(daemon: Daemon, docker: Client, name: str) -> None:
    docker("run", "-d", "-i", "--name", name, "bb", "sh", "-c", 'while read l; do echo "got $l"; done')
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(daemon.socket))
    sock.sendall(
        f"GET /v1.41/containers/{name}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: d\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://d\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = sock.recv(4096)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    text, mask = b"hello\n", b"abcd"
    sock.sendall(bytes([0x81, 0x80 | len(text)]) + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(text)))
    assert sock.recv(4096) == b"\x82\x0agot hello\n"
    docker("kill", name)
    assert sock.recv(4096) == b"\x88\x02\x03\xe8"
    sock.close()


def archive(*members: tuple[str, bytes | None]) -> bytes:
    """A tar of files, and of directories where the content is None."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.uid = info.gid = 1234
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.mode, info.size = 0o755, len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def test_names_that_look_like_whiteouts_are_names_to_cp(daemon: Daemon, docker: Client, name: str) -> None:
    docker("run", "-d", "--name", name, "-u", "1000", "bb", "sleep", "99")
    docker("exec", name, "touch", "/tmp/x")
    url = f"/containers/{name}/archive?path=/tmp"
    assert request(daemon, "PUT", url, archive((".wh.x", b"1"), (".wh..wh..opq", b"")), "application/x-tar")[0] == 200

    assert docker("exec", name, "ls", "-A", "/tmp").out.split() == [".wh..wh..opq", ".wh.x", "x"]


def test_put_archive_keeps_kinds_and_gives_to_the_user_when_asked(
    daemon: Daemon, docker: Client, name: str, target: str
) -> None:
    docker("run", "-d", "--name", name, "-u", "1000:1000", "bb", "sleep", "99")
    docker("exec", name, "sh", "-c", "mkdir /tmp/d; touch /tmp/f")
    url = f"/containers/{name}/archive?path=/tmp"
    for member in (("d", b"file"), ("f", None)):
        status, answer = request(
            daemon, "PUT", f"{url}&noOverwriteDirNonDir=true", archive(member), "application/x-tar"
        )
        assert status in (400, 500)
        assert "cannot overwrite" in str(answer["message"])
    if target == "dockerd":
        return  # 20.10 looks the user up on the host
    assert request(daemon, "PUT", f"{url}&copyUIDGID=1", archive(("own", b"")), "application/x-tar")[0] == 200
    assert request(daemon, "PUT", url, archive(("as-is", b"")), "application/x-tar")[0] == 200
    assert docker("exec", name, "stat", "-c", "%u", "/tmp/own", "/tmp/as-is").out.split() == ["1000", "1234"]


def test_the_root_of_a_stopped_container_can_be_copied_out(docker: Client, name: str, tmp_path: Path) -> None:
    docker("run", "--name", name, "bb", "sh", "-c", "echo hi > /root/file; ln -s file /root/link")
    docker("cp", f"{name}:/", str(tmp_path / "all"))
    assert (tmp_path / "all" / "root" / "file").read_text() == "hi\n"
    docker("cp", f"{name}:/root/link", str(tmp_path / "link"))
    docker("cp", "-L", f"{name}:/root/link", str(tmp_path / "followed"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "followed").read_text() == "hi\n"


# -- devices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_cdi_devices_are_injected(own_daemon: Callable[..., Daemon], home: Path, target: str, form: str) -> None:
    if target == "dockerd":
        pytest.skip("Debian's dockerd is too old for CDI")
    directory = home / "cdi"
    directory.mkdir()
    (directory / f"test.{form}").write_text(
        {
            "json": '{"kind":"test.com/null","devices":[{"name":"a","containerEdits":{"env":["CDI=yes"],'
            '"deviceNodes":[{"path":"/dev/cdi","hostPath":"/dev/zero"}]}}]}',
            "yaml": "kind: test.com/null\ndevices:\n- name: a\n  containerEdits:\n    env: [CDI=yes]\n"
            "    deviceNodes:\n    - {path: /dev/cdi, hostPath: /dev/zero}\n",
        }[form]
    )
    client = Client("docker", own_daemon(config={"cdi-spec-dirs": [str(directory)]}), home)
    found = client(
        "run", "--rm", "--device", "test.com/null=a", "bb", "sh", "-c", "echo $CDI; head -c 3 /dev/cdi | wc -c"
    )
    assert found.out.split() == ["yes", "3"]
    refused = client("run", "--rm", "--device", "test.com/null=b", "bb", "true", check=False)
    assert "unresolvable CDI devices test.com/null=b" in refused.err


def test_gpus_fail_as_with_docker_and_without_other_noise(docker: Client) -> None:
    result = docker("run", "--rm", "--gpus", "all", "bb", "true", check=False)

    assert result.code == 125
    assert result.err.startswith("docker: Error response from daemon: could not select device driver")
    assert 'could not select device driver "" with capabilities: [[gpu]]' in result.err


# -- logs -----------------------------------------------------------------------------------------------------


def test_details_show_labels_variables_and_tag(docker: Client, name: str) -> None:
    options = ("--log-opt", "labels=a", "--log-opt", "env=E", "--log-opt", "tag=x{{.Name}}")
    docker("run", "--name", name, *options, "-l", "a=1", "-e", "E=v w", "bb", "echo", "hi")

    assert docker("logs", "--details", name).out == f"E=v+w,a=1,tag=x{name} hi\n"


@pytest.mark.parametrize("mode", ["blocking", "non-blocking"])
def test_a_log_sent_to_syslog_arrives_and_can_still_be_read(
    docker: Client, name: str, tmp_path: Path, mode: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        path = f"/tmp/syslog-{os.getpid()}-{mode}"
        server.bind(path)
        server.settimeout(10)
        try:
            docker(
                "run", "--name", name, "--log-driver", "syslog", "--log-opt", f"syslog-address=unixgram://{path}",
                "--log-opt", "syslog-format=rfc5424", "--log-opt", "tag={{.Name}}", "--log-opt", f"mode={mode}",
                "bb", "echo", "to syslog",
            )  # fmt: skip
            assert re.fullmatch(rf"<30>1 \S+ \S+ {name} \d+ {name} - to syslog\n?", server.recv(4096).decode())
        finally:
            os.unlink(path)
    assert docker("logs", name).out == "to syslog\n"


# -- engine's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def engine(daemon: Daemon, home: Path, target: str) -> Client:
    if target == "dockerd":
        pytest.skip("ours alone")
    return Client("engine", daemon, home)


def scratch_image(client: Client, directory: Path, name: str) -> None:
    """An image with one file: busybox under another name, and no shell."""
    layer = directory / "scratch.tar"
    with tarfile.open(layer, "w") as tar:
        tar.add(shutil.which("busybox") or "", "sleep")
    client("import", "-c", 'CMD ["/sleep", "99"]', str(layer), name)


def test_debug_brings_tools_into_a_container_that_has_none(engine: Client, name: str, tmp_path: Path) -> None:
    scratch_image(engine, tmp_path, "from-scratch")
    engine("run", "-d", "--read-only", "--tmpfs", "/data", "--name", name, "from-scratch")
    changed = engine("diff", name).out
    seen = engine("debug", "-c", "ls /; ps | grep -c '[/]sleep 99'; touch /data/made; entrypoint", name, input="").out

    assert "sleep" in seen.split()
    assert "lint: PASS: /sleep" in seen
    assert "/data/made" in engine("debug", "-c", "ls /data/made", name, input="").out
    assert engine("diff", name).out == changed
    pid = engine.inspect(name)["State"]["Pid"]
    assert ".toolbox" not in os.listdir(f"/proc/{pid}/root/dev")
    assert engine("debug", "-c", "exit 7", name, input="", check=False).code == 7


def test_debug_of_an_image_or_a_stopped_container_changes_nothing(engine: Client, name: str, tmp_path: Path) -> None:
    scratch_image(engine, tmp_path, "from-scratch")
    images = engine("images", "-aq").out
    assert "/x" in engine("debug", "-c", "touch /x; ls /x", "from-scratch", input="").out
    engine("run", "--name", name, "bb", "touch", "/old")
    assert engine("debug", "-c", "touch /new; ls /old /new", name, input="").out.split() == ["/new", "/old"]
    assert engine("diff", name).out.split() == ["A", "/old"]
    assert engine("images", "-aq").out == images
    assert engine("debug", "nosuch", input="", check=False).err.startswith("Error: No such container or image: nosuch")


def test_debug_is_as_confined_as_the_container_but_may_trace(engine: Client, name: str) -> None:
    engine("run", "-d", "--name", name, "--cap-drop", "ALL", "-m", "64m", "bb", "sleep", "99")
    seen = engine("debug", "-c", "grep CapEff /proc/self/status; cat /proc/self/cgroup", name, input="").out
    pid = engine.inspect(name)["State"]["Pid"]

    assert f"{1 << 19:016x}" in seen
    theirs = Path(f"/proc/{pid}/cgroup").read_text()
    memory = next(line for line in theirs.splitlines() if ":memory:" in line or line.startswith("0::"))
    assert memory in seen


def test_inspect_at_shows_a_past_state_even_of_what_is_gone_and_after_a_restart(
    own_daemon: Callable[..., Daemon], home: Path, target: str
) -> None:
    if target == "dockerd":
        pytest.skip("ours alone")
    daemon = own_daemon()
    client = Client("engine", daemon, home)

    def now() -> str:
        return f"{time.time():.9f}"

    def past(moment: str) -> dict[str, object]:
        return dict(json.loads(client("inspect", "--at", moment, "past").out)[0]["State"])

    before = now()
    client("run", "-d", "--name", "past", "bb", "sh", "-c", "trap 'exit 4' TERM; sleep 99 & wait")
    running = now()
    client("pause", "past")
    paused = now()
    client("unpause", "past")
    client("stop", "past")
    stopped = now()
    client("rm", "past")
    daemon.stop()
    daemon.start()

    assert past(running)["Status"] == "running"
    assert past(paused)["Status"] == "paused"
    assert (past(stopped)["Status"], past(stopped)["ExitCode"]) == ("exited", 4)
    for moment in (before, now()):
        assert "No such container at" in client("inspect", "--at", moment, "past", check=False).err
    told = client(
        "events", "--since", before, "--until", now(), "--filter", "container=past", "--format", "{{.Action}}"
    )
    assert told.out.split() == ["create", "start", "pause", "unpause", "kill", "die", "stop", "destroy"]


def test_explain_says_what_isolates_limits_and_ended_a_container(engine: Client, name: str) -> None:
    options = (
        "-m",
        "32m",
        "--memory-swap",
        "32m",
        "--pids-limit",
        "50",
        "--cpus",
        "0.5",
        "--cap-drop",
        "ALL",
        "--network",
        "none",
    )
    hog = "tail /dev/zero"
    assert engine("run", "--name", name, *options, "--pid", "host", "bb", "sh", "-c", hog, check=False).code == 137
    text = engine("explain", name).out

    for line in (
        r"why it ended +out of memory: the kernel killed it at its memory limit \(exit code 137\)",
        r"network +its own, without any network",
        r"processes +SHARED with the host",
        r"capabilities +none",
        r"memory +32MiB",
        r"swap +none on top",
        r"cpu +at most 0.5 CPUs",
        r"processes +at most 50",
    ):
        assert re.search(line, text), (line, text)
    assert json.loads(engine("explain", "--format", "json", name).out)["State"][0] == {"What": "status", "Is": "exited"}


# -- states, layers, limits, terminals ------------------------------------------------------------------------


def state(client: Client, name: str) -> str:
    return str(client.inspect(name)["State"]["Status"])


def test_the_states_of_a_container_and_what_ps_says_of_them(cli: Client, name: str) -> None:
    def listed(status: str) -> str:
        return cli(
            "ps", "-a", "--filter", f"status={status}", "--filter", f"name={name}", "--format", "{{.Status}}"
        ).out

    cli("create", "--name", name, "--restart", "always", "bb", "sleep", "99")
    assert listed("created") == "Created\n"
    cli("start", name)
    assert listed("running").startswith("Up ")
    cli("pause", name)
    assert listed("paused").endswith("(Paused)\n")
    pid = cli.inspect(name)["State"]["Pid"]
    freezer = next((line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if "freezer" in line), "")
    if freezer:
        path = Path("/sys/fs/cgroup/freezer" + freezer.split(":", 2)[2])
        assert (path / "freezer.state").read_text() == "FROZEN\n"
    cli("unpause", name)
    assert listed("running").startswith("Up ")
    cli("stop", "-t", "0", name)
    assert listed("exited").startswith("Exited (137) ")
    cli("rm", name)
    cli("run", "-d", "--name", name, "--restart", "always", "bb", "sh", "-c", "exit 3")
    wait_for(lambda: listed("restarting").startswith("Restarting (3) "), "the restart")
    for status in ("removing", "dead"):
        assert listed(status) == ""
    assert "invalid" in cli("ps", "--filter", "status=nope", check=False).err.lower()
    assert "invalid filter 'nope" in cli("ps", "--filter", "nope=1", check=False).err.lower()


def test_many_names_are_served_and_one_mistake_stops_none_of_them(cli: Client, name: str) -> None:
    cli("create", "--name", name, "bb", "sleep", "99")
    for command in ("start", "restart", "pause", "unpause", "stop", "rm"):
        result = cli(command, *(("-t", "0") if command in ("restart", "stop") else ()), "nosuch", name, check=False)
        assert (result.code, result.out) == (1, f"{name}\n")
        assert "No such container: nosuch" in result.err


def test_prune_asks_and_tells_what_went(cli: Client, name: str) -> None:
    identifier = cli("create", "--name", name, "--label", f"of={name}", "bb", "true").out.strip()
    only = ("--filter", f"label=of={name}")
    assert "Are you sure" in cli("container", "prune", *only, input="n\n", check=False).out
    result = cli("container", "prune", "-f", *only).out
    assert result.startswith(f"Deleted Containers:\n{identifier}\n")
    assert "Total reclaimed space: " in result


def test_each_container_has_a_thin_layer_of_its_own_that_outlives_stops(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sleep", "99")
    cli("exec", name, "touch", "/x")
    cli("restart", "-t", "0", name)
    assert cli("exec", name, "ls", "/x").out == "/x\n"
    assert cli("diff", name).out == "A /x\n"
    assert cli("run", "--rm", "bb", "ls", "/x", check=False).code == 1
    assert cli.inspect(name)["RestartCount"] == 0
    failed = cli(
        "run", "--rm", "--read-only", "--tmpfs", "/tmp", "bb", "sh", "-c", "touch /tmp/ok && touch /x", check=False
    )
    assert "Read-only file system" in failed.err


def test_init_is_the_first_process_and_reaps(cli: Client) -> None:
    script = "sh -c 'sleep 0.1 & exit'; sleep 0.4; cat /proc/1/comm; cat /proc/[0-9]*/stat | grep -c ') Z '"
    lines = cli("run", "--rm", "--init", "bb", "sh", "-c", script, check=False).out.split()

    assert lines[0] != "sh"
    assert lines[1] == "0"


def test_update_changes_limits_and_policy_of_a_running_container(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "-m", "64m", "bb", "sleep", "99")
    cli(
        "update", "-m", "96m", "--memory-swap", "128m", "--cpus", "0.5", "--pids-limit", "77", "--cpu-shares", "300",
        "--cpuset-cpus", "0", "--restart", "on-failure:3", name,
    )  # fmt: skip
    host = cli.inspect(name)["HostConfig"]
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (96 << 20, 500_000_000, 77)
    pid = cli.inspect(name)["State"]["Pid"]
    paths = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if "memory" not in paths:
        pytest.skip("cgroup v2 is looked at in the virtual machine")
    for controller, file, value in (
        ("memory", "memory.limit_in_bytes", str(96 << 20)),
        ("memory", "memory.memsw.limit_in_bytes", str(128 << 20)),
        ("pids", "pids.max", "77"),
        ("cpuset", "cpuset.cpus", "0"),
    ):
        assert Path(f"/sys/fs/cgroup/{controller}{paths[controller]}/{file}").read_text().strip() == value
    assert "Minimum memory limit allowed is 6MB" in cli("update", "-m", "1m", name, check=False).err


def test_stats_and_top_show_what_runs(cli: Client, daemon: Daemon, name: str) -> None:
    cli("run", "-d", "--name", name, "-m", "64m", "bb", "sh", "-c", "while :; do :; done")
    _, sample = request(daemon, "GET", f"/containers/{name}/stats?stream=false")
    cpu, before = dict(sample["cpu_stats"]), dict(sample["precpu_stats"])  # type: ignore[call-overload]
    used = cpu["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    assert used > 0.2 * 10**9
    assert cpu["system_cpu_usage"] > before["system_cpu_usage"]
    assert dict(sample["memory_stats"])["limit"] == 64 << 20  # type: ignore[call-overload]
    assert "eth0" in dict(sample["networks"])  # type: ignore[call-overload]
    table = cli("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", name).out
    assert table == f"{name} 1\n"
    assert "while :; do :; done" in cli("top", name).out


class Terminal:
    """A command in a pseudo-terminal: send keys, wait for text."""

    def __init__(self, client: Client, *args: str) -> None:
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(client.argv()[0], client.argv(*args), client.environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))

    def send(self, data: bytes) -> None:
        os.write(self.fd, data)

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + 20
        while text not in self.seen:
            assert time.monotonic() < deadline, f"waited for {text!r}, saw {self.seen!r}"
            if select.select([self.fd], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self.fd, 4096)
                except OSError:
                    assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]

    def wait(self) -> int:
        try:
            while os.read(self.fd, 4096):
                pass
        except OSError:
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_has_its_size_is_left_by_its_keys_and_joined_again(cli: Client, name: str) -> None:
    shell = Terminal(cli, "run", "-it", "--name", name, "bb", "sh")
    shell.expect(b"# ")
    shell.send(b"stty size; tty\r")
    shell.expect(b"33 77")
    shell.expect(b"/dev/pts/0")
    shell.send(b"\x10\x11")  # ctrl-p ctrl-q
    assert shell.wait() in (0, 1)
    assert state(cli, name) == "running"

    inside = Terminal(cli, "exec", "-it", name, "sh")
    inside.expect(b"# ")
    inside.send(b"exit 4\r")
    assert inside.wait() == 4
    assert state(cli, name) == "running"

    again = Terminal(cli, "attach", "--detach-keys", "ctrl-x,x", name)
    again.send(b"echo back-$((20+3))\r")
    again.expect(b"back-23")
    again.send(b"\x18x")
    again.wait()
    assert state(cli, name) == "running"
    last = Terminal(cli, "attach", name)
    last.send(b"exit 5\r")
    assert last.wait() == 5


def test_signals_are_passed_on_unless_told_otherwise(cli: Client, name: str) -> None:
    script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    process = cli.popen("run", "--name", name, "bb", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(15)
    assert process.communicate(timeout=20)[0] == b"got\n"
    assert process.returncode == 5


def test_update_mounts_further_paths_into_a_running_container_for_good(
    engine: Client, name: str, tmp_path: Path
) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_text("from the host\n")
    engine("run", "-d", "--name", name, "bb", "sh", "-c", "ln -s /etc /tmp/link; sleep 99")
    engine("update", "-v", f"{tmp_path}/dir:/new/place:ro", "-v", f"{tmp_path}/dir/file:/tmp/link/one", name)

    read = ("sh", "-c", "cat /new/place/file /etc/one; touch /new/place/x")
    for _ in range(2):
        seen = engine("exec", name, *read, check=False)
        assert seen.out == "from the host\nfrom the host\n"
        assert "Read-only file system" in seen.err
        engine("restart", "-t", "0", name)
    assert [mount["Destination"] for mount in engine.inspect(name)["Mounts"]] == ["/new/place", "/tmp/link/one"]
    assert "Duplicate mount point" in engine("update", "-v", "/tmp:/new/place", name, check=False).err
    assert "does not exist" in engine("update", "-v", "/no/such:/x", name, check=False).err
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_update_changes_nothing_but_limits_and_policy(daemon: Daemon, docker: Client, name: str) -> None:
    docker("create", "--name", name, "bb", "true")
    body = json.dumps({"Memory": 64 << 20, "MemorySwap": -1, "Privileged": True, "PidMode": "host"}).encode()
    assert request(daemon, "POST", f"/containers/{name}/update", body)[0] == 200
    host = docker.inspect(name)["HostConfig"]
    assert (host["Memory"], host["Privileged"], host["PidMode"]) == (64 << 20, False, "")
