"""The user's terminal: raw mode, its size, and the key sequence that detaches."""

from __future__ import annotations

import os
import termios

from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q


class Raw:
    """A context in which a terminal passes every key on as it is; restored on leaving."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._saved: list[Any] | None = None

    def __enter__(self) -> Raw:
        self._saved = termios.tcgetattr(self._descriptor)
        mode = termios.tcgetattr(self._descriptor)
        mode[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR
                     | termios.IGNCR | termios.ICRNL | termios.IXON)  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSANOW, mode)
        return self

    def __exit__(self, *reason: object) -> None:
        if self._saved is not None:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, self._saved)


def size(descriptor: int = 1) -> tuple[int, int]:
    """Height and width in characters; zeros when it is no terminal."""
    try:
        columns, lines = os.get_terminal_size(descriptor)
    except OSError:
        return 0, 0
    return lines, columns


def detach_keys(text: str) -> bytes:
    """The bytes of a sequence such as ``ctrl-p,ctrl-q`` or ``a``; the default for an empty one.

    Raises `Failure` in docker's words.
    """
    if not text:
        return DEFAULT_DETACH_KEYS
    keys = b""
    for key in text.split(","):
        if len(key) == 1:
            keys += key.encode()
        elif len(key) == 6 and key.lower().startswith("ctrl-") and "@" <= key[5].upper() <= "_":
            keys += bytes([ord(key[5].upper()) - 64])
        else:
            raise Failure(f"invalid detach keys ({text}): Unknown character: '{key}'")
    return keys
