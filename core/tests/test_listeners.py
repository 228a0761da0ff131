"""Doors: socket files, TCP, systemd's sockets and messages."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.api.listeners import Listener, open_listener
from engine.errors import EngineError, Forbidden
from engine.systemd import Notifier, passed_sockets

GROUP = str(os.getgid())


@pytest.fixture
def opened() -> Iterator[list[Listener]]:
    listeners: list[Listener] = []
    yield listeners
    for listener in listeners:
        listener.close()


def test_a_socket_file_is_for_its_group_and_goes_with_the_listener(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "deep" / "engine.sock"
    [listener] = open_listener(f"unix://{path}", group=GROUP)
    opened.append(listener)
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())
    listener.close()
    assert not path.exists()


def test_a_socket_nobody_answers_on_is_replaced(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    opened += open_listener(str(path), group=GROUP)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_path_in_use_is_an_error_and_left_alone(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    opened += open_listener(str(path), group=GROUP)
    with pytest.raises(EngineError, match="socket path in use"):
        open_listener(str(path), group=GROUP)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_file_that_another_took_over_is_not_removed(tmp_path: Path, opened: list[Listener]) -> None:
    path = tmp_path / "s"
    [first] = open_listener(str(path), group=GROUP)
    path.unlink()
    opened += open_listener(str(path), group=GROUP)
    first.close()
    assert path.exists()


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("ftp://x", "invalid bind address format: ftp://x"),
        ("tcp://127.0.0.1:99999", "invalid bind address format"),
        ("tcp://127.0.0.1:80/path", "invalid bind address format"),
        ("tcp://0.0.0.0:0", "plain TCP gives root"),
        ("fd://", "no sockets found via socket activation"),
        ("unix:///tmp/" + "x" * 120, "longer than 107 bytes"),
    ],
)
def test_hosts_that_make_no_sense_are_refused(host: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_listener(host)


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(EngineError, match="a file that is not a socket is in the way"):
        open_listener(str(path), group=GROUP)
    assert path.read_text() == "data"


def test_an_unknown_group_is_an_error_unless_it_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="group no-such-group not found"):
        open_listener(f"unix://{tmp_path}/s", group="no-such-group")


def test_loopback_tcp_refuses_what_browsers_are_tricked_into(opened: list[Listener]) -> None:
    opened += open_listener("tcp://127.0.0.1:0")
    check = opened[0].host_check
    assert check is not None
    for host in ("localhost:2375", "127.0.0.1:2375", "[::1]:2375"):
        check({"host": host})
    check({"host": "localhost:1", "origin": "http://localhost:1"})
    with pytest.raises(Forbidden, match="invalid Host header"):
        check({"host": "evil.example:2375"})
    with pytest.raises(Forbidden, match="cross-origin request"):
        check({"host": "localhost:1", "origin": "http://evil.example"})
    with pytest.raises(Forbidden, match="cross-origin request"):
        check({"host": "localhost:1", "origin": "null"})


def test_a_taken_port_is_told(opened: list[Listener]) -> None:
    opened += open_listener("tcp://127.0.0.1:0")
    port = opened[0].sock.getsockname()[1]
    with pytest.raises(EngineError, match=rf"listen tcp 127.0.0.1:{port}: bind: address already in use"):
        open_listener(f"tcp://127.0.0.1:{port}")


def test_plain_tcp_beyond_loopback_needs_a_flag(opened: list[Listener]) -> None:
    opened += open_listener("tcp://0.0.0.0:0", insecure_tcp=True)
    assert opened[0].host_check is not None


def test_sockets_of_systemd_are_taken_by_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        passed = [("api", one)]
        assert open_listener("fd://", passed=passed)[0].sock is one
        assert open_listener("fd://api", passed=passed)[0].sock is one
        with pytest.raises(EngineError, match="no socket activation socket named other"):
            open_listener("fd://other", passed=passed)


def test_variables_of_socket_activation_are_used_up_and_only_by_their_process() -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "api"}
    assert passed_sockets(environment) == []
    assert environment == {}


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "20000000"}
        notifier = Notifier(environment)
        assert environment == {}
        assert notifier.watchdog_seconds == 10
        notifier.ready()
        notifier.reloading()
        notifier.watchdog()
        notifier.stopping()
        messages = [manager.recv(200).decode().split("\n")[0] for _ in range(4)]
    assert messages == ["READY=1", "RELOADING=1", "WATCHDOG=1", "STOPPING=1"]
    notifier.ready()  # nobody listens any more: no error


def test_without_a_service_manager_nothing_is_told() -> None:
    Notifier({}).ready()
