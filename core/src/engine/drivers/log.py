"""Log drivers: where a container's output goes, and how it is read back.

Writing happens in the container's monitor, which is stdlib-only and outlives the daemon; reading happens in the
daemon. So a log driver has two halves: this class (validate, locate, read, delete) in the daemon, and a
stdlib-only Python source file, named by `writer`, that the monitor loads::

    def open_log(options: dict[str, str]) -> Log      # options as returned by `writer`
    class Log:
        def write(self, stream: int, data: bytes | memoryview, now_ns: int) -> None   # 1 stdout, 2 stderr; any chunk
        def sync(self) -> None                        # called at exit; flush partial lines
        def close(self) -> None

A writer never raises because a disk is full: it drops output and says so once in the log when it can.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from engine.drivers import DriverContext

__all__ = ["LogCursor", "LogDriver", "LogEntry", "LogQuery", "LogTarget", "LogWriter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTarget:
    """The container whose log is meant. ``directory`` is the container's own, kept until the container is removed."""

    container_id: str
    directory: Path
    options: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)  # name, image, labels: for tags and remote logs
    tag: str = ""  # the option ``tag`` filled in; empty: the driver's default
    extra: Mapping[str, str] = field(default_factory=dict)  # what the options labels, env and their like name


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWriter:
    """What the monitor needs: the source file of the writer and its options."""

    source: Path
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Nanoseconds since the epoch; ``tail`` None means all. ``streams`` is a subset of {1, 2}."""

    since_ns: int = 0
    until_ns: int | None = None
    tail: int | None = None
    streams: frozenset[int] = frozenset({1, 2})


class LogEntry(NamedTuple):
    """One line with its newline, or a part of a line that was too long or unfinished (no newline)."""

    stream: int
    time_ns: int
    data: bytes


class LogDriver(ABC):
    """Capabilities: ``read``. A driver without it (none, syslog) cannot serve ``docker logs``."""

    capabilities: frozenset[str] = frozenset()

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    @abstractmethod
    def validate(self, options: Mapping[str, str]) -> None:
        """`InvalidParameter` for unknown keys or bad values, in dockerd's words
        (``unknown log opt 'x' for json-file log driver``)."""

    @abstractmethod
    def writer(self, target: LogTarget) -> LogWriter | None:
        """What the monitor loads; None keeps nothing."""

    @abstractmethod
    def read(self, target: LogTarget, query: LogQuery) -> Iterator[LogEntry]:
        """Entries in order, as far as written now. The tail of a large log costs the tail, not the log."""

    @abstractmethod
    def follow(self, target: LogTarget, query: LogQuery) -> LogCursor:
        """A cursor that first yields what `read` would and later what was written since."""

    @abstractmethod
    def delete(self, target: LogTarget) -> None:
        """Remove what the writer wrote, rotated files included."""

    def path(self, target: LogTarget) -> str:
        """``LogPath`` of ``docker inspect``; empty when there is no file."""
        return ""


class LogCursor(ABC):
    """A place in a log that moves forward; survives rotation. Not thread-safe."""

    @abstractmethod
    def advance(self) -> list[LogEntry]:
        """Entries since the last call, at most about 1 MiB; empty when there is nothing new."""

    @abstractmethod
    def close(self) -> None:
        """Give back file descriptors."""

    def fileno(self) -> int:
        """An inotify descriptor readable when `advance` may have something, or -1: then the core asks on a timer."""
        return -1
