"""The log drivers of this package keep the promises of `engine.drivers.log`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.drivers import DriverContext
from engine.testing.logs import LogConformance
from engine_log_files.driver import JsonFile, Local, Nothing

Context = Callable[..., DriverContext]


class TestJsonFile(LogConformance):
    @pytest.fixture
    def driver(self, driver_context: Context) -> JsonFile:
        return JsonFile(driver_context("json-file"))


class TestLocal(LogConformance):
    @pytest.fixture
    def driver(self, driver_context: Context) -> Local:
        return Local(driver_context("local"))


class TestNone(LogConformance):
    @pytest.fixture
    def driver(self, driver_context: Context) -> Nothing:
        return Nothing(driver_context("none"))
