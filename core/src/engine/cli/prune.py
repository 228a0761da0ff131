"""The prune commands."""

from __future__ import annotations

from engine.cli.commands import Command
from engine.cli.session import filters
from engine.cli.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session


def _sure(session: Session, flags: Flags, warning: str) -> None:
    if not flags["force"]:
        session.confirm(f"{warning}\nAre you sure you want to continue?")


def _containers(session: Session, chosen: str | None) -> int:
    answer = session.client.post("/containers/prune", {"filters": chosen})
    if answer.get("ContainersDeleted"):
        session.out("Deleted Containers:", *answer["ContainersDeleted"], "")
    return answer.get("SpaceReclaimed") or 0


def _networks(session: Session, chosen: str | None) -> int:
    answer = session.client.post("/networks/prune", {"filters": chosen})
    if answer.get("NetworksDeleted"):
        session.out("Deleted Networks:", *answer["NetworksDeleted"], "")
    return 0


def _volumes(session: Session, chosen: str | None) -> int:
    answer = session.client.post("/volumes/prune", {"filters": chosen})
    if answer.get("VolumesDeleted"):
        session.out("Deleted Volumes:", *answer["VolumesDeleted"], "")
    return answer.get("SpaceReclaimed") or 0


def _images(session: Session, chosen: str | None) -> int:
    answer = session.client.post("/images/prune", {"filters": chosen})
    if answer.get("ImagesDeleted"):
        lines = [f"deleted: {item['Deleted']}" if item.get("Deleted") else f"untagged: {item['Untagged']}"
                 for item in answer["ImagesDeleted"]]  # fmt: skip
        session.out("Deleted Images:", *lines, "")
    return answer.get("SpaceReclaimed") or 0


def _simple(prune: Callable[[Session, str | None], int], warning: str, *, total: bool = True) -> Any:
    def run(session: Session, flags: Flags) -> None:
        _sure(session, flags, warning)
        freed = prune(session, filters(flags["filter"]))
        if total:
            session.out(f"Total reclaimed space: {human_size(freed)}")

    return run


def prune_images(session: Session, flags: Flags) -> None:
    """Remove dangling images, or all unused ones."""
    if flags["all"]:
        warning = "WARNING! This will remove all images without at least one container associated to them."
    else:
        warning = "WARNING! This will remove all dangling images."
    _sure(session, flags, warning)
    chosen = [*flags["filter"], f"dangling={'false' if flags['all'] else 'true'}"]
    session.out(f"Total reclaimed space: {human_size(_images(session, filters(chosen)))}")


def prune_volumes(session: Session, flags: Flags) -> None:
    """Remove unused anonymous volumes, or all unused ones."""
    kind = "all local volumes" if flags["all"] else "anonymous local volumes"
    _sure(session, flags, f"WARNING! This will remove {kind} not used by at least one container.")
    chosen = [*flags["filter"], *(["all=true"] if flags["all"] else [])]
    session.out(f"Total reclaimed space: {human_size(_volumes(session, filters(chosen)))}")


def prune_system(session: Session, flags: Flags) -> None:
    """Remove everything that is not in use."""
    lines = ["WARNING! This will remove:", "  - all stopped containers",
             "  - all networks not used by at least one container"]  # fmt: skip
    if flags["volumes"]:
        lines.append("  - all anonymous volumes not used by at least one container")
    lines.append("  - all images without at least one container associated to them" if flags["all"]
                 else "  - all dangling images")  # fmt: skip
    if not flags["force"]:
        session.confirm("\n".join(lines) + "\n\nAre you sure you want to continue?")
    chosen = filters(flags["filter"])
    freed = _containers(session, chosen) + _networks(session, chosen)
    if flags["volumes"]:
        freed += _volumes(session, chosen)
    freed += _images(session, filters([*flags["filter"], f"dangling={'false' if flags['all'] else 'true'}"]))
    session.out(f"Total reclaimed space: {human_size(freed)}")


_FLAGS = """
- filter filter Provide filter values (e.g. "until=<timestamp>")
f force bool Do not prompt for confirmation
"""

COMMANDS = {
    "container prune": Command(_simple(_containers, "WARNING! This will remove all stopped containers."), "[OPTIONS]",
                               _FLAGS),
    "network prune": Command(_simple(_networks, "WARNING! This will remove all custom networks not used by at least "
                                     "one container.", total=False), "[OPTIONS]", _FLAGS),
    "image prune": Command(prune_images, "[OPTIONS]",
                           f"a all bool Remove all unused images, not just dangling ones\n{_FLAGS}"),
    "volume prune": Command(prune_volumes, "[OPTIONS]",
                            f"a all bool Remove all unused volumes, not just anonymous ones\n{_FLAGS}"),
    "system prune": Command(prune_system, "[OPTIONS]", f"""
a all bool Remove all unused images not just dangling ones
- volumes bool Prune anonymous volumes
{_FLAGS}"""),
}  # fmt: skip
