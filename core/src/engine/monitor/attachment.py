"""One attached client: its socket, what it still has to get, and what it types.

Slow clients. Output a client has not read yet is kept in memory up to `HIGH_WATER`; beyond that the monitor stops
reading the container's output (backpressure: nothing is lost, the container waits, as with Docker) for as long as the
client makes progress. A client that reads nothing at all for `STALL` seconds stops holding the container: from then on
its output goes to an unlinked file until it has caught up (``docker run ... | less`` loses nothing, while the container
and its log go on). One that is more than `SPOOL_LIMIT` behind is dropped.
"""

from __future__ import annotations

import _socket
import os
import struct
import time

from engine.monitor.loop import ERROR, HANGUP, READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from engine.monitor.loop import Loop
else:
    from _collections import deque

HIGH_WATER = 256 * 1024
STALL = 5.0
SPOOL_LIMIT = 1 << 30
GIVE_UP = 600.0  # after the exit: how long a client that reads nothing keeps its monitor alive
CHUNK = 64 * 1024
UNSTARTED = "unstarted"  # how an attachment ends whose process never ran: the daemon may still say why on its own copy
DRAIN = 64  # chunks, at most, of what a departing client had sent

_frame_header = struct.Struct(">BxxxL").pack


class DetachKeys:
    """Finds the detach sequence in what is typed; a possible beginning is held back until it is decided."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the sequence is complete (what follows it is dropped)."""
        keys = self._keys
        if not keys:
            return data, False
        data = self._held + data
        found = data.find(keys)
        if found >= 0:
            return data[:found], True
        for held in range(min(len(keys) - 1, len(data)), 0, -1):
            if data.endswith(keys[:held]):
                self._held = data[-held:]
                return data[:-held], False
        self._held = b""
        return data, False


class Attachment:
    """A client socket served directly: output is ``raw`` or in Docker's 8-byte frames.

    ``on_input(data)`` gets what the client sends and ``on_input_end()`` its end of input; ``on_end(how)`` is called
    once, when the socket has been closed: ``"detached"``, ``"closed"``, ``"exited"`` or `UNSTARTED`. ``on_room()`` is
    called when a client that was `full` is no longer.
    """

    def __init__(
        self,
        loop: Loop,
        sock: _socket.socket,
        *,
        terminal: bool,
        raw: bool,
        streams: frozenset[int],
        keys: bytes,
        spool_directory: str,
        on_input: Callable[[bytes], None] | None,
        on_input_end: Callable[[], None],
        on_room: Callable[[], None],
        on_end: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._raw = raw
        self._streams = streams
        self._keys = DetachKeys(keys if terminal else b"")
        self._spool_directory = spool_directory
        self._on_input = on_input
        self._on_input_end = on_input_end
        self._on_room = on_room
        self._on_end = on_end
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._spool = -1
        self._spool_read = 0
        self._spool_size = 0
        self._reading = on_input is not None
        self._paused = False
        self._finishing = False
        self._timer: int | None = None
        self._progress = time.monotonic()
        self.ended = False
        self._update()

    # -- output ---------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the container has to wait for this client."""
        return self._queued >= HIGH_WATER and self._spool < 0 and not self.ended

    @property
    def wants_output(self) -> bool:
        """Whether it attached to any output."""
        return bool(self._streams)

    def send(self, stream: int, data: bytes) -> None:
        """Give the client a chunk of output, now or later."""
        if self.ended or stream not in self._streams:
            return
        parts: tuple[bytes, ...] = (data,) if self._raw else (_frame_header(stream, len(data)), data)
        if self._spool >= 0:
            self._spool_write(parts)
            return
        sent = 0
        if not self._queue:
            try:
                sent = self._sock.sendmsg(parts)
            except BlockingIOError:
                self._progress = time.monotonic()  # it was up to date until now
            except OSError:
                self.end("closed")
                return
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
                continue
            self._queue.append(memoryview(part)[sent:])
            self._queued += len(part) - sent
            sent = 0
        if self._queue:
            self._update()
            if self.full and self._timer is None:
                self._timer = self._loop.after(STALL, self._check_stall)

    def _flush(self) -> None:
        was_full = self.full
        try:
            while self._queue:
                sent = self._sock.send(self._queue[0])
                self._progress = time.monotonic()
                self._queued -= sent
                if sent == len(self._queue[0]):
                    self._queue.popleft()
                else:
                    self._queue[0] = self._queue[0][sent:]
            if self._spool >= 0:
                behind = self._spool_size - self._spool_read
                sent = os.sendfile(self._fd, self._spool, self._spool_read, min(behind, 16 * CHUNK))
                self._progress = time.monotonic()
                self._spool_read += sent
                if self._spool_read == self._spool_size:
                    self._drop_spool()
        except BlockingIOError:
            pass
        except OSError:
            self.end("closed")
            return
        if not self._queue and self._spool < 0 and self._finishing:
            self.end("exited")
            return
        self._update()
        if was_full and not self.full:
            self._on_room()

    def _check_stall(self) -> None:
        self._timer = None
        if not self.full:
            return
        wait = self._progress + STALL - time.monotonic()
        if wait > 0:
            self._timer = self._loop.after(wait, self._check_stall)
            return
        try:
            self._spool = os.open(self._spool_directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            self.end("closed")
        self._on_room()

    def _spool_write(self, parts: tuple[bytes, ...]) -> None:
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    written = os.pwrite(self._spool, view, self._spool_size)
                    self._spool_size += written
                    view = view[written:]
        except OSError:  # the disk is full
            self.end("closed")
            return
        if self._spool_size - self._spool_read > SPOOL_LIMIT:
            self.end("closed")
        else:
            self._update()

    def _drop_spool(self) -> None:
        if self._spool >= 0:
            os.close(self._spool)
        self._spool = -1
        self._spool_read = self._spool_size = 0

    # -- input ----------------------------------------------------------------------------------------------

    def pause_input(self) -> None:
        """Read no more from the client until `resume_input`."""
        self._paused = True
        self._update()

    def resume_input(self) -> None:
        """Read from the client again."""
        self._paused = False
        self._update()

    def feed(self, data: bytes) -> None:
        """Input that reached the daemon before the socket reached us."""
        if self._on_input is None or self.ended:
            return
        data, detach = self._keys.feed(data)
        if data:
            self._on_input(data)
        if detach:
            self.end("detached")

    def _receive(self) -> None:
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.feed(data)
        else:
            self._reading = False
            self._update()
            self._on_input_end()

    # -- life -----------------------------------------------------------------------------------------------

    def _update(self) -> None:
        if self.ended:
            return
        mask = 0
        if self._reading and not self._paused:
            mask |= READ
        if self._queue or self._spool >= 0:
            mask |= WRITE
        self._loop.watch(self._fd, mask, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & READ and self._reading and not self._paused:
            self._receive()
        if mask & WRITE and not self.ended:
            self._flush()
        if mask & (HANGUP | ERROR) and not self.ended and not (self._reading and mask & READ):
            # Gone altogether. What it sent before it went is input all the same.
            self._paused = False
            for _ in range(DRAIN):
                if self._reading and not self.ended:
                    self._receive()
            self.end("closed")

    def finish(self) -> None:
        """The process is gone: close once everything has been sent."""
        if self.ended:
            return
        self._finishing = True
        if not self._queue and self._spool < 0:
            self.end("exited")
            return
        self._give_up_later()

    def _give_up_later(self) -> None:
        wait = self._progress + GIVE_UP - time.monotonic()
        if wait <= 0:
            self.end("closed")
        elif not self.ended:
            self._timer = self._loop.after(wait, self._give_up_later)

    def end(self, how: str) -> None:
        """Close the socket and say so; only the first call counts."""
        if self.ended:
            return
        self.ended = True
        self._loop.cancel(self._timer)
        self._loop.unwatch(self._fd)
        self._drop_spool()
        self._queue.clear()
        self._queued = 0
        try:
            if how != UNSTARTED:
                self._sock.shutdown(_socket.SHUT_WR)
            for _ in range(DRAIN):  # input left unread would turn the client's end of file into a reset
                if not self._sock.recv(CHUNK):
                    break
        except OSError:
            pass
        self._sock.close()
        self._on_end(how)
        self._on_room()
