"""The log drivers of this package keep the promises of `engine.drivers.log`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.drivers import DriverContext
from engine.drivers.log import LogTarget
from engine.testing.logs import LogConformance
from engine_log_remote.driver import Journald, Syslog

Context = Callable[..., DriverContext]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.settimeout(5)
        yield sock


class TestSyslog(LogConformance):
    @pytest.fixture
    def driver(self, driver_context: Context) -> Syslog:
        return Syslog(driver_context("syslog"))

    @pytest.fixture
    def target(self, tmp_path: Path, receiver: socket.socket) -> LogTarget:
        directory = tmp_path / "container"
        directory.mkdir()
        options = {"syslog-address": f"unixgram://{tmp_path / 'log'}"}
        return LogTarget(container_id="ab" * 32, directory=directory, options=options)


class TestJournald(LogConformance):
    @pytest.fixture
    def driver(self, driver_context: Context, tmp_path: Path, receiver: socket.socket) -> Journald:
        context = driver_context("journald")
        return Journald(replace(context, options={"socket": str(tmp_path / "log")}))
