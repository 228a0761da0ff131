"""The nfs volume driver on a real server and client, run by ``nfs.sh`` in a VM; hosts are instances of the driver."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.drivers import DriverContext
from engine.drivers.volume import VolumeDriver
from engine.errors import Conflict, EngineError
from engine.testing.volumes import VolumeConformance
from engine_volume_nfs.driver import NfsVolumes

Host = Callable[..., NfsVolumes]


def nfs_mounts(below: Path) -> list[str]:
    lines = Path("/proc/mounts").read_text().splitlines()
    return [line for line in lines if line.split()[2].startswith("nfs") and line.split()[1].startswith(str(below))]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made: list[NfsVolumes] = []

    def build(name: str, **options: object) -> NfsVolumes:
        root, state = tmp_path / name / "root", tmp_path / name / "state"
        for directory in (root, state):
            directory.mkdir(parents=True, exist_ok=True)
        made.append(NfsVolumes(DriverContext(name="nfs", instance=name, root=root, state=state, options=options)))
        return made[-1]

    yield build
    for driver in made:
        for volume in driver.list():
            driver.remove(volume.name)
    assert nfs_mounts(tmp_path) == []
    for path in Path("/srv/one").iterdir():
        subprocess.run(["rm", "-rf", str(path)], check=True)


class TestConformance(VolumeConformance):
    @pytest.fixture
    def driver(self, host: Host) -> VolumeDriver:
        return host("one", share="localhost:/srv/one")


@pytest.mark.parametrize("version", ["3", "4.0", "4.1", "4.2"])
def test_two_hosts_share_what_is_on_the_server(host: Host, version: str) -> None:
    options = {"share": "127.0.0.1:/srv/one", "o": f"vers={version}"}
    one, two = host("one"), host("two")
    for driver in (one, two):
        driver.create("data", options)

    (one.mount("data", "c1") / "file").write_text("from one")

    assert (two.mount("data", "c2") / "file").read_text() == "from one"
    assert Path("/srv/one/file").read_text() == "from one"
    one.unmount("data", "c1")
    two.unmount("data", "c2")


def test_one_mount_serves_all_users_on_a_host(host: Host, tmp_path: Path) -> None:
    one = host("one")
    for name in ("aa", "bb"):
        one.create(name, {"share": "127.0.0.1:/srv/one", "o": "noatime"})
    paths = {one.mount(name, consumer) for name in ("aa", "bb") for consumer in ("c1", "c2")}

    assert len(paths) == 1
    (line,) = nfs_mounts(tmp_path)
    assert "noatime" in line
    for name, consumer in (("aa", "c1"), ("aa", "c2"), ("bb", "c1")):
        one.unmount(name, consumer)
        assert len(nfs_mounts(tmp_path)) == 1
    one.unmount("bb", "c2")
    assert nfs_mounts(tmp_path) == []


@pytest.mark.parametrize(
    ("share", "o", "words"),
    [
        ("127.0.0.1:/srv/nosuch", "", "the server has no such path"),
        ("127.0.0.1:/etc", "", "the server"),
        ("127.0.0.1:/srv/one", "nonsense=1", "the kernel does not know one of the options"),
    ],
)
def test_the_kernels_refusal_is_explained(host: Host, share: str, o: str, words: str, tmp_path: Path) -> None:
    one = host("one")
    one.create("data", {"share": share, "o": o})
    with pytest.raises(EngineError, match=words) as raised:
        one.mount("data", "c")
    print(raised.value)
    assert nfs_mounts(tmp_path) == []


def test_a_single_writer_is_alone_among_hosts(host: Host) -> None:
    options = {"share": "127.0.0.1:/srv/one", "access": "single-writer", "lease": "2"}
    one, two = host("one"), host("two")
    for driver in (one, two):
        driver.create("data", options)
    (one.mount("data", "c1") / "file").write_text("mine")

    with pytest.raises(Conflict, match="container c1 on host"):
        two.mount("data", "c2")
    until = time.monotonic() + 4
    while time.monotonic() < until:  # longer than the lease: it is renewed
        with pytest.raises(Conflict):
            two.mount("data", "c2")
        time.sleep(0.5)
    one._renewing["data", "c1"].set()  # its host has died
    deadline = time.monotonic() + 20
    while True:
        try:
            path = two.mount("data", "c2")
            break
        except Conflict:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert (path / "file").read_text() == "mine"
    two.unmount("data", "c2")
    one.unmount("data", "c1")
    assert sorted(os.listdir("/srv/one")) == [".engine-lease.lock", "file"]


def test_a_server_that_stopped_is_told_within_seconds(host: Host) -> None:
    one = host("one")
    one.create("data", {"share": "127.0.0.1:/srv/one"})
    assert one.get("data").status["Server"] == "reachable"
    subprocess.run(["systemctl", "stop", "nfs-server"], check=True)
    try:
        begun = time.monotonic()
        assert "does not answer on port 2049" in one.get("data").status["Server"]
        with pytest.raises(EngineError, match="does not answer"):
            one.mount("data", "c")
        assert time.monotonic() - begun < 15
    finally:
        subprocess.run(["systemctl", "start", "nfs-server"], check=True)
