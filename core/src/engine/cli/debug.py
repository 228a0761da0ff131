"""``debug``: a shell with tools in a container or an image that has none."""

from __future__ import annotations

import sys

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.failures import ApiFailure, Failure
from engine.cli.interact import Resized, pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

PLACE = "/dev/.toolbox"


def debug(session: Session, flags: Flags) -> int:
    """A running container gets a further process; anything else a throwaway container."""
    name, *words = flags.arguments
    if flags["command"]:
        words = ["sh", "-c", flags["command"]]
    words = words or [flags["shell"]]
    tty = not flags["command"] and len(flags.arguments) == 1 and sys.stdin.isatty() and sys.stdout.isatty()
    try:
        info = session.client.get(f"/containers/{segment(name)}/json")
    except ApiFailure as failure:
        if failure.status != 404:
            raise
        return _image(session, name, words, tty)
    if info["State"]["Running"] and not info["State"]["Paused"]:
        return _running(session, info, words, tty)
    if info["State"]["Paused"]:
        raise Failure("You cannot debug a paused container, unpause it first")
    print("Note: the container is not running: changes are lost when the shell ends.", file=sys.stderr)
    image = session.client.post("/commit", {"container": info["Id"], "pause": False}, body={})["Id"]
    try:
        return _throwaway(session, image, info["Config"], words, tty)
    finally:
        session.client.request("DELETE", f"/images/{segment(image)}", {"force": True}).json()


def _running(session: Session, info: dict[str, Any], words: list[str], tty: bool) -> int:
    client = session.client
    body = {
        "AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": tty, "Cmd": words, "User": "0",
        "Toolbox": True, "Env": _terminal(session, info["Config"]),
    }  # fmt: skip
    identifier = client.post(f"/containers/{info['Id']}/exec", body=body)["Id"]
    path = f"/exec/{identifier}"
    connection, leftover = client.hijack(f"{path}/start", body={"Detach": False, "Tty": tty})
    with Resized(session, path, wanted=tty):
        pump(connection, leftover, stdin=True, stdout=True, stderr=True, tty=tty, keys="")
    return int(client.get(f"{path}/json").get("ExitCode") or 0)


def _image(session: Session, name: str, words: list[str], tty: bool) -> int:
    try:
        info = session.client.get(f"/images/{segment(name)}/json")
    except ApiFailure as failure:
        if failure.status != 404:
            raise
        raise Failure(f"Error: No such container or image: {name}") from None
    print("Note: this is a throwaway container: changes are lost when the shell ends.", file=sys.stderr)
    return _throwaway(session, info["Id"], info["Config"], words, tty)


def _throwaway(session: Session, image: str, config: dict[str, Any], words: list[str], tty: bool) -> int:
    client = session.client
    toolbox = client.get("/engine/toolbox")["Path"]
    program = words[0] if "/" in words[0] else f"{PLACE}/bin/{words[0]}"
    search = next((line[5:] for line in config.get("Env") or [] if line.startswith("PATH=")), _PATH)
    body = {
        "Image": image, "Entrypoint": [program], "Cmd": words[1:], "User": "0", "Tty": tty, "OpenStdin": True,
        "StdinOnce": True, "AttachStdin": True, "AttachStdout": True, "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]}, "Env": [*_terminal(session, config), f"PATH={search}:{PLACE}/bin"],
        "HostConfig": {"AutoRemove": True, "Binds": [f"{toolbox}:{PLACE}:ro"], "CapAdd": ["SYS_PTRACE"]},
    }  # fmt: skip
    path = f"/containers/{client.post('/containers/create', body=body)['Id']}"
    connection, leftover = client.hijack(
        f"{path}/attach", {"stream": True, "stdin": True, "stdout": True, "stderr": True}
    )
    outcome = client.send("POST", f"{path}/wait", {"condition": "removed"})
    client.post(f"{path}/start")
    with Resized(session, path, wanted=tty):
        pump(connection, leftover, stdin=True, stdout=True, stderr=True, tty=tty, keys="")
    return int(outcome.response().json()["StatusCode"])


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _terminal(session: Session, config: dict[str, Any]) -> list[str]:
    """What the shell and the ``entrypoint`` helper want to know."""
    entrypoint, command = config.get("Entrypoint") or [], config.get("Cmd") or []
    search = next((line[5:] for line in config.get("Env") or [] if line.startswith("PATH=")), _PATH)
    return [
        f"TERM={session.environ.get('TERM', 'xterm')}",
        f"ENGINE_DEBUG_ENTRYPOINT={' '.join(entrypoint)}",
        f"ENGINE_DEBUG_CMD={' '.join(command)}",
        f"ENGINE_DEBUG_PROGRAM={next(iter([*entrypoint, *command]), '')}",
        f"ENGINE_DEBUG_PATH={search}",
    ]


COMMANDS = {
    "debug": Command(debug, "[OPTIONS] CONTAINER|IMAGE [COMMAND] [ARG...]", """
c command string Run a command line instead of a shell
- shell string=sh The shell to start (default "sh")
""", arguments=(1, None), interspersed=False),
}  # fmt: skip
