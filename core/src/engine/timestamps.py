"""Times as Docker writes and reads them: RFC 3339 with nanoseconds, Unix seconds with a fraction, Go durations."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, timezone

from engine.errors import InvalidParameter

__all__ = ["human_duration", "now", "parse_duration", "parse_rfc3339", "parse_timestamp", "rfc3339"]

_ZERO_NS = -62135596800 * 10**9  # 0001-01-01T00:00:00Z
_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[T ](\d{2})(?::(\d{2})(?::(\d{2})(?:[.,](\d{1,9})\d*)?)?)?(Z|[+-]\d{2}:\d{2})?", re.ASCII
)
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})(Z|[+-]\d{2}:\d{2})?", re.ASCII)
_UNIX = re.compile(r"(-?\d+)(?:\.(\d{1,9})\d*)?", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def now() -> str:
    """This moment as `rfc3339`."""
    return rfc3339(time.time_ns())


def rfc3339(time_ns: int) -> str:
    """Nanoseconds since the epoch as ``2026-01-02T03:04:05.000000006Z``, without trailing zeros, as Go."""
    seconds, fraction = divmod(time_ns, 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def rfc3339_fixed(time_ns: int) -> str:
    """As `rfc3339` with all nine digits: the time in front of a line of ``docker logs -t``."""
    seconds, fraction = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


def parse_rfc3339(text: str) -> int:
    """Nanoseconds since the epoch; Docker's zero time gives a large negative number. `ValueError` for anything else."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    moment = datetime(
        int(year), int(month), int(day), int(hour), int(minute or 0), int(second or 0), tzinfo=_zone(zone)
    )
    return int(moment.timestamp()) * 10**9 + int((fraction or "0").ljust(9, "0"))


def _zone(text: str | None) -> timezone:
    if not text or text == "Z":
        return UTC
    sign = -1 if text[0] == "-" else 1
    return timezone(sign * timedelta(hours=int(text[1:3]), minutes=int(text[4:6])))


def parse_timestamp(text: str, *, now_ns: int | None = None) -> int:
    """What the API's ``since`` and ``until`` may be, in nanoseconds: Unix seconds with a fraction, RFC 3339 in the
    shortened forms the CLI allows, a date, or a Go duration that counts back from now.

    Raises `InvalidParameter` in Go's words.
    """
    unix = _UNIX.fullmatch(text)
    if unix:
        fraction = int((unix[2] or "0").ljust(9, "0"))
        return int(unix[1]) * 10**9 + (-fraction if text.startswith("-") else fraction)
    day = _DATE.fullmatch(text)
    try:
        if day:
            moment = datetime(int(day[1]), int(day[2]), int(day[3]), tzinfo=_zone(day[4]))
            return int(moment.timestamp()) * 10**9
        return parse_rfc3339(text)
    except ValueError:
        pass
    try:
        return (time.time_ns() if now_ns is None else now_ns) - parse_duration(text)
    except ValueError:
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"') from None


def parse_duration(text: str) -> int:
    """A Go duration (``1h30m``, ``250ms``) in nanoseconds; `ValueError` otherwise."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total, end = 0.0, 0
    for match in _DURATION.finditer(rest):
        if match.start() != end:
            break
        total += float(match[1]) * _UNITS[match[2]]
        end = match.end()
    if not rest or end != len(rest):
        raise ValueError(f"time: invalid duration {text!r}")
    return sign * int(total)


def human_duration(seconds: float) -> str:
    """``Less than a second``, ``About a minute``, ``3 hours``: the words of ``docker ps`` (go-units)."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"
