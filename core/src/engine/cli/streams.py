"""Moves bytes between the user's descriptors and a hijacked connection.

One thread copies standard input to the daemon, the caller's copies output back, so neither direction waits for the
other. Without a terminal, output comes in Docker's frames: stream (0-2), three zero bytes, length (big endian).
"""

from __future__ import annotations

import _socket
import os
from _thread import start_new_thread

from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

CHUNK = 1 << 18
HEADER = 8


class Detached(Failure):
    """The user typed the detach keys."""

    def __init__(self) -> None:
        super().__init__("read escape sequence")


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write everything."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_frames(pieces: Iterable[bytes], stdout: int | None, stderr: int | None) -> None:
    """Write the frames of a multiplexed stream to their descriptors (None: drop them), as they arrive."""
    targets = {0: stdout, 1: stdout, 2: stderr}
    header = b""
    left = 0
    target: int | None = None
    for piece in pieces:
        view = memoryview(piece)
        while view:
            if left:
                part = view[:left]
                if target is not None:
                    write_all(target, part)
                left -= len(part)
                view = view[len(part) :]
                continue
            need = HEADER - len(header)
            header += view[:need]
            view = view[need:]
            if len(header) < HEADER:
                continue
            stream, left = header[0], int.from_bytes(header[4:], "big")
            header = b""
            if stream == 3:
                raise Failure(f"error from daemon in stream: {bytes(view[:left]).decode('utf-8', 'replace')}")
            if stream not in targets:
                raise Failure(f"Unrecognized input header: {stream}")
            target = targets[stream]


def received(connection: Any, first: bytes) -> Iterator[bytes]:
    """What a connection sends until it ends, ``first`` being what has been read already."""
    if first:
        yield first
    while True:
        try:
            piece = connection.recv(CHUNK)
        except ConnectionResetError:
            return
        if not piece:
            return
        yield piece


class EscapeFilter:
    """Finds the detach keys in what is typed; keys that might begin the sequence are held back."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._seen = 0

    def __call__(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the sequence is complete."""
        passed = bytearray()
        for byte in data:
            if self._keys and byte == self._keys[self._seen]:
                self._seen += 1
                if self._seen == len(self._keys):
                    return bytes(passed), True
                continue
            if self._seen:
                passed += self._keys[: self._seen]
                self._seen = 1 if byte == self._keys[0] else 0
                if self._seen:
                    continue
            passed.append(byte)
        return bytes(passed), False


class Pump:
    """Joins descriptors to one hijacked connection until the daemon ends it."""

    def __init__(self, connection: Any, leftover: bytes, *, stdin: int | None, stdout: int | None, stderr: int | None,
                 terminal: bool, escape: bytes = b"") -> None:  # fmt: skip
        self._connection = connection
        self._leftover = leftover
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._terminal = terminal
        self._escape = EscapeFilter(escape) if escape else None
        self._detached = False

    def run(self) -> None:
        """Copy until the output ends. Raises `Detached` when the user left."""
        if self._stdin is not None:
            start_new_thread(self._feed, ())
        pieces = received(self._connection, self._leftover)
        try:
            if self._terminal:
                for piece in pieces:
                    if self._stdout is not None:
                        write_all(self._stdout, piece)
            else:
                write_frames(pieces, self._stdout, self._stderr)
        finally:
            self._connection.close()
        if self._detached:
            raise Detached

    def _feed(self) -> None:
        connection = self._connection
        assert self._stdin is not None
        try:
            while data := os.read(self._stdin, CHUNK):
                done = False
                if self._escape is not None:
                    data, done = self._escape(data)
                if data:
                    connection.sendall(data)
                if done:
                    self._detached = True
                    connection.shutdown(_socket.SHUT_RDWR)
                    return
            _end_of_input(connection)
        except OSError:
            return


def _end_of_input(connection: Any) -> None:
    """Tell the daemon there is no more input, and keep receiving."""
    import sys

    if "ssl" in sys.modules and hasattr(connection, "unwrap"):
        return  # TLS cannot close one direction
    connection.shutdown(_socket.SHUT_WR)


def in_background(action: Callable[[], object]) -> None:
    """Run something that must not hold up the streams."""
    start_new_thread(action, ())
