"""Routes, requests and responses: what handlers are given and give back, and how a path finds its handler.

    async def inspect(services: Services, request: Request) -> Response:
        return Response.json(services.containers.inspect(request.params["ref"]))

    ROUTES = [Route("GET", "/containers/{ref}/json", inspect)]

In a pattern ``{ref}`` is one segment and ``{name:path}`` any number of them. Values arrive percent-decoded. The
``/vX.Y`` prefix is not part of a pattern: `Request.version` has it as two integers.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar, overload
from urllib.parse import parse_qsl, unquote

from engine.api import codec
from engine.errors import InvalidParameter, NotFound
from engine.model.filters import Filters

if TYPE_CHECKING:
    from engine.model.admission import Identity
    from engine.services import Services

__all__ = [
    "API_VERSION",
    "MIN_API_VERSION",
    "Handler",
    "Hijacked",
    "Query",
    "Request",
    "Response",
    "Route",
    "Router",
]

API_VERSION = (1, 50)
"""The newest version served: that of the newest docker CLI the integration suite runs."""
MIN_API_VERSION = (1, 24)

JSON_LIMIT = 16 << 20
"""Bytes a JSON body may have."""

_T = TypeVar("_T")


class Query:
    """The query string, read with Go's rules."""

    __slots__ = ("_values",)

    def __init__(self, text: str = "") -> None:
        self._values: dict[str, list[str]] = {}
        if text:
            for key, value in parse_qsl(text, keep_blank_values=True):
                self._values.setdefault(key, []).append(value)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: str = "") -> str:
        """The first value."""
        values = self._values.get(key)
        return values[0] if values else default

    def all(self, key: str) -> list[str]:
        """All values, in order."""
        return list(self._values.get(key, ()))

    def flag(self, key: str, default: bool = False) -> bool:
        """dockerd's BoolValue: everything is true but empty, 0, no, false and none; ``default`` when absent."""
        if key not in self._values:
            return default
        return self._values[key][0].strip().lower() not in ("", "0", "no", "false", "none")

    @overload
    def number(self, key: str) -> int | None: ...
    @overload
    def number(self, key: str, default: int) -> int: ...
    def number(self, key: str, default: int | None = None) -> int | None:
        """An integer; ``default`` when absent or empty. Raises in Go's words when it is something else."""
        text = self.get(key)
        if not text:
            return default
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise InvalidParameter(f'strconv.Atoi: parsing "{text}": invalid syntax')
        return int(text)

    def filters(self, key: str = "filters") -> Filters:
        """The ``filters`` parameter, in either of its JSON forms."""
        return Filters.parse(self.get(key))


class Connection(Protocol):
    """What a request needs of the server's connection."""

    async def read_body(self, limit: int) -> bytes:
        """All of the body; `TooLarge` beyond ``limit`` bytes."""
        ...

    def stream_body(self) -> AsyncIterator[bytes]:
        """The body as it comes, with backpressure."""
        ...

    def hijack(self, upgrade: str | None, content_type: str, websocket: str = "") -> Awaitable[Hijacked]:
        """Answer 101 or 200 and hand over the socket."""
        ...

    def give_back(self, body: bytes) -> None:
        """Put back a body that was read, for the next reader."""
        ...

    @property
    def identity(self) -> Identity:
        """Who the client is."""
        ...

    @property
    def target(self) -> str:
        """What the client asked for, as it wrote it: path with version, and query."""
        ...


class Hijacked:
    """The client's socket, taken from the server: what the handler writes is what the client reads.

    ``sock`` is non-blocking, belongs to the handler (who closes it) and may be passed to another process; the client's
    half-close is kept. ``leftover`` are bytes the client sent before the socket was taken.
    """

    __slots__ = ("leftover", "sock")

    def __init__(self, sock: socket.socket, leftover: bytes = b"") -> None:
        self.sock = sock
        self.leftover = leftover

    async def send(self, data: bytes) -> None:
        """Write all of ``data``; raises `OSError` when the client is gone."""
        import asyncio

        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int = 65536) -> bytes:
        """What the client sent next (leftover first); empty when it has closed its side."""
        import asyncio

        if self.leftover:
            data, self.leftover = self.leftover[:size], self.leftover[size:]
            return data
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.sock.close()


@dataclass(slots=True)
class Request:
    """One request. ``headers`` have lower-case names; ``version`` is the one asked for or the newest."""

    method: str
    path: str
    params: Mapping[str, str]
    query: Query
    headers: Mapping[str, str]
    version: tuple[int, int] = API_VERSION
    connection: Connection | None = None

    async def body(self, limit: int = JSON_LIMIT) -> bytes:
        """The whole body. Raises `TooLarge` beyond ``limit`` bytes."""
        assert self.connection is not None
        return await self.connection.read_body(limit)

    def stream(self) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive; the client is slowed down to the reader's pace."""
        assert self.connection is not None
        return self.connection.stream_body()

    async def json(self, kind: type[_T]) -> _T:
        """The body as ``kind``, read as dockerd does: content type checked; without a body, ``kind()``."""
        return codec.read_json(await self.body(), self.headers.get("content-type", ""), kind)  # type: ignore[no-any-return]

    async def hijack(self, *, content_type: str = "application/vnd.docker.raw-stream", websocket: str = "") -> Hijacked:
        """Answer and take the socket: 101 UPGRADED when the client asked for an upgrade, else 200 without a length.

        The route must be declared with ``hijack=True``; the handler then returns None. Errors before this call are
        ordinary responses; after it the handler must close the socket itself, whatever happens. ``websocket`` is the
        answer to a WebSocket handshake's key.
        """
        assert self.connection is not None
        upgrade = self.headers.get("upgrade") if "upgrade" in self.headers.get("connection", "").lower() else None
        return await self.connection.hijack(upgrade, content_type, websocket)


@dataclass(slots=True)
class Response:
    """An answer; ``body`` is bytes, or pieces that are sent as they come (the head goes out before the first)."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | AsyncIterator[bytes] = b""

    @classmethod
    def json(cls, value: object, status: int = 200) -> Response:
        """A JSON document (see `codec.encode`)."""
        return cls(status, _JSON, codec.encode(value))

    @classmethod
    def text(cls, value: str, status: int = 200) -> Response:
        """Plain text."""
        return cls(status, {"Content-Type": "text/plain; charset=utf-8"}, value.encode())

    @classmethod
    def empty(cls, status: int = 204) -> Response:
        """No body."""
        return cls(status)

    @classmethod
    def stream(cls, body: AsyncIterator[bytes], content_type: str = "application/json", status: int = 200) -> Response:
        """Pieces as they come. The iterator is closed (``aclose``) when the client leaves."""
        return cls(status, {"Content-Type": content_type}, body)

    @classmethod
    def error(cls, status: int, message: str) -> Response:
        """``{"message": ...}``."""
        return cls(status, _JSON, codec.encode({"message": message}))


_JSON = {"Content-Type": "application/json"}

Handler = Callable[["Services", Request], Awaitable["Response | None"]]
"""``None`` only after `Request.hijack`."""


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path pattern with their handler.

    ``since`` and ``until`` bound the API versions that have the route (outside it is 404). ``hijack`` allows
    `Request.hijack`. ``cancel`` cancels the handler when the client leaves (for long waits and pulls); without it a
    handler runs to its end, so that no change of state is torn; streamed bodies always end with their client.
    ``prompt`` answers a request without a body before any other is looked at, if it can do so without waiting; where it
    gives None the handler is asked. ``stream`` says that the body is read with `Request.stream` (tars, archives): it is
    authorized unread, while every other body is read whole first.
    """

    method: str
    pattern: str
    handler: Handler
    since: tuple[int, int] = MIN_API_VERSION
    until: tuple[int, int] | None = None
    hijack: bool = False
    cancel: bool = False
    stream: bool = False
    prompt: Callable[[Services, Request], Response | None] | None = None


_VERSION = re.compile(r"/v([0-9.]+)(/.*)")
_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


class Router:
    """Finds the route of a method and path. Patterns without parameters win; then the order of registration."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        self._static: dict[tuple[str, str], list[Route]] = {}
        self._dynamic: dict[tuple[str, str], list[tuple[re.Pattern[str], Route]]] = {}
        self.add(routes)

    def add(self, routes: Sequence[Route]) -> None:
        """Register more routes."""
        for route in routes:
            if "{" not in route.pattern:
                self._static.setdefault((route.method, route.pattern), []).append(route)
                continue
            key = (route.method, route.pattern.split("/", 2)[1])
            self._dynamic.setdefault(key, []).append((_compile(route.pattern), route))

    def match(self, method: str, target: str) -> tuple[Route, dict[str, str], str, tuple[int, int]]:
        """Route, parameters, path and API version of a request for ``target`` (a raw path without its query).

        Raises `NotFound` (``page not found``) or `InvalidParameter` about the version.
        """
        path = unquote(target) if "%" in target else target
        version = API_VERSION
        if path.startswith("/v") and (versioned := _VERSION.fullmatch(path)):
            path = versioned[2]
            version = _parse_version(versioned[1])
        while "//" in path:
            path = path.replace("//", "/")
        for route in self._static.get((method, path), ()):
            if route.since <= version and (route.until is None or version <= route.until):
                return route, {}, path, version
        for pattern, route in self._dynamic.get((method, path.split("/", 2)[1] if "/" in path else ""), ()):
            served = route.since <= version and (route.until is None or version <= route.until)
            if served and (found := pattern.fullmatch(path)):
                return route, found.groupdict(), path, version
        raise NotFound("page not found")


def _compile(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    position = 0
    for found in _PARAMETER.finditer(pattern):
        parts.append(re.escape(pattern[position : found.start()]))
        parts.append(f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})")
        position = found.end()
    return re.compile("".join(parts) + re.escape(pattern[position:]))


def _parse_version(text: str) -> tuple[int, int]:
    numbers = [int(part or "0") for part in text.split(".")]
    version = (numbers[0], numbers[1] if len(numbers) > 1 else 0)
    if version < MIN_API_VERSION:
        raise InvalidParameter(
            f"client version {text} is too old. Minimum supported API version is {version_text(MIN_API_VERSION)}, "
            "please upgrade your client to a newer version"
        )
    if version > API_VERSION:
        raise InvalidParameter(
            f"client version {text} is too new. Maximum supported API version is {version_text(API_VERSION)}"
        )
    return version


def version_text(version: tuple[int, int]) -> str:
    """``(1, 50)`` -> ``1.50``."""
    return f"{version[0]}.{version[1]}"
