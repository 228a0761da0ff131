"""wasi:http 0.2 in Python: what a handler sees of a request, how its response leaves, and requests of its own.

Bodies stream: the request's is read from the connection when the guest reads, the response's is sent as it is written.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from engine_wasm_host.linking import Trap
from engine_wasm_host.values import Err, Ok
from engine_wasm_host.wasi import InputStream, OutputStream, Pollable

__all__ = ["Connection", "IncomingRequest", "ResponseOut", "tables"]

_METHODS = {
    name.upper(): name for name in ("get", "head", "post", "put", "delete", "connect", "options", "trace", "patch")
}
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN = frozenset(("connection", "keep-alive", "host", "http2-settings", "proxy-connection", "te",
                        "transfer-encoding", "upgrade"))  # fmt: skip
_NO_BODY = frozenset((204, 304))
_TIMEOUT = 30.0
"any".encode("idna")  # loads the codec that looking a name up needs, while the library can be seen
_trusted = ssl.create_default_context()  # made while the host's certificates can be seen


class Connection(Protocol):
    """What a request needs of the server's side."""

    def read_body(self, length: int) -> bytes:
        """Up to ``length`` bytes; none at the end."""
        ...

    def send_head(self, status: int, headers: Sequence[tuple[str, bytes]]) -> None:
        """Begin the response."""
        ...

    def send_body(self, data: bytes) -> None:
        """Go on with it."""
        ...

    def end(self) -> None:
        """All is written."""
        ...


class Fields:
    """Header fields in order; names compare without case. Those of a message that came cannot be changed."""

    def __init__(self, entries: Sequence[tuple[str, bytes]] = (), *, fixed: bool = False) -> None:
        self.entries = list(entries)
        self.fixed = fixed

    def all(self, name: str) -> list[bytes]:
        """Values of a field."""
        wanted = name.lower()
        return [value for key, value in self.entries if key.lower() == wanted]


def _problem(name: str, values: Sequence[bytes]) -> Err | None:
    if not _NAME.fullmatch(name) or any(b"\r" in value or b"\n" in value or b"\0" in value for value in values):
        return Err(("invalid-syntax", None))
    if name.lower() in _FORBIDDEN:
        return Err(("forbidden", None))
    return None


def _from_list(call: Any, entries: Sequence[tuple[str, bytes]]) -> Any:
    for name, value in entries:
        problem = _problem(name, [value])
        if problem:
            return problem
    return Ok(Fields(entries))


def _set(call: Any, fields: Fields, name: str, values: Sequence[bytes]) -> Any:
    if fields.fixed:
        return Err(("immutable", None))
    problem = _problem(name, values)
    if problem:
        return problem
    fields.entries = [entry for entry in fields.entries if entry[0].lower() != name.lower()]
    fields.entries += [(name, value) for value in values]
    return Ok()


def _append(call: Any, fields: Fields, name: str, value: bytes) -> Any:
    if fields.fixed:
        return Err(("immutable", None))
    problem = _problem(name, [value])
    if problem:
        return problem
    fields.entries.append((name, value))
    return Ok()


def _delete(call: Any, fields: Fields, name: str) -> Any:
    return _set(call, fields, name, [])


class Body:
    """A body that came: its stream may be taken once."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read: Callable[[int], bytes] | None = read

    def stream(self) -> Any:
        """A result with the stream."""
        if self._read is None:
            return Err()
        read, self._read = self._read, None
        return Ok(InputStream(read))


class IncomingRequest:
    """A request from a client."""

    def __init__(
        self, *, method: str, target: str, authority: str, headers: Sequence[tuple[str, bytes]], connection: Connection
    ) -> None:
        self.method = method
        self.target = target
        self.authority = authority
        self.headers = Fields(headers, fixed=True)
        self._body: Body | None = Body(connection.read_body)

    def consume(self) -> Any:
        """A result with the body, once."""
        body, self._body = self._body, None
        return Err() if body is None else Ok(body)


class IncomingResponse:
    """A response to a request of the guest's."""

    def __init__(self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection) -> None:
        self.status = response.status
        self.headers = Fields([(k, v.encode("latin-1")) for k, v in response.getheaders()], fixed=True)
        self._connection = connection
        self._body: Body | None = Body(response.read)

    def consume(self) -> Any:
        """A result with the body, once."""
        body, self._body = self._body, None
        return Err() if body is None else Ok(body)

    def close(self) -> None:
        """Give the connection back."""


class OutgoingBody:
    """Bytes of the guest's, kept until there is somewhere to send them."""

    def __init__(self) -> None:
        self._waiting: list[bytes] | None = []
        self._send: Callable[[bytes], object] | None = None
        self._taken = False
        self.finished = False

    def attach(self, send: Callable[[bytes], object]) -> None:
        """From now on bytes go to ``send``."""
        waiting, self._waiting = self._waiting or [], None
        self._send = send
        for data in waiting:
            send(data)

    def stream(self) -> Any:
        """A result with the stream, once."""
        if self._taken:
            return Err()
        self._taken = True
        return Ok(OutputStream(self._write))

    def _write(self, data: bytes) -> None:
        if self._send is not None:
            self._send(data)
        elif self._waiting is not None:
            self._waiting.append(data)

    def content(self) -> bytes:
        """What was written before anything was attached."""
        return b"".join(self._waiting or ())


class OutgoingResponse:
    """The response a guest makes."""

    def __init__(self, headers: Fields) -> None:
        self.status = 200
        self.headers = headers
        self.body = OutgoingBody()
        self._taken = False

    def take_body(self) -> Any:
        """A result with the body, once."""
        if self._taken:
            return Err()
        self._taken = True
        return Ok(self.body)


class OutgoingRequest:
    """A request a guest makes."""

    def __init__(self, headers: Fields) -> None:
        self.headers = headers
        self.method: tuple[str, Any] = ("get", None)
        self.target: str | None = None
        self.scheme: tuple[str, Any] | None = None
        self.authority: str | None = None
        self.body = OutgoingBody()
        self._taken = False

    def take_body(self) -> Any:
        """A result with the body, once."""
        if self._taken:
            return Err()
        self._taken = True
        return Ok(self.body)


class ResponseOut:
    """Where the guest puts its response."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = 0

    def set(self, outcome: Ok | Err) -> None:
        """Send the head, and the body from now on."""
        if self.status:
            raise Trap("the response was set twice")
        if isinstance(outcome, Err):
            self.status = 502
            self._connection.send_head(502, [("content-type", b"text/plain")])
            self._connection.send_body(f"the component answered with {outcome.value[0]}\n".encode())
            return
        response = outcome.value
        self.status = response.status
        self._connection.send_head(response.status, response.headers.entries)
        response.body.attach(self._connection.send_body)


class Future(Pollable):
    """A response that is there when it is asked for."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome
        self._taken = False

    def get(self) -> Any:
        """Once."""
        if self._taken:
            return Err()
        self._taken = True
        return Ok(self._outcome)


def _method(name: str) -> tuple[str, Any]:
    return (_METHODS[name], None) if name in _METHODS else ("other", name)


def _setter(name: str) -> Callable[..., Any]:
    def set_(call: Any, item: Any, value: Any) -> Any:
        text = value[1] if isinstance(value, tuple) else value
        if isinstance(text, str) and re.search(r"[\s\0]", text):
            return Err()
        setattr(item, name, value)
        return Ok()

    return set_


def _status(call: Any, response: OutgoingResponse, status: int) -> Any:
    if not 100 <= status <= 999:
        return Err()
    response.status = status
    return Ok()


def _finish(call: Any, body: OutgoingBody, trailers: Any) -> Any:
    body.finished = True
    return Ok()


_ERRORS: tuple[tuple[type[BaseException], tuple[str, Any]], ...] = (
    (ConnectionRefusedError, ("connection-refused", None)),
    (socket.gaierror, ("DNS-error", (None, None))),
    (ssl.SSLCertVerificationError, ("TLS-certificate-error", None)),
    (ssl.SSLError, ("TLS-protocol-error", None)),
    (TimeoutError, ("connection-timeout", None)),
    (ConnectionError, ("connection-terminated", None)),
    (http.client.HTTPException, ("HTTP-protocol-error", None)),
)


def _send(allowed: Callable[[str], bool]) -> Callable[..., Any]:
    """outgoing-handler.handle: the request is sent when the guest first needs the answer, so with all of its body."""

    def handle(call: Any, request: OutgoingRequest, options: Any) -> Any:
        scheme = (request.scheme or ("HTTPS", None))[0].lower()
        url = f"{scheme}://{request.authority or ''}{request.target or '/'}"
        if scheme not in ("http", "https") or not request.authority:
            return Err(("HTTP-request-URI-invalid", None))
        if not allowed(url):
            return Err(("HTTP-request-denied", None))
        return Ok(_Sent(request, url))

    return handle


class _Sent(Pollable):
    """A request on its way."""

    def __init__(self, request: OutgoingRequest, url: str) -> None:
        self._request = request
        self._url = url
        self._taken = False

    def get(self) -> Any:
        """The outcome, once: ``result<result<response, error-code>>``."""
        if self._taken:
            return Err()
        self._taken = True
        try:
            return Ok(Ok(self._exchange()))
        except (OSError, http.client.HTTPException) as error:
            for kind, code in _ERRORS:
                if isinstance(error, kind):
                    return Ok(Err(code))
            return Ok(Err(("internal-error", str(error))))

    def _exchange(self) -> IncomingResponse:
        request, parts = self._request, urlsplit(self._url)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(parts.netloc, timeout=_TIMEOUT, context=_trusted)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT)
        name, other = request.method
        headers = {key: value.decode("latin-1") for key, value in request.headers.entries}
        content = request.body.content()
        connection.request(other or name.upper(), request.target or "/", content or None, headers)
        return IncomingResponse(connection.getresponse(), connection)


def tables(allowed: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """``allowed`` says whether a guest may send a request to a URL."""
    types = {
        "[constructor]fields": lambda call: Fields(),
        "[static]fields.from-list": _from_list,
        "[method]fields.get": lambda call, fields, name: fields.all(name),
        "[method]fields.has": lambda call, fields, name: bool(fields.all(name)),
        "[method]fields.set": _set,
        "[method]fields.delete": _delete,
        "[method]fields.append": _append,
        "[method]fields.entries": lambda call, fields: fields.entries,
        "[method]fields.clone": lambda call, fields: Fields(fields.entries),
        "[method]incoming-request.method": lambda call, request: _method(request.method),
        "[method]incoming-request.path-with-query": lambda call, request: request.target,
        "[method]incoming-request.scheme": lambda call, request: ("HTTP", None),
        "[method]incoming-request.authority": lambda call, request: request.authority or None,
        "[method]incoming-request.headers": lambda call, request: request.headers,
        "[method]incoming-request.consume": lambda call, request: request.consume(),
        "[constructor]outgoing-request": lambda call, headers: OutgoingRequest(headers),
        "[method]outgoing-request.body": lambda call, request: request.take_body(),
        "[method]outgoing-request.headers": lambda call, request: request.headers,
        "[constructor]request-options": lambda call: object(),
        "[static]response-outparam.set": lambda call, out, outcome: out.set(outcome),
        "[method]incoming-response.status": lambda call, response: response.status,
        "[method]incoming-response.headers": lambda call, response: response.headers,
        "[method]incoming-response.consume": lambda call, response: response.consume(),
        "[method]incoming-body.stream": lambda call, body: body.stream(),
        "[static]incoming-body.finish": lambda call, body: Future(Ok(None)),
        "[method]future-trailers.subscribe": lambda call, future: future,
        "[method]future-trailers.get": lambda call, future: future.get(),
        "[constructor]outgoing-response": lambda call, headers: OutgoingResponse(headers),
        "[method]outgoing-response.status-code": lambda call, response: response.status,
        "[method]outgoing-response.set-status-code": _status,
        "[method]outgoing-response.headers": lambda call, response: response.headers,
        "[method]outgoing-response.body": lambda call, response: response.take_body(),
        "[method]outgoing-body.write": lambda call, body: body.stream(),
        "[static]outgoing-body.finish": _finish,
        "[method]future-incoming-response.subscribe": lambda call, future: future,
        "[method]future-incoming-response.get": lambda call, future: future.get(),
        "http-error-code": lambda call, error: None,
    }
    for name in ("method", "path-with-query", "scheme", "authority"):
        attribute = "target" if name == "path-with-query" else name
        types[f"[method]outgoing-request.{name}"] = _getter(attribute)
        types[f"[method]outgoing-request.set-{name}"] = _setter(attribute)
    for name in ("connect-timeout", "first-byte-timeout", "between-bytes-timeout"):
        types[f"[method]request-options.{name}"] = lambda call, options: None
        types[f"[method]request-options.set-{name}"] = lambda call, options, value: Ok()
    return {"wasi:http/types": types, "wasi:http/outgoing-handler": {"handle": _send(allowed)}}


def _getter(name: str) -> Callable[..., Any]:
    return lambda call, item: getattr(item, name)
