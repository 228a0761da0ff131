"""The drivers syslog and journald: their options, and what their writer is told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from engine.drivers.log import LogCursor, LogDriver, LogEntry, LogQuery, LogTarget, LogWriter
from engine.errors import EngineError, InvalidParameter, NotSupported

__all__ = ["Journald", "Syslog"]

_TAGS = frozenset({"tag", "labels", "labels-regex", "env", "env-regex"})
_COMMON = frozenset({"mode", "max-buffer-size", "cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"})
_FACILITIES = {
    name: number
    for number, name in enumerate("kern user mail daemon auth syslog lpr news uucp cron authpriv ftp".split())
} | {f"local{number}": 16 + number for number in range(8)}
_FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_LOCAL_SYSLOG = ("/dev/log", "/var/run/syslog", "/var/run/log")
_JOURNAL = "/run/systemd/journal/socket"
_SIZE = re.compile(r"(\d+)\s*([kmg]?)(i?b?)", re.IGNORECASE)
_BUFFER = 1 << 20


def parse_size(text: str) -> int:
    """Bytes of ``1m``, ``64k``, ``4096``; binary units, as dockerd reads buffer sizes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidParameter(f"invalid size: '{text}'")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]


class _Remote(LogDriver):
    """What both drivers have in common: they send and cannot read."""

    keys: frozenset[str]

    def validate(self, options: Mapping[str, str]) -> None:
        for key in options:
            if key not in self.keys and key not in _COMMON and key not in _TAGS:
                raise InvalidParameter(f"unknown log opt '{key}' for {self.context.name} log driver")
        if options.get("mode", "blocking") not in ("blocking", "non-blocking"):
            raise InvalidParameter(f"logger: logging mode not supported: {options['mode']}")
        if "max-buffer-size" in options:
            if options.get("mode") != "non-blocking":
                raise InvalidParameter("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
            parse_size(options["max-buffer-size"])

    def _writer(self, target: LogTarget, **more: str) -> LogWriter:
        options = target.options
        return LogWriter(
            source=Path(__file__).with_name("writer.py"),
            options={
                "driver": self.context.name,
                "blocking": "true" if options.get("mode", "blocking") == "blocking" else "false",
                "buffer": str(parse_size(options["max-buffer-size"]) if "max-buffer-size" in options else _BUFFER),
                **more,
            },
        )

    def read(self, target: LogTarget, query: LogQuery) -> Iterator[LogEntry]:
        _refuse_reading()

    def follow(self, target: LogTarget, query: LogQuery) -> LogCursor:
        _refuse_reading()

    def delete(self, target: LogTarget) -> None:
        return None


def _refuse_reading() -> NoReturn:
    raise NotSupported("configured logging driver does not support reading")


class Syslog(_Remote):
    """``syslog``: where to, in which format, as what."""

    keys = frozenset({"syslog-address", "syslog-facility", "syslog-format"})

    def validate(self, options: Mapping[str, str]) -> None:
        super().validate(options)
        _address(options.get("syslog-address", ""))
        _facility(options.get("syslog-facility", ""))
        if options.get("syslog-format", "") not in _FORMATS:
            raise InvalidParameter("Invalid syslog format")

    def writer(self, target: LogTarget) -> LogWriter:
        network, address = _address(target.options.get("syslog-address", ""))
        if not address:
            address = next((path for path in _LOCAL_SYSLOG if os.path.exists(path)), "")
            if not address:
                raise EngineError("failed to initialize logging driver: Unix syslog delivery error")
        return self._writer(
            target,
            network=network,
            address=address,
            facility=str(_facility(target.options.get("syslog-facility", ""))),
            format=target.options.get("syslog-format", ""),
            tag=target.tag or target.container_id[:12],
        )


def _address(text: str) -> tuple[str, str]:
    """(network, address) of a ``syslog-address``; empty is the local syslog."""
    if not text:
        return "unix", ""
    network, separator, address = text.partition("://")
    if not separator or not address:
        raise InvalidParameter(f"syslog-address should be in form proto://address, got {text}")
    if network in ("unix", "unixgram"):
        if not os.path.exists(address):
            raise InvalidParameter(f"stat {address}: no such file or directory")
        return network, address
    if network == "tcp+tls":
        raise InvalidParameter("syslog-address: tcp+tls is not supported here: send to a local relay that speaks TLS")
    if network not in ("tcp", "udp"):
        raise InvalidParameter(f"unsupported scheme: '{network}'")
    if not re.search(r":\d+$", address):
        address += ":514"
    return network, address


def _facility(text: str) -> int:
    if not text:
        return _FACILITIES["daemon"]
    if text in _FACILITIES:
        return _FACILITIES[text]
    if text.isdigit() and int(text) <= 23:
        return int(text)
    raise InvalidParameter("invalid syslog facility")


class Journald(_Remote):
    """``journald``: the container as fields of each message."""

    keys = frozenset()

    def writer(self, target: LogTarget) -> LogWriter:
        address = str(self.context.options.get("socket", _JOURNAL))
        if not os.path.exists(address):
            raise EngineError("failed to initialize logging driver: journald is not enabled on this host")
        tag = target.tag or target.container_id[:12]
        fields = {
            "CONTAINER_ID": target.container_id[:12],
            "CONTAINER_ID_FULL": target.container_id,
            "CONTAINER_NAME": target.attributes.get("name", ""),
            "CONTAINER_TAG": tag,
            "IMAGE_NAME": target.attributes.get("image", ""),
            "SYSLOG_IDENTIFIER": tag,
            **{_journal_name(name): value for name, value in target.extra.items()},
        }
        text = "\0".join(f"{name}={value}" for name, value in fields.items())
        return self._writer(target, network="unixgram", address=address, fields=text)


def _journal_name(name: str) -> str:
    """A field name the journal takes: capitals, digits and underscores, not starting with one of the latter."""
    return re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789") or "X"
