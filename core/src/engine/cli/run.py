"""``run`` and ``create``."""

from __future__ import annotations

import os

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.failures import ApiFailure, Failure
from engine.cli.run_options import FLAGS, create_body
from engine.cli.run_values import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.client import Pending
    from engine.cli.flags import Flags
    from engine.cli.session import Session

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789./:-_@")
PULL_POLICIES = ("always", "missing", "never")


def _advised(failure: Failure, command: str, exit_code: int) -> Failure:
    return Failure(f"engine: {failure}\n\nRun 'engine {command} --help' for more information", exit_code)


def start_code(text: str) -> int:
    """The exit code for a container that could not be created or started, found in the text as docker does."""
    if any(
        sign in text
        for sign in ("executable file not found", "no such file or directory", "system cannot find the file specified")
    ):
        return 127
    return 126 if "permission denied" in text or "is a directory" in text else 125


def proxies(session: Session) -> list[str]:
    """The proxy settings of config.json, for the container's environment."""
    table = session.config.get("proxies") or {}
    chosen = table.get(session.client.host) or table.get("default") or {}
    names = {"httpProxy": "HTTP_PROXY", "httpsProxy": "HTTPS_PROXY", "ftpProxy": "FTP_PROXY", "noProxy": "NO_PROXY",
             "allProxy": "ALL_PROXY"}  # fmt: skip
    found = [(name, chosen[key]) for key, name in names.items() if chosen.get(key)]
    return [f"{variant}={value}" for name, value in found for variant in (name, name.lower())]


def check_reference(image: str) -> None:
    """Refuse what cannot be a reference; the parser is loaded only for names that look odd."""
    if not image or set(image) - PLAIN:
        from engine.errors import InvalidParameter
        from engine.names import parse_reference

        try:
            parse_reference(image)
        except InvalidParameter as error:
            raise Failure(str(error)) from None


class CidFile:
    """``--cidfile``: must not exist before, and does not stay when there is no container."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> CidFile:
        if self._path:
            if os.path.exists(self._path):
                raise Failure(
                    f"container ID file found, make sure the other container isn't running or delete {self._path}"
                )
            try:
                with open(self._path, "w"):
                    pass
            except OSError as error:
                raise Failure(f"failed to create the container ID file: open {self._path}: "
                              f"{(error.strerror or '').lower()}") from None  # fmt: skip
        return self

    def write(self, identifier: str) -> None:
        """Record the container's id."""
        if self._path:
            with open(self._path, "w") as file:
                file.write(identifier)

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None and self._path and os.path.exists(self._path):
            os.unlink(self._path)


def create_container(session: Session, flags: Flags, body: dict[str, Any]) -> str:
    """Create the container, pulling the image when it is missing; returns its id."""
    from engine.cli.progress import pull_image

    client = session.client
    image = flags.arguments[0]
    platform = flags["platform"] or session.setting("DEFAULT_PLATFORM")
    query = {"name": flags["name"], "platform": platform}
    with CidFile(flags["cidfile"]) as cidfile:
        check_reference(image)
        if flags["pull"] == "always":
            pull_image(session, image, platform, quiet=flags["quiet"])
        try:
            answer = client.post("/containers/create", query, body=body)
        except ApiFailure as failure:
            if failure.status != 404 or flags["pull"] != "missing" or "No such image" not in failure.reason:
                raise
            from engine.names import is_id, parse_reference

            if is_id(image) or image.startswith("sha256:"):
                raise
            if not flags["quiet"]:
                shown = parse_reference(image).with_default_tag().familiar
                session.warn(f"Unable to find image '{shown}' locally")
            pull_image(session, image, platform, quiet=flags["quiet"])
            answer = client.post("/containers/create", query, body=body)
        for warning in answer.get("Warnings") or []:
            session.warn(f"WARNING: {warning}")
        cidfile.write(answer["Id"])
        return str(answer["Id"])


def _prepared(session: Session, flags: Flags, command: str, *, detach: bool) -> dict[str, Any]:
    try:
        if flags["pull"] not in PULL_POLICIES:
            raise OptionError(f"invalid pull option: '{flags['pull']}': must be one of "
                              + '"always", "missing" or "never"')  # fmt: skip
        body = create_body(flags, detach=detach, proxies=proxies(session))
        if flags["use-api-socket"]:
            scheme, _, path = session.client.host.partition("://")
            if scheme != "unix":
                raise OptionError("flag --use-api-socket needs a daemon on a unix socket")
            body["HostConfig"]["Mounts"].append({"Type": "bind", "Source": path, "Target": "/var/run/docker.sock"})
    except OptionError as failure:
        raise _advised(failure, command, 125) from None
    from engine.cli.terminal import size

    body["HostConfig"]["ConsoleSize"] = list(size())
    return body


def create(session: Session, flags: Flags) -> None:
    """Create a container and print its id."""
    body = _prepared(session, flags, "create", detach=False)
    session.out(create_container(session, flags, body))


def run(session: Session, flags: Flags) -> int:
    """Create and start a container, join it unless detached, and end with its exit code."""
    body = _prepared(session, flags, "run", detach=flags["detach"])
    from engine.cli.interact import check_input_terminal, keys_for

    if not flags["detach"]:
        check_input_terminal(body["AttachStdin"], body["Tty"])
    keys = keys_for(session, flags["detach-keys"])
    try:
        container = create_container(session, flags, body)
    except Failure as failure:
        raise _advised(failure, "run", start_code(str(failure))) from None
    if flags["detach"] or not (body["AttachStdin"] or body["AttachStdout"] or body["AttachStderr"]):
        session.out(container)
        try:
            session.client.post(f"/containers/{container}/start")
        except Failure as failure:
            raise _advised(failure, "run", start_code(str(failure))) from None
        return 0
    return _run_attached(session, flags, container, body, keys)


def _wait_removed(outcome: Pending) -> None:
    try:
        outcome.response().read()
    except Failure:  # it is gone already
        return


def _run_attached(session: Session, flags: Flags, container: str, body: dict[str, Any], keys: str) -> int:
    from engine.cli.interact import Resized, SignalsPassedOn, pump
    from engine.cli.streams import Detached

    client = session.client
    path = f"/containers/{segment(container)}"
    stdin, stdout, stderr = body["AttachStdin"], body["AttachStdout"], body["AttachStderr"]
    with SignalsPassedOn(session, container, wanted=flags["sig-proxy"]):
        connection, leftover = client.hijack(
            f"{path}/attach",
            {"stream": True, "stdin": stdin or None, "stdout": stdout or None, "stderr": stderr or None,
             "detachKeys": keys},
        )  # fmt: skip
        # Asked before the start, so that even the shortest run is seen; the answer comes when it is over.
        outcome = client.send("POST", f"{path}/wait", {"condition": "removed" if flags["rm"] else "next-exit"})
        try:
            client.post(f"{path}/start")
        except Failure as failure:
            connection.close()
            if flags["rm"]:
                _wait_removed(outcome)
            raise _advised(failure, "run", start_code(str(failure))) from None
        try:
            with Resized(session, path, wanted=body["Tty"]):
                pump(connection, leftover, stdin=stdin, stdout=stdout, stderr=stderr, tty=body["Tty"], keys=keys)
        except Detached:
            return 0
        status = outcome.response().json()
    if status is None:
        return 125
    if (status.get("Error") or {}).get("Message"):
        session.warn(f"Error waiting for container: {status['Error']['Message']}")
        return 125
    return int(status["StatusCode"])


COMMANDS = {
    "run": Command(run, "[OPTIONS] IMAGE [COMMAND] [ARG...]", f"""{FLAGS}
d detach bool Run container in background and print container ID
- detach-keys string Override the key sequence for detaching a container
- sig-proxy bool=true Proxy received signals to the process (default true)
""", arguments=(1, None), interspersed=False),
    "create": Command(create, "[OPTIONS] IMAGE [COMMAND] [ARG...]", FLAGS, arguments=(1, None), interspersed=False),
}  # fmt: skip
