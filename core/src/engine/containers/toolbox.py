"""The tools of ``engine debug``: a directory with a static busybox, a link for each of its programs, and helpers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from engine.errors import NotFound

__all__ = ["PATH", "provide"]

PATH = "/dev/.toolbox"  # where a debug shell sees it (see `engine.monitor.debug`)

_ENTRYPOINT = f"""#!{PATH}/bin/sh
# entrypoint: shows what the container runs, and what is wrong with it
echo "ENTRYPOINT ${{ENGINE_DEBUG_ENTRYPOINT:-(none)}}"
echo "CMD        ${{ENGINE_DEBUG_CMD:-(none)}}"
program=${{ENGINE_DEBUG_PROGRAM:-}}
[ -n "$program" ] || {{ echo "lint: nothing to run"; exit 1; }}
case $program in
*/*) found=$program ;;
*) found=; IFS=:; for directory in $ENGINE_DEBUG_PATH; do
     [ -x "$directory/$program" ] && {{ found=$directory/$program; break; }}
   done ;;
esac
[ -n "$found" ] || {{ echo "lint: FAIL: $program is not in PATH ($ENGINE_DEBUG_PATH)"; exit 1; }}
[ -e "$found" ] || {{ echo "lint: FAIL: $found does not exist"; exit 1; }}
[ -x "$found" ] || {{ echo "lint: FAIL: $found is not executable"; exit 1; }}
read -r first < "$found" 2>/dev/null
case $first in
"#!"*) interpreter=${{first#"#!"}}; interpreter=${{interpreter# }}; interpreter=${{interpreter%% *}}
   [ -x "$interpreter" ] || {{ echo "lint: FAIL: $found needs $interpreter, which is missing"; exit 1; }} ;;
esac
echo "lint: PASS: $found"
"""


def provide(root: Path) -> Path:
    """The toolbox below ``root``, made if it is not there. Blocks. `NotFound` when the host has no static busybox."""
    toolbox = root / "toolbox"
    if (toolbox / "bin" / "busybox").exists():
        return toolbox
    source = shutil.which("busybox") or shutil.which("busybox", path="/bin:/usr/bin:/sbin:/usr/sbin")
    if source is None or not _is_static(Path(source)):
        raise NotFound("engine debug needs a static busybox on the engine's host: install busybox-static")
    fresh = root / f"toolbox.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "bin").mkdir(parents=True)
    shutil.copy(source, fresh / "bin" / "busybox")
    listed = subprocess.run([source, "--list"], capture_output=True, text=True, check=True).stdout
    for name in listed.split():
        if name != "busybox":
            (fresh / "bin" / name).symlink_to("busybox")
    (fresh / "bin" / "entrypoint").write_text(_ENTRYPOINT)
    (fresh / "bin" / "entrypoint").chmod(0o755)
    shutil.rmtree(toolbox, ignore_errors=True)
    fresh.rename(toolbox)
    return toolbox


def _is_static(program: Path) -> bool:
    """Whether an ELF program asks for no interpreter."""
    with open(program, "rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:5] != b"\x7fELF\x02":
            return False
        offset, size, count = (
            int.from_bytes(head[32:40], "little"),
            int.from_bytes(head[54:56], "little"),
            int.from_bytes(head[56:58], "little"),
        )
        file.seek(offset)
        table = file.read(size * count)
    return all(int.from_bytes(table[i * size : i * size + 4], "little") != 3 for i in range(count))  # PT_INTERP
