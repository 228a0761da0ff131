"""Dual logging: a copy of what goes to a log driver that cannot be read, kept by one that can, for ``docker logs``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.drivers.log import LogDriver, LogTarget, LogWriter
from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.plugins import Plugins

__all__ = ["readable", "writer"]

_KEEPER = "local"
_PREFIX = "cache-"


def writer(plugins: Plugins, name: str, target: LogTarget) -> LogWriter | None:
    """What the monitor loads for a container with the log driver ``name``."""
    own = plugins.log(name).writer(target)
    keeper = None if own is None else _keeper(plugins, name, target)
    if own is None or keeper is None:
        return own
    copy = keeper.writer(_of_copy(target))
    both = [{"source": str(part.source), "options": dict(part.options)} for part in (own, copy) if part is not None]
    return LogWriter(source=Path(__file__).parents[1] / "monitor" / "tee.py", options={"writers": json.dumps(both)})


def readable(plugins: Plugins, name: str, target: LogTarget) -> tuple[LogDriver, LogTarget]:
    """The driver that can read the container's log, and its target; the container's own if none can."""
    driver = plugins.log(name)
    keeper = _keeper(plugins, name, target)
    return (driver, target) if keeper is None else (keeper, _of_copy(target))


def _keeper(plugins: Plugins, name: str, target: LogTarget) -> LogDriver | None:
    if name == "none" or "read" in plugins.log(name).capabilities:
        return None
    if target.options.get("cache-disabled", "").lower() in ("true", "1", "t"):
        return None
    try:
        return plugins.log(_KEEPER)
    except EngineError:
        return None  # not installed


def _of_copy(target: LogTarget) -> LogTarget:
    options = {
        key.removeprefix(_PREFIX): value
        for key, value in target.options.items()
        if key.startswith(_PREFIX) and key != "cache-disabled"
    }
    return replace(target, options=options)
