"""What confines a container: the default posture, the options that change it, and the attacks others fell to."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from harness import BIN, Client, Daemon, make_busybox, wait_for

DEFAULT_MASK = "00000000a80425fb"


@pytest.fixture(scope="module")
def prober(scratch: Path) -> Path:
    """A directory with a static program that asks the kernel for everything."""
    if not shutil.which("gcc") or platform.machine() != "x86_64":
        pytest.skip("needs gcc on x86_64")
    directory = scratch / "prober"
    directory.mkdir()
    source = Path(__file__).with_name("syscall_probe.c")
    subprocess.run(["gcc", "-O1", "-static", "-o", str(directory / "probe"), str(source)], check=True)
    return directory


# -- system calls --------------------------------------------------------------------------------------------------

# What today's profile of Docker answers otherwise than that of the dockerd 20.10 these are compared with (the number
# space of the table is x86_64's). io_uring is gone; calls that came after 2020 or became harmless are let in.
NEWER = {
    "call": {
        *(303, 310, 311, 329, 330, 331),  # name_to_handle_at, process_vm_*, pkey_*
        *(425, 426, 427),  # io_uring
        *range(450, 470),  # younger than either's libseccomp: EPERM or ENOSYS, never served by accident
    },
    "socket": {38, 40},  # kernel crypto, hosts of virtual machines
    "i386": {*(341, 347, 348, 380, 381, 382), 425, 426, 427, *range(450, 470)},
}
YOUNG = range(450, 470)


def answers(text: str) -> dict[tuple[str, int], str]:
    found = re.findall(r"^(\w+) (\d+) (.*)$", text, re.MULTILINE)
    return {(kind, int(number)): answer for kind, number, answer in found}


@pytest.mark.parametrize("options", [(), ("--cap-add", "SYS_ADMIN"), ("--cap-drop", "ALL"), ("--user", "1000")])
def test_a_container_may_ask_the_kernel_for_what_it_may_under_dockerd(
    daemon: Daemon, docker: Client, prober: Path, scratch: Path, options: tuple[str, ...]
) -> None:
    if daemon.target == "dockerd" or not shutil.which("dockerd"):
        pytest.skip("compares ours with dockerd's")
    other = Daemon("dockerd", scratch / f"dockerd{len(options)}{'-'.join(options[1:])}")
    other.directory.mkdir()
    other.start()
    try:
        theirs = Client("docker", other, scratch)
        theirs("load", "-i", str(scratch / "bb.tar"))
        words = ("run", "--rm", "--network", "none", "-v", f"{prober}:/p", *options, "bb", "/p/probe")
        ours, reference = answers(docker(*words).out), answers(theirs(*words).out)
    finally:
        other.stop()
    assert len(ours) > 900
    different = {key for key in ours | reference if ours.get(key) != reference.get(key)}
    unexpected = {key for key in different if key[1] not in NEWER.get(key[0], ())}
    assert unexpected == set(), {key: (ours.get(key), reference.get(key)) for key in unexpected}
    assert all(ours["call", number] == "errno 1" for number in (425, 426, 427))  # io_uring
    assert ours["socket", 40] == ours["socket", 38] == "errno 1"


def test_a_profile_of_the_users_replaces_the_default(docker: Client, tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
            }
        )
    )
    denied = docker("run", "--rm", "--security-opt", f"seccomp={profile}", "bb", "mkdir", "/x", check=False)
    assert denied.code == 1
    assert "Permission denied" in denied.err
    docker("run", "--rm", "bb", "mkdir", "/x")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nosuch", "invalid --security-opt"),
        ("nosuch=1", 'invalid --security-opt 2: "nosuch=1"'),
        ("no-new-privileges=maybe", 'invalid --security-opt 2: "no-new-privileges=maybe"'),
    ],
)
def test_security_options_nobody_knows_are_refused(docker: Client, option: str, message: str) -> None:
    refused = docker("run", "--rm", "--security-opt", option, "bb", "true", check=False)
    assert refused.code == 125
    assert message.lower() in refused.err.lower()


def test_a_profile_for_the_whole_daemon(own_daemon: object, tmp_path: Path, scratch: Path) -> None:
    profile = tmp_path / "all.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    docker = Client("docker", own_daemon("--seccomp-profile", str(profile)), scratch)  # type: ignore[operator]
    assert docker("run", "--rm", "--network", "none", "bb", "mkdir", "/x", check=False).code == 1
    assert f"name=seccomp,profile={profile}" in docker("info", "-f", "{{.SecurityOptions}}").out


def test_no_new_privileges_as_the_daemons_default(own_daemon: object, scratch: Path) -> None:
    docker = Client("docker", own_daemon("--no-new-privileges"), scratch)  # type: ignore[operator]
    read = ("--network", "none", "bb", "grep", "NoNewPrivs", "/proc/self/status")
    assert docker("run", "--rm", *read).out.split()[1] == "1"
    assert docker("run", "--rm", "--security-opt", "no-new-privileges=false", *read).out.split()[1] == "0"
    if docker.daemon.target != "dockerd":  # 20.10 does not say it yet
        assert "name=no-new-privileges" in docker("info", "-f", "{{.SecurityOptions}}").out


# -- capabilities --------------------------------------------------------------------------------------------------


def capabilities(docker: Client, *words: str) -> dict[str, str]:
    out = docker("run", "--rm", "--network", "none", *words, "bb", "grep", "^Cap", "/proc/self/status").out
    return dict(line.split(":\t") for line in out.splitlines())


def test_capabilities_are_dockers_and_nothing_is_inheritable(docker: Client, name: str) -> None:
    none = "0" * 16
    assert capabilities(docker) == {
        "CapInh": none,
        "CapPrm": DEFAULT_MASK,
        "CapEff": DEFAULT_MASK,
        "CapBnd": DEFAULT_MASK,
        "CapAmb": none,
    }
    assert capabilities(docker, "--user", "1000") == {
        "CapInh": none,
        "CapPrm": none,
        "CapEff": none,
        "CapBnd": DEFAULT_MASK,
        "CapAmb": none,
    }
    assert capabilities(docker, "--cap-drop", "ALL", "--cap-add", "chown")["CapEff"] == f"{1:016x}"
    docker("run", "-d", "--name", name, "bb", "sleep", "99")
    out = docker("exec", name, "grep", "^CapInh", "/proc/self/status").out
    assert out.split()[1] == none  # CVE-2022-24769, in exec too


def test_an_unknown_capability_is_refused_at_create(docker: Client) -> None:
    refused = docker("create", "--cap-add", "NOSUCH", "bb", check=False)
    assert refused.code == 1
    assert re.search(r'invalid CapAdd: unknown capability: "(CAP_)?NOSUCH"', refused.err)


# -- paths, devices, namespaces ------------------------------------------------------------------------------------


def test_masked_and_read_only_paths(docker: Client) -> None:
    script = (
        "for p in /proc/kcore /proc/keys /proc/timer_list; do [ -e $p ] && head -c1 $p | wc -c; done; "
        "ls /sys/firmware /proc/acpi 2>/dev/null | grep -v : | wc -w; "
        "for p in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/kernel/profiling; do "
        "(echo x > $p) 2>/dev/null && echo WRITTEN $p; done; true"
    )
    words = docker("run", "--rm", "--network", "none", "bb", "sh", "-c", script).out.split()
    assert set(words) == {"0"}


def test_unconfined_system_paths(docker: Client) -> None:
    read = ("bb", "sh", "-c", "grep -c ' /proc/' /proc/self/mountinfo; true")
    assert docker("run", "--rm", "--network", "none", *read).out.strip() != "0"
    assert docker("run", "--rm", "--network", "none", "--security-opt", "systempaths=unconfined", *read).out == "0\n"


def test_only_harmless_devices_can_be_used(docker: Client) -> None:
    script = (
        "for d in 'c 1 3' 'c 1 5' 'c 1 8' 'c 1 9' 'c 5 0' 'c 1 1' 'c 1 11' 'c 10 229' 'b 254 0' 'b 259 0'; do "
        "mknod /tmp/d $d && { head -c0 /tmp/d 2>/dev/null && (exec 3</tmp/d) 2>/dev/null && echo $d; }; rm -f /tmp/d; "
        "done; true"
    )
    opened = docker("run", "--rm", "--network", "none", "bb", "sh", "-c", script).out.splitlines()
    assert set(opened) <= {"c 1 3", "c 1 5", "c 1 8", "c 1 9", "c 5 0"}
    assert {"c 1 3", "c 1 5", "c 1 8", "c 1 9"} <= set(opened)


@pytest.mark.parametrize(
    ("option", "kind"),
    [("--network=host", "net"), ("--pid=host", "pid"), ("--ipc=host", "ipc"), ("--uts=host", "uts")],
)
def test_a_namespace_is_the_containers_own_unless_it_asks_for_the_hosts(docker: Client, option: str, kind: str) -> None:
    read = ("bb", "readlink", f"/proc/self/ns/{kind}")
    host = os.readlink(f"/proc/self/ns/{kind}")
    assert docker("run", "--rm", *read).out.strip() != host
    assert docker("run", "--rm", option, *read).out.strip() == host


def test_privileged_has_what_the_daemon_has(daemon: Daemon, docker: Client) -> None:
    if daemon.target == "dockerd":
        pytest.skip("dockerd 20.10 asks for capabilities this machine lacks and fails")
    status = Path("/proc/self/status").read_text()
    held = re.search(r"CapEff:\t(\w+)", status)
    assert held is not None
    assert capabilities(docker, "--privileged")["CapEff"] == held[1]
    out = docker(
        "run", "--rm", "--privileged", "bb", "sh", "-c", "grep Seccomp: /proc/self/status; ls /dev | wc -l"
    ).out
    assert out.split()[1] == "0"
    assert int(out.split()[2]) > 20


# -- attacks -------------------------------------------------------------------------------------------------------


def image(docker: Client, tmp_path: Path, name: str, *links: tuple[str, str], **config: object) -> None:
    """An image of busybox with links where an attacker wants them."""
    directory = tmp_path / name
    directory.mkdir()
    make_busybox(directory)
    with tarfile.open(directory / "bb-layer.tar", "a") as layer:
        for path, target in links:
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            layer.addfile(entry)
    changes = [word for key, value in config.items() for word in ("-c", f"{key} {value}")]
    docker("import", *changes, str(directory / "bb-layer.tar"), name)


@pytest.mark.parametrize("number", [5, 7, 8, 9, 12])
def test_a_working_directory_that_is_a_leaked_descriptor(
    docker: Client, name: str, number: int, tmp_path: Path
) -> None:
    """CVE-2024-21626: the host's file system must not be the working directory, of run, image or exec."""
    place = f"/proc/self/fd/{number}"
    outside = "ls ../../../../../../../../../../../../work ../../../etc/engine-canary; cat ../../../../proc/1/cmdline"
    canary = Path("/etc/engine-canary")
    canary.write_text("host")
    try:
        result = docker("run", "--rm", "--network", "none", "-w", place, "bb", "sh", "-c", outside, check=False)
        assert "engine-canary\n" not in result.out
        docker("run", "-d", "--name", name, "--network", "none", "bb", "sleep", "99")
        result = docker("exec", "-w", place, name, "sh", "-c", outside, check=False)
        assert "engine-canary\n" not in result.out
    finally:
        canary.unlink()


def test_no_descriptor_of_the_engine_reaches_a_container(docker: Client, name: str) -> None:
    listing = ("ls", "-l", "/proc/self/fd")
    for out in (
        docker("run", "--rm", "--network", "none", "bb", *listing).out,
        docker("run", "-i", "--rm", "--network", "none", "bb", *listing, input="").out,
    ):
        numbers = {line.split()[-3] for line in out.splitlines() if "->" in line}
        assert numbers <= {"0", "1", "2", "3"}, out  # 3 is ls's own
    docker("run", "-d", "--name", name, "--network", "none", "bb", "sleep", "99")
    out = docker("exec", name, *listing).out
    assert {line.split()[-3] for line in out.splitlines() if "->" in line} <= {"0", "1", "2", "3"}, out
    inside = docker("exec", name, "ls", "/proc/1/fd").out.split()
    assert set(inside) == {"0", "1", "2"}


def test_a_mount_onto_a_link_stays_inside(docker: Client, tmp_path: Path) -> None:
    """runc CVE-2019-16884 and kin: the image says that /mnt is the host's directory."""
    target = tmp_path / "target"
    target.mkdir()
    image(docker, tmp_path, "linked", ("mnt", f"../../../../../../..{target}"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "mark").write_text("x")
    docker("run", "--rm", "--network", "none", "-v", f"{source}:/mnt", "linked", "/bin/ls", "/mnt", check=False)
    assert list(target.iterdir()) == []


def test_copying_through_links_stays_inside(docker: Client, name: str, tmp_path: Path) -> None:
    """CVE-2018-15664: `docker cp` follows the container's links within the container only."""
    secret = tmp_path / "secret"
    secret.write_text("host's")
    image(docker, tmp_path, "cplinks", ("out", f"/../../../../../../../..{tmp_path}"))
    docker("run", "-d", "--name", name, "--network", "none", "cplinks", "/bin/sleep", "99")
    refused = docker("cp", f"{name}:/out/secret", str(tmp_path / "stolen"), check=False)
    assert refused.code == 1
    assert not (tmp_path / "stolen").exists()
    given = tmp_path / "given"
    given.write_text("evil")
    docker("cp", str(given), f"{name}:/out/planted", check=False)
    assert not (tmp_path / "planted").exists()


def test_masked_paths_cannot_be_redirected(docker: Client, tmp_path: Path) -> None:
    """CVE-2025-31133: an image's own /dev/null must not become the mask of /proc files."""
    image(docker, tmp_path, "nullless", ("dev/null", "/proc/sys/kernel/core_pattern"))
    out = docker(
        *("run", "--rm", "--network", "none", "nullless", "/bin/sh", "-c"),
        "stat -c %t:%T /dev/null; (echo owned > /proc/keys) 2>/dev/null; cat /proc/sys/kernel/core_pattern",
        check=False,
    ).out
    assert out.splitlines()[:1] in (["1:3"], [])
    assert Path("/proc/sys/kernel/core_pattern").read_text() != "owned\n"


def test_the_runtime_binary_cannot_be_overwritten(docker: Client, name: str) -> None:
    """CVE-2019-5736: what /proc/self/exe of an entering runtime points to is not writable."""
    binaries = [path for path in map(shutil.which, ("runc", "crun")) if path]
    before = {path: (os.stat(path).st_ino, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in binaries}
    docker("run", "--rm", "--network", "none", "--entrypoint", "/proc/self/exe", "bb", "--version", check=False)
    docker("run", "-d", "--name", name, "--network", "none", "bb", "sleep", "99")
    script = (
        "i=0; while [ $i -lt 400 ]; do for p in /proc/[0-9]*/exe; do (echo x > $p) 2>/dev/null; done; i=$((i+1)); done"
    )
    overwriting = docker.popen("exec", name, "sh", "-c", script)
    for _ in range(3):
        docker("exec", name, "/proc/self/exe", check=False)
    docker("kill", name, check=False)
    overwriting.communicate(timeout=30)
    after = {path: (os.stat(path).st_ino, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in binaries}
    assert after == before


def test_what_belongs_to_containers_is_for_root_only(daemon: Daemon, docker: Client, name: str) -> None:
    """CVE-2021-41091 and 41103: nobody else walks into a data root or a bundle."""
    docker("run", "-d", "--name", name, "--network", "none", "bb", "sleep", "99")
    open_doors = []
    for root in (daemon.directory / "data", daemon.directory / "run"):
        for place in ("containers", "overlay2", "volumes", "bundles", ""):
            path = root / place
            if path.is_dir() and path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
                open_doors.append(f"{path}: {oct(path.stat().st_mode)}")
    assert open_doors == []


def test_no_abstract_socket_is_left_for_containers_of_the_hosts_network(docker: Client) -> None:
    """CVE-2020-15257: the shim's control socket could be reached by name."""
    out = docker("run", "--rm", "--network", "host", "bb", "cat", "/proc/net/unix").out
    assert not [line for line in out.splitlines() if re.search(r"@.*(engine|monitor|launcher)", line)]


def test_a_setuid_program_gains_nothing_with_no_new_privileges(docker: Client, tmp_path: Path) -> None:
    directory = tmp_path / "suid"
    directory.mkdir()
    shutil.copy(shutil.which("busybox") or "", directory / "busybox")
    (directory / "busybox").chmod(0o4755)
    words = ("run", "--rm", "--network", "none", "-u", "1000", "-v", f"{directory}:/s")
    read = ("bb", "/s/busybox", "id", "-u")
    assert docker(*words, "--security-opt", "no-new-privileges", *read).out.strip() == "1000"


def test_a_member_of_the_group_may_use_the_socket_and_others_may_not(daemon: Daemon, own_daemon: object) -> None:
    made = own_daemon("--group", "daemon", image=False)  # type: ignore[operator]
    made.directory.parent.chmod(0o755)
    made.directory.chmod(0o755)
    mode = os.stat(made.socket)
    assert stat.S_IMODE(mode.st_mode) == 0o660
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(made.socket)!r}); print('in')"

    def connect(group: int) -> str:
        return subprocess.run(
            ["/usr/bin/python3", "-c", code], user=65534, group=group, extra_groups=[], capture_output=True, text=True
        ).stdout

    assert connect(1) == "in\n"
    assert connect(65534) == ""


# -- policy --------------------------------------------------------------------------------------------------------


def test_a_policy_refuses_create_exec_and_pull_and_names_its_rule(
    target: str, daemon: Daemon, own_daemon: object, registry: str, tmp_path: Path, scratch: Path
) -> None:
    if target == "dockerd":
        pytest.skip("dockerd has no policies")
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[[rule]]\nname = "nothing privileged"\ndeny-privileged = true\n'
        '[[rule]]\nname = "mounts"\nmounts = ["/srv/**"]\n'
        '[[rule]]\nname = "known images"\nregistries = ["docker.io/library"]\n'
        '[[test]]\nname = "x"\ncreate = { Image = "bb", HostConfig = { Privileged = true } }\n'
        'refused-by = "nothing privileged"\n'
    )
    assert subprocess.run([str(BIN / "engine"), "policy", "test", str(policy)], capture_output=True).returncode == 0
    config = {"plugin-options": {"security-policy": {"files": [str(policy)]}}}
    docker = Client("docker", own_daemon(config=config), scratch)  # type: ignore[operator]

    def refused(*words: str) -> str:
        result = docker(*words, check=False)
        assert result.code != 0, result
        return result.err

    docker("run", "-d", "--name", "ok", "--network", "none", "bb", "sleep", "99")
    rule = f'denied by policy "nothing privileged" ({policy}): '
    assert rule + "privileged containers are not allowed" in refused("run", "--privileged", "bb", "true")
    result = docker("exec", "--privileged", "ok", "true", check=False)
    assert rule + "exec --privileged is not allowed" in result.out + result.err
    assert 'denied by policy "mounts"' in refused("run", "-v", "/etc:/x", "bb", "true")
    assert 'denied by policy "mounts"' in refused(
        *("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/etc", "sneaky")
    )
    reference = f"{registry}/policy/bb:1"
    for words in (("tag", "bb", reference), ("push", reference), ("rmi", reference)):
        Client("docker", daemon, scratch)(*words)
    assert 'denied by policy "known images"' in refused("pull", reference)
    docker("tag", "bb", reference)
    assert 'denied by policy "known images"' in refused("run", "--pull", "never", reference, "true")
    docker("rm", "-f", "ok")


def test_the_security_report_says_what_the_kernel_says(daemon: Daemon, home: Path, name: str) -> None:
    if daemon.target == "dockerd":
        pytest.skip("ours")
    engine = Client("engine", daemon, home)
    engine("run", "-d", "--name", name, "--network", "none", "--cap-drop", "ALL", "bb", "sleep", "99")
    report = json.loads(engine("inspect", "--security", name).out)[0]
    assert report["Capabilities"]["Effective"] == []
    assert report["Seccomp"]["Mode"] == "filter"
    assert report["NoNewPrivileges"] is False
    assert report["Namespaces"]["pid"] == "private"
    assert "/proc/kcore" in report["MaskedPaths"]


def test_the_daemon_answers_while_clients_send_slowly(daemon: Daemon, docker: Client) -> None:
    import socket

    slow = []
    for _ in range(100):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(daemon.socket))
        client.sendall(b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 1000\r\n\r\n{")
        slow.append(client)
    try:
        started = time.monotonic()
        docker("version")
        assert time.monotonic() - started < 5
    finally:
        for client in slow:
            client.close()
    wait_for(lambda: docker("ps").code == 0, "the daemon to be well")
