"""Command line flags in the grammar of Go's pflag, which the docker CLI uses.

``-it`` combines, ``-d=false`` and ``--detach=false`` switch off, ``-ex=y``, ``-e x=y``, ``--env=x=y`` and ``--env x=y``
give values, ``--`` ends the flags, and flags may follow arguments unless the command says otherwise.

A command declares its flags as text, one per line: short name or ``-``, long name, kind, description::

    a all    bool    Show all containers (default shows just running)
    - last   int=-1  Show n last created containers

A kind may carry a default (``int=-1``); a long name with ``!`` in front is accepted but not shown in the help; ``\\n``
in a description begins a new line.
"""

from __future__ import annotations

from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

TRUE = {"1", "t", "T", "true", "TRUE", "True"}
FALSE = {"0", "f", "F", "false", "FALSE", "False"}
LISTS = {"list", "filter", "map", "mount", "network", "ulimit", "strings", "gpu-request", "stringToString"}


class FlagError(Failure):
    """The command line is wrong; the caller adds the command's usage."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 125)


def parse_bool(text: str) -> bool:
    """Go's strconv.ParseBool."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def parse_int(text: str, low: int = -(1 << 63), high: int = (1 << 63) - 1, function: str = "ParseInt") -> int:
    """Go's strconv.ParseInt and ParseUint with base 0."""
    try:
        if text != text.strip() or (low == 0 and text[:1] in "+-"):
            raise ValueError
        digits = text.lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
        value = int(text, 8) if octal else int(text, 0)
    except ValueError:
        raise ValueError(f'strconv.{function}: parsing "{text}": invalid syntax') from None
    if not low <= value <= high:
        raise ValueError(f'strconv.{function}: parsing "{text}": value out of range')
    return value


def parse_uint(text: str) -> int:
    """Go's strconv.ParseUint for 64 bits."""
    return parse_int(text, 0, (1 << 64) - 1, "ParseUint")


def parse_uint16(text: str) -> int:
    """Go's strconv.ParseUint for 16 bits."""
    return parse_int(text, 0, 0xFFFF, "ParseUint")


def _parse_bytes(text: str) -> int:
    from engine.cli.units import parse_bytes

    return parse_bytes(text)


def _parse_memory_swap(text: str) -> int:
    return -1 if text == "-1" else _parse_bytes(text)


def _parse_duration(text: str) -> int:
    from engine.cli.units import parse_duration

    return parse_duration(text)


def _parse_decimal(text: str) -> int:
    from engine.cli.units import parse_nano

    return parse_nano(text)


PARSERS: dict[str, Callable[[str], Any]] = {
    "bool": parse_bool,
    "int": parse_int,
    "uint": parse_uint,
    "uint16": parse_uint16,
    "bytes": _parse_bytes,
    "swap": _parse_memory_swap,
    "duration": _parse_duration,
    "decimal": _parse_decimal,
    "string": str,
}
ZEROES: dict[str, Any] = {"bool": False, "string": ""}


class Flag:
    """One declared flag."""

    __slots__ = ("about", "default", "hidden", "kind", "name", "short")

    def __init__(self, line: str) -> None:
        short, name, kind, *about = line.split(None, 3)
        self.short = "" if short == "-" else short
        self.hidden = name.startswith("!")
        self.name = name.removeprefix("!")
        self.kind, _, default = kind.partition("=")
        self.about = about[0].rstrip().replace("\\n", "\n") if about else ""
        self.default: Any
        if self.kind in LISTS:
            self.default = []
        elif default:
            self.default = PARSERS[self.kind](default)
        else:
            self.default = ZEROES.get(self.kind, 0)

    @property
    def label(self) -> str:
        """How pflag names the flag in errors: ``-n, --last``."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


class Flags:
    """What the command line said: values by long name, and the arguments."""

    def __init__(self, declared: Sequence[Flag]) -> None:
        self.declared = {flag.name: flag for flag in declared}
        self.values: dict[str, Any] = {}
        self.arguments: list[str] = []

    def __getitem__(self, name: str) -> Any:
        """The value of a flag, or its default."""
        if name in self.values:
            return self.values[name]
        return self.declared[name].default

    def changed(self, name: str) -> bool:
        """Whether the flag was given."""
        return name in self.values

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a flag this command may not have."""
        return self[name] if name in self.declared else default

    def invalid(self, name: str, value: str, reason: object) -> FlagError:
        """The error pflag makes when a flag refuses its value."""
        return FlagError(f'invalid argument "{value}" for "{self.declared[name].label}" flag: {reason}')

    def set(self, name: str, text: str) -> None:
        """Give a flag its value, as text."""
        flag = self.declared[name]
        if flag.kind in LISTS:
            more = _split_csv(text) if flag.kind == "strings" else [text]
            self.values.setdefault(name, []).extend(more)
            return
        try:
            self.values[name] = PARSERS[flag.kind](text)
        except ValueError as error:
            raise self.invalid(name, text, error) from None


def _split_csv(text: str) -> list[str]:
    if '"' not in text:
        return text.split(",")
    import csv

    return next(csv.reader([text]))


def declare(text: str) -> list[Flag]:
    """The flags of a declaration text (see the module's docstring)."""
    return [Flag(line) for line in text.splitlines() if line.strip()]


def parse(declared: Sequence[Flag], words: Sequence[str], *, interspersed: bool = True) -> Flags:
    """Read a command line; with ``interspersed`` off the first argument ends the flags.

    Raises `FlagError` in pflag's words.
    """
    flags = Flags(declared)
    shorts = {flag.short: flag for flag in declared if flag.short}
    words = list(words)
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            flags.arguments += words[position:]
            break
        if len(word) < 2 or word[0] != "-":
            flags.arguments.append(word)
            if not interspersed:
                flags.arguments += words[position:]
                break
            continue
        if word[1] == "-":
            name, equals, value = word[2:].partition("=")
            if not name or name[0] == "-":
                raise FlagError(f"bad flag syntax: {word}")
            flag = flags.declared.get(name)
            if flag is None:
                raise FlagError(f"unknown flag: --{name}")
            if equals:
                pass
            elif flag.kind == "bool":
                value = "true"
            elif position < len(words):
                value = words[position]
                position += 1
            else:
                raise FlagError(f"flag needs an argument: --{name}")
            flags.set(name, value)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = shorts.get(letter)
            if flag is None:
                raise FlagError(f"unknown shorthand flag: '{letter}' in -{letter}{letters}")
            if letters.startswith("="):
                value, letters = letters[1:], ""
            elif flag.kind == "bool":
                value = "true"
            elif letters:
                value, letters = letters, ""
            elif position < len(words):
                value = words[position]
                position += 1
            else:
                raise FlagError(f"flag needs an argument: '{letter}' in -{word[1:]}")
            flags.set(flag.name, value)
    return flags
