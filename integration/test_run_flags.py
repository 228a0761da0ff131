"""Every flag of ``docker run``: it works, seen from inside the container or in inspect, or is refused with a reason.

The tables run with the docker CLI and with ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Client, wait_for


def limit(v2: str, v1: str) -> str:
    """A shell command that prints a control file, by whichever version of control groups there is."""
    return f"cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}"


# runc cannot grant what this machine lacks (crun leaves it out); an address for each network needs API 1.44
NOT_WITH_DOCKERD = ("--privileged", "--mac-address")

CAPABILITIES = "grep CapEff /proc/self/status"

INSIDE: list[tuple[str, str, str]] = [
    ("--add-host db:10.9.8.7", "cat /etc/hosts", r"^10\.9\.8\.7\tdb$"),
    ("--add-host=db=10.9.8.7", "cat /etc/hosts", r"^10\.9\.8\.7\tdb$"),
    ("--cap-add SYS_TIME", CAPABILITIES, r"aa0425fb$"),
    ("--cap-drop ALL", CAPABILITIES, r"0000000000000000$"),
    ("--cap-drop ALL --cap-add CHOWN", CAPABILITIES, r"0000000000000001$"),
    ("--cgroupns private", "cat /proc/self/cgroup", r"memory:/$|^0::/$"),
    ("--cgroupns host --cgroup-parent /flagtest", "cat /proc/self/cgroup", r"/flagtest/[0-9a-f]{64}$"),
    ("--cpu-shares 512", limit("cpu.weight", "cpu/cpu.shares"), r"^(512|20)$"),
    ("--cpu-period 50000 --cpu-quota 25000", limit("cpu.max", "cpu/cpu.cfs_quota_us"), r"^25000"),
    ("--cpus 0.5", limit("cpu.max", "cpu/cpu.cfs_quota_us"), r"^50000"),
    ("--cpuset-cpus 0", "grep Cpus_allowed_list /proc/self/status", r"\t0$"),
    ("--cpuset-mems 0", "grep Mems_allowed_list /proc/self/status", r"\t0$"),
    ("--device /dev/null:/dev/other", "echo lost > /dev/other && stat -c %t,%T /dev/other", r"^1,3$"),
    ("--device /dev/loop-control:/dev/x:r", "(: > /dev/x) 2>/dev/null || echo refused", r"^refused$"),
    ("--device /dev/loop-control:/dev/x:rw", "(: > /dev/x) && echo opened", r"^opened$"),
    ("--device-cgroup-rule c:1:5", "true", r""),
    ("--dns 10.1.1.1 --dns-search a.example --dns-option ndots:3", "cat /etc/resolv.conf", r"^nameserver 10\.1\.1\.1$"),
    ("--dns 10.1.1.1 --dns-search a.example --dns-option ndots:3", "cat /etc/resolv.conf", r"^search a\.example$"),
    ("--dns 10.1.1.1 --dns-search a.example --dns-option ndots:3", "cat /etc/resolv.conf", r"^options ndots:3$"),
    ("--domainname example.org -h box", "hostname -f; cat /proc/sys/kernel/domainname", r"^example\.org$"),
    ("-h box", "hostname; cat /etc/hosts", r"\tbox$"),
    ("-e A=1 --env B=2", "echo $A$B", r"^12$"),
    ("--user user", "id", r"^uid=1000\(user\) gid=1000\(user\)"),
    ("--user 7:8", "id", r"^uid=7 gid=8"),
    ("--user 1000 --group-add extra --group-add 77", "id -G", r"^1000 77 2000$|^1000 2000 77$"),
    ("--init", "cat /proc/1/comm", r"init|tini"),
    ("--ipc none", "ls -d /dev/shm || echo none", r"none$|^/dev/shm$"),
    ("--ipc host", "readlink /proc/self/ns/ipc", r"^ipc:"),
    ("--shm-size 5m", "df -k /dev/shm | tail -1", r"\s5120\s"),
    ("--memory 64m", limit("memory.max", "memory/memory.limit_in_bytes"), r"^67108864$"),
    ("--memory 64m --memory-swap 64m", "true", r""),
    ("--memory 64m --memory-reservation 32m", limit("memory.low", "memory/memory.soft_limit_in_bytes"), r"^33554432$"),
    ("--mount type=tmpfs,dst=/m,tmpfs-size=1m", "df -k /m | tail -1", r"\s1024\s"),
    ("--tmpfs /m:size=2m,mode=700", "df -k /m | tail -1; stat -c %a /m", r"^700$"),
    ("--oom-score-adj 123", "cat /proc/self/oom_score_adj", r"^123$"),
    ("--pid host", "readlink /proc/self/ns/pid", r"^pid:"),
    ("--pids-limit 77", limit("pids.max", "pids/pids.max"), r"^77$"),
    ("--privileged", CAPABILITIES, r"[0-9a-f]*fffff$"),
    ("--privileged", "mount -t tmpfs none /tmp && echo mounted", r"^mounted$"),
    ("--read-only", "touch /x 2>/dev/null || echo refused", r"^refused$"),
    ("--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status", r"\t1$"),
    ("--security-opt seccomp=unconfined", "grep Seccomp: /proc/self/status", r"\t0$"),
    ("--sysctl net.ipv4.ip_unprivileged_port_start=99", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", r"^99$"),
    ("-t", "tty", r"^/dev/pts/0"),
    ("--ulimit nofile=99:100", "ulimit -n; ulimit -Hn", r"^100$"),
    ("--uts host", "readlink /proc/self/ns/uts", r"^uts:"),
    ("--workdir /made/here", "pwd", r"^/made/here$"),
    ("--network none", "ls /sys/class/net", r"^lo$"),
    ("--network host", "readlink /proc/self/ns/net", r"^net:"),
    ("--mac-address 02:42:ac:99:99:99", "cat /sys/class/net/eth0/address", r"^02:42:ac:99:99:99$"),
    ("--link-local-ip 169.254.9.9 --network flags-net", "ip addr show eth0", r"169\.254\.9\.9"),
    ("--network flags-net --ip 10.77.0.9", "ip addr show eth0", r"inet 10\.77\.0\.9/24"),
    ("--network flags-net --network-alias shorty --name flag-alias", "nslookup shorty", r"Address.*10\.77\.0\."),
    ("--entrypoint /bin/sh", "echo replaced", r"^replaced$"),
    ("--runtime runc", "echo ran", r"^ran$"),
    ("--isolation default", "echo ran", r"^ran$"),
    ("--platform linux/amd64", "uname -m", r"^x86_64$"),
    ("--quiet --pull never", "echo ran", r"^ran$"),
    ("--sig-proxy=false", "echo ran", r"^ran$"),
]

INSPECT: list[tuple[str, str, Any]] = [
    ("--expose 80 --expose 90-91/udp", "Config.ExposedPorts", {"80/tcp": {}, "90/udp": {}, "91/udp": {}}),
    (
        "--health-cmd true --health-interval 9s --health-timeout 8s --health-retries 7 --health-start-period 6s",
        "Config.Healthcheck",
        {
            "Test": ["CMD-SHELL", "true"],
            "Interval": 9_000_000_000,
            "Timeout": 8_000_000_000,
            "Retries": 7,
            "StartPeriod": 6_000_000_000,
        },
    ),
    ("--no-healthcheck", "Config.Healthcheck", {"Test": ["NONE"]}),
    ("--label a=b -l c", "Config.Labels", {"a": "b", "c": ""}),
    ("--log-driver none", "HostConfig.LogConfig", {"Type": "none", "Config": {}}),
    ("--log-opt max-size=1m", "HostConfig.LogConfig", {"Type": "json-file", "Config": {"max-size": "1m"}}),
    ("--oom-kill-disable", "HostConfig.OomKillDisable", True),
    ("--memory-swappiness 10", "HostConfig.MemorySwappiness", 10),
    ("--memory 64m", "HostConfig.MemorySwap", 128 << 20),
    ("--restart on-failure:3", "HostConfig.RestartPolicy", {"Name": "on-failure", "MaximumRetryCount": 3}),
    ("--stop-signal USR1", "Config.StopSignal", "USR1"),
    ("--stop-timeout 3", "Config.StopTimeout", 3),
    ("--volume-driver local -v flagvol:/v", "HostConfig.VolumeDriver", "local"),
    ("--userns host", "HostConfig.UsernsMode", "host"),
    ("--attach stdout", "Config.AttachStdout", True),
    ("--attach stdout", "Config.AttachStderr", False),
    ("-i", "Config.OpenStdin", True),
    ("-i", "Config.StdinOnce", True),
    ("--device-read-bps /dev/null:1mb", "HostConfig.BlkioDeviceReadBps", [{"Path": "/dev/null", "Rate": 1 << 20}]),
    ("--device-write-bps /dev/null:1mb", "HostConfig.BlkioDeviceWriteBps", [{"Path": "/dev/null", "Rate": 1 << 20}]),
    ("--device-read-iops /dev/null:9", "HostConfig.BlkioDeviceReadIOps", [{"Path": "/dev/null", "Rate": 9}]),
    ("--device-write-iops /dev/null:9", "HostConfig.BlkioDeviceWriteIOps", [{"Path": "/dev/null", "Rate": 9}]),
    ("--publish 80", "HostConfig.PortBindings", {"80/tcp": [{"HostIp": "", "HostPort": ""}]}),
    ("--publish-all", "HostConfig.PublishAllPorts", True),
    ("--rm", "HostConfig.AutoRemove", True),
]

REFUSED: list[tuple[str, str]] = [
    ("--cpu-count 1", "windows"),
    ("--cpu-percent 50", "windows"),
    ("--io-maxbandwidth 1m", "windows"),
    ("--io-maxiops 100", "windows"),
    ("--cap-add NOSUCH", 'invalid CapAdd: unknown capability: "CAP_NOSUCH"'),
    ("--cpus 9999", "Range of CPUs is from 0.01 to"),
    ("--cpus 1 --cpu-period 5000", "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
    ("--cpu-rt-runtime 95000", "cpu.rt_runtime_us"),
    ("--cpuset-cpus 9999", "Invalid value 9999 for cpuset cpus"),
    ("--cpuset-cpus x", "Invalid value x for cpuset cpus"),
    ("--gpus all", 'could not select device driver "" with capabilities: [[gpu]]'),
    ("--device /dev/nosuch", 'error gathering device information while adding custom device "/dev/nosuch"'),
    ("--ip 172.17.0.99", "user specified IP address is supported on user defined networks only"),
    ("--ip6 fd00::9", "user specified IP address is supported on user defined networks only"),
    ("--ipc bad", "invalid ipc mode"),
    ("--ipc container:nosuch", "No such container: nosuch"),
    ("--pid container:nosuch", "No such container: nosuch"),
    ("--network container:nosuch", "No such container: nosuch"),
    ("--pid bad", "invalid pid mode"),
    ("--uts bad", "invalid uts mode"),
    ("--userns bad", "invalid user mode"),
    ("--isolation hyperv", "hyperv"),
    ("--link nosuch:alias", "nosuch"),
    ("--log-driver nosuch", "nosuch"),
    ("--log-opt nosuch=1", "unknown log opt 'nosuch' for json-file log driver"),
    ("--mac-address zz", "zz"),
    ("--memory 1m", "Minimum memory limit allowed is 6MB"),
    ("--memory 64m --memory-swap 32m", "Minimum memoryswap limit should be larger than memory limit"),
    ("--memory-swap 64m", "You should always set the Memory limit when using Memoryswap limit"),
    ("--memory-swappiness 200", "Valid memory swappiness range is 0-100"),
    ("--memory 64m --memory-reservation 128m", "Minimum memory limit can not be less than memory reservation limit"),
    ("--mount type=bind,src=/nosuch,dst=/x", "bind source path does not exist: /nosuch"),
    ("--oom-score-adj 5000", "range for oom score adj is [-1000, 1000]"),
    ("--pull sometimes", "invalid pull option: 'sometimes': must be one of"),
    ("--read-only=maybe", "invalid argument"),
    ("--rm --restart always", "onflicting options"),
    ("--restart always:3", "maximum retry count"),
    ("--security-opt nosuch=1", "invalid --security-opt"),
    ("--security-opt seccomp=/nosuch", "/nosuch"),
    ("--stop-signal NOSUCH", "NOSUCH"),
    ("--storage-opt size=1g", "--storage-opt is supported only for overlay"),
    ("--sysctl kernel.hostname=x", "kernel.hostname"),
    ("--sysctl nosuch.x=1", "nosuch"),
    ("--tmpfs /m:nosuch=1", "nosuch"),
    ("--ulimit nosuch=1", "invalid ulimit type: nosuch"),
    ("--ulimit nofile=9:8", "ulimit soft limit must be less than or equal to hard limit"),
    ("--user nosuch", "unable to find user nosuch: no matching entries in passwd file"),
    ("--group-add nosuch", "nosuch"),
    ("--volumes-from nosuch", "No such container: nosuch"),
    ("--workdir relative", "the working directory 'relative' is invalid, it needs to be an absolute path"),
    ("--cgroupns bad", "invalid cgroup mode"),
    ("-e =x", "invalid environment variable: =x"),
    ("--env-file /nosuch", "/nosuch"),
    ("--label-file /nosuch", "/nosuch"),
    ("--add-host bad", 'bad format for add-host: "bad"'),
    ("--dns bad", "bad"),
    ("--expose bad", "bad"),
    ("--attach bad", "valid streams are STDIN, STDOUT and STDERR"),
]


def value_at(inspected: dict[str, Any], path: str) -> Any:
    here: Any = inspected
    for part in path.split("."):
        here = here[part]
    return here


@pytest.fixture(scope="module", autouse=True)
def no_group_left() -> Iterator[None]:
    yield
    for group in [*Path("/sys/fs/cgroup").glob("*/flagtest"), Path("/sys/fs/cgroup/flagtest")]:
        if group.exists():
            group.rmdir()  # the parent a user names is the user's


@pytest.fixture
def flags_net(docker: Client) -> str:
    if not docker("network", "ls", "-q", "--filter", "name=^flags-net$").out:
        docker("network", "create", "--subnet", "10.77.0.0/24", "flags-net")
    return "flags-net"


@pytest.mark.parametrize(("flags", "command", "expected"), INSIDE, ids=[f"{row[0]}|{row[1][:24]}" for row in INSIDE])
def test_the_flag_is_felt_inside(
    cli: Client, target: str, flags_net: str, flags: str, command: str, expected: str
) -> None:
    if target == "dockerd" and flags.startswith(NOT_WITH_DOCKERD):
        pytest.skip("not with this machine's dockerd")
    given = [part.replace("c:1:5", "c 1:5 rwm") for part in flags.split()]
    shell = ["-c", command] if "--entrypoint" in flags else ["sh", "-c", command]
    result = cli("run", "--rm", *given, "bb", *shell)
    assert re.search(expected, result.out.replace("\r", ""), re.M), str(result)


@pytest.mark.parametrize(("flags", "path", "expected"), INSPECT, ids=[f"{row[0]}|{row[1]}" for row in INSPECT])
def test_the_flag_is_kept(cli: Client, name: str, flags: str, path: str, expected: Any) -> None:
    cli("create", "--name", name, *flags.split(), "bb", "true")
    assert value_at(cli.inspect(name), path) == expected


@pytest.mark.parametrize(("flags", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_the_mistake_is_refused_with_a_reason(cli: Client, name: str, flags: str, words: str) -> None:
    result = cli("run", "--name", name, *flags.split(), "bb", "true", check=False)
    assert result.code in ((1, 125) if words == "windows" else (125, 126, 127)), str(result)
    assert words.lower() in result.err.lower(), str(result)
    assert "Unable to find image" not in result.err


def test_files_name_variables_and_labels(cli: Client, name: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nA=1\nB=two words\n")
    (tmp_path / "labels").write_text("x=y\n")
    cid = tmp_path / "cid"
    cli(
        "run", "--name", name, "--env-file", str(tmp_path / "env"), "--label-file", str(tmp_path / "labels"),
        "--cidfile", str(cid), "bb", "true",
    )  # fmt: skip
    inspected = cli.inspect(name)
    assert {"A=1", "B=two words"} <= set(inspected["Config"]["Env"])
    assert inspected["Config"]["Labels"] == {"x": "y"}
    assert cid.read_text() == inspected["Id"]
    again = cli("run", "--rm", "--cidfile", str(cid), "bb", "true", check=False)
    assert again.code == 125
    assert "container ID file found" in again.err


def test_namespaces_and_volumes_of_another_container(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "--ipc", "shareable", "-v", "/shared", "bb", "sleep", "99")
    for kind in ("ipc", "pid"):
        theirs = cli("exec", name, "readlink", f"/proc/self/ns/{kind}").out
        ours = cli("run", "--rm", f"--{kind}", f"container:{name}", "bb", "readlink", f"/proc/self/ns/{kind}").out
        assert ours == theirs
    ours = cli("run", "--rm", "--network", f"container:{name}", "bb", "readlink", "/proc/self/ns/net").out
    assert ours == cli("exec", name, "readlink", "/proc/self/ns/net").out
    cli("run", "--rm", "--volumes-from", name, "bb", "touch", "/shared/x")
    assert cli("exec", name, "ls", "/shared").out == "x\n"
    linked = cli("run", "--rm", "--link", f"{name}:other", "bb", "cat", "/etc/hosts").out
    assert re.search(r"\tother ", linked)


def test_published_ports_have_every_form(cli: Client, name: str) -> None:
    cli(
        "run", "-d", "--name", name, "--expose", "7", "-P", "-p", "127.0.0.1::80", "-p", "18080:81/udp",
        "-p", "18081-18082:82-83", "bb", "sleep", "99",
    )  # fmt: skip
    ports = cli.inspect(name)["NetworkSettings"]["Ports"]
    assert ports["80/tcp"][0]["HostIp"] == "127.0.0.1"
    assert ports["81/udp"][0]["HostPort"] == "18080"
    assert (ports["82/tcp"][0]["HostPort"], ports["83/tcp"][0]["HostPort"]) == ("18081", "18082")
    assert int(ports["7/tcp"][0]["HostPort"]) > 1024


def test_newer_flags_are_kept(cli: Client, name: str, target: str) -> None:
    if target == "dockerd":
        pytest.skip("dockerd 20.10 does not know them")
    cli(
        "create",
        "--name",
        name,
        "--annotation",
        "a=b",
        "--health-start-interval",
        "2s",
        "--health-cmd",
        "true",
        "bb",
        "true",
    )
    inspected = cli.inspect(name)
    assert inspected["HostConfig"]["Annotations"] == {"a": "b"}
    assert inspected["Config"]["Healthcheck"]["StartInterval"] == 2_000_000_000


def test_a_failed_start_says_one_thing(cli: Client) -> None:
    result = cli("run", "--rm", "--name", "says-one-thing", "bb", "/nosuch", check=False)
    assert result.code == 127
    assert "Error waiting for container" not in result.err
    wait_for(lambda: not cli("ps", "-aq", "--filter", "name=says-one-thing").out, "the container to be removed")


def test_what_the_kernel_cannot_do_is_warned_of_and_left_out(cli: Client, name: str) -> None:
    if Path("/sys/fs/cgroup/blkio/blkio.weight").exists() or Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("this kernel has block I/O weights")
    made = cli("create", "--name", name, "--blkio-weight", "300", "--blkio-weight-device", "/dev/null:99", "bb", "true")
    assert "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded." in made.err
    assert "Your kernel does not support Block I/O weight_device" in made.err
    host_config = cli.inspect(name)["HostConfig"]
    assert (host_config["BlkioWeight"], host_config["BlkioWeightDevice"]) == (0, [])
    cli("start", "-a", name)
