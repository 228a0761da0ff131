"""``system df``."""

from __future__ import annotations

from engine.cli.commands import Command
from engine.cli.containers import CONTAINERS, FORMAT_HELP
from engine.cli.images import IMAGES, rows
from engine.cli.tables import Columns, print_table, show
from engine.cli.units import human_size
from engine.cli.volumes import VOLUMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

USAGE = Columns(
    "*formatter.diskUsageContext",
    {
        "Type": ("TYPE", lambda record, full: record["Type"]),
        "TotalCount": ("TOTAL", lambda record, full: str(record["TotalCount"])),
        "Active": ("ACTIVE", lambda record, full: str(record["Active"])),
        "Size": ("SIZE", lambda record, full: human_size(record["Size"])),
        "Reclaimable": ("RECLAIMABLE", lambda record, full: record["Reclaimable"]),
    },
    "Type TotalCount Active Size Reclaimable",
)


def _share(part: int, whole: int) -> str:
    return f"{human_size(part)} ({part * 100 // whole}%)" if whole > 0 else human_size(part)


def summary(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The four lines of ``system df`` from the API's report."""
    images = report.get("Images") or []
    containers = report.get("Containers") or []
    volumes = report.get("Volumes") or []
    builds = report.get("BuildCache") or []
    layers = report.get("LayersSize") or (report.get("ImageUsage") or {}).get("TotalSize") or 0
    used = sum(image["Size"] - image["SharedSize"] for image in images
               if image.get("Containers") and image.get("SharedSize", -1) >= 0)  # fmt: skip
    running = [item for item in containers if item.get("State") in ("running", "paused", "restarting")]
    written = sum(item.get("SizeRw") or 0 for item in containers)
    idle = written - sum(item.get("SizeRw") or 0 for item in running)
    data = [item.get("UsageData") or {"Size": -1, "RefCount": 0} for item in volumes]
    stored = sum(item["Size"] for item in data if item["Size"] >= 0)
    unused = sum(item["Size"] for item in data if item["Size"] >= 0 and not item["RefCount"])
    built = sum(item.get("Size") or 0 for item in builds if not item.get("Shared"))
    busy = sum(item.get("Size") or 0 for item in builds if item.get("InUse") and not item.get("Shared"))
    return [
        {"Type": "Images", "TotalCount": len(images),
         "Active": sum((item.get("Containers") or 0) > 0 for item in images),
         "Size": layers, "Reclaimable": _share(layers - used, layers)},
        {"Type": "Containers", "TotalCount": len(containers), "Active": len(running), "Size": written,
         "Reclaimable": _share(idle, written)},
        {"Type": "Local Volumes", "TotalCount": len(volumes), "Active": sum(item["RefCount"] > 0 for item in data),
         "Size": stored, "Reclaimable": _share(unused, stored)},
        {"Type": "Build Cache", "TotalCount": len(builds), "Active": sum(bool(item.get("InUse")) for item in builds),
         "Size": built, "Reclaimable": human_size(built - busy)},
    ]  # fmt: skip


def df(session: Session, flags: Flags) -> None:
    """Show how much disk space what takes."""
    report = session.client.get("/system/df")
    if not flags["verbose"]:
        show(session, USAGE, summary(report), flags["format"] or "table")
        return
    for container in report.get("Containers") or []:
        container["SizeRootFs"] = 0
    session.out("Images space usage:", "")
    shown = [next(rows([image], digests=False)) for image in report.get("Images") or []]
    print_table(session, IMAGES, shown, "Repository Tag ID CreatedSince Size SharedSize UniqueSize Containers".split())
    session.out("", "Containers space usage:", "")
    names = "ID Image Command LocalVolumes Size RunningFor Status Names".split()
    print_table(session, CONTAINERS, report.get("Containers") or [], names)
    session.out("", "Local Volumes space usage:", "")
    print_table(session, VOLUMES, report.get("Volumes") or [], ["Name", "Links", "Size"])
    builds = report.get("BuildCache") or []
    size = sum(item.get("Size") or 0 for item in builds if not item.get("Shared"))
    session.out("", f"Build cache usage: {human_size(size)}", "")
    print_table(session, BUILDS, builds, "ID CacheType Size CreatedSince LastUsedSince UsageCount Shared".split())


def _ago(text: str | None) -> str:
    import time

    from engine.cli.units import human_duration, rfc3339

    return f"{human_duration(time.time() - rfc3339(text))} ago" if text else ""


BUILDS = Columns(
    "*formatter.buildCacheContext",
    {
        "ID": ("CACHE ID", lambda record, full: record["ID"][:12] + ("*" if record.get("InUse") else "")),
        "CacheType": ("CACHE TYPE", lambda record, full: record.get("Type", "")),
        "Size": ("SIZE", lambda record, full: human_size(record.get("Size") or 0, 3)),
        "CreatedSince": ("CREATED", lambda record, full: _ago(record.get("CreatedAt"))),
        "LastUsedSince": ("LAST USED", lambda record, full: _ago(record.get("LastUsedAt"))),
        "UsageCount": ("USAGE", lambda record, full: str(record.get("UsageCount", 0))),
        "Shared": ("SHARED", lambda record, full: "true" if record.get("Shared") else "false"),
    },
    "ID CacheType Size",
)

COMMANDS = {
    "system df": Command(df, "[OPTIONS]", f"""
- format string {FORMAT_HELP}
v verbose bool Show detailed information on space usage
"""),
}  # fmt: skip
