"""Commands that move images and file systems: pull, push, load, save, import, export, commit."""

from __future__ import annotations

import os
import sys

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.failures import Failure
from engine.cli.progress import display, pull_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from engine.cli.client import Response
    from engine.cli.flags import Flags
    from engine.cli.session import Session

CHUNK = 1 << 20


def pull(session: Session, flags: Flags) -> None:
    """Pull an image and print its full name."""
    from engine.names import parse_reference

    name = flags.arguments[0]
    reference = parse_reference(name)
    if flags["all-tags"] and (reference.tag or reference.digest):
        raise Failure("tag can't be used with --all-tags/-a")
    if not flags["all-tags"] and not reference.tag and not reference.digest:
        reference = reference.with_default_tag()
        if not flags["quiet"]:
            session.out(f"Using default tag: {reference.tag}")
            sys.stdout.flush()
    platform = flags["platform"] or session.setting("DEFAULT_PLATFORM")
    pull_image(session, name, platform, quiet=flags["quiet"], output=sys.stdout, all_tags=flags["all-tags"])
    session.out(str(reference))


def push(session: Session, flags: Flags) -> None:
    """Push an image to its registry."""
    from engine.cli.credentials import registry_header
    from engine.names import parse_reference

    reference = parse_reference(flags.arguments[0])
    if flags["all-tags"] and (reference.tag or reference.digest):
        raise Failure("tag can't be used with --all-tags/-a")
    if not flags["all-tags"] and not reference.tag and not reference.digest:
        reference = reference.with_default_tag()
        if not flags["quiet"]:
            session.out(f"Using default tag: {reference.tag}")
            sys.stdout.flush()
    query: dict[str, Any] = {"tag": reference.tag or ""}
    if flags["platform"]:
        query["platform"] = _platform(flags["platform"])
    response = session.client.request(
        "POST", f"/images/{segment(reference.familiar_name)}/push", query,
        headers={"X-Registry-Auth": registry_header(session, reference.domain)},
    )  # fmt: skip
    if flags["quiet"]:
        with open(os.devnull, "w") as nothing:
            display(response.messages(), nothing)
        session.out(str(reference))
    else:
        display(response.messages(), sys.stdout)


def _platform(text: str) -> str:
    import json

    names = dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))
    return json.dumps(names)


def pieces(file: Any) -> Iterator[bytes]:
    """A file in large pieces."""
    while piece := os.read(file.fileno(), CHUNK):
        yield piece


def load(session: Session, flags: Flags) -> None:
    """Load images from an archive."""
    if flags["input"]:
        try:
            file = open(flags["input"], "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise Failure(f"open {flags['input']}: {(error.strerror or '').lower()}") from None
    else:
        file = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
        if os.isatty(0):
            raise Failure("requested load from stdin, but stdin is empty")
    quiet = flags["quiet"] or not os.isatty(1)
    query: dict[str, Any] = {"quiet": quiet}
    if flags["platform"]:
        query["platform"] = _platform(flags["platform"])
    response = session.client.request("POST", "/images/load", query, stream=pieces(file))
    if "json" in response.headers.get("content-type", ""):
        display(response.messages(), sys.stdout)
        return
    for piece in response:
        sys.stdout.buffer.write(piece)


def receive(response: Response, path: str) -> None:
    """Write a body to a file that appears only when it is complete, or to standard output."""
    from engine.cli.streams import write_all

    if not path:
        for piece in response:
            write_all(1, piece)
        return
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            file.writelines(response)
        return
    fresh = f"{path}.{os.getpid()}.tmp"
    try:
        with open(fresh, "wb", buffering=0) as file:
            for piece in response:
                write_all(file.fileno(), piece)
        os.replace(fresh, path)
    except BaseException:
        if os.path.exists(fresh):
            os.unlink(fresh)
        raise


def check_output(path: str, what: str) -> None:
    """Refuse what would flood a terminal or cannot be written to."""
    if not path and os.isatty(1):
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    if path:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise Failure(f"failed to {what}: invalid output path: stat {folder}: no such file or directory")
        if os.path.isdir(path):
            raise Failure(f'failed to {what}: invalid output path: "{path}" must be a regular file'.replace('"', ""))


def save(session: Session, flags: Flags) -> None:
    """Save images to an archive."""
    check_output(flags["output"], "save image")
    query: dict[str, Any] = {"names": flags.arguments}
    if flags["platform"]:
        query["platform"] = _platform(flags["platform"])
    receive(session.client.request("GET", "/images/get", query), flags["output"])


def export(session: Session, flags: Flags) -> None:
    """Export a container's file system."""
    check_output(flags["output"], "export container")
    name = flags.arguments[0]
    receive(session.client.request("GET", f"/containers/{segment(name)}/export"), flags["output"])


def import_image(session: Session, flags: Flags) -> None:
    """Make an image of a file system archive."""
    source, *reference = flags.arguments
    query: dict[str, Any] = {
        "message": flags["message"], "changes": flags["change"], "platform": flags["platform"],
        "repo": reference[0] if reference else None,
    }  # fmt: skip
    body = None
    if source == "-":
        query["fromSrc"] = "-"
        body = pieces(sys.stdin.buffer)
    elif source.startswith(("http://", "https://")):
        query["fromSrc"] = source
    else:
        query["fromSrc"] = "-"
        try:
            body = pieces(open(source, "rb", buffering=0))  # noqa: SIM115
        except OSError as error:
            raise Failure(f"open {source}: {(error.strerror or '').lower()}") from None
    response = session.client.request("POST", "/images/create", query, stream=body)
    display(response.messages(), sys.stdout)


def commit(session: Session, flags: Flags) -> None:
    """Make an image of a container."""
    name, *reference = flags.arguments
    query: dict[str, Any] = {
        "container": name, "comment": flags["message"], "author": flags["author"], "changes": flags["change"],
        "pause": flags["pause"],
    }  # fmt: skip
    if reference:
        from engine.names import parse_reference

        parsed = parse_reference(reference[0])
        if parsed.digest:
            raise Failure("refusing to create a tag with a digest reference")
        query["repo"], query["tag"] = parsed.familiar_name, parsed.with_default_tag().tag
    session.out(session.client.post("/commit", query, body={})["Id"])


_PLATFORM = 'Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")'

COMMANDS = {
    "pull": Command(pull, "[OPTIONS] NAME[:TAG|@DIGEST]", """
a all-tags bool Download all tagged images in the repository
- !disable-content-trust bool=true Skip image verification
- platform string Set platform if server is multi-platform capable
q quiet bool Suppress verbose output
""", arguments=(1, 1)),
    "push": Command(push, "[OPTIONS] NAME[:TAG]", f"""
a all-tags bool Push all tags of an image to the repository
- !disable-content-trust bool=true Skip image signing
- platform string Push a platform-specific manifest as a single-platform image to the registry. {_PLATFORM}
q quiet bool Suppress verbose output
""", arguments=(1, 1)),
    "load": Command(load, "[OPTIONS]", f"""
i input string Read from tar archive file, instead of STDIN
- platform string Load only the given platform variant. {_PLATFORM}
q quiet bool Suppress the load output
"""),
    "save": Command(save, "[OPTIONS] IMAGE [IMAGE...]", f"""
o output string Write to a file, instead of STDOUT
- platform string Save only the given platform variant. {_PLATFORM}
""", arguments=(1, None)),
    "export": Command(export, "[OPTIONS] CONTAINER", "o output string Write to a file, instead of STDOUT",
                      arguments=(1, 1)),
    "import": Command(import_image, "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]", """
c change list Apply Dockerfile instruction to the created image
m message string Set commit message for imported image
- platform string Set platform if server is multi-platform capable
""", arguments=(1, 2)),
    "commit": Command(commit, "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]", """
a author string Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")
c change list Apply Dockerfile instruction to the created image
m message string Commit message
p pause bool=true Pause container during commit (default true)
""", arguments=(1, 2)),
}  # fmt: skip
