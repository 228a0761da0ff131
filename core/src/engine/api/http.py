"""The HTTP/1.1 server: asyncio.Protocol and httptools, small because the Docker API needs little and asks much of it.

What it does that frameworks do not: hand the client's socket over (`Hijacked`), slow an uploading client down to its
reader, notice that a client has left and end what was being streamed to it, and keep half-closed connections. One
request of a connection runs at a time; pipelined ones wait their turn.
"""

from __future__ import annotations

import asyncio
import http
import logging
import select
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, cast

import httptools

from engine.api.exchange import Exchange
from engine.api.router import Hijacked, Query, Request, Response, Route, Router
from engine.errors import EngineError, InvalidParameter
from engine.model.admission import Identity

if TYPE_CHECKING:
    import ssl

    from engine.api.tls import TlsDoor
    from engine.authorization import Authorization
    from engine.services import Services

__all__ = ["HttpServer", "Limits"]

log = logging.getLogger(__name__)

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_BODYLESS = frozenset({204, 304})
_BODY = frozenset({"content-length", "transfer-encoding", "upgrade"})
_PIPELINE = 16
_NEVER = float("inf")
_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep one client from hurting the others. Times in seconds, sizes in bytes."""

    connections: int = 4096
    head: int = 1 << 20
    head_time: float = 30.0
    idle_time: float = 600.0
    body_time: float = 120.0
    linger_time: float = 5.0
    linger: int = 64 << 20


class HttpServer:
    """Serves a `Router` on any number of listening sockets."""

    def __init__(
        self,
        router: Router,
        services: Services,
        *,
        headers: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        authorization: Authorization | None = None,
    ) -> None:
        """``headers`` go out with every response; ``authorization`` is asked about every request."""
        self.router = router
        self.authorization = authorization
        self.services = services
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self.closing = False
        self.common = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()).encode()
        self._date = (0, b"")
        self._listeners: list[asyncio.AbstractServer] = []
        self._doors: list[TlsDoor] = []

    async def listen(
        self, sock: socket.socket, *, host_check: Callable[[Mapping[str, str]], None] | None = None
    ) -> None:
        """Accept connections on a bound stream socket. ``host_check`` raises for request heads to refuse (TCP)."""
        loop = asyncio.get_running_loop()

        def connect() -> Connection:
            return Connection(self, loop, host_check)

        if sock.family == socket.AF_UNIX:
            self._listeners.append(await loop.create_unix_server(connect, sock=sock, backlog=1024))
        else:
            self._listeners.append(await loop.create_server(connect, sock=sock, backlog=1024))

    async def listen_tls(
        self, sock: socket.socket, context: ssl.SSLContext, *, host_check: Callable[[Mapping[str, str]], None] | None
    ) -> None:
        """As `listen`, for clients that speak TLS; see `engine.api.tls`."""
        from engine.api.tls import TlsDoor

        loop = asyncio.get_running_loop()

        async def accept(inside: socket.socket, identity: Identity) -> None:
            await loop.connect_accepted_socket(lambda: Connection(self, loop, host_check, identity), inside)

        door = TlsDoor(context, accept, connections=self.limits.connections)
        self._doors.append(door)
        self._listeners.append(await door.listen(sock))

    def stop_listening(self) -> None:
        """Accept nothing more and close idle connections; requests that run go on."""
        self.closing = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.close_if_idle()

    async def close(self, grace: float = 5.0) -> None:
        """Stop listening; end streams and long waits; give other requests ``grace`` seconds, then cancel them."""
        self.stop_listening()
        await self._wait(0.2)  # streams whose source has just ended finish in good order
        for connection in list(self.connections):
            connection.end_long_request()
        await self._wait(grace)
        for task in self._running():
            task.cancel()
        await self._wait(grace)
        for connection in list(self.connections):
            connection.abort()
        for door in self._doors:
            await door.close()

    async def _wait(self, seconds: float) -> None:
        if tasks := self._running():
            await asyncio.wait(tasks, timeout=seconds)

    def _running(self) -> list[asyncio.Task[None]]:
        return [connection.task for connection in self.connections if connection.task is not None]

    # -- what connections share -----------------------------------------------------------------------------

    def head(self, status: int, headers: Mapping[str, str], extra: bytes) -> bytes:
        """The response head, up to and with the empty line."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n".encode())
        line = _STATUS.get(status) or f"HTTP/1.1 {status} Status\r\n".encode()
        lines = b"".join([f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in headers.items()])
        return b"".join((line, self.common, lines, self._date[1], extra, b"\r\n"))

    async def handle(self, route: Route, request: Request) -> Response | None:
        """Run a handler; every error becomes its response, in one place."""
        try:
            if self.authorization is None or not self.authorization.needed:
                return await route.handler(self.services, request)
            return await self.authorization.guard(route, request, self.services)
        except Exception as error:
            return _failed(request, error)

    def answer(self, route: Route, request: Request) -> Response | None:
        """What the route's ``prompt`` answers, if it has one and may be asked."""
        if route.prompt is None or (self.authorization is not None and self.authorization.needed):
            return None
        try:
            return route.prompt(self.services, request)
        except Exception as error:
            return _failed(request, error)


def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, EngineError):
        log.error("request broke", extra={"method": request.method, "path": request.path}, exc_info=error)
        return Response.error(500, f"internal error while serving {request.method} {request.path}: see the log")
    if error.http_status >= 500:
        log.error("request failed", extra={"method": request.method, "path": request.path, "reason": error.message})
    return error_response(error)


def error_response(error: EngineError) -> Response:
    """The response for a deliberate error: its status and ``{"message": ...}``; 304 has no body."""
    if error.http_status in _BODYLESS:
        return Response(error.http_status)
    return Response.error(error.http_status, error.message)


def _peer(sock: socket.socket | None) -> Identity:
    if sock is None or sock.family != socket.AF_UNIX:
        return Identity()
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Identity(method="unix", pid=pid, uid=uid, gid=gid)


class _TakeSocket(Exception):
    """Stops the parser after a request that may take the socket without having asked for an upgrade."""


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(
        self,
        server: HttpServer,
        loop: asyncio.AbstractEventLoop,
        host_check: Callable[[Mapping[str, str]], None] | None,
        identity: Identity | None = None,
    ) -> None:
        self.server = server
        self.limits = server.limits
        self.task: asyncio.Task[None] | None = None
        self._identity = identity
        self._loop = loop
        self._host_check = host_check
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()  # the first one is running
        self._arriving: Exchange | None = None  # the one whose body the parser is reading
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_size = 0
        self._in_head = False
        self._tail = b""
        self._raw: list[bytes] | None = None  # collects what is not HTTP any more
        self._owed = 0  # bytes of body that follow an upgrading request's head
        self._discarding = -1
        self._writable: asyncio.Future[None] | None = None
        self._paused_writing = False
        self._holders: set[Exchange | None] = set()
        self._eof = False
        self._lost = False
        self._streaming = False
        self._deadline = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    # -- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if len(self.server.connections) >= self.limits.connections or self.server.closing:
            self._transport.write(self._render(Response.error(503, "too many connections"), b"Connection: close\r\n"))
            self._transport.close()
            return
        self.server.connections.add(self)
        self._set_deadline(self.limits.head_time)

    def data_received(self, data: bytes) -> None:
        if self._raw is not None:
            self._keep(data)
            return
        if self._discarding >= 0:
            self._discarding += len(data)
            if self._discarding > self.limits.linger:
                self._transport.abort()
            return
        if not self._queue and not self._in_head:
            self._set_deadline(self.limits.head_time)
        head_is_past = self._arriving is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._take(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TakeSocket):
                self._take(self._after_message(data, head_is_past))
            else:
                self._refuse(400, f"malformed request: {error}")
        else:
            if self._in_head:
                self._head_size += len(data)
                self._tail = (self._tail + data)[-3:]
                if self._head_size > self.limits.head:
                    self._refuse(431, "request header fields too large")

    def eof_received(self) -> bool:
        self._eof = True
        if self._arriving is not None:
            self._arriving.finish("unexpected EOF")
            self._arriving = None
        if not self._queue:
            return False
        if self._is_gone():
            self.end_long_request()
        else:
            self._loop.call_later(5.0, self._check_half_closed)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self.server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._arriving is not None:
            self._arriving.finish("unexpected EOF")
            self._arriving = None
        self.resume_writing()
        self.end_long_request()
        while len(self._queue) > 1:
            self._queue.pop()

    def pause_writing(self) -> None:
        self._paused_writing = True

    def resume_writing(self) -> None:
        self._paused_writing = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # -- httptools callbacks --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head = True
        self._url = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_size = 0
        self._deadline = _NEVER
        parser, headers = self._parser, self._headers
        method = parser.get_method().decode()
        http11 = parser.get_http_version() == "1.1"
        uri = self._url.decode("latin-1")
        target, _, query = uri.partition("?")
        request = Request(method, target, {}, Query(query), headers)
        exchange = Exchange(self, request, uri, parser.should_keep_alive(), http11)
        request.connection = exchange
        try:
            if http11 and "host" not in headers:
                raise InvalidParameter("missing required Host header")
            if self._host_check is not None:
                self._host_check(headers)
            if not target.startswith("/"):
                target = httptools.parse_url(self._url).path.decode("latin-1") if target != "*" else target
            exchange.route, request.params, request.path, request.version = self.server.router.match(method, target)
        except EngineError as error:
            exchange.refusal = error
        except httptools.HttpParserError:
            exchange.refusal = InvalidParameter("malformed request target")
        if http11 and headers.get("expect", "").lower() == "100-continue":
            exchange.expects = True
        self._arriving = exchange
        self._queue.append(exchange)
        if len(self._queue) == 1 and exchange.route is not None and not headers.keys() & _BODY:
            response = self.server.answer(exchange.route, request)
            if response is not None:
                self._answer(exchange, response)
                return
        if len(self._queue) == 1:
            self._start()
        elif len(self._queue) > _PIPELINE:
            self.hold(None)

    def on_body(self, data: bytes) -> None:
        assert self._arriving is not None
        self._arriving.feed(data)

    def on_message_complete(self) -> None:
        exchange = self._arriving
        if exchange is None:
            return
        if self._parser.should_upgrade() and not exchange.body_done:
            # httptools leaves the body of an upgrading request (exec start has one) to us
            if "transfer-encoding" in self._headers:
                exchange.refusal = InvalidParameter("an upgrading request must have a Content-Length")
            elif self._headers.get("content-length", "0") != "0":
                self._owed = int(self._headers["content-length"])
                return
        self._arriving = None
        exchange.finish()
        if exchange.route is not None and exchange.route.hijack and not self._parser.should_upgrade():
            raise _TakeSocket

    # -- requests -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.task = self._loop.create_task(self._run(self._queue[0]))

    def _answer(self, exchange: Exchange, response: Response) -> None:
        """Answer the only request, which has no body, at once."""
        self._arriving = None
        exchange.finish()
        self._transport.write(self._message(exchange, response))
        self._finish(exchange)

    async def _run(self, exchange: Exchange) -> None:
        try:
            response = await self._respond(exchange)
            if exchange.taken:
                return
            if response is None:
                log.error("a handler gave no response", extra={"path": exchange.request.path})
                response = Response.error(500, "internal error: the handler gave no response")
            await self._send(exchange, response)
        except (asyncio.CancelledError, ConnectionError):
            exchange.keep_alive = False
            if not exchange.taken and not self._lost:
                self._transport.abort()
        except Exception:
            log.exception("response broke off", extra={"path": exchange.request.path})
            exchange.keep_alive = False
            self._transport.abort()  # the client must see that the answer is not complete
        finally:
            self.task = None
            if not exchange.taken:
                self._finish(exchange)

    async def _respond(self, exchange: Exchange) -> Response | None:
        if exchange.refusal is not None:
            return error_response(exchange.refusal)
        route = exchange.route
        assert route is not None
        exchange.cancellable = route.cancel
        if route.cancel and self._lost:
            raise asyncio.CancelledError
        response = await self.server.handle(route, exchange.request)
        exchange.cancellable = False
        return response

    def _finish(self, exchange: Exchange) -> None:
        """After a response: the next request, or wait for one, or the end of the connection."""
        self._queue.popleft()
        if self._lost:
            self._queue.clear()
            return
        self.release(exchange)
        unread = not exchange.body_done
        if not exchange.keep_alive or self.server.closing or self._raw is not None or unread:
            if unread:
                self._linger()
            else:
                self._transport.close()
        elif self._queue:
            if len(self._queue) <= _PIPELINE // 2:
                self.release(None)
            self._start()
        elif self._eof:
            self._transport.close()
        else:
            self.release(None)
            self._set_deadline(self.limits.idle_time)

    async def _send(self, exchange: Exchange, response: Response) -> None:
        if not isinstance(response.body, bytes):
            await self._send_stream(exchange, response, response.body, self._ending(exchange))
        elif not self._lost:
            self._transport.write(self._message(exchange, response))
            if self._paused_writing:
                await self._drain()

    def _ending(self, exchange: Exchange) -> bytes:
        closing = not exchange.keep_alive or self.server.closing or not exchange.body_done
        return b"Connection: close\r\n" if closing else b""

    def _message(self, exchange: Exchange, response: Response) -> bytes:
        """A whole response whose body is known."""
        body, ending = response.body, self._ending(exchange)
        assert isinstance(body, bytes)
        if response.status in _BODYLESS:
            return self.server.head(response.status, response.headers, ending)
        head = self.server.head(response.status, response.headers, ending + b"Content-Length: %d\r\n" % len(body))
        return head if exchange.request.method == "HEAD" else head + body

    async def _send_stream(
        self, exchange: Exchange, response: Response, body: AsyncIterator[bytes], ending: bytes
    ) -> None:
        chunked = exchange.http11
        if chunked:
            ending += b"Transfer-Encoding: chunked\r\n"
        elif exchange.keep_alive:
            exchange.keep_alive = False
            ending = b"Connection: close\r\n"
        try:
            if self._lost:
                return
            self._streaming = True
            if self._eof and self._is_gone():
                raise ConnectionResetError
            self._transport.write(self.server.head(response.status, response.headers, ending))
            if exchange.request.method == "HEAD":
                return
            async for data in body:
                if not data:
                    continue
                self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
                if self._paused_writing:
                    await self._drain()
                elif self._transport.is_closing():
                    raise ConnectionResetError
            if chunked:
                self._transport.write(b"0\r\n\r\n")
        finally:
            self._streaming = False
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    def _render(self, response: Response, extra: bytes = b"") -> bytes:
        assert isinstance(response.body, bytes)
        extra += b"Content-Length: %d\r\n" % len(response.body)
        return self.server.head(response.status, response.headers, extra) + response.body

    def _refuse(self, status: int, message: str) -> None:
        """Answer what could not be parsed, once those before it are answered, and close."""
        self._in_head = False
        self._discarding = 0
        if self._arriving is not None:  # its body is broken: its handler hears of it
            self._arriving.finish(message)
            self._arriving.keep_alive = False
            self._arriving = None
        elif not self._queue:
            self._transport.write(self._render(Response.error(status, message), b"Connection: close\r\n"))
            self._linger()
        else:
            self._queue[-1].keep_alive = False

    # -- taking the socket ----------------------------------------------------------------------------------

    def _take(self, leftover: bytes) -> None:
        """No more HTTP on this connection: what arrives is kept for the one who takes the socket."""
        self._raw = []
        if self._queue:
            self._queue[-1].keep_alive = False
        self._keep(leftover)

    def _keep(self, data: bytes) -> None:
        """Bytes after the head of a request that takes the socket: what is owed of its body, then what is kept."""
        assert self._raw is not None
        if self._owed and self._arriving is not None:
            body, data = data[: self._owed], data[self._owed :]
            self._owed -= len(body)
            if body:
                self._arriving.feed(body)
            if self._owed:
                return
            self._arriving.finish()
            self._arriving = None
        if data:
            self._raw.append(data)
        if not self._lost and not self._transport.is_closing():
            self._transport.pause_reading()

    def _after_message(self, data: bytes, head_is_past: bool) -> bytes:
        """What follows the request in ``data``, for one that ended here without asking for an upgrade."""
        length = self._headers.get("content-length", "")
        if "transfer-encoding" in self._headers:
            return data.partition(b"0\r\n\r\n")[2]
        if head_is_past:  # this piece starts with (the rest of) the body
            return data[self._body_seen(data) :]
        window = self._tail + data
        end = window.find(b"\r\n\r\n")
        return window[end + 4 + int(length or "0") :]

    def _body_seen(self, data: bytes) -> int:
        exchange = self._queue[-1]
        return min(len(data), len(exchange.chunks[-1])) if exchange.chunks else 0

    async def hijack(self, exchange: Exchange, upgrade: str | None, content_type: str, websocket: str = "") -> Hijacked:
        """See `Request.hijack`."""
        if exchange.route is None or not exchange.route.hijack:
            raise RuntimeError("the route is not declared with hijack=True")
        while not exchange.body_done:
            await exchange.next_chunk()
        if self._raw is None:
            self._take(b"")
        if self._lost:
            raise ConnectionResetError("client left")
        self._transport.set_write_buffer_limits(high=0)
        while self._transport.get_write_buffer_size() and not self._lost:
            await self._drain()
        if self._lost:
            raise ConnectionResetError("client left")
        sock: socket.socket = self._transport.get_extra_info("socket").dup()
        sock.setblocking(False)
        exchange.taken = True
        self._queue.clear()
        self._transport.abort()  # closes the server's own descriptor; the connection lives on in ours
        if websocket:
            head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            head += f"Sec-WebSocket-Accept: {websocket}\r\n"
        elif upgrade:
            head = "HTTP/1.1 101 UPGRADED\r\n"
            head += f"Content-Type: {content_type}\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n"
        else:
            head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
        assert self._raw is not None
        hijacked = Hijacked(sock, b"".join(self._raw))
        try:
            await hijacked.send(head.encode("latin-1") + self.server.common + b"\r\n")
        except BaseException:
            sock.close()
            raise
        return hijacked

    @property
    def identity(self) -> Identity:
        """Who the client is: by its certificate, or as the kernel says of a unix socket."""
        if self._identity is None:
            self._identity = _peer(self._transport.get_extra_info("socket"))
        return self._identity

    # -- flow -----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write between responses (``100 Continue``)."""
        if not self._lost:
            self._transport.write(data)

    def hold(self, holder: Exchange | None) -> None:
        """Stop reading from the client until every holder has released it."""
        if not self._holders and self._reads_http() and not self._transport.is_closing():
            self._transport.pause_reading()
        self._holders.add(holder)

    def release(self, holder: Exchange | None) -> None:
        """Undo `hold`."""
        if holder in self._holders:
            self._holders.discard(holder)
            if not self._holders and self._reads_http() and not self._transport.is_closing():
                self._transport.resume_reading()

    def _reads_http(self) -> bool:
        return self._raw is None or self._owed > 0

    async def _drain(self) -> None:
        if self._lost:
            raise ConnectionResetError
        self._writable = self._loop.create_future()
        try:
            await self._writable
        finally:
            self._writable = None
        if self._lost:
            raise ConnectionResetError

    # -- the end --------------------------------------------------------------------------------------------

    def close_if_idle(self) -> None:
        """For shutdown."""
        if not self._queue:
            self._transport.close()

    def abort(self) -> None:
        """Drop the client now."""
        self._transport.abort()

    def end_long_request(self) -> None:
        """Cancel the request that runs if it streams an answer or declared that it may be cancelled."""
        if self._queue and self.task is not None and (self._streaming or self._queue[0].cancellable):
            self.task.cancel()

    def _is_gone(self) -> bool:
        """After end of file: whether the client is wholly gone. On TCP a half-close cannot be told from it."""
        sock = self._transport.get_extra_info("socket")
        if sock is None or sock.family != socket.AF_UNIX:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def _check_half_closed(self) -> None:
        if not self._lost and self._queue:
            if self._is_gone():
                self.end_long_request()
            else:
                self._loop.call_later(5.0, self._check_half_closed)

    def _linger(self) -> None:
        """Close, but let a client that is still sending read the answer first."""
        self._discarding = 0
        self._holders.clear()
        if self._transport.can_write_eof() and not self._eof:
            self._transport.write_eof()
            self._transport.resume_reading()
            self._set_deadline(self.limits.linger_time)
        else:
            self._transport.close()

    def _set_deadline(self, seconds: float) -> None:
        self._deadline = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._on_timer)
        elif self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        remaining = self._deadline - self._loop.time()
        if remaining > 0.001:
            if self._deadline != _NEVER:
                self._timer = self._loop.call_later(remaining, self._on_timer)
        elif self._in_head:
            self._refuse(408, "the request head did not arrive in time")
        else:
            self._transport.close()
