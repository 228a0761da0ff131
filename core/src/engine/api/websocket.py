"""``/containers/{ref}/attach/ws``: a container's streams as WebSocket messages (RFC 6455), for browsers.

The WebSocket ends here; behind it is an ordinary attachment over a socket pair. Output comes as binary messages
without Docker's frames; text and binary messages from the client are input.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import struct
from typing import TYPE_CHECKING

from engine.errors import InvalidParameter

if TYPE_CHECKING:
    from engine.api.router import Hijacked

__all__ = ["Bridge", "accept_key"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_LARGEST = 1 << 20
_NORMAL, _PROTOCOL_ERROR, _TOO_BIG = 1000, 1002, 1009
_FRAME = struct.Struct(">BxxxL")


def accept_key(key: str) -> str:
    """The value of ``Sec-WebSocket-Accept`` for a client's ``Sec-WebSocket-Key``."""
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        valid = False
    if not valid:
        raise InvalidParameter("bad request: not a WebSocket handshake: missing or bad Sec-WebSocket-Key")
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def message(kind: int, payload: bytes) -> bytes:
    """One unfragmented message of a server."""
    size = len(payload)
    if size < 126:
        return struct.pack(">BB", 0x80 | kind, size) + payload
    if size < 1 << 16:
        return struct.pack(">BBH", 0x80 | kind, 126, size) + payload
    return struct.pack(">BBQ", 0x80 | kind, 127, size) + payload


class _Failed(Exception):
    """The client broke the protocol; the argument is the status to close with."""


class Bridge:
    """Between a client's WebSocket and one end of a socket pair, whose other end (``sock``) is attached."""

    def __init__(self, client: Hijacked, *, framed: bool) -> None:
        self._client = client
        self._framed = framed
        self._ours, self.sock = socket.socketpair()
        self._ours.setblocking(False)
        self.sock.setblocking(False)
        self.leftover = b""
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Pass messages both ways until one side ends; closes everything."""
        output = asyncio.ensure_future(self._output())
        given = asyncio.ensure_future(self._input())
        status = _NORMAL
        try:
            await asyncio.wait((output, given), return_when=asyncio.FIRST_COMPLETED)
            if given.done() and isinstance(given.exception(), _Failed):
                status = given.exception().args[0]  # type: ignore[union-attr]
        finally:
            for task in (output, given):
                task.cancel()
            await asyncio.gather(output, given, return_exceptions=True)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await self._send(_CLOSE, struct.pack(">H", status))
            self._client.close()
            self._ours.close()

    async def _send(self, kind: int, payload: bytes) -> None:
        async with self._sending:
            await self._client.send(message(kind, payload))

    async def _output(self) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        while data := await loop.sock_recv(self._ours, 65536):
            if not self._framed:
                await self._send(_BINARY, data)
                continue
            buffer += data
            while len(buffer) >= _FRAME.size:
                _, size = _FRAME.unpack_from(buffer)
                if len(buffer) < _FRAME.size + size:
                    break
                await self._send(_BINARY, buffer[_FRAME.size : _FRAME.size + size])
                buffer = buffer[_FRAME.size + size :]

    async def _input(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            head = await self._exactly(2)
            kind, size = head[0] & 0x0F, head[1] & 0x7F
            if not head[1] & 0x80 or head[0] & 0x70:
                raise _Failed(_PROTOCOL_ERROR)
            if size == 126:
                (size,) = struct.unpack(">H", await self._exactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", await self._exactly(8))
            if size > _LARGEST:
                raise _Failed(_TOO_BIG)
            mask = await self._exactly(4)
            payload = _unmask(await self._exactly(size), mask)
            if kind in (_CONTINUATION, _TEXT, _BINARY):
                await loop.sock_sendall(self._ours, payload)
            elif kind == _PING:
                await self._send(_PONG, payload)
            elif kind == _CLOSE:
                return
            elif kind != _PONG:
                raise _Failed(_PROTOCOL_ERROR)

    async def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = await self._client.receive(count - len(data))
            if not part:
                raise ConnectionResetError("client left")
            data += part
        return bytes(data)


def _unmask(payload: bytes, mask: bytes) -> bytes:
    if not payload:
        return b""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
