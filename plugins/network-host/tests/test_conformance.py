"""The host driver passes the engine's conformance kit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.drivers import DriverContext
from engine.testing.networks import NetworkConformance
from engine_network_host.driver import HostDriver


class TestHost(NetworkConformance):
    @pytest.fixture
    def driver(self, private_network: None, driver_context: Callable[..., DriverContext]) -> HostDriver:
        return HostDriver(driver_context("host"))
