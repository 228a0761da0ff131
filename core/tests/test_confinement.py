"""The security report: facts of a process, read from /proc."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine import confinement
from engine.errors import Conflict


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with the engine and one container's process."""
    root = tmp_path / "proc"
    for name, pid_namespace in (("self", "pid:[1]"), ("42", "pid:[2]")):
        (root / name / "ns").mkdir(parents=True)
        os.symlink(pid_namespace, root / name / "ns/pid")
        os.symlink("net:[7]", root / name / "ns/net")
    (root / "42/status").write_text(
        "Name:\tsleep\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0 10\nNoNewPrivs:\t1\nSeccomp:\t2\n"
        "Seccomp_filters:\t1\nCapInh:\t0000000000000000\nCapEff:\t0000000000000401\n"
    )
    (root / "42/uid_map").write_text("         0     100000      65536\n")
    (root / "42/attr").mkdir()
    (root / "42/attr/current").write_text("engine-default (enforce)\n")
    return root


def test_it_says_what_the_kernel_says(proc: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "root": {"readonly": True},
                "linux": {
                    "maskedPaths": ["/proc/kcore"],
                    "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
                    "resources": {
                        "devices": [
                            {"allow": False, "access": "rwm"},
                            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                            {"allow": True, "type": "c", "major": 136, "access": "rw"},
                        ]
                    },
                },
            }
        )
    )
    found = confinement.report(42, tmp_path, proc=proc)
    assert found["Capabilities"] == {"Inheritable": [], "Effective": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]}
    assert found["Seccomp"] == {"Mode": "filter", "Filters": 1, "DefaultAction": "SCMP_ACT_ERRNO"}
    assert found["NoNewPrivileges"] is True
    assert found["MandatoryAccessControl"] == "engine-default (enforce)"
    assert (found["Namespaces"]["pid"], found["Namespaces"]["net"]) == ("private", "host")
    assert found["Namespaces"]["time"] == "none"
    assert found["UserMapping"] == [{"Inside": 0, "Outside": 100000, "Count": 65536}]
    assert found["Devices"] == ["c 1:3 rwm", "c 136:* rw"]
    assert found["MaskedPaths"] == ["/proc/kcore"]


def test_a_process_that_is_gone_is_a_conflict(proc: Path, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="not running"):
        confinement.report(43, tmp_path, proc=proc)
