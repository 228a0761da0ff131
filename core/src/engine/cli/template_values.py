"""Values in templates: how Go prints and compares them, and the functions templates may call."""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


# Objects of the API that Go prints as structs, ``{a b}``: their fields in order, with their zero values.
STRUCTS: tuple[dict[str, Any], ...] = (
    {"HostIp": "", "HostPort": ""},
    {"Type": "", "Name": "", "Source": "", "Destination": "", "Driver": "", "Mode": "", "RW": False, "Propagation": ""},
    {"Name": "", "MaximumRetryCount": 0},
    {"Type": "", "Config": {}},
)


class Missing:
    """What a map gives for a key it lacks; prints as ``<no value>``."""

    def __bool__(self) -> bool:
        return False


MISSING = Missing()


class Fields:
    """A value with named fields and methods that are computed when asked for."""

    type_name = "struct"

    def names(self) -> list[str]:
        """The fields, sorted: what ``json`` shows."""
        raise NotImplementedError

    def field(self, name: str) -> Any:
        """A field's value, or a function for a method with arguments. KeyError when there is none."""
        raise NotImplementedError


def to_json(value: Any) -> str:
    """The ``json`` function."""
    if isinstance(value, Fields):
        body = {name: value.field(name) for name in value.names()}
        return escape_html(json.dumps(body, ensure_ascii=False, separators=(",", ":")))
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def escape_html(text: str) -> str:
    """What Go's json.Marshal does to ``<``, ``>`` and ``&``."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Fields):
        return {name: _plain(value.field(name)) for name in value.names()}
    return None if isinstance(value, Missing) else value


def to_text(value: Any) -> str:
    """How Go prints a value with ``%v``."""
    if isinstance(value, str):
        return value
    if value is True or value is False:
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if isinstance(value, Missing):
        return "<no value>"
    if isinstance(value, dict):
        for fields in STRUCTS:
            if value and value.keys() <= fields.keys() and next(iter(fields)) in value:
                return "{" + " ".join(to_text(value.get(name, zero)) for name, zero in fields.items()) + "}"
        return (
            "map["
            + " ".join(f"{to_text(key)}:{'{}' if value[key] == {} else to_text(value[key])}" for key in sorted(value))
            + "]"
        )
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(to_text(item) for item in value) + "]"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Fields):
        return "{" + " ".join(to_text(value.field(name)) for name in value.names()) + "}"
    return str(value)


def _float(value: float) -> str:
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    mantissa, exponent, digits = repr(value).partition("e")
    return f"{mantissa}e{digits[0]}{digits[1:].rjust(2, '0')}" if exponent else mantissa


def _compare_ready(left: Any, right: Any, name: str) -> None:
    def kind(value: Any) -> str:
        if isinstance(value, bool):
            return "bool"
        return {int: "int", float: "float", str: "string"}.get(type(value), "none")

    kinds = {kind(left), kind(right)}
    if name not in ("eq", "ne") and ("none" in kinds or "bool" in kinds):
        raise ValueError(f"error calling {name}: invalid type for comparison")
    if len(kinds) > 1 and "none" not in kinds and kinds != {"int", "float"}:
        raise ValueError(f"error calling {name}: incompatible types for comparison")


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("error calling eq: missing argument for comparison")
    for other in others:
        _compare_ready(first, other, "eq")
        if (None if isinstance(first, Missing) else first) == (None if isinstance(other, Missing) else other):
            return True
    return False


def _less(name: str, test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(left: Any, right: Any) -> bool:
        _compare_ready(left, right, name)
        return test(left, right)

    return compare


def _length(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, (list, dict)):
        return len(value)
    raise ValueError(f"error calling len: len of type {go_type(value)}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, "")
        elif isinstance(value, (list, str)):
            if not isinstance(key, int) or isinstance(key, bool):
                raise ValueError(f"error calling index: cannot index slice/array with type {go_type(key)}")
            if not 0 <= key < len(value):
                raise ValueError(f"error calling index: reflect: slice index out of range: {key}")
            value = value[key] if isinstance(value, list) else value.encode()[key]
        elif value is None:
            raise ValueError("error calling index: index of untyped nil")
        else:
            raise ValueError(f"error calling index: can't index item of type {go_type(value)}")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    try:
        low, high = (bounds[0] if bounds else 0), (bounds[1] if len(bounds) > 1 else len(value))
    except TypeError:
        raise ValueError(f"error calling slice: can't slice item of type {go_type(value)}") from None
    if not 0 <= low <= high <= len(value):
        raise ValueError(f"error calling slice: index out of range: {high}")
    return value[low:high]


def _join(items: Any, separator: str) -> str:
    return separator.join(to_text(item) for item in items or [])


def _truncate(text: str, length: int) -> str:
    return text if len(text) < length else text[:length]


def _title(text: str) -> str:
    return re.sub(r"(^|[^\w'])([a-z])", lambda match: match[1] + match[2].upper(), text)


def _print(*values: Any) -> str:
    result = ""
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            result += " "
        result += to_text(value)
    return result


_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d+))?([a-zA-Z%])")


def _printf(pattern: str, *values: Any) -> str:
    rest = list(values)

    def expand(match: re.Match[str]) -> str:
        marks, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        value = rest.pop(0)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if verb == "q":
            text = quote(to_text(value))
        elif verb == "T":
            text = go_type(value)
        elif verb == "t" and isinstance(value, bool):
            text = to_text(value)
        elif (verb in "dxXob" and number) or (verb in "feEgG" and number):
            if verb in "feEgG":
                text = format(float(value), f".{precision}{verb}" if precision else verb)
            else:
                text = format(int(value), verb)
            if "+" in marks and value >= 0:
                text = f"+{text}"
        elif verb == "x":
            text = to_text(value).encode().hex()
        elif verb in "vs":
            text = to_text(value)
            text = text[: int(precision)] if precision else text
        else:
            text = f"%!{verb}({go_type(value)}={to_text(value)})"
        if not width:
            return text
        if "-" in marks:
            return text.ljust(int(width))
        return text.zfill(int(width)) if "0" in marks and number else text.rjust(int(width))

    result = _VERB.sub(expand, pattern)
    if rest:
        result += "%!(EXTRA " + ", ".join(f"{go_type(value)}={to_text(value)}" for value in rest) + ")"
    return result


_ESCAPES = {
    "\n": "\\n",
    "\t": "\\t",
    "\r": "\\r",
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\v": "\\v",
}


def quote(text: str) -> str:
    """Go's strconv.Quote."""

    def escape(character: str) -> str:
        if character in _ESCAPES:
            return _ESCAPES[character]
        if character.isprintable():
            return character
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            return f"\\x{code - 0xDC00:02x}"
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(escape, text)) + '"'


def go_type(value: Any) -> str:
    """The name Go has for a value's type."""
    if isinstance(value, Fields):
        return value.type_name
    names: dict[type, str] = {bool: "bool", int: "int", float: "float64", str: "string", list: "[]interface {}",
                              dict: "map[string]interface {}", type(None): "nil"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def _urlquery(*values: Any) -> str:
    from urllib.parse import quote_plus

    return quote_plus(_print(*values))


def _html(*values: Any) -> str:
    from html import escape

    return escape(_print(*values)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": to_json,
    "split": lambda text, separator: text.split(separator) if separator else list(text),
    "join": _join,
    "title": _title,
    "lower": str.lower,
    "upper": str.upper,
    "pad": lambda text, left, right: " " * left + text + " " * right if text else text,
    "truncate": _truncate,
    "not": lambda value: not truth(value),
    "len": _length,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "printf": _printf,
    "println": lambda *values: " ".join(map(to_text, values)) + "\n",
    "html": _html,
    "urlquery": _urlquery,
    "eq": _equal,
    "ne": lambda left, right: not _equal(left, right),
    "lt": _less("lt", lambda left, right: bool(left < right)),
    "le": _less("le", lambda left, right: bool(left <= right)),
    "gt": _less("gt", lambda left, right: bool(left > right)),
    "ge": _less("ge", lambda left, right: bool(left >= right)),
}


def truth(value: Any) -> bool:
    """Go's idea of true: not the zero value."""
    return bool(value) or isinstance(value, Fields)
