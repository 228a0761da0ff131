"""``attach``, ``start`` and ``exec``: the commands besides ``run`` that join the terminal to a container."""

from __future__ import annotations

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.failures import ApiFailure, Failure
from engine.cli.interact import Resized, SignalsPassedOn, check_input_terminal, keys_for, pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from engine.cli.flags import Flags
    from engine.cli.session import Session


def attach(session: Session, flags: Flags) -> int:
    """Join a running container's streams; returns its exit code."""
    name = flags.arguments[0]
    client = session.client
    info = client.get(f"/containers/{segment(name)}/json")
    state = info["State"]
    if not state["Running"]:
        raise Failure("You cannot attach to a stopped container, start it first")
    if state["Paused"]:
        raise Failure("You cannot attach to a paused container, unpause it first")
    if state.get("Restarting"):
        raise Failure("You cannot attach to a restarting container, wait until it is running")
    tty = info["Config"]["Tty"]
    stdin = not flags["no-stdin"] and info["Config"]["OpenStdin"]
    check_input_terminal(stdin, tty)
    keys = keys_for(session, flags["detach-keys"])
    path = f"/containers/{segment(info['Id'])}"
    with SignalsPassedOn(session, info["Id"], wanted=flags["sig-proxy"] and not tty):
        outcome = client.send("POST", f"{path}/wait", {"condition": ""})
        connection, leftover = client.hijack(
            f"{path}/attach",
            {"stream": True, "stdin": stdin or None, "stdout": True, "stderr": True, "detachKeys": keys},
        )
        with Resized(session, path, wanted=tty):
            pump(connection, leftover, stdin=stdin, stdout=True, stderr=True, tty=tty, keys=keys)
    status = outcome.response().json()
    if status.get("Error"):
        raise Failure(status["Error"]["Message"])
    return int(status["StatusCode"])


def start(session: Session, flags: Flags) -> int:
    """Start containers; with -a or -i join the one that is started."""
    names = flags.arguments
    query = {"checkpoint": flags["checkpoint"], "checkpoint-dir": flags["checkpoint-dir"]}
    if not (flags["attach"] or flags["interactive"]):
        try:
            session.each(names, lambda name: session.client.post(f"/containers/{segment(name)}/start", query))
        except Failure as failure:
            listed = [name for name in names if name in str(failure)] or names
            raise Failure(f"{failure}\nError: failed to start containers: {', '.join(listed)}") from None
        return 0
    if len(names) > 1:
        raise Failure("you cannot start and attach multiple containers at once")
    return _start_attached(session, flags, names[0], query)


def _start_attached(session: Session, flags: Flags, name: str, query: dict[str, str]) -> int:
    client = session.client
    info = client.get(f"/containers/{segment(name)}/json")
    config = info["Config"]
    tty, stdin = config["Tty"], bool(flags["interactive"] and config["OpenStdin"])
    keys = keys_for(session, flags["detach-keys"])
    path = f"/containers/{segment(info['Id'])}"
    removed = info["HostConfig"].get("AutoRemove")
    with SignalsPassedOn(session, info["Id"], wanted=not tty):
        connection, leftover = client.hijack(
            f"{path}/attach",
            {"stream": True, "stdin": stdin or None, "stdout": True, "stderr": True, "detachKeys": keys},
        )
        outcome = client.send("POST", f"{path}/wait", {"condition": "removed" if removed else "next-exit"})
        client.post(f"{path}/start", query)
        with Resized(session, path, wanted=tty):
            pump(connection, leftover, stdin=stdin, stdout=True, stderr=True, tty=tty, keys=keys)
    return int(outcome.response().json()["StatusCode"])


def execute(session: Session, flags: Flags) -> int:
    """Run a command in a running container; returns its exit code."""
    from engine.cli.run_options import environment

    name, *command = flags.arguments
    client = session.client
    tty, detach = flags["tty"], flags["detach"]
    keys = keys_for(session, flags["detach-keys"])
    body = {
        "User": flags["user"],
        "Privileged": flags["privileged"],
        "Tty": tty,
        "AttachStdin": flags["interactive"] and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Detach": detach,
        "DetachKeys": keys,
        "Env": environment(flags["env-file"], flags["env"]),
        "WorkingDir": flags["workdir"],
        "Cmd": command,
    }
    if not detach:
        check_input_terminal(body["AttachStdin"], tty)
    if tty:
        from engine.cli.terminal import size

        height, width = size()
        if height:
            body["ConsoleSize"] = [height, width]
    # dockerd answers a missing container with its own text here, so nothing is asked before.
    identifier = client.post(f"/containers/{segment(name)}/exec", body=body)["Id"]
    path = f"/exec/{identifier}"
    options = {"Detach": detach, "Tty": tty, **({"ConsoleSize": body["ConsoleSize"]} if "ConsoleSize" in body else {})}
    if detach:
        client.post(f"{path}/start", body=options)
        return 0
    try:
        connection, leftover = client.hijack(f"{path}/start", body=options)
    except ApiFailure as failure:
        raise Failure(str(failure), _start_code(failure.reason)) from None
    with Resized(session, path, wanted=tty):
        pump(connection, leftover, stdin=body["AttachStdin"], stdout=True, stderr=True, tty=tty, keys=keys)
    return int(client.get(f"{path}/json").get("ExitCode") or 0)


def _start_code(reason: str) -> int:
    if "executable file not found" in reason or "no such file or directory" in reason:
        return 127
    return 126 if "permission denied" in reason.lower() or "is a directory" in reason else 1


DETACH_KEYS = "- detach-keys string Override the key sequence for detaching a container"

COMMANDS = {
    "attach": Command(attach, "[OPTIONS] CONTAINER", f"""
{DETACH_KEYS}
- no-stdin bool Do not attach STDIN
- sig-proxy bool=true Proxy all received signals to the process (default true)
""", arguments=(1, 1)),
    "start": Command(start, "[OPTIONS] CONTAINER [CONTAINER...]", f"""
a attach bool Attach STDOUT/STDERR and forward signals
- checkpoint string Restore from this checkpoint
- checkpoint-dir string Use a custom checkpoint storage directory
{DETACH_KEYS}
i interactive bool Attach container's STDIN
""", arguments=(1, None)),
    "exec": Command(execute, "[OPTIONS] CONTAINER COMMAND [ARG...]", f"""
d detach bool Detached mode: run command in the background
{DETACH_KEYS}
e env list Set environment variables
- env-file list Read in a file of environment variables
i interactive bool Keep STDIN open even if not attached
- privileged bool Give extended privileges to the command
t tty bool Allocate a pseudo-TTY
u user string Username or UID (format: "<name|uid>[:<group|gid>]")
w workdir string Working directory inside the container
""", arguments=(2, None), interspersed=False),
}  # fmt: skip
