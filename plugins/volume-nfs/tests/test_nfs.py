from __future__ import annotations

import os
import socket
import time

import pytest

from engine.drivers import DriverContext
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound, NotSupported, Unavailable
from engine.testing.volumes import VolumeConformance
from engine_volume_nfs.client import NfsClient, Share
from engine_volume_nfs.driver import NfsVolumes


class FakeClient:
    """A server that is a directory; a mount is a link to it. ``log`` tells what was mounted and unmounted."""

    def __init__(self, server):
        self.server, self.log, self.down = server, [], False

    def check(self):
        pass

    def reach(self, share):
        if self.down:
            raise Unavailable(f"NFS server {share.host} does not answer on port 2049: timed out")
        return "192.0.2.1"

    def mount(self, share, target):
        self.reach(share)
        if not (self.server / share.path[1:]).is_dir():
            raise EngineError(f"mounting {share} failed: no such file or directory (the server has no such path)")
        self.log.append(f"mount {share}")
        target.rmdir()
        target.symlink_to(self.server / share.path[1:])

    def unmount(self, target):
        if target.is_symlink():
            self.log.append("unmount")
            target.unlink()
            target.mkdir()

    def mounted(self, target):
        return target.is_symlink()


@pytest.fixture
def client(tmp_path):
    (tmp_path / "server" / "export").mkdir(parents=True)
    return FakeClient(tmp_path / "server")


@pytest.fixture
def host(tmp_path, client):
    """Engines on hosts of their own, with one server."""
    drivers = []

    def build(name, **options):
        root, state = tmp_path / name / "root", tmp_path / name / "state"
        for directory in (root, state):
            directory.mkdir(parents=True, exist_ok=True)
        context = DriverContext(name="nfs", instance=name, root=root, state=state, options=options)
        drivers.append(NfsVolumes(context, client))
        return drivers[-1]

    yield build
    for driver in drivers:
        for stopped in driver._renewing.values():
            stopped.set()


class TestNfs(VolumeConformance):
    @pytest.fixture
    def driver(self, host):
        return host("one", share="files:/export")


class TestNfsSingleWriter(TestNfs):
    options = {"access": "single-writer", "o": "vers=4.1"}

    def test_consumers_share_the_data_and_it_outlives_them(self, driver):
        driver.create("data", self.options)
        (driver.mount("data", "c1") / "file").write_text("kept")
        driver.unmount("data", "c1")
        assert (driver.mount("data", "c2") / "file").read_text() == "kept"
        driver.unmount("data", "c2")

    def test_a_removed_volume_is_gone_and_removing_again_is_fine(self, driver):
        driver.create("data", self.options)
        driver.mount("data", "c1")
        driver.remove("data")
        driver.remove("data")
        with pytest.raises(NotFound):
            driver.get("data")


def test_one_mount_of_a_share_serves_all_its_users(host, client):
    driver = host("one")
    driver.create("aa", {"share": "files:/export"})
    driver.create("bb", {"share": "files:/export"})
    assert client.log == []

    paths = {driver.mount("aa", "c1"), driver.mount("aa", "c2"), driver.mount("bb", "c3"), driver.mount("bb", "c3")}

    assert len(paths) == 1
    assert client.log == ["mount files:/export"]
    for volume, consumer in (("aa", "c1"), ("bb", "c3"), ("bb", "c3")):
        driver.unmount(volume, consumer)
    assert client.log == ["mount files:/export"]
    driver.unmount("aa", "c2")
    assert client.log == ["mount files:/export", "unmount"]
    assert os.listdir(driver.context.state) == []


def test_removing_leaves_a_share_of_its_own_and_takes_a_directory_of_the_common_one(host, tmp_path):
    driver = host("one", share="files:/export", o="noatime")
    (tmp_path / "server" / "other").mkdir()
    driver.create("own", {"share": "files:/other"})
    driver.create("common", {})
    for name in ("own", "common"):
        (driver.mount(name, "c") / "file").touch()
        driver.unmount(name, "c")
    assert (tmp_path / "server" / "export" / "common" / "file").exists()

    driver.remove("own")
    driver.remove("common")

    assert (tmp_path / "server" / "other" / "file").exists()
    assert not (tmp_path / "server" / "export" / "common").exists()


def test_two_hosts_see_the_same_data(host):
    one, two = host("one"), host("two")
    for driver in (one, two):
        driver.create("data", {"share": "files:/export"})
    (one.mount("data", "c1") / "file").write_text("from one")
    assert (two.mount("data", "c2") / "file").read_text() == "from one"
    assert one.scope == "global"


def test_a_second_writer_is_refused_with_the_first_ones_name(host, client, tmp_path):
    options = {"share": "files:/export", "access": "single-writer"}
    one, two = host("one"), host("two")
    for driver in (one, two):
        driver.create("data", options)
    one.mount("data", "c1")
    one.mount("data", "c1")

    for driver in (one, two):
        with pytest.raises(Conflict, match=rf"container c1 on host {socket.gethostname()} has it"):
            driver.mount("data", "c2")
    assert [path.name for path in two.context.state.iterdir()] == []
    one.unmount("data", "c1")
    two.mount("data", "c2")
    two.unmount("data", "c2")


def test_a_writer_that_is_silent_for_too_long_loses_the_volume(host, tmp_path):
    options = {"share": "files:/export", "access": "single-writer", "lease": "600"}
    one, two = host("one"), host("two")
    for driver in (one, two):
        driver.create("data", options)
    one.mount("data", "c1")
    file = tmp_path / "server" / "export" / ".engine-lease"
    os.utime(file, (time.time() - 590, time.time() - 590))
    with pytest.raises(Conflict, match=r"last heard of 5\d\d s ago"):
        two.mount("data", "c2")
    os.utime(file, (time.time() - 601, time.time() - 601))

    two.mount("data", "c2")

    one.unmount("data", "c1")  # not its lease any more
    with pytest.raises(Conflict):
        one.mount("data", "c1")


def test_leases_are_renewed_also_after_a_restart_of_the_engine(host, tmp_path):
    options = {"share": "files:/export", "access": "single-writer", "lease": "1"}
    one = host("one")
    one.create("data", options)
    one.mount("data", "c1")
    file = tmp_path / "server" / "export" / ".engine-lease"
    for driver in (one, host("one")):
        first = file.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while file.stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
        driver._renewing["data", "c1"].set()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, 'missing required option: "share"'),
        ({"share": "nonsense"}, "invalid share 'nonsense': it reads HOST:/PATH"),
        ({"share": "a:/b,c"}, "invalid share"),
        ({"share": "a:/b", "o": "addr=1.2.3.4"}, "is found out from the share"),
        ({"share": "a:/b", "access": "nobody"}, "invalid access 'nobody'"),
        ({"share": "a:/b", "lease": "x"}, "invalid lease 'x'"),
        ({"share": "a:/b", "access": "single-writer", "o": "vers=3"}, "needs the locks of NFS version 4"),
        ({"share": "a:/b", "colour": "red"}, 'invalid option: "colour"'),
    ],
)
def test_what_cannot_be_is_refused_at_create(host, options, words):
    driver = host("one")
    with pytest.raises(InvalidParameter, match=words):
        driver.create("data", options)
    assert driver.list() == []


def test_a_server_that_is_away_is_said_and_shown(host, client):
    driver = host("one")
    driver.create("data", {"share": "files:/export"})
    assert driver.get("data").status == {"Share": "files:/export", "Mounted": "false", "Server": "reachable"}
    client.down = True
    with pytest.raises(Unavailable, match="NFS server files does not answer on port 2049"):
        driver.mount("data", "c")
    with pytest.raises(Unavailable):
        driver.create("more", {"share": "files:/export"})
    assert "does not answer" in driver.get("data").status["Server"]
    assert os.listdir(driver.context.state / os.listdir(driver.context.state)[0] / "users") == []
    driver.remove("data")


def test_shares_and_their_options_are_read_as_mount_does():
    share = Share.parse("[fe80::1]:/a/b", "vers=4.1,ro,nfsvers=4.0")
    assert (share.host, share.path, str(share), share.version) == ("fe80::1", "/a/b", "[fe80::1]:/a/b", "4.1")
    assert Share.parse("h:/").version == "4.2"


def test_a_port_nobody_listens_on_is_found_out_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(Unavailable, match=rf"NFS server 127\.0\.0\.1 does not answer on port {port}: connection"):
            NfsClient().reach(Share.parse("127.0.0.1:/x", f"port={port}"))


def test_a_kernel_without_the_client_is_named(monkeypatch):
    client = NfsClient()
    monkeypatch.setattr(client, "_known", lambda: False)
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: None)
    with pytest.raises(NotSupported, match="this kernel has no NFS client"):
        client.check()
