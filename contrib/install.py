"""Install every package of this checkout, editable, into the running interpreter: ``python contrib/install.py``.

With ``--no-editable`` ordinary wheels are built. Uses uv when it is there, pip otherwise.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Install core and all plugins in one resolution."""
    editable = "--no-editable" not in sys.argv
    members = [ROOT / "core", *sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))]
    uv = shutil.which("uv")
    command = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    command += ["--quiet", "--constraint", str(ROOT / "constraints.txt")]
    for member in members:
        target = f"{member}[cert]" if member.name == "core" else str(member)
        command += ["--editable", target] if editable else [target]
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())
