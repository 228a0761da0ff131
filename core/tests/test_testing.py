"""The conformance kit: our fakes pass it, and a driver that breaks a promise does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.drivers import DriverContext
from engine.drivers.volume import VolumeDriver
from engine.testing.fakes import FakeLogs, FakeNetworks, FakeVolumes
from engine.testing.leaks import Snapshot
from engine.testing.logs import LogConformance
from engine.testing.networks import NetworkConformance
from engine.testing.volumes import VolumeConformance

Context = Callable[..., DriverContext]


class TestFakeVolumes(VolumeConformance):
    @pytest.fixture
    def driver(self, driver_context: Context) -> FakeVolumes:
        return FakeVolumes(driver_context("fake"))


class TestFakeLogs(LogConformance):
    @pytest.fixture
    def driver(self, driver_context: Context) -> FakeLogs:
        return FakeLogs(driver_context("fake"))


class TestFakeNetworks(NetworkConformance):
    @pytest.fixture
    def driver(self, private_network: None, driver_context: Context) -> FakeNetworks:
        return FakeNetworks(driver_context("fake"))


class Forgetful(FakeVolumes):
    """Loses data when a volume is created again."""

    def create(self, name: str, options: dict[str, str]):  # type: ignore[no-untyped-def, override]
        self.remove(name)
        return super().create(name, options)


def test_the_kit_finds_a_driver_that_loses_data(driver_context: Context) -> None:
    driver: VolumeDriver = Forgetful(driver_context("forgetful"))

    with pytest.raises(FileNotFoundError):
        VolumeConformance().test_creating_twice_is_creating_once(driver)


def test_the_leak_check_finds_an_open_file(tmp_path: Path) -> None:
    before = Snapshot.take()
    with open(tmp_path / "left-open", "w"):
        assert before.leaked(patience=0) == ["1 open files"]
    assert before.leaked() == []
