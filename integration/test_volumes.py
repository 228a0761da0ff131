"""Volumes and mounts, as users see them: with the docker CLI and with ours, on our engine and on dockerd."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Client, Daemon, wait_for

from engine import kernel

UNKNOWN_TO_20_10 = "the dockerd of this machine is too old for it"


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def api(daemon: Daemon, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """One request without a client in between."""
    connection = _Unix(daemon.socket)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    return answer.status, json.loads(raw) if raw else None


@pytest.fixture
def volume(request: pytest.FixtureRequest, daemon: Daemon, home: Path) -> Iterator[str]:
    """A free volume name; removed afterwards with whatever uses it."""
    text = "v-" + "".join(c if c.isalnum() else "-" for c in request.node.name)[:60].strip("-")
    client = Client("docker", daemon, home)
    yield text
    users = client("ps", "-aq", "--filter", f"volume={text}").out.split()
    if users:
        client("rm", "-f", "-v", *users)
    client("volume", "rm", "-f", text, check=False)


@pytest.fixture(scope="session")
def seeded(daemon: Daemon, scratch: Path) -> str:
    """An image with ``/seed``: owned by 1000:2000, mode 2750, with a file, a link and a file nobody else may read."""
    client = Client("docker", daemon, scratch)
    script = (
        "mkdir -p /seed/sub && echo hello >/seed/file && ln -s file /seed/link && echo x >/seed/sub/deep "
        "&& chown -R 1000:2000 /seed && chmod 600 /seed/sub/deep && chmod 2750 /seed"
    )
    client("run", "--name", "seeder", "bb", "sh", "-c", script)
    client("commit", "seeder", "seeded")
    client("commit", "-c", "VOLUME /seed", "seeder", "seeded-volume")
    client("rm", "seeder")
    return "seeded"


def mounts_of(client: Client, name: str) -> dict[str, dict[str, Any]]:
    return {mount["Destination"]: mount for mount in client.inspect(name)["Mounts"]}


def anonymous(client: Client, *filters: str) -> set[str]:
    arguments = [part for each in filters for part in ("--filter", each)]
    return {name for name in client("volume", "ls", "-q", *arguments).out.split() if len(name) == 64}


# -- volumes as objects ---------------------------------------------------------------------------------------


def test_create_prints_the_name_and_again_it_is_the_same_volume(cli: Client, volume: str) -> None:
    assert cli("volume", "create", "--label", "a=1", volume).out == f"{volume}\n"
    created = json.loads(cli("volume", "inspect", volume).out)[0]

    assert cli("volume", "create", "--label", "a=2", volume).out == f"{volume}\n"

    assert json.loads(cli("volume", "inspect", volume).out) == [created]
    assert list(created) == ["CreatedAt", "Driver", "Labels", "Mountpoint", "Name", "Options", "Scope"]
    assert created["Driver"] == "local"
    assert created["Scope"] == "local"
    assert created["Labels"] == {"a": "1"}
    assert created["Mountpoint"].endswith(f"/volumes/{volume}/_data")
    assert created["Mountpoint"].startswith("/")


def test_a_volume_without_a_name_is_anonymous(cli: Client, target: str) -> None:
    name = cli("volume", "create").out.strip()
    try:
        assert len(name) == 64
        if target == "engine":
            labels = json.loads(cli("volume", "inspect", name).out)[0]["Labels"]
            assert labels == {"com.docker.volume.anonymous": ""}
    finally:
        cli("volume", "rm", name)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ("create", "a/b"),
            '"a/b" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]"',
        ),
        (("create", "x"), "volume name is too short, names should be at least two alphanumeric characters"),
        (("create", "-d", "nosuch", "vx"), "error looking up volume plugin nosuch"),
        (("create", "-o", "foo=bar", "vx"), 'invalid option: "foo"'),
        (("create", "-o", "type=tmpfs", "vx"), 'missing required option: "device"'),
        (("create", "-o", "o=size=1m", "vx"), 'missing required option: "device"'),
        (("inspect", "nosuch"), "nosuch"),
        (("rm", "nosuch"), "get nosuch: no such volume"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_in_dockers_words(cli: Client, args: tuple[str, ...], words: str) -> None:
    result = cli("volume", *args, check=False)

    assert result.code == 1, result
    assert words in result.err, result


def test_rm_force_of_a_missing_volume_succeeds(cli: Client) -> None:
    assert cli("volume", "rm", "-f", "nosuch-volume").code == 0


def test_a_volume_in_use_stays_and_says_who_uses_it(cli: Client, volume: str, name: str) -> None:
    container = cli("create", "--name", name, "-v", f"{volume}:/d", "bb").out.strip()

    for force in ((), ("-f",)):
        result = cli("volume", "rm", *force, volume, check=False)
        assert result.code == 1
        assert f"remove {volume}: volume is in use - [{container}]" in result.err
    cli("rm", name)
    assert cli("volume", "rm", volume).out == f"{volume}\n"
    assert volume not in cli("volume", "ls", "-q").out.split()


def test_ls_filters_by_use_driver_label_and_name(cli: Client, volume: str, name: str) -> None:
    def listed(*filters: str) -> list[str]:
        arguments = [part for each in filters for part in ("--filter", each)]
        return [each for each in cli("volume", "ls", "-q", *arguments).out.split() if each.startswith(volume)]

    cli("volume", "create", "--label", "kind=test", "--label", "lone", volume)
    assert listed(f"name={volume[2:]}") == [volume]
    assert listed(f"name=^{volume}$") in ([volume], [])  # a substring in old versions, a regular expression in ours
    assert listed("driver=local") == [volume]
    assert listed("driver=nosuch") == []
    assert listed("label=kind") == listed("label=kind=test") == listed("label=lone") == [volume]
    assert listed("label=kind=other") == []
    assert listed("dangling=true") == [volume]
    assert listed("dangling=false") == []
    cli("create", "--name", name, "-v", f"{volume}:/d", "bb")
    assert listed("dangling=true") == []
    assert listed("dangling=false") == [volume]
    header, row = cli("volume", "ls", "--filter", f"name={volume}").out.splitlines()
    assert (header.split(), row.split()) == (["DRIVER", "VOLUME", "NAME"], ["local", volume])
    wrong = cli("volume", "ls", "--filter", "nosuch=1", check=False)
    assert wrong.code == 1
    assert "invalid filter 'nosuch'" in wrong.err.lower()


def test_prune_takes_by_version_and_label_what_nobody_uses(daemon: Daemon, docker: Client, target: str) -> None:
    if target != "engine":
        pytest.skip(UNKNOWN_TO_20_10)
    docker("volume", "create", "--label", "p=1", "prune-named")
    docker("volume", "create", "--label", "p=2", "prune-other")
    unnamed = docker("volume", "create").out.strip()

    _, body = api(daemon, "POST", "/v1.45/volumes/prune")
    assert unnamed in body["VolumesDeleted"]
    assert "prune-named" in docker("volume", "ls", "-q").out.split()

    chosen = urllib.parse.quote(json.dumps({"label": ["p=1"]}))
    _, body = api(daemon, "POST", f"/v1.41/volumes/prune?filters={chosen}")
    assert body["VolumesDeleted"] == ["prune-named"]
    unwanted = urllib.parse.quote(json.dumps({"label!": ["p=2"], "all": ["true"], "label": ["p"]}))
    _, body = api(daemon, "POST", f"/v1.45/volumes/prune?filters={unwanted}")
    assert not body["VolumesDeleted"]
    every = urllib.parse.quote(json.dumps({"label": ["p"], "all": ["1"]}))
    _, body = api(daemon, "POST", f"/v1.45/volumes/prune?filters={every}")
    assert body["VolumesDeleted"] == ["prune-other"]


def test_prune_through_the_cli_counts_the_space(cli: Client, volume: str, name: str) -> None:
    cli("run", "--name", name, "-v", "/anonymous", "bb", "sh", "-c", "head -c 100000 /dev/zero >/anonymous/f")
    cli("rm", name)

    result = cli("volume", "prune", "-f")

    assert "Deleted Volumes:" in result.out
    assert "Total reclaimed space: 100kB" in result.out


def test_a_volume_belongs_to_the_cluster_before_it_can_be_updated(cli: Client, volume: str, target: str) -> None:
    cli("volume", "create", volume)
    status, body = api(cli.daemon, "PUT", f"/v1.45/volumes/{volume}?version=1", {"Spec": {}})
    if target == "engine":
        assert status == 503
        assert "This node is not a swarm manager" in body["message"]


def test_system_df_knows_sizes_and_users(cli: Client, volume: str, name: str) -> None:
    cli("run", "--name", name, "-v", f"{volume}:/d", "bb", "sh", "-c", "head -c 1000000 /dev/zero >/d/f")

    rows = cli("system", "df", "-v").out

    row = next(line for line in rows.splitlines() if line.startswith(volume))
    assert row.split()[1:] == ["1", "1MB"]


# -- content ---------------------------------------------------------------------------------------------------


def test_data_outlives_containers_and_is_shared_between_them(cli: Client, volume: str, name: str) -> None:
    cli("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", "echo one >/d/f")
    cli("run", "-d", "--name", name, "-v", f"{volume}:/e", "bb", "sleep", "300")
    cli("run", "--rm", "--mount", f"source={volume},target=/other", "bb", "sh", "-c", "echo two >>/other/f")

    assert cli("exec", name, "cat", "/e/f").out == "one\ntwo\n"
    packed = subprocess.run(
        cli.argv("run", "--rm", "--volumes-from", f"{name}:ro", "bb", "tar", "c", "-C", "/e", "."),
        env=cli.environment, capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert b"one\ntwo\n" in packed


def test_an_empty_volume_gets_what_the_image_has_there_with_owners_and_modes(
    cli: Client, volume: str, seeded: str
) -> None:
    look = ("sh", "-c", "cd /seed; stat -c '%n %u:%g %a %F' . file link sub sub/deep; cat file link")

    first = cli("run", "--rm", "-v", f"{volume}:/seed", seeded, *look).out

    assert first == cli("run", "--rm", seeded, *look).out
    assert ". 1000:2000 2750 directory" in first
    cli("run", "--rm", "-v", f"{volume}:/seed", seeded, "rm", "-r", "/seed/sub")
    assert "deep" not in cli("run", "--rm", "-v", f"{volume}:/seed", seeded, "ls", "/seed").out


def test_the_content_is_there_once_the_container_is_created(cli: Client, volume: str, seeded: str, name: str) -> None:
    cli("create", "--name", name, "-v", f"{volume}:/seed", seeded)

    assert cli("run", "--rm", "-v", f"{volume}:/look", "bb", "cat", "/look/file").out == "hello\n"


def test_nocopy_and_bind_mounts_and_filled_volumes_get_nothing(
    cli: Client, volume: str, seeded: str, tmp_path: Path
) -> None:
    list_it = ("ls", "-A", "/seed")
    assert cli("run", "--rm", "-v", f"{volume}:/seed:nocopy", seeded, *list_it).out == ""
    mount = f"type=volume,source={volume},target=/seed,volume-nocopy"
    assert cli("run", "--rm", "--mount", mount, seeded, *list_it).out == ""
    assert cli("run", "--rm", "-v", f"{tmp_path}:/seed", seeded, *list_it).out.strip() in ("", "home")
    cli("run", "--rm", "-v", f"{volume}:/d", "bb", "touch", "/d/mine")
    assert cli("run", "--rm", "-v", f"{volume}:/seed", seeded, *list_it).out == "mine\n"


def test_an_image_with_links_that_escape_copies_the_links_not_their_targets(
    cli: Client, volume: str, name: str
) -> None:
    cli("run", "--name", name, "bb", "sh", "-c", "mkdir /data; ln -s /etc/shadow /data/s; ln -s ../../../etc /data/e")
    cli("commit", name, "escaping")

    assert cli("run", "--rm", "-v", f"{volume}:/data", "escaping", "readlink", "/data/e").out == "../../../etc\n"
    mountpoint = Path(json.loads(cli("volume", "inspect", volume).out)[0]["Mountpoint"])
    assert sorted(path.name for path in mountpoint.iterdir()) == ["e", "s"]
    assert all(path.is_symlink() for path in mountpoint.iterdir())


# -- anonymous volumes -----------------------------------------------------------------------------------------


def test_anonymous_volumes_go_with_rm_v_and_with_run_rm_only(cli: Client, seeded: str, name: str) -> None:
    before = anonymous(cli)
    cli("run", "--rm", "-v", "/one", "seeded-volume", "true")
    assert anonymous(cli) == before

    cli("run", "--name", name, "-v", "/one", "seeded-volume", "true")
    mounts = mounts_of(cli, name)
    assert set(mounts) == {"/one", "/seed"}
    made = anonymous(cli) - before
    assert {mount["Name"] for mount in mounts.values()} == made
    cli("rm", name)
    assert anonymous(cli) - before == made
    cli("volume", "rm", *made)

    cli("run", "--name", name, "-v", "/one", "seeded-volume", "true")
    cli("rm", "-v", name)
    assert anonymous(cli) == before


def test_named_volumes_survive_rm_v(cli: Client, volume: str) -> None:
    cli("run", "--rm", "-v", f"{volume}:/d", "bb", "true")
    assert volume in cli("volume", "ls", "-q").out.split()


def test_an_anonymous_volume_another_container_borrows_stays(cli: Client, name: str) -> None:
    cli("create", "--name", name, "-v", "/shared", "bb")
    kept = mounts_of(cli, name)["/shared"]["Name"]
    cli("create", "--name", f"{name}-b", "--volumes-from", name, "bb")

    cli("rm", "-v", name)

    assert kept in cli("volume", "ls", "-q").out.split()
    cli("rm", "-v", f"{name}-b")
    cli("volume", "rm", "-f", kept)


# -- --volumes-from --------------------------------------------------------------------------------------------


def test_volumes_from_brings_all_mounts_and_may_make_them_read_only(
    cli: Client, volume: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("bound")
    cli("run", "--name", f"{name}-a", "-v", f"{volume}:/v", "-v", f"{tmp_path}:/b:ro", "bb", "touch", "/v/x")
    try:
        command = ("sh", "-c", "ls /v; cat /b/f; touch /v/y; touch /b/y")
        free = cli("run", "--rm", "--volumes-from", f"{name}-a", "bb", *command, check=False)
        bound = cli("run", "--rm", "--volumes-from", f"{name}-a:ro", "bb", *command, check=False)
        cli("create", "--name", name, "--volumes-from", f"{name}-a:ro", "bb")
        modes = {mount["Destination"]: (mount["Type"], mount["RW"]) for mount in cli.inspect(name)["Mounts"]}
        wrong = cli("run", "--rm", "--volumes-from", f"{name}-a:zz", "bb", check=False)
        missing = cli("run", "--rm", "--volumes-from", "nosuch-container", "bb", check=False)
    finally:
        cli("rm", "-f", f"{name}-a")
    assert free.out == "x\nbound"
    assert free.err.count("Read-only file system") == 1
    assert bound.out == "x\ny\nbound"
    assert bound.err.count("Read-only file system") == 2
    assert modes == {"/v": ("volume", False), "/b": ("bind", False)}
    assert (wrong.code, missing.code) == (125, 125)
    assert "invalid mode: zz" in wrong.err
    assert "No such container: nosuch-container" in missing.err


# -- binds -----------------------------------------------------------------------------------------------------


def test_v_makes_a_missing_directory_and_mount_wants_it_there(cli: Client, name: str, tmp_path: Path) -> None:
    cli("run", "--rm", "-v", f"{tmp_path}/made/here:/d", "bb", "touch", "/d/f")
    assert (tmp_path / "made/here/f").exists()

    result = cli("run", "--rm", "--mount", f"type=bind,source={tmp_path}/nosuch,target=/d", "bb", check=False)
    assert result.code == 125
    assert f"bind source path does not exist: {tmp_path}/nosuch" in result.err
    assert not (tmp_path / "nosuch").exists()


def test_a_source_that_vanished_before_the_start_is_named(cli: Client, name: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    cli("create", "--name", name, "--mount", f"type=bind,source={tmp_path}/src,target=/d", "bb", "true")
    (tmp_path / "src").rmdir()

    result = cli("start", name, check=False)

    assert result.code == 1
    assert f"{tmp_path}/src" in result.err
    (tmp_path / "src").mkdir()
    cli("start", "-a", name)


def test_single_files_can_be_bound(cli: Client, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("mine\n")
    assert cli("run", "--rm", "-v", f"{tmp_path}/hosts:/etc/hosts:ro", "bb", "cat", "/etc/hosts").out == "mine\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-v", "/a:/b:zz"), "invalid mode: zz"),
        (("-v", "/a:/b:ro,rw"), "invalid mode: ro,rw"),
        (("-v", "vx:/b:shared"), "invalid volume specification"),
        (("-v", "/a:b"), "mount path must be absolute"),
        (("-v", "/a:/"), "destination can't be '/'"),
        (("-v", "a/b:/c"), "includes invalid characters for a local volume name"),
        (("-v", "/t1:/c", "-v", "/t2:/c"), "Duplicate mount point: /c"),
        (("-v", "/t1:/c", "--mount", "type=tmpfs,target=/c"), "Duplicate mount point: /c"),
        (("--tmpfs", "/c", "-v", "/t1:/c"), "Duplicate mount point: /c"),
        (("--tmpfs", "/c:nosuch=1"), "invalid tmpfs option"),
        (("--mount", "type=bind,target=/c"), "field Source must not be empty"),
        (("--mount", "type=bind,source=rel,target=/c"), "mount path must be absolute"),
        (("--mount", "type=volume,source=vx"), "target is required"),
        (("--mount", "type=nosuch,target=/c"), "mount type unknown"),
        (("--mount", "nosuch=1,target=/c"), "unexpected key 'nosuch' in 'nosuch=1'"),
        (("--mount", "type=tmpfs,source=/x,target=/c"), "field Source must not be specified"),
        (("--mount", "type=bind,source=/tmp,target=/c,volume-nocopy"), "cannot mix 'volume-*' options with mount type"),
        (("--mount", "type=volume,target=/c,readonly"), "must not set ReadOnly mode when using anonymous volumes"),
        (("--mount", "type=bind,source=/tmp,target=/c,bind-propagation=zz"), "invalid propagation"),
        (("--mount", "type=bind,source=/tmp,target=/"), "destination can't be '/'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_mounted_is_refused_in_dockers_words(cli: Client, args: tuple[str, ...], words: str) -> None:
    before = set(cli("volume", "ls", "-q").out.split())
    result = cli("run", "--rm", *args, "bb", "true", check=False)

    assert result.code == 125, result
    assert words in result.err, result
    cli("volume", "rm", *(set(cli("volume", "ls", "-q").out.split()) - before), check=False)


@contextlib.contextmanager
def mounted(directory: Path, propagation: int) -> Iterator[Path]:
    """A tmpfs whose mounts propagate as wanted."""
    directory.mkdir()
    kernel.mount("tmpfs", directory, "tmpfs")
    kernel.mount("", directory, "", propagation)
    try:
        yield directory
    finally:
        kernel.umount(directory, kernel.MNT_DETACH)


def test_propagation_reaches_where_it_was_asked_for(cli: Client, name: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "shared", kernel.MS_SHARED) as source:
        for word, seen in (("rslave", "1\n"), ("rprivate", "0\n"), ("rshared", "1\n")):
            (source / word).mkdir()
            cli("run", "-d", "--name", name, "-v", f"{source}:/s:{word}", "bb", "sleep", "300")
            kernel.mount("inner", source / word, "tmpfs")
            try:
                got = cli("exec", name, "sh", "-c", f"grep -c ' /s/{word} ' /proc/self/mountinfo", check=False).out
                assert got == seen, word
                assert mounts_of(cli, name)["/s"]["Propagation"] == word
            finally:
                kernel.umount(source / word)
                cli("rm", "-f", name)


def test_what_cannot_propagate_is_refused(cli: Client, tmp_path: Path) -> None:
    with mounted(tmp_path / "private", kernel.MS_PRIVATE) as source:
        for word, kind in (("rshared", "not a shared mount"), ("rslave", "not a shared or slave mount")):
            result = cli("run", "--rm", "-v", f"{source}:/s:{word}", "bb", "true", check=False)
            assert result.code in (125, 126, 127)
            assert f"path {source} is mounted on {source} but it is {kind}" in result.err


def test_read_only_binds_are_read_only_all_the_way_down(cli: Client, tmp_path: Path, target: str) -> None:
    with mounted(tmp_path / "outer", kernel.MS_PRIVATE) as source:
        (source / "inner").mkdir()
        kernel.mount("inner", source / "inner", "tmpfs")
        write = ("sh", "-c", "touch /d/f; touch /d/inner/f && echo inner-written; ls /d | tr '\\n' ' '")
        base = f"type=bind,source={source},target=/d,readonly"
        try:
            everything = cli("run", "--rm", "--mount", base, "bb", *write)
            assert "Read-only file system" in everything.err
            if target == "engine":  # 20.10 leaves what is mounted below writable
                assert "inner-written" not in everything.out
                writable = cli("run", "--rm", "--mount", f"{base},bind-recursive=writable", "bb", *write)
                assert "inner-written" in writable.out
                forced = f"{base},bind-recursive=readonly,bind-propagation=rprivate"
                assert "inner-written" not in cli("run", "--rm", "--mount", forced, "bb", *write).out
            shallow = cli("run", "--rm", "--mount", f"type=bind,source={source},target=/d,bind-recursive=disabled",
                          "bb", "sh", "-c", "grep -c ' /d/inner ' /proc/self/mountinfo", check=False)  # fmt: skip
            assert shallow.out == "0\n"
        finally:
            kernel.umount(source / "inner", kernel.MNT_DETACH)


# -- tmpfs -----------------------------------------------------------------------------------------------------


def test_tmpfs_takes_size_mode_and_flags(cli: Client) -> None:
    look = ("sh", "-c", "stat -c %a /t; grep ' /t ' /proc/mounts")

    plain = cli("run", "--rm", "--tmpfs", "/t", "bb", *look).out
    sized = cli("run", "--rm", "--tmpfs", "/t:size=1m,mode=700,exec", "bb", *look).out
    mount = cli("run", "--rm", "--mount", "type=tmpfs,target=/t,tmpfs-size=2m,tmpfs-mode=0750", "bb", *look).out
    readonly = cli("run", "--rm", "--mount", "type=tmpfs,target=/t,readonly", "bb", "touch", "/t/x", check=False)

    assert "noexec" in plain
    assert "nosuid" in plain
    assert plain.startswith("1777\n")
    assert sized.startswith("700\n")
    assert "size=1024k" in sized
    assert "noexec" not in sized
    assert mount.startswith("750\n")
    assert "size=2048k" in mount
    assert readonly.code == 1


# -- inspect and events ----------------------------------------------------------------------------------------


def test_inspect_shows_mounts_as_docker_does(cli: Client, volume: str, name: str, tmp_path: Path) -> None:
    cli("create", "--name", name, "-v", f"{volume}:/v:ro", "-v", f"{tmp_path}:/b", "--mount", "type=tmpfs,target=/t",
        "--mount", f"source={volume},target=/w", "-v", "/anonymous", "bb")  # fmt: skip
    mounts = mounts_of(cli, name)
    mountpoint = json.loads(cli("volume", "inspect", volume).out)[0]["Mountpoint"]

    assert mounts["/v"] == {
        "Type": "volume", "Name": volume, "Source": mountpoint, "Destination": "/v", "Driver": "local", "Mode": "ro",
        "RW": False, "Propagation": "",
    }  # fmt: skip
    assert mounts["/b"] == {
        "Type": "bind", "Source": str(tmp_path), "Destination": "/b", "Mode": "", "RW": True, "Propagation": "rprivate",
    }  # fmt: skip
    assert mounts["/t"] == {
        "Type": "tmpfs", "Source": "", "Destination": "/t", "Mode": "", "RW": True, "Propagation": "",
    }  # fmt: skip
    assert mounts["/w"] == {
        "Type": "volume", "Name": volume, "Source": mountpoint, "Destination": "/w", "Driver": "local", "Mode": "z",
        "RW": True, "Propagation": "",
    }  # fmt: skip
    unnamed = mounts["/anonymous"]
    assert (len(unnamed["Name"]), unnamed["Mode"], unnamed["RW"]) == (64, "", True)


def events(daemon: Daemon, since: float) -> list[tuple[str, str, dict[str, str]]]:
    """Volume events until now: action, volume, attributes."""
    chosen = urllib.parse.quote(json.dumps({"type": ["volume"]}))
    connection = _Unix(daemon.socket)
    connection.request("GET", f"/events?since={since:.9f}&until={time.time():.9f}&filters={chosen}")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    found = [json.loads(line) for line in lines]
    return [(event["Action"], event["Actor"]["ID"], event["Actor"]["Attributes"]) for event in found]


def test_events_tell_the_life_of_a_volume(daemon: Daemon, docker: Client, volume: str, name: str) -> None:
    since = time.time()
    docker("run", "--name", name, "-v", f"{volume}:/d:ro", "bb", "true")
    container = docker.inspect(name)["Id"]
    docker("rm", name)
    docker("volume", "rm", volume)

    assert events(daemon, since) == [
        ("create", volume, {"driver": "local"}),
        ("mount", volume, {"container": container, "destination": "/d", "driver": "local", "propagation": "",
                           "read/write": "false"}),
        ("unmount", volume, {"container": container, "driver": "local"}),
        ("destroy", volume, {"driver": "local"}),
    ]  # fmt: skip


# -- places inside volumes, images as mounts, mapped owners: what only newer engines have ---------------------------


@pytest.fixture
def new(target: str) -> None:
    if target != "engine":
        pytest.skip(UNKNOWN_TO_20_10)


@pytest.mark.usefixtures("new")
def test_a_subpath_shows_a_part_of_a_volume_and_leads_nowhere_else(cli: Client, volume: str) -> None:
    cli("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", "mkdir -p /d/a/b; echo x >/d/a/b/f; ln -s /etc /d/out")
    base = f"source={volume},target=/m,volume-subpath="

    assert cli("run", "--rm", "--mount", base + "a/b", "bb", "cat", "/m/f").out == "x\n"
    assert cli("run", "--rm", "--mount", base + "a/b/f", "bb", "cat", "/m").out == "x\n"
    for path, words in (("nosuch", "no such file or directory"), ("out", "cannot access path")):
        result = cli("run", "--rm", "--mount", base + path, "bb", "ls", "/m", check=False)
        assert result.code in (125, 127), result
        assert words in result.err
    for path in ("../x", "/a"):
        result = cli("run", "--rm", "--mount", base + path, "bb", "true", check=False)
        assert result.code == 125
        assert "subpath must be a relative path within the volume" in result.err


@pytest.mark.usefixtures("new")
def test_an_image_is_mounted_read_only_and_cannot_go_while_it_is(cli: Client, seeded: str, name: str) -> None:
    mount = f"type=image,source={seeded},target=/img"
    script = ("sh", "-c", "cat /img/seed/file; touch /img/x")
    result = cli("run", "--name", name, "--mount", mount, "bb", *script, check=False)
    assert result.out == "hello\n"
    assert "Read-only file system" in result.err
    shown = mounts_of(cli, name)["/img"]
    assert (shown["Type"], shown["Name"], shown["RW"]) == ("image", seeded, False)
    kept = cli("rmi", shown["Source"], check=False)
    assert kept.code == 1, kept
    assert "image is being used by" in kept.err
    assert cli("start", "-a", name, check=False).out == "hello\n"
    cli("rm", name)

    deep = cli("run", "--rm", "--mount", f"{mount},image-subpath=seed/sub", "bb", "cat", "/img/deep")
    assert deep.out == "x\n"
    for bad, words in (
        ("type=image,target=/img", "field Source must not be empty"),
        ("type=image,source=nosuch:1,target=/img", "No such image: nosuch:1"),
        (f"{mount},image-subpath=../x", "subpath must be a relative path within the image"),
        (f"{mount},image-subpath=nosuch", "no such file or directory"),
    ):
        result = cli("run", "--rm", "--mount", bad, "bb", "true", check=False)
        assert result.code in (125, 127), result
        assert words in result.err, result
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if "-mount0" in line]


@pytest.mark.usefixtures("new")
def test_owners_are_mapped_for_binds_and_volumes(cli: Client, volume: str, tmp_path: Path) -> None:
    script = "stat -c %u:%g /d/file; touch /d/made; stat -c %u:%g /d/made"
    (tmp_path / "file").touch()
    os.chown(tmp_path, 1000, 1000)
    os.chown(tmp_path / "file", 1000, 1000)
    annotation = ("--annotation", "engine.idmap./d=uids=1000-0-1")

    seen = cli("run", "--rm", *annotation, "-v", f"{tmp_path}:/d", "bb", "sh", "-c", script).out

    assert seen == "0:0\n0:0\n"
    made = (tmp_path / "made").stat()
    assert (made.st_uid, made.st_gid) == (1000, 1000)
    cli("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", "touch /d/file; chown -R 1000:1000 /d")
    assert cli("run", "--rm", *annotation, "-v", f"{volume}:/d", "bb", "sh", "-c", script).out == "0:0\n0:0\n"
    bad = cli("run", "--rm", "--annotation", "engine.idmap./d=nonsense", "-v", f"{volume}:/d", "bb", check=False)
    assert "invalid idmap 'nonsense'" in bad.err


@pytest.mark.usefixtures("new")
def test_idmap_is_an_option_of_our_mounts(daemon: Daemon, home: Path, tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1235)
    engine = Client("engine", daemon, home)
    mount = f"type=bind,source={tmp_path},target=/d,idmap=uids=1234-7-1;gids=1235-8-1"

    assert engine("run", "--rm", "--mount", mount, "bb", "stat", "-c", "%u:%g", "/d").out == "7:8\n"


# -- options of the local driver --------------------------------------------------------------------------------


def test_local_volumes_mount_what_their_options_say(cli: Client, volume: str, name: str, tmp_path: Path) -> None:
    cli("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=3m,uid=1000", volume)
    got = cli("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", "stat -c %u /d; grep ' /d ' /proc/mounts").out
    assert got.startswith("1000\n")
    assert "size=3072k" in got
    cli("volume", "rm", volume)

    (tmp_path / "f").write_text("from the host")
    cli("volume", "create", "-o", "type=none", "-o", f"device={tmp_path}", "-o", "o=bind,ro", volume)
    got = cli("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", "cat /d/f; touch /d/g", check=False)
    assert got.out == "from the host"
    cli("volume", "rm", volume)
    assert (tmp_path / "f").exists()


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    image = tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
    made = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "-d", device], check=True)


def test_a_block_device_is_mounted_while_somebody_uses_it(cli: Client, volume: str, loop_device: str) -> None:
    cli("volume", "create", "-o", "type=ext4", "-o", f"device={loop_device}", volume)
    cli("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", "echo on-disk >/d/f")

    assert loop_device not in Path("/proc/mounts").read_text()
    assert cli("run", "--rm", "-v", f"{volume}:/d", "bb", "cat", "/d/f").out == "on-disk\n"
    assert loop_device not in Path("/proc/mounts").read_text()
    cli("volume", "rm", volume)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("type=nosuchfs", "device=/dev/null"), "no such device"),
        (("type=none", "device=/nosuch-dir", "o=bind"), "no such file or directory"),
        (("type=nfs", "device=:/export", "o=addr=127.0.0.1"), "no such device"),
    ],
    ids=("unknown file system", "missing directory", "no NFS client"),
)
def test_a_mount_that_fails_says_which_and_why(
    cli: Client, volume: str, name: str, options: tuple[str, ...], words: str
) -> None:
    cli("volume", "create", *(part for option in options for part in ("-o", option)), volume)

    result = cli("run", "--rm", "--name", name, "-v", f"{volume}:/d", "bb", "true", check=False)

    assert result.code in (125, 126, 127)
    assert "failed to mount local volume" in result.err
    assert words in result.err


@pytest.mark.usefixtures("new")
def test_nfs_volumes_need_a_client_in_the_kernel_and_a_share(cli: Client, volume: str) -> None:
    bad = cli("volume", "create", "-d", "nfs", volume, check=False)
    assert bad.code == 1
    assert 'missing required option: "share"' in bad.err
    if any(line.split()[-1].startswith("nfs") for line in Path("/proc/filesystems").read_text().splitlines()):
        pytest.skip("this kernel has an NFS client: integration/vm/nfs.sh uses it")
    without = cli("volume", "create", "-d", "nfs", "-o", "share=127.0.0.1:/export", volume, check=False)
    assert without.code == 1
    assert "this kernel has no NFS client" in without.err


def test_quotas_are_refused_where_the_file_system_has_none(cli: Client, volume: str) -> None:
    result = cli("volume", "create", "-o", "size=10m", volume, check=False)

    if result.code:
        assert "quota size requested but no quota support" in result.err


# -- Docker's legacy volume plugins ----------------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A plugin that runs where dockerd looks for plugins: its name and its directory."""
    name = f"engine-test-{os.getpid()}-{time.monotonic_ns()}"
    place = Path("/run/docker/plugins") / f"{name}.sock"
    place.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "engine.testing.legacy_plugin", str(place), str(tmp_path)])
    try:
        wait_for(place.is_socket, "the plugin to listen")
        yield name, tmp_path
    finally:
        process.terminate()
        process.wait(10)
        place.unlink(missing_ok=True)


def test_a_legacy_plugin_is_a_volume_driver(cli: Client, volume: str, name: str, plugin: tuple[str, Path]) -> None:
    driver, root = plugin
    failed = cli("volume", "create", "-d", driver, "-o", "fail=no room here", volume, check=False)
    assert failed.code == 1
    assert "no room here" in failed.err
    cli("volume", "create", "-d", driver, "-o", "share=x", "--label", "a=b", volume)
    shown = json.loads(cli("volume", "inspect", volume).out)[0]
    assert (shown["Driver"], shown["Scope"], shown["Labels"]) == (driver, "global", {"a": "b"})
    assert shown["Mountpoint"] == str(root / f"volume-{volume}")
    assert shown["Status"]["kind"] == "test"
    assert shown["Options"] == {"share": "x"}
    assert [driver, volume] in [line.split() for line in cli("volume", "ls").out.splitlines()]

    cli("run", "--name", name, "-v", f"{volume}:/d", "bb", "sh", "-c", "echo through >/d/f")

    assert (root / f"volume-{volume}" / "f").read_text() == "through\n"
    identifier = cli.inspect(name)["Id"]
    calls = [json.loads(line) for line in (root / "calls").read_text().splitlines()]
    used = [(method, question) for method, question in calls if question.get("Name") == volume and "ID" in question]
    assert [method for method, _ in used] == ["VolumeDriver.Mount", "VolumeDriver.Unmount"]
    assert used[0][1]["ID"] == used[1][1]["ID"]
    assert len(identifier) == len(used[0][1]["ID"])
    cli("rm", name)
    cli("volume", "rm", volume)
    assert not (root / f"volume-{volume}").exists()


def test_run_makes_volumes_of_the_driver_it_names(cli: Client, volume: str, plugin: tuple[str, Path]) -> None:
    driver, root = plugin
    mount = f"source={volume},target=/d,volume-driver={driver},volume-opt=share=y"
    cli("run", "--rm", "--mount", mount, "bb", "touch", "/d/f")
    assert (root / f"volume-{volume}" / "f").exists()
    assert json.loads((root / f"options-{volume}").read_text()) == {"share": "y"}
    cli("volume", "rm", volume)
    cli("run", "--rm", "--volume-driver", driver, "-v", f"{volume}:/d", "bb", "touch", "/d/g")
    assert (root / f"volume-{volume}" / "g").exists()
    cli("volume", "rm", volume)


@pytest.mark.usefixtures("new")
def test_a_plugin_that_hangs_or_is_gone_disturbs_nobody_else(
    daemon: Daemon, docker: Client, volume: str, name: str, plugin: tuple[str, Path]
) -> None:
    driver, _ = plugin
    docker("volume", "create", "-d", driver, "-o", "hang=5", volume)
    hanging = docker.popen("run", "--rm", "-v", f"{volume}:/d", "bb", "true")
    try:
        wait_for(lambda: "VolumeDriver.Mount" in (plugin[1] / "calls").read_text(), "the plugin to hang")
        begun = time.monotonic()
        docker("run", "--rm", "-v", "/other", "bb", "true")
        docker("volume", "ls")
        docker("volume", "inspect", volume)
        assert time.monotonic() - begun < 4.5
    finally:
        hanging.communicate(timeout=60)
    assert hanging.returncode == 0
    docker("volume", "rm", volume)
    missing = docker("run", "--rm", "--volume-driver", "engine-test-gone", "-v", f"{volume}:/d", "bb", check=False)
    assert missing.code == 125
    assert "error looking up volume plugin engine-test-gone" in missing.err


# -- ours: archives and copies ---------------------------------------------------------------------------------


@pytest.fixture
def engine(daemon: Daemon, home: Path, new: None) -> Client:
    return Client("engine", daemon, home)


_FILL = (
    "cd /d; mkdir -p a/b; echo one >a/b/f; ln -s ../x a/link; ln a/b/f a/hard; chown 1000:2000 a/b/f; chmod 4750 a/b; "
    "mkfifo pipe"
)
_LOOK = "cd /d; find . | sort | while read p; do stat -c '%n %u:%g %a %F %h' $p; done; cat a/hard; readlink a/link"


def look(client: Client, volume: str) -> str:
    return client("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", _LOOK).out


def test_an_exported_volume_is_the_same_when_imported_anywhere(engine: Client, volume: str, tmp_path: Path) -> None:
    engine("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", _FILL)
    archive = tmp_path / "v.tar"
    engine("volume", "export", "-o", str(archive), volume)
    wanted = look(engine, volume)
    assert "./a/b/f 1000:2000 644 regular file 2" in wanted
    subprocess.run(["gzip", "-k", str(archive)], check=True)

    for number, source in enumerate((archive, archive.with_suffix(".tar.gz"))):
        name = f"{volume}-{number}"
        assert engine("volume", "import", name, str(source)).out == f"{name}\n"
        assert look(engine, name) == wanted
        engine("volume", "rm", name)
    streamed = engine("volume", "export", volume).out
    engine("volume", "import", f"{volume}-s", input=streamed)
    assert look(engine, f"{volume}-s") == wanted
    engine("volume", "rm", f"{volume}-s")


def test_an_archive_that_is_none_or_climbs_out_is_refused(engine: Client, volume: str, tmp_path: Path) -> None:
    (tmp_path / "not.tar").write_bytes(b"no tar at all " * 100)
    result = engine("volume", "import", volume, str(tmp_path / "not.tar"), check=False)
    assert result.code == 1
    assert volume not in engine("volume", "ls", "-q").out.split()
    (tmp_path / "outside").mkdir()
    with tarfile.open(tmp_path / "evil.tar", "w") as evil:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
        evil.addfile(link)
        evil.addfile(tarfile.TarInfo("out/stolen"))
        evil.addfile(tarfile.TarInfo("../../climbed"))
    engine("volume", "import", volume, str(tmp_path / "evil.tar"), check=False)
    assert list((tmp_path / "outside").iterdir()) == []
    missing = engine("volume", "export", "nosuch-volume", check=False)
    assert (missing.code, "no such volume" in missing.err) == (1, True)


def test_clones_and_snapshots_are_copies_of_their_own(engine: Client, volume: str) -> None:
    engine("volume", "create", "--label", "team=db", volume)
    engine("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", _FILL)
    wanted = look(engine, volume)

    assert engine("volume", "clone", volume, f"{volume}-c").out == f"{volume}-c\n"
    taken = engine("volume", "snapshot", volume).out.strip()

    engine("run", "--rm", "-v", f"{volume}:/d", "bb", "sh", "-c", "echo changed >/d/a/b/f; rm /d/pipe")
    assert look(engine, f"{volume}-c") == look(engine, taken) == wanted
    labels = json.loads(engine("volume", "inspect", taken).out)[0]["Labels"]
    assert (labels["team"], labels["engine.snapshot.of"]) == ("db", volume)
    assert taken.startswith(f"{volume}-2")
    again = engine("volume", "clone", volume, f"{volume}-c", check=False)
    assert again.code == 1
    assert f"a volume named {volume}-c exists already" in again.err
    engine("volume", "rm", f"{volume}-c", taken)


def test_a_client_that_leaves_amid_an_export_leaves_nothing_mounted(engine: Client, volume: str) -> None:
    engine("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", volume)
    engine("run", "-d", "--name", f"{volume}-user", "-v", f"{volume}:/d", "bb", "sh", "-c",
           "head -c 50000000 /dev/zero >/d/f; exec sleep 300")  # fmt: skip
    try:
        for _ in range(3):
            export = engine.popen("volume", "export", volume)
            assert export.stdout is not None
            export.stdout.read(1000)
            export.kill()
            export.communicate()
    finally:
        engine("rm", "-f", f"{volume}-user")
    wait_for(lambda: engine("volume", "rm", volume, check=False).code == 0, "the volume to be free")
    assert volume not in Path("/proc/mounts").read_text()


# -- faults ----------------------------------------------------------------------------------------------------


def own_mounts(daemon: Daemon) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(daemon.directory) in line]


@pytest.mark.usefixtures("new")
def test_a_killed_daemon_forgets_no_mount_and_no_event(own_daemon: Callable[..., Daemon], home: Path) -> None:
    daemon = own_daemon()
    docker = Client("docker", daemon, home)
    before = own_mounts(daemon)
    docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "data")
    mount = "type=image,source=bb,target=/img"
    sub = "source=plain,target=/sub,volume-subpath=a"
    docker("run", "--rm", "-v", "plain:/p", "bb", "mkdir", "/p/a")
    docker("run", "-d", "--name", "keeper", "-v", "data:/d", "--mount", mount, "--mount", sub, "bb", "sleep", "300")
    docker("exec", "keeper", "sh", "-c", "echo kept >/d/f")

    daemon.stop(9)
    daemon.start()

    assert docker("exec", "keeper", "cat", "/d/f").out == "kept\n"
    since = time.time()
    docker("kill", "keeper")
    docker("wait", "keeper")
    wait_for(lambda: [each[0] for each in events(daemon, since)].count("unmount") == 2, "both unmount events")
    assert own_mounts(daemon) == before
    docker("rm", "-v", "keeper")
    docker("volume", "rm", "data", "plain")
    for name in ("data", "plain"):
        assert not (daemon.directory / "data/volumes" / name).exists()


@pytest.mark.usefixtures("new")
def test_kill_9_amid_creates_and_mounts_leaves_nothing(own_daemon: Callable[..., Daemon], home: Path) -> None:
    daemon = own_daemon()
    docker = Client("docker", daemon, home)
    before = own_mounts(daemon)
    for delay in (0.05, 0.15, 0.3):
        runs = [
            docker.popen("run", "--rm", "-v", "/anonymous", "-v", f"named{n}:/etc", "--mount",
                         "type=image,source=bb,target=/img", "bb", "true")
            for n in range(4)
        ]  # fmt: skip
        time.sleep(delay)  # anywhere amid them: what matters is that it is amid
        daemon.stop(9)
        for run in runs:
            run.communicate(timeout=60)
        daemon.start()
    everything = docker("ps", "-aq").out.split()
    if everything:
        docker("rm", "-f", "-v", *everything)
    wait_for(lambda: own_mounts(daemon) == before, "all mounts to go")
    docker("volume", "prune", "-f", "-a")
    assert docker("volume", "ls", "-q").out == ""
    wait_for(lambda: list((daemon.directory / "data/volumes").iterdir()) == [], "all data to be deleted")
    assert list((daemon.directory / "run/volumes").glob("*")) == []
