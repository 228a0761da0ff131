from __future__ import annotations

import json

import pytest

import engine_security_seccomp as seccomp
from engine.errors import InvalidParameter
from engine.model.admission import ContainerRequest
from engine.model.container import Config, Container, HostConfig
from engine_security_seccomp.profile import builtin, parse, resolve

DEFAULT_CAPS = frozenset(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
        "AUDIT_WRITE"
    ).split()
)
KERNEL = (6, 1)


def resolved(caps=DEFAULT_CAPS, architecture="amd64", kernel=KERNEL):
    return resolve(builtin(), frozenset(caps), architecture, kernel)


def allowed(filter_, name):
    """The conditions under which a call is allowed: [] never, [None] always."""
    return [
        rule.get("args") for rule in filter_["syscalls"] if name in rule["names"] and rule["action"] == "SCMP_ACT_ALLOW"
    ]


def test_the_default_profile_has_the_size_of_dockers():
    assert len(builtin().syscalls[0].names) == 361
    assert len(builtin().syscalls) == 33
    assert len(resolved()["syscalls"]) == 15


def test_what_is_not_named_fails_with_eperm():
    filter_ = resolved()
    assert (filter_["defaultAction"], filter_["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    assert filter_["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]


@pytest.mark.parametrize(
    "name", ["mount", "unshare", "setns", "bpf", "keyctl", "add_key", "io_uring_setup", "init_module", "reboot"]
)
def test_dangerous_calls_are_not_allowed(name):
    assert allowed(resolved(), name) == []


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("CAP_SYS_ADMIN", "mount"),
        ("CAP_SYS_ADMIN", "clone3"),
        ("CAP_SYS_BOOT", "reboot"),
        ("CAP_BPF", "bpf"),
        ("CAP_SYS_TIME", "settimeofday"),
        ("CAP_SYS_NICE", "mbind"),
    ],
)
def test_a_capability_brings_its_calls(capability, name):
    assert allowed(resolved(), name) == []
    assert allowed(resolved({*DEFAULT_CAPS, capability}), name) == [None]


def test_losing_a_default_capability_loses_its_call():
    assert allowed(resolved(), "chroot") == [None]
    assert allowed(resolved(()), "chroot") == []


def test_clone_makes_no_namespaces_and_clone3_is_unknown():
    (condition,) = allowed(resolved(), "clone")
    assert condition == [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    (clone3,) = [rule for rule in resolved()["syscalls"] if "clone3" in rule["names"]]
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert allowed(resolved(architecture="s390x"), "clone")[0][0]["index"] == 1


def test_crypto_and_vm_sockets_are_refused():
    conditions = [(args[0]["op"], args[0]["value"]) for args in allowed(resolved(), "socket")]
    assert conditions == [("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40)]


def test_ptrace_needs_a_kernel_that_keeps_it_in_the_filter():
    assert allowed(resolved(kernel=(4, 7)), "ptrace") == []
    assert allowed(resolved(kernel=(4, 8)), "ptrace") == [None]


def test_architectures_have_their_own_calls():
    assert allowed(resolved(), "arch_prctl") == [None]
    arm = resolved(architecture="arm64")
    assert allowed(arm, "arch_prctl") == []
    assert allowed(arm, "set_tls") == [None]
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]


def custom(profile, caps=(), architecture="amd64", kernel=KERNEL):
    return resolve(parse(json.dumps(profile)), frozenset(caps), architecture, kernel)


def test_a_profile_in_dockers_form_is_resolved():
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"name": "chmod", "action": "SCMP_ACT_ERRNO", "comment": "old form"},
            {"names": ["chown"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "excludes": {"caps": ["CAP_CHOWN"]}},
            {"names": ["sync"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "7.0"}},
            {"names": ["pause"], "action": "SCMP_ACT_ERRNO", "includes": {"arches": ["arm64"]}},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 4294967295, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    assert custom(profile, caps=["CAP_CHOWN"]) == {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO"},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 4294967295, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    assert [rule["names"] for rule in custom(profile, kernel=(7, 1), architecture="arm64")["syscalls"]] == [
        ["chmod"], ["chown"], ["sync"], ["pause"], ["personality"],
    ]  # fmt: skip


def test_an_empty_profile_filters_nothing():
    assert custom({}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Decoding seccomp profile failed: "),
        ('{"syscalls": 5}', "Decoding seccomp profile failed: "),
        ('{"architectures": ["a"], "archMap": [{"architecture": "a"}]}', "'architectures' and 'archMap' were"),
        ('{"syscalls": [{"name": "a", "names": ["b"]}]}', "'name' and 'names' were specified"),
        ('{"syscalls": [{"names": ["b"], "includes": {"minKernel": "x"}}]}', "invalid kernel version: x"),
    ],
)
def test_a_bad_profile_is_refused_at_create(text, message):
    request = ContainerRequest(
        name="", image="", image_id="", platform="", runtime="", config=Config(), networks={},
        host_config=HostConfig(security_opt=[f"seccomp={text}"]),
    )  # fmt: skip
    with pytest.raises(InvalidParameter) as error:
        seccomp.engine_container_admit(request)
    assert str(error.value).startswith(message)


def spec_for(caps=DEFAULT_CAPS, **host_config):
    container = Container(
        id="a", name="/a", created="", image_id="", chain_id=None, platform="", runtime="", store="", log_driver="",
        path="", args=[], config=Config(), host_config=HostConfig(**host_config),
    )  # fmt: skip
    spec = {"process": {"capabilities": {"bounding": sorted(caps)}}, "linux": {}}
    seccomp.engine_oci_spec(container, spec)
    return spec["linux"].get("seccomp")


ALLOW_ALL = '{"defaultAction": "SCMP_ACT_ALLOW"}'


@pytest.mark.parametrize(
    ("host_config", "action"),
    [
        ({}, "SCMP_ACT_ERRNO"),
        ({"security_opt": ["seccomp=builtin"]}, "SCMP_ACT_ERRNO"),
        ({"security_opt": ["seccomp=unconfined"]}, None),
        ({"security_opt": ["seccomp:unconfined"]}, None),
        ({"security_opt": [f"seccomp={ALLOW_ALL}"]}, "SCMP_ACT_ALLOW"),
        ({"privileged": True}, None),
        ({"privileged": True, "security_opt": [f"seccomp={ALLOW_ALL}"]}, "SCMP_ACT_ALLOW"),
    ],
)
def test_the_option_decides_and_privileged_is_unfiltered_unless_asked(host_config, action):
    filter_ = spec_for(**host_config)
    assert (filter_ and filter_["defaultAction"]) == action


def test_the_filter_follows_the_capabilities_granted_before():
    assert allowed(spec_for(), "mount") == []
    assert allowed(spec_for(caps={"CAP_SYS_ADMIN"}), "mount") == [None]


def test_it_runs_after_the_other_plugins():
    assert seccomp.engine_oci_spec.engine_impl["trylast"] is True


def test_the_filter_is_compiled_once_and_the_users_own_program_is_dropped():
    pytest.importorskip("ctypes")
    from types import SimpleNamespace

    from engine_security_seccomp import compiled

    def spec_of(**options):
        spec = {
            "process": {"capabilities": {"bounding": sorted(DEFAULT_CAPS)}},
            "linux": {},
            "annotations": {"run.oci.seccomp_bpf_data": "AAAA", "mine": "x"},
        }
        seccomp.engine_oci_spec(SimpleNamespace(host_config=HostConfig(**options)), spec)
        return spec

    unconfined = spec_of(security_opt=["seccomp=unconfined"])
    assert unconfined["annotations"] == {"mine": "x"}
    found = spec_of()
    assert found["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    if compiled._library() is not None:
        assert len(found["annotations"]["run.oci.seccomp_bpf_data"]) > 1000
        before = compiled._program.cache_info().misses
        assert spec_of()["annotations"] == found["annotations"]
        assert compiled._program.cache_info().misses == before


@pytest.mark.parametrize("extra", [{"flags": ["SECCOMP_FILTER_FLAG_LOG"]}, {"listenerPath": "/x"}])
def test_what_only_the_runtime_can_do_is_left_to_it(extra):
    from engine_security_seccomp.compiled import program

    assert program({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []} | extra) is None


def test_a_profile_for_the_whole_daemon_replaces_the_builtin_one(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}')
    try:
        seccomp.engine_configure({"profile": str(path)})
        assert seccomp._wanted(HostConfig()) == path.read_text()
        assert seccomp._wanted(HostConfig(privileged=True)) == "unconfined"
        path.write_text("not json")
        with pytest.raises(InvalidParameter, match="Decoding seccomp profile failed"):
            seccomp.engine_configure({"profile": str(path)})
        with pytest.raises(InvalidParameter, match="opening seccomp profile"):
            seccomp.engine_configure({"profile": "/nosuch"})
    finally:
        seccomp.engine_configure({})
