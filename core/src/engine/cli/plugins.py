"""``plugin ls``: the components this engine is made of."""

from __future__ import annotations

from engine.cli.commands import Command
from engine.cli.containers import FORMAT_HELP
from engine.cli.session import filters
from engine.cli.tables import Columns, show, wanted_format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session


def _text(name: str) -> Any:
    def take(record: dict[str, Any], full: bool) -> str:
        value = next((item for key, item in record.items() if key.lower() == name), "")
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")

    return take


PLUGINS = Columns(
    "*plugin.pluginContext",
    {
        name: (name.upper(), _text(name.lower()))
        for name in "Name Version Distribution Kind Provides State Error".split()
    },
    "Name Version Distribution Kind Provides State Error",
    quiet="Name",
)


def ls(session: Session, flags: Flags) -> None:
    """List plugins: where each comes from, what it provides, and why it is not there."""
    template = wanted_format(session, flags["format"], "pluginsFormat", quiet=flags["quiet"])
    found = session.client.get("/engine/plugins", {"filters": filters(flags["filter"])}) or []
    show(session, PLUGINS, found, template, quiet=flags["quiet"], full=flags["no-trunc"])


COMMANDS = {
    "plugin ls": Command(ls, "[OPTIONS]", f"""
f filter filter Provide filter values (e.g. "enabled=true")
- format string {FORMAT_HELP}
- no-trunc bool Don't truncate output
q quiet bool Only display plugin names
"""),
}  # fmt: skip
