"""The compiler child: a module on stdin becomes machine code on stdout, a description of it on stderr.

    python -I -S compiler.py SEARCH [VERSION_ONLY]

Modules come from images, so whoever compiles one may be attacked by it: the child has no privileges, no network, and
only so much memory and time. It is started anew for each module and is the only place where anything is compiled.
"""

from __future__ import annotations

import json
import os
import resource
import sys

_NOBODY = 65534
_MEMORY = 6 << 30
_SECONDS = 900
_CLONE_NEWNET = 0x40000000
_CLONE_NEWIPC = 0x08000000
_NO_NEW_PRIVS = 38


def _confine() -> None:
    import ctypes

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC) or libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "cannot confine the compiler")
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def main() -> int:
    """Compile; 0 and a description, or 1 and the reason."""
    sys.path += [directory for directory in sys.argv[1].split(":") if directory]
    import wasmtime
    import wasmtime.component

    from engine_wasm_host import wasmtime_engine

    _confine()
    engine = wasmtime_engine.make()
    with open(0, "rb", closefd=False) as source:
        wasm = source.read()
    try:
        if not wasm.startswith(b"\0asm"):
            wasm = bytes(wasmtime.wat2wasm(wasm))
        if wasm[6:8] == b"\x01\0":
            component = wasmtime.component.Component(engine, wasm)
            code: bytes | bytearray = component.serialize()
            kind = "component"
            imports = sorted(component.type.imports(engine))
            exports = sorted(component.type.exports(engine))
        else:
            module = wasmtime.Module(engine, wasm)
            code = module.serialize()
            kind = "module"
            imports = sorted(f"{item.module}.{item.name}" for item in module.imports)
            exports = sorted(item.name for item in module.exports)
    except wasmtime.WasmtimeError as error:
        sys.stderr.write(str(error))
        return 1
    view = memoryview(code)
    while view:
        view = view[os.write(1, view) :]
    sys.stderr.write(json.dumps({"kind": kind, "imports": imports, "exports": exports}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
