"""TLS in front of the HTTP server: ends a client's TLS and passes plain bytes on through a socket pair.

The server behind it sees a local stream socket, so everything it does with one - hand it to a container's monitor,
half-close it - works for TLS clients too (asyncio's own TLS can do neither: it ends a connection whose client has said
that it will send no more, which is how ``docker run -i`` says that its input is over).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

from engine.errors import InvalidParameter
from engine.model.admission import Identity

__all__ = ["TlsDoor", "server_context"]

log = logging.getLogger(__name__)

_PIECE = 256 << 10
_HANDSHAKE = 0x16  # the first byte of a TLS record that opens one
_PLAIN_HTTP = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"

Accept = Callable[[socket.socket, Identity], Coroutine[Any, Any, None]]


def server_context(*, certificate: str, key: str, ca: str = "") -> ssl.SSLContext:
    """TLS 1.2 or later with the server's certificate; with ``ca`` only clients whose certificate it signed come in.

    Raises `InvalidParameter` naming the file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    for path in (certificate, key, *((ca,) if ca else ())):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise InvalidParameter(
                f"could not read {path}: {(error.strerror or '').lower()}; `engine cert` makes a CA and certificates"
            ) from None
    if Path(key).stat().st_mode & 0o007:
        raise InvalidParameter(f"{key} can be read by everybody: it is a private key (chmod 600 {key})")
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise InvalidParameter(
            f"could not load X509 key pair (cert: {certificate}, key: {key}): {error.reason or error}"
        ) from None
    if ca:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise InvalidParameter(f"could not read CA certificate {ca}: {error.reason or error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class TlsDoor:
    """One listening socket. ``accept`` is given the server's end of each client that proved who it is."""

    def __init__(
        self, context: ssl.SSLContext, accept: Accept, *, handshake_time: float = 10.0, connections: int = 1024
    ) -> None:
        self.context = context
        self.accept = accept
        self.handshake_time = handshake_time
        self.limit = connections
        self.clients: set[_Client] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    async def listen(self, sock: socket.socket) -> asyncio.AbstractServer:
        """Take clients of a bound TCP socket."""
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Client(self, loop), sock=sock, backlog=1024)

    async def close(self) -> None:
        """Drop every client, and come back when their sockets are closed."""
        for client in list(self.clients):
            client.abort()
        if self.tasks:
            await asyncio.wait(self.tasks)
        for _ in range(3):  # both sides hear of it in turns of the loop, one after the other
            await asyncio.sleep(0)


class _Client(asyncio.Protocol):
    """The client's side: TLS records."""

    def __init__(self, door: TlsDoor, loop: asyncio.AbstractEventLoop) -> None:
        self._door = door
        self._loop = loop
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = door.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shaken = False
        self._first = True
        self._inside: _Inside | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if len(self._door.clients) >= self._door.limit:
            self.transport.abort()
            return
        self._door.clients.add(self)
        self._timer = self._loop.call_later(self._door.handshake_time, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._first:
            self._first = False
            if data[0] != _HANDSHAKE:
                self.transport.write(_PLAIN_HTTP)
                self.transport.close()
                return
        self._incoming.write(data)
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shake_hands()
            self._read()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if not self._shaken:
                log.info("TLS handshake refused", extra={"peer": self._peer(), "reason": error.reason or str(error)})
            self._flush()  # the alert that tells the client why
            self.transport.close()
            return
        self._flush()

    def eof_received(self) -> bool:
        if self._inside is None:
            return False
        self._inside.end()
        return True  # as a half-close: what the server still has to say goes out

    def connection_lost(self, error: Exception | None) -> None:
        self._door.clients.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._inside is not None:
            self._inside.transport.abort()

    def pause_writing(self) -> None:
        if self._inside is not None:
            self._inside.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._inside is not None and not self._inside.transport.is_closing():
            self._inside.transport.resume_reading()

    # -- TLS ------------------------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        self._shaken = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flush()
        self.transport.pause_reading()  # until the server is there
        task = self._loop.create_task(self._connect(self._identity()))
        self._door.tasks.add(task)
        task.add_done_callback(self._door.tasks.discard)

    def _identity(self) -> Identity:
        der = self._tls.getpeercert(binary_form=True)
        if der is None:
            return Identity(method="")
        fields = cast("Any", self._tls.getpeercert() or {}).get("subject", ())
        names = [value for relative in fields for key, value in relative if key == "commonName"]
        return Identity(method="TLS", user=names[0] if names else "", certificates=(der,))

    async def _connect(self, identity: Identity) -> None:
        ours, servers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        inside = _Inside(self)
        try:
            await self._loop.connect_accepted_socket(lambda: inside, ours)
            await self._door.accept(servers, identity)
        except BaseException:
            ours.close()
            servers.close()
            self.abort()
            raise
        self._inside = inside
        if self.transport.is_closing():
            inside.transport.abort()
            return
        self.data_ready()
        self.transport.resume_reading()

    def data_ready(self) -> None:
        """Pass on what came together with the end of the handshake."""
        try:
            self._read()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.abort()

    def _read(self) -> None:
        while self._inside is not None:
            try:
                data = self._tls.read(_PIECE)
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                self._inside.end()
                return
            self._inside.transport.write(data)

    def send(self, data: bytes) -> None:
        """Encrypt what the server said."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        self._flush()

    def finish(self) -> None:
        """The server has said everything: tell the client so (close_notify), and stop."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the client's own goodbye is not there yet, or never will be
        self._flush()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _flush(self) -> None:
        if self._outgoing.pending and not self.transport.is_closing():
            self.transport.write(self._outgoing.read())

    def _peer(self) -> str:
        return str((self.transport.get_extra_info("peername") or ("",))[0])

    def abort(self) -> None:
        """Drop the client now."""
        self.transport.abort()


class _Inside(asyncio.Protocol):
    """Our end of the pair: plain bytes from and to the HTTP server."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._client.send(data)

    def eof_received(self) -> bool:
        self._client.finish()
        return not self._ended  # the client may still be sending

    def connection_lost(self, error: Exception | None) -> None:
        if not self._client.transport.is_closing():
            self._client.transport.close()  # what is buffered for the client still goes out

    def pause_writing(self) -> None:
        self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._client.transport.is_closing():
            self._client.transport.resume_reading()

    def end(self) -> None:
        """The client will send no more."""
        if not self._ended and not self.transport.is_closing():
            self._ended = True
            self.transport.write_eof()
