"""``--change``: Dockerfile instructions applied to an image's configuration (import, commit)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.errors import InvalidParameter

__all__ = ["apply_changes"]

_VALID = frozenset("cmd entrypoint env expose healthcheck label onbuild stopsignal user volume workdir".split())
_SHELL = ["/bin/sh", "-c"]


def apply_changes(config: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The configuration with the instructions applied in order. Raises `InvalidParameter` in dockerd's words."""
    result = dict(config)
    for change in changes:
        for line in _lines(change):
            keyword, _, rest = line.partition(" ")
            _apply(result, keyword.lower(), rest.strip(), line)
    return result


def _lines(text: str) -> list[str]:
    joined = text.replace("\\\r\n", " ").replace("\\\n", " ")
    return [line for raw in joined.splitlines() if (line := raw.strip()) and not line.startswith("#")]


def _apply(config: dict[str, Any], keyword: str, rest: str, line: str) -> None:
    if keyword not in _VALID:
        raise InvalidParameter(f"{keyword} is not a valid change command")
    if not rest:
        raise InvalidParameter(f"{keyword.upper()} requires at least one argument")
    match keyword:
        case "cmd":
            config["Cmd"] = _command(rest)
        case "entrypoint":
            config["Entrypoint"] = _command(rest)
        case "env":
            config["Env"] = _merge_env(config.get("Env") or [], _pairs(rest, "ENV"))
        case "label":
            config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(rest, "LABEL"))}
        case "expose":
            ports = dict(config.get("ExposedPorts") or {})
            for word in _words(rest):
                ports.update({key: {} for key in _ports(word)})
            config["ExposedPorts"] = ports
        case "volume":
            paths = _json_list(rest) or _words(rest)
            config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}
        case "user":
            config["User"] = rest
        case "workdir":
            before = config.get("WorkingDir") or "/"
            config["WorkingDir"] = rest if rest.startswith("/") else before.rstrip("/") + "/" + rest
        case "stopsignal":
            config["StopSignal"] = rest
        case "onbuild":
            inner = rest.split(None, 1)[0].upper()
            if inner in ("ONBUILD", "FROM", "MAINTAINER"):
                raise InvalidParameter(f"{inner} isn't allowed as an ONBUILD trigger")
            config["OnBuild"] = [*(config.get("OnBuild") or []), rest]
        case "healthcheck":
            config["Healthcheck"] = _healthcheck(rest)


def _json_list(text: str) -> list[str] | None:
    """The exec form ``["a", "b"]``; None for anything else, which then is the shell form, as in Docker."""
    try:
        return msgspec.json.decode(text.encode(), type=list[str])
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _command(text: str) -> list[str]:
    words = _json_list(text)
    return [*_SHELL, text] if words is None else words


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidParameter(f"failed to process {text!r}: {error}") from None


def _pairs(text: str, keyword: str) -> list[tuple[str, str]]:
    """``KEY=value KEY2="v 2"``, or the old form ``KEY value with spaces``."""
    first = text.split(None, 1)[0]
    if "=" not in first:
        name, _, value = text.partition(" ")
        if not value.strip():
            raise InvalidParameter(f"{keyword} must have two arguments")
        return [(name, value.strip())]
    pairs = []
    for word in _words(text):
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidParameter(
                f"Syntax error - can't find = in {word!r}. Must be of the form: name=value".replace("'", '"')
            )
        if not name:
            raise InvalidParameter(f"{keyword} names can not be blank")
        pairs.append((name, value))
    return pairs


def _merge_env(before: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    result = list(before)
    for name, value in pairs:
        found = next((at for at, line in enumerate(result) if line.partition("=")[0] == name), None)
        if found is None:
            result.append(f"{name}={value}")
        else:
            result[found] = f"{name}={value}"
    return result


def _ports(word: str) -> list[str]:
    ports, _, protocol = word.partition("/")
    protocol = (protocol or "tcp").lower()
    first, dash, last = ports.partition("-")
    try:
        begin, end = int(first), int(last) if dash else int(first)
        if not 0 < begin <= end <= 65535 or protocol not in ("tcp", "udp", "sctp"):
            raise ValueError
    except ValueError:
        raise InvalidParameter(f"invalid containerPort: {word}") from None
    return [f"{port}/{protocol}" for port in range(begin, end + 1)]


_DURATIONS = {
    "--interval": "Interval",
    "--timeout": "Timeout",
    "--start-period": "StartPeriod",
    "--start-interval": "StartInterval",
}


def _healthcheck(text: str) -> dict[str, Any]:
    from engine.timestamps import parse_duration

    check: dict[str, Any] = {}
    words = text.split(None, 1)
    while words and words[0].startswith("--"):
        flag, _, value = words[0].partition("=")
        try:
            if flag == "--retries":
                check["Retries"] = int(value)
            else:
                check[_DURATIONS[flag]] = parse_duration(value)
        except KeyError:
            raise InvalidParameter(f"unknown flag: {flag.removeprefix('--')}") from None
        except ValueError as error:
            raise InvalidParameter(str(error)) from None
        words = words[1].split(None, 1) if len(words) > 1 else []
    kind = words[0].upper() if words else ""
    rest = words[1] if len(words) > 1 else ""
    if kind == "NONE":
        return {"Test": ["NONE"]}
    if kind != "CMD" or not rest:
        raise InvalidParameter(f"Unknown type {kind!r} in HEALTHCHECK (try CMD)".replace("'", '"'))
    exec_form = _json_list(rest)
    return {"Test": ["CMD-SHELL", rest] if exec_form is None else ["CMD", *exec_form], **check}
