"""engined as a program: its flags, its locks, its signals. The parts that start it need root and run in their own
network namespace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from engine.daemon import main

ENGINED = [sys.executable, "-I", "-m", "engine.daemon"]


def test_help_version_and_validate_need_no_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--data-root string" in capsys.readouterr().out
    assert main(["-v"]) == 0
    assert capsys.readouterr().out.startswith("Engine version ")
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text('{"debug": true}')
    bad.write_text('{"nope": true}')
    assert main(["--validate", "--config-file", str(good)]) == 0
    assert capsys.readouterr().out == "configuration OK\n"
    assert main(["--validate", "--config-file", str(bad)]) == 1
    assert "don't match any configuration option: nope" in capsys.readouterr().err


def test_a_wrong_flag_says_where_the_right_ones_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nope"]) == 125
    assert capsys.readouterr().err == "engined: unknown flag: --nope\nSee 'engined --help'.\n"


class UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("d", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self.path))


class Engined:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.config = directory / "daemon.json"
        self.config.write_text("{}")
        self.process: subprocess.Popen[str] | None = None

    def arguments(self) -> list[str]:
        root, state = self.directory / "data", self.directory / "run"
        return ["--data-root", str(root), "--exec-root", str(state), "--config-file", str(self.config)]

    def start(self, *arguments: str, wrapper: tuple[str, ...] = (), **popen: Any) -> subprocess.Popen[str]:
        hosts = arguments or ("-H", f"unix://{self.socket}")
        self.process = subprocess.Popen(
            [*wrapper, "unshare", "--net", *ENGINED, *self.arguments(), *hosts],
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        return self.process

    def get(self, path: str) -> Any:
        deadline = time.monotonic() + 20
        while True:
            connection = UnixConnection(self.socket)
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                body = response.read()
                assert response.status == 200, body
                return json.loads(body) if response.headers["Content-Type"] == "application/json" else body
            except (ConnectionError, FileNotFoundError):
                assert self.process is not None
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            finally:
                connection.close()

    def stop(self, number: int = signal.SIGTERM) -> str:
        assert self.process is not None
        self.process.send_signal(number)
        log = self.process.communicate(timeout=20)[1]
        return log


@pytest.fixture
def engined(tmp_path: Path) -> Iterator[Engined]:
    daemon = Engined(tmp_path)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()


@pytest.mark.root
def test_it_serves_and_leaves_nothing_behind(engined: Engined) -> None:
    process = engined.start()
    assert engined.get("/_ping") == b"OK"
    assert engined.get("/v1.24/version")["ApiVersion"] == "1.50"
    info = engined.get("/info")
    assert info["DockerRootDir"] == str(engined.directory / "data")
    assert info["Swarm"]["LocalNodeState"] == "inactive"
    assert {report["State"] for report in engined.get("/engine/plugins")} == {"enabled"}
    pid_file = engined.directory / "run" / "engined.pid"
    assert pid_file.read_text() == f"{process.pid}\n"
    log = engined.stop()
    assert process.returncode == 0
    assert not engined.socket.exists()
    assert not pid_file.exists()
    assert "Traceback" not in log
    identity = info["ID"]
    engined.start()
    assert engined.get("/info")["ID"] == identity


@pytest.mark.root
def test_a_second_daemon_on_the_same_roots_is_refused_and_harms_nothing(engined: Engined) -> None:
    process = engined.start()
    engined.get("/_ping")
    for arguments in ([], ["--data-root", str(engined.directory / "other")]):
        second = subprocess.run(
            [*ENGINED, *engined.arguments(), *arguments, "-H", f"unix://{engined.directory}/t"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 1
        assert f"is in use by another engined (pid {process.pid})" in second.stderr
    assert engined.get("/_ping") == b"OK"


@pytest.mark.root
def test_hup_reloads_what_may_change_and_tells(engined: Engined) -> None:
    process = engined.start()
    assert engined.get("/info")["Labels"] == []
    events = UnixConnection(engined.socket)
    events.request("GET", '/events?filters={"type":["daemon"]}')
    response = events.getresponse()
    engined.config.write_text('{"labels": ["a=b"], "debug": true}')
    process.send_signal(signal.SIGHUP)
    event = json.loads(response.readline())
    assert (event["Type"], event["Action"]) == ("daemon", "reload")
    assert event["Actor"]["Attributes"]["labels"] == '["a=b"]'
    info = engined.get("/info")
    assert (info["Labels"], info["Debug"]) == (["a=b"], True)
    engined.config.write_text('{"nope": 1}')
    process.send_signal(signal.SIGHUP)
    log = engined.stop()
    assert response.read() == b""  # the stream ends in good order
    events.close()
    assert process.returncode == 0
    assert "configuration reloaded" in log


@pytest.mark.root
def test_it_takes_its_socket_from_systemd_and_says_when_it_is_ready(engined: Engined) -> None:
    notify = engined.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket(socket.AF_UNIX) as api:
        manager.bind(str(notify))
        manager.settimeout(20)
        api.bind(str(engined.socket))
        api.listen()
        environment = {**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(notify)}
        wrapper = ("bash", "-c", f'LISTEN_PID=$$ exec "$@" 3<&{api.fileno()}', "bash")
        process = engined.start("-H", "fd://", wrapper=wrapper, env=environment, pass_fds=(api.fileno(),))
        assert manager.recv(200).decode() == f"READY=1\nMAINPID={process.pid}"
        assert engined.get("/_ping") == b"OK"
        engined.stop()
        assert manager.recv(200) == b"STOPPING=1"
    assert engined.socket.exists()  # it is systemd's
