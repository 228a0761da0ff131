"""Docker's legacy plugin protocol: finding plugins, shaking hands, calling them (JSON over HTTP).

A plugin is a socket ``NAME.sock`` (or ``NAME/NAME.sock``) in the first directory, or a file ``NAME.spec`` (an
address) or ``NAME.json`` (address and TLS) in any of them. The first call is ``/Plugin.Activate``, which tells the
protocols it implements (``VolumeDriver``, ``NetworkDriver``, ``authz``); every call is a POST of JSON, and a failure
is a member ``Err`` in the answer. Nothing is kept between calls but the handshake, so a plugin may be restarted.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from engine.errors import EngineError, NotFound, PluginError
from engine.names import valid_name

__all__ = ["DIRECTORIES", "LegacyPlugin", "directories_of", "find", "names"]

DIRECTORIES = (Path("/run/docker/plugins"), Path("/etc/docker/plugins"), Path("/usr/lib/docker/plugins"))
"""Where dockerd looks."""

_MEDIA_TYPE = "application/vnd.docker.plugins.v1.2+json"
_ANSWER_LIMIT = 16 << 20

_Answer = TypeVar("_Answer")


class _Tls(msgspec.Struct, frozen=True):
    insecure: bool = msgspec.field(default=False, name="InsecureSkipVerify")
    ca: str = msgspec.field(default="", name="CAFile")
    certificate: str = msgspec.field(default="", name="CertFile")
    key: str = msgspec.field(default="", name="KeyFile")


class _Description(msgspec.Struct, frozen=True, rename="pascal"):
    """A ``.json`` file, or what a ``.spec`` file means."""

    addr: str
    tls: _Tls | None = msgspec.field(default=None, name="TLSConfig")


class _Offer(msgspec.Struct, frozen=True, rename="pascal"):
    implements: list[str] | None = None


class _Failure(msgspec.Struct, frozen=True, rename="pascal"):
    err: str = ""


def names(directories: Sequence[Path] = DIRECTORIES) -> Sequence[str]:
    """All plugins that can be found; whether they answer is not looked at."""
    found = set()
    for directory in directories:
        for path in _listed(directory):
            if path.suffix in (".sock", ".spec", ".json"):
                found.add(path.stem)
            elif (path / f"{path.name}.sock").is_socket():
                found.add(path.name)
    return sorted(filter(valid_name, found))


def find(name: str, directories: Sequence[Path] = DIRECTORIES) -> LegacyPlugin | None:
    """The plugin of that name, or None. Only looks at files."""
    if not valid_name(name) or _describe(name, directories) is None:
        return None
    return LegacyPlugin(name, directories)


def _listed(directory: Path) -> Iterator[Path]:
    try:
        yield from directory.iterdir()
    except OSError:
        return


def _describe(name: str, directories: Sequence[Path]) -> _Description | None:
    for directory in directories:
        for place in (directory / f"{name}.sock", directory / name / f"{name}.sock"):
            if place.is_socket():
                return _Description(addr=f"unix://{place}")
        for place in (directory / f"{name}.spec", directory / name / f"{name}.spec"):
            if place.is_file():
                return _Description(addr=place.read_text().strip())
        for place in (directory / f"{name}.json", directory / name / f"{name}.json"):
            if place.is_file():
                try:
                    return msgspec.json.decode(place.read_bytes(), type=_Description)
                except msgspec.DecodeError as error:
                    raise PluginError(f"plugin {name}: {place} is not readable: {error}") from None
    return None


class LegacyPlugin:
    """One plugin. Methods block; they may be called from any thread."""

    def __init__(self, name: str, directories: Sequence[Path] = DIRECTORIES) -> None:
        self.name = name
        self._directories = directories
        self._implements: frozenset[str] | None = None

    def require(self, protocol: str, *, timeout: float = 60.0) -> None:
        """Shake hands unless that is done. `NotFound` when the plugin does not speak ``protocol``."""
        if self._implements is None:
            offer = self._decode(_Offer, "Plugin.Activate", self._post("Plugin.Activate", b"", timeout))
            self._implements = frozenset(offer.implements or ())
        if protocol not in self._implements:
            raise NotFound(f'plugin "{self.name}" does not implement "{protocol}"')

    def call(self, method: str, question: object, answer: type[_Answer], *, timeout: float = 60.0) -> _Answer:
        """Ask ``method`` (``VolumeDriver.Mount``). `EngineError` with what the plugin says in ``Err``; `PluginError`
        when it cannot be asked, does not answer in time, or answers nonsense."""
        self.require(method.partition(".")[0], timeout=timeout)
        raw = self._post(method, msgspec.json.encode(question), timeout)
        failure = self._decode(_Failure, method, raw)
        if failure.err:
            raise EngineError(f"{method}: {failure.err}")
        return self._decode(answer, method, raw)

    def _decode(self, kind: type[_Answer], method: str, raw: bytes) -> _Answer:
        try:
            return msgspec.json.decode(raw or b"{}", type=kind)
        except msgspec.DecodeError as error:
            raise PluginError(f"plugin {self.name}: {method} answered nonsense: {error}") from None

    def _post(self, method: str, body: bytes, timeout: float) -> bytes:
        connection = self._connection(timeout)
        try:
            connection.request("POST", f"/{method}", body, {"Content-Type": _MEDIA_TYPE, "Accept": _MEDIA_TYPE})
            response = connection.getresponse()
            answer = response.read(_ANSWER_LIMIT)
        except TimeoutError:
            raise PluginError(f"plugin {self.name}: {method} was not answered within {timeout:g} seconds") from None
        except (OSError, http.client.HTTPException) as error:
            self._implements = None
            raise PluginError(f"plugin {self.name} cannot be reached: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise self._refusal(method, response.status, answer)
        return answer

    def _refusal(self, method: str, status: int, answer: bytes) -> EngineError:
        try:
            text = msgspec.json.decode(answer, type=_Failure).err
        except msgspec.DecodeError:
            text = answer.decode(errors="replace").strip()
        if status == 404 and not text:
            return NotFound(f"plugin {self.name} has no {method}")
        return EngineError(f"{method}: {text or f'status {status}'}")

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        described = _describe(self.name, self._directories)
        if described is None:
            raise NotFound(f'plugin "{self.name}" not found in {", ".join(map(str, self._directories))}')
        if described.addr.startswith("unix://"):
            return _UnixConnection(described.addr.removeprefix("unix://"), timeout)
        host = urlsplit(described.addr)
        if host.scheme not in ("tcp", "http", "https") or not host.hostname:
            raise PluginError(f"plugin {self.name}: address {described.addr!r} is neither unix:// nor tcp://")
        if described.tls is None and host.scheme != "https":
            return http.client.HTTPConnection(host.hostname, host.port or 80, timeout=timeout)
        return http.client.HTTPSConnection(
            host.hostname, host.port or 443, timeout=timeout, context=self._tls(described.tls or _Tls())
        )

    def _tls(self, settings: _Tls) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=settings.ca or None)
            if settings.certificate:
                context.load_cert_chain(settings.certificate, settings.key or None)
        except OSError as error:
            raise PluginError(f"plugin {self.name}: its TLS files are not usable: {error}") from None
        if settings.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("plugin", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def directories_of(options: Mapping[str, object]) -> Sequence[Path]:
    """The option ``directories`` of a driver built on a legacy plugin."""
    given = options.get("directories")
    return tuple(Path(str(each)) for each in given) if isinstance(given, (list, tuple)) else DIRECTORIES
