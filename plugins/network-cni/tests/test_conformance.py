"""The cni driver passes the engine's conformance kit with Debian's bridge and host-local plugins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.drivers import DriverContext
from engine.drivers.network import Network
from engine.errors import InvalidParameter, NotSupported
from engine.testing.networks import NetworkConformance
from engine_network_cni.driver import CniDriver


def conflist(directory: Path, kind: str = "bridge") -> Path:
    plugin = {
        "type": kind,
        "bridge": "cni-test0",
        "isGateway": True,
        "capabilities": {"ips": True},
        "ipam": {
            "type": "host-local",
            "dataDir": str(directory / "leases"),
            "ranges": [[{"subnet": "10.231.7.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    path = directory / "test.conflist"
    path.write_text(json.dumps({"cniVersion": "0.4.0", "name": "test", "plugins": [plugin]}))
    return path


class TestCni(NetworkConformance):
    @pytest.fixture
    def driver(self, private_network: None, driver_context: Callable[..., DriverContext], tmp_path: Path) -> CniDriver:
        if not Path("/usr/lib/cni/bridge").exists() and not Path("/opt/cni/bin/bridge").exists():
            pytest.skip("needs the package containernetworking-plugins")
        self.options = {"conflist": str(conflist(tmp_path))}
        return CniDriver(driver_context("cni"))


def network(**options: str) -> Network:
    return Network(id="ab" * 32, name="n", options=options)


def test_what_cannot_be_is_explained(driver_context: Callable[..., DriverContext], tmp_path: Path) -> None:
    driver = CniDriver(driver_context("cni"))

    with pytest.raises(InvalidParameter, match="needs -o conflist"):
        driver.create_network(network())
    with pytest.raises(InvalidParameter, match="no CNI network nosuch"):
        driver.create_network(network(conflist="nosuch"))
    with pytest.raises(InvalidParameter, match="No such file"):
        driver.create_network(network(conflist="/nosuch.conflist"))
    with pytest.raises(NotSupported, match="CNI plugin 'nosuch' not found"):
        driver.create_network(network(conflist=str(conflist(tmp_path, "nosuch"))))
