"""The process that applies untrusted layer tars; run as ``python -I -m engine.layers.child FD``.

It imports once and then forks for each job it is sent, so that a job starts within a millisecond or two. The fork
locks itself into the target directory - chroot, only the capabilities needed to make files, no new privileges, no
network, memory bounded - and only then looks at the input. Whatever the input does to it, the daemon sees a dead child.

One job is one message on the socket: a JSON object with three descriptors (input, target directory, result pipe), and
a fourth when the input still grows (see `engine.drivers.store.LayerSource`).
The result is a JSON object on the pipe; a pipe closed without one means that the child was killed.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import queue
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from engine import kernel
from engine.errors import InvalidParameter
from engine.layers.compression import Decompressor, Read, decompressor
from engine.layers.extract import Extractor
from engine.layers.tar import Stream

IDLE_SECONDS = 20.0
_QUEUE = 8
_MEMORY = 3 << 30
_CAPABILITIES = (0, 1, 3, 4, 27, 31)  # CHOWN DAC_OVERRIDE FOWNER FSETID MKNOD SETFCAP
_CAPABILITY_VERSION = 0x20080522


def serve(connection: socket.socket) -> None:
    """Fork a child for each job until the daemon closes the connection or has had no job for a while."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC)
    gc.freeze()
    while True:
        if not select.select([connection], [], [], IDLE_SECONDS)[0]:
            if _busy():
                continue
            connection.shutdown(socket.SHUT_RD)  # whoever sends from here on notices; what was sent is still read
        message, fds, _, _ = socket.recv_fds(connection, 1 << 16, 4)
        if not message:
            return
        if os.fork() == 0:
            connection.close()
            source, target, result, *growing = fds
            read = _following(source, growing[0]) if growing else partial(os.read, source)
            os._exit(_job(json.loads(message), read, target, result))
        for fd in fds:
            os.close(fd)


def _busy() -> bool:
    """Whether a job still runs: it would be killed with this process."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    except ChildProcessError:
        return False


def _job(request: dict[str, Any], read: Read, target: int, result: int) -> int:
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        plain = decompressor(request["compression"])
        root = confine(target)
        answer = _apply(request, read, root, plain)
    except InvalidParameter as error:
        answer = {"invalid": str(error)}
    except OSError as error:
        answer = {"errno": error.errno, "error": str(error)}
    except MemoryError:
        answer = {"invalid": "the archive needs more memory than unpacking may use"}
    except Exception as error:  # a fault of this code; the daemon reports it
        answer = {"errno": 0, "error": f"{type(error).__name__}: {error}"}
    data = memoryview(json.dumps(answer).encode())
    while data:
        data = data[os.write(result, data) :]
    return 0


def _following(source: int, growing: int) -> Read:
    """Reads of a file as far as it is written, waiting for more until it is complete."""
    at = available = 0
    complete = False

    def read(count: int) -> bytes:
        nonlocal at, available, complete
        while at >= available and not complete:
            news = os.read(growing, 1 << 13)
            if not news:
                raise InvalidParameter("unexpected EOF: the rest of the layer did not arrive")
            latest = int.from_bytes(news[-8:], "little")
            complete = bool(latest >> 63)
            available = latest & ~(1 << 63)
        data = os.read(source, min(count, available - at)) if at < available else b""
        at += len(data)
        return data

    return read


def _apply(request: dict[str, Any], read: Read, root: int, plain: Decompressor) -> dict[str, Any]:
    extractor = Extractor(root, request["whiteouts"], request.get("owner"))
    pump = _Pump(plain(read))
    stream = Stream(pump.chunks())
    try:
        extractor.extract(stream)
        stream.drain()
    finally:
        pump.stop()
    digest = "sha256:" + pump.digest.hexdigest()
    expected = request["diff_id"]
    if expected and digest != expected:
        raise InvalidParameter(f"layer content does not match its diff id: expected {expected}, got {digest}")
    return {
        "diff_id": digest,
        "size": extractor.size,
        "inodes": extractor.inodes,
        "opaque": [os.fsdecode(path) for path in sorted(extractor.opaque)],
    }


class _Pump:
    """Reads, decompresses and hashes in a thread of its own, a few chunks ahead of the consumer."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self.digest = hashlib.sha256()
        self._source = source
        self._chunks: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUE)
        self._stopped = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            for chunk in self._source:
                if self._stopped:
                    return
                self.digest.update(chunk)
                self._chunks.put(chunk)
            self._chunks.put(None)
        except BaseException as error:  # raised again where the chunks are consumed
            self._chunks.put(error)

    def chunks(self) -> Iterator[bytes]:
        """The decompressed stream; errors of the source are raised here."""
        while (chunk := self._chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def stop(self) -> None:
        """Let the thread end at its next chunk."""
        self._stopped = True
        while not self._chunks.empty():
            self._chunks.get_nowait()


# -- confinement ----------------------------------------------------------------------------------------------


def confine(target: int) -> int:
    """Make ``target`` the root of this process and give up what applying a tar does not need; returns it reopened."""
    os.fchdir(target)
    os.chroot(".")
    os.close(target)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 256)
    _limit(resource.RLIMIT_AS, _MEMORY)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    _keep_capabilities(sum(1 << number for number in _CAPABILITIES))
    return root


def _limit(kind: int, value: int) -> None:
    soft, hard = resource.getrlimit(kind)
    lowered = [value if limit == resource.RLIM_INFINITY else min(limit, value) for limit in (soft, hard)]
    resource.setrlimit(kind, (lowered[0], lowered[1]))


def _keep_capabilities(mask: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(head, data) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    held = data[1] | data[4] << 32
    keep = held & mask
    data[0] = data[1] = keep & 0xFFFFFFFF
    data[3] = data[4] = keep >> 32
    data[2] = data[5] = 0
    if libc.capset(head, data) < 0:
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
