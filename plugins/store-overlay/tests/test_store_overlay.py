"""The store keeps the promises of `engine.drivers.store`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engine.drivers import DriverContext
from engine.layers import unpack
from engine.testing.stores import StoreConformance
from engine_store_overlay.driver import OverlayStore

Context = Callable[..., DriverContext]


class TestOverlayStore(StoreConformance):
    @pytest.fixture
    def driver(self, driver_context: Context) -> Iterator[OverlayStore]:
        unpack.start()
        store = OverlayStore(driver_context("overlay"))
        yield store
        store.close()
        unpack.close()
