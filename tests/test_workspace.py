"""The tree keeps its own rules: names, versions, plugin folders, module sizes, and documents that tell the truth."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from engine.hookspecs import Hooks

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").exists())
LIBRARIES = {"wasm-host"}  # shared by plugins of one subject, no plugins themselves (specs/design/004)
MEMBERS = [ROOT / "core", *PLUGINS]
SOURCES = sorted(path for member in MEMBERS for path in (member / "src").rglob("*.py"))
CONTRACTS = set("errors kernel layers model names netlink platforms drivers hookspecs remote testing".split())


def project(member: Path) -> dict[str, object]:
    return tomllib.loads((member / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_one_name_gives_folder_distribution_package_and_entry_point(plugin: Path) -> None:
    described = project(plugin)
    module = "engine_" + plugin.name.replace("-", "_")

    assert described["name"] == f"engine-{plugin.name}"
    entry_points = {} if plugin.name in LIBRARIES else {"engine.plugins": {plugin.name: module}}
    assert described.get("entry-points", {}) == entry_points
    assert [path.name for path in (plugin / "src").iterdir() if path.is_dir() and path.name != "__pycache__"] == [
        module
    ]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_every_plugin_has_a_readme_tests_types_and_a_conformance_run(plugin: Path) -> None:
    module = "engine_" + plugin.name.replace("-", "_")
    tests = list((plugin / "tests").glob("test_*.py"))

    assert len((plugin / "README.md").read_text().split()) > 40
    assert (plugin / "src" / module / "py.typed").exists()
    assert tests
    if not plugin.name.startswith("security-") and plugin.name not in LIBRARIES:
        assert any("Conformance" in test.read_text() for test in tests), "no driver runs through the conformance kit"


def test_all_packages_carry_one_version() -> None:
    assert len({project(member)["version"] for member in MEMBERS}) == 1
    major_minor = str(project(ROOT / "core")["version"])
    for plugin in PLUGINS:
        assert f"engine-core~={major_minor}" in project(plugin)["dependencies"], plugin.name


def test_plugins_import_only_the_contracts_and_never_each_other() -> None:
    for source in SOURCES:
        if "plugins" not in source.parts:
            continue
        own = source.relative_to(ROOT / "plugins").parts[2]
        for name in imported(source):
            top, _, rest = name.partition(".")
            if top == "engine":
                assert rest.split(".")[0] in CONTRACTS, f"{source.relative_to(ROOT)} imports {name}"
            elif top.startswith("engine_"):
                library = top.removeprefix("engine_").replace("_", "-")
                owed = project(source_member(source))["dependencies"]
                declared = any(name.startswith(f"engine-{library}~=") for name in owed)
                assert top == own or (library in LIBRARIES and declared), f"{source.relative_to(ROOT)} imports {name}"


def source_member(source: Path) -> Path:
    return ROOT / "plugins" / source.relative_to(ROOT / "plugins").parts[0]


def test_plugin_modules_are_thin() -> None:
    """Importing a plugin at start must not import what only its driver needs."""
    heavy = ["wasmtime", "pyroute2", "grpc", "cryptography", "urllib3", "requests", "ctypes.util"]
    modules = ["engine_" + plugin.name.replace("-", "_") for plugin in PLUGINS]
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nprint([n for n in {heavy!r} if n in sys.modules])"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


def imported(source: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "engine":
                found |= {f"engine.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def test_no_module_is_too_long_to_read() -> None:
    """Over 800 lines a module says in its docstring why (the word ``lines``)."""
    for source in SOURCES:
        text = source.read_text()
        if text.count("\n") > 800:
            assert "lines" in (ast.get_docstring(ast.parse(text)) or ""), source.relative_to(ROOT)


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert [str(source.relative_to(ROOT)) for source in SOURCES if source.stem in drawers] == []


def test_every_module_says_what_it_is_for() -> None:
    for source in SOURCES:
        assert ast.get_docstring(ast.parse(source.read_text())), source.relative_to(ROOT)


def test_only_config_and_cli_read_the_environment() -> None:
    # plugins.py pins the cache of stevedore by it, monitor/start.py gives a guest its own, systemd speaks through it
    allowed = {"config.py", "plugins.py", "start.py", "systemd.py"}
    for source in SOURCES:
        relative = source.relative_to(ROOT)
        if "cli" in relative.parts or "testing" in relative.parts or relative.name in allowed:
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            reads = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
            assert not (reads and isinstance(node.value, ast.Name) and node.value.id == "os"), (
                f"{relative}:{node.lineno}"
            )


def test_nothing_prints_but_the_cli() -> None:
    for source in SOURCES:
        relative = source.relative_to(ROOT)
        if "cli" in relative.parts or relative.name in ("daemon.py", "config.py"):
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not called, f"{relative}:{node.lineno}"


def test_every_hook_is_documented_with_its_arguments() -> None:
    page = (ROOT / "specs/design/plugins.md").read_text()
    for name, function in inspect.getmembers(Hooks, inspect.isfunction):
        if name.startswith("engine_"):
            arguments = ", ".join(list(inspect.signature(function).parameters)[1:])
            assert f"`{name}({arguments})`" in page


def test_drivers_have_at_most_eight_abstract_methods() -> None:
    from engine.drivers import log, network, runtime, store, volume

    for driver in (
        log.LogDriver,
        network.NetworkDriver,
        runtime.RuntimeDriver,
        store.ImageStoreDriver,
        volume.VolumeDriver,
    ):
        assert 0 < len(driver.__abstractmethods__) <= 8, driver.__name__


def test_coverage_page_lists_every_id_once_and_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| ([SN]\d+(?:\.\d+)?) \| (.*?) \|$", (ROOT / "specs/coverage.md").read_text(), re.MULTILINE)
    ids = [row[0] for row in rows]
    assert len(ids) == len(set(ids))
    contract = ROOT.parent / "shared" / "CONTRACT.md"
    if contract.exists():
        owed = re.findall(r"^\| \d+ \| ([SN]\d+(?:\.\d+)?) \|", contract.read_text(), re.MULTILINE)
        assert set(owed) == set(ids)
    for identifier, proof in rows:
        for reference in [] if proof.startswith("open") else proof.split(", "):
            path, _, test = reference.strip("`").partition("::")
            file = ROOT / path
            assert file.is_file(), f"{identifier}: {path} does not exist"
            assert re.search(rf"def {re.escape(test)}\b", file.read_text()), f"{identifier}: no {test} in {path}"


def test_changelog_fragments_have_a_kind() -> None:
    kinds = {"added", "changed", "fixed", "removed", "security"}
    fragments = [path for path in (ROOT / "contrib/news").iterdir() if path.name != "README.md"]
    assert fragments
    for path in fragments:
        assert path.suffix == ".md"
        assert path.stem.rsplit(".", 1)[-1] in kinds, path.name
