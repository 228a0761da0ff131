"""The system calls a WebAssembly host process needs, as a BPF program: everything else fails with EPERM.

The guest has no system calls of its own; this is for the day it breaks out of wasmtime. What is missing counts: no
execve, no new processes (clone only makes threads), no mounts, namespaces, keys, tracing, modules or raw sockets.
"""

from __future__ import annotations

import ctypes
import os
import socket as socket_module
import struct

__all__ = ["install", "program"]

# fmt: off
_X86_64 = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 32, 33, 35,
    39, 40, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 60, 63, 72, 73, 74, 75, 76, 77, 79, 82, 83, 84, 86,
    87, 88, 89, 91, 95, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 128, 131, 137, 138, 157, 186, 202, 204, 217, 218,
    219, 221, 228, 229, 230, 231, 232, 233, 234, 257, 258, 262, 263, 264, 265, 266, 267, 268, 269, 270, 271, 273, 274,
    277, 280, 281, 285, 288, 290, 291, 292, 293, 295, 296, 299, 302, 307, 316, 318, 324, 326, 327, 328, 332, 334, 436,
    437, 439,
)
_AARCH64 = (
    17, 19, 20, 21, 22, 23, 24, 25, 29, 32, 34, 35, 36, 37, 38, 43, 44, 45, 46, 47, 48, 52, 53, 56, 57, 59, 61, 62, 63,
    64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 78, 79, 80, 82, 83, 84, 88, 93, 94, 96, 98, 99, 100, 101, 113, 114, 115,
    123, 124, 128, 131, 132, 134, 135, 137, 139, 153, 160, 163, 165, 166, 167, 169, 172, 173, 174, 175, 176, 177, 178,
    179, 199, 200, 201, 202, 203, 204, 205, 206, 207, 208, 209, 210, 211, 212, 214, 215, 216, 222, 223, 226, 227, 232,
    233, 242, 243, 261, 269, 276, 278, 283, 285, 286, 287, 291, 293, 436, 437, 439,
)
# fmt: on
# machine: (AUDIT_ARCH, allowed, clone, clone3, socket)
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 56, 435, 41),
    "aarch64": (0xC00000B7, _AARCH64, 220, 435, 198),
}
_CLONE_THREAD = 0x00010000
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_GREATER, _AND, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06
_ALLOW = 0x7FFF0000
_EPERM = 0x00050000 | 1
_ENOSYS = 0x00050000 | 38
_KILL = 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24
_PR_SET_SECCOMP = 22
_FILTER = 2

_Instruction = tuple[int, int, str, str]  # operation, operand, where to if true, where to if false


def program(machine: str) -> bytes:
    """The filter for ``machine`` (``uname -m``); empty where we have none."""
    if machine not in _MACHINES:
        return b""
    architecture, allowed, clone, clone3, socket = _MACHINES[machine]
    code: list[_Instruction | str] = [
        (_LOAD, _ARCHITECTURE, "", ""),
        (_JUMP_EQUAL, architecture, "", "kill"),
        (_LOAD, _NUMBER, "", ""),
        (_JUMP_GREATER, 0x40000000, "refuse", ""),  # x32 numbers
        (_JUMP_EQUAL, clone3, "unknown", ""),  # its flags cannot be seen; the C library then uses clone
        (_JUMP_EQUAL, clone, "clone", ""),
        (_JUMP_EQUAL, socket, "socket", ""),
        *_any_of(allowed),
        "clone",
        (_LOAD, _ARGUMENT_0, "", ""),
        (_JUMP_SET, _CLONE_THREAD, "allow", "refuse"),
        "socket",
        (_LOAD, _ARGUMENT_0, "", ""),
        (_JUMP_EQUAL, socket_module.AF_INET, "type", ""),
        (_JUMP_EQUAL, socket_module.AF_INET6, "", "refuse"),
        "type",
        (_LOAD, _ARGUMENT_1, "", ""),
        (_AND, 0xF, "", ""),
        (_JUMP_EQUAL, socket_module.SOCK_STREAM, "allow", ""),
        (_JUMP_EQUAL, socket_module.SOCK_DGRAM, "allow", "refuse"),
        "unknown",
        (_RETURN, _ENOSYS, "", ""),
        "kill",
        (_RETURN, _KILL, "", ""),
        "allow",
        (_RETURN, _ALLOW, "", ""),
        "refuse",
        (_RETURN, _EPERM, "", ""),
    ]
    return _assemble(code)


def _any_of(numbers: tuple[int, ...]) -> list[_Instruction | str]:
    """Two comparisons for each run of consecutive numbers, in ascending order: below it, or in it."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    code: list[_Instruction | str] = []
    for first, last in runs:
        code.append((_JUMP_GREATER, first, "", "refuse"))
        code.append((_JUMP_GREATER, last + 1, "", "allow"))
    code.append((_RETURN, _EPERM, "", ""))
    return code


def _assemble(code: list[_Instruction | str]) -> bytes:
    """Labels become distances; an empty one is the next instruction."""
    places: dict[str, int] = {}
    instructions: list[_Instruction] = []
    for item in code:
        if isinstance(item, str):
            places[item] = len(instructions)
        else:
            instructions.append(item)
    packed = b""
    for here, (operation, value, yes, no) in enumerate(instructions):
        distances = [places[label] - here - 1 if label else 0 for label in (yes, no)]
        packed += struct.pack("HBBI", operation, *distances, value)
    return packed


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(filter_: bytes) -> None:
    """Put ``filter_`` on this thread and those it will make; needs no_new_privs."""
    libc = ctypes.CDLL(None, use_errno=True)
    described = _Program(len(filter_) // 8, filter_)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(described), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
