"""The drivers json-file, local and none: options, paths, and which writer and reader serve them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.drivers import DriverContext
from engine.drivers.log import LogCursor, LogDriver, LogEntry, LogQuery, LogTarget, LogWriter
from engine.errors import InvalidParameter, NotSupported
from engine_log_files import reader

__all__ = ["JsonFile", "Local", "Nothing"]

_TAGS = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
_COMMON = frozenset({"mode", "max-buffer-size"})
_SIZE = re.compile(r"(-1|\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b?)", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str) -> int:
    """Bytes of ``10m``, ``1.5GB``, ``4096``; decimal units, as dockerd reads log sizes. -1 is no limit."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidParameter(f"invalid size: '{text}'")
    if match[1] == "-1":
        return -1
    base = 1024 if match[3].lower() == "ib" else 1000
    return int(float(match[1]) * base ** _UNITS[match[2].lower()])


class _Files(LogDriver):
    """What the two file formats have in common."""

    capabilities = frozenset({"read"})
    form: reader.Format
    keys: frozenset[str]
    defaults: Mapping[str, str]

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self.validate({key: str(value) for key, value in context.options.items()})

    def _rotation(self, options: Mapping[str, str]) -> dict[str, str]:
        chosen = {**self.defaults, **{key: str(value) for key, value in self.context.options.items()}, **options}
        return {
            "max-size": str(parse_size(chosen["max-size"])),
            "max-file": chosen["max-file"],
            "compress": chosen["compress"].lower(),
        }

    def validate(self, options: Mapping[str, str]) -> None:
        for key in options:
            if key not in self.keys and key not in _COMMON:
                raise InvalidParameter(f"unknown log opt '{key}' for {self.context.name} log driver")
        if options.get("mode", "blocking") not in ("blocking", "non-blocking"):
            raise InvalidParameter(f"logger: logging mode not supported: {options['mode']}")
        if "max-buffer-size" in options:
            if options.get("mode") != "non-blocking":
                raise InvalidParameter("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
            parse_size(options["max-buffer-size"])
        size = parse_size(options.get("max-size", self.defaults["max-size"]))
        if size == 0 or size < -1:
            raise InvalidParameter("max-size must be a positive number")
        count = options.get("max-file", self.defaults["max-file"])
        if not re.fullmatch(r"-?\d+", count):
            raise InvalidParameter(f'invalid value for max-file: "{count}" is not a number')
        if int(count) < 1:
            raise InvalidParameter("max-file cannot be less than 1")
        compress = options.get("compress", self.defaults["compress"]).lower()
        if compress not in ("true", "false", "1", "0", "t", "f"):
            raise InvalidParameter(f'invalid value for compress: "{compress}" is not a boolean')
        if compress in ("true", "1", "t") and "compress" in options and (int(count) < 2 or size < 0):
            raise InvalidParameter("compress cannot be true when max-file is less than 2 or max-size is not set")

    def _file(self, target: LogTarget) -> Path:
        raise NotImplementedError

    def path(self, target: LogTarget) -> str:
        return str(self._file(target))

    def writer(self, target: LogTarget) -> LogWriter:
        rotation = self._rotation(target.options)
        rotation["compress"] = "true" if rotation["compress"] in ("true", "1", "t") else "false"
        if int(rotation["max-file"]) < 2:
            rotation["compress"] = "false"
        return LogWriter(
            source=Path(__file__).with_name("writer.py"),
            options={"format": self.context.name, "path": str(self._file(target)), **rotation},
        )

    def read(self, target: LogTarget, query: LogQuery) -> Iterator[LogEntry]:
        return reader.read(self.form, self._file(target), query)

    def follow(self, target: LogTarget, query: LogQuery) -> LogCursor:
        return reader.Follower(self.form, self._file(target), query)

    def delete(self, target: LogTarget) -> None:
        for file in reader.files(self._file(target)):
            file.unlink(missing_ok=True)


class JsonFile(_Files):
    """Docker's json-file: ``<directory>/<id>-json.log``."""

    form = reader.JsonFormat()
    keys = _TAGS | {"max-size", "max-file", "compress"}
    defaults = {"max-size": "100m", "max-file": "3", "compress": "false"}

    def _file(self, target: LogTarget) -> Path:
        return target.directory / f"{target.container_id}-json.log"


class Local(_Files):
    """Framed chunks: ``<directory>/local-logs/container.log``."""

    form = reader.LocalFormat()
    keys = frozenset({"max-size", "max-file", "compress"})
    defaults = {"max-size": "20m", "max-file": "5", "compress": "true"}

    def _file(self, target: LogTarget) -> Path:
        return target.directory / "container.log"


class Nothing(LogDriver):
    """Keeps nothing and can serve nothing."""

    def validate(self, options: Mapping[str, str]) -> None:
        for key in options:
            if key not in _COMMON:
                raise InvalidParameter(f"unknown log opt '{key}' for none log driver")

    def writer(self, target: LogTarget) -> None:
        return None

    def read(self, target: LogTarget, query: LogQuery) -> Iterator[LogEntry]:
        raise NotSupported("configured logging driver does not support reading")

    def follow(self, target: LogTarget, query: LogQuery) -> LogCursor:
        raise NotSupported("configured logging driver does not support reading")

    def delete(self, target: LogTarget) -> None:
        return None
