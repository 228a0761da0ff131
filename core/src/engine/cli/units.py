"""Sizes, durations and times as Docker reads and writes them (the rules of docker/go-units and Go's time)."""

from __future__ import annotations

import time

_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_DECIMAL_NAMES = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_BINARY_NAMES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
_NANOSECONDS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """``512``, ``64m``, ``1.5GiB``: units are binary. ValueError: ``invalid size: 'x'``."""
    number, unit = text, ""
    for index, character in enumerate(text):
        if not (character.isdigit() or character == "."):
            number, unit = text[:index], text[index:].strip().lower()
            break
    unit = unit.removesuffix("b").removesuffix("i") if unit != "b" else ""
    try:
        if unit not in _BINARY or not number.isascii():
            raise ValueError
        return int(float(number) * _BINARY[unit])
    except ValueError:
        raise ValueError(f"invalid size: '{text}'") from None


def parse_nano(text: str) -> int:
    """A decimal number of CPUs as billionths."""
    from fractions import Fraction

    try:
        value = Fraction(text) * 10**9
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if value.denominator != 1:
        raise ValueError("value is too precise")
    return int(value)


def parse_duration(text: str) -> int:
    """Go's time.ParseDuration, in nanoseconds: ``1h30m``, ``1.5s``, ``-2ms``."""
    rest = text
    sign = 1
    if rest[:1] in ("+", "-"):
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(f'time: invalid duration "{text}"')
    total = 0.0
    while rest:
        size = 0
        while size < len(rest) and (rest[size].isdigit() or rest[size] == "."):
            size += 1
        number, rest = rest[:size], rest[size:]
        size = 0
        while size < len(rest) and not (rest[size].isdigit() or rest[size] == "."):
            size += 1
        unit, rest = rest[:size], rest[size:]
        if not number or number == "." or number.count(".") > 1:
            raise ValueError(f'time: invalid duration "{text}"')
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _NANOSECONDS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        total += float(number) * _NANOSECONDS[unit]
    return sign * round(total)


def human_duration(seconds: float) -> str:
    """``4 seconds``, ``About a minute``, ``3 weeks``."""
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
    for limit, span, name in ((48, 1, "hours"), (336, 24, "days"), (1440, 168, "weeks"), (17520, 720, "months")):
        if hours < limit:
            return f"{hours // span} {name}"
    return f"{int(seconds / 3600 / 24 / 365)} years"


def _scaled(size: float, base: float, names: tuple[str, ...], digits: int) -> str:
    index = 0
    while size >= base and index < len(names) - 1:
        size /= base
        index += 1
    return f"{size:.{digits}g}".replace("e+0", "e+0") + names[index]


def human_size(size: float, digits: int = 4) -> str:
    """Decimal units: ``12.3MB``."""
    return _scaled(float(size), 1000.0, _DECIMAL_NAMES, digits)


def binary_size(size: float) -> str:
    """Binary units with four digits: ``7.655GiB``."""
    return _scaled(float(size), 1024.0, _BINARY_NAMES, 4)


def unix_local(seconds: float) -> str:
    """Go's ``time.Time.String()`` in the local zone: ``2026-01-02 15:04:05 +0000 UTC``."""
    moment = time.localtime(seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S %z ", moment) + (moment.tm_zone or "UTC")


def rfc3339(text: str) -> float:
    """Seconds since 1970 of an RFC 3339 time; 0 for Go's zero time."""
    from datetime import datetime

    if not text or text.startswith("0001-01-01"):
        return 0.0
    body, zone = text, "+00:00"
    if body[-1] in "Zz":
        body = body[:-1]
    elif len(body) > 6 and body[-6] in "+-":
        body, zone = body[:-6], body[-6:]
    body, _, fraction = body.partition(".")
    seconds = datetime.fromisoformat(body + zone).timestamp()
    return seconds + (float(f"0.{fraction}") if fraction else 0.0)


def timestamp(text: str) -> str:
    """What ``--since`` and ``--until`` send: a duration counts back from now, a date becomes Unix seconds.

    ValueError for anything else.
    """
    from datetime import datetime

    if not text:
        return ""
    try:
        then = time.time_ns() - parse_duration(text)
    except ValueError:
        pass
    else:
        return f"{then // 10**9}.{then % 10**9:09d}"
    whole, _, fraction = text.partition(".")
    if whole.lstrip("-").isdigit() and (not fraction or fraction.isdigit()) and "-" not in whole[1:]:
        return text
    body, _, tail = text.partition(".")
    digits = ""
    while tail and tail[0].isdigit():
        digits, tail = digits + tail[0], tail[1:]
    body += tail
    for candidate in (body, body.replace("Z", "+00:00"), f"{body}:00"):
        try:
            seconds = int(datetime.fromisoformat(candidate).timestamp())
        except ValueError:
            continue
        return f"{seconds}.{digits.ljust(9, '0')[:9]}"
    raise ValueError(f'parsing time "{text}" as "2006-01-02T15:04:05": cannot parse "{text}" as "2006"')
