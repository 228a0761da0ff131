"""Runs commands: WASI preview 1 modules, and preview 2 components that export ``wasi:cli/run``.

Loaded by the launcher. What can be made before the guest is known - engine, linker with WASI - is made there once, for
none of it starts a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import wasmtime
import wasmtime.component

from engine_wasm_host import wasmtime_engine

__all__ = ["TRAPPED", "Loaded", "load"]

TRAPPED = 134  # what wasmtime's own command line exits with: 128 + SIGABRT
_FOREVER = 1 << 62
_RUN = "wasi:cli/run@"

engine = wasmtime_engine.make()


def _exit(code: int) -> None:
    os._exit(code & 0xFF)  # wasmtime's own refuses codes above 125


def _make_linker() -> wasmtime.Linker:
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    linker.allow_shadowing = True
    kind = wasmtime.FuncType([wasmtime.ValType.i32()], [])
    linker.define_func("wasi_snapshot_preview1", "proc_exit", kind, _exit)
    return linker


_linker = _make_linker()


def _store(plan: dict[str, Any]) -> wasmtime.Store:
    wasi = wasmtime.WasiConfig()
    wasi.argv = plan["args"]
    wasi.env = plan["env"]
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    wasi.preopen_dir("/", "/")  # what is mounted read-only stays so
    store = wasmtime.Store(engine)
    store.set_wasi(wasi)
    store.set_epoch_deadline(_FOREVER)
    if plan["memory"]:
        store.set_limits(memory_size=plan["memory"])
    return store


Loaded = Callable[[], Callable[[], int]]
"""What a guest is once it is loaded: see `engine_wasm_host.guest.run`."""


def load(plan: dict[str, Any]) -> Loaded:
    """What runs the guest and returns its exit code. The machine code is mapped now, while the host's files can be
    seen; everything else happens when it is called."""
    if plan["kind"] == "module":
        module = wasmtime.Module.deserialize_file(engine, plan["code"])
        return lambda: lambda: _run_module(plan, module)
    component = wasmtime.component.Component.deserialize_file(engine, plan["code"])
    linker = wasmtime.component.Linker(engine)
    linker.add_wasip2()
    if any(name.startswith("wasi:http/") for name in plan["imports"]):
        linker.add_wasi_http()
    return lambda: lambda: _run_component(plan, component, linker)


def _run_module(plan: dict[str, Any], module: wasmtime.Module) -> int:
    store = _store(plan)
    instance = _linker.instantiate(store, module)
    function = instance.exports(store)[plan["function"]]
    assert isinstance(function, wasmtime.Func), "the driver has checked it"
    if plan["function"] != "_start" and "_initialize" in plan["exports"]:
        initialise = instance.exports(store)["_initialize"]
        assert isinstance(initialise, wasmtime.Func)
        initialise(store)
    function(store)
    return 0


def _run_component(plan: dict[str, Any], component: Any, linker: Any) -> int:
    store = _store(plan)
    if any(name.startswith("wasi:http/") for name in plan["imports"]):
        store.set_wasi_http()
    instance = linker.instantiate(store, component)
    name = next(name for name in plan["exports"] if name.startswith(_RUN))
    interface = component.get_export_index(name)
    function = instance.get_func(store, component.get_export_index("run", interface))
    try:
        result = function(store)
    except wasmtime.ExitTrap as exit_:
        return exit_.code & 0xFF
    return 0 if result is None else 1
