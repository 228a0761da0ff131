"""The built spec in a real container: what the kernel says about it. Needs root and an OCI runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from engine import kernel
from engine.model.container import Config, Container, HostConfig
from engine.names import new_id
from engine.oci import devices, host, users
from engine.oci import spec as ocispec

pytestmark = pytest.mark.root
capabilities = pytest.importorskip("engine_security_capabilities")
seccomp = pytest.importorskip("engine_security_seccomp")
BUSYBOX = "/bin/busybox"


def _runtime(name: str) -> str:
    found = shutil.which(name)
    if found is None or not os.path.exists(BUSYBOX):
        pytest.skip(f"{name} and busybox-static are needed")
    return found


@pytest.fixture(params=["runc", "crun"])
def run(request, tmp_path):
    """Run a shell script in a container made from the given configs; gives (exit code, output)."""
    runtime = _runtime(request.param)
    rootfs = tmp_path / "rootfs"
    for directory in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (rootfs / directory).mkdir(parents=True)
    shutil.copy(BUSYBOX, rootfs / "bin/busybox")
    subprocess.run([BUSYBOX, "--install", "-s", rootfs / "bin"], check=True)
    for link in (rootfs / "bin").iterdir():
        if link.is_symlink():
            link.unlink()
            link.symlink_to("busybox")
    (rootfs / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n")
    (rootfs / "etc/group").write_text("root:x:0:\nbob:x:1000:\nwheel:x:10:bob\n")
    facts = host.probe()

    def run(script: str, *, config=None, host_config=None, namespaces=None, mounts=()):
        identifier = new_id()
        host_config = host_config or HostConfig(network_mode="none")
        config = msgspec.structs.replace(config or Config(), hostname=identifier[:12])
        container = Container(
            id=identifier, name="/t", created="", image_id="", chain_id=None, platform="linux/amd64", runtime="runc",
            store="", log_driver="none", path="/bin/sh", args=["-c", script], config=config, host_config=host_config,
        )  # fmt: skip
        spec = ocispec.build(
            container,
            rootfs=rootfs,
            mounts=mounts,
            namespaces=namespaces or ocispec.Namespaces(),
            files={},
            user=users.find(rootfs, config.user, host_config.group_add),
            devices=devices.plan(host_config),
            host=facts,
            defaults=ocispec.Defaults(cgroup_parent="/engine-test"),
        )
        if namespaces is None:
            spec["linux"]["namespaces"].append({"type": "network"})
        capabilities.engine_oci_spec(container, spec)
        seccomp.engine_oci_spec(container, spec)
        bundle = tmp_path / identifier
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(spec))
        command = [runtime, "--root", str(tmp_path / "state"), "run", "-b", str(bundle), identifier]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            preexec_fn=_hide_unified_cgroup if request.param == "crun" else None,
        )
        return done.returncode, done.stdout + done.stderr

    yield run
    _remove_cgroups("engine-test")


def _hide_unified_cgroup() -> None:
    """crun refuses hybrid hierarchies; in a mount namespace of its own it does not see one."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    if os.path.ismount("/sys/fs/cgroup/unified"):
        kernel.umount("/sys/fs/cgroup/unified", kernel.MNT_DETACH)


def _remove_cgroups(parent: str) -> None:
    for group in Path("/sys/fs/cgroup").glob(f"*/{parent}"):
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)


def _status(output: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in output.splitlines() if ":\t" in line)


def test_a_container_has_dockers_capabilities_and_a_filter(run):
    code, output = run("cat /proc/self/status")
    status = _status(output)
    assert code == 0
    assert {status[key] for key in ("CapEff", "CapPrm", "CapBnd")} == {"00000000a80425fb"}
    assert status["CapInh"] == status["CapAmb"] == "0" * 16
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "0")


def test_new_namespaces_and_kernel_secrets_are_out_of_reach(run):
    code, output = run("unshare -r true; wc -c </proc/timer_list; echo x > /proc/sys/kernel/domainname")
    assert "Operation not permitted" in output
    assert "0\n" in output
    assert code != 0
    assert "Read-only file system" in output


def test_a_user_of_the_image_has_its_groups_home_and_no_capabilities(run):
    _, output = run("id; echo $HOME; cat /proc/self/status", config=Config(user="bob"))
    assert "uid=1000(bob) gid=1000(bob) groups=10(wheel),1000(bob)" in output
    assert "/home/bob" in output
    assert _status(output)["CapEff"] == "0" * 16
    assert _status(output)["CapBnd"] == "00000000a80425fb"


def test_a_privileged_container_is_not_filtered_and_sees_the_devices(run):
    code, output = run(
        "cat /proc/self/status; unshare -r true && echo unshared; ls /dev | wc -l; mount | grep ' /sys '",
        host_config=HostConfig(network_mode="none", privileged=True),
    )
    assert code == 0, output
    assert "unshared" in output
    assert _status(output)["Seccomp"] == "0"
    assert "/sys type sysfs (rw," in output


def test_limits_tmpfs_and_read_only_root_hold(run):
    code, output = run(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max; touch /x; touch /scratch/x && "
        "mount | grep /scratch",
        host_config=HostConfig(
            network_mode="none",
            memory=64 << 20,
            pids_limit=50,
            readonly_rootfs=True,
            tmpfs={"/scratch": "size=1m,exec"},
        ),
    )
    assert code == 0, output
    assert "Read-only file system" in output
    assert "(rw,nosuid,nodev,relatime,size=1024k" in output
    if os.path.exists("/sys/fs/cgroup/memory"):
        assert output.startswith("67108864\n50\n")


def test_init_is_process_one(run):
    if not host.probe().init:
        pytest.skip("no init binary here")
    code, output = run("cat /proc/1/comm", host_config=HostConfig(network_mode="none", init=True))
    assert (code, output.strip()) == (0, "docker-init")
