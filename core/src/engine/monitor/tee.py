"""A log writer that passes everything to several others; loaded by path like every writer (see `engine.drivers.log`).

One that fails is left out from then on: the others go on.
"""

from __future__ import annotations

import json

from engine.monitor.start import load_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def open_log(options: dict[str, str]) -> Tee:
    """``options["writers"]`` is a JSON list of ``{"source": ..., "options": {...}}``."""
    return Tee([load_source(part["source"]).open_log(part["options"]) for part in json.loads(options["writers"])])


class Tee:
    """All of its writers as one."""

    def __init__(self, writers: list[Any]) -> None:
        self._writers = writers

    def write(self, stream: int, data: bytes | memoryview, now_ns: int) -> None:
        """As the writers do."""
        for writer in list(self._writers):
            try:
                writer.write(stream, data, now_ns)
            except Exception:
                self._writers.remove(writer)
                if not self._writers:
                    raise

    def sync(self) -> None:
        """As the writers do."""
        for writer in self._writers:
            writer.sync()

    def close(self) -> None:
        """As the writers do."""
        for writer in self._writers:
            writer.close()
