"""Lists of objects: Docker's tables, ``--format`` templates and JSON lines.

A kind of object declares its columns once, as `Columns`: name, header, and how to get the text from the API's record.
The default tables need no template engine, which keeps the common commands fast.
"""

from __future__ import annotations

import sys

from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from engine.cli.session import Session

PADDING = 3
LEAST_WIDTH = 10


def aligned(rows: Sequence[Sequence[str]], least: int = LEAST_WIDTH, padding: int = PADDING) -> list[str]:
    """Go's tabwriter: each cell but the last of its line is padded to the widest of the column's adjoining cells."""
    lines = [""] * len(rows)
    deepest = max((len(row) for row in rows), default=0)
    for column in range(deepest):
        start = 0
        while start < len(rows):
            if column >= len(rows[start]) - 1:
                if column == len(rows[start]) - 1:
                    lines[start] += rows[start][column]
                start += 1
                continue
            end = start
            while end < len(rows) and column < len(rows[end]) - 1:
                end += 1
            width = max(least, max(len(row[column]) for row in rows[start:end]) + padding)
            for index in range(start, end):
                lines[index] += rows[index][column].ljust(width)
            start = end
    return lines


class Columns:
    """What can be shown of one kind of object.

    ``fields`` maps a name to its header and a function of ``(record, full)`` (``full``: --no-trunc);
    ``methods`` to functions of ``(record, argument)``; ``type_name`` appears in Go's error messages.
    """

    def __init__(self, type_name: str, fields: dict[str, tuple[str, Callable[[Any, bool], Any]]], default: str,
                 quiet: str = "ID", methods: dict[str, Callable[[Any, Any], Any]] | None = None) -> None:  # fmt: skip
        self.type_name = type_name
        self.fields = fields
        self.default = default.split()
        self.quiet = quiet
        self.methods = methods or {}


def wanted_format(session: Session, flag: str, setting: str, *, quiet: bool = False) -> str:
    """The format to use: the flag, else the configuration's (not with --quiet), else ``table``."""
    if flag:
        return flag
    if not quiet and session.config.get(setting):
        return str(session.config[setting])
    return "table"


def show(session: Session, columns: Columns, records: Iterable[Any], template: str, *, quiet: bool = False,
         full: bool = False, extra: str = "") -> None:  # fmt: skip
    """Print records in the format a user asked for (see `wanted_format`); ``extra`` names additional columns."""
    if template in ("table", "") and quiet:
        take = columns.fields[columns.quiet][1]
        session.out(*[take(record, full) for record in records])
        return
    if template in ("table", ""):
        print_table(session, columns, records, [*columns.default, *extra.split()], full=full)
        return
    if quiet and not template.startswith("table"):
        session.warn("WARNING: Ignoring custom format, because both --format and --quiet are set.")
        take = columns.fields[columns.quiet][1]
        session.out(*[take(record, full) for record in records])
        return
    if template == "json":
        template = "{{json .}}"
    template = template.replace("\\t", "\t").replace("\\n", "\n")
    tabular = template.startswith("table")
    if tabular:
        template = template[5:].strip()
        if quiet:
            template = f"{{{{.{columns.quiet}}}}}"
    _show_template(session, columns, records, template, full=full, header=tabular)


def print_table(session: Session, columns: Columns, records: Iterable[Any], names: Sequence[str], *,
                full: bool = False) -> None:  # fmt: skip
    """The default table."""
    takes = [columns.fields[name][1] for name in names]
    rows = [[columns.fields[name][0] for name in names]]
    rows += [[take(record, full) for take in takes] for record in records]
    session.out(*aligned(rows))


def _show_template(session: Session, columns: Columns, records: Iterable[Any], text: str, *, full: bool,
                   header: bool) -> None:  # fmt: skip
    from engine.cli.templates import Fields, Template, TemplateError

    class Record(Fields):
        type_name = columns.type_name

        def __init__(self, record: Any) -> None:
            self.record = record

        def names(self) -> list[str]:
            return sorted(columns.fields)

        def field(self, name: str) -> Any:
            if name in columns.methods:
                method = columns.methods[name]
                return lambda *arguments: method(self.record, *arguments)
            return columns.fields[name][1](self.record, full)

    try:
        template = Template(text)
    except TemplateError as error:
        raise Failure(f"failed to parse template: {error}") from None
    lines = []
    try:
        for record in records:
            lines.append(template.render(Record(record)))
    except TemplateError as error:
        if not header:
            session.out(*lines)
        raise Failure(f"failed to execute template: {error}") from None
    if not header:
        session.out(*lines)
        return
    titles = {name: title for name, (title, _) in columns.fields.items()}
    first = header_line(text, titles)
    rows = [line.split("\t") for entry in [first, *lines] for line in entry.split("\n")]
    session.out(*aligned(rows))


def header_line(text: str, titles: dict[str, str]) -> str:
    """The header of a ``table TEMPLATE``: the template over the headers, its functions passing headers through."""
    from engine.cli.templates import Template, TemplateError

    def label(argument: Any = "", *rest: Any) -> Any:
        names = argument.split(".") if isinstance(argument, str) else []
        return names[-1] if rest == () and names else argument

    passing = {name: (lambda value, *rest: value) for name in ("json", "join", "title", "lower", "upper", "truncate",
                                                                "pad", "split", "println")}  # fmt: skip
    header: dict[str, Any] = {**titles, "Label": label}
    try:
        return Template(text, passing).render(header)
    except TemplateError as error:
        raise Failure(f"failed to execute template: {error}") from None


def flush() -> None:
    """Hand over what was printed, for output that comes in time with events."""
    sys.stdout.flush()
