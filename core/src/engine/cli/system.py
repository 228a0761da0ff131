"""``version``, ``info`` and ``system dial-stdio``."""

from __future__ import annotations

import os
import sys

from engine import __version__
from engine.cli.commands import Command
from engine.cli.containers import INSPECT_FORMAT_HELP
from engine.cli.failures import ApiFailure, Failure
from engine.cli.tables import aligned
from engine.cli.units import binary_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
NEWEST_API = "1.50"
_INFO_FORMAT = f"f format string {INSPECT_FORMAT_HELP}"


def _client_version(session: Session, api: str) -> dict[str, Any]:
    machine = os.uname().machine
    return {
        "Version": __version__,
        "ApiVersion": api or NEWEST_API,
        "DefaultAPIVersion": NEWEST_API,
        "PythonVersion": sys.version.split()[0],
        "Os": "linux",
        "Arch": ARCHITECTURES.get(machine, machine),
        "Context": session.context,
    }


def _apply(session: Session, template: str, value: dict[str, Any]) -> None:
    from engine.cli.templates import Template, TemplateError

    text = "{{json .}}" if template == "json" else template
    try:
        parsed = Template(text)
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}", 64) from None
    try:
        session.out(parsed.render(value))
    except TemplateError as error:
        raise Failure(str(error)) from None


def version(session: Session, flags: Flags) -> None:
    """Show the versions of the client and of the daemon."""
    failure = None
    server: dict[str, Any] | None = None
    try:
        server = session.client.get("/version")
    except Failure as error:
        failure = error
    api = min((server or {}).get("ApiVersion", NEWEST_API), NEWEST_API, key=_numbers)
    client = _client_version(session, api)
    if flags["format"]:
        # Go's field names differ from JSON's in places; templates use Go's.
        both = {"Client": {**client, "APIVersion": client["ApiVersion"]},
                "Server": server if server is None or flags["format"] == "json" else
                {**server, "APIVersion": server.get("ApiVersion")}}  # fmt: skip
        if flags["format"] == "json":
            both["Client"] = client
        _apply(session, flags["format"], both)
    else:
        session.out(*_version_lines(client, server))
    if failure is not None:
        raise failure


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _version_lines(client: dict[str, Any], server: dict[str, Any] | None) -> list[str]:
    downgraded = "" if client["ApiVersion"] == NEWEST_API else f" (downgraded from {NEWEST_API})"
    rows = [
        ["Client:"],
        [" Version:", client["Version"]],
        [" API version:", client["ApiVersion"] + downgraded],
        [" Python version:", client["PythonVersion"]],
        [" OS/Arch:", f"{client['Os']}/{client['Arch']}"],
        [" Context:", client["Context"]],
    ]
    if server is None:
        return aligned(rows, least=20, padding=1)
    platform = (server.get("Platform") or {}).get("Name")
    rows += [[""], ["Server:" + (f" {platform}" if platform else "")]]
    for component in server.get("Components") or []:
        details = component.get("Details") or {}
        rows += [[f" {component['Name']}:"], ["  Version:", component["Version"]]]
        if component["Name"] == "Engine":
            minimum = f"{details.get('ApiVersion', '')} (minimum version {details.get('MinAPIVersion', '')})"
            rows.append(["  API version:", minimum])
            for title, key in (("Go version", "GoVersion"), ("Python version", "PythonVersion"),
                               ("Git commit", "GitCommit"), ("Built", "BuildTime")):  # fmt: skip
                if details.get(key):
                    rows.append([f"  {title}:", details[key]])
            rows.append(["  OS/Arch:", f"{details.get('Os', '')}/{details.get('Arch', '')}"])
            rows.append(["  Experimental:", str(details.get("Experimental", "false"))])
        else:
            rows += [[f"  {key}:", str(value)] for key, value in sorted(details.items())]
    return aligned(rows, least=20, padding=1)


def info(session: Session, flags: Flags) -> None:
    """Show what the daemon says about itself."""
    client = {"Version": __version__, "Context": session.context, "Debug": bool(session.flags["debug"]), "Plugins": []}
    failure: Failure | None = None
    server: dict[str, Any] = {}
    try:
        server = session.client.get("/info")
    except Failure as error:
        failure = error
    if flags["format"]:
        if failure is not None:
            server = {"ServerErrors": [str(failure)]}
        _apply(session, flags["format"], {**server, "ClientInfo": client})
        if failure is not None:
            raise Failure("")
        return
    session.out("Client:", f" Version:    {__version__}", f" Context:    {client['Context']}",
                f" Debug Mode: {_bool(client['Debug'])}", "", "Server:")  # fmt: skip
    if failure is not None:
        raise Failure(f"ERROR: {failure}\nerrors pretty printing info" if isinstance(failure, ApiFailure) else
                      str(failure))  # fmt: skip
    session.out(*server_lines(server), "")
    if server.get("Warnings"):
        session.warn(*server["Warnings"])


def _bool(value: object) -> str:
    return "true" if value else "false"


def server_lines(server: dict[str, Any]) -> list[str]:
    """``info``'s text about the daemon."""
    lines = [
        f" Containers: {server.get('Containers', 0)}",
        f"  Running: {server.get('ContainersRunning', 0)}",
        f"  Paused: {server.get('ContainersPaused', 0)}",
        f"  Stopped: {server.get('ContainersStopped', 0)}",
        f" Images: {server.get('Images', 0)}",
    ]

    def some(title: str, value: Any) -> None:
        if value:
            lines.append(f"{title}: {value}")

    some(" Server Version", server.get("ServerVersion"))
    some(" Storage Driver", server.get("Driver"))
    lines.extend(f"  {name}: {value}" for name, value in server.get("DriverStatus") or [])
    some(" Logging Driver", server.get("LoggingDriver"))
    some(" Cgroup Driver", server.get("CgroupDriver"))
    some(" Cgroup Version", server.get("CgroupVersion"))
    plugins = server.get("Plugins") or {}
    lines.append(" Plugins:")
    for kind in ("Volume", "Network", "Authorization", "Log"):
        if kind != "Authorization" or plugins.get(kind):
            lines.append(f"  {kind}: {' '.join(plugins.get(kind) or [])}")
    if server.get("CDISpecDirs"):
        lines += [" CDI spec directories:", *(f"  {path}" for path in server["CDISpecDirs"])]
    swarm = server.get("Swarm") or {}
    lines.append(f" Swarm: {swarm.get('LocalNodeState', 'inactive')}")
    if swarm.get("LocalNodeState") not in (None, "", "inactive", "locked"):
        lines.append(f"  NodeID: {swarm.get('NodeID', '')}")
        some("  Error", swarm.get("Error"))
        lines.append(f"  Is Manager: {_bool(swarm.get('ControlAvailable'))}")
        lines.append(f"  Node Address: {swarm.get('NodeAddr', '')}")
    if server.get("Runtimes"):
        lines.append(f" Runtimes: {' '.join(server['Runtimes'])}")
        lines.append(f" Default Runtime: {server.get('DefaultRuntime', '')}")
    if server.get("OSType") == "linux":
        lines.append(f" Init Binary: {server.get('InitBinary', '')}")
        for title, key in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")):
            some(f" {title} version", (server.get(key) or {}).get("ID"))
        if server.get("SecurityOptions"):
            lines.append(" Security Options:")
            for option in server["SecurityOptions"]:
                fields = dict(part.partition("=")[::2] for part in option.split(","))
                lines.append(f"  {fields.get('name', option)}")
                if "profile" in fields:
                    lines.append(f"   Profile: {fields['profile']}")
    for title, key in (("Kernel Version", "KernelVersion"), ("Operating System", "OperatingSystem"),
                       ("OSType", "OSType"), ("Architecture", "Architecture")):  # fmt: skip
        some(f" {title}", server.get(key))
    lines.append(f" CPUs: {server.get('NCPU', 0)}")
    lines.append(f" Total Memory: {binary_size(server.get('MemTotal', 0))}")
    some(" Name", server.get("Name"))
    some(" ID", server.get("ID"))
    lines.append(f" Docker Root Dir: {server.get('DockerRootDir', '')}")
    lines.append(f" Debug Mode: {_bool(server.get('Debug'))}")
    if server.get("Debug"):
        lines += [f"  File Descriptors: {server.get('NFd', 0)}", f"  Goroutines: {server.get('NGoroutines', 0)}",
                  f"  System Time: {server.get('SystemTime', '')}",
                  f"  EventsListeners: {server.get('NEventsListener', 0)}"]  # fmt: skip
    for title, key in (("HTTP Proxy", "HttpProxy"), ("HTTPS Proxy", "HttpsProxy"), ("No Proxy", "NoProxy")):
        some(f" {title}", server.get(key))
    if server.get("Labels"):
        lines += [" Labels:", *(f"  {label}" for label in server["Labels"])]
    lines.append(f" Experimental: {_bool(server.get('ExperimentalBuild'))}")
    registry = server.get("RegistryConfig") or {}
    indexes = (registry.get("IndexConfigs") or {}).values()
    insecure = [index["Name"] for index in indexes if not index.get("Secure", True)]
    insecure += registry.get("InsecureRegistryCIDRs") or []
    if insecure or indexes:
        lines += [" Insecure Registries:", *(f"  {name}" for name in insecure)]
    if registry.get("Mirrors"):
        lines += [" Registry Mirrors:", *(f"  {mirror}" for mirror in registry["Mirrors"])]
    lines.append(f" Live Restore Enabled: {_bool(server.get('LiveRestoreEnabled'))}")
    some(" Product License", server.get("ProductLicense"))
    if server.get("DefaultAddressPools"):
        lines.append(" Default Address Pools:")
        lines += [f"   Base: {pool['Base']}, Size: {pool['Size']}" for pool in server["DefaultAddressPools"]]
    return lines


def dial_stdio(session: Session, flags: Flags) -> None:
    """Join standard input and output to a connection to the daemon (the far end of ``ssh://``)."""
    from engine.cli.streams import Pump

    Pump(session.client.connect(), b"", stdin=0, stdout=1, stderr=None, terminal=True).run()


COMMANDS = {
    "version": Command(version, "[OPTIONS]", _INFO_FORMAT),
    "info": Command(info, "[OPTIONS]", _INFO_FORMAT),
    "system dial-stdio": Command(dial_stdio, ""),
}
