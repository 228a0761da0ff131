"""The daemon's own log: one line for each record, as logrus' text or as JSON, with the fields of ``extra``."""

from __future__ import annotations

import logging
import re
import sys
import traceback

import msgspec

from engine.timestamps import rfc3339_fixed

__all__ = ["LEVELS", "set_level", "setup"]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
_WORDS = {"WARNING": "warning", "CRITICAL": "fatal"}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN = re.compile(r"[A-Za-z0-9_./:@+-]+")


class LineFormatter(logging.Formatter):
    """``time="..." level=info msg="..." key=value``, or the same as one JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the values contain."""
        fields: dict[str, str] = {
            "time": rfc3339_fixed(int(record.created * 1e6) * 1000),
            "level": _WORDS.get(record.levelname, record.levelname.lower()),
            "msg": record.getMessage(),
        }
        for key, value in vars(record).items():
            if key not in _STANDARD:
                fields[key] = str(value)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["error"] = f"{type(error).__name__}: {error}"
            fields["trace"] = "".join(traceback.format_exception(error))
        if self._as_json:
            return msgspec.json.encode(fields).decode()
        return " ".join(f"{key}={_quote(value, always=key in ('time', 'msg'))}" for key, value in fields.items())


def _quote(text: str, *, always: bool) -> str:
    if not always and _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def setup(level: str, log_format: str) -> None:
    """Send all records to standard error in ``log_format`` (text or json) from ``level`` up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(as_json=log_format == "json"))
    logging.root.handlers[:] = [handler]
    logging.raiseExceptions = False
    set_level(level)


def set_level(level: str) -> None:
    """Change the level of a running daemon."""
    logging.root.setLevel(LEVELS[level])
    for name in ("asyncio", "urllib3", "stevedore"):
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.WARNING))
