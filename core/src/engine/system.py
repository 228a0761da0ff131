"""What the engine says about itself: version, info, disk usage, its identity and its plugins."""

from __future__ import annotations

import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import __version__
from engine.errors import EngineError
from engine.platforms import host_platform
from engine.timestamps import rfc3339

if TYPE_CHECKING:
    from engine.config import Config
    from engine.containers import Containers
    from engine.events import Events
    from engine.images import Images
    from engine.networks import Networks
    from engine.plugins import PluginReport, Plugins
    from engine.volumes import Volumes
    from engine.workers import Workers

__all__ = ["BUILD_TIME", "GIT_COMMIT", "System"]

GIT_COMMIT = "unknown"
BUILD_TIME = "1970-01-01T00:00:00.000000000+00:00"

INDEX_SERVER = "https://index.docker.io/v1/"


class System:
    """Facts about this engine and its host; holds no state but the engine's id."""

    def __init__(
        self,
        *,
        config: Config,
        workers: Workers,
        events: Events,
        plugins: Plugins,
        images: Images,
        networks: Networks,
        volumes: Volumes,
        containers: Containers,
    ) -> None:
        self._config = config
        self._workers = workers
        self._events = events
        self._plugins = plugins
        self._images = images
        self._networks = networks
        self._volumes = volumes
        self._containers = containers
        self._facts: dict[str, Any] = {}
        self._security: list[str] = []
        self.id = _engine_id(config.root / "engine-id")

    # -- version --------------------------------------------------------------------------------------------

    def version(self, api: str, minimum: str) -> dict[str, Any]:
        """Docker's ``/version`` body for the API versions ``api`` (newest) and ``minimum``."""
        host = host_platform()
        kernel = os.uname().release
        own = {
            "ApiVersion": api,
            "Arch": host.architecture,
            "BuildTime": BUILD_TIME,
            "Experimental": "true" if self._config.experimental else "false",
            "GitCommit": GIT_COMMIT,
            "GoVersion": "",
            "KernelVersion": kernel,
            "MinAPIVersion": minimum,
            "Os": host.os,
            "PythonVersion": platform.python_version(),
        }
        return {
            "Platform": {"Name": "Engine - Community"},
            "Components": [{"Name": "Engine", "Version": __version__, "Details": own}],
            "Version": __version__,
            "ApiVersion": api,
            "MinAPIVersion": minimum,
            "GitCommit": GIT_COMMIT,
            "GoVersion": "",
            "Os": host.os,
            "Arch": host.architecture,
            "KernelVersion": kernel,
            "BuildTime": BUILD_TIME,
        }

    # -- info -----------------------------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        """Docker's ``/info`` body. Facts of the host that cannot change are read once."""
        if not self._facts:
            self._facts = await self._workers.call(_host_facts)
            self._security = await self._workers.call(self._security_options)
        status = await self._workers.call(self._store_status)
        runtime = await self._workers.call(self._default_runtime)
        states = [container.state.status for container in self._containers.all()]
        running = sum(state in ("running", "restarting") for state in states)
        paused = states.count("paused")
        config = self._config
        return {
            "ID": self.id,
            "Containers": len(states),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": len(states) - running - paused,
            "Images": self._images.count(),
            "Driver": self._images.store_name,
            "DriverStatus": status,
            "Plugins": {
                "Volume": self._plugins.names("volume"),
                "Network": self._plugins.names("network"),
                "Authorization": None,
                "Log": self._plugins.names("log"),
            },
            **self._facts,
            "IPv4Forwarding": _flag("/proc/sys/net/ipv4/ip_forward"),
            "Debug": config.debug,
            "NFd": len(os.listdir("/proc/self/fd")),
            "NGoroutines": _threads(),
            "SystemTime": rfc3339(time.time_ns()),
            "LoggingDriver": config.log_driver,
            "CgroupDriver": "cgroupfs",
            "NEventsListener": self._events.listeners,
            "IndexServerAddress": INDEX_SERVER,
            "RegistryConfig": _registry_config(config),
            "GenericResources": None,
            "DockerRootDir": str(config.root),
            "HttpProxy": _without_password(config.proxy("http-proxy")),
            "HttpsProxy": _without_password(config.proxy("https-proxy")),
            "NoProxy": config.proxy("no-proxy"),
            "Name": socket.gethostname(),
            "Labels": list(config.labels),
            "ExperimentalBuild": config.experimental,
            "ServerVersion": __version__,
            "Runtimes": self._runtimes(),
            "DefaultRuntime": runtime,
            "Swarm": {
                "NodeID": "",
                "NodeAddr": "",
                "LocalNodeState": "inactive",
                "ControlAvailable": False,
                "Error": "",
                "RemoteManagers": None,
            },
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": self._containers.settings.host.init.rsplit("/", 1)[-1] or "docker-init",
            "ContainerdCommit": {"ID": "", "Expected": ""},
            "RuncCommit": {"ID": "", "Expected": ""},
            "InitCommit": {"ID": "", "Expected": ""},
            "SecurityOptions": self._security,
            "CDISpecDirs": list(config.cdi_spec_dirs),
            "DefaultAddressPools": [
                {"Base": pool["base"], "Size": pool["size"]} for pool in config.default_address_pools
            ],
            "Warnings": self._warnings(),
        }

    def _store_status(self) -> list[list[str]]:
        """What the image store says of itself, when it does (``status()``), as pairs."""
        status = getattr(self._images.driver, "status", None)
        pairs: Mapping[str, str] = status() if callable(status) else {}
        return [[key, str(value)] for key, value in pairs.items()]

    def _default_runtime(self) -> str:
        try:
            return self._plugins.runtime_for(host_platform())
        except EngineError:
            return self._config.default_runtime

    def _runtimes(self) -> dict[str, dict[str, Any]]:
        custom = self._config.runtimes
        found: dict[str, dict[str, Any]] = {}
        for name in self._plugins.names("runtime"):
            entry = custom.get(name)
            if entry is not None:
                found[name] = dict(entry)
                continue
            found[name] = {"path": name}
            aliases = self._plugins.describe("runtime", name).aliases
            found |= {alias: {"path": name} for alias in aliases if alias.startswith("io.containerd.")}
        return found

    def _security_options(self) -> list[str]:
        offered: Iterable[Iterable[str]] = self._plugins.hooks.engine_security_options()
        options = [text for group in offered for text in group]
        if self._config.no_new_privileges:
            options.append("name=no-new-privileges")
        if self._facts.get("CgroupVersion") == "2" and "name=cgroupns" not in options:
            options.append("name=cgroupns")
        return options

    def _warnings(self) -> list[str] | None:
        warnings = list(self._plugins.warnings())
        facts = self._facts
        for key, text in (("MemoryLimit", "No memory limit support"), ("SwapLimit", "No swap limit support")):
            if not facts[key]:
                warnings.append(f"WARNING: {text}")
        if not _flag("/proc/sys/net/ipv4/ip_forward"):
            warnings.append("WARNING: IPv4 forwarding is disabled")
        for host in self._config.listen:
            if host.startswith("tcp://"):
                warnings.append(
                    f"WARNING: API is accessible on http://{host[6:]} without encryption.\n"
                    "         Access to the remote API is equivalent to root access on the host."
                )
        return warnings or None

    # -- disk usage -----------------------------------------------------------------------------------------

    async def disk_usage(self, types: Iterable[str] = ()) -> dict[str, Any]:
        """Docker's ``/system/df`` body, of the ``types`` asked for (``container``, ``image``, ``volume``,
        ``build-cache``); all when none is."""
        wanted = set(types) or {"container", "image", "volume", "build-cache"}
        body: dict[str, Any] = {
            "LayersSize": 0,
            "Images": None,
            "Containers": None,
            "Volumes": None,
            "BuildCache": None,
        }
        if "image" in wanted:
            usage = await self._images.disk_usage()
            body["LayersSize"] = usage.get("LayersSize", 0)
            body["Images"] = usage.get("Images", [])
        if "container" in wanted:
            await self._containers.measure()
            body["Containers"] = self._containers.list(all=True, size=True)
        if "volume" in wanted:
            body["Volumes"] = list(await self._volumes.usage())
        if "build-cache" in wanted:
            body["BuildCache"] = []
        return body

    # -- plugins and configuration --------------------------------------------------------------------------

    async def plugins(self) -> list[PluginReport]:
        """Every plugin found, with what it provides or why it does not."""
        return await self._workers.call(self._plugins.report)

    async def announce_reload(self) -> None:
        """Publish the daemon's ``reload`` event with the reloadable settings, as dockerd does."""
        config = self._config
        attributes = {
            "name": socket.gethostname(),
            "debug": str(config.debug).lower(),
            "labels": _json_list(config.labels),
            "live-restore": "true",
            "max-concurrent-downloads": str(config.max_concurrent_downloads),
            "max-concurrent-uploads": str(config.max_concurrent_uploads),
            "max-download-attempts": str(config.max_download_attempts),
            "shutdown-timeout": str(config.shutdown_timeout),
            "default-runtime": config.default_runtime,
            "runtimes": " ".join(sorted(self._plugins.names("runtime"))),
            "registry-mirrors": _json_list(config.registry_mirrors),
            "insecure-registries": _json_list(config.insecure_registries),
        }
        await self._events.publish("daemon", "reload", self.id, attributes)


def _engine_id(path: Path) -> str:
    """The id of this engine: made once, kept with its data."""
    try:
        text = path.read_text().strip()
        if text:
            return text
    except FileNotFoundError:
        pass
    identifier = str(uuid.uuid4())
    temporary = path.with_suffix(".new")
    temporary.write_text(identifier + "\n")
    os.replace(temporary, path)
    return identifier


def _json_list(values: Iterable[str]) -> str:
    return "[" + ",".join(f'"{value}"' for value in values) + "]"


def _threads() -> int:
    import threading

    return threading.active_count()


def _flag(path: str) -> bool:
    try:
        return Path(path).read_text().strip() == "1"
    except OSError:
        return False


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{scheme}{separator}xxxxx:xxxxx@{host}" if at and credentials else url


def _registry_config(config: Config) -> dict[str, Any]:
    insecure = list(config.insecure_registries)
    networks = [text for text in insecure if "/" in text]
    mirrors = [mirror if mirror.endswith("/") else mirror + "/" for mirror in config.registry_mirrors]
    indexes: dict[str, Any] = {
        "docker.io": {"Name": "docker.io", "Mirrors": mirrors, "Secure": True, "Official": True},
    }
    for name in insecure:
        if "/" not in name:
            indexes[name] = {"Name": name, "Mirrors": [], "Secure": False, "Official": False}
    return {
        "AllowNondistributableArtifactsCIDRs": None,
        "AllowNondistributableArtifactsHostnames": None,
        "InsecureRegistryCIDRs": [*networks, "::1/128", "127.0.0.0/8"],
        "IndexConfigs": indexes,
        "Mirrors": mirrors or None,
    }


def _host_facts() -> dict[str, Any]:
    """What is fixed while the host is up: kernel, processors, memory, control groups."""
    uname = os.uname()
    release = _os_release()
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    controllers = _controllers(unified)
    cgroup: Callable[[str], bool] = lambda path: unified or os.path.exists(f"/sys/fs/cgroup/{path}")  # noqa: E731
    memory = "memory" in controllers
    return {
        "MemoryLimit": memory,
        "SwapLimit": memory and (unified or cgroup("memory/memory.memsw.limit_in_bytes")),
        "CpuCfsPeriod": "cpu" in controllers and cgroup("cpu/cpu.cfs_period_us"),
        "CpuCfsQuota": "cpu" in controllers and cgroup("cpu/cpu.cfs_quota_us"),
        "CPUShares": "cpu" in controllers,
        "CPUSet": "cpuset" in controllers,
        "PidsLimit": "pids" in controllers,
        "OomKillDisable": memory and not unified,
        "BridgeNfIptables": False,
        "BridgeNfIp6tables": False,
        "CgroupVersion": "2" if unified else "1",
        "KernelVersion": uname.release,
        "OperatingSystem": release.get("PRETTY_NAME", "Linux"),
        "OSVersion": release.get("VERSION_ID", ""),
        "OSType": "linux",
        "Architecture": uname.machine,
        "NCPU": len(os.sched_getaffinity(0)),
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _controllers(unified: bool) -> set[str]:
    try:
        if unified:
            return set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())
        lines = Path("/proc/cgroups").read_text().splitlines()
    except OSError:
        return set()
    return {fields[0] for line in lines if not line.startswith("#") and (fields := line.split())[3] == "1"}


def _os_release() -> dict[str, str]:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            text = Path(path).read_text()
        except OSError:
            continue
        pairs = (line.partition("=")[::2] for line in text.splitlines() if "=" in line)
        return {key: value.strip("\"'") for key, value in pairs}
    return {}
