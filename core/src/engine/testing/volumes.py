"""Conformance of volume drivers (`engine.drivers.volume`)."""

from __future__ import annotations

import pytest

from engine.drivers.volume import VolumeDriver
from engine.errors import InvalidParameter, NotFound, NotSupported

__all__ = ["VolumeConformance"]


class VolumeConformance:
    """Subclass and provide ``driver``. ``options`` are creation options that work."""

    options: dict[str, str] = {}

    @pytest.fixture
    def driver(self) -> VolumeDriver:
        """The driver under test."""
        raise NotImplementedError

    def test_a_created_volume_is_there(self, driver: VolumeDriver) -> None:
        """By name and in the list, with an absolute mountpoint and a time."""
        made = driver.create("data", self.options)
        assert driver.get("data").name == made.name == "data"
        assert [volume.name for volume in driver.list()] == ["data"]
        assert made.mountpoint.is_absolute()
        assert made.created

    def test_creating_twice_is_creating_once(self, driver: VolumeDriver) -> None:
        """Data written in between stays."""
        driver.create("data", self.options)
        path = driver.mount("data", "c1")
        (path / "file").write_text("kept")
        driver.create("data", self.options)
        assert (driver.mount("data", "c1") / "file").read_text() == "kept"
        driver.unmount("data", "c1")

    def test_consumers_share_the_data_and_it_outlives_them(self, driver: VolumeDriver) -> None:
        """Mounting is per consumer; unmounting one does not disturb the other."""
        driver.create("data", self.options)
        first, second = driver.mount("data", "c1"), driver.mount("data", "c2")
        (first / "file").write_text("shared")
        driver.unmount("data", "c1")
        driver.unmount("data", "c1")
        assert (second / "file").read_text() == "shared"
        driver.unmount("data", "c2")
        assert (driver.mount("data", "c3") / "file").read_text() == "shared"
        driver.unmount("data", "c3")

    def test_a_removed_volume_is_gone_and_removing_again_is_fine(self, driver: VolumeDriver) -> None:
        """The name can be used again, and the new volume is empty."""
        driver.create("data", self.options)
        (driver.mount("data", "c1") / "file").write_text("old")
        driver.unmount("data", "c1")
        driver.remove("data")
        driver.remove("data")
        with pytest.raises(NotFound):
            driver.get("data")
        driver.create("data", self.options)
        assert list(driver.mount("data", "c1").iterdir()) == []
        driver.unmount("data", "c1")

    def test_unknown_names_and_options_are_refused(self, driver: VolumeDriver) -> None:
        """`NotFound` and `InvalidParameter`; nothing is made."""
        with pytest.raises(NotFound):
            driver.get("nosuch")
        with pytest.raises(InvalidParameter):
            driver.create("data", {"no-such-option": "1"})
        assert list(driver.list()) == []

    def test_usage_is_measured_or_refused(self, driver: VolumeDriver) -> None:
        """Bytes, as claimed by the capability ``usage``."""
        driver.create("data", self.options)
        path = driver.mount("data", "c1")
        (path / "file").write_bytes(b"x" * 100_000)
        try:
            if "usage" in driver.capabilities:
                assert driver.usage("data") >= 100_000
            else:
                with pytest.raises(NotSupported):
                    driver.usage("data")
        finally:
            driver.unmount("data", "c1")
