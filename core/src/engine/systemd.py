"""systemd's two small protocols: readiness messages (sd_notify) and passed sockets (LISTEN_FDS)."""

from __future__ import annotations

import os
import socket
import time

__all__ = ["Notifier", "passed_sockets"]

_FIRST_FD = 3


class Notifier:
    """Tells the service manager how the daemon is doing; silent when there is none."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        """Takes its variables out of the environment, so that no child thinks they are for it."""
        source: dict[str, str] = os.environ if environment is None else environment  # type: ignore[assignment]
        address = source.pop("NOTIFY_SOCKET", "")
        interval = source.pop("WATCHDOG_USEC", "")
        for_us = source.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._socket: socket.socket | None = None
        self.watchdog_seconds = int(interval) / 2_000_000 if interval.isdigit() and for_us else 0.0
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
            except OSError:
                self._socket.close()
                self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is not None:
            try:
                self._socket.send(message.encode())
            except OSError:
                self._socket.close()
                self._socket = None

    def ready(self) -> None:
        """The API is served."""
        self._send(f"READY=1\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """A configuration reload begins; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Still alive; due every `watchdog_seconds`."""
        self._send("WATCHDOG=1")


def passed_sockets(environment: dict[str, str] | None = None) -> list[tuple[str, socket.socket]]:
    """Sockets the service manager opened for this process, with their names; the variables are used up."""
    source: dict[str, str] = os.environ if environment is None else environment  # type: ignore[assignment]
    count = source.pop("LISTEN_FDS", "")
    pid = source.pop("LISTEN_PID", "")
    names = source.pop("LISTEN_FDNAMES", "").split(":")
    if not count.isdigit() or pid != str(os.getpid()):
        return []
    sockets = []
    for index in range(int(count)):
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        sockets.append((names[index] if index < len(names) else "", socket.socket(fileno=fd)))
    return sockets
