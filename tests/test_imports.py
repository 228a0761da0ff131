"""Budgets that count: what each program imports before it does its work. Clocks are for `integration/bench`."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import engine

CORE = Path(engine.__file__).parent
MODULES = sorted(
    "engine" + str(path.relative_to(CORE).with_suffix("")).replace("/", ".").join([".", ""]).removesuffix(".__init__")
    for path in CORE.rglob("*.py")
    if path.name != "__main__.py" and "testing" not in path.parts
)


def loaded(code: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"import sys, json\n{code}\nprint('\\n' + json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_alone_and_without_a_warning(module: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], check=True)


def test_the_cli_starts_with_the_standard_library_only() -> None:
    site = Path(sysconfig.get_paths()["purelib"])
    code = "import engine.cli\ntry: engine.cli.main(['--help'])\nexcept SystemExit: pass"
    names = loaded(code)
    third_party = [name for name in names if (site / name).is_dir() or (site / f"{name}.py").exists()]

    assert [name for name in third_party if not name.startswith(("_", "engine"))] == []
    slow = {"argparse", "http.client", "typing", "asyncio", "logging", "ssl", "dataclasses", "inspect", "email"}
    assert slow & set(names) == set()


def test_the_launcher_and_monitor_import_only_what_the_kernel_needs() -> None:
    allowed_roots = set(sys.stdlib_module_names)
    for source in (CORE / "monitor").glob("*.py"):
        if source.name in ("client.py", "__init__.py"):
            continue
        names = loaded(
            f"import runpy, sys\nsys.argv=['x']\nimport importlib.util\n"
            f"spec=importlib.util.spec_from_file_location('probe', {str(source)!r})\n"
            "module=importlib.util.module_from_spec(spec)\nsys.modules['probe']=module\nspec.loader.exec_module(module)"
        )
        heavy = {"asyncio", "threading", "logging", "typing", "dataclasses", "subprocess", "socketserver", "inspect"}
        fresh = set(names) - set(loaded("import runpy, importlib.util"))
        assert heavy & fresh == set(), source.name
        assert {name.partition(".")[0] for name in fresh} - allowed_roots - {"probe", "engine"} == set(), source.name


def test_the_daemon_leaves_heavy_libraries_for_first_use() -> None:
    names = set(loaded("import engine.daemon"))

    assert {
        "grpc",
        "pyroute2",
        "cryptography",
        "urllib3",
        "requests",
        "aiohttp",
        "wasmtime",
        "http.client",
    } & names == set()
