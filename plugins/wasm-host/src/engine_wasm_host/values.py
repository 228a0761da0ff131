"""Component values between wasmtime's C form and Python, by codecs built once for each type.

    bool, numbers, char, string    the same in Python          list<u8>    bytes; other lists are lists
    record, tuple                  a tuple in order            variant     (case, payload or None)
    enum, flags                    str, a frozenset of str     option      the value or None
    result                         Ok(value) or Err(value)     own, borrow the host's object

wasmtime-py's own conversion looks types up for each value and takes a list of bytes one by one; a request needs some
thirty calls and moves its body through them.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from wasmtime import _ffi as ffi
from wasmtime.component import _types as types
from wasmtime.component._resource_type import ResourceType

__all__ = ["Call", "Codec", "Err", "Ok", "Resources", "codec", "current"]

Lift = Callable[[Any, Any], Any]  # (context, C value) -> Python
Lower = Callable[[Any, Any, Any], None]  # (context, Python, C value)


class Ok(NamedTuple):
    """The good half of a result."""

    value: Any = None


class Err(NamedTuple):
    """The bad half of a result."""

    value: Any = None


class Codec(NamedTuple):
    """How one type is read and written."""

    lift: Lift
    lower: Lower


class Call:
    """One call of a guest: the host's objects it holds handles of. What it did not drop is closed at the end."""

    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}
        self._next = 0

    def add(self, item: Any) -> int:
        """A new handle's number for an object."""
        self._next += 1
        self._objects[self._next] = item
        return self._next

    def get(self, number: int) -> Any:
        """The object of a handle."""
        return self._objects[number]

    def drop(self, number: int) -> Any:
        """Forget a handle; the object, or None if there was none."""
        return self._objects.pop(number, None)

    def close(self) -> None:
        """Close what the guest left open."""
        for item in self._objects.values():
            close = getattr(item, "close", None)
            if close is not None:
                close()
        self._objects.clear()


class _Current(threading.local):
    call: Any = None


current = _Current()
"""``current.call`` is the `Call` this thread is in; host functions get it as their first argument."""


class Resources:
    """The resource types of one component: what its imports call them, and what they are once they are linked."""

    def __init__(self) -> None:
        self._types: list[tuple[ResourceType, ResourceType]] = []

    def type_id(self, wanted: ResourceType) -> int:
        """The same number for the same resource type, in whichever interface it shows up."""
        for number, known in enumerate(self._types):
            if wanted in known:
                return number
        self._types.append((wanted, ResourceType.host(len(self._types))))
        return len(self._types) - 1


_SIZE = ctypes.sizeof(ffi.wasmtime_component_val_t)
_PAYLOAD = ffi.wasmtime_component_val_t.of.offset

_SIMPLE = {
    types.Bool: ("boolean", ffi.WASMTIME_COMPONENT_BOOL.value),
    types.S8: ("s8", ffi.WASMTIME_COMPONENT_S8.value),
    types.U8: ("u8", ffi.WASMTIME_COMPONENT_U8.value),
    types.S16: ("s16", ffi.WASMTIME_COMPONENT_S16.value),
    types.U16: ("u16", ffi.WASMTIME_COMPONENT_U16.value),
    types.S32: ("s32", ffi.WASMTIME_COMPONENT_S32.value),
    types.U32: ("u32", ffi.WASMTIME_COMPONENT_U32.value),
    types.S64: ("s64", ffi.WASMTIME_COMPONENT_S64.value),
    types.U64: ("u64", ffi.WASMTIME_COMPONENT_U64.value),
    types.F32: ("f32", ffi.WASMTIME_COMPONENT_F32.value),
    types.F64: ("f64", ffi.WASMTIME_COMPONENT_F64.value),
}


def _text(vector: Any) -> str:
    return ctypes.string_at(vector.data, vector.size).decode("utf-8", "replace")


def codec(kind: Any, resources: Resources) -> Codec:
    """The codec of a wasmtime-py type."""
    if type(kind) in _SIMPLE:
        return _simple(*_SIMPLE[type(kind)])
    if isinstance(kind, types.Char):
        return _char()
    if isinstance(kind, types.String):
        return _string()
    if isinstance(kind, types.ListType):
        return _bytes() if isinstance(kind.element, types.U8) else _list(codec(kind.element, resources))
    if isinstance(kind, types.RecordType):
        return _record([name for name, _ in kind.fields], [codec(item, resources) for _, item in kind.fields])
    if isinstance(kind, types.TupleType):
        return _tuple([codec(item, resources) for item in kind.elements])
    if isinstance(kind, types.VariantType):
        return _variant({name: _maybe(item, resources) for name, item in kind.cases})
    if isinstance(kind, types.EnumType):
        return _enum()
    if isinstance(kind, types.OptionType):
        return _option(codec(kind.payload, resources))
    if isinstance(kind, types.ResultType):
        return _result(_maybe(kind.ok, resources), _maybe(kind.err, resources))
    if isinstance(kind, types.FlagsType):
        return _flags()
    if isinstance(kind, types.OwnType | types.BorrowType):
        return _resource(resources.type_id(kind.ty), owned=isinstance(kind, types.OwnType))
    raise NotImplementedError(f"component values of the type {type(kind).__name__} are not supported")


def _maybe(kind: Any, resources: Resources) -> Codec | None:
    return None if kind is None else codec(kind, resources)


def _simple(field: str, number: int) -> Codec:
    def lower(context: Any, value: Any, c: Any) -> None:
        c.kind = number
        setattr(c.of, field, value)

    return Codec(lambda context, c: getattr(c.of, field), lower)


def _char() -> Codec:
    def lower(context: Any, value: str, c: Any) -> None:
        c.kind = ffi.WASMTIME_COMPONENT_CHAR.value
        c.of.character = ord(value)

    return Codec(lambda context, c: chr(c.of.character), lower)


def _string() -> Codec:
    def lower(context: Any, value: str, c: Any) -> None:
        c.kind = ffi.WASMTIME_COMPONENT_STRING.value
        c.of.string = ffi.str_to_capi(value)

    return Codec(lambda context, c: _text(c.of.string), lower)


def _enum() -> Codec:
    def lower(context: Any, value: str, c: Any) -> None:
        c.kind = ffi.WASMTIME_COMPONENT_ENUM.value
        c.of.enumeration = ffi.str_to_capi(value)

    return Codec(lambda context, c: _text(c.of.enumeration), lower)


def _bytes() -> Codec:
    """A byte sits in each value at the same place, so slices with a stride move them all at once."""

    def lift(context: Any, c: Any) -> bytes:
        items = c.of.list
        return ctypes.string_at(items.data, items.size * _SIZE)[_PAYLOAD::_SIZE] if items.size else b""

    def lower(context: Any, value: bytes, c: Any) -> None:
        items = ffi.wasmtime_component_vallist_t()
        ffi.wasmtime_component_vallist_new_uninit(items, len(value))
        if value:
            block = bytearray(len(value) * _SIZE)
            block[0::_SIZE] = bytes((ffi.WASMTIME_COMPONENT_U8.value,)) * len(value)
            block[_PAYLOAD::_SIZE] = value
            ctypes.memmove(items.data, bytes(block), len(block))
        c.kind = ffi.WASMTIME_COMPONENT_LIST.value
        c.of.list = items

    return Codec(lift, lower)


def _list(item: Codec) -> Codec:
    def lift(context: Any, c: Any) -> list[Any]:
        items = c.of.list
        return [item.lift(context, items.data[index]) for index in range(items.size)]

    def lower(context: Any, value: Any, c: Any) -> None:
        items = ffi.wasmtime_component_vallist_t()
        ffi.wasmtime_component_vallist_new_uninit(items, len(value))
        for index, element in enumerate(value):
            item.lower(context, element, items.data[index])
        c.kind = ffi.WASMTIME_COMPONENT_LIST.value
        c.of.list = items

    return Codec(lift, lower)


def _record(names: list[str], codecs: list[Codec]) -> Codec:
    def lift(context: Any, c: Any) -> tuple[Any, ...]:
        data = c.of.record.data
        return tuple(one.lift(context, data[index].val) for index, one in enumerate(codecs))

    def lower(context: Any, value: Any, c: Any) -> None:
        fields = ffi.wasmtime_component_valrecord_t()
        ffi.wasmtime_component_valrecord_new_uninit(fields, len(codecs))
        for index, one in enumerate(codecs):
            fields.data[index].name = ffi.str_to_capi(names[index])
            one.lower(context, value[index], fields.data[index].val)
        c.kind = ffi.WASMTIME_COMPONENT_RECORD.value
        c.of.record = fields

    return Codec(lift, lower)


def _tuple(codecs: list[Codec]) -> Codec:
    def lift(context: Any, c: Any) -> tuple[Any, ...]:
        data = c.of.tuple.data
        return tuple(one.lift(context, data[index]) for index, one in enumerate(codecs))

    def lower(context: Any, value: Any, c: Any) -> None:
        items = ffi.wasmtime_component_valtuple_t()
        ffi.wasmtime_component_valtuple_new_uninit(items, len(codecs))
        for index, one in enumerate(codecs):
            one.lower(context, value[index], items.data[index])
        c.kind = ffi.WASMTIME_COMPONENT_TUPLE.value
        c.of.tuple = items

    return Codec(lift, lower)


def _boxed(context: Any, value: Any, one: Codec | None) -> Any:
    """A payload behind a pointer; None where the type has none."""
    if one is None:
        return None
    c = ffi.wasmtime_component_val_t()
    one.lower(context, value, c)
    return ffi.wasmtime_component_val_new(ctypes.byref(c))


def _variant(cases: dict[str, Codec | None]) -> Codec:
    def lift(context: Any, c: Any) -> tuple[str, Any]:
        name = _text(c.of.variant.discriminant)
        one = cases[name]
        return name, None if one is None else one.lift(context, c.of.variant.val.contents)

    def lower(context: Any, value: Any, c: Any) -> None:
        name, payload = value
        boxed = _boxed(context, payload, cases[name])
        c.kind = ffi.WASMTIME_COMPONENT_VARIANT.value
        c.of.variant.discriminant = ffi.str_to_capi(name)
        c.of.variant.val = boxed

    return Codec(lift, lower)


def _option(one: Codec) -> Codec:
    def lower(context: Any, value: Any, c: Any) -> None:
        boxed = None if value is None else _boxed(context, value, one)
        c.kind = ffi.WASMTIME_COMPONENT_OPTION.value
        c.of.option = boxed

    return Codec(lambda context, c: one.lift(context, c.of.option.contents) if c.of.option else None, lower)


def _result(good: Codec | None, bad: Codec | None) -> Codec:
    def lift(context: Any, c: Any) -> Ok | Err:
        one, make = (good, Ok) if c.of.result.is_ok else (bad, Err)
        return make(None if one is None else one.lift(context, c.of.result.val.contents))

    def lower(context: Any, value: Any, c: Any) -> None:
        boxed = _boxed(context, value.value, good if isinstance(value, Ok) else bad)
        c.kind = ffi.WASMTIME_COMPONENT_RESULT.value
        c.of.result.is_ok = isinstance(value, Ok)
        c.of.result.val = boxed

    return Codec(lift, lower)


def _flags() -> Codec:
    def lift(context: Any, c: Any) -> frozenset[str]:
        names = c.of.flags
        return frozenset(_text(names.data[index]) for index in range(names.size))

    def lower(context: Any, value: Any, c: Any) -> None:
        names = ffi.wasmtime_component_valflags_t()
        ffi.wasmtime_component_valflags_new_uninit(names, len(value))
        for index, name in enumerate(value):
            names.data[index] = ffi.str_to_capi(name)
        c.kind = ffi.WASMTIME_COMPONENT_FLAGS.value
        c.of.flags = names

    return Codec(lift, lower)


def _resource(type_id: int, *, owned: bool) -> Codec:
    def lift(context: Any, c: Any) -> Any:
        host = ctypes.POINTER(ffi.wasmtime_component_resource_host_t)()
        _check(ffi.wasmtime_component_resource_any_to_host(context, c.of.resource, ctypes.byref(host)))
        number = ffi.wasmtime_component_resource_host_rep(host)
        ffi.wasmtime_component_resource_host_delete(host)
        return current.call.drop(number) if owned else current.call.get(number)

    def lower(context: Any, value: Any, c: Any) -> None:
        host = ffi.wasmtime_component_resource_host_new(owned, current.call.add(value), type_id)
        handle = ctypes.POINTER(ffi.wasmtime_component_resource_any_t)()
        try:
            _check(ffi.wasmtime_component_resource_host_to_any(context, host, ctypes.byref(handle)))
        finally:
            ffi.wasmtime_component_resource_host_delete(host)
        c.kind = ffi.WASMTIME_COMPONENT_RESOURCE.value
        c.of.resource = handle

    return Codec(lift, lower)


def _check(error: Any) -> None:
    if error:
        import wasmtime

        raise wasmtime.WasmtimeError._from_ptr(error)
