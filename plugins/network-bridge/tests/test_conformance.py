"""The bridge driver passes the engine's conformance kit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engine.drivers import DriverContext
from engine.testing.networks import NetworkConformance
from engine_network_bridge.driver import BridgeDriver


class TestBridge(NetworkConformance):
    @pytest.fixture
    def driver(self, private_network: None, driver_context: Callable[..., DriverContext]) -> Iterator[BridgeDriver]:
        driver = BridgeDriver(driver_context("bridge"))
        yield driver
        driver.close()
