from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

from engine.drivers import DriverContext
from engine.errors import EngineError, InvalidParameter, NotFound
from engine.testing.volumes import VolumeConformance
from engine_volume_local.driver import LocalVolumes


@pytest.fixture
def local(driver_context):
    return LocalVolumes(driver_context("local"))


class TestLocal(VolumeConformance):
    @pytest.fixture
    def driver(self, local):
        return local


@pytest.mark.root
class TestLocalWithAMount(VolumeConformance):
    @pytest.fixture
    def driver(self, local):
        yield local
        for volume in local.list():
            local.remove(volume.name)

    # Everything a tmpfs holds is gone with its last consumer, so the tests of data that stays use a bind.
    @pytest.fixture(autouse=True)
    def _bound(self, tmp_path):
        self.source = tmp_path / "elsewhere"
        self.source.mkdir()
        self.options = {"type": "none", "o": "bind", "device": str(self.source)}

    def test_a_removed_volume_is_gone_and_removing_again_is_fine(self, driver):
        driver.create("data", self.options)
        (driver.mount("data", "c1") / "file").touch()
        driver.remove("data")
        driver.remove("data")
        assert driver.list() == []
        assert (self.source / "file").exists()


def test_the_data_is_where_docker_users_look_for_it(local):
    volume = local.create("web", {})
    assert volume.mountpoint == local.context.root / "web" / "_data"
    assert volume.mountpoint.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "", "..", "a\n"])
def test_a_name_that_is_no_name_makes_nothing(local, name):
    with pytest.raises(InvalidParameter, match="includes invalid characters for a local volume name"):
        local.create(name, {})
    assert os.listdir(local.context.root) == []
    with pytest.raises(NotFound):
        local.get(name)
    local.remove(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nope": "1"}, 'invalid option: "nope"'),
        ({"type": "tmpfs"}, 'missing required option: "device"'),
        ({"device": "tmpfs"}, 'missing required option: "type"'),
        ({"o": "ro"}, 'missing required option: "device"'),
        ({"size": "10m"}, "quota size requested but no quota support"),
        ({"size": "much"}, "invalid size: 'much'"),
        ({"type": "cifs", "device": "//host:445/share"}, "port not allowed in CIFS device URL"),
    ],
)
def test_options_are_checked_before_anything_is_made(local, options, message):
    with pytest.raises(InvalidParameter) as error:
        local.create("data", options)
    assert str(error.value).startswith(message)
    assert local.list() == []


def test_what_was_being_deleted_when_the_engine_died_is_swept(driver_context):
    context = driver_context("local")
    (context.root / ".removed-1" / "_data").mkdir(parents=True)
    assert LocalVolumes(context).list() == []
    deadline = time.monotonic() + 20
    while os.listdir(context.root):
        assert time.monotonic() < deadline


def test_usage_counts_hard_links_once(local):
    data = local.create("data", {}).mountpoint
    (data / "a").write_bytes(b"x" * 1000)
    os.link(data / "a", data / "b")
    assert local.usage("data") == 1000


@pytest.mark.root
@pytest.mark.usefixtures("no_leaks")
def test_a_tmpfs_is_mounted_for_the_first_and_unmounted_after_the_last(local):
    local.create("ram", {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,noexec,uid=1000"})
    path = local.mount("ram", "c1")
    assert os.path.ismount(path)
    assert os.stat(path).st_uid == 1000
    assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize == 1 << 20
    assert os.statvfs(path).f_flag & os.ST_NOEXEC
    local.mount("ram", "c2")
    local.unmount("ram", "c1")
    assert os.path.ismount(path)
    local.unmount("ram", "c2")
    assert not os.path.ismount(path)
    local.remove("ram")


@pytest.mark.root
@pytest.mark.usefixtures("no_leaks")
def test_a_read_only_bind_is_read_only_and_removal_leaves_its_source_alone(local, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    local.create("bound", {"type": "none", "o": "bind,ro", "device": str(source)})
    path = local.mount("bound", "c1")
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").touch()
    local.remove("bound")
    assert (source / "file").exists()


@pytest.mark.root
def test_a_failing_mount_says_what_failed_without_the_password(local):
    local.create("bad", {"type": "none", "o": "bind,password=secret", "device": "/nowhere"})
    with pytest.raises(EngineError) as error:
        local.mount("bad", "c1")
    assert "no such file or directory" in str(error.value)
    assert "failed to mount local volume: mount /nowhere:" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.fixture
def limited(tmp_path):
    """A file system with project quotas."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("needs e2fsprogs")
    image, place = tmp_path / "image", tmp_path / "limited"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", str(image)], check=True)
    mounted = subprocess.run(["mount", "-o", "loop,prjquota", str(image), str(place)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this kernel has no quotas on ext4: {mounted.stderr}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _write(path, megabytes):
    """Whether a process as in a container can: root with CAP_SYS_RESOURCE is above quotas."""
    command = ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={megabytes}"]
    return subprocess.run(["setpriv", "--bounding-set=-sys_resource", *command], capture_output=True).returncode == 0


@pytest.mark.root
def test_a_size_limits_a_volume_and_only_that(limited):
    (limited / "root").mkdir()
    (limited / "state").mkdir()
    context = DriverContext(name="local", instance="deadbeef", root=limited / "root", state=limited / "state")
    local = LocalVolumes(context)
    small, large = local.create("small", {"size": "2m"}), local.create("large", {"size": "20 MiB"})

    assert not _write(small.mountpoint / "file", megabytes=3)
    assert _write(large.mountpoint / "file", megabytes=3)
    assert _write(limited / "other", megabytes=3)
    assert (small.mountpoint / "file").stat().st_size <= 2 << 20


@pytest.mark.parametrize(("size", "words"), [("lots", "invalid size: 'lots'"), ("1m", "no quota support")])
def test_a_size_that_cannot_be_kept_makes_no_volume(local, size, words, monkeypatch):
    monkeypatch.setattr("engine_volume_local.quota._SYS_QUOTACTL_FD", -1)
    with pytest.raises(InvalidParameter, match=words):
        local.create("vol", {"size": size})
    assert os.listdir(local.context.root) == []
    local.create("vol", {"size": "0"})
