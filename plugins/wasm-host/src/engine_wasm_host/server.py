"""A small HTTP/1.1 server for guests: one thread waits on idle connections, a few others serve a request each.

However many clients connect, requests in work are bounded, and what waits costs a descriptor. Requests are parsed by
httptools (Node's parser); what it refuses is answered with 400.
"""

from __future__ import annotations

import http.client
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import httptools

__all__ = ["HttpConnection", "Request", "Server", "listen"]

THREADS = 16
_HEAD_LIMIT = 64 << 10
_IDLE = 60.0
_STALLED = 30.0  # seconds a client may take for the rest of a request, or to take what it is sent
_RECEIVE = 1 << 16
_BACKLOG = 4096


class Request:
    """The head of a request."""

    __slots__ = ("headers", "method", "target", "version")

    def __init__(self, method: str, target: str, version: str, headers: list[tuple[str, bytes]]) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers

    def header(self, name: str) -> str:
        """The first value, or nothing."""
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == name), "")


class _Message:
    """A request as far as it has been parsed. A client may send several before it reads the first answer."""

    __slots__ = ("body", "complete", "expects", "head_size", "headers", "keep_alive", "request", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[str, bytes]] = []
        self.head_size = 0
        self.request: Request | None = None
        self.keep_alive = False
        self.expects = False
        self.body = bytearray()
        self.complete = False


class HttpConnection:
    """A client's connection: reads requests, writes responses; used by one thread at a time."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        self.idle_since = time.monotonic()
        self.keep_alive = False
        self.started = False
        self._parser = httptools.HttpRequestParser(self)
        self._messages: deque[_Message] = deque()
        self._current = _Message()
        self._too_large = False
        self._head = b""
        self._chunked = False
        self._silent = False

    # -- httptools' callbacks: they are about the last message ----------------------------------------------

    def on_message_begin(self) -> None:
        self._messages.append(_Message())

    def on_url(self, url: bytes) -> None:
        self._messages[-1].target += url
        self._count(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        message = self._messages[-1]
        message.headers.append((name.decode("latin-1").lower(), value))
        self._count(name + value)
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            message.expects = True

    def _count(self, data: bytes) -> None:
        self._messages[-1].head_size += len(data)
        if self._messages[-1].head_size > _HEAD_LIMIT:
            self._too_large = True
            raise ValueError("header too large")

    def on_headers_complete(self) -> None:
        message = self._messages[-1]
        message.keep_alive = self._parser.should_keep_alive()
        message.request = Request(
            self._parser.get_method().decode("latin-1"),
            message.target.decode("latin-1"),
            self._parser.get_http_version(),
            message.headers,
        )

    def on_body(self, body: bytes) -> None:
        self._messages[-1].body += body

    def on_message_complete(self) -> None:
        self._messages[-1].complete = True

    # -- in -------------------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Feed the parser with what comes next; False at the end. Raises for what is no HTTP."""
        data = self.sock.recv(_RECEIVE)
        if data:
            self._parser.feed_data(data)
        return bool(data)

    def read_request(self) -> Request | None:
        """The next request; None when the client is done. What is no request is answered here, and None."""
        self.started = self._silent = self._chunked = self.keep_alive = False
        self._current = _Message()
        self.sock.settimeout(_STALLED)
        try:
            while not self._messages or self._messages[0].request is None:
                if not self._receive():
                    return None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.send_plain(431 if self._too_large else 400, str(error))
            return None
        except OSError:
            return None
        self._current = self._messages.popleft() if self._messages[0].complete else self._messages[0]
        request = self._current.request
        assert request is not None, "the loop above waited for it"
        self.keep_alive = self._current.keep_alive
        self._silent = request.method == "HEAD"
        return request

    def read_body(self, length: int) -> bytes:
        """Up to ``length`` bytes of the request's body; none at its end. OSError when the client goes away."""
        message = self._current
        if message.expects and not self.started and not message.complete:
            message.expects = False
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not message.body and not message.complete:
            try:
                if not self._receive():
                    raise ConnectionResetError("the client went away")
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self.keep_alive = False
                raise ConnectionResetError(f"malformed body: {error}") from None
        if message.complete and self._messages and self._messages[0] is message:
            self._messages.popleft()
        data = bytes(message.body[:length])
        del message.body[:length]
        return data

    @property
    def pending(self) -> bool:
        """Whether another request has been read whole already."""
        return bool(self._messages) and self._messages[0].request is not None

    # -- out ------------------------------------------------------------------------------------------------

    def send_head(self, status: int, headers: Sequence[tuple[str, bytes]]) -> None:
        """Status line and headers; the body is chunked unless its length is given."""
        if not self._current.complete:
            self.keep_alive = False  # nobody will read the rest of the request
        self.started = True
        reason = http.client.responses.get(status, "")
        lines = [f"HTTP/1.1 {status} {reason}\r\n".encode()]
        sized = any(name.lower() == "content-length" for name, _ in headers)
        bodyless = status < 200 or status in (204, 304)
        self._silent = self._silent or bodyless
        self._chunked = not sized and not bodyless
        lines += [name.encode("latin-1") + b": " + value + b"\r\n" for name, value in headers]
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._head = b"".join(lines)

    def send_body(self, data: bytes) -> None:
        """A piece of the body; goes out with the head if that is still here."""
        head, self._head = self._head, b""
        if not data or self._silent:
            if head:
                self.sock.sendall(head)
            return
        self.sock.sendall(head + (b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data))

    def end(self) -> None:
        """The response is complete."""
        head, self._head = self._head, b""
        last = b"0\r\n\r\n" if self._chunked and not self._silent else b""
        if head or last:
            self.sock.sendall(head + last)

    def send_plain(self, status: int, text: str) -> None:
        """A whole response of the server's own."""
        body = f"{text or http.client.responses.get(status, '')}\n".encode()
        try:
            self.send_head(status, [("content-type", b"text/plain"), ("content-length", str(len(body)).encode())])
            self.send_body(body)
            self.end()
        except OSError:
            self.keep_alive = False

    def abort(self) -> None:
        """The response cannot be completed: the client must see that it is cut."""
        self.keep_alive = False

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; IPv6 too when the address is the wildcard and there is IPv6."""
    if address in ("0.0.0.0", "::", "") and socket.has_dualstack_ipv6():  # noqa: S104 - the container's own namespace
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        except OSError:
            pass  # no IPv6 in this namespace
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=_BACKLOG)


class Server:
    """Serves ``listener`` by calling ``handle(connection, request)`` for each request, in one of its threads."""

    def __init__(self, listener: socket.socket, handle: Callable[[HttpConnection, Request], None]) -> None:
        self._listener = listener
        self._handle = handle
        self._ready: queue.SimpleQueue[HttpConnection] = queue.SimpleQueue()
        self._epoll = select.epoll()
        self._idle: dict[int, HttpConnection] = {}
        self._lock = threading.Lock()

    def run(self) -> int:
        """Serve for ever."""
        for _ in range(THREADS):
            threading.Thread(target=self._work, daemon=True).start()
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        while True:
            for fd, _ in self._epoll.poll(10):
                if fd == self._listener.fileno():
                    self._accept()
                    continue
                with self._lock:
                    connection = self._idle.pop(fd, None)
                if connection is not None:
                    self._ready.put(connection)
            self._close_idle()

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors: those waiting stay in the backlog
                time.sleep(0.05)
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._wait(HttpConnection(sock, address[0].removeprefix("::ffff:")))

    def _wait(self, connection: HttpConnection) -> None:
        """Until the client sends something."""
        connection.idle_since = time.monotonic()
        fd = connection.sock.fileno()
        with self._lock:
            self._idle[fd] = connection
        try:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        except FileExistsError:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def _close_idle(self) -> None:
        limit = time.monotonic() - _IDLE
        with self._lock:
            stale = [fd for fd, connection in self._idle.items() if connection.idle_since < limit]
            gone = [self._idle.pop(fd) for fd in stale]
        for connection in gone:
            connection.close()

    def _work(self) -> None:
        while True:
            connection = self._ready.get()
            try:
                keep = self._serve(connection)
            except Exception:  # a client or a guest must not end a thread; what went wrong ends the connection
                keep = False
            if keep:
                self._wait(connection)
            else:
                connection.close()

    def _serve(self, connection: HttpConnection) -> bool:
        while True:
            request = connection.read_request()
            if request is None:
                return False
            self._handle(connection, request)
            if not connection.keep_alive:
                return False
            if not connection.pending:
                return True
