"""The wasmtime driver keeps the promises of `engine.drivers.runtime`, with a small C program as its userland."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.drivers import DriverContext
from engine.testing.runtimes import RuntimeConformance
from engine_runtime_wasm.driver import WasmRuntime
from engine_wasm_host.testing import compile_c

BOX = Path(__file__).with_name("box.c")


class TestWasmRuntime(RuntimeConformance):
    @pytest.fixture
    def driver(self, tmp_path: Path) -> WasmRuntime:
        state = tmp_path / "s"
        state.mkdir()
        return WasmRuntime(DriverContext(name="wasmtime", instance="0badcafe", root=state, state=state))

    @pytest.fixture
    def rootfs(self, tmp_path: Path) -> Path:
        root = tmp_path / "rootfs"
        for name in ("bin", "etc", "tmp"):
            (root / name).mkdir(parents=True)
        (root / "bin/box.wasm").write_bytes(compile_c(BOX))
        for name in ("sh", "cat", "sleep", "true", "echo", "tty"):
            (root / "bin" / name).symlink_to("box.wasm")
        return root
