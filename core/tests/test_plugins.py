"""The plugin host: broken plugins name themselves and harm nobody; names resolve, clash and are missed clearly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.drivers import DriverContext, DriverDescription
from engine.errors import Forbidden, InvalidParameter, NotFound, PluginError
from engine.hookspecs import hookimpl
from engine.platforms import parse_platform
from engine.plugins import Plugins, PluginSettings
from engine.testing.fakes import FakeVolumes


class Driver:
    """Stands for any driver: remembers its context."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context


class Exploding:
    def __init__(self, context: DriverContext) -> None:
        raise RuntimeError("no such library")


def description(name: str, **more: Any) -> DriverDescription:
    return DriverDescription(name=name, loader=more.pop("loader", f"{__name__}:Driver"), summary="for tests", **more)


def runtimes(*found: DriverDescription) -> object:
    class Plugin:
        @staticmethod
        @hookimpl
        def engine_runtimes() -> Sequence[DriverDescription]:
            return found

    return Plugin()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Plugins]:
    # the loader string names this module, whatever name pytest imported it under
    sys.modules.setdefault(__name__, sys.modules[Driver.__module__])

    def build(*plugins: tuple[str, object], **settings: Any) -> Plugins:
        made = Plugins(
            PluginSettings(instance="0" * 8, data_root=tmp_path / "data", exec_root=tmp_path / "run", **settings), []
        )
        for name, plugin in plugins:
            made.add(plugin, name)
        return made

    return build


def test_a_driver_is_built_on_first_use_and_once(make: Callable[..., Plugins], tmp_path: Path) -> None:
    plugins = make(("a", runtimes(description("one"))), options={"one": {"speed": "high"}})

    driver: Any = plugins.runtime("one")

    assert plugins.runtime("one") is driver
    assert (driver.context.name, dict(driver.context.options)) == ("one", {"speed": "high"})
    assert driver.context.root.is_dir()
    assert driver.context.state.is_relative_to(tmp_path / "run")


@pytest.mark.parametrize("spelling", ["runc", "oci", "io.containerd.runc.v2"])
def test_aliases_and_containerd_names_lead_to_one_driver(make: Callable[..., Plugins], spelling: str) -> None:
    plugins = make(("a", runtimes(description("runc", aliases=("oci",)))))

    assert plugins.runtime(spelling) is plugins.runtime("runc")
    assert plugins.runtime_name(spelling) == "runc"


def test_a_path_and_a_configured_runtime_use_the_oci_plugin_with_that_binary(make: Callable[..., Plugins]) -> None:
    plugins = make(
        ("a", runtimes(description("runc", capabilities=frozenset({"oci-binary"})))),
        runtimes={
            "mine": {"path": "/opt/mine", "runtimeArgs": ["--x"]},
            "shim": {"runtimeType": "io.containerd.runc.v2"},
        },
    )

    path: Any = plugins.runtime("/opt/youki")
    mine: Any = plugins.runtime("mine")

    assert path.context.options == {"path": "/opt/youki"}
    assert mine.context.options == {"path": "/opt/mine", "args": ["--x"]}
    assert plugins.runtime("shim") is not plugins.runtime("runc")
    assert plugins.names("runtime") == ["mine", "runc", "shim"]


def test_an_unknown_name_lists_what_is_installed(make: Callable[..., Plugins]) -> None:
    plugins = make(("a", runtimes(description("runc"), description("crun"))))

    with pytest.raises(InvalidParameter, match="unknown or invalid runtime name: kata; installed: crun, runc"):
        plugins.runtime("kata")
    with pytest.raises(NotFound, match='plugin "nosuch" not found'):
        plugins.network("nosuch")
    with pytest.raises(InvalidParameter, match='error looking up logging plugin x: plugin "x" not found'):
        plugins.log("x")


def test_two_plugins_claiming_one_name_are_both_named_and_harm_no_other_name(make: Callable[..., Plugins]) -> None:
    plugins = make(
        ("first", runtimes(description("wasm"), description("fine"))), ("second", runtimes(description("wasm")))
    )

    with pytest.raises(PluginError, match=r'runtime "wasm" is provided by first .* and second'):
        plugins.runtime("wasm")
    assert plugins.runtime("fine")
    assert [(report.name, report.state) for report in plugins.report()] == [
        ("first", "conflict"),
        ("second", "conflict"),
    ]


def test_a_driver_that_cannot_be_built_names_itself(make: Callable[..., Plugins]) -> None:
    plugins = make(("a", runtimes(description("bad", loader=f"{__name__}:Exploding"))))

    with pytest.raises(PluginError, match='runtime "bad" cannot be loaded: RuntimeError: no such library'):
        plugins.runtime("bad")


class Misspelt:
    @staticmethod
    @hookimpl
    def engine_runtime() -> list[DriverDescription]:
        return []


class WrongArgument:
    @staticmethod
    @hookimpl
    def engine_container_admit(request: object, nonsense: object) -> None:
        return None


class Coroutine:
    @staticmethod
    @hookimpl
    async def engine_container_admit(request: object) -> None:
        return None


class Raising:
    @staticmethod
    @hookimpl
    def engine_runtimes() -> list[DriverDescription]:
        raise OSError("disk on fire")


class WrongType:
    @staticmethod
    @hookimpl
    def engine_runtimes() -> list[str]:
        return ["runc"]


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (Misspelt(), "unknown hook 'engine_runtime'"),
        (WrongArgument(), "nonsense"),
        (Coroutine(), "hooks are synchronous"),
        (Raising(), "disk on fire"),
        (WrongType(), "not DriverDescription"),
    ],
    ids=["misspelt hook", "wrong argument", "coroutine", "raising", "wrong type"],
)
def test_a_broken_plugin_is_set_aside_by_name(make: Callable[..., Plugins], plugin: object, words: str) -> None:
    plugins = make(("good", runtimes(description("runc"))))

    with pytest.raises(PluginError, match=words):
        plugins.add(plugin, "broken-one")

    assert plugins.runtime("runc")
    assert plugins.hooks.engine_runtimes() == [(description("runc"),)]
    report = {entry.name: entry for entry in plugins.report()}
    assert (report["good"].state, report["broken-one"].state) == ("enabled", "broken")
    assert words in report["broken-one"].error
    assert any("broken-one" in warning for warning in plugins.warnings())


def test_a_deciding_hook_vetoes_with_its_own_words(make: Callable[..., Plugins]) -> None:
    class Policy:
        @staticmethod
        @hookimpl
        def engine_image_verify(reference: str) -> None:
            raise Forbidden(f"policy: {reference} is not signed")

    plugins = make(("policy", Policy()))

    with pytest.raises(Forbidden, match="policy: x is not signed"):
        plugins.hooks.engine_image_verify(reference="x", descriptor={})
    assert plugins.report()[0].kind == "policy"


def test_the_platform_decides_when_no_runtime_is_named(make: Callable[..., Plugins]) -> None:
    plugins = make(
        ("a", runtimes(description("runc", platforms=("linux",)), description("crun", platforms=("linux",)))),
        ("b", runtimes(description("wasm", platforms=("wasi/wasm",)))),
    )

    assert plugins.runtime_for(parse_platform("wasi/wasm")) == "wasm"
    assert plugins.runtime_for(parse_platform("linux/amd64")) == "crun"
    with pytest.raises(InvalidParameter, match="no installed runtime runs images for windows/amd64"):
        plugins.runtime_for(parse_platform("windows/amd64"))


def test_volumes_and_stores_live_where_docker_users_look(make: Callable[..., Plugins], tmp_path: Path) -> None:
    class Plugin:
        @staticmethod
        @hookimpl
        def engine_volume_drivers() -> Sequence[DriverDescription]:
            loader = f"{FakeVolumes.__module__}:FakeVolumes"
            return [description("local", loader=loader), description("nfs", loader=loader)]

    plugins = make(("volumes", Plugin()))

    assert plugins.volume("local").context.root == tmp_path / "data/volumes"
    assert plugins.volume("nfs").context.root == tmp_path / "data/volumes-nfs"


INSTALLED = """
import sys
from pathlib import Path
from engine.plugins import PluginSettings, discover
root = Path(sys.argv[1])
plugins = discover(PluginSettings(instance="0" * 8, data_root=root, exec_root=root, disabled=frozenset({"log-files"})))
states = {report.name: report.state for report in plugins.report()}
assert states["log-files"] == "disabled", states
assert states["broken-for-test"] == "broken", states
assert states["store-vfs"] == "enabled", states
assert "ImportError" in next(report.error for report in plugins.report() if report.name == "broken-for-test")
assert "json-file" not in plugins.names("log")
import stevedore._cache
print(stevedore._cache._c._dir)
"""


def test_discovery_disables_by_name_survives_a_broken_package_and_pins_the_cache(tmp_path: Path) -> None:
    site = tmp_path / "site"
    metadata = site / "broken_for_test-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-for-test\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[engine.plugins]\nbroken-for-test = broken_for_test\n")
    (site / "broken_for_test.py").write_text("raise ImportError('cannot find libmissing')\n")
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": "/nonexistent/attacker"}

    result = subprocess.run(
        [sys.executable, "-c", INSTALLED, str(tmp_path / "data")], env=environment, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "data/cache/python-entrypoints")
    assert (tmp_path / "data/cache").stat().st_mode & 0o777 == 0o700


class Configured:
    def __init__(self) -> None:
        self.seen: list[object] = []

    @hookimpl
    def engine_configure(self, options: Mapping[str, Any]) -> None:
        if options.get("wrong"):
            raise InvalidParameter("wrong is not right")
        if options.get("broken"):
            raise RuntimeError("boom")
        self.seen.append(dict(options))


def test_a_plugin_is_given_its_own_section_and_no_other(make: Callable[..., Plugins]) -> None:
    one, two = Configured(), Configured()
    make(("one", one), ("two", two), options={"one": {"a": 1}, "three": {"b": 2}})
    assert (one.seen, two.seen) == ([{"a": 1}], [{}])


def test_a_plugin_that_cannot_follow_its_configuration_stops_the_daemon(make: Callable[..., Plugins]) -> None:
    with pytest.raises(InvalidParameter, match="plugin one: wrong is not right"):
        make(("one", Configured()), options={"one": {"wrong": True}})
    with pytest.raises(PluginError, match="plugin one: RuntimeError: boom"):
        make(("one", Configured()), options={"one": {"broken": True}})


def test_a_required_plugin_that_is_missing_or_broken_is_an_error(make: Callable[..., Plugins]) -> None:
    found = make(("good", Configured()))
    found.require(["good"])
    with pytest.raises(PluginError, match="required plugin policy is not installed"):
        found.require(["good", "policy"])
