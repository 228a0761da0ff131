"""Testcontainers for Python, unmodified: ports, waiting for logs, exec, networks, mounts, and its reaper."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Client, Daemon, debian_rootfs, wait_for

pytest.importorskip("testcontainers.core.container")
HERE = Path(__file__).parent


@pytest.fixture
def reaper(daemon: Daemon, docker: Client) -> str:
    archive = debian_rootfs()
    if archive is None:
        pytest.skip("needs mmdebstrap")
    command = ["python3", "-c", (HERE / "reaper.py").read_text()]
    docker("import", "-c", f"CMD {json.dumps(command)}", str(archive), "reaper:latest", timeout=300)
    return "reaper:latest"


def session(daemon: Daemon, directory: Path, **environment: str) -> dict[str, object]:
    mounted = directory / "mounted"
    mounted.mkdir()
    (mounted / "note").touch()
    done = subprocess.run(
        [sys.executable, str(HERE / "session.py"), "bb:latest"],
        cwd=mounted,
        env={**os.environ, "DOCKER_HOST": daemon.host, **environment},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def check(seen: dict[str, object]) -> None:
    assert (seen["page"], seen["inside"], seen["env"]) == ("hello\n", "hello\n", "hi\n")
    assert seen["mounted"] == "touch: /host/x: Read-only file system\nnote\n"
    assert seen["logs"] == "ready\n"


def test_containers_networks_ports_and_logs(daemon: Daemon, docker: Client, tmp_path: Path) -> None:
    seen = session(daemon, tmp_path, TESTCONTAINERS_RYUK_DISABLED="true")
    check(seen)
    docker("rm", "-f", *seen["containers"])  # type: ignore[misc]
    docker("network", "rm", str(seen["network"]))


def test_the_reaper_has_our_socket_and_removes_what_was_left(
    daemon: Daemon, docker: Client, reaper: str, tmp_path: Path
) -> None:
    seen = session(
        daemon, tmp_path, RYUK_CONTAINER_IMAGE=reaper, TESTCONTAINERS_DOCKER_SOCKET_OVERRIDE=str(daemon.socket)
    )
    check(seen)
    names = "label=org.testcontainers=true"
    wait_for(lambda: not docker("ps", "-aq", "--filter", names).out, "the reaper's work, and its own end")
    assert not docker("network", "ls", "-q", "--filter", f"id={seen['network']}").out
