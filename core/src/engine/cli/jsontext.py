"""JSON without the json package, whose import (with re and enum) would be a third of the time of ``engine ps``.

Reading uses the scanner that the json package itself is built on; should an interpreter not have it, json is imported.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\r\n"


class _Rules:
    """What the scanner asks of a decoder: everything as usual."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


def _reader() -> Callable[[str], Any]:
    try:
        from _json import make_scanner

        scan = make_scanner(_Rules())  # type: ignore[arg-type]
    except (ImportError, AttributeError, TypeError):
        import json

        return json.loads

    def read(text: str) -> Any:
        start = 0
        while text[start : start + 1] in tuple(_SPACE):
            start += 1
        try:
            value, end = scan(text, start)
        except (StopIteration, SystemError):
            end = -1
        if end < 0 or text[end:].strip(_SPACE):
            import json

            value = json.loads(text)  # raises, with the place and the reason
        return value

    return read


_read = _reader()


def loads(data: bytes | str) -> Any:
    """The value of a JSON text. ValueError when it is none."""
    return _read(data.decode("utf-8", "replace") if isinstance(data, bytes) else data)


def dumps(value: Any) -> str:
    """Compact JSON, in ASCII."""
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(str(key))}:{dumps(item)}" for key, item in value.items()) + "}"
    return "[" + ",".join(map(dumps, value)) + "]"


def _quoted(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    pieces = []
    for unit in memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H"):
        plain = 0x20 <= unit < 0x7F and unit not in (0x22, 0x5C)
        pieces.append(chr(unit) if plain else f"\\u{unit:04x}")
    return '"' + "".join(pieces) + '"'
