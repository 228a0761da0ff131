"""The main job on a real system: Debian, made from its own packages, with a real nginx in it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import urllib.request

import pytest
from harness import Client, Daemon, connects, debian_rootfs, wait_for


@pytest.fixture(scope="module")
def debian(daemon: Daemon, registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Imported, pushed to the registry, removed, and pulled back."""
    archive = debian_rootfs()
    if archive is None:
        pytest.skip("needs mmdebstrap")
    docker = Client("docker", daemon, tmp_path_factory.mktemp("home"))
    reference = f"{registry}/debian:real"
    docker("import", "-c", 'CMD ["bash"]', str(archive), reference, timeout=300)
    docker("push", reference, timeout=300)
    docker("rmi", reference)
    docker("pull", reference, timeout=300)
    return reference


def test_a_real_distribution_runs(cli: Client, debian: str) -> None:
    assert "Debian" in cli("run", "--rm", debian, "cat", "/etc/os-release").out
    assert cli("run", "--rm", debian, "perl", "-e", "print 6*7").out == "42"
    assert "git version" in cli("run", "--rm", debian, "git", "--version").out
    listed = cli("run", "--rm", debian, "dpkg", "-V", "coreutils", "libc6", check=False)
    assert listed.out == "", "files differ from what the packages shipped"


def test_nginx_serves_on_a_published_port(cli: Client, debian: str, name: str) -> None:
    cli("run", "-d", "--name", name, "-p", "8088:80", debian, "nginx", "-g", "daemon off;")
    wait_for(lambda: connects("127.0.0.1", 8088), "nginx")

    with urllib.request.urlopen("http://127.0.0.1:8088/", timeout=10) as answer:
        assert b"nginx" in answer.read()

    assert cli("exec", name, "sh", "-c", "ls /run/nginx.pid").out == "/run/nginx.pid\n"
    assert cli("stop", name).out == f"{name}\n"
    assert cli.inspect(name)["State"]["ExitCode"] == 0
    cli("start", name)
    wait_for(lambda: connects("127.0.0.1", 8088), "nginx again")


def test_an_interactive_shell_has_a_terminal_with_job_control(cli: Client, debian: str, name: str) -> None:
    cli("run", "-d", "--name", name, debian, "sleep", "1000")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        cli.argv("exec", "-it", name, "bash", "--norc"), stdin=theirs, stdout=theirs, stderr=theirs, env=cli.environment
    )
    os.close(theirs)
    seen = b""

    def read_until(pattern: bytes) -> None:
        nonlocal seen
        while not re.search(pattern, seen):
            seen += os.read(ours, 65536)

    read_until(rb"# ")
    os.write(ours, b"tty; echo $-\n")
    read_until(rb"/dev/pts/\d+")
    read_until(rb"[a-zA-Z]*m[a-zA-Z]*\r\n")  # "m" in $- is job control
    os.write(ours, b"sleep 123\n")
    running = ("exec", name, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    wait_for(lambda: "sleep 123" in cli(*running).out, "sleep to run")
    os.write(ours, b"\x1a")
    read_until(rb"Stopped")
    os.write(ours, b"kill -9 %1\nwait\nexit 0\nexit 0\n")
    assert process.wait(20) == 0
    os.close(ours)
    assert name in cli("ps", "--format", "{{.Names}}").out
