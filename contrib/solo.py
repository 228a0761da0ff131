"""Install each package alone into a fresh environment and load it: a dependency it forgot to declare shows here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.startswith("engine.testing"):
        importlib.import_module(module.name)
"""


def main() -> int:
    """0 when every package loads alone; the failing ones are named."""
    failed = []
    members = [ROOT / "core", *sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))]
    for member in members:
        package = "engine" if member.name == "core" else "engine_" + member.name.replace("-", "_")
        with tempfile.TemporaryDirectory() as directory:
            venv.create(directory, with_pip=True)
            python = f"{directory}/bin/python"
            wanted = [str(member)] if member.name == "core" else [str(ROOT / "core"), str(member)]
            install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]
            ok = subprocess.call(install) == 0 and subprocess.call([python, "-W", "error", "-c", CHECK, package]) == 0
        sys.stdout.write(f"{'ok    ' if ok else 'FAILED'} {package}\n")
        if not ok:
            failed.append(package)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
