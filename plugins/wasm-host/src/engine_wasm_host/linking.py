"""Gives a component its imports from Python functions: all of them, so that resources of every interface fit together.

A *host* is a table: interface without version -> function name as in WIT's binary form -> Python function. A function
is called with the request's `Call` and its arguments (see `engine_wasm_host.values`) and returns the result's Python
form; raising `Trap` ends the guest. What the table lacks can be imported but traps when called, by name.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime.component import Component, Linker, ResourceType
from wasmtime.component import _types as types

from engine_wasm_host.values import Codec, Resources, codec, current

__all__ = ["Function", "Host", "Linked", "Trap"]

Host = Mapping[str, Mapping[str, Callable[..., Any]]]


class Trap(Exception):
    """Ends the guest: an import that is not there, or a rule broken."""


class Function:
    """One import, found and typed at its first call."""

    __slots__ = ("_lifts", "_lower", "_name", "_python", "_resources")

    def __init__(self, name: str, python: Callable[..., Any] | None, resources: Resources) -> None:
        self._name = name
        self._python = python
        self._resources = resources
        self._lifts: list[Any] | None = None
        self._lower: Any = None

    def __call__(self, context: Any, kind: Any, arguments: Any, results: Any, count: int) -> None:
        """Called by wasmtime."""
        if self._python is None:
            raise Trap(f"the import {self._name} is not provided")
        if self._lifts is None:
            described = types.FuncType._from_ptr(kind, owner=self)
            result = described.result
            self._lower = result and codec(result, self._resources).lower
            self._lifts = [codec(item, self._resources).lift for _, item in described.params]
        values = [lift(context, arguments[index]) for index, lift in enumerate(self._lifts)]
        value = self._python(current.call, *values)
        if self._lower is not None:
            self._lower(context, value, results[0])


_functions: list[Function] = []


@ffi.wasmtime_component_func_callback_t  # type: ignore[untyped-decorator]
def _call(index: int | None, context: Any, kind: Any, arguments: Any, n: int, results: Any, m: int) -> int:
    try:
        _functions[index or 0](context, kind, arguments, results, m)
    except Exception as error:
        text = str(error) if isinstance(error, Trap) else f"host function failed: {type(error).__name__}: {error}"
        pointer = wasmtime.WasmtimeError(text)._consume()
        return ctypes.cast(pointer, ctypes.c_void_p).value or 0
    return 0


@ffi.wasmtime_component_resource_destructor_t  # type: ignore[untyped-decorator]
def _drop(index: int | None, context: Any, number: int) -> int:
    dropped = current.call.drop(number)
    close = getattr(dropped, "close", None)
    if close is not None:
        close()
    return 0


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _keep(index: int | None) -> None:
    """Functions live as long as the process."""


class Linked:
    """A component whose imports are all given; instantiate as often as you like."""

    def __init__(self, engine: wasmtime.Engine, component: Component, host: Host) -> None:
        self._engine = engine
        self._component = component
        self._linker = Linker(engine)
        self.resources = Resources()
        with self._linker.root() as root:
            for name, item in component.type.imports(engine).items():
                kind = item.ty
                if isinstance(kind, types.ComponentInstanceType):
                    table = host.get(name.partition("@")[0], {})
                    with root.add_instance(name) as instance:
                        for inner, export in kind.exports(engine).items():
                            self._define(instance, name, inner, export.ty, table)
                else:
                    self._define(root, "", name, kind, host.get("", {}))
        self._exports: dict[tuple[str, str], Any] = {}

    def _define(self, instance: Any, interface: str, name: str, kind: Any, table: Mapping[str, Any]) -> None:
        text = name.encode()
        if isinstance(kind, ResourceType):
            host_type = ResourceType.host(self.resources.type_id(kind))
            error = ffi.wasmtime_component_linker_instance_add_resource(
                instance.ptr(), text, len(text), host_type.ptr(), _drop, 0, _keep
            )
        elif isinstance(kind, types.FuncType):
            _functions.append(Function(f"{interface}#{name}", table.get(name), self.resources))
            error = ffi.wasmtime_component_linker_instance_add_func(
                instance.ptr(), text, len(text), _call, len(_functions) - 1, _keep
            )
        else:
            return
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)

    def instantiate(self, store: wasmtime.Store) -> Any:
        """A fresh instance. Any number may be made, in any thread, one at a time for each store."""
        return self._linker.instantiate(store, self._component)

    def function(self, store: wasmtime.Store, instance: Any, interface: str, name: str) -> Exported:
        """A function of an exported interface, ready to be called."""
        key = (interface, name)
        if key not in self._exports:
            outer = self._component.get_export_index(interface)
            index = self._component.get_export_index(name, outer)
            kind = instance.get_func(store, index).type(store)
            parameters = [codec(item, self.resources) for _, item in kind.params]
            result = kind.result
            self._exports[key] = (index, parameters, result and codec(result, self.resources))
        index, parameters, result = self._exports[key]
        return Exported(instance.get_func(store, index), parameters, result)


class Exported:
    """A guest's function."""

    def __init__(self, function: Any, parameters: list[Codec], result: Codec | None) -> None:
        self._function = function
        self._parameters = parameters
        self._result = result

    def __call__(self, store: wasmtime.Store, *arguments: Any) -> Any:
        """Raises `wasmtime.WasmtimeError` when the guest traps."""
        parameters, result = self._parameters, self._result
        context = store._context()
        values = (ffi.wasmtime_component_val_t * len(arguments))()
        for index, (one, argument) in enumerate(zip(parameters, arguments, strict=True)):
            one.lower(context, argument, values[index])
        space = ffi.wasmtime_component_val_t()
        error = ffi.wasmtime_component_func_call(
            ctypes.byref(self._function._func),
            context,
            values,
            len(arguments),
            None if result is None else ctypes.byref(space),
            0 if result is None else 1,
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
        if result is None:
            return None
        value = result.lift(context, space)
        ffi.wasmtime_component_val_delete(ctypes.byref(space))
        return value
