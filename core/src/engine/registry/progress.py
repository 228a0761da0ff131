"""Docker's progress messages: the JSON objects `docker pull`, `push` and `load` draw their bars from.

A message is a mapping with some of ``id``, ``status``, ``progressDetail`` (``{"current", "total"}`` in bytes),
``progress`` (the same as text, for people without a terminal) and ``aux``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

__all__ = ["Bar", "Progress", "aux", "message"]

Progress = Callable[[Mapping[str, object]], None]
"""Takes one message; called from any thread, never blocks."""

_INTERVAL = 0.1
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def message(status: str, identifier: str = "") -> dict[str, object]:
    """A line of text, about ``identifier`` when there is one."""
    return {"status": status, "id": identifier} if identifier else {"status": status}


def aux(value: Mapping[str, object]) -> dict[str, object]:
    """A result for programs."""
    return {"progressDetail": {}, "aux": dict(value)}


class Bar:
    """The line of one layer. Bytes are reported ten times a second at most, and always when the last one is there."""

    def __init__(self, progress: Progress, identifier: str, total: int) -> None:
        self._progress = progress
        self._id = identifier
        self._total = total
        self._next = 0.0
        self._lock = threading.Lock()

    def say(self, status: str) -> None:
        """Change the status; the bar is cleared."""
        self._progress({"status": status, "progressDetail": {}, "id": self._id})

    def show(self, status: str, current: int) -> None:
        """Tell how many bytes are done."""
        with self._lock:
            now = time.monotonic()
            if now < self._next and current < self._total:
                return
            self._next = now + _INTERVAL
        self._progress(
            {
                "status": status,
                "progressDetail": {"current": current, "total": self._total},
                "progress": draw(current, self._total),
                "id": self._id,
            }
        )


def draw(current: int, total: int) -> str:
    """``[====>      ]  1.5MB/12MB``, as dockerd draws it for 200 columns."""
    if total <= 0 or current > total:
        return f"{human_size(current):>8}" if current else ""
    filled = min(50, current * 50 // total)
    bar = "[" + "=" * filled + ">" + " " * (50 - filled) + "]"
    return f"{bar} {human_size(current):>8}/{human_size(total)}"


def human_size(size: float) -> str:
    """Decimal units and four significant digits, as in docker/go-units."""
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.4g}{unit}"
        size /= 1000
    return f"{size:.4g}{_UNITS[-1]}"
