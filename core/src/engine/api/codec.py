"""JSON as Go's encoding/json reads and writes it, since that is what clients of the Docker API were written against.

Reading: ``null`` leaves a field at its zero value, keys match whatever their case, unknown keys are ignored, a wrong
type is a 400 in Go's words. Writing: ``<``, ``>`` and ``&`` are escaped and a newline ends the document.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar, Union, get_args, get_origin, overload

import msgspec

from engine.errors import InvalidParameter

__all__ = ["decode", "encode", "read_json"]

_T = TypeVar("_T")
_Converter = Callable[[Any, str], Any]

_encoder = msgspec.json.Encoder()

# Go's strslice.StrSlice: a list that may be written as one string.
_STRING_OR_LIST = frozenset(
    {
        ("Config", "Cmd"),
        ("Config", "Entrypoint"),
        ("Config", "Shell"),
        ("HostConfig", "CapAdd"),
        ("HostConfig", "CapDrop"),
    }
)


def encode(value: object) -> bytes:
    """``value`` (structs, mappings, lists, numbers, text) as the API writes it, with the closing newline."""
    raw = _encoder.encode(value)
    if b"&" in raw or b"<" in raw or b">" in raw:
        raw = raw.replace(b"&", b"\\u0026").replace(b"<", b"\\u003c").replace(b">", b"\\u003e")
    if b"\xe2\x80" in raw:
        raw = raw.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return raw + b"\n"


@overload
def decode(body: bytes, kind: type[_T]) -> _T: ...
@overload
def decode(body: bytes, kind: Any) -> Any: ...
def decode(body: bytes, kind: Any) -> Any:
    """Read one JSON document as ``kind``: a msgspec struct, a builtin, a list or dict of them, or `Any`.

    Raises `InvalidParameter` in dockerd's words; an empty body is one of the errors.
    """
    if not body.strip(b" \t\r\n"):
        raise InvalidParameter("invalid JSON: got EOF while reading request body")
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        if "trailing characters" in str(error):
            raise InvalidParameter("unexpected content after JSON") from None
        if "truncated" in str(error):
            raise InvalidParameter("invalid JSON: unexpected EOF") from None
        raise InvalidParameter(f"invalid JSON: {_go_syntax_error(body, error)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise InvalidParameter("invalid JSON: exceeded max depth") from None
    if value is None:
        return kind() if isinstance(kind, type) else None
    return _converter(kind)(value, "")


def read_json(body: bytes, content_type: str, kind: Any) -> Any:
    """dockerd's ``httputils.ReadJSON``: check the content type, and read; an empty body gives ``kind()``."""
    if not body and not content_type:
        return kind()
    check_content_type(content_type)
    return decode(body, kind) if body else kind()


def check_content_type(content_type: str) -> None:
    """Raise unless it is ``application/json``, parameters allowed."""
    if not content_type:
        raise InvalidParameter("malformed Content-Type header (): mime: no media type")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise InvalidParameter(f"unsupported Content-Type header ({content_type}): must be 'application/json'")


def _go_syntax_error(body: bytes, error: Exception) -> str:
    """Go's ``invalid character 'x' looking for beginning of value``, as far as the position tells."""
    text = str(error)
    _, found, position = text.partition("(byte ")
    if found and position.rstrip(")").isdigit():
        offset = int(position.rstrip(")"))
        if offset < len(body):
            return f"invalid character {chr(body[offset])!r} looking for beginning of value"
    return text


# -- conversion -------------------------------------------------------------------------------------------------


def _json_kind(value: object) -> str:
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _refuse(value: object, path: str, go_type: str) -> InvalidParameter:
    where = f"Go struct field {path}" if path else "Go value"
    what = _json_kind(value)
    if what == "number" and go_type in ("int", "int64", "uint16"):
        what = f"number {value}"
    return InvalidParameter(f"invalid JSON: json: cannot unmarshal {what} into {where} of type {go_type}")


def _go_type(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _go_type(next(part for part in get_args(kind) if part is not type(None)))
    if origin is list:
        return "[]" + _go_type(get_args(kind)[0])
    if origin is dict:
        return "map[string]" + _go_type(get_args(kind)[1])
    if origin is tuple:
        return f"[{len(get_args(kind))}]" + _go_type(get_args(kind)[0])
    names: dict[Any, str] = {str: "string", bool: "bool", int: "int64", float: "float64", Any: "interface {}"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))


@functools.cache
def _converter(kind: Any) -> _Converter:
    origin = get_origin(kind)
    if kind is Any or kind is object:
        return lambda value, path: value
    if origin in (Union, types.UnionType):
        return _converter(next(part for part in get_args(kind) if part is not type(None)))
    if origin is list or kind is list:
        return _list_converter(kind)
    if origin is dict or kind is dict:
        return _dict_converter(kind)
    if origin is tuple:
        return _tuple_converter(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct_converter(kind)
    return _scalar_converter(kind)


def _scalar_converter(kind: Any) -> _Converter:
    name = _go_type(kind)
    zero = kind()

    def convert(value: Any, path: str) -> Any:
        if type(value) is kind:
            if kind is int and not -(1 << 63) <= value < 1 << 64:
                raise _refuse(value, path, name)
            return value
        if value is None:
            return zero
        if kind is float and type(value) is int:
            return float(value)
        if kind is int and type(value) is float and value.is_integer() and abs(value) < 1 << 63:
            return int(value)
        raise _refuse(value, path, name)

    return convert


def _list_converter(kind: Any) -> _Converter:
    inner = _converter((get_args(kind) or (Any,))[0])
    name = _go_type(kind)

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise _refuse(value, path, name)
        return [inner(item, path) for item in value]

    return convert


def _string_or_list(value: Any, path: str) -> Any:
    if isinstance(value, str):
        return [value]
    return _converter(list[str])(value, path)


def _dict_converter(kind: Any) -> _Converter:
    inner_kind = (get_args(kind) or (str, Any))[1]
    inner = _converter(inner_kind)
    name = _go_type(kind)
    nullable = get_origin(inner_kind) in (Union, types.UnionType) and type(None) in get_args(inner_kind)

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise _refuse(value, path, name)
        return {key: _element(inner, item, path, nullable, inner_kind) for key, item in value.items()}

    return convert


def _element(inner: _Converter, item: Any, path: str, nullable: bool, kind: Any) -> Any:
    if item is None:
        if nullable or kind is Any:
            return None
        base = get_origin(kind) or kind
        return base()
    return inner(item, path)


def _tuple_converter(kind: Any) -> _Converter:
    parts = [_converter(part) for part in get_args(kind)]
    name = _go_type(kind)

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise _refuse(value, path, name)
        padded = (value + [None] * len(parts))[: len(parts)]
        return tuple(part(item, path) for part, item in zip(parts, padded, strict=True))

    return convert


def _struct_converter(kind: type[msgspec.Struct]) -> _Converter:
    """Converters are looked up on first use, so that structs may refer to themselves."""
    by_name: dict[str, tuple[str, str, _Converter]] = {}
    folded: dict[str, tuple[str, str, _Converter]] = {}

    def prepare() -> None:
        for item in msgspec.structs.fields(kind):
            special = (kind.__name__, item.encode_name) in _STRING_OR_LIST
            convert = _string_or_list if special else _converter(item.type)
            entry = (item.name, item.encode_name, convert)
            by_name[item.encode_name] = entry
            folded[item.encode_name.lower()] = entry

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise _refuse(value, path, kind.__name__)
        if not by_name:
            prepare()
        trail = path.partition(".")[2]
        found: dict[str, Any] = {}
        for key, item in value.items():
            entry = by_name.get(key) or folded.get(key.lower())
            if entry is None or item is None:
                continue
            name, wire, convert_item = entry
            found[name] = convert_item(item, f"{kind.__name__}.{trail + '.' if trail else ''}{wire}")
        return kind(**found)

    return convert
