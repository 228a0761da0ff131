"""The driver without a kernel: plans, options and refusals. And cgroup layouts as mount tables show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.drivers import DriverContext
from engine.drivers.cgroups import Cgroup, Layout
from engine.drivers.runtime import Bundle
from engine.errors import InvalidParameter, NotSupported, PluginError
from engine_runtime_oci import engine_runtimes
from engine_runtime_oci.driver import OciRuntime

FAKE = """#!/bin/sh
case "$*" in *--version*) echo "fakeoci version 9.1"; echo "commit: abc";; *) exit 1;; esac
"""


@pytest.fixture
def driver(tmp_path: Path) -> OciRuntime:
    return make(tmp_path, args=["--debug"])


def make(tmp_path: Path, **options: object) -> OciRuntime:
    binary = tmp_path / "fakeoci"
    binary.write_text(FAKE)
    binary.chmod(0o755)
    context = DriverContext(
        name="fake", instance="0badcafe", root=tmp_path, state=tmp_path, options={"path": str(binary), **options}
    )
    return OciRuntime(context)


def bundle(tmp_path: Path, config: dict[str, Any] | None = None) -> Bundle:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config if config is not None else {"linux": {"cgroupsPath": "/a/b"}}))
    return Bundle(container_id="c1", path=path)


def test_any_binary_with_runcs_command_line_can_be_used(driver: OciRuntime, tmp_path: Path) -> None:
    info = driver.probe()
    assert (info.path, info.version, info.commit) == (str(tmp_path / "fakeoci"), "9.1", "abc")
    launch = driver.launch(bundle(tmp_path), terminal=False)
    assert launch.argv[:2] == (str(tmp_path / "fakeoci"), "--debug")
    assert launch.argv[-1] == "c1"
    assert "--console-socket" not in launch.argv
    assert launch.hide == ()


def test_a_terminal_comes_over_a_socket_with_a_short_path(driver: OciRuntime, tmp_path: Path) -> None:
    launch = driver.launch(bundle(tmp_path), terminal=True)
    assert launch.console_socket is not None
    assert launch.argv[launch.argv.index("--console-socket") + 1] == str(launch.console_socket)
    assert launch.console_socket.parent.is_dir()


def test_an_exec_is_a_file_that_goes_after_the_start(driver: OciRuntime, tmp_path: Path) -> None:
    launch = driver.launch_exec(bundle(tmp_path), "e1", {"args": ["ls"]}, terminal=True)
    file = Path(launch.argv[launch.argv.index("--process") + 1])
    assert json.loads(file.read_bytes()) == {"args": ["ls"], "terminal": True}
    assert file.stat().st_mode & 0o777 == 0o600
    assert {file, launch.pid_file, launch.error_log} <= set(launch.temporary)


def test_a_container_without_a_cgroup_path_gets_one_of_this_engine(driver: OciRuntime, tmp_path: Path) -> None:
    one = bundle(tmp_path, {})
    driver.launch(one, terminal=False)
    assert json.loads((one.path / "config.json").read_bytes())["linux"]["cgroupsPath"] == "/engine-0badcafe/c1"


@pytest.mark.parametrize("path", ["/", "/a/../..", "///"])
def test_a_cgroup_path_that_is_not_the_containers_own_is_refused(driver: OciRuntime, tmp_path: Path, path: str) -> None:
    with pytest.raises(PluginError, match="refusing"):
        driver.delete(bundle(tmp_path, {"linux": {"cgroupsPath": path}}))


def test_deleting_twice_is_deleting_once(driver: OciRuntime, tmp_path: Path) -> None:
    one = bundle(tmp_path, {"linux": {"cgroupsPath": "/no/such/cgroup"}})
    (one.path / "init.pid").write_text("1")
    driver.delete(one)
    driver.delete(one)
    assert [path.name for path in one.path.iterdir()] == ["config.json"]


def test_a_missing_binary_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="/nonexistent/x is not installed; install it"):
        make(tmp_path, path="/nonexistent/x").probe()


def test_arguments_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter):
        make(tmp_path, args="--debug")


def test_the_plugin_offers_runc_and_crun_for_linux() -> None:
    offered = {description.name: description for description in engine_runtimes()}
    assert set(offered) == {"runc", "crun"}
    assert offered["runc"].aliases == ("io.containerd.runc.v2",)
    assert all(description.platforms == ("linux",) for description in offered.values())


V1 = "34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
NAMED = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
V2 = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(("table", "version"), [(V1 + NAMED, "v1"), (V1 + NAMED + V2, "hybrid"), (V2, "v2")])
def test_the_layout_is_read_from_the_mount_table(tmp_path: Path, table: str, version: str) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(table)
    layout = Layout.read(str(file))
    assert layout.version == version
    if version != "v2":
        assert layout.controllers["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
        assert layout.controllers["name=systemd"] == "/sys/fs/cgroup/systemd"


def test_a_cgroup_that_is_gone_reads_as_empty(tmp_path: Path) -> None:
    cgroup = Cgroup(Layout({"memory": str(tmp_path)}), "/gone")
    assert cgroup.processes() == []
    assert cgroup.number("memory", "memory.limit_in_bytes", 7) == 7
    cgroup.kill()
    cgroup.remove()
