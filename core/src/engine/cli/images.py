"""``images``, ``history``, ``tag`` and ``rmi``."""

from __future__ import annotations

import time

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.containers import FORMAT_HELP, ellipsis
from engine.cli.failures import ApiFailure, Failure
from engine.cli.session import filters
from engine.cli.tables import Columns, show, wanted_format
from engine.cli.units import human_duration, human_size, unix_local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

NONE = "<none>"


def _short(identifier: str) -> str:
    return identifier.removeprefix("sha256:")[:12]


def _since(record: dict[str, Any], full: bool) -> str:
    return human_duration(time.time() - (record.get("Created") or 0)) + " ago"


def _amount(value: int, digits: int = 4) -> str:
    return "N/A" if value < 0 else human_size(value, digits)


def _unique(record: dict[str, Any], full: bool) -> str:
    shared = record.get("SharedSize", -1)
    return "N/A" if shared < 0 else human_size(record.get("Size", 0) - shared)


IMAGES = Columns(
    "*formatter.imageContext",
    {
        "ID": ("IMAGE ID", lambda record, full: record["Id"] if full else _short(record["Id"])),
        "Repository": ("REPOSITORY", lambda record, full: record["Repository"]),
        "Tag": ("TAG", lambda record, full: record["Tag"]),
        "Digest": ("DIGEST", lambda record, full: record["Digest"]),
        "CreatedSince": ("CREATED", _since),
        "CreatedAt": ("CREATED AT", lambda record, full: unix_local(record.get("Created") or 0)),
        "Size": ("SIZE", lambda record, full: human_size(record.get("Size", 0), 3)),
        "VirtualSize": ("SIZE", lambda record, full: human_size(record.get("Size", 0))),
        "SharedSize": ("SHARED SIZE", lambda record, full: _amount(record.get("SharedSize", -1))),
        "UniqueSize": ("UNIQUE SIZE", _unique),
        "Containers": ("CONTAINERS", lambda record, full: "N/A" if record.get("Containers", -1) < 0
                       else str(record["Containers"])),
    },
    "Repository Tag ID CreatedSince Size",
)  # fmt: skip


def split_name(reference: str) -> tuple[str, str, str]:
    """Repository, tag and digest of a name as the API shows it."""
    name, _, digest = reference.partition("@")
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{head}{slash}{last}", tag, digest


def rows(images: list[dict[str, Any]], *, digests: bool) -> Iterator[dict[str, Any]]:
    """One record for each line: an image appears once for each of its tags (and digests, when shown)."""
    for image in images:
        tags: dict[str, list[str]] = {}
        found: dict[str, list[str]] = {}
        for reference in image.get("RepoTags") or []:
            repository, tag, _ = split_name(reference)
            tags.setdefault(repository, []).append(tag)
        for reference in image.get("RepoDigests") or []:
            repository, _, digest = split_name(reference)
            found.setdefault(repository, []).append(digest)
        if list(tags) in ([], [NONE]) and list(found) in ([], [NONE]):
            yield {**image, "Repository": NONE, "Tag": NONE, "Digest": NONE}
            continue
        for repository, names in tags.items():
            of_repository = found.pop(repository, [])
            for tag in names:
                for digest in (of_repository if digests else []) or [NONE]:
                    yield {**image, "Repository": repository, "Tag": tag, "Digest": digest}
        for repository, values in found.items():
            for digest in values if digests else [""]:
                yield {**image, "Repository": repository, "Tag": NONE, "Digest": digest}


def images(session: Session, flags: Flags) -> None:
    """List images."""
    chosen = list(flags["filter"])
    if flags.arguments:
        chosen.append(f"reference={flags.arguments[0]}")
    template = wanted_format(session, flags["format"], "imagesFormat", quiet=flags["quiet"])
    found = session.client.get("/images/json", {"all": flags["all"] or None, "filters": filters(chosen)}) or []
    digests = flags["digests"] or ".Digest" in template
    records = list(rows(found, digests=digests))
    if flags["digests"] and template in ("table", "") and not flags["quiet"]:
        template = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    show(session, IMAGES, records, template, quiet=flags["quiet"], full=flags["no-trunc"])


def _history_columns(human: bool) -> Columns:
    def created_by(record: dict[str, Any], full: bool) -> str:
        text = str(record.get("CreatedBy", "")).replace("\t", " ")
        return text if full else ellipsis(text, 45)

    def created(record: dict[str, Any], full: bool) -> str:
        return _since(record, full) if human else unix_rfc3339(record.get("Created") or 0)

    return Columns(
        "*image.historyContext",
        {
            "ID": ("IMAGE", lambda record, full: record["Id"] if full else _short(record["Id"])),
            "CreatedSince": ("CREATED", created),
            "CreatedAt": ("CREATED AT", lambda record, full: unix_rfc3339(record.get("Created") or 0)),
            "CreatedBy": ("CREATED BY", created_by),
            "Size": ("SIZE", lambda record, full: human_size(record.get("Size", 0), 3) if human
                     else str(record.get("Size", 0))),
            "Comment": ("COMMENT", lambda record, full: record.get("Comment", "")),
        },
        "ID CreatedSince CreatedBy Size Comment",
    )  # fmt: skip


def unix_rfc3339(seconds: float) -> str:
    """RFC 3339 in the local zone."""
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}")


def history(session: Session, flags: Flags) -> None:
    """Show how an image was made."""
    query = {"platform": _platform_json(flags["platform"])}
    layers = session.client.get(f"/images/{segment(flags.arguments[0])}/history", query)
    show(session, _history_columns(flags["human"]), layers, flags["format"] or "table", quiet=flags["quiet"],
         full=flags["no-trunc"])  # fmt: skip


def _platform_json(text: str) -> str:
    if not text:
        return ""
    from engine.cli.transfer import _platform

    return _platform(text)


def tag(session: Session, flags: Flags) -> None:
    """Give an image another name."""
    from engine.errors import InvalidParameter
    from engine.names import parse_reference

    source, target = flags.arguments
    try:
        reference = parse_reference(target)
    except InvalidParameter as error:
        raise Failure(f'Error parsing reference: "{target}" is not a valid repository/tag: {error}') from None
    if reference.digest:
        raise Failure("refusing to create a tag with a digest reference")
    query = {"repo": reference.familiar_name, "tag": reference.with_default_tag().tag}
    session.client.post(f"/images/{segment(source)}/tag", query)


def rmi(session: Session, flags: Flags) -> None:
    """Remove images."""
    query: dict[str, Any] = {"force": flags["force"] or None, "noprune": flags["no-prune"] or None}
    if flags["platform"]:
        query["platforms"] = [_platform_json(text) for text in flags["platform"]]
    failures: list[str] = []
    fatal = False
    for name in flags.arguments:
        try:
            answer = session.client.delete(f"/images/{segment(name)}", query)
        except ApiFailure as failure:
            fatal = fatal or failure.status != 404
            failures.append(str(failure))
            continue
        for item in answer or []:
            session.out(f"Deleted: {item['Deleted']}" if item.get("Deleted") else f"Untagged: {item['Untagged']}")
    if failures:
        if not flags["force"] or fatal:
            raise Failure("\n".join(failures))
        session.warn(*failures)


COMMANDS = {
    "images": Command(images, "[OPTIONS] [REPOSITORY[:TAG]]", f"""
a all bool Show all images (default hides intermediate images)
- digests bool Show digests
f filter filter Filter output based on conditions provided
- format string {FORMAT_HELP}
- no-trunc bool Don't truncate output
q quiet bool Only show image IDs
""", arguments=(0, 1)),
    "history": Command(history, "[OPTIONS] IMAGE", f"""
- format string {FORMAT_HELP}
H human bool=true Print sizes and dates in human readable format (default true)
- no-trunc bool Don't truncate output
- platform string Show history for the given platform. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")
q quiet bool Only show image IDs
""", arguments=(1, 1)),
    "tag": Command(tag, "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", arguments=(2, 2)),
    "rmi": Command(rmi, "[OPTIONS] IMAGE [IMAGE...]", """
f force bool Force removal of the image
- no-prune bool Do not delete untagged parents
- platform strings Remove only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")
""", arguments=(1, None)),
}  # fmt: skip
