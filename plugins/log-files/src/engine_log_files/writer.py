"""The writing half: runs in a container's monitor, so it imports nothing but builtin and stdlib C modules.

Both formats hold whole lines: an unfinished line is kept until its newline comes, until it is 16 KiB long (then it is
written without a newline, as dockerd does) or until `sync`. One `write` of the container costs one write(2).

json-file   ``{"log":"line\\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}`` and a newline
local       header ``>QBI`` (time in ns, stream, length), the lines as they are, and the length again as ``>I``,
            so that the file can be read from both ends
"""

from __future__ import annotations

import errno
import os
import struct
import time
from _json import encode_basestring

MAX_LINE = 16384
FRAME = struct.Struct(">QBI")
FRAME_END = struct.Struct(">I")
_STREAMS = ("stdin", "stdout", "stderr")


def open_log(options: dict[str, str]) -> _Log:
    """The monitor's entry point; ``options`` are text to text, as made by the driver's ``writer``."""
    return {"json-file": JsonLog, "local": LocalLog}[options["format"]](options)


class _Log:
    """Line assembly, rotation and full disks; the formats add `_encode` and `_repair`."""

    def __init__(self, options: dict[str, str]) -> None:
        self._path = options["path"]
        self._max_size = int(options["max-size"])
        self._max_files = int(options["max-file"])
        self._compress = options["compress"] == "true"
        self._partial = {1: b"", 2: b""}
        self._lost = 0
        self._second = -1
        self._prefix = ""
        self._compressor = 0
        self._open()

    def _repair(self, size: int) -> int:
        raise NotImplementedError

    def _encode(self, stream: int, data: bytes, now_ns: int) -> bytes:
        raise NotImplementedError

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = self._repair(os.fstat(self._fd).st_size)

    def write(self, stream: int, data: bytes | memoryview, now_ns: int) -> None:
        """Append a chunk of ``stream`` (1 or 2) received at ``now_ns``."""
        data = bytes(data)
        if self._partial[stream]:
            data = self._partial[stream] + data
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        while len(rest) >= MAX_LINE:
            end += MAX_LINE
            rest = rest[MAX_LINE:]
        self._partial[stream] = rest
        if end:
            self._append(self._encode(stream, data[:end], now_ns))

    def sync(self) -> None:
        """Write unfinished lines."""
        for stream, rest in self._partial.items():
            if rest:
                self._partial[stream] = b""
                self._append(self._encode(stream, rest, time.time_ns()))

    def close(self) -> None:
        """Flush and give back the file."""
        self.sync()
        os.close(self._fd)

    def _append(self, encoded: bytes) -> None:
        if self._lost:
            note = b"[engine: %d bytes of output were lost because the disk was full]\n" % self._lost
            encoded = self._encode(2, note, time.time_ns()) + encoded
        if 0 < self._max_size < self._size + len(encoded) and self._size:
            self._rotate()
        done = 0
        try:
            while done < len(encoded):
                done += os.write(self._fd, encoded[done:] if done else encoded)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
                raise
            os.ftruncate(self._fd, self._size)  # no half records
            self._lost += len(encoded)
            return
        self._lost = 0
        self._size += done

    def _rotate(self) -> None:
        self._await_compression()
        suffix = ".gz" if self._compress else ""
        for number in range(self._max_files - 1, 0, -1):
            older = self._path + (f".{number - 1}{suffix}" if number > 1 else "")
            target = f"{self._path}.{number}" + (suffix if number > 1 else "")
            try:
                os.rename(older, target)
            except FileNotFoundError:
                pass
        os.close(self._fd)
        if self._max_files == 1:
            os.unlink(self._path)
        elif self._compress:
            self._start_compression(self._path + ".1")
        self._open()

    def _await_compression(self) -> None:
        """Output that fills files faster than gzip packs them is held back here."""
        if self._compressor:
            try:
                os.waitpid(self._compressor, 0)
            except ChildProcessError:
                pass  # the monitor has reaped it
            self._compressor = 0

    def _start_compression(self, path: str) -> None:
        """In a child of its own: the container's output does not wait for gzip."""
        self._compressor = os.fork()
        if self._compressor:
            return
        try:
            import zlib

            os.nice(10)
            packer = zlib.compressobj(6, zlib.DEFLATED, 31)
            with open(path, "rb") as source, open(path + ".gz.tmp", "wb") as target:
                while block := source.read(1 << 20):
                    target.write(packer.compress(block))
                target.write(packer.flush())
            os.rename(path + ".gz.tmp", path + ".gz")
            os.unlink(path)
        finally:
            os._exit(0)


class JsonLog(_Log):
    """Docker's json-file."""

    def _repair(self, size: int) -> int:
        """Drop a last line that a crash cut short; returns the size."""
        keep = size
        while keep:
            start = max(0, keep - 65536)
            block = os.pread(self._fd, keep - start, start)
            found = block.rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = start
        if keep != size:
            os.ftruncate(self._fd, keep)
        return keep

    def _time(self, now_ns: int) -> str:
        second, fraction = divmod(now_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._prefix}{fraction:09d}Z"

    def _encode(self, stream: int, data: bytes, now_ns: int) -> bytes:
        tail = f',"stream":"{_STREAMS[stream]}","time":"{self._time(now_ns)}"}}\n'
        text = data.decode("utf-8", "replace")
        lines = text.split("\n")
        last = lines.pop()
        parts = ['{"log":' + encode_basestring(line)[:-1] + '\\n"' + tail for line in lines]
        while last:
            parts.append('{"log":' + encode_basestring(last[:MAX_LINE]) + tail)
            last = last[MAX_LINE:]
        return "".join(parts).encode("utf-8")


class LocalLog(_Log):
    """Framed chunks."""

    def _repair(self, size: int) -> int:
        """Drop a last frame that a crash cut short; returns the size."""
        if self._ends_well(size):
            return size
        good = 0
        while good + FRAME.size + FRAME_END.size <= size:
            length = FRAME.unpack(os.pread(self._fd, FRAME.size, good))[2]
            after = good + FRAME.size + length + FRAME_END.size
            if after > size or os.pread(self._fd, FRAME_END.size, after - FRAME_END.size) != FRAME_END.pack(length):
                break
            good = after
        os.ftruncate(self._fd, good)
        return good

    def _ends_well(self, size: int) -> bool:
        if size < FRAME.size + FRAME_END.size:
            return size == 0
        length = FRAME_END.unpack(os.pread(self._fd, FRAME_END.size, size - FRAME_END.size))[0]
        start = size - FRAME_END.size - length - FRAME.size
        return start >= 0 and bool(FRAME.unpack(os.pread(self._fd, FRAME.size, start))[2] == length)

    def _encode(self, stream: int, data: bytes, now_ns: int) -> bytes:
        return FRAME.pack(now_ns, stream, len(data)) + data + FRAME_END.pack(len(data))
