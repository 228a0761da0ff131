"""Help texts in the layout of the docker CLI."""

from __future__ import annotations

import os

from engine.cli.client import DEFAULT_HOST
from engine.cli.commands import ALIASES, GROUPS, Command, Row, rows
from engine.cli.flags import Flag, declare
from engine.cli.session import GLOBAL_FLAGS

SHOWN_KINDS = {"bool": "", "swap": "bytes"}


def _width() -> int:
    try:
        return os.get_terminal_size(0).columns
    except OSError:
        return 80


def _wrap_once(limit: int, slop: int, text: str) -> tuple[str, str]:
    if limit + slop > len(text):
        return text, ""
    cut = max(text.rfind(character, 0, limit) for character in " \t\n")
    if cut <= 0:
        return text, ""
    newline = text.rfind("\n", 0, limit)
    if 0 < newline < cut:
        cut = newline
    return text[:cut], text[cut + 1 :]


def _wrap(indent: int, width: int, text: str) -> str:
    slop = 5
    room = width - indent - slop
    if room < 24:
        return text.replace("\n", "\n" + " " * indent)
    line, rest = _wrap_once(room, slop, text)
    result = line.replace("\n", "\n" + " " * indent)
    while rest:
        line, rest = _wrap_once(room, slop, rest)
        result += "\n" + " " * indent + line.replace("\n", "\n" + " " * indent)
    return result


def flag_table(declared: list[Flag]) -> str:
    """The options, aligned and wrapped as pflag does it."""
    left = []
    for flag in sorted((flag for flag in declared if not flag.hidden), key=lambda flag: flag.name):
        kind = SHOWN_KINDS.get(flag.kind, flag.kind)
        short = f"-{flag.short}, " if flag.short else "    "
        left.append((f"  {short}--{flag.name}{' ' + kind if kind else ''}", flag.about))
    indent = max((len(text) for text, _ in left), default=0) + 3
    return "\n".join(f"{text.ljust(indent)}{_wrap(indent, _width() - 1, about)}" for text, about in left)


def command_help(row: Row, name: str, command: Command, declared: list[Flag]) -> str:
    """``engine X --help``."""
    usages = [f"engine {name} {usage}".rstrip() for usage in command.usage.split("\n")]
    parts = ["Usage:  " + "\n\t".join(usages), command.about or row.about]
    same = [other.path for other in rows() if (other.module, other.key) == (row.module, row.key)]
    same.sort(key=lambda path: " " not in path)
    same[1:1] = [alias for alias, path in ALIASES.items() if path in same]
    if len(same) > 1:
        parts.append("Aliases:\n  " + ", ".join(f"engine {path}" for path in same))
    table = flag_table(declared)
    if table:
        parts.append(f"Options:\n{table}")
    return "\n\n".join(parts)


def group_help(name: str) -> str:
    """``engine container --help``."""
    members = [row for row in rows() if row.path.startswith(f"{name} ") and "dial-stdio" not in row.path]
    listing = "\n".join(f"  {row.path.split()[1]:<11} {row.about}" for row in members)
    return (f"Usage:  engine {name} COMMAND\n\n{GROUPS[name]}\n\nCommands:\n{listing}\n\n"
            f"Run 'engine {name} COMMAND --help' for more information on a command.")  # fmt: skip


def overview(directory: str) -> str:
    """``engine --help``."""
    table = [row for row in rows() if " " not in row.path]
    common = "\n".join(f"  {row.path:<11} {row.about}" for row in table if row.common)
    groups = "\n".join(f"  {name:<11} {about}" for name, about in GROUPS.items())
    others = "\n".join(f"  {row.path:<11} {row.about}" for row in table if not row.common)
    flags = flag_table(declare(GLOBAL_FLAGS.format(config=directory, host=DEFAULT_HOST)))
    return f"""Usage:  engine [OPTIONS] COMMAND

A container engine made of plugins

Common Commands:
{common}

Management Commands:
{groups}

Commands:
{others}

Global Options:
{flags}

Run 'engine COMMAND --help' for more information on a command."""
