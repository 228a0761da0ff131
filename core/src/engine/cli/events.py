"""``events``."""

from __future__ import annotations

import time

from engine.cli.commands import Command
from engine.cli.containers import INSPECT_FORMAT_HELP
from engine.cli.failures import Failure
from engine.cli.session import filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session


def line(event: dict[str, Any]) -> str:
    """One event as docker prints it: time, type, action, actor, attributes."""
    nanoseconds = event.get("timeNano") or event.get("time", 0) * 10**9
    moment = time.localtime(nanoseconds // 10**9)
    zone = time.strftime("%z", moment)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{nanoseconds % 10**9:09d}"
    stamp += "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    actor = event.get("Actor") or {}
    attributes = ", ".join(f"{key}={value}" for key, value in sorted((actor.get("Attributes") or {}).items()))
    text = f"{stamp} {event['Type']} {event['Action']} {actor.get('ID', '')}"
    return f"{text} ({attributes})" if attributes else text


def events(session: Session, flags: Flags) -> None:
    """Print events as they happen."""
    from engine.cli.units import timestamp

    query: dict[str, Any] = {"filters": filters(flags["filter"])}
    for bound in ("since", "until"):
        try:
            query[bound] = timestamp(flags[bound])
        except ValueError as error:
            raise Failure(f'invalid value for "{bound}": {error}') from None
    template = None
    if flags["format"]:
        from engine.cli.templates import Template, TemplateError

        try:
            text = (
                "{{json .}}" if flags["format"] == "json" else flags["format"].replace("\\t", "\t").replace("\\n", "\n")
            )
            template = Template(text)
        except TemplateError as error:
            raise Failure(f"failed to parse template: {error}", 64) from None
    for event in session.client.request("GET", "/events", query).messages():
        if template is None:
            session.out(line(event))
        else:
            session.out(template.render(_aliased(event, flags["format"])))
        _flush()


def _aliased(event: dict[str, Any], template: str) -> dict[str, Any]:
    """The fields under the names Go has for them, which templates use."""
    if template in ("json", "{{json .}}"):
        return event
    fields = {"Status": "status", "ID": "id", "Scope": "scope", "Time": "time", "TimeNano": "timeNano", "From": "from"}
    return {**event, **{name: event.get(key, "") for name, key in fields.items()}}


def _flush() -> None:
    import sys

    sys.stdout.flush()


COMMANDS = {
    "events": Command(events, "[OPTIONS]", f"""
f filter filter Filter output based on conditions provided
- format string {INSPECT_FORMAT_HELP}
- since string Show all events created since timestamp
- until string Stream events until this timestamp
"""),
}  # fmt: skip
