"""The store keeps the promises of `engine.drivers.store`."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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


def test_layers_are_made_where_ext4_keeps_them_away_from_deleted_inodes(driver_context: Context) -> None:
    context = driver_context("vfs")
    VfsStore(context).close()
    fd = os.open(context.root / "unpacking", os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = int.from_bytes(fcntl.ioctl(fd, 0x80086601, bytes(8))[:4], sys.byteorder)
    except OSError:
        pytest.skip("this file system has no such flags")
    finally:
        os.close(fd)
    if not _is_ext4(context.root):
        pytest.skip("not ext4")
    assert flags & 0x20000


def _is_ext4(path: Path) -> bool:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True).stdout
    return kind.strip() == "ext2/ext3"
