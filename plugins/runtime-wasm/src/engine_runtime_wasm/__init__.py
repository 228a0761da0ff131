"""Runs WebAssembly containers with wasmtime: WASI modules, preview 2 commands and ``wasi:http`` components."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl


@hookimpl
def engine_runtimes() -> Sequence[DriverDescription]:
    """``wasmtime``, also called ``wasm``."""
    return [
        DriverDescription(
            name="wasmtime",
            loader="engine_runtime_wasm.driver:WasmRuntime",
            summary="WebAssembly modules and components by wasmtime, one sandboxed process for each container",
            aliases=("wasm", "io.containerd.wasmtime.v1", "io.containerd.wasmtime.v2", "io.containerd.wasm.v1"),
            platforms=("wasi/wasm",),
            capabilities=frozenset({"pause", "update", "stats", "top", "terminal"}),
        )
    ]
