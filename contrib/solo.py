"""Install each package alone into a fresh environment and load it: a dependency it forgot to declare shows here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not {"testing", "__main__"} & set(module.name.split(".")):
        importlib.import_module(module.name)
"""


def main() -> int:
    """0 when every package loads alone; the failing ones are named."""
    failed = []
    members = [ROOT / "core", *sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))]
    for member in members:
        package = "engine" if member.name == "core" else "engine_" + member.name.replace("-", "_")
        with tempfile.TemporaryDirectory() as directory:
            python = f"{directory}/bin/python"
            wanted = [f"{member}[cert]"] if member.name == "core" else [str(ROOT / "core"), str(member)]
            uv = [sys.executable, "-m", "uv"]
            subprocess.check_call([*uv, "venv", "-q", "--allow-existing", "--python", sys.executable, directory])
            install = [*uv, "pip", "install", "-q", "--python", python, *wanted]
            ok = subprocess.call(install) == 0 and subprocess.call([python, "-W", "error", "-c", CHECK, package]) == 0
        sys.stdout.write(f"{'ok    ' if ok else 'FAILED'} {package}\n")
        if not ok:
            failed.append(package)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
