"""CDI: specifications found, devices resolved, and what they do to an OCI spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError, InvalidParameter
from engine.model.container import DeviceRequest
from engine.oci import cdi

SPECIFICATION = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.com/gpu",
    "containerEdits": {"env": ["ALL=1"]},
    "devices": [
        {
            "name": "zero",
            "containerEdits": {
                "env": ["GPU=zero"],
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero", "permissions": "rw"}],
                "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/host-name", "options": ["ro", "bind"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true", "x"]}],
                "additionalGids": [44],
            },
        },
        {"name": "one", "containerEdits": {"env": ["GPU=one"]}},
    ],
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "vendor.json").write_text(json.dumps(SPECIFICATION))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "notes.txt").write_text("no specification")
    return tmp_path


def spec() -> dict[str, Any]:
    return {"process": {"env": ["PATH=/bin", "GPU=none"], "user": {"uid": 0}}, "linux": {}, "mounts": []}


def test_a_device_brings_nodes_rules_mounts_environment_hooks_and_groups(directory: Path) -> None:
    made = spec()
    cdi.inject(made, cdi.resolve(["vendor.com/gpu=zero"], [directory]))

    assert made["process"]["env"] == ["PATH=/bin", "ALL=1", "GPU=zero"]
    assert made["process"]["user"]["additionalGids"] == [44]
    node = made["linux"]["devices"][0]
    assert (node["path"], node["type"], node["major"], node["minor"]) == ("/dev/gpu0", "c", 1, 5)
    assert made["linux"]["resources"]["devices"] == [
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"}
    ]
    assert made["mounts"] == [
        {"destination": "/host-name", "source": "/etc/hostname", "type": "bind", "options": ["ro", "bind"]}
    ]
    assert made["hooks"] == {"createContainer": [{"path": "/bin/true", "args": ["true", "x"]}]}


def test_the_edits_of_a_specification_come_once_for_all_its_devices(directory: Path) -> None:
    edits = cdi.resolve(["vendor.com/gpu=zero", "vendor.com/gpu=one"], [directory])

    assert [edit.env for edit in edits] == [["ALL=1"], ["GPU=zero"], ["GPU=one"]]


def test_a_later_directory_wins(directory: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    later.mkdir()
    changed = {"kind": "vendor.com/gpu", "devices": [{"name": "one", "containerEdits": {"env": ["GPU=later"]}}]}
    (later / "x.json").write_text(json.dumps(changed))

    assert cdi.resolve(["vendor.com/gpu=one"], [directory, later])[-1].env == ["GPU=later"]


def test_unknown_devices_are_named(directory: Path) -> None:
    with pytest.raises(EngineError, match=r"unresolvable CDI devices vendor\.com/gpu=nine"):
        cdi.resolve(["vendor.com/gpu=nine"], [directory, directory / "missing"])


def test_only_requests_to_cdi_are_meant_and_names_are_checked() -> None:
    assert cdi.wanted([DeviceRequest(driver="cdi", device_ids=["a.b/c=d"]), DeviceRequest(driver="nvidia")]) == [
        "a.b/c=d"
    ]
    with pytest.raises(InvalidParameter, match="invalid CDI device name"):
        cdi.wanted([DeviceRequest(driver="cdi", device_ids=["nonsense"])])
