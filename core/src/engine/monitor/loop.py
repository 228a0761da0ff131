"""The event loop of a monitor: callbacks on descriptors and timers, on epoll, in a page of code."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP
ERROR = select.EPOLLERR


class Loop:
    """Calls back with the epoll mask when a descriptor is ready, and without arguments when a timer is due."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self._next_timer = 0
        self._stopped = False

    def watch(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """Begin to watch ``fd``, or change what is watched. Hang-up and error are always reported."""
        if fd in self._watched:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; to be called before ``fd`` is closed. Harmless when it is not watched."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> int:
        """Call back once, ``seconds`` from now; returns what `cancel` takes."""
        self._next_timer += 1
        self._timers[self._next_timer] = (time.monotonic() + seconds, callback)
        return self._next_timer

    def cancel(self, timer: int | None) -> None:
        """Forget a timer; harmless when it has fired."""
        if timer is not None:
            self._timers.pop(timer, None)

    def stop(self) -> None:
        """Let `run` return after the current callback."""
        self._stopped = True

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopped:
            timeout = None
            if self._timers:
                timeout = max(0.0, min(due for due, _ in self._timers.values()) - time.monotonic())
            for fd, mask in self._epoll.poll(timeout):
                callback = self._watched.get(fd)  # an earlier callback may have closed it
                if callback is not None:
                    callback(mask)
            if self._timers:
                now = time.monotonic()
                for timer, (due, timed) in list(self._timers.items()):
                    if due <= now and self._timers.pop(timer, None) is not None:
                        timed()
