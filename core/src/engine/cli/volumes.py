"""``volume ls``, ``create`` and ``rm``; ours: ``export``, ``import``, ``clone`` and ``snapshot``."""

from __future__ import annotations

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.containers import FORMAT_HELP, labels_text
from engine.cli.failures import ApiFailure
from engine.cli.networks import natural
from engine.cli.run_values import pairs
from engine.cli.session import filters
from engine.cli.tables import Columns, show, wanted_format
from engine.cli.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session


def _usage(record: dict[str, Any], name: str, shown: Any) -> str:
    usage = record.get("UsageData")
    return shown(usage[name]) if usage and usage.get(name, -1) >= 0 else "N/A"


VOLUMES = Columns(
    "*formatter.volumeContext",
    {
        "Name": ("VOLUME NAME", lambda record, full: record["Name"]),
        "Driver": ("DRIVER", lambda record, full: record.get("Driver", "")),
        "Scope": ("SCOPE", lambda record, full: record.get("Scope", "")),
        "Mountpoint": ("MOUNTPOINT", lambda record, full: record.get("Mountpoint", "")),
        "Labels": ("LABELS", lambda record, full: labels_text(record.get("Labels"))),
        "Links": ("LINKS", lambda record, full: _usage(record, "RefCount", str)),
        "Size": ("SIZE", lambda record, full: _usage(record, "Size", human_size)),
        "Availability": ("AVAILABILITY", lambda record, full: "N/A"),
        "Group": ("GROUP", lambda record, full: "N/A"),
        "Status": ("STATUS", lambda record, full: "N/A"),
    },
    "Driver Name",
    quiet="Name",
    methods={"Label": lambda record, name: (record.get("Labels") or {}).get(name, "")},
)


def ls(session: Session, flags: Flags) -> None:
    """List volumes."""
    template = wanted_format(session, flags["format"], "volumesFormat", quiet=flags["quiet"])
    found = session.client.get("/volumes", {"filters": filters(flags["filter"])}).get("Volumes") or []
    found.sort(key=lambda volume: natural(volume["Name"]))
    show(session, VOLUMES, found, template, quiet=flags["quiet"])


def create(session: Session, flags: Flags) -> None:
    """Create a volume and print its name."""
    body = {
        "Driver": flags["driver"],
        "DriverOpts": pairs(flags["opt"]),
        "Labels": pairs(flags["label"]),
        "Name": flags.arguments[0] if flags.arguments else "",
    }
    session.out(session.client.post("/volumes/create", body=body)["Name"])


def remove(session: Session, flags: Flags) -> None:
    """Remove volumes."""

    def one(name: str) -> None:
        try:
            session.client.delete(f"/volumes/{segment(name)}", {"force": flags["force"] or None})
        except ApiFailure as failure:
            if not (flags["force"] and failure.status == 404):
                raise

    session.each(flags.arguments, one)


def export(session: Session, flags: Flags) -> None:
    """Write a volume's files as a tar archive."""
    from engine.cli.transfer import check_output, receive

    check_output(flags["output"], "export volume")
    receive(session.client.request("GET", f"/engine/volumes/{segment(flags.arguments[0])}/archive"), flags["output"])


def import_(session: Session, flags: Flags) -> None:
    """Fill a volume from a tar archive, compressed or not."""
    import sys

    from engine.cli.failures import Failure
    from engine.cli.transfer import pieces

    name, source = flags.arguments[0], flags.arguments[1] if len(flags.arguments) > 1 else "-"
    try:
        body = pieces(sys.stdin.buffer if source == "-" else open(source, "rb", buffering=0))  # noqa: SIM115
    except OSError as error:
        raise Failure(f"open {source}: {(error.strerror or '').lower()}") from None
    path = f"/engine/volumes/{segment(name)}/archive"
    session.out(session.client.request("PUT", path, stream=body).json()["Name"])


def _copy(session: Session, source: str, body: dict[str, Any]) -> None:
    session.out(session.client.post(f"/engine/volumes/{segment(source)}/copies", body=body)["Name"])


def clone(session: Session, flags: Flags) -> None:
    """Copy a volume."""
    body = {"Name": flags.arguments[1], "Labels": pairs(flags["label"]) if flags["label"] else None}
    _copy(session, flags.arguments[0], body)


def snapshot(session: Session, flags: Flags) -> None:
    """Copy a volume as it is now, under a name that tells when."""
    _copy(session, flags.arguments[0], {"Snapshot": True, "Name": "".join(flags.arguments[1:])})


COMMANDS = {
    "volume ls": Command(ls, "[OPTIONS]", f"""
f filter filter Provide filter values (e.g. "dangling=true")
- format string {FORMAT_HELP}
q quiet bool Only display volume names
"""),
    "volume create": Command(create, "[OPTIONS] [VOLUME]", """
d driver string=local Specify volume driver name (default "local")
- label list Set metadata for a volume
o opt map Set driver specific options (default map[])
""", arguments=(0, 1)),
    "volume export": Command(export, "[OPTIONS] VOLUME",
                             "o output string Write to a file, instead of STDOUT", arguments=(1, 1)),
    "volume import": Command(import_, "VOLUME [FILE|-]", "", arguments=(1, 2)),
    "volume clone": Command(clone, "[OPTIONS] VOLUME NEW",
                            "- label list Set metadata for the new volume, instead of the old one's",
                            arguments=(2, 2)),
    "volume snapshot": Command(snapshot, "VOLUME [NAME]", "", arguments=(1, 2)),
    "volume rm": Command(remove, "[OPTIONS] VOLUME [VOLUME...]",
                         "f force bool Force the removal of one or more volumes",
                         arguments=(1, None)),
}  # fmt: skip
