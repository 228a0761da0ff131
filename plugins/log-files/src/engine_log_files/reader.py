"""The reading half: entries of a log and its rotated files, from any time, from the end, and as they are written.

A log is a list of files, oldest first: ``path.2.gz path.1 path``. Both formats are ordered by time, so ``since`` is
found by bisection and ``tail`` by reading backwards: their cost does not depend on the size of the log.
"""

from __future__ import annotations

import bisect
import calendar
import ctypes
import gzip
import io
import json
import os
import re
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from engine.drivers.log import LogCursor, LogEntry, LogQuery
from engine_log_files.writer import FRAME, FRAME_END

__all__ = ["Follower", "Format", "JsonFormat", "LocalFormat", "files", "read"]

_BLOCK = 1 << 18
# The common line: no quote and no escape in the text but the newline at its end, nine digits of a second.
_PLAIN = re.compile(rb'\{"log":"([^"\\]*)\\n","stream":"std(out|err)","time":"([0-9T:-]{19})\.([0-9]{9})Z"\}\n')


class Format(ABC):
    """How records lie in a file. ``entries`` splits complete records off the front of ``data``."""

    @abstractmethod
    def entries(self, data: bytes) -> tuple[list[LogEntry], int]:
        """The entries of all complete records in ``data``, and how many bytes those took."""

    @abstractmethod
    def record_start(self, file: io.BufferedIOBase, position: int, size: int) -> int:
        """The start of the first record at or after ``position`` (``size`` if there is none)."""

    @abstractmethod
    def tail_start(self, file: io.BufferedIOBase, size: int, lines: int) -> tuple[int, int]:
        """Where to start reading for the last ``lines`` lines, and how many lines there are from there (maybe more)."""

    def time_at(self, file: io.BufferedIOBase, position: int) -> int:
        """The time of the record that starts at ``position``."""
        size = _BLOCK
        while True:
            file.seek(position)
            data = file.read(size)
            found, _ = self.entries(data)
            if found:
                return found[0].time_ns
            if len(data) < size:
                return 1 << 63
            size *= 4


class JsonFormat(Format):
    """Docker's json-file, ours or written by dockerd."""

    def __init__(self) -> None:
        self._seconds: dict[bytes, int] = {}

    def entries(self, data: bytes) -> tuple[list[LogEntry], int]:
        end = data.rfind(b"\n") + 1
        plain = _PLAIN.findall(data, 0, end)
        if len(plain) == data.count(b"\n", 0, end):
            second = self._second
            return [
                LogEntry(1 if stream == b"out" else 2, second(at) + int(fraction), text + b"\n")
                for text, stream, at, fraction in plain
            ], end
        return [entry for line in data[:end].split(b"\n") if line and (entry := self._entry(line))], end

    def _entry(self, line: bytes) -> LogEntry | None:
        try:
            record = json.loads(line)
            number = 2 if record.get("stream") == "stderr" else 1
            return LogEntry(number, self._time(record["time"].encode()), record["log"].encode("utf-8", "surrogatepass"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # a line a crash has damaged

    def _time(self, text: bytes) -> int:
        fraction = text[20:-1] if text[19:20] == b"." else b""
        return self._second(text[:19]) + int(fraction.ljust(9, b"0")[:9])

    def _second(self, text: bytes) -> int:
        """Nanoseconds at the start of a second; many lines share one."""
        known = self._seconds.get(text)
        if known is None:
            if len(self._seconds) > 4096:
                self._seconds.clear()
            known = calendar.timegm(time.strptime(text.decode(), "%Y-%m-%dT%H:%M:%S")) * 1_000_000_000
            self._seconds[text] = known
        return known

    def record_start(self, file: io.BufferedIOBase, position: int, size: int) -> int:
        if position <= 0:
            return 0
        position -= 1
        while position < size:
            file.seek(position)
            block = file.read(_BLOCK)
            if not block:
                break
            found = block.find(b"\n")
            if found >= 0:
                return position + found + 1
            position += len(block)
        return size

    def tail_start(self, file: io.BufferedIOBase, size: int, lines: int) -> tuple[int, int]:
        position, seen = size, 0
        last_is_newline = True
        while position > 0:
            start = max(0, position - _BLOCK)
            file.seek(start)
            block = file.read(position - start)
            if position == size and not block.endswith(b"\n"):
                last_is_newline = False
            wanted = lines - seen + (1 if last_is_newline else 0)
            count = block.count(b"\n")
            if count >= wanted:
                at = len(block)
                for _ in range(wanted):
                    at = block.rfind(b"\n", 0, at)
                return start + at + 1, lines
            seen += count
            position = start
        return 0, seen


class LocalFormat(Format):
    """Our framed chunks."""

    def entries(self, data: bytes) -> tuple[list[LogEntry], int]:
        found: list[LogEntry] = []
        position, size = 0, len(data)
        while position + FRAME.size <= size:
            time_ns, stream, length = FRAME.unpack_from(data, position)
            start = position + FRAME.size
            after = start + length + FRAME_END.size
            if after > size:
                break
            found.extend(LogEntry(stream, time_ns, line) for line in data[start : start + length].splitlines(True))
            position = after
        return _rejoin(found), position

    def record_start(self, file: io.BufferedIOBase, position: int, size: int) -> int:
        """Frames carry no mark to synchronise on, so walk back from the end, which costs one read a frame."""
        at = size
        while at > 0:
            before = self._before(file, at)
            if before < position:
                return at
            at = before
        return 0

    def _before(self, file: io.BufferedIOBase, position: int) -> int:
        file.seek(position - FRAME_END.size)
        try:
            (length,) = FRAME_END.unpack(file.read(FRAME_END.size))
        except struct.error:
            return 0
        return max(0, position - FRAME_END.size - int(length) - FRAME.size)

    def tail_start(self, file: io.BufferedIOBase, size: int, lines: int) -> tuple[int, int]:
        position, seen = size, 0
        while position > 0 and seen < lines:
            start = self._before(file, position)
            file.seek(start + FRAME.size)
            body = file.read(position - FRAME_END.size - start - FRAME.size)
            seen += body.count(b"\n") + (0 if body.endswith(b"\n") else 1)
            position = start
        return position, seen


def _rejoin(entries: list[LogEntry]) -> list[LogEntry]:
    r"""`bytes.splitlines` also splits at a lone carriage return; a line ends at ``\n`` only."""
    if not any(entry.data.endswith(b"\r") for entry in entries):
        return entries
    joined: list[LogEntry] = []
    for entry in entries:
        if joined and joined[-1].data.endswith(b"\r") and joined[-1].stream == entry.stream:
            joined[-1] = joined[-1]._replace(data=joined[-1].data + entry.data)
        else:
            joined.append(entry)
    return joined


def files(path: Path) -> list[Path]:
    """The log's files that exist, oldest first."""
    rotated: list[tuple[int, Path]] = []
    for candidate in path.parent.glob(path.name + ".*"):
        number = candidate.name[len(path.name) + 1 :].removesuffix(".gz")
        if number.isdigit():
            rotated.append((int(number), candidate))
    found = [candidate for _, candidate in sorted(rotated, key=lambda item: -item[0])]
    return [*found, path] if path.exists() else found


def _open(path: Path) -> tuple[io.BufferedIOBase, int] | None:
    try:
        if path.suffix == ".gz":
            data = gzip.decompress(path.read_bytes())
            return io.BytesIO(data), len(data)
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    except (FileNotFoundError, EOFError, gzip.BadGzipFile):
        return None  # rotated away in this moment
    return io.BufferedReader(file), os.fstat(file.fileno()).st_size


def _wanted(entries: list[LogEntry], query: LogQuery) -> list[LogEntry]:
    if query.since_ns or len(query.streams) < 2 or query.until_ns is not None:
        until = query.until_ns if query.until_ns is not None else 1 << 63
        return [e for e in entries if e.stream in query.streams and query.since_ns <= e.time_ns <= until]
    return entries


def _stream(form: Format, file: io.BufferedIOBase, start: int, size: int) -> Iterator[list[LogEntry]]:
    position = start
    rest = b""
    while position < size:
        file.seek(position)
        block = file.read(min(_BLOCK, size - position))
        if not block:
            return
        position += len(block)
        entries, used = form.entries(rest + block)
        rest = (rest + block)[used:]
        if entries:
            yield entries


def read(form: Format, path: Path, query: LogQuery) -> Iterator[LogEntry]:
    """What is in the log now."""
    if query.tail is not None:
        yield from _tail(form, path, query)
        return
    for name in files(path):
        opened = _open(name)
        if opened is None:
            continue
        file, size = opened
        with file:
            start = _since(form, file, size, query.since_ns) if query.since_ns else 0
            for entries in _stream(form, file, start, size):
                yield from _wanted(entries, query)
                if query.until_ns is not None and entries[-1].time_ns > query.until_ns:
                    return


def _since(form: Format, file: io.BufferedIOBase, size: int, since_ns: int) -> int:
    """The first record not older than ``since_ns``, up to a block's precision."""

    class Times:
        def __len__(self) -> int:
            return size // _BLOCK

        def __getitem__(self, block: int) -> int:
            start = form.record_start(file, block * _BLOCK, size)
            return form.time_at(file, start) if start < size else 1 << 63

    block = bisect.bisect_left(Times(), since_ns)
    return form.record_start(file, max(0, block - 1) * _BLOCK, size)


def _tail(form: Format, path: Path, query: LogQuery) -> Iterator[LogEntry]:
    """The last ``tail`` entries that the rest of the query wants; plain queries read backwards, others filter all."""
    assert query.tail is not None
    if query.tail == 0:
        return
    plain = not query.since_ns and query.until_ns is None and len(query.streams) == 2
    if not plain:
        from collections import deque

        everything = LogQuery(since_ns=query.since_ns, until_ns=query.until_ns, streams=query.streams)
        yield from deque(read(form, path, everything), maxlen=query.tail)
        return
    found: list[LogEntry] = []
    for name in reversed(files(path)):
        opened = _open(name)
        if opened is None:
            continue
        file, size = opened
        with file:
            start, _ = form.tail_start(file, size, query.tail - len(found))
            found = [entry for entries in _stream(form, file, start, size) for entry in entries] + found
        if len(found) >= query.tail:
            break
    yield from found[-query.tail :]


class Follower(LogCursor):
    """A cursor over the log that survives rotation and a log that does not exist yet."""

    def __init__(self, form: Format, path: Path, query: LogQuery) -> None:
        self._form, self._path, self._query = form, path, query
        self._file: io.FileIO | None = None
        self._inode = 0
        self._position = 0
        self._last_ns = 0
        self._rest = b""
        self._watch = _watch(path.parent)
        self._history: Iterator[LogEntry] | None = self._past()

    def fileno(self) -> int:
        return self._watch

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._watch >= 0:
            os.close(self._watch)
            self._watch = -1

    def _past(self) -> Iterator[LogEntry]:
        """Where the log ends now is fixed before the history is read, so that nothing is told twice or lost."""
        self._open_current()
        boundary = self._position
        for entry in read(self._form, self._path, self._query):
            self._last_ns = max(self._last_ns, entry.time_ns)
            yield entry
        self._position = max(boundary, self._position)

    def _open_current(self) -> None:
        try:
            self._file = io.FileIO(self._path)
        except FileNotFoundError:
            return
        status = os.fstat(self._file.fileno())
        self._inode, self._position = status.st_ino, status.st_size

    def advance(self) -> list[LogEntry]:
        self._drain()
        if self._history is not None:
            batch: list[LogEntry] = []
            for entry in self._history:
                batch.append(entry)
                if len(batch) >= 4096:
                    return batch
            self._history = None
            if batch:
                return batch
        if self._file is None:
            self._next_file()
        found: list[LogEntry] = []
        while self._file is not None and not found:
            self._file.seek(self._position)
            block = self._file.read(1 << 20)
            if block:
                self._position += len(block)
                entries, used = self._form.entries(self._rest + block)
                self._rest = (self._rest + block)[used:]
                if entries:
                    self._last_ns = entries[-1].time_ns
                    found = _wanted(entries, self._query)
            elif not self._next_file():
                break
        return found

    def _next_file(self) -> bool:
        """After the end of a file: go on with the one that follows it, if the log was rotated."""
        candidates = files(self._path)
        inodes = [path.stat().st_ino for path in candidates if path.exists()]
        if not candidates or len(inodes) != len(candidates) or (self._file is not None and inodes[-1] == self._inode):
            return False
        if self._file is not None and self._inode in inodes:
            chosen = candidates[inodes.index(self._inode) + 1]
        else:
            chosen = next((path for path in candidates if self._starts_after(path)), candidates[-1])
        opened = _open(chosen)
        if opened is None:
            return False
        if self._file is not None:
            self._file.close()
        opened[0].close()
        self._file = io.FileIO(chosen)
        self._inode, self._position, self._rest = os.fstat(self._file.fileno()).st_ino, 0, b""
        return True

    def _starts_after(self, path: Path) -> bool:
        opened = None if path.suffix == ".gz" else _open(path)
        if opened is None:
            return False
        with opened[0] as file:
            return self._form.time_at(file, 0) > self._last_ns

    def _drain(self) -> None:
        if self._watch >= 0:
            try:
                while os.read(self._watch, 65536):
                    pass
            except BlockingIOError:
                pass


def _watch(directory: Path) -> int:
    """An inotify descriptor, readable when something in ``directory`` was written; -1 if none is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(directory), 0x2 | 0x80 | 0x100) < 0:  # MODIFY MOVED_TO CREATE
        os.close(fd)
        return -1
    return fd
