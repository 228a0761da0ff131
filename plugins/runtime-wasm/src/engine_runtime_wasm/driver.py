"""The runtime ``wasmtime``: one module or component is the container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_wasm_host import modules
from engine_wasm_host.driver import Spec, WasmHost

_COMMAND = "wasi:cli/run@0.2"
_SERVER = "wasi:http/incoming-handler@0.2"


class WasmRuntime(WasmHost):
    """Commands run to their end; components that handle HTTP requests serve until they are stopped."""

    def describe(self, spec: Spec, mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The module of the first argument, and how it wants to be run."""
        command = spec.process.args[0]
        fd, path, function = modules.open_module(
            Path(spec.root.path), mounts, {"args": spec.process.args, "env": spec.process.env, "cwd": spec.process.cwd}
        )
        compiled = self.load_module(fd, command if command != modules.DUMMY else path)
        problem = modules.unsupported(compiled, function)
        if problem:
            raise modules.failed(command, problem)
        plan = {
            "kind": compiled.kind,
            "code": str(compiled.code),
            "function": function,
            "imports": compiled.imports,
            "exports": compiled.exports,
            "title": Path(path).name,
        }
        if command == modules.DUMMY:
            plan["args"] = [path, *spec.process.args[1:]]
        if compiled.kind == "component":
            if any(name.startswith(_SERVER) for name in compiled.exports):
                plan["kind"] = "http"
            elif not any(name.startswith(_COMMAND) for name in compiled.exports):
                raise modules.failed(
                    command, f"the component exports neither {_COMMAND} nor {_SERVER}: {', '.join(compiled.exports)}"
                )
        return plan
