"""The sending half: runs in a container's monitor, so it imports nothing but builtin and stdlib C modules.

A whole line is one message; a line longer than 16 KiB is sent in pieces. In blocking mode a message waits for the
server up to a second, then it is dropped; in non-blocking mode it goes to a buffer of bounded size, and is dropped when
that is full. A connection that broke is made anew, at most once a second.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

MAX_LINE = 16384
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATIENCE = 1.0  # seconds
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SEVERITY = {1: 6, 2: 3}  # informational, error


def open_log(options: dict[str, str]) -> Sender:
    """The monitor's entry point; ``options`` are text to text, as made by the driver's ``writer``."""
    return {"syslog": SyslogSender, "journald": JournaldSender}[options["driver"]](options)


class Sender:
    """Line assembly, connection and buffer; the protocols add `_encode`."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options
        self._network = options["network"]
        self._address = options["address"]
        self._blocking = options["blocking"] == "true"
        self._limit = int(options["buffer"])
        self._partial = {1: b"", 2: b""}
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._socket: _socket.socket | None = None
        self._retry_at = 0.0

    def _encode(self, stream: int, line: bytes, now_ns: int, *, partial: bool) -> bytes:
        raise NotImplementedError

    def write(self, stream: int, data: bytes | memoryview, now_ns: int) -> None:
        """Send the lines of a chunk of ``stream`` (1 or 2) received at ``now_ns``."""
        lines = (self._partial[stream] + bytes(data)).split(b"\n")
        rest = lines.pop()
        for line in lines:
            while len(line) > MAX_LINE:
                self._send(self._encode(stream, line[:MAX_LINE], now_ns, partial=True))
                line = line[MAX_LINE:]
            self._send(self._encode(stream, line, now_ns, partial=False))
        while len(rest) >= MAX_LINE:
            self._send(self._encode(stream, rest[:MAX_LINE], now_ns, partial=True))
            rest = rest[MAX_LINE:]
        self._partial[stream] = rest

    def sync(self) -> None:
        """Send unfinished lines, and what waits."""
        for stream, rest in self._partial.items():
            if rest:
                self._partial[stream] = b""
                self._send(self._encode(stream, rest, time.time_ns(), partial=False))
        deadline = time.monotonic() + PATIENCE
        while self._waiting and time.monotonic() < deadline:
            self._flush()
            if self._waiting and not self._room(deadline):
                return

    def close(self) -> None:
        """Flush and disconnect."""
        self.sync()
        self._disconnect()

    # -- sending ------------------------------------------------------------------------------------------------

    def _send(self, message: bytes) -> None:
        self._waiting.append(message)
        self._waiting_size += len(message)
        self._flush()
        if self._blocking:
            deadline = time.monotonic() + PATIENCE
            while self._waiting and time.monotonic() < deadline and self._room(deadline):
                self._flush()
            if self._waiting and self._socket is not None:
                self._drop(0)
        self._drop(self._limit)

    def _drop(self, limit: int) -> None:
        """Give up the newest messages beyond ``limit`` bytes; one that was sent in part is kept whole."""
        while self._waiting and self._waiting_size > limit and len(self._waiting) > (1 if limit else 0):
            self._waiting_size -= len(self._waiting.pop())

    def _room(self, deadline: float) -> bool:
        """Wait until the server takes more."""
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLOUT)
        return bool(poll.poll(max(0, int((deadline - time.monotonic()) * 1000))))

    def _flush(self) -> None:
        if self._socket is None and not self._connect():
            return
        done = 0
        try:
            assert self._socket is not None
            for message in self._waiting:
                sent = self._socket.send(message, _socket.MSG_NOSIGNAL)
                self._waiting_size -= sent
                if sent < len(message):
                    self._waiting[done] = message[sent:]
                    break
                done += 1
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno == 90:  # EMSGSIZE: no datagram can be that long
                self._waiting_size -= len(self._waiting[done])
                done += 1
            else:
                self._disconnect()
        del self._waiting[:done]

    def _connect(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        self._retry_at = time.monotonic() + 1
        kinds = ("dgram", "stream") if self._network == "unix" else (self._network,)
        for kind in kinds:
            try:
                self._socket = self._open(kind)
                return True
            except OSError:
                continue
        return False

    def _open(self, kind: str) -> _socket.socket:
        if kind in ("dgram", "unixgram", "stream"):
            form = _socket.SOCK_STREAM if kind == "stream" else _socket.SOCK_DGRAM
            opened = _socket.socket(_socket.AF_UNIX, form | _socket.SOCK_CLOEXEC)
            where: Any = self._address
        else:
            host, _, port = self._address.rpartition(":")
            form = _socket.SOCK_DGRAM if kind == "udp" else _socket.SOCK_STREAM
            found = _socket.getaddrinfo(host.strip("[]"), int(port), 0, form)
            opened = _socket.socket(found[0][0], form | _socket.SOCK_CLOEXEC)
            where = found[0][4]
        try:
            opened.settimeout(PATIENCE)
            opened.connect(where)
            opened.setblocking(False)
        except BaseException:
            opened.close()
            raise
        return opened

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class SyslogSender(Sender):
    """RFC 3164 or RFC 5424 lines."""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(options)
        self._facility = int(options["facility"])
        self._form = options["format"]
        self._tag = options["tag"].encode()
        self._host = os.uname().nodename.encode()

    def _encode(self, stream: int, line: bytes, now_ns: int, *, partial: bool) -> bytes:
        priority = self._facility * 8 + _SEVERITY[stream]
        pid = os.getpid()
        if self._form in ("rfc5424", "rfc5424micro"):
            moment = _rfc3339(now_ns, micro=self._form == "rfc5424micro")
            return b"<%d>1 %s %s %s %d %s - %s\n" % (priority, moment, self._host, self._tag, pid, self._tag, line)
        if self._form == "rfc3164":
            return b"<%d>%s %s %s[%d]: %s\n" % (priority, _stamp(now_ns), self._host, self._tag, pid, line)
        if self._network in ("unix", "unixgram"):
            return b"<%d>%s %s[%d]: %s\n" % (priority, _stamp(now_ns), self._tag, pid, line)
        moment = _rfc3339(now_ns, micro=False)
        return b"<%d>%s %s %s[%d]: %s\n" % (priority, moment, self._host, self._tag, pid, line)


def _stamp(now_ns: int) -> bytes:
    when = time.localtime(now_ns // 10**9)
    return b"%s %2d %02d:%02d:%02d" % (
        _MONTHS[when.tm_mon - 1].encode(), when.tm_mday, when.tm_hour, when.tm_min, when.tm_sec,
    )  # fmt: skip


def _rfc3339(now_ns: int, *, micro: bool) -> bytes:
    when = time.localtime(now_ns // 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", when)
    if micro:
        text += f".{now_ns % 10**9 // 1000:06d}"
    offset = when.tm_gmtoff // 60
    zone = "Z" if not offset else f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02d}:{abs(offset) % 60:02d}"
    return (text + zone).encode()


class JournaldSender(Sender):
    """systemd's native protocol: one datagram of fields for each line."""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(options)
        fields = [line.partition("=")[::2] for line in options["fields"].split("\0") if line]
        self._fields = b"".join(_field(name, value.encode()) for name, value in fields)

    def _encode(self, stream: int, line: bytes, now_ns: int, *, partial: bool) -> bytes:
        head = self._fields + b"PRIORITY=%d\nSYSLOG_TIMESTAMP=%s\n" % (_SEVERITY[stream], _rfc3339(now_ns, micro=True))
        if partial:
            head += b"CONTAINER_PARTIAL_MESSAGE=true\n"
        return head + _field("MESSAGE", line)


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"
