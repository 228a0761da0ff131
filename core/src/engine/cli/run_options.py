"""From the flags of ``run`` and ``create`` to the body of the API's create call, as the docker CLI does it."""

from __future__ import annotations

import os

from engine.cli.failures import Failure
from engine.cli.flags import FlagError, Flags, parse_int
from engine.cli.run_values import (
    CDI,
    MAC,
    OptionError,
    added_host,
    attached_stream,
    cgroup_rule,
    checked_label,
    device_mapping,
    dns_server,
    effective_capabilities,
    endpoint,
    exposed,
    gpus,
    linked,
    matches,
    mount,
    pairs,
    published,
    sysctl,
    throttled,
    ulimit,
    weighted,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

FLAGS = """
- add-host list Add a custom host-to-IP mapping (host:ip)
- annotation map Add an annotation to the container (passed through to the OCI runtime) (default map[])
a attach list Attach to STDIN, STDOUT or STDERR
- blkio-weight uint16 Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)
- blkio-weight-device list Block IO weight (relative device weight) (default [])
- cap-add list Add Linux capabilities
- cap-drop list Drop Linux capabilities
- cgroup-parent string Optional parent cgroup for the container
- cgroupns string Cgroup namespace to use (host|private); empty: as configured by the daemon
- cidfile string Write the container ID to the file
- cpu-count int CPU count (Windows only)
- cpu-percent int CPU percent (Windows only)
- cpu-period int Limit CPU CFS (Completely Fair Scheduler) period
- cpu-quota int Limit CPU CFS (Completely Fair Scheduler) quota
- cpu-rt-period int Limit CPU real-time period in microseconds
- cpu-rt-runtime int Limit CPU real-time runtime in microseconds
c cpu-shares int CPU shares (relative weight)
- cpus decimal Number of CPUs
- cpuset-cpus string CPUs in which to allow execution (0-3, 0,1)
- cpuset-mems string MEMs in which to allow execution (0-3, 0,1)
- device list Add a host device to the container
- device-cgroup-rule list Add a rule to the cgroup allowed devices list
- device-read-bps list Limit read rate (bytes per second) from a device (default [])
- device-read-iops list Limit read rate (IO per second) from a device (default [])
- device-write-bps list Limit write rate (bytes per second) to a device (default [])
- device-write-iops list Limit write rate (IO per second) to a device (default [])
- !disable-content-trust bool=true Skip image verification
- dns list Set custom DNS servers
- !dns-opt list Set DNS options
- dns-option list Set DNS options
- dns-search list Set custom DNS search domains
- domainname string Container NIS domain name
- entrypoint string Overwrite the default ENTRYPOINT of the image
e env list Set environment variables
- env-file list Read in a file of environment variables
- expose list Expose a port or a range of ports
- gpus gpu-request GPU devices to add to the container ('all' to pass all GPUs)
- group-add list Add additional groups to join
- health-cmd string Command to run to check health
- health-interval duration Time between running the check (ms|s|m|h) (default 0s)
- health-retries int Consecutive failures needed to report unhealthy
- health-start-interval duration Time between running the check during the start period (ms|s|m|h) (default 0s)
- health-start-period duration Start period for the container to initialize before starting health-retries countdown \
(ms|s|m|h) (default 0s)
- health-timeout duration Maximum time to allow one check to run (ms|s|m|h) (default 0s)
h hostname string Container host name
- init bool Run an init inside the container that forwards signals and reaps processes
i interactive bool Keep STDIN open even if not attached
- io-maxbandwidth bytes Maximum IO bandwidth limit for the system drive (Windows only)
- io-maxiops uint Maximum IOps limit for the system drive (Windows only)
- ip string IPv4 address (e.g., 172.30.100.104)
- ip6 string IPv6 address (e.g., 2001:db8::33)
- ipc string IPC mode to use
- isolation string Container isolation technology
- kernel-memory bytes Kernel memory limit
l label list Set meta data on a container
- label-file list Read in a line delimited file of labels
- link list Add link to another container
- link-local-ip list Container IPv4/IPv6 link-local addresses
- log-driver string Logging driver for the container
- log-opt list Log driver options
- mac-address string Container MAC address (e.g., 92:d0:c6:0a:29:33)
m memory bytes Memory limit
- memory-reservation bytes Memory soft limit
- memory-swap swap Swap limit equal to memory plus swap: '-1' to enable unlimited swap
- memory-swappiness int=-1 Tune container memory swappiness (0 to 100) (default -1)
- mount mount Attach a filesystem mount to the container
- name string Assign a name to the container
- !net network Connect a container to a network
- !net-alias list Add network-scoped alias for the container
- network network Connect a container to a network
- network-alias list Add network-scoped alias for the container
- no-healthcheck bool Disable any container-specified HEALTHCHECK
- oom-kill-disable bool Disable OOM Killer
- oom-score-adj int Tune host's OOM preferences (-1000 to 1000)
- pid string PID namespace to use
- pids-limit int Tune container pids limit (set -1 for unlimited)
- platform string Set platform if server is multi-platform capable
- privileged bool Give extended privileges to this container
p publish list Publish a container's port(s) to the host
P publish-all bool Publish all exposed ports to random ports
- pull string=missing Pull image before running ("always", "missing", "never") (default "missing")
q quiet bool Suppress the pull output
- read-only bool Mount the container's root filesystem as read only
- restart string=no Restart policy to apply when a container exits (default "no")
- rm bool Automatically remove the container and its associated anonymous volumes when it exits
- runtime string Runtime to use for this container
- security-opt list Security Options
- shm-size bytes Size of /dev/shm
- stop-signal string Signal to stop the container
- stop-timeout int Timeout (in seconds) to stop a container
- storage-opt list Storage driver options for the container
- sysctl map Sysctl options (default map[])
- tmpfs list Mount a tmpfs directory
t tty bool Allocate a pseudo-TTY
- ulimit ulimit Ulimit options (default [])
- use-api-socket bool Bind mount the API socket
u user string Username or UID (format: <name|uid>[:<group|gid>])
- userns string User namespace to use
- uts string UTS namespace to use
v volume list Bind mount a volume
- volume-driver string Optional volume driver for the container
- volumes-from list Mount volumes from the specified container(s)
w workdir string Working directory inside the container
"""

WINDOWS_ONLY = ("cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops")


def _file_lines(path: str, flag: str, lookup: Callable[[str], str | None]) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            content = file.read().split("\n")
    except OSError as error:
        raise OptionError(f"open {path}: {(error.strerror or '').lower()}") from None
    found = []
    for line in content:
        line = line.removesuffix("\r").lstrip()
        if not line or line[0] == "#":
            continue
        name, equals, _ = line.partition("=")
        if not name:
            raise OptionError(f"--{flag}: invalid env file ({path}): no variable name on line '{line}'")
        if any(space in name for space in " \t"):
            raise OptionError(f"--{flag}: invalid env file ({path}): variable '{name}' contains whitespaces")
        if equals:
            found.append(line)
        elif (value := lookup(name)) is not None:
            found.append(f"{name}={value}")
    return found


def environment(files: Iterable[str], texts: Iterable[str]) -> list[str]:
    """``--env-file`` and ``--env``; a bare name takes the client's value."""
    result: list[str] = []
    for path in files:
        result += _file_lines(path, "env-file", os.environ.get)
    for text in texts:
        name, equals, _ = text.partition("=")
        if not name:
            raise FlagError(f'invalid argument "{text}" for "-e, --env" flag: invalid environment variable: {text}')
        value = os.environ.get(name)
        result.append(text if equals or value is None else f"{name}={value}")
    return result


def restart_policy(text: str) -> dict[str, Any]:
    """``no``, ``always``, ``unless-stopped``, ``on-failure[:count]``."""
    if not text:
        return {"Name": "", "MaximumRetryCount": 0}
    name, colon, count = text.partition(":")
    if colon and not name:
        raise OptionError("invalid restart policy format: no policy provided before colon")
    retries = 0
    if count:
        try:
            retries = parse_int(count)
        except ValueError:
            raise OptionError("invalid restart policy format: maximum retry count must be an integer") from None
    return {"Name": name, "MaximumRetryCount": retries}


def _security_options(texts: list[str]) -> list[str]:
    result = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals and key != "no-new-privileges":
            key, equals, value = text.partition(":")
        if (not equals or not value) and key != "no-new-privileges":
            raise OptionError(f'Invalid --security-opt: "{text}"')
        if key == "seccomp" and value not in ("unconfined", "builtin"):
            import json

            try:
                with open(value, "rb") as file:
                    profile = json.load(file)
            except OSError as error:
                raise OptionError(f"opening seccomp profile ({value}) failed: open {value}: "
                                  f"{(error.strerror or '').lower()}") from None  # fmt: skip
            except ValueError as error:
                raise OptionError(f"compacting json for seccomp profile ({value}) failed: {error}") from None
            text = "seccomp=" + json.dumps(profile, separators=(",", ":"))
        result.append(text)
    return result


def _mode(name: str, text: str, kinds: set[str], label: str) -> str:
    kind, colon, rest = text.partition(":")
    if text in kinds or (kind == "container" and colon and rest and "container" in kinds):
        return text
    raise OptionError(f"--{name}: invalid {label} mode")


def _user_defined(network: str) -> bool:
    return network not in ("", "default", "bridge", "host", "none") and not network.startswith("container:")


def _networks(flags: Flags) -> tuple[str, dict[str, Any]]:
    given = flags["network"] + flags["net"]
    chosen: list[tuple[str, dict[str, Any]]] = []
    for text in given:
        try:
            chosen.append(endpoint(text))
        except ValueError as error:
            raise flags.invalid("network", text, error) from None
    aliases = flags["network-alias"] + flags["net-alias"]
    first, settings = chosen[0] if chosen else ("default", {})
    old = {"Aliases": aliases, "MacAddress": flags["mac-address"], "IPAMConfig": {
        key: value for key, value in (("IPv4Address", flags["ip"]), ("IPv6Address", flags["ip6"]),
                                      ("LinkLocalIPs", flags["link-local-ip"])) if value}}  # fmt: skip
    if _user_defined(first):
        old["Links"] = flags["link"]
    conflicts = {"Aliases": "--network-alias and per-network alias", "Links": "--link and per-network links",
                 "MacAddress": "--mac-address and per-network MAC address",
                 "IPAMConfig": "--ip and per-network IPv4 address"}  # fmt: skip
    for key, value in old.items():
        if value and settings.get(key):
            raise OptionError(f"conflicting options: cannot specify both {conflicts[key]}")
        if value:
            settings[key] = value
    endpoints: dict[str, Any] = {}
    for name, extra in chosen or [("default", settings)]:
        if name in endpoints:
            raise OptionError(f'network "{name}" is specified multiple times')
        if not _user_defined(name):
            if extra.get("Aliases"):
                raise OptionError("network-scoped aliases are only supported for user-defined networks")
            if extra.get("Links"):
                raise OptionError("links are only supported for user-defined networks")
        if extra.get("MacAddress") and not matches(MAC, extra["MacAddress"].strip()):
            raise OptionError(f"{extra['MacAddress']} is not a valid mac address")
        endpoints[name] = extra
    kinds = {_user_defined(name) for name, _ in chosen}
    if len(kinds) > 1:
        raise OptionError("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
    if len(chosen) == 1 and not endpoints[first]:
        endpoints = {}
    return first if chosen else "default", endpoints


def _volumes(texts: list[str]) -> tuple[list[str], dict[str, Any]]:
    binds: list[str] = []
    anonymous: dict[str, Any] = {}
    for text in texts:
        if not text:
            raise OptionError("invalid empty volume spec")
        source, colon, rest = text.partition(":")
        if not colon:
            anonymous[text] = {}
            continue
        if source.startswith("."):
            text = f"{os.path.abspath(source)}:{rest}"
        if text not in binds:
            binds.append(text)
    return binds, anonymous


def _health(flags: Flags) -> dict[str, Any] | None:
    fields = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod",
              "start-interval": "StartInterval", "retries": "Retries"}  # fmt: skip
    settings = {field: flags[f"health-{name}"] for name, field in fields.items()}
    wanted = bool(flags["health-cmd"]) or any(settings.values())
    if flags["no-healthcheck"]:
        if wanted:
            raise OptionError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not wanted:
        return None
    for name, field in fields.items():
        if settings[field] < 0:
            raise OptionError(f"--health-{name} cannot be negative")
    test = ["CMD-SHELL", flags["health-cmd"]] if flags["health-cmd"] else None
    return {"Test": test, **settings}


def _converted(flags: Flags, name: str, convert: Callable[[str], Any]) -> list[Any]:
    result = []
    for text in flags[name]:
        try:
            result.append(convert(text))
        except ValueError as error:
            raise flags.invalid(name, text, error) from None
    return result


def resources(flags: Flags) -> dict[str, Any]:
    """The limits, a part of HostConfig."""
    names = {
        "CgroupParent": "cgroup-parent", "Memory": "memory", "MemoryReservation": "memory-reservation",
        "MemorySwap": "memory-swap", "MemorySwappiness": "memory-swappiness", "OomKillDisable": "oom-kill-disable",
        "NanoCpus": "cpus", "CpuCount": "cpu-count", "CpuPercent": "cpu-percent", "CpuShares": "cpu-shares",
        "CpuPeriod": "cpu-period", "CpusetCpus": "cpuset-cpus", "CpusetMems": "cpuset-mems", "CpuQuota": "cpu-quota",
        "CpuRealtimePeriod": "cpu-rt-period", "CpuRealtimeRuntime": "cpu-rt-runtime", "PidsLimit": "pids-limit",
        "BlkioWeight": "blkio-weight", "IOMaximumIOps": "io-maxiops", "IOMaximumBandwidth": "io-maxbandwidth",
    }  # fmt: skip
    swappiness = flags["memory-swappiness"]
    if not -1 <= swappiness <= 100:
        raise OptionError(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    devices = [device for device in flags["device"] if not matches(CDI, device)]
    requests = _converted(flags, "gpus", gpus)
    cdi = [device for device in flags["device"] if matches(CDI, device)]
    if cdi:
        requests.append({"Driver": "cdi", "Count": 0, "DeviceIDs": cdi, "Capabilities": None, "Options": None})
    return {
        **{field: flags[name] for field, name in names.items()},
        "BlkioWeightDevice": _converted(flags, "blkio-weight-device", weighted),
        "BlkioDeviceReadBps": _converted(flags, "device-read-bps", throttled(True)),
        "BlkioDeviceWriteBps": _converted(flags, "device-write-bps", throttled(True)),
        "BlkioDeviceReadIOps": _converted(flags, "device-read-iops", throttled(False)),
        "BlkioDeviceWriteIOps": _converted(flags, "device-write-iops", throttled(False)),
        "Ulimits": sorted(_converted(flags, "ulimit", ulimit), key=lambda limit: str(limit["Name"])),
        "DeviceCgroupRules": _converted(flags, "device-cgroup-rule", cgroup_rule),
        "Devices": [device_mapping(device) for device in devices],
        "DeviceRequests": requests or None,
    }


def create_body(flags: Flags, *, detach: bool = False, proxies: Iterable[str] = ()) -> dict[str, Any]:
    """The body of POST /containers/create. Raises `OptionError` and `engine.cli.flags.FlagError`."""
    foreign = [name for name in WINDOWS_ONLY if flags.changed(name)]
    if foreign:
        raise Failure("\n".join(f'"--{name}" is only supported on a Docker daemon running on windows, but the Docker '
                                "daemon is running on linux" for name in foreign))  # fmt: skip
    image, *command = flags.arguments
    streams = _converted(flags, "attach", attached_stream)
    if detach and streams:
        raise OptionError("conflicting options: cannot specify both --attach and --detach")
    attach = {name: (not streams and name != "stdin") or name in streams for name in ("stdin", "stdout", "stderr")}
    attach["stdin"] = attach["stdin"] or flags["interactive"]
    if detach:
        attach = dict.fromkeys(attach, False)
    binds, anonymous = _volumes(flags["volume"])
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in flags["publish"]:
        for key, binding in published(text):
            bindings.setdefault(key, []).append(binding)
    opened: dict[str, Any] = {key: {} for key in bindings}
    for text in flags["expose"]:
        opened.update({key: {} for key in exposed(text)})
    entrypoint = None
    if flags.changed("entrypoint"):
        entrypoint = [flags["entrypoint"]]
    labels = [line for path in flags["label-file"] for line in _file_lines(path, "label-file", lambda name: "")]
    security = _security_options(flags["security-opt"])
    unconfined = "systempaths=unconfined" in security
    restart = restart_policy(flags["restart"])
    if flags["rm"] and restart["Name"] not in ("", "no"):
        raise OptionError("conflicting options: cannot specify both --restart and --rm")
    if flags["log-driver"] == "none" and flags["log-opt"]:
        raise OptionError("invalid logging opts for driver none")
    if any("=" not in option for option in flags["storage-opt"]):
        raise OptionError("invalid storage option")
    mode, endpoints = _networks(flags)
    added, dropped = effective_capabilities(flags["cap-add"], flags["cap-drop"])
    config: dict[str, Any] = {
        "Hostname": flags["hostname"],
        "Domainname": flags["domainname"],
        "User": flags["user"],
        "AttachStdin": attach["stdin"],
        "AttachStdout": attach["stdout"],
        "AttachStderr": attach["stderr"],
        "ExposedPorts": opened,
        "Tty": flags["tty"],
        "OpenStdin": flags["interactive"],
        "StdinOnce": flags["interactive"] and attach["stdin"],
        "Env": [*proxies, *environment(flags["env-file"], flags["env"])],
        "Cmd": command or None,
        "Image": image,
        "Volumes": anonymous,
        "WorkingDir": flags["workdir"],
        "Entrypoint": entrypoint,
        "Labels": pairs([*labels, *_converted(flags, "label", checked_label)]),
        "StopSignal": flags["stop-signal"],
    }
    if flags.changed("stop-timeout"):
        config["StopTimeout"] = flags["stop-timeout"]
    health = _health(flags)
    if health is not None:
        config["Healthcheck"] = health
    host: dict[str, Any] = {
        "Binds": binds or None,
        "ContainerIDFile": flags["cidfile"],
        "LogConfig": {"Type": flags["log-driver"], "Config": pairs(flags["log-opt"])},
        "NetworkMode": mode,
        "PortBindings": bindings,
        "RestartPolicy": restart,
        "AutoRemove": flags["rm"],
        "VolumeDriver": flags["volume-driver"],
        "VolumesFrom": flags["volumes-from"] or None,
        "CapAdd": added or None,
        "CapDrop": dropped or None,
        "CgroupnsMode": _mode("cgroupns", flags["cgroupns"], {"", "host", "private"}, "CGROUP"),
        "Dns": _converted(flags, "dns", dns_server),
        "DnsOptions": flags["dns-option"] + flags["dns-opt"],
        "DnsSearch": flags["dns-search"],
        "ExtraHosts": _converted(flags, "add-host", added_host) or None,
        "GroupAdd": flags["group-add"] or None,
        "IpcMode": flags["ipc"],
        "Links": _converted(flags, "link", linked) or None,
        "OomScoreAdj": flags["oom-score-adj"],
        "PidMode": _mode("pid", flags["pid"], {"", "host", "container"}, "PID"),
        "Privileged": flags["privileged"],
        "PublishAllPorts": flags["publish-all"],
        "ReadonlyRootfs": flags["read-only"],
        "SecurityOpt": [option for option in security if option != "systempaths=unconfined"] or None,
        "StorageOpt": pairs(flags["storage-opt"]),
        "Tmpfs": {text.partition(":")[0]: text.partition(":")[2] for text in flags["tmpfs"]},
        "UTSMode": _mode("uts", flags["uts"], {"", "host"}, "UTS"),
        "UsernsMode": _mode("userns", flags["userns"], {"", "host"}, "USER"),
        "ShmSize": flags["shm-size"],
        "Sysctls": pairs(_converted(flags, "sysctl", sysctl)),
        "Runtime": flags["runtime"],
        "Isolation": flags["isolation"],
        "Annotations": pairs(flags["annotation"]),
        "Mounts": _converted(flags, "mount", mount),
        "MaskedPaths": [] if unconfined else None,
        "ReadonlyPaths": [] if unconfined else None,
        **resources(flags),
    }
    if flags.changed("init"):
        host["Init"] = flags["init"]
    return {**config, "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": endpoints}}
