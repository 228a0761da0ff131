"""``ps``, ``port``, ``top`` and ``diff``: what there is to know about containers, as tables."""

from __future__ import annotations

import time

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.failures import Failure
from engine.cli.session import filters
from engine.cli.tables import Columns, aligned, show, wanted_format
from engine.cli.units import human_duration, human_size, unix_local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

_REFER = (
    r"\nRefer to https://docs.docker.com/go/formatting/ for more information about formatting output with templates"
)
_TEMPLATES = r"'json':             Print in JSON format\n'TEMPLATE':         Print output using the given Go template."
FORMAT_HELP = (r"Format output using a custom template:\n"
               r"'table':            Print output in table format with column headers (default)\n"
               r"'table TEMPLATE':   Print output in table format using the given Go template\n"
               f"{_TEMPLATES}{_REFER}")  # fmt: skip
INSPECT_FORMAT_HELP = rf"Format output using a custom template:\n{_TEMPLATES}{_REFER}"


def ellipsis(text: str, width: int) -> str:
    """Cut to ``width`` characters, the last one an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "…"


def quoted(text: str) -> str:
    """Go's strconv.Quote, without the template engine for the usual text."""
    if text.isprintable():
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    from engine.cli.template_values import quote

    return quote(text)


def trimmed_image(record: dict[str, Any], full: bool) -> str:
    """The image as ``ps`` shows it: a short id, or the name without its digest."""
    image: str = record.get("Image") or ""
    if not image:
        return "<no image>"
    if full:
        return image
    identifier = image.removeprefix("sha256:")
    if identifier[:12] == (record.get("ImageID") or "").removeprefix("sha256:")[:12]:
        return identifier[:12]
    return str(image.partition("@")[0]) or image


def _names(record: dict[str, Any], full: bool) -> str:
    names: list[str] = [name.removeprefix("/") for name in record.get("Names") or []]
    if not full:
        for name in names:
            if "/" not in name:
                return name
    return ",".join(names)


def displayable_ports(ports: list[dict[str, Any]]) -> str:
    """``0.0.0.0:80->80/tcp, 9988/tcp``; runs of equal ports become ranges."""
    ordered = sorted(ports, key=lambda port: (port.get("PrivatePort", 0), port.get("IP") or "",
                                              port.get("PublicPort") or 0, port.get("Type") or ""))  # fmt: skip
    groups: dict[tuple[str, str], list[int]] = {}
    shown: list[str] = []
    mapped: list[str] = []

    def bracketed(address: str) -> str:
        return f"[{address}]" if ":" in address else address

    def group_text(key: tuple[str, str], span: list[int]) -> str:
        text = str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
        if key[0]:
            text = f"{bracketed(key[0])}:{text}->{text}"
        return f"{text}/{key[1]}"

    for port in ordered:
        private, public = port.get("PrivatePort", 0), port.get("PublicPort") or 0
        address, protocol = port.get("IP") or "", port.get("Type") or ""
        if address and public != private:
            mapped.append(f"{bracketed(address)}:{public}->{private}/{protocol}")
            continue
        key = (address, protocol)
        span = groups.get(key)
        if span is None:
            groups[key] = [private, private]
        elif private == span[1] + 1:
            span[1] = private
        else:
            shown.append(group_text(key, span))
            groups[key] = [private, private]
    shown += [group_text(key, span) for key, span in groups.items()]
    return ", ".join(shown + mapped)


def labels_text(labels: dict[str, str] | None) -> str:
    """``a=b,c=d``, sorted."""
    return ",".join(sorted(f"{key}={value}" for key, value in (labels or {}).items()))


def _size(record: dict[str, Any], full: bool) -> str:
    own, whole = record.get("SizeRw") or 0, record.get("SizeRootFs") or 0
    return f"{human_size(own, 3)} (virtual {human_size(whole, 3)})" if whole > 0 else human_size(own, 3)


def _mounts(record: dict[str, Any], full: bool) -> str:
    names = [mount.get("Name") or mount.get("Source") or "" for mount in record.get("Mounts") or []]
    return ",".join(names if full else [ellipsis(name, 15) for name in names])


def _platform(record: dict[str, Any], full: bool) -> Any:
    platform = (record.get("ImageManifestDescriptor") or {}).get("platform")
    return (
        "/".join(filter(None, (platform.get(key) for key in ("os", "architecture", "variant")))) if platform else None
    )


CONTAINERS = Columns(
    "*formatter.ContainerContext",
    {
        "ID": ("CONTAINER ID", lambda record, full: record["Id"] if full else record["Id"][:12]),
        "Image": ("IMAGE", trimmed_image),
        "Command": ("COMMAND", lambda record, full: quoted(
            record.get("Command", "") if full else ellipsis(record.get("Command", ""), 20))),
        "RunningFor": ("CREATED", lambda record, full: human_duration(time.time() - record.get("Created", 0)) + " ago"),
        "CreatedAt": ("CREATED AT", lambda record, full: unix_local(record.get("Created", 0))),
        "Status": ("STATUS", lambda record, full: record.get("Status", "")),
        "State": ("STATE", lambda record, full: record.get("State", "")),
        "Ports": ("PORTS", lambda record, full: displayable_ports(record.get("Ports") or [])),
        "Names": ("NAMES", _names),
        "Size": ("SIZE", _size),
        "Labels": ("LABELS", lambda record, full: labels_text(record.get("Labels"))),
        "Mounts": ("MOUNTS", _mounts),
        "LocalVolumes": ("LOCAL VOLUMES", lambda record, full: str(
            sum(mount.get("Driver") == "local" for mount in record.get("Mounts") or []))),
        "Networks": ("NETWORKS", lambda record, full: ",".join(
            sorted((record.get("NetworkSettings") or {}).get("Networks") or {}))),
        "Platform": ("PLATFORM", _platform),
    },
    "ID Image Command RunningFor Status Ports Names",
    methods={"Label": lambda record, name: (record.get("Labels") or {}).get(name, "")},
)  # fmt: skip


def ps(session: Session, flags: Flags) -> None:
    """List containers."""
    template = wanted_format(session, flags["format"], "psFormat", quiet=flags["quiet"])
    limit = flags["last"]
    if flags["latest"] and limit == -1:
        limit = 1
    size = flags["size"]
    if not size and not flags.changed("size") and template not in ("table", "json"):
        size = ".Size" in template or "{{json.}}" in template.replace(" ", "")
    query = {
        "all": flags["all"] or limit > 0 or None,
        "limit": limit if limit != -1 else None,
        "size": size or None,
        "filters": filters(flags["filter"]),
    }
    records = session.client.get("/containers/json", query)
    show(session, CONTAINERS, records, template, quiet=flags["quiet"], full=flags["no-trunc"],
         extra="Size" if flags["size"] else "")  # fmt: skip


def port(session: Session, flags: Flags) -> None:
    """List port mappings of a container, or one of them."""
    name, *wanted = flags.arguments
    ports = session.client.get(f"/containers/{segment(name)}/json")["NetworkSettings"].get("Ports") or {}
    if wanted:
        number, _, protocol = wanted[0].partition("/")
        key = f"{number}/{protocol or 'tcp'}"
        if not ports.get(key):
            raise Failure(f"Error: No public port '{wanted[0]}' published for {name}")
        chosen = {key: ports[key]}
        lines = [_host_port(binding) for bindings in chosen.values() for binding in bindings]
    else:
        lines = [f"{key} -> {_host_port(binding)}" for key, bindings in ports.items() for binding in bindings or []]
    session.out(*sorted(lines, key=_natural))


def _host_port(binding: dict[str, str]) -> str:
    address = binding.get("HostIp") or ""
    return (
        f"[{address}]:{binding.get('HostPort', '')}" if ":" in address else f"{address}:{binding.get('HostPort', '')}"
    )


def _natural(text: str) -> list[Any]:
    import re

    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text) if part]


def top(session: Session, flags: Flags) -> None:
    """Show a container's processes."""
    name, *options = flags.arguments
    table = session.client.get(f"/containers/{segment(name)}/top", {"ps_args": " ".join(options)})
    session.out(*aligned([table["Titles"], *(table["Processes"] or [])], least=20, padding=3))


CHANGES = Columns(
    "*container.diffContext",
    {
        "Type": ("CHANGE TYPE", lambda record, full: "CAD"[record["Kind"]]),
        "Path": ("PATH", lambda record, full: record["Path"]),
    },
    "Type Path",
    quiet="Path",
)


def diff(session: Session, flags: Flags) -> None:
    """Show what changed in a container's file system."""
    changes = session.client.get(f"/containers/{segment(flags.arguments[0])}/changes") or []
    show(session, CHANGES, changes, flags["format"] or "{{.Type}} {{.Path}}")


COMMANDS = {
    "ps": Command(ps, "[OPTIONS]", f"""
a all bool Show all containers (default shows just running)
f filter filter Filter output based on conditions provided
- format string {FORMAT_HELP}
n last int=-1 Show n last created containers (includes all states) (default -1)
l latest bool Show the latest created container (includes all states)
- no-trunc bool Don't truncate output
q quiet bool Only display container IDs
s size bool Display total file sizes
"""),
    "port": Command(port, "CONTAINER [PRIVATE_PORT[/PROTO]]", arguments=(1, 2)),
    "top": Command(top, "CONTAINER [ps OPTIONS]", arguments=(1, None), interspersed=False),
    "diff": Command(diff, "CONTAINER", "- !format string Format output using a Go template", arguments=(1, 1)),
}  # fmt: skip
