"""The engine as a platform: versions, the API by hand, plugins, who may use the socket, many containers on one host."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import BIN, Client, Daemon


def get(daemon: Daemon, path: str) -> tuple[dict[str, str], bytes]:
    """A request by hand: headers in lower case, and the body."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.socket))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while block := connection.recv(65536):
            answer += block
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    return {"status": status.split()[1], **headers}, body


def test_version_has_a_client_and_a_server_section(cli: Client) -> None:
    shown = cli("version").out

    assert "Client:" in shown
    assert "Server:" in shown
    assert cli("version", "--format", "{{.Server.Version}}").out.strip()


def test_the_api_is_versioned_and_says_so(daemon: Daemon) -> None:
    headers, body = get(daemon, "/_ping")
    assert body == b"OK"
    assert {"api-version", "docker-experimental", "ostype"} <= set(headers)
    newest = headers["api-version"]
    for version in ("1.24", "1.41", newest):
        if version <= newest:
            assert get(daemon, f"/v{version}/containers/json")[0]["status"] == "200"
    headers, body = get(daemon, "/v1.99/containers/json")
    assert headers["status"] == "400"
    assert "client version 1.99 is too new. Maximum supported API version is" in json.loads(body)["message"]
    headers, body = get(daemon, "/v1.41/nosuchpage")
    assert (headers["status"], json.loads(body)) == ("404", {"message": "page not found"})


def test_containers_share_the_hosts_kernel(cli: Client) -> None:
    assert cli("run", "--rm", "bb", "uname", "-r").out.strip() == os.uname().release


def test_fifty_containers_run_at_once(docker: Client) -> None:
    names = [f"many-{number}" for number in range(50)]
    try:
        for name in names:
            docker("run", "-d", "--network", "none", "--name", name, "bb", "sleep", "600")
        running = docker("ps", "-q", "--filter", "name=many-").out.split()
        assert len(running) == 50
    finally:
        docker("rm", "-f", *names, check=False)


def test_an_image_for_another_system_is_refused(cli: Client) -> None:
    result = cli("run", "--rm", "--pull", "never", "--platform", "windows/amd64", "bb", check=False)

    assert result.code == 125
    assert "windows" in result.err


def test_names_without_a_registry_mean_docker_hub(cli: Client) -> None:
    result = cli("pull", "no-such-image-here", check=False)

    assert result.code == 1
    assert "Using default tag: latest" in result.out
    assert "registry-1.docker.io" in result.err


@pytest.fixture
def _engine_only(target: str) -> None:
    if target != "engine":
        pytest.skip("ours only")


@pytest.mark.usefixtures("_engine_only")
def test_components_are_listed_by_name_version_and_package(daemon: Daemon, home: Path) -> None:
    shown = Client("engine", daemon, home)("plugin", "ls").out

    assert shown.splitlines()[0].split() == ["NAME", "VERSION", "DISTRIBUTION", "KIND", "PROVIDES", "STATE", "ERROR"]
    for name in ("runtime-oci", "network-bridge", "store-overlay", "volume-local", "log-files", "security-seccomp"):
        assert f"engine-{name}" in shown


@pytest.mark.usefixtures("_engine_only")
def test_the_core_runs_without_plugins_and_names_what_is_missing(own_daemon: Callable[..., Daemon], home: Path) -> None:
    daemon = own_daemon(config={"disabled-plugins": ["log-files", "network-bridge"]})
    docker = Client("docker", daemon, home)

    assert (
        docker("run", "--rm", "--network", "none", "--log-driver", "none", "bb", "echo", "x", check=False).code == 125
    )
    result = docker("run", "--rm", "--network", "none", "bb", "echo", "x", check=False)
    assert result.code == 125
    assert "json-file" in result.err
    assert "Traceback" not in result.err
    assert "disabled" in Client("engine", daemon, home)("plugin", "ls").out


def test_the_group_may_use_the_socket_and_others_may_not(daemon: Daemon, docker: Client) -> None:
    nobody = pwd.getpwnam("nobody")
    argv = docker.argv("ps")
    os.chmod(daemon.directory, 0o755)
    os.chmod(daemon.directory.parent, 0o755)

    def as_user(group: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[group],
            env={**docker.environment, "HOME": "/", "DOCKER_CONFIG": "/nonexistent"},
            capture_output=True,
            text=True,
        )

    refused = as_user(nobody.pw_gid)
    assert refused.returncode == 1
    assert "permission denied while trying to connect" in refused.stderr
    assert as_user(daemon.socket.stat().st_gid).returncode == 0


@pytest.mark.usefixtures("_engine_only")
def test_the_monitor_is_the_containers_parent_and_init_is_the_monitors(docker: Client, name: str) -> None:
    docker("run", "-d", "--name", name, "bb", "sleep", "300")

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])

    monitor = parent(int(docker.inspect(name)["State"]["Pid"]))
    assert parent(monitor) == 1
    runtimes = [path for path in Path("/proc").glob("[0-9]*/comm") if path.read_text() in ("runc\n", "crun\n")]
    assert [path for path in runtimes if parent(int(path.parent.name)) == monitor] == []


def test_the_programs_are_separate() -> None:
    assert {"engine", "engined"} <= {path.name for path in BIN.iterdir()}
