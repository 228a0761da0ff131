"""A filter compiled ahead, once for all containers that have it, instead of by the runtime at every start.

libseccomp takes some 20 ms for the default profile, the largest single part of a start. crun takes the ready program
from an annotation and then ignores ``linux.seccomp``; runc does not know the annotation and compiles, as ever.
The program is the one the runtime would make: the same library, rule for rule.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import os
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import msgspec

__all__ = ["program"]

_ALLOW, _ERRNO, _TRACE = 0x7FFF0000, 0x00050000, 0x7FF00000
_ACTIONS = {
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_TRAP": 0x00030000,
}
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")  # from 1 on, as enum scmp_compare counts


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@cache
def _library() -> Any:
    """libseccomp, or None where the runtime brings its own."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_release.restype = None
    library.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library


def program(seccomp: Mapping[str, Any]) -> str | None:
    """The compiled form of OCI ``linux.seccomp``, as base64; None for what only the runtime can do (notifications,
    flags), and where there is no libseccomp. Compiled once for equal filters; may be called from any thread."""
    if set(seccomp) - {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"} or _library() is None:
        return None
    return _program(msgspec.json.encode(seccomp))


@lru_cache(maxsize=64)
def _program(text: bytes) -> str | None:
    library, seccomp = _library(), msgspec.json.decode(text)
    default = _action(seccomp["defaultAction"], seccomp.get("defaultErrnoRet"))
    if default is None:
        return None
    context = library.seccomp_init(default)
    try:
        for name in seccomp.get("architectures", ()):
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token or library.seccomp_arch_add(context, token) not in (0, -errno.EEXIST):
                return None
        for rule in seccomp["syscalls"]:
            if not _add(library, context, rule, default):
                return None
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _add(library: Any, context: int, rule: Mapping[str, Any], default: int) -> bool:
    action = _action(rule["action"], rule.get("errnoRet"))
    if action is None:
        return False
    if action == default:
        return True
    compares = [
        _Compare(arg["index"], _OPERATORS.index(arg["op"].removeprefix("SCMP_CMP_")) + 1, arg["value"], arg["valueTwo"])
        for arg in rule.get("args", ())
    ]
    # Conditions on different arguments must all hold; several on one argument are alternatives.
    together = len({compare.arg for compare in compares}) == len(compares)
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            continue  # younger than the library: the default action answers it
        for group in [compares] if together else [[compare] for compare in compares]:
            array = (_Compare * len(group))(*group)
            if library.seccomp_rule_add_array(context, action, number, len(group), array) != 0:
                return False
    return True


def _action(name: str, number: int | None) -> int | None:
    action = _ACTIONS.get(name)
    if action in (_ERRNO, _TRACE):
        return action | ((errno.EPERM if number is None else number) & 0xFFFF)
    return action


def _export(library: Any, context: int) -> str | None:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        if library.seccomp_export_bpf(context, fd) != 0:
            return None
        return base64.b64encode(os.pread(fd, os.fstat(fd).st_size, 0)).decode()
    finally:
        os.close(fd)
