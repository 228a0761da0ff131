"""What arrives at a syslog server and at the journal, and what happens when they are slow or away."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.drivers import DriverContext
from engine.drivers.log import LogTarget
from engine.errors import EngineError, InvalidParameter
from engine.testing.logs import open_writer
from engine_log_remote.driver import Journald, Syslog

Context = Callable[..., DriverContext]
NOW = 1_800_000_000_123_456_789


@pytest.fixture
def datagrams(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.settimeout(5)
        yield sock


@pytest.fixture
def syslog(driver_context: Context, tmp_path: Path) -> Callable[..., Any]:
    def open_(tag: str = "", **options: str) -> Any:
        named = {key.replace("_", "-"): value for key, value in options.items()}
        target = LogTarget(container_id="ab" * 32, directory=tmp_path, options=named, tag=tag)
        driver = Syslog(driver_context("syslog"))
        driver.validate(named)
        return open_writer(driver, target)

    return open_


def test_the_local_form_has_priority_tag_and_text(syslog: Any, datagrams: socket.socket, tmp_path: Path) -> None:
    log = syslog(tag="web", syslog_address=f"unixgram://{tmp_path / 'log'}", syslog_facility="local3")
    log.write(1, b"one\ntwo", NOW)
    log.write(2, b"bad\n", NOW)
    log.close()

    stamp = rb"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rb"<158>" + stamp + rb" web\[\d+\]: one\n", datagrams.recv(4096))
    assert re.fullmatch(rb"<155>" + stamp + rb" web\[\d+\]: bad\n", datagrams.recv(4096))
    assert datagrams.recv(4096).endswith(b": two\n")


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (
            "rfc5424",
            rb"<30>1 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d) \S+ abababababab \d+ abababababab - hi\n",
        ),
        ("rfc5424micro", rb"<30>1 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.123456(Z|[+-]\d\d:\d\d) \S+ \S+ \d+ \S+ - hi\n"),
        ("rfc3164", rb"<30>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ abababababab\[\d+\]: hi\n"),
        ("", rb"<30>20\d\d-\d\d-\d\dT\S+ \S+ abababababab\[\d+\]: hi\n"),
    ],
)
def test_every_format_over_udp(syslog: Any, form: str, pattern: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        log = syslog(syslog_address=f"udp://127.0.0.1:{server.getsockname()[1]}", syslog_format=form)
        log.write(1, b"hi\n", NOW)
        log.close()
        assert re.fullmatch(pattern, server.recv(4096))


def test_over_tcp_a_server_that_comes_back_gets_what_comes_then(syslog: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        log = syslog(syslog_address=f"tcp://127.0.0.1:{server.getsockname()[1]}")
        log.write(1, b"first\n", NOW)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(4096).endswith(b": first\n")
        log._retry_at = 0.0
        for _ in range(3):
            log.write(1, b"again\n", NOW)
            log._retry_at = 0.0
        connection, _ = server.accept()
        with connection:
            assert b": again\n" in connection.recv(4096)
        log.close()


def test_non_blocking_never_waits_and_keeps_no_more_than_its_buffer(syslog: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        log = syslog(syslog_address=address, mode="non-blocking", max_buffer_size="64k")
        for _ in range(2000):  # nobody reads
            log.write(1, b"x" * 10_000 + b"\n", NOW)
        assert log._waiting_size <= 64 << 10
        log._disconnect()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"syslog-address": "nonsense"}, "should be in form proto://address"),
        ({"syslog-address": "ftp://x"}, "unsupported scheme: 'ftp'"),
        ({"syslog-address": "tcp+tls://x"}, "not supported"),
        ({"syslog-address": "unix:///no/such"}, "no such file or directory"),
        ({"syslog-facility": "nothing"}, "invalid syslog facility"),
        ({"syslog-format": "x"}, "Invalid syslog format"),
        ({"mode": "x"}, "logging mode not supported: x"),
        ({"max-buffer-size": "1m"}, "only supported with 'mode=non-blocking'"),
        ({"max-size": "1m"}, "unknown log opt 'max-size' for syslog log driver"),
    ],
)
def test_wrong_options_are_refused(driver_context: Context, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(words)):
        Syslog(driver_context("syslog")).validate(options)


def test_the_journal_gets_the_container_as_fields(
    driver_context: Context, datagrams: socket.socket, tmp_path: Path
) -> None:
    driver = Journald(replace(driver_context("journald"), options={"socket": str(tmp_path / "log")}))
    target = LogTarget(
        container_id="cd" * 32,
        directory=tmp_path,
        attributes={"name": "web", "image": "nginx"},
        extra={"com.example.team": "blue"},
    )
    log = open_writer(driver, target)
    log.write(2, b"oops\n", NOW)
    log.write(1, b"y" * 20_000 + b"\n", NOW)
    log.close()

    fields = dict(line.split(b"=", 1) for line in datagrams.recv(1 << 16).splitlines())
    assert fields[b"MESSAGE"] == b"oops"
    assert fields[b"PRIORITY"] == b"3"
    assert fields[b"CONTAINER_NAME"] == b"web"
    assert fields[b"CONTAINER_ID"] == b"cdcdcdcdcdcd"
    assert fields[b"IMAGE_NAME"] == b"nginx"
    assert fields[b"COM_EXAMPLE_TEAM"] == b"blue"
    assert b"CONTAINER_PARTIAL_MESSAGE=true\n" in datagrams.recv(1 << 16)
    assert b"CONTAINER_PARTIAL_MESSAGE" not in datagrams.recv(1 << 16)


def test_a_value_with_a_newline_is_sent_with_its_length() -> None:
    from engine_log_remote.writer import _field

    assert _field("A", b"x\ny") == b"A\n" + struct.pack("<Q", 3) + b"x\ny\n"


def test_a_host_without_journal_is_an_error_at_start(driver_context: Context, tmp_path: Path) -> None:
    driver = Journald(replace(driver_context("journald"), options={"socket": str(tmp_path / "none")}))

    with pytest.raises(EngineError, match="journald is not enabled on this host"):
        driver.writer(LogTarget(container_id="ab" * 32, directory=tmp_path))
