"""The container's standard input: bytes of any number of clients, in order, without ever blocking the monitor."""

from __future__ import annotations

import os

from engine.monitor.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from engine.monitor.loop import Loop
else:
    from _collections import deque

HIGH_WATER = 256 * 1024


class Stdin:
    """Accepts input at any time; passes it on once `connect` has named the descriptor.

    ``on_room()`` is called when input may come again after `full`.
    """

    def __init__(self, loop: Loop, on_room: Callable[[], None]) -> None:
        self._loop = loop
        self._on_room = on_room
        self._fd = -1
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._closing = False
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether clients should wait."""
        return self._queued >= HIGH_WATER

    def connect(self, fd: int) -> None:
        """The process is there; ``fd`` is non-blocking and ours from now on."""
        self._fd = fd
        self._flush()

    def write(self, data: bytes) -> None:
        """Pass ``data`` on, now or later. Input nobody reads any more is dropped."""
        if self._closing or self._closed:
            return
        self._queue.append(memoryview(data))
        self._queued += len(data)
        if self._fd >= 0 and len(self._queue) == 1:
            self._flush()

    def end(self) -> None:
        """End of input, after all that was written."""
        self._closing = True
        if self._fd >= 0:
            self._flush()

    def _flush(self, _mask: int = 0) -> None:
        was_full = self.full
        try:
            while self._queue:
                written = os.write(self._fd, self._queue[0])
                self._queued -= written
                if written == len(self._queue[0]):
                    self._queue.popleft()
                else:
                    self._queue[0] = self._queue[0][written:]
        except BlockingIOError:
            self._loop.watch(self._fd, WRITE, self._flush)
        except OSError:  # the other end is closed
            self.close()
        else:
            self._loop.unwatch(self._fd)
            if self._closing:
                self.close()
        if was_full and not self.full:
            self._on_room()

    def close(self) -> None:
        """Close now; what was not passed on is lost."""
        self._closed = True
        self._queue.clear()
        self._queued = 0
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
