"""The plan, compared: what a change of the request changes in the spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InvalidParameter
from engine.model.container import (
    Config,
    Container,
    HostConfig,
    ThrottleDevice,
    Ulimit,
)
from engine.mounts import OciMount
from engine.oci import spec as ocispec
from engine.oci.devices import DevicePlan
from engine.oci.host import Host
from engine.oci.spec import Defaults, Namespaces
from engine.oci.users import User

ID = "ab" * 32
HOST = Host(
    cgroup_version=1,
    cpus=2,
    kernel=(6, 1),
    init="/usr/bin/tini",
    sysctls=frozenset(("net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start")),
    masked_paths=("/sys/devices/system/cpu/cpu0/thermal_throttle",),
)
FILES = {name: Path("/c") / name for name in ("hosts", "hostname", "resolv.conf")}


def container(config=None, host_config=None):
    return Container(
        id=ID, name="/t", created="", image_id="", chain_id=None, platform="linux/amd64", runtime="runc", store="",
        log_driver="none", path="/bin/sh", args=["-c", "true"], config=config or Config(hostname="box"),
        host_config=host_config or HostConfig(),
    )  # fmt: skip


def build(config=None, *, host=HOST, mounts=(), user=None, devices=None, defaults=None, shared=None, **host_config):
    return ocispec.build(
        container(config, HostConfig(**host_config)),
        rootfs=Path("/r"),
        mounts=mounts,
        namespaces=shared or Namespaces(network=Path("/run/netns/x")),
        files=FILES,
        user=user or User(),
        devices=devices or DevicePlan(),
        host=host,
        defaults=defaults or Defaults(cgroup_parent="/engine-0123abcd"),
    )


def mount_at(spec, destination):
    return next(mount for mount in spec["mounts"] if mount["destination"] == destination)


def destinations(spec):
    return [mount["destination"] for mount in spec["mounts"]]


def namespaces(spec):
    return {entry["type"]: entry.get("path", "") for entry in spec["linux"]["namespaces"]}


def test_the_default_is_dockers():
    spec = build()
    assert namespaces(spec) == {"mount": "", "network": "/run/netns/x", "uts": "", "pid": "", "ipc": ""}
    assert destinations(spec) == [
        "/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm",
        "/etc/resolv.conf", "/etc/hostname", "/etc/hosts",
    ]  # fmt: skip
    assert spec["process"] == {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
        "args": ["/bin/sh", "-c", "true"],
        "env": [f"PATH={ocispec.DEFAULT_PATH}", "HOSTNAME=box", "HOME=/"],
        "cwd": "/",
        "noNewPrivileges": False,
        "capabilities": {},
    }
    assert spec["hostname"] == "box"
    assert spec["root"] == {"path": "/r", "readonly": False}
    linux = spec["linux"]
    assert linux["cgroupsPath"] == f"/engine-0123abcd/{ID}"
    assert linux["sysctl"] == {
        "net.ipv4.ping_group_range": "0 2147483647",
        "net.ipv4.ip_unprivileged_port_start": "0",
    }
    assert linux["readonlyPaths"] == ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
    assert {"/proc/kcore", "/proc/interrupts", "/sys/firmware", HOST.masked_paths[0]} <= set(linux["maskedPaths"])
    assert set(linux["resources"]) == {"devices"}
    assert linux["resources"]["devices"][:2] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
    ]
    assert "size=67108864" in mount_at(spec, "/dev/shm")["options"]
    assert mount_at(spec, "/etc/hosts") == {
        "destination": "/etc/hosts", "type": "bind", "source": "/c/hosts", "options": ["rbind", "rprivate"],
    }  # fmt: skip


def test_building_twice_gives_equal_but_separate_plans():
    first, second = build(), build()
    assert first == second
    first["mounts"][0]["options"].append("x")
    first["linux"]["maskedPaths"].clear()
    assert build() == second


@pytest.mark.parametrize(
    ("host_config", "kind"),
    [({"uts_mode": "host"}, "uts"), ({"pid_mode": "host"}, "pid"), ({"ipc_mode": "host"}, "ipc")],
)
def test_a_namespace_shared_with_the_host_is_left_out(host_config, kind):
    assert kind not in namespaces(build(**host_config))


def test_the_hosts_network_brings_no_network_sysctls():
    spec = build(network_mode="host", shared=Namespaces())
    assert "network" not in namespaces(spec)
    assert spec["linux"]["sysctl"] == {}


def test_namespaces_of_another_container_are_entered():
    shared = Namespaces(network=Path("/n"), pid="/proc/9/ns/pid", ipc="/proc/9/ns/ipc", shm="/other/shm")
    spec = build(pid_mode="container:x", ipc_mode="container:x", network_mode="container:x", shared=shared)
    assert namespaces(spec) == {
        "mount": "", "network": "/n", "uts": "", "pid": "/proc/9/ns/pid", "ipc": "/proc/9/ns/ipc",
    }  # fmt: skip
    assert mount_at(spec, "/dev/shm") == {
        "destination": "/dev/shm", "type": "bind", "source": "/other/shm",
        "options": ["rbind", "rprivate", "nosuid", "nodev", "noexec"],
    }  # fmt: skip
    assert spec["linux"]["sysctl"] == {}


@pytest.mark.parametrize(
    ("version", "mode", "private"), [(1, "", False), (2, "", True), (1, "private", True), (2, "host", False)]
)
def test_the_cgroup_namespace_is_private_on_v2(version, mode, private):
    host = Host(cgroup_version=version, cpus=1, kernel=(6, 1))
    assert ("cgroup" in namespaces(build(host=host, cgroupns_mode=mode))) is private


def test_privileged_hides_and_protects_nothing():
    spec = build(privileged=True)
    assert "maskedPaths" not in spec["linux"]
    assert "readonlyPaths" not in spec["linux"]
    assert "ro" not in mount_at(spec, "/sys")["options"]
    assert "ro" not in mount_at(spec, "/sys/fs/cgroup")["options"]


@pytest.mark.parametrize("privileged", [False, True])
def test_the_users_paths_replace_the_defaults(privileged):
    spec = build(privileged=privileged, masked_paths=["/secret"], readonly_paths=[])
    assert spec["linux"]["maskedPaths"] == ["/secret"]
    assert "readonlyPaths" not in spec["linux"]


def test_a_read_only_root_makes_all_but_the_scratch_places_read_only():
    spec = build(readonly_rootfs=True, tmpfs={"/tmp": ""}, mounts=[OciMount("/data", "bind", "/d", ("rbind",))])
    read_only = {mount["destination"] for mount in spec["mounts"] if "ro" in mount["options"]}
    assert read_only == {"/sys", "/sys/fs/cgroup", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
    assert spec["root"]["readonly"] is True


def test_the_users_mounts_replace_ours_and_come_shallow_first():
    mounts = [
        OciMount("/a/b/c", "bind", "/1", ("rbind",)),
        OciMount("/etc/hosts", "bind", "/2", ("rbind",)),
        OciMount("/a", "bind", "/3", ("rbind",)),
        OciMount("/dev", "bind", "/dev", ("rbind",)),
    ]
    spec = build(mounts=mounts)
    assert destinations(spec) == [
        "/proc", "/sys", "/sys/fs/cgroup", "/a", "/dev", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/a/b/c",
    ]  # fmt: skip
    assert mount_at(spec, "/etc/hosts")["source"] == "/2"


@pytest.mark.parametrize(
    ("options", "root"), [(("rbind", "rshared"), "shared"), (("rbind", "rslave"), "rslave"), (("rbind",), None)]
)
def test_the_root_propagates_as_its_mounts_need(options, root):
    spec = build(mounts=[OciMount("/a", "bind", "/a", options)])
    assert spec["linux"].get("rootfsPropagation") == root


def test_the_hosts_shared_memory_comes_with_its_ipc():
    mount = mount_at(build(ipc_mode="host"), "/dev/shm")
    assert (mount["source"], mount["options"]) == ("/dev/shm", ["rbind", "rprivate", "nosuid", "nodev"])


def test_ipc_none_has_no_shared_memory():
    assert "/dev/shm" not in destinations(build(ipc_mode="none"))


def test_the_environment_keeps_dockers_order():
    config = Config(hostname="box", tty=True, env=["A=1", "PATH=/bin", "B=2", "A=3", "TERM"])
    spec = build(config, user=User(uid=5, gid=6, gids=(6, 7), home="/h"))
    assert spec["process"]["env"] == ["PATH=/bin", "HOSTNAME=box", "A=3", "B=2", "HOME=/h"]
    assert spec["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [6, 7]}


@pytest.mark.parametrize(
    ("host_config", "key", "expected"),
    [
        ({"memory": 64 << 20}, "memory", {"limit": 64 << 20, "swap": 128 << 20}),
        ({"memory": 64 << 20, "memory_swap": -1}, "memory", {"limit": 64 << 20, "swap": -1}),
        ({"memory_reservation": 1 << 20}, "memory", {"reservation": 1 << 20}),
        ({"memory_swappiness": 5, "oom_kill_disable": True}, "memory", {"swappiness": 5, "disableOOMKiller": True}),
        ({"memory_swappiness": -1}, "memory", None),
        ({"nano_cpus": 1_500_000_000}, "cpu", {"period": 100_000, "quota": 150_000}),
        (
            {"cpu_shares": 5, "cpuset_cpus": "0-1", "cpu_quota": -1},
            "cpu",
            {"shares": 5, "quota": -1, "cpus": "0-1"},
        ),
        ({"pids_limit": 50}, "pids", {"limit": 50}),
        ({"pids_limit": 0}, "pids", {"limit": -1}),
        ({"blkio_weight": 300}, "blockIO", {"weight": 300}),
    ],
)
def test_limits_are_only_what_was_asked_for(host_config, key, expected):
    assert build(**host_config)["linux"]["resources"].get(key) == expected


def test_a_throttled_device_is_known_by_its_numbers():
    plan = DevicePlan(block={"/dev/sda": (8, 0)})
    spec = build(devices=plan, blkio_device_write_bps=[ThrottleDevice(path="/dev/sda", rate=1000)])
    assert spec["linux"]["resources"]["blockIO"] == {"throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]}


def test_what_cgroup_v2_cannot_do_is_left_out():
    host = Host(cgroup_version=2, cpus=1, kernel=(6, 1), swap_limit=False)
    spec = build(host=host, memory=1 << 30, memory_swappiness=1, oom_kill_disable=True)
    assert spec["linux"]["resources"]["memory"] == {"limit": 1 << 30}


def test_no_resource_limit_is_set_unasked_and_the_users_wins():
    assert "rlimits" not in build()["process"]
    defaults = Defaults(
        cgroup_parent="/e", ulimits=(Ulimit(name="nofile", soft=1, hard=2), Ulimit(name="core", soft=-1, hard=-1))
    )
    spec = build(defaults=defaults, ulimits=[Ulimit(name="nofile", soft=10, hard=20)])
    assert spec["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]


@pytest.mark.parametrize(
    ("option", "default", "expected"),
    [
        (None, False, False),
        (None, True, True),
        ("no-new-privileges", False, True),
        ("no-new-privileges=true", False, True),
        ("no-new-privileges:true", False, True),
        ("no-new-privileges=false", True, False),
    ],
)
def test_no_new_privileges_follows_the_option_then_the_daemon(option, default, expected):
    defaults = Defaults(cgroup_parent="/e", no_new_privileges=default)
    spec = build(defaults=defaults, security_opt=[option] if option else None)
    assert spec["process"]["noNewPrivileges"] is expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("odd", 'invalid --security-opt 1: "odd"'),
        ("odd=1", 'invalid --security-opt 2: "odd=1"'),
        ("no-new-privileges=maybe", 'invalid --security-opt 2: "no-new-privileges=maybe"'),
    ],
)
def test_an_unknown_security_option_is_refused(option, message):
    with pytest.raises(InvalidParameter) as error:
        build(security_opt=[option])
    assert str(error.value) == message


def test_writable_cgroups_unlock_the_cgroup_mount_only():
    spec = build(security_opt=["writable-cgroups"])
    assert "ro" not in mount_at(spec, "/sys/fs/cgroup")["options"]
    assert "ro" in mount_at(spec, "/sys")["options"]


def test_init_runs_first_where_the_container_has_processes_of_its_own():
    spec = build(init=True)
    assert spec["process"]["args"] == ["/sbin/docker-init", "--", "/bin/sh", "-c", "true"]
    assert mount_at(spec, "/sbin/docker-init")["source"] == "/usr/bin/tini"
    assert "/sbin/docker-init" not in destinations(build(init=True, pid_mode="host"))
    assert build(defaults=Defaults(cgroup_parent="/e", init=True))["process"]["args"][0] == "/sbin/docker-init"
    with pytest.raises(InvalidParameter, match="install tini or catatonit"):
        build(init=True, host=Host(cgroup_version=1, cpus=1, kernel=(6, 1)))


@pytest.mark.parametrize(
    ("parent", "expected"),
    [("", "/engine-0123abcd"), ("mine", "/mine"), ("/a/b", "/a/b"), ("../../x", "/x"), ("/a/../b", "/b")],
)
def test_the_cgroup_parent_cannot_climb(parent, expected):
    assert build(cgroup_parent=parent)["linux"]["cgroupsPath"] == f"{expected}/{ID}"


def test_sysctls_domain_name_and_annotations_are_passed_on():
    config = Config(hostname="box", domainname="example.org")
    spec = build(config, sysctls={"net.ipv4.ip_unprivileged_port_start": "80"}, annotations={"a": "b"})
    assert spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"] == "80"
    assert spec["linux"]["sysctl"]["kernel.domainname"] == "example.org"
    assert spec["annotations"] == {"a": "b"}


@pytest.mark.parametrize(("asked", "own", "expected"), [(0, 0, None), (0, -500, 0), (300, 0, 300)])
def test_the_oom_score_is_only_touched_when_it_must_be(asked, own, expected):
    host = Host(cgroup_version=1, cpus=1, kernel=(6, 1), oom_score_adj=own)
    assert build(host=host, oom_score_adj=asked)["process"].get("oomScoreAdj") == expected


def test_an_exec_adds_to_the_containers_environment():
    process = ocispec.exec_process(
        container(Config(hostname="box", env=["A=1"], working_dir="/w")),
        args=["id"], env=["B=2"], working_dir="", tty=True, user=User(), defaults=Defaults(cgroup_parent="/e"),
    )  # fmt: skip
    assert process["env"] == [f"PATH={ocispec.DEFAULT_PATH}", "HOSTNAME=box", "TERM=xterm", "A=1", "B=2", "HOME=/"]
    assert process["cwd"] == "/w"
    assert process["terminal"] is True
