from __future__ import annotations

import pytest

from engine import mounts
from engine.errors import InvalidParameter
from engine.model.container import BindOptions, Mount, TmpfsOptions, VolumeOptions


@pytest.mark.parametrize(
    ("text", "kind", "name", "source", "destination", "mode", "writable", "propagation"),
    [
        ("/data", "volume", "", "", "/data", "", True, ""),
        ("v:/data", "volume", "v", "", "/data", "", True, ""),
        ("v:/data/:ro", "volume", "v", "", "/data", "ro", False, ""),
        ("/a/../b:/data", "bind", "", "/b", "/data", "", True, "rprivate"),
        ("/a:/data:rw,z,rslave", "bind", "", "/a", "/data", "rw,z,rslave", True, "rslave"),
        ("/a:/data:ro,Z", "bind", "", "/a", "/data", "ro,Z", False, "rprivate"),
        ("/a:/x/../data:cached", "bind", "", "/a", "/data", "cached", True, "rprivate"),
    ],
)
def test_a_bind_is_read_as_docker_reads_it(text, kind, name, source, destination, mode, writable, propagation):
    point = mounts.parse_bind(text)
    assert (point.type, point.name, point.source, point.destination) == (kind, name, source, destination)
    assert (point.mode, point.rw, point.propagation) == (mode, writable, propagation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid volume specification: ''"),
        (":/data", "invalid volume specification: ':/data'"),
        ("/data:ro", "invalid volume specification: '/data:ro'"),
        ("a:/b:ro:x", "invalid volume specification: 'a:/b:ro:x'"),
        ("v:/data:zz", "invalid mode: zz"),
        ("v:/data:ro,rw", "invalid mode: ro,rw"),
        ("v:/data:z,Z", "invalid mode: z,Z"),
        ("v:/data:copy,nocopy", "invalid mode: copy,nocopy"),
        (
            "v:data",
            "invalid volume specification: 'v:data': invalid mount config for type \"volume\": "
            "invalid mount path: 'data' mount path must be absolute",
        ),
        (
            "/a:/",
            "invalid volume specification: '/a:/': invalid mount config for type \"bind\": "
            "invalid specification: destination can't be '/'",
        ),
        (
            "v:/data:rslave",
            "invalid volume specification: 'v:/data:rslave': invalid mount config for type \"volume\": "
            "field BindOptions must not be specified",
        ),
    ],
)
def test_a_bad_bind_is_refused_in_dockers_words(text, message):
    with pytest.raises(InvalidParameter) as error:
        mounts.parse_bind(text)
    assert str(error.value) == message


def test_nocopy_and_the_volume_driver_are_remembered():
    options = mounts.parse_bind("v:/data:nocopy", "nfs").spec.volume_options
    assert options.no_copy
    assert options.driver_config.name == "nfs"
    assert mounts.parse_bind("/a:/data", "nfs").driver == ""


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        (Mount(type="volume"), "field Target must not be empty"),
        (Mount(type="bind", target="/x"), "field Source must not be empty"),
        (Mount(type="bind", source="/nowhere", target="/x"), "bind source path does not exist: /nowhere"),
        (Mount(type="bind", source="a", target="/x"), "invalid mount path: 'a' mount path must be absolute"),
        (Mount(type="bind", source="/", target="x"), "invalid mount path: 'x' mount path must be absolute"),
        (
            Mount(type="bind", source="/", target="/x", bind_options=BindOptions(propagation="odd")),
            "invalid propagation mode: odd",
        ),
        (
            Mount(type="bind", source="/", target="/x", volume_options=VolumeOptions()),
            "field VolumeOptions must not be specified",
        ),
        (
            Mount(type="volume", target="/x", read_only=True),
            "must not set ReadOnly mode when using anonymous volumes",
        ),
        (
            Mount(type="volume", target="/x", volume_options=VolumeOptions(subpath="a")),
            "must not set Subpath when using anonymous volumes",
        ),
        (
            Mount(type="volume", source="v", target="/x", volume_options=VolumeOptions(subpath="../a")),
            "subpath must be a relative path within the volume",
        ),
        (Mount(type="tmpfs", source="v", target="/x"), "field Source must not be specified"),
        (
            Mount(type="tmpfs", target="/x", tmpfs_options=TmpfsOptions(options=[["uid", "1"]])),
            "invalid option: uid",
        ),
        (Mount(type="odd", target="/x"), "mount type unknown"),
    ],
)
def test_a_bad_mount_is_refused_in_dockers_words(mount, reason):
    with pytest.raises(InvalidParameter) as error:
        mounts.parse_mount(mount)
    assert str(error.value) == f'invalid mount config for type "{mount.type}": {reason}'


def test_a_missing_source_is_fine_when_it_is_to_be_made():
    mount = Mount(type="bind", source="/nowhere", target="/x", bind_options=BindOptions(create_mountpoint=True))
    assert mounts.parse_mount(mount).source == "/nowhere"


@pytest.mark.parametrize(
    ("text", "expected"), [("a", ("a", "rw")), ("a:ro", ("a", "ro")), ("a:ro,z", ("a", "ro,z")), ("a:", ("a", "rw"))]
)
def test_volumes_from_names_a_container_and_a_mode(text, expected):
    assert mounts.parse_volumes_from(text) == expected


@pytest.mark.parametrize("text", ["a:zz", "a:rslave", "a:nocopy"])
def test_volumes_from_knows_fewer_modes(text):
    with pytest.raises(InvalidParameter, match="invalid mode: "):
        mounts.parse_volumes_from(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ("noexec", "nosuid", "nodev", "rprivate")),
        ("exec,size=1m", ("nosuid", "nodev", "rprivate", "exec", "size=1m")),
        ("size=1m,size=2m,defaults", ("noexec", "nosuid", "nodev", "rprivate", "size=2m")),
        ("rw,mode=1777,uid=5", ("noexec", "nosuid", "nodev", "rprivate", "rw", "mode=1777", "uid=5")),
    ],
)
def test_a_tmpfs_is_harmless_unless_asked_otherwise(options, expected):
    assert mounts.parse_tmpfs("/run/", options) == mounts.OciMount("/run", "tmpfs", "tmpfs", expected)


@pytest.mark.parametrize(("option", "shown"), [("odd", '["odd"]'), ("odd=1", '["odd" "1"]')])
def test_an_unknown_tmpfs_option_is_refused(option, shown):
    with pytest.raises(InvalidParameter) as error:
        mounts.parse_tmpfs("/run", option)
    assert str(error.value) == f"invalid tmpfs option {shown}"


def test_tmpfs_options_of_a_mount_become_those_of_the_flag():
    options = TmpfsOptions(size_bytes=64 << 20, mode=0o1770, options=[["exec"]])
    assert mounts.tmpfs_options(options, read_only=True) == "ro,mode=1770,size=64m,exec"
