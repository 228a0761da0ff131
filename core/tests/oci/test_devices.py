from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.model.container import DeviceMapping, DeviceRequest, HostConfig, ThrottleDevice
from engine.oci import devices
from engine.oci.devices import Device, DeviceRule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("c 13:* rwm", DeviceRule(True, "c", 13, None, "rwm")),
        ("b *:5 r", DeviceRule(True, "b", None, 5, "r")),
        ("a *:* rwm", DeviceRule(True, "a")),
        ("a", DeviceRule(True, "a")),
    ],
)
def test_a_device_rule_is_read(text, rule):
    assert devices.parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x 1:1 r", "invalid device cgroup rule format: 'x 1:1 r'"),
        ("c 1 r", "invalid device cgroup rule format: 'c 1 r'"),
        ("c 99999:1 r", "invalid major value in device cgroup rule format: 'c 99999:1 r'"),
        ("a 1:3 m", "although this cgroup rule is technically correct"),
    ],
)
def test_a_bad_device_rule_is_refused(text, message):
    with pytest.raises(InvalidParameter) as error:
        devices.parse_rule(text)
    assert str(error.value).startswith(message)


def test_a_device_gets_a_node_and_a_rule():
    mapping = DeviceMapping(path_on_host="/dev/null", path_in_container="/dev/nothing", cgroup_permissions="r")
    plan = devices.plan(HostConfig(devices=[mapping], device_cgroup_rules=["c 13:* rwm"]))
    (node,) = plan.nodes
    assert (node.path, node.kind, node.major, node.minor, node.mode) == ("/dev/nothing", "c", 1, 3, 0o666)
    assert plan.rules[-2:] == (DeviceRule(True, "c", 1, 3, "r"), DeviceRule(True, "c", 13, None, "rwm"))
    assert plan.rules[: len(devices.DEFAULT_RULES)] == devices.DEFAULT_RULES


@pytest.mark.parametrize(
    ("path", "reason"), [("/dev/nosuch", "no such file or directory"), ("/etc/passwd", "not a device node")]
)
def test_what_is_no_device_is_refused(path, reason):
    with pytest.raises(InvalidParameter) as error:
        devices.plan(HostConfig(devices=[DeviceMapping(path_on_host=path)]))
    assert str(error.value) == f'error gathering device information while adding custom device "{path}": {reason}'


def test_a_privileged_container_may_use_every_device():
    plan = devices.plan(HostConfig(privileged=True))
    assert plan.rules == (DeviceRule(True),)
    paths = {node.path for node in plan.nodes}
    assert "/dev/null" in paths
    assert not {path for path in paths if path.startswith(("/dev/pts/", "/dev/shm/"))}
    assert all(isinstance(node, Device) for node in plan.nodes)


def test_there_are_no_gpus_without_a_driver():
    request = DeviceRequest(capabilities=[["gpu"]], count=-1)
    with pytest.raises(InvalidParameter, match=r'could not select device driver "" with capabilities: \[\[gpu\]\]'):
        devices.plan(HostConfig(device_requests=[request]))


def test_a_limit_on_a_missing_device_is_refused():
    with pytest.raises(InvalidParameter, match="/dev/nosuch: no such file or directory"):
        devices.plan(HostConfig(blkio_device_read_bps=[ThrottleDevice(path="/dev/nosuch", rate=1)]))


@pytest.mark.parametrize("mode", ["x", "rr", "rwmx"])
def test_a_bad_device_mode_is_refused_at_create(mode):
    with pytest.raises(InvalidParameter, match=f"invalid device mode: {mode}"):
        devices.validate(HostConfig(devices=[DeviceMapping(path_on_host="/dev/null", cgroup_permissions=mode)]))
