"""The daemon's side of unpacking: hand a layer and a directory to the confined child, get the outcome back."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass

from engine import kernel
from engine.drivers.store import LayerSource
from engine.errors import EngineError, InvalidParameter
from engine.layers.extract import Whiteouts

__all__ = ["Unpacked", "close", "mark_opaque", "start", "unpack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """``diff_id`` of the uncompressed bytes, ``size`` of the files in the archive, ``inodes`` made, and the
    directories (paths in the layer) that hide their lower namesakes."""

    diff_id: str
    size: int
    inodes: int
    opaque: tuple[str, ...] = ()


class _Child:
    """The forking child: started when there is work; it ends by itself when there was none for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._reaper: threading.Thread | None = None

    def send(self, request: bytes, fds: list[int]) -> None:
        with self._lock:
            if self._socket is not None:
                try:
                    socket.send_fds(self._socket, [request], fds)
                    return
                except OSError:  # it has ended
                    self._close()
            socket.send_fds(self._start(), [request], fds)

    def start(self) -> None:
        with self._lock:
            if self._socket is None:
                self._start()

    def close(self) -> None:
        with self._lock:
            self._close()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "engine.layers.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        self._reaper = threading.Thread(target=process.wait, name="unpack-reaper", daemon=True)
        self._reaper.start()
        self._socket = ours
        return ours

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._reaper is not None:
            self._reaper.join()
            self._reaper = None


_child = _Child()


def start() -> None:
    """Start the child ahead of the first layer."""
    _child.start()


def close() -> None:
    """Stop the idle child at once instead of after its time."""
    _child.close()


def unpack(source: LayerSource, target: int, whiteouts: Whiteouts, owner: tuple[int, int] | None = None) -> Unpacked:
    """Apply ``source`` to the open directory ``target`` in the confined child. Blocks until it is done.

    Raises `InvalidParameter` for what is wrong with the input; the caller throws the directory away. Opaque
    directories are reported, not marked (see `mark_opaque`). Nothing is synced.
    """
    request = {"compression": source.compression, "diff_id": source.diff_id, "whiteouts": whiteouts, "owner": owner}
    own = source.path is not None
    fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC) if source.path is not None else source.fd
    if fd is None:
        raise InvalidParameter("a layer source needs a path or a descriptor")
    try:
        readable, writable = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                extra = [] if source.growing is None else [source.growing]
                _child.send(json.dumps(request).encode(), [fd, target, writable, *extra])
            finally:
                os.close(writable)
            return _result(_read(readable))
        finally:
            os.close(readable)
    finally:
        if own:
            os.close(fd)


def _read(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def _result(data: bytes) -> Unpacked:
    if not data:
        raise EngineError("unpacking a layer failed: the unpacking process was killed")
    answer = json.loads(data)
    if "invalid" in answer:
        raise InvalidParameter(answer["invalid"])
    if "error" in answer:
        if answer["errno"] in (errno.ENOSPC, errno.EDQUOT):
            raise EngineError("unpacking a layer failed: no space left on device")
        raise EngineError(f"unpacking a layer failed: {answer['error']}")
    return Unpacked(
        diff_id=answer["diff_id"], size=answer["size"], inodes=answer["inodes"], opaque=tuple(answer["opaque"])
    )


def mark_opaque(root: int, paths: tuple[str, ...]) -> None:
    """Set overlayfs's opaque mark on directories of the layer ``root``."""
    for path in paths:
        fd = kernel.openat2(
            root,
            os.fsencode(path) or b".",
            os.O_RDONLY | os.O_DIRECTORY,
            resolve=kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS,
        )
        try:
            os.setxattr(fd, "trusted.overlay.opaque", b"y")
        finally:
            os.close(fd)
