"""Who may ask what of the API: the hook ``engine_request_authorize``, and Docker's authorization plugins.

Every request passes here between being read and being served. What is authorized is what is served: a body is read
whole first (or refused as too large), shown to everyone who decides, and the same bytes go to the handler. Whoever
cannot be asked, breaks or takes too long has refused.
"""

from __future__ import annotations

import base64
import http.client
import logging
import socket
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec

from engine.errors import DeadlineExceeded, EngineError, Forbidden, PluginError
from engine.model.admission import Identity

if TYPE_CHECKING:
    from engine.api.router import Request, Response, Route
    from engine.config import Config
    from engine.plugins import Plugins
    from engine.services import Services
    from engine.workers import Workers

__all__ = ["Authorization", "DockerPlugin"]

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds until a silent plugin has refused."""

_DIRECTORIES = (
    Path("/run/docker/plugins"),
    Path("/run/engine/plugins"),
    Path("/etc/docker/plugins"),
    Path("/usr/lib/docker/plugins"),
)
_ANSWER_LIMIT = 4 << 20
_CREDENTIALS = "/auth"  # its body is a password: nobody needs it to decide
_UNTOLD_HEADERS = frozenset(("x-registry-auth", "x-registry-config", "authorization"))


class Authorization:
    """Asks everyone who has a say; made once, holds connections to nobody."""

    def __init__(
        self, *, config: Config, plugins: Plugins, workers: Workers, directories: Sequence[Path] = _DIRECTORIES
    ) -> None:
        self._config = config
        self._workers = workers
        self._directories = directories
        self._hooks = _implementations(plugins)
        self._plugins: dict[str, DockerPlugin] = {}

    @property
    def needed(self) -> bool:
        """Whether anybody wants to be asked; nothing else is done for a request when not."""
        return bool(self._hooks or self._config.authorization_plugins)

    async def guard(self, route: Route, request: Request, services: Services) -> Response | None:
        """Serve ``request`` by its route if everyone agrees; raises `Forbidden` naming who does not."""
        connection = request.connection
        assert connection is not None
        body = None
        if not route.stream:
            body = await request.body()
            connection.give_back(body)
        asked = _Asked(connection.identity, request.method, connection.target, request.path, request.headers, body)
        plugins = [self._plugin(name) for name in self._config.authorization_plugins]
        try:
            await self._workers.call(self._ask, asked, plugins, deadline=PATIENCE * (1 + len(plugins)))
        except DeadlineExceeded:
            raise Forbidden("authorization denied: an authorization plugin did not answer in time") from None
        response = await route.handler(services, request)
        if response is not None:
            for plugin in reversed(plugins):
                told = response.body if isinstance(response.body, bytes) else None
                await self._workers.call(plugin.check_response, asked, response.status, response.headers, told)
        return response

    def _plugin(self, name: str) -> DockerPlugin:
        if name not in self._plugins:
            self._plugins[name] = DockerPlugin(name, self._directories)
        return self._plugins[name]

    def _ask(self, asked: _Asked, plugins: Iterable[DockerPlugin]) -> None:
        for name, decide in self._hooks:
            try:
                decide(asked)
            except EngineError:
                raise
            except Exception as error:
                log.exception("an authorization plugin broke: the request is refused", extra={"plugin": name})
                raise Forbidden(
                    f"authorization denied by plugin {name}: it failed with {type(error).__name__}: {error}"
                ) from error
        for plugin in plugins:
            plugin.check_request(asked)


class _Asked:
    """One request, as those who decide see it."""

    __slots__ = ("body", "headers", "identity", "method", "path", "target")

    def __init__(
        self,
        identity: Identity,
        method: str,
        target: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> None:
        self.identity = identity
        self.method = method
        self.target = target
        self.path = path
        self.headers = headers
        self.body = body


def _implementations(plugins: Plugins) -> list[tuple[str, Callable[[_Asked], object]]]:
    """Who implements the hook, each with a call that gives it the arguments it takes."""
    caller = cast("Any", plugins.hooks).engine_request_authorize
    found: list[tuple[str, Callable[[_Asked], object]]] = []
    for implementation in reversed(caller.get_hookimpls()):
        names = implementation.argnames
        function = implementation.function

        def decide(asked: _Asked, function: Callable[..., object] = function, names: tuple[str, ...] = names) -> object:
            known = {
                "identity": asked.identity,
                "method": asked.method,
                "path": asked.target,
                "body": asked.body,
            }
            return function(*(known[name] for name in names))

        found.append((str(implementation.plugin_name).partition("=")[0], decide))
    return found


# -- Docker's protocol ------------------------------------------------------------------------------------------


class _Verdict(msgspec.Struct, rename="pascal"):
    allow: bool = False
    msg: str = ""
    err: str = ""


class DockerPlugin:
    """A plugin that speaks Docker's authorization protocol: JSON over a socket in a well-known directory."""

    def __init__(self, name: str, directories: Sequence[Path] = _DIRECTORIES) -> None:
        self.name = name
        self._directories = directories
        self._activated = False

    def check_request(self, asked: _Asked) -> None:
        """``AuthZPlugin.AuthZReq``. Blocks; raises `Forbidden`, or `PluginError` when the plugin cannot be asked."""
        self._check("AuthZReq", _question(asked))

    def check_response(self, asked: _Asked, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        """``AuthZPlugin.AuthZRes``: may hold an answer back (the deed is done)."""
        question = _question(asked)
        question["ResponseStatusCode"] = status
        question["ResponseHeaders"] = dict(headers)
        if body:
            question["ResponseBody"] = base64.b64encode(body).decode()
        self._check("AuthZRes", question)

    def _check(self, method: str, question: Mapping[str, Any]) -> None:
        if not self._activated:
            offer = self._call("/Plugin.Activate", b"")
            if "authz" not in (msgspec.json.decode(offer).get("Implements") or ()):
                raise PluginError(f"plugin {self.name} does not implement authz")
            self._activated = True
        try:
            answer = msgspec.json.decode(
                self._call(f"/AuthZPlugin.{method}", msgspec.json.encode(question)), type=_Verdict
            )
        except msgspec.DecodeError as error:
            raise PluginError(f"plugin {self.name} failed with error: {method}: {error}") from None
        if answer.err:
            raise PluginError(f"plugin {self.name} failed with error: {answer.err}")
        if not answer.allow:
            raise Forbidden(f"authorization denied by plugin {self.name}: {answer.msg}")

    def _call(self, path: str, body: bytes) -> bytes:
        connection = self._connect()
        try:
            connection.request(
                "POST",
                path,
                body,
                {
                    "Content-Type": "application/vnd.docker.plugins.v1.2+json",
                    "Accept": "application/vnd.docker.plugins.v1.2+json",
                },
            )
            response = connection.getresponse()
            answer = response.read(_ANSWER_LIMIT)
        except (OSError, http.client.HTTPException) as error:
            self._activated = False
            raise PluginError(f"plugin {self.name} failed with error: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise PluginError(f"plugin {self.name} failed with error: {path}: status {response.status}")
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        address = self._address()
        if address.startswith("unix://"):
            return _UnixConnection(address.removeprefix("unix://"))
        host = urlsplit(address)
        if host.scheme not in ("tcp", "http") or not host.hostname:
            raise PluginError(f"plugin {self.name}: address {address!r} is neither unix:// nor tcp://")
        return http.client.HTTPConnection(host.hostname, host.port or 80, timeout=PATIENCE)

    def _address(self) -> str:
        """Where the plugin listens: a socket, or a ``.spec`` or ``.json`` file that says it."""
        for directory in self._directories:
            for place in (directory / f"{self.name}.sock", directory / self.name / f"{self.name}.sock"):
                if place.is_socket():
                    return f"unix://{place}"
            spec = directory / f"{self.name}.spec"
            if spec.is_file():
                return spec.read_text().strip()
            described = directory / f"{self.name}.json"
            if described.is_file():
                return str(msgspec.json.decode(described.read_bytes()).get("Addr", ""))
        raise PluginError(
            f"authorization plugin {self.name} not found in {', '.join(map(str, self._directories))}: "
            "no request is served without it"
        )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("plugin", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _question(asked: _Asked) -> dict[str, Any]:
    identity = asked.identity
    question: dict[str, Any] = {
        "RequestMethod": asked.method,
        "RequestUri": asked.target,
        "RequestHeaders": {
            "-".join(part.capitalize() for part in name.split("-")): value
            for name, value in asked.headers.items()
            if name not in _UNTOLD_HEADERS
        },
    }
    if identity.user:
        question["User"] = identity.user
        question["UserAuthNMethod"] = identity.method
    if identity.certificates:
        question["RequestPeerCertificates"] = [
            base64.b64encode(_pem(certificate)).decode() for certificate in identity.certificates
        ]
    if asked.body and asked.path != _CREDENTIALS:
        question["RequestBody"] = base64.b64encode(asked.body).decode()
    return question


def _pem(certificate: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(certificate).decode(), 64)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""]).encode()
