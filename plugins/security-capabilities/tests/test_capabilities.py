from __future__ import annotations

import pytest

import engine_security_capabilities as capabilities
from engine.errors import InvalidParameter
from engine.model.admission import ContainerRequest
from engine.model.container import Config, Container, HostConfig
from engine_security_capabilities import DEFAULT, KNOWN

HELD = tuple(name for name in KNOWN if name != "CAP_SYS_RESOURCE")


def granted(**host_config):
    return capabilities.granted(HostConfig(**host_config), HELD)


def mask(names):
    return sum(1 << KNOWN.index(name) for name in names)


def test_the_default_set_is_dockers():
    assert f"{mask(granted()):016x}" == "00000000a80425fb"


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (["net_admin"], None, {*DEFAULT, "CAP_NET_ADMIN"}),
        (["CAP_NET_ADMIN", "Net_Admin"], ["mknod"], {*DEFAULT, "CAP_NET_ADMIN"} - {"CAP_MKNOD"}),
        (["ALL"], None, set(HELD)),
        (["all"], ["sys_admin"], set(HELD) - {"CAP_SYS_ADMIN"}),
        (["CHOWN"], ["ALL"], {"CAP_CHOWN"}),
        (None, ["ALL"], set()),
        (["CHOWN"], ["CHOWN"], set(DEFAULT)),
        (None, ["sys_resource"], set(DEFAULT)),
    ],
)
def test_adding_and_dropping(add, drop, expected):
    names = granted(cap_add=add, cap_drop=drop)
    assert set(names) == expected
    assert len(names) == len(expected)


def test_privileged_is_what_the_engine_itself_holds():
    assert granted(privileged=True, cap_drop=["ALL"]) == list(HELD)


def test_a_default_the_engine_does_not_hold_is_left_out():
    assert "CAP_MKNOD" not in capabilities.granted(HostConfig(), [name for name in HELD if name != "CAP_MKNOD"])


def request(**host_config):
    return ContainerRequest(
        name="", image="", image_id="", platform="", runtime="", config=Config(), networks={},
        host_config=HostConfig(**host_config),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("host_config", "message"),
    [
        ({"cap_add": ["nope"]}, 'invalid CapAdd: unknown capability: "CAP_NOPE"'),
        ({"cap_drop": ["CAP_NOPE"]}, 'invalid CapDrop: unknown capability: "CAP_NOPE"'),
        (
            {"cap_add": ["SYS_RESOURCE"]},
            "invalid CapAdd: capability not supported by your kernel or not available in the current environment: "
            '"CAP_SYS_RESOURCE"',
        ),
    ],
)
def test_what_cannot_be_granted_is_refused_at_create(monkeypatch, host_config, message):
    monkeypatch.setattr(capabilities, "held", lambda: HELD)
    with pytest.raises(InvalidParameter) as error:
        capabilities.engine_container_admit(request(**host_config))
    assert str(error.value) == message


def container(**host_config):
    return Container(
        id="a", name="/a", created="", image_id="", chain_id=None, platform="", runtime="", store="", log_driver="",
        path="", args=[], config=Config(), host_config=HostConfig(**host_config),
    )  # fmt: skip


def test_nothing_is_inherited_and_only_root_holds_anything(monkeypatch):
    monkeypatch.setattr(capabilities, "held", lambda: HELD)
    spec = {"process": {"user": {"uid": 0}}}
    capabilities.engine_oci_spec(container(cap_drop=["ALL"], cap_add=["chown"]), spec)
    only = ["CAP_CHOWN"]
    assert spec["process"]["capabilities"] == {"bounding": only, "effective": only, "permitted": only}
    process = {"user": {"uid": 1000}}
    capabilities.engine_exec_process(container(), process, privileged=False)
    assert process["capabilities"] == {"bounding": list(DEFAULT), "effective": [], "permitted": []}


def test_a_privileged_exec_gets_all(monkeypatch):
    monkeypatch.setattr(capabilities, "held", lambda: HELD)
    process = {"user": {"uid": 0}}
    capabilities.engine_exec_process(container(), process, privileged=True)
    assert process["capabilities"]["effective"] == list(HELD)


def test_held_reads_the_kernels_mask(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000000021\n")
    assert capabilities.held(status) == ("CAP_CHOWN", "CAP_KILL")
