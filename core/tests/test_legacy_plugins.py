from __future__ import annotations

import json
import threading
from contextlib import contextmanager

import msgspec
import pytest

from engine.errors import EngineError, NotFound, PluginError
from engine.legacy_plugins import LegacyPlugin, find, names
from engine.testing.legacy_plugin import serve
from engine.testing.volumes import VolumeConformance
from engine.volumes.legacy import LegacyVolumes


class Answer(msgspec.Struct, rename="pascal"):
    mountpoint: str = ""


@contextmanager
def running(address, root):
    root.mkdir(exist_ok=True)
    server = serve(str(address), root)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        address.unlink()


@pytest.fixture
def places(tmp_path):
    for name in ("run", "etc"):
        (tmp_path / name).mkdir()
    return (tmp_path / "run", tmp_path / "etc")


def test_plugins_are_found_by_sockets_and_descriptions(tmp_path, places):
    run, etc = places
    (run / "nested").mkdir()
    (etc / "spec.spec").write_text("unix:///nowhere.sock\n")
    (etc / "json.json").write_text('{"Name": "json", "Addr": "tcp://127.0.0.1:1"}')
    (etc / "README").touch()
    with running(run / "flat.sock", tmp_path / "a"), running(run / "nested" / "nested.sock", tmp_path / "b"):
        assert names(places) == ["flat", "json", "nested", "spec"]
        for name in ("flat", "nested", "spec", "json"):
            assert find(name, places) is not None
        for name in ("README", "nosuch", "../etc/spec", ""):
            assert find(name, places) is None
        for name in ("flat", "nested"):
            LegacyPlugin(name, places).require("VolumeDriver")
    assert names((tmp_path / "nowhere",)) == []


def test_a_plugin_that_speaks_another_protocol_or_nobody_is_refused(tmp_path, places):
    run, etc = places
    (etc / "gone.spec").write_text("unix:///nowhere.sock")
    (etc / "odd.spec").write_text("carrier-pigeon")
    (etc / "broken.json").write_text("{")
    with running(run / "flat.sock", tmp_path / "a"):
        with pytest.raises(NotFound, match='plugin "flat" does not implement "authz"'):
            LegacyPlugin("flat", places).require("authz")
    with pytest.raises(PluginError, match="plugin gone cannot be reached"):
        LegacyPlugin("gone", places).require("VolumeDriver")
    with pytest.raises(PluginError, match="neither unix:// nor tcp://"):
        LegacyPlugin("odd", places).require("VolumeDriver")
    with pytest.raises(PluginError, match="is not readable"):
        find("broken", places)
    with pytest.raises(NotFound):
        LegacyPlugin("nosuch", places).require("VolumeDriver")


def test_what_a_plugin_says_is_the_error_and_a_restarted_plugin_goes_on(tmp_path, places):
    address, root = places[0] / "p.sock", tmp_path / "p"
    plugin = LegacyPlugin("p", places)
    with running(address, root):
        with pytest.raises(EngineError, match=r"VolumeDriver\.Create: no room"):
            plugin.call("VolumeDriver.Create", {"Name": "v", "Opts": {"fail": "no room"}}, Answer)
    with pytest.raises(NotFound):
        plugin.call("VolumeDriver.Path", {"Name": "v"}, Answer)
    with running(address, root):
        plugin.call("VolumeDriver.Create", {"Name": "v"}, Answer)
        assert plugin.call("VolumeDriver.Path", {"Name": "v"}, Answer).mountpoint.endswith("volume-v")
    activations = [line for line in (root / "calls").read_text().splitlines() if "Activate" in line]
    assert activations


def test_a_plugin_that_hangs_is_given_up(tmp_path, places):
    plugin = LegacyPlugin("p", places)
    with running(places[0] / "p.sock", tmp_path / "p"):
        plugin.call("VolumeDriver.Create", {"Name": "v", "Opts": {"hang": "0.3"}}, Answer)
        with pytest.raises(PluginError, match=r"plugin p: VolumeDriver\.Mount was not answered within 0\.05 seconds"):
            plugin.call("VolumeDriver.Mount", {"Name": "v", "ID": "c"}, Answer, timeout=0.05)


@pytest.fixture
def driver(driver_context, tmp_path):
    (tmp_path / "run").mkdir()
    with running(tmp_path / "run" / "legacy.sock", tmp_path / "plugin"):
        yield LegacyVolumes(driver_context("legacy", directories=[tmp_path / "run"]))


def test_scope_status_and_options_pass_through(driver, tmp_path):
    volume = driver.create("data", {"share": "x"})

    assert driver.scope == "global"
    assert volume.options == {"share": "x"}
    assert volume.status == {"kind": "test", "blocks": "7"}
    assert json.loads((tmp_path / "plugin" / "options-data").read_text()) == {"share": "x"}


class TestConformance(VolumeConformance):
    @pytest.fixture
    def driver(self, driver):
        return driver

    def test_unknown_names_and_options_are_refused(self, driver):
        """Options are the plugin's business; unknown names are ours to tell."""
        with pytest.raises(NotFound):
            driver.get("nosuch")
        with pytest.raises(EngineError, match="not this one"):
            driver.create("data", {"fail": "not this one"})
        assert list(driver.list()) == []
