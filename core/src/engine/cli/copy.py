"""``cp``: files between a container and this machine, by docker's rules for paths.

The rules (docker's, which are those of ``cp -a``): a directory copied to one that exists goes into it, to a name that
does not exist becomes it; ``/.`` at the end of a source means its content; a trailing slash demands a directory.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import tarfile

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.failures import ApiFailure, Failure
from engine.cli.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

DIRECTORY = 1 << 31  # Go's os.ModeDir and os.ModeSymlink, as the API's stat header has them
SYMLINK = 1 << 27


def split_argument(text: str) -> tuple[str, str]:
    """Container and path; no container for a local path."""
    if os.path.isabs(text):
        return "", text
    container, colon, path = text.partition(":")
    if not colon or container.startswith("."):
        return "", text
    return container, path


def _stat(session: Session, container: str, path: str) -> dict[str, Any]:
    response = session.client.request("HEAD", f"/containers/{segment(container)}/archive", {"path": path})
    response.close()
    found: dict[str, Any] = json.loads(base64.b64decode(response.headers["x-docker-container-path-stat"]))
    return found


class _Input:
    """A file object over pieces, for tarfile's stream mode."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.count = 0

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        self.count += len(data)
        return data


def _wants_directory(path: str) -> bool:
    return path.endswith(("/", "/."))


def _content_only(path: str) -> bool:
    return path in (".", "/") or path.endswith("/.")


def copy_out(session: Session, flags: Flags, container: str, source: str, target: str) -> None:
    """From a container to a local path, or as an archive to standard output."""
    if flags["follow-link"]:
        stat = _stat(session, container, source)
        if stat["mode"] & SYMLINK and stat.get("linkTarget"):
            source = os.path.join(os.path.dirname(source), stat["linkTarget"])
    response = session.client.request("GET", f"/containers/{segment(container)}/archive", {"path": source})
    if target == "-":
        from engine.cli.streams import write_all

        for piece in response:
            write_all(1, piece)
        return
    target_path = os.path.abspath(target)
    stat = json.loads(base64.b64decode(response.headers["x-docker-container-path-stat"]))
    is_directory = bool(stat["mode"] & DIRECTORY)
    if os.path.isdir(target_path):
        base = target_path
        renamed = "." if is_directory and _content_only(source) else None
    else:
        if not os.path.isdir(os.path.dirname(target_path)):
            raise Failure(f'invalid output path: directory "{os.path.dirname(target_path)}" does not exist')
        if is_directory and os.path.exists(target_path):
            raise Failure("cannot copy directory")
        if not is_directory and _wants_directory(target):
            raise Failure(f"no such directory: {target}" if os.path.exists(target_path) else "no such directory")
        base, renamed = os.path.dirname(target_path), os.path.basename(target_path)
    stream = _Input(iter(response))
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        _extract(archive, base, renamed, keep_owner=flags["archive"])
    if not flags["quiet"] and os.isatty(2):
        session.warn(f"Successfully copied {human_size(stream.count)} to {target_path}")


def _extract(archive: tarfile.TarFile, base: str, renamed: str | None, *, keep_owner: bool) -> None:
    """Unpack below ``base``, the archive's top entry under another name; nothing may leave the directory."""
    for member in archive:
        first, slash, rest = member.name.rstrip("/").partition("/")
        if renamed is not None:
            member.name = f"{renamed}{slash}{rest}" if first else member.name
            if member.islnk():
                _, link_slash, link_rest = member.linkname.partition("/")
                member.linkname = f"{renamed}{link_slash}{link_rest}"
        where = os.path.realpath(os.path.join(base, os.path.dirname(member.name)))
        if os.path.commonpath([where, os.path.realpath(base)]) != os.path.realpath(base):
            raise Failure(f"refusing to write outside of {base}: {member.name}")
        path = os.path.join(base, member.name)
        if os.path.lexists(path) and not member.isdir():
            if os.path.isdir(path) and not os.path.islink(path):
                raise Failure(f"cannot overwrite directory {path} with a file")
            os.unlink(path)
        archive.extract(member, base, numeric_owner=True, set_attrs=not member.issym(),
                        filter=_as_owner if keep_owner else _as_user)  # fmt: skip


def _as_owner(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    return member


def _as_user(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    return member.replace(uid=os.getuid(), gid=os.getgid(), deep=False)


def copy_in(session: Session, flags: Flags, source: str, container: str, target: str) -> None:
    """From a local path, or an archive on standard input, into a container."""
    path = f"/containers/{segment(container)}/archive"
    query: dict[str, Any] = {"noOverwriteDirNonDir": "true"}
    if flags["archive"]:
        query["copyUIDGID"] = "true"
    if source == "-":
        from engine.cli.transfer import pieces

        session.client.request("PUT", path, {**query, "path": target}, stream=pieces(sys.stdin.buffer)).read()
        return
    local = os.path.realpath(source) if flags["follow-link"] else os.path.abspath(source)
    if not os.path.lexists(local):
        raise Failure(f"lstat {local}: no such file or directory")
    is_directory = os.path.isdir(local) and not os.path.islink(local)
    if _wants_directory(source) and not is_directory:
        raise Failure(f"{source}: not a directory")
    name = os.path.basename(local)
    try:
        stat = _stat(session, container, target)
        if stat["mode"] & SYMLINK and stat.get("linkTarget"):
            target = stat["linkTarget"]
            stat = _stat(session, container, target)
    except ApiFailure as failure:
        if failure.status != 404:
            raise
        stat = None
    if stat is not None and stat["mode"] & DIRECTORY:
        where, renamed = target, "." if is_directory and _content_only(source) else name
    else:
        if stat is not None and is_directory:
            raise Failure("cannot copy a directory to a file")
        if not is_directory and _wants_directory(target):
            raise Failure(f"no such directory: {target}")
        where, renamed = os.path.dirname(target.rstrip("/")) or "/", os.path.basename(target.rstrip("/"))
    total = 0

    def counted() -> Iterator[bytes]:
        nonlocal total
        for piece in _packed(local, renamed):
            total += len(piece)
            yield piece

    session.client.request("PUT", path, {**query, "path": where}, stream=counted()).read()
    if not flags["quiet"] and os.isatty(2):
        session.warn(f"Successfully copied {human_size(total)} to {container}:{target}")


def _packed(path: str, name: str) -> Iterator[bytes]:
    """A file or directory as an archive, its top entry called ``name``."""
    from engine.cli.transfer import pieces

    reader, writer = os.pipe()
    problem: list[BaseException] = []

    def pack() -> None:
        try:
            with (
                open(writer, "wb") as file,
                tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive,
            ):
                archive.add(path, arcname=name)
        except (OSError, tarfile.TarError) as error:
            problem.append(error)

    from _thread import start_new_thread

    start_new_thread(pack, ())
    with open(reader, "rb", buffering=0) as file:
        yield from pieces(file)
    if problem:
        raise OSError(str(problem[0]))


def cp(session: Session, flags: Flags) -> None:
    """Copy between a container and this machine."""
    source, target = flags.arguments
    from_container, from_path = split_argument(source)
    to_container, to_path = split_argument(target)
    if from_container and to_container:
        raise Failure("copying between containers is not supported")
    if not from_container and not to_container:
        raise Failure("must specify at least one container source")
    if from_container:
        if not from_path:
            raise Failure("source can not be empty")
        copy_out(session, flags, from_container, from_path, target)
    else:
        if not to_path:
            raise Failure("destination can not be empty")
        copy_in(session, flags, source, to_container, to_path)


COMMANDS = {
    "cp": Command(cp, "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n[OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH", """
a archive bool Archive mode (copy all uid/gid information)
L follow-link bool Always follow symbol link in SRC_PATH
q quiet bool Suppress progress output during copy. Progress output is automatically suppressed if no terminal is \
attached
""", arguments=(2, 2), about="""Copy files/folders between a container and the local filesystem

Use '-' as the source to read a tar archive from stdin
and extract it to a directory destination in a container.
Use '-' as the destination to stream a tar archive of a
container source to stdout."""),
}  # fmt: skip
