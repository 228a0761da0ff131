"""Finding a container's module, and refusing what cannot run before anything is started, with the reason."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import kernel
from engine.errors import StartFailed
from engine_wasm_host.cache import Compiled

__all__ = ["DUMMY", "check_magic", "failed", "open_inside", "open_module", "split_entry", "unsupported"]

DUMMY = "/"
"""The command of Docker's Wasm tutorials, which means "what the image is for"."""

_PREFIX = "failed to create task for container: failed to create shim task: OCI runtime create failed: "
_SUFFIXES = (".wasm", ".wat")
_ROOT_LIMIT = 4096  # entries looked at for the module of an image that names none


def failed(command: str, reason: str) -> StartFailed:
    """A start refused because of ``command``, with Docker's exit status for the reason."""
    missing = reason.endswith(("no such file or directory", "executable file not found in $PATH"))
    unusable = reason.endswith(("permission denied", "is a directory")) or "not a valid WebAssembly" in reason
    text = f'{_PREFIX}unable to start container process: exec: "{command}": {reason}: unknown'
    return StartFailed(text, 127 if missing else 126 if unusable else 128)


def split_entry(argument: str) -> tuple[str, str]:
    """``app.wasm#start`` is the function ``start`` of ``app.wasm`` (runwasi's form); without ``#`` it is ``_start``."""
    path, separator, function = argument.partition("#")
    if separator and function and path.endswith(_SUFFIXES):
        return path, function
    return argument, "_start"


def open_inside(root: Path, mounts: Sequence[Mapping[str, Any]], path: str) -> int:
    """Open a file as the container will see it: below its mounts, links never leading out. Raises `OSError`."""
    wanted = posixpath.normpath("/" + path.lstrip("/"))
    base, rest = root, wanted
    for mount in mounts:  # ordered: later ones are deeper
        inside = mount["destination"].rstrip("/")
        if mount["type"] != "tmpfs" and (wanted + "/").startswith(inside + "/"):
            base, rest = Path(mount["source"]), wanted[len(inside) :]
    if not rest.strip("/"):
        return os.open(base, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    directory = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return kernel.openat2(directory, rest, os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(directory)


def open_module(root: Path, mounts: Sequence[Mapping[str, Any]], process: Mapping[str, Any]) -> tuple[int, str, str]:
    """The descriptor of the module ``process.args[0]`` means, its path inside, and the function to call.

    A name without a slash is looked for in the working directory, in PATH and in the root. Raises `StartFailed`.
    """
    command = process["args"][0]
    name, function = split_entry(command)
    if name == DUMMY:
        name = _only_module(root)
    places = [name] if name.startswith("/") else [posixpath.join(process["cwd"], name)]
    if "/" not in name:
        variables = dict(entry.split("=", 1) for entry in process["env"] if "=" in entry)
        places += [posixpath.join(place or "/", name) for place in variables.get("PATH", "").split(":")]
        places.append("/" + name)
    error: OSError | None = None
    for place in places:
        try:
            fd = open_inside(root, mounts, place)
        except OSError as problem:
            if error is None or not isinstance(problem, FileNotFoundError):
                error = problem
            continue
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd, posixpath.normpath(place), function
        os.close(fd)
        error = IsADirectoryError(21, "Is a directory")
    if isinstance(error, FileNotFoundError) or error is None:
        why = f"stat {name}: no such file or directory" if "/" in name else "executable file not found in $PATH"
        raise failed(command, why)
    raise failed(command, (error.strerror or str(error)).lower())


def _only_module(root: Path) -> str:
    """The module of an image that names none: the only one in its root."""
    found = []
    with os.scandir(root) as entries:
        for index, entry in enumerate(entries):
            if entry.name.endswith(_SUFFIXES) and entry.is_file(follow_symlinks=False):
                found.append(entry.name)
            if index > _ROOT_LIMIT:
                break
    if len(found) != 1:
        what = f"has {', '.join(sorted(found))}" if found else "has none"
        raise failed(
            DUMMY, f"the image names no command and its root {what}: name the module: no such file or directory"
        )
    return "/" + found[0]


def check_magic(fd: int, command: str) -> None:
    """Refuse at once what is no module, saying what it is."""
    head = os.pread(fd, 8, 0)
    if head.startswith(b"\0asm"):
        return
    if head.startswith(b"\x7fELF"):
        raise failed(command, "it is a Linux program, not a valid WebAssembly module: run it without --runtime")
    if head.startswith(b"#!"):
        raise failed(command, "it is a script, not a valid WebAssembly module: run it without --runtime")
    if not command.partition("#")[0].endswith(".wat"):
        raise failed(command, "not a valid WebAssembly module: it does not begin with \\0asm")


_PREVIEW_1 = "wasi_snapshot_preview1."


def unsupported(compiled: Compiled, function: str) -> str:
    """Why the module cannot run here, naming what is missing; empty if it can."""
    if compiled.kind == "module":
        foreign = [name for name in compiled.imports if not name.startswith(_PREVIEW_1)]
        if foreign:
            return f"it needs imports nobody provides: {_some(foreign)}; provided is wasi_snapshot_preview1"
        if function not in compiled.exports:
            return f"it exports no function {function}; it exports {_some(compiled.exports) or 'nothing'}"
        return ""
    preview_3 = [name for name in (*compiled.imports, *compiled.exports) if "@0.3" in name and name.startswith("wasi:")]
    if preview_3:
        return f"it is a WASI preview 3 component, and the async calls of {_some(preview_3)} are missing in wasmtime-py"
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
