"""Pytest fixtures of the engine; loaded by pytest in every environment the core is installed in.

The heavy parts are imported by the fixtures that need them, so that coverage and import tests see them fresh.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from engine.drivers import DriverContext


@pytest.fixture
def driver_context(tmp_path: Path) -> Callable[..., DriverContext]:
    """Build a `DriverContext`: ``driver_context("local", option=1)``; root and state are below ``tmp_path``."""
    from engine.drivers import DriverContext

    def build(name: str, **options: object) -> DriverContext:
        root, state = tmp_path / "root", tmp_path / "state"
        root.mkdir(mode=0o700, exist_ok=True)
        state.mkdir(mode=0o700, exist_ok=True)
        return DriverContext(
            name=name, instance=f"{os.getpid() & 0xFFFFFFFF:08x}", root=root, state=state, options=options
        )

    return build


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Fail the test when it leaves a mount, link, process or open file behind that was not there before."""
    from engine.layers import unpack
    from engine.testing.leaks import Snapshot

    unpack.close()  # its child stays for a while for the next layer, on purpose
    before = Snapshot.take(str(tmp_path), network="private_network" in request.fixturenames)
    yield
    unpack.close()
    assert before.leaked() == []


@pytest.fixture
def private_network() -> Iterator[None]:
    """Run the test in a network namespace of its own (root), so that drivers cannot disturb this machine."""
    if os.geteuid():
        pytest.skip("needs root to make a network namespace")
    from engine import kernel

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.unshare(kernel.CLONE_NEWNET)
        yield
    finally:
        kernel.setns(home, kernel.CLONE_NEWNET)
        os.close(home)
