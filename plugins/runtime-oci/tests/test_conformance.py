"""runc and crun keep the promises of `engine.drivers.runtime`."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.drivers import DriverContext
from engine.testing.runtimes import RuntimeConformance
from engine_runtime_oci.driver import OciRuntime


class TestOciRuntime(RuntimeConformance):
    @pytest.fixture(params=["runc", "crun"])
    def driver(self, request: pytest.FixtureRequest, tmp_path: Path) -> OciRuntime:
        state = tmp_path / "s"
        state.mkdir()
        return OciRuntime(DriverContext(name=request.param, instance="0badcafe", root=state, state=state))
