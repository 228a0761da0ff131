"""The ipvlan driver passes the engine's conformance kit, on a veth as parent."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from engine.drivers import DriverContext
from engine.testing.networks import NetworkConformance
from engine_network_ipvlan.driver import IpvlanDriver


def has_ipvlan() -> bool:
    """Whether this kernel makes such links; leaves nothing behind."""
    ip = ["ip", "link", "add", "probe0", "link", "par0", "type", "ipvlan"]
    if subprocess.run(ip, capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "link", "delete", "probe0"], check=True)
    return True


class TestIpvlan(NetworkConformance):
    options = {"parent": "par0"}

    @pytest.fixture
    def driver(self, private_network: None, driver_context: Callable[..., DriverContext]) -> Iterator[IpvlanDriver]:
        subprocess.run(["ip", "link", "add", "par0", "type", "veth", "peer", "name", "par1"], check=True)
        for link in ("par0", "par1"):
            subprocess.run(["ip", "link", "set", link, "up"], check=True)
        if not has_ipvlan():
            pytest.skip("this kernel has no ipvlan")
        made = IpvlanDriver(driver_context("ipvlan"))
        yield made
        made.close()
