"""Signal names as Docker reads them: ``TERM``, ``SIGTERM``, ``15``, ``SIGRTMIN+3``; any case."""

from __future__ import annotations

import signal as _signal

from engine.errors import InvalidParameter

__all__ = ["parse_signal"]

_MAX = 64


def _table() -> dict[str, int]:
    table = {name.removeprefix("SIG"): int(value) for name, value in _signal.Signals.__members__.items()}
    low, high = table["RTMIN"], table["RTMAX"]
    table |= {f"RTMIN+{step}": low + step for step in range(1, 16)}
    table |= {f"RTMAX-{step}": high - step for step in range(1, 15)}
    return table


_NUMBERS = _table()


def parse_signal(text: str) -> int:
    """The signal's number; `InvalidParameter` in dockerd's words for anything that is none."""
    if text.isascii() and text.isdigit():
        number = int(text)
        if 0 < number <= _MAX:
            return number
    else:
        found = _NUMBERS.get(text.upper().removeprefix("SIG"))
        if found is not None:
            return found
    raise InvalidParameter(f"Invalid signal: {text}")
