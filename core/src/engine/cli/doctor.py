"""``doctor``: what about this host deserves attention."""

from __future__ import annotations

from engine.cli.commands import Command
from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from engine.cli.flags import Flags
    from engine.cli.session import Session


def doctor(session: Session, flags: Flags) -> None:
    """Print the engine's findings, what is wrong first; the exit code is 1 when something is."""
    findings = session.client.get("/engine/networks/doctor")
    if flags["format"] == "json":
        import json

        session.out(json.dumps(findings))
    else:
        width = max((len(each["Check"]) for each in findings), default=0)
        for each in findings:
            session.out(f"{'ok' if each['Ok'] else '--'}  {each['Check']:<{width}}  {each['Detail']}")
            if each["Fix"] and not each["Ok"]:
                session.out(f"    {'':<{width}}  try: {each['Fix']}")
        if not findings:
            session.out("nothing deserves attention")
    if not all(each["Ok"] for each in findings):
        raise Failure("", 1)


COMMANDS = {
    "doctor": Command(doctor, "[OPTIONS]", '- format string Format output ("json"); default is text', arguments=(0, 0)),
}
