"""A small HTTP/1.1 client for the Engine API over unix, TCP, TLS and ssh; it can hijack a connection.

It keeps one idle connection for the next request. Bodies are bytes, or an iterable of bytes sent in chunks from a
thread of its own while the answer is read, so that neither side can wait for the other.
"""

from __future__ import annotations

import _socket
import os
from _thread import start_new_thread

from engine.cli.failures import ApiFailure, Failure, Unreachable
from engine.cli.jsontext import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

DEFAULT_HOST = "unix:///run/engine.sock"
CHUNK = 1 << 18
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")


def quote(text: str, safe: str = "") -> str:
    """Percent-encode for a URL."""
    allowed = _SAFE | set(safe.encode())
    return "".join(chr(byte) if byte in allowed else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))


def segment(name: str) -> str:
    """A name as one segment of a path; image names keep their slashes, as the docker CLI sends them."""
    return quote(name, safe="/:@+")


def query_string(query: Mapping[str, Any]) -> str:
    """``?a=b&c=1``; None and empty values are left out, lists repeat, booleans are 1 and 0."""
    pairs = []
    for key, value in query.items():
        for item in value if isinstance(value, list) else [value]:
            if item is None or item == "":
                continue
            text = ("1" if item else "0") if isinstance(item, bool) else str(item)
            pairs.append(f"{quote(key)}={quote(text)}")
    return "?" + "&".join(pairs) if pairs else ""


class Response:
    """An answer whose body is still to be read."""

    def __init__(self, client: Client, connection: Any, status: int, headers: dict[str, str], rest: bytes,
                 *, bodiless: bool = False) -> None:  # fmt: skip
        self.status = status
        self.headers = headers
        self._client = client
        self._connection = connection
        self._buffer = rest
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._left: int | None = None
        length = headers.get("content-length")
        if bodiless or status in (204, 304) or status < 200:
            self._left = 0
            self._finish()
        elif self._chunked:
            self._left = 0
        elif length is not None:
            self._left = int(length)
            if not self._left:
                self._finish()

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self.headers.get("connection", "").lower() == "close" or (
                not self._chunked and self._left is None and self.status not in (204, 304)
            ):
                connection.close()
            else:
                self._client.release(connection)

    def _fill(self) -> bytes:
        data: bytes = self._connection.recv(CHUNK)
        return data

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            more = self._fill()
            if not more:
                raise Failure("unexpected EOF")
            self._buffer += more
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces, as they arrive."""
        while self._connection is not None:
            if self._chunked and not self._left:
                self._left = int(self._line().partition(b";")[0] or b"0", 16)
                if not self._left:
                    while self._line():
                        pass
                    self._finish()
                    return
            piece = self._buffer or self._fill()
            self._buffer = b""
            if not piece:
                connection, self._connection = self._connection, None
                connection.close()
                if self._left is None:
                    return
                raise Failure("unexpected EOF")
            if self._left is not None:
                piece, self._buffer = piece[: self._left], piece[self._left :]
                self._left -= len(piece)
            if self._chunked and not self._left:
                yield piece
                if self._line():
                    raise Failure("malformed chunked encoding")
                continue
            if self._left == 0:
                self._finish()
            yield piece

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self)

    def json(self) -> Any:
        """The body as JSON; None when empty."""
        body = self.read()
        return loads(body) if body.strip() else None

    def lines(self) -> Iterator[bytes]:
        """The body line by line, as it arrives."""
        rest = b""
        for piece in self:
            *complete, rest = (rest + piece).split(b"\n")
            yield from (line for line in complete if line.strip())
        if rest.strip():
            yield rest

    def messages(self) -> Iterator[Any]:
        """The body as a stream of JSON values, one a line."""
        return (loads(line) for line in self.lines())

    def close(self) -> None:
        """Stop reading."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Client:
    """Speaks to one daemon."""

    def __init__(self, host: str, *, version: str = "", headers: Mapping[str, str] | None = None,
                 tls: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        self.host = host
        self.prefix = f"/v{version}" if version else ""
        self.headers = dict(headers or {})
        self._tls = tls
        self._idle: list[Any] = []

    def twin(self) -> Client:
        """Another client of the same daemon, with connections of its own."""
        other = Client(self.host, headers=self.headers, tls=self._tls)
        other.prefix = self.prefix
        return other

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def connect(self) -> Any:
        """A fresh connection. Raises `Unreachable` in docker's words."""
        scheme, _, address = self.host.partition("://")
        try:
            if scheme == "unix":
                connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
                try:
                    connection.connect(address)
                except OSError:
                    connection.close()
                    raise
                return connection
            if scheme in ("tcp", "http", "https"):
                return self._connect_tcp(address)
            if scheme == "ssh":
                return self._connect_ssh()
            if scheme == "fd":
                raise Failure(f"unable to parse docker host `{self.host}`")
        except PermissionError as error:
            raise Unreachable(
                f"permission denied while trying to connect to the Docker daemon socket at {self.host}: "
                f"dial {scheme} {address}: connect: {(error.strerror or '').lower()}\n"
                "Run the command as root, or join the group that owns the socket."
            ) from None
        except OSError as error:
            if scheme in ("tcp", "http", "https") and self._tls:
                raise Unreachable(f"error during connect: {error}") from None
            text = f"Cannot connect to the Docker daemon at {self.host}. Is the docker daemon running?"
            if self.host == DEFAULT_HOST:
                text += "\nStart one with: sudo engined   (or at every boot: sudo systemctl enable --now engine)"
            raise Unreachable(text) from None
        raise Failure(f"unable to parse docker host `{self.host}`")

    def _connect_tcp(self, address: str) -> Any:
        import socket

        address = address.rstrip("/")
        name, colon, port = address.rpartition(":")
        if not colon:
            name, port = address, "2376" if self._tls else "2375"
        name = name.strip("[]") or "localhost"
        connection = socket.create_connection((name, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._tls:
            return connection
        import ssl

        context = ssl.create_default_context(cafile=self._tls.get("ca") if self._tls.get("verify") else None)
        if not self._tls.get("verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self._tls.get("cert"):
            context.load_cert_chain(self._tls["cert"], self._tls.get("key"))
        return context.wrap_socket(connection, server_hostname=name)

    def _connect_ssh(self) -> Any:
        import socket
        import subprocess

        rest = self.host.removeprefix("ssh://").rstrip("/")
        target, _, port = rest.partition(":")
        command = ["ssh", "-o", "ConnectTimeout=30", "-T", *(["-p", port] if port else []), "--", target]
        ours, theirs = socket.socketpair()
        try:
            subprocess.Popen(  # it ends with the connection
                [*command, "engine", "system", "dial-stdio"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=True,
            )
        finally:
            theirs.close()
        return ours

    def release(self, connection: Any) -> None:
        """Keep a connection for the next request."""
        if self._idle:
            connection.close()
        else:
            self._idle.append(connection)

    def _head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", "Host: api.moby.localhost", "User-Agent: Engine-Client/0.1"]
        lines += [f"{key}: {value}" for key, value in {**self.headers, **headers}.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")

    def send(self, method: str, path: str, query: Mapping[str, Any] | None = None, *, body: Any = None,
             stream: Iterable[bytes] | None = None, headers: Mapping[str, str] | None = None) -> Pending:  # fmt: skip
        """Send a request without waiting for its answer; ``body`` is a value to send as JSON."""
        head = dict(headers or {})
        payload = b""
        if body is not None:
            payload = body if isinstance(body, bytes) else dumps(body).encode()
            head.setdefault("Content-Type", "application/json")
        if stream is not None:
            head["Transfer-Encoding"] = "chunked"
            head.setdefault("Content-Type", "application/x-tar")
        elif payload or method in ("POST", "PUT"):
            head["Content-Length"] = str(len(payload))
        message = self._head(method, path + query_string(query or {}), head) + payload
        while True:
            reused = bool(self._idle)
            connection = self._idle.pop() if reused else self.connect()
            try:
                connection.sendall(message)
            except OSError:
                connection.close()
                if reused:
                    continue
                raise Unreachable(f"error during connect: the daemon at {self.host} closed the connection") from None
            pending = Pending(self, connection, message if reused and stream is None else None, head=method == "HEAD")
            if stream is not None:
                pending.upload(stream)
            return pending

    def request(self, method: str, path: str, query: Mapping[str, Any] | None = None, *, body: Any = None,
                stream: Iterable[bytes] | None = None, headers: Mapping[str, str] | None = None,
                ) -> Response:  # fmt: skip
        """Send a request and return its answer once the head is there. Raises `ApiFailure` for 400 and up."""
        return self.send(method, path, query, body=body, stream=stream, headers=headers).response()

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """GET; the decoded JSON body."""
        return self.request("GET", path, query).json()

    def post(self, path: str, query: Mapping[str, Any] | None = None, *, body: Any = None) -> Any:
        """POST; the decoded JSON body, if any."""
        return self.request("POST", path, query, body=body).json()

    def delete(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """DELETE; the decoded JSON body, if any."""
        return self.request("DELETE", path, query).json()

    def hijack(self, path: str, query: Mapping[str, Any] | None = None, *, body: Any = None) -> tuple[Any, bytes]:
        """POST and take over the connection: the socket, and what already came after the head."""
        payload = b"" if body is None else dumps(body).encode()
        head = {"Connection": "Upgrade", "Upgrade": "tcp", "Content-Length": str(len(payload))}
        if payload:
            head["Content-Type"] = "application/json"
        connection = self.connect()
        connection.sendall(self._head("POST", path + query_string(query or {}), head) + payload)
        response = Pending(self, connection, None).response()
        rest, response._buffer = response._buffer, b""
        return connection, rest


class Pending:
    """A request on its way; `response` waits for the head of the answer."""

    def __init__(self, client: Client, connection: Any, again: bytes | None, *, head: bool = False) -> None:
        self._client = client
        self._connection = connection
        self._again = again
        self._head = head

    def upload(self, stream: Iterable[bytes]) -> None:
        """Send the body in chunks from a thread; a daemon that stops listening has its reason in the answer."""
        connection = self._connection

        def run() -> None:
            try:
                for piece in stream:
                    if piece:
                        connection.sendall(b"%x\r\n" % len(piece))
                        connection.sendall(piece)
                        connection.sendall(b"\r\n")
                connection.sendall(b"0\r\n\r\n")
            except BrokenPipeError:
                pass
            except OSError as error:
                os.write(2, f"{error}\n".encode())
                connection.shutdown(_socket.SHUT_RDWR)

        start_new_thread(run, ())

    def _read_head(self) -> tuple[bytes, bytes]:
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            try:
                piece = self._connection.recv(65536)
            except ConnectionError:
                piece = b""
            if not piece:
                self._connection.close()
                if self._again is None or data:
                    raise Failure("error during connect: EOF")
                self._connection = self._client.connect()
                self._connection.sendall(self._again)
                self._again = None
            data += piece
        return data[:end], data[end + 4 :]

    def response(self) -> Response:
        """The answer. Raises `ApiFailure` for 400 and up."""
        while True:
            head, rest = self._read_head()
            first, *lines = head.decode("latin-1").split("\r\n")
            status = int(first.split(None, 2)[1])
            headers = {}
            for line in lines:
                key, _, value = line.partition(":")
                headers[key.strip().lower()] = value.strip()
            if status != 100:
                break
        if status == 101:
            response = Response(self._client, None, status, headers, rest)
            return response
        response = Response(self._client, self._connection, status, headers, rest, bodiless=self._head)
        if status >= 400:
            raise ApiFailure(status, _reason(status, response.read()))
        return response


def _reason(status: int, body: bytes) -> str:
    try:
        message = loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace").strip()
    return str(message) or f"request returned HTTP status {status} with no message"
