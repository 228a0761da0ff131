"""The store keeps the promises of `engine.drivers.store`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engine.drivers import DriverContext
from engine.layers import unpack
from engine.testing.stores import StoreConformance
from engine_store_vfs.driver import VfsStore

Context = Callable[..., DriverContext]


class TestVfsStore(StoreConformance):
    @pytest.fixture
    def driver(self, driver_context: Context) -> Iterator[VfsStore]:
        unpack.start()
        store = VfsStore(driver_context("vfs"))
        yield store
        store.close()
        unpack.close()
