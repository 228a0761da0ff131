"""``explain``: why a container can or cannot reach another, station by station; or one container by itself."""

from __future__ import annotations

from engine.cli.commands import Command
from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session


def _endpoint(text: str) -> tuple[str, str, str]:
    """``B``, ``B:80``, ``B:80/udp``, ``[::1]:80`` as name, port and protocol."""
    text, _, protocol = text.partition("/")
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        return name, rest.removeprefix(":"), protocol or "tcp"
    name, colon, port = text.rpartition(":")
    if not colon or ":" in name:  # no port, or an IPv6 address
        return text, "", protocol or "tcp"
    return name, port, protocol or "tcp"


def explain(session: Session, flags: Flags) -> None:
    """Ask the engine, print its findings; the exit code is 1 when there is no way."""
    if flags["port"]:
        if flags.arguments:
            raise Failure("--port is about a port of the host: it takes no containers")
        port, _, protocol = flags["port"].partition("/")
        query = {"port": port, "protocol": protocol or "tcp"}
        title = f"port {port}/{protocol or 'tcp'} of the host"
    elif len(flags.arguments) == 1:
        from engine.cli import explain_container

        explain_container.explain(session, flags.arguments[0], flags["format"])
        return
    else:
        if len(flags.arguments) != 2:
            raise Failure("name one container, two (engine explain A B[:PORT]), or a port (engine explain --port 8080)")
        source, (target, port, protocol) = flags.arguments[0], _endpoint(flags.arguments[1])
        query = {"from": source, "to": target, "port": port, "protocol": protocol}
        title = f"{source} -> {target}" + (f" at port {port}/{protocol}" if port else "")
    answer = session.client.get("/engine/networks/explain", query)
    if flags["format"] == "json":
        import json

        session.out(json.dumps(answer))
    else:
        session.out(_text(title, answer))
    if not answer["Reachable"]:
        raise Failure("", 1)


def _text(title: str, answer: dict[str, Any]) -> str:
    steps = answer["Steps"]
    width = max((len(step["Check"]) for step in steps), default=0)
    lines = [f"{title}: {'yes' if answer['Reachable'] else 'no'}", ""]
    for step in steps:
        lines.append(f"  {'ok' if step['Ok'] else '--'}  {step['Check']:<{width}}  {step['Detail']}")
        if step["Fix"] and not step["Ok"]:
            lines.append(f"      {'':<{width}}  try: {step['Fix']}")
    return "\n".join(lines)


COMMANDS = {
    "explain": Command(explain, "[OPTIONS] CONTAINER\nA B[:PORT[/PROTOCOL]]\n--port PORT[/PROTOCOL]", """
- format string Format output ("json"); default is text
- port string Explain a port of the host
""", arguments=(0, 2)),
}  # fmt: skip
