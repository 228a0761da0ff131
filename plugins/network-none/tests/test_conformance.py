"""The null driver passes the engine's conformance kit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.drivers import DriverContext
from engine.testing.networks import NetworkConformance
from engine_network_none.driver import NullDriver


class TestNull(NetworkConformance):
    @pytest.fixture
    def driver(self, private_network: None, driver_context: Callable[..., DriverContext]) -> NullDriver:
        return NullDriver(driver_context("null"))
