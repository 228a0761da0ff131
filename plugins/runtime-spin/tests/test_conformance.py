"""The Spin driver keeps the promises of `engine.drivers.runtime` as far as an application that serves can."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from engine.drivers import DriverContext
from engine.drivers.runtime import Bundle, RuntimeDriver
from engine.errors import StartFailed
from engine.monitor.client import Monitor
from engine.testing.runtimes import RuntimeConformance
from engine_runtime_spin.driver import SpinRuntime
from engine_wasm_host.testing import compile_c

CGI = """#include <stdio.h>
int main(void) { puts("content-type: text/plain\\n\\nok"); return 0; }
"""
MANIFEST = """
spin_manifest_version = 2
[application]
name = "conformance"
[[trigger.http]]
route = "/..."
component = "cgi"
executor = { type = "wagi" }
[component.cgi]
source = "cgi.wasm"
"""


class TestSpinRuntime(RuntimeConformance):
    @pytest.fixture
    def driver(self, tmp_path: Path) -> SpinRuntime:
        state = tmp_path / "s"
        state.mkdir()
        return SpinRuntime(DriverContext(name="spin", instance="0badcafe", root=state, state=state))

    @pytest.fixture
    def rootfs(self, tmp_path: Path) -> Path:
        root = tmp_path / "rootfs"
        root.mkdir()
        source = tmp_path / "cgi.c"
        source.write_text(CGI)
        (root / "cgi.wasm").write_bytes(compile_c(source))
        (root / "spin.toml").write_text(MANIFEST)
        return root

    def process(self, *args: str, terminal: bool = False) -> dict[str, Any]:
        return super().process("/", terminal=terminal)

    @pytest.mark.skip("an application writes only when it is asked; integration/test_wasm.py asks")
    def test_output_and_exit_code_arrive(self) -> None: ...

    @pytest.mark.skip("an application reads no standard input")
    def test_standard_input_reaches_the_process(self) -> None: ...

    @pytest.mark.skip("an application has nothing to say to a terminal")
    def test_a_terminal_is_a_terminal(self) -> None: ...

    @pytest.mark.skip("judged by standard input, which an application does not read")
    def test_a_paused_container_stands_still(self) -> None: ...

    @pytest.mark.skip("an application has a manifest, no command: see below")
    def test_a_command_that_cannot_run_is_explained(self) -> None: ...

    def test_a_manifest_that_cannot_be_used_is_explained(
        self, working: RuntimeDriver, bundle: Bundle, rootfs: Path
    ) -> None:
        async def body(monitor: Monitor, client: socket.socket) -> None:
            raise AssertionError("it started")

        for text, words in ((MANIFEST.replace("cgi.wasm", "no.wasm"), "/no.wasm"), ("x", "spin.toml")):
            (rootfs / "spin.toml").write_text(text)
            with pytest.raises(StartFailed, match=words):
                self.run(working, bundle, rootfs, ("/",), body)

    def test_an_application_stops_when_asked(self, working: RuntimeDriver, bundle: Bundle, rootfs: Path) -> None:
        async def body(monitor: Monitor, client: socket.socket) -> None:
            await monitor.kill(signal.SIGTERM)
            assert (await asyncio.wait_for(monitor.exit, 10)).code == 143

        self.run(working, bundle, rootfs, ("/",), body)
