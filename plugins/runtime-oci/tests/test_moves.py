"""Which cgroup a process is in, as the tables in /proc tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_runtime_oci.moves import own_cgroup

V1 = "34 31 0:31 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


def tables(directory: Path, cgroup: str, mountinfo: str) -> Path:
    (directory / "cgroup").write_text(cgroup)
    (directory / "mountinfo").write_text(mountinfo)
    return directory


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "directory"),
    [
        ("4:memory:/a/b\n0::/\n", V1.format(root="/"), "/sys/fs/cgroup/memory/a/b"),
        ("4:memory:/\n", V1.format(root="/"), "/sys/fs/cgroup/memory"),
        ("4:memory:/docker/x/sub\n", V1.format(root="/docker/x"), "/sys/fs/cgroup/memory/sub"),
        ("0::/system.slice/engine.service\n", V2, "/sys/fs/cgroup/system.slice/engine.service"),
    ],
)
def test_the_own_cgroup_is_found_where_it_is_mounted(
    tmp_path: Path, cgroup: str, mountinfo: str, directory: str
) -> None:
    assert own_cgroup(tables(tmp_path, cgroup, mountinfo)) == Path(directory)


@pytest.mark.parametrize("root", ["/docker/x", "/docker/xy"])
def test_a_cgroup_outside_of_what_is_mounted_cannot_be_found(tmp_path: Path, root: str) -> None:
    with pytest.raises(LookupError):
        own_cgroup(tables(tmp_path, "4:memory:/docker\n", V1.format(root=root)))
