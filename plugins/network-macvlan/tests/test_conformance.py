"""The macvlan driver passes the engine's conformance kit, on a veth as parent."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from engine.drivers import DriverContext
from engine.testing.networks import NetworkConformance
from engine_network_macvlan.driver import MacvlanDriver


def has_macvlan() -> bool:
    """Whether this kernel makes such links; leaves nothing behind."""
    ip = ["ip", "link", "add", "probe0", "link", "par0", "type", "macvlan"]
    if subprocess.run(ip, capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "link", "delete", "probe0"], check=True)
    return True


class TestMacvlan(NetworkConformance):
    options = {"parent": "par0"}

    @pytest.fixture
    def driver(self, private_network: None, driver_context: Callable[..., DriverContext]) -> Iterator[MacvlanDriver]:
        subprocess.run(["ip", "link", "add", "par0", "type", "veth", "peer", "name", "par1"], check=True)
        for link in ("par0", "par1"):
            subprocess.run(["ip", "link", "set", link, "up"], check=True)
        if not has_macvlan():
            pytest.skip("this kernel has no macvlan")
        made = MacvlanDriver(driver_context("macvlan"))
        yield made
        made.close()
