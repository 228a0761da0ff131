"""One HTTP exchange with a registry: pools, TLS by host, redirects, retries, and dockerd's words for failures.

Laws kept here: an ``Authorization`` header goes to the host it was made for and to no other, a redirect never leads
from TLS to plain HTTP (except to a host that may be insecure), and no error text contains a header or a query.
"""

from __future__ import annotations

import email.utils
import errno
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

from engine.registry.endpoints import Endpoint, RegistryOptions, is_insecure
from engine.registry.errors import Cancelled, RegistryError, from_response

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    import urllib3

__all__ = ["Cancel", "Response", "Transport"]

log = logging.getLogger(__name__)

BLOCK = 256 * 1024
_CONNECT_SECONDS = 15.0
_STALL_SECONDS = 60.0
_REDIRECTS = 10
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0
_ERROR_BODY = 64 * 1024


class Readable(Protocol):
    """A body that is read piece by piece."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes; empty at the end."""
        ...


class Cancel:
    """Lets another thread stop a transfer; shared by all requests of one pull or push."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._waiting: set[Response] = set()

    def set(self) -> None:
        """Stop: every later `check` and every sleep raises `Cancelled`; answers being read end at once."""
        with self._lock:
            self._event.set()
            waiting = list(self._waiting)
        for response in waiting:
            response.abort()

    def check(self) -> None:
        """Raise `Cancelled` once `set` was called."""
        if self._event.is_set():
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Wait, but not longer than until `set`."""
        self._event.wait(seconds)
        self.check()

    def watch(self, response: Response) -> None:
        """Abort this answer when `set` is called, until `unwatch`."""
        with self._lock:
            self._waiting.add(response)
        if self._event.is_set():
            response.abort()

    def unwatch(self, response: Response) -> None:
        """The answer has been read."""
        with self._lock:
            self._waiting.discard(response)


class Response:
    """An answer whose body is still on the wire; use as a context manager, the connection is freed at its end."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, url: str, cancel: Cancel | None = None) -> None:
        self._raw = raw
        self._cancel = cancel
        self.url = url
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self._ended = False
        if cancel:
            cancel.watch(self)

    def abort(self) -> None:
        """End the answer from another thread: a read that waits for bytes gets none."""
        with suppress(ValueError, OSError):  # it has just been read to its end
            self._raw.shutdown()

    def all(self, name: str) -> list[str]:
        """Every value of a header that may occur several times."""
        return list(self._raw.headers.getlist(name))

    def read(self, limit: int) -> bytes:
        """The body, which must not be longer than ``limit`` bytes."""
        with _translated("Get", self.url):
            data = b""
            while chunk := self._raw.read(min(BLOCK, limit + 1 - len(data)), decode_content=False):
                data += chunk
                if len(data) > limit:
                    raise RegistryError(f"answer of {urlsplit(self.url).netloc} is larger than {limit} bytes")
        self._ended = True
        return data

    def chunks(self) -> Iterator[bytes]:
        """The body piece by piece; `RegistryError` when the connection breaks before the announced length."""
        with _translated("Get", self.url):
            while chunk := self._raw.read(BLOCK, decode_content=False):
                yield chunk
        self._ended = True

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the connection: for the next request when the body was read to its end, else close it."""
        if self._cancel:
            self._cancel.unwatch(self)
        if self._ended or not self._raw.length_remaining:
            self._raw.drain_conn()
            self._raw.release_conn()
        else:
            self._raw.close()


class Transport:
    """HTTP for all registries of one daemon; connections are kept and shared between threads."""

    def __init__(self, options: RegistryOptions, user_agent: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.options = options
        self._user_agent = user_agent
        self._sleep = sleep
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str, bool], urllib3.PoolManager] = {}

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.clear()

    def sleep(self, seconds: float, cancel: Cancel | None) -> None:
        """Pause before another try; ends early, with `Cancelled`, when the transfer is stopped."""
        if cancel and self._sleep is time.sleep:
            cancel.sleep(seconds)
        else:
            self._sleep(seconds)

    def request(
        self,
        method: str,
        url: str,
        *,
        endpoint: Endpoint,
        headers: Mapping[str, str] | None = None,
        body: bytes | Readable | None = None,
        cancel: Cancel | None = None,
        attempts: int | None = None,
        accept: Iterable[int] = (),
    ) -> Response:
        """Send a request, follow redirects of GET and HEAD, retry what is worth retrying, and return the answer.

        Every answer is returned, also errors, except that 429 and 5xx (unless in ``accept``) are first retried with
        growing pauses (``Retry-After`` is honoured up to a minute) as often as ``attempts`` says. A body that is a
        file is sent once: the caller retries, since it knows how to rewind.
        """
        tries = 1 if hasattr(body, "read") else attempts or self.options.attempts
        for attempt in range(1, tries + 1):
            if cancel:
                cancel.check()
            pause = back_off(attempt)
            try:
                response = self._follow(method, url, endpoint, dict(headers or {}), body, cancel)
            except RegistryError as error:
                if attempt == tries or not error.broken:
                    raise
                log.info("registry request failed, trying again", extra={"url": _shown(url), "attempt": attempt})
            else:
                if response.status not in _RETRY_STATUSES or response.status in accept or attempt == tries:
                    return response
                pause = _retry_after(response.headers.get("Retry-After"), pause)
                log.info("registry is busy, trying again", extra={"url": _shown(url), "status": response.status})
                with response:
                    pass
            self.sleep(pause, cancel)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def fetch(
        self, endpoint: Endpoint, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        """A small exchange with a token server (see `engine.registry.auth.Fetch`).

        A realm without TLS is given credentials only where plain HTTP is allowed.
        """
        parts = urlsplit(url)
        insecure = not endpoint.verify and parts.hostname == urlsplit(endpoint.url).hostname
        if parts.scheme == "http" and not insecure and not is_insecure(parts.netloc, self.options.insecure):
            raise RegistryError(f"refusing to send credentials to {parts.netloc} without TLS")
        target = Endpoint(f"{parts.scheme}://{parts.netloc}", verify=not insecure and endpoint.verify)
        with self.request(method, url, endpoint=target, headers=headers, body=body) as response:
            return response.status, response.read(1024 * 1024)

    # -- one attempt -------------------------------------------------------------------------------------------

    def _follow(
        self,
        method: str,
        url: str,
        endpoint: Endpoint,
        headers: dict[str, str],
        body: bytes | Readable | None,
        cancel: Cancel | None,
    ) -> Response:
        headers.setdefault("User-Agent", self._user_agent)
        home = _origin(endpoint.url)
        for _ in range(_REDIRECTS + 1):
            if _origin(url) != home:
                headers.pop("Authorization", None)
            response = self._send(method, url, endpoint, headers, body, cancel)
            location = response.headers.get("Location")
            if method not in ("GET", "HEAD") or response.status not in _REDIRECT_STATUSES or not location:
                return response
            with response:
                following = urljoin(url, location)
            self._check_redirect(url, following)
            if _origin(following) != _origin(url):
                headers.pop("Authorization", None)
            url = following
        raise RegistryError(f'{method.title()} "{_shown(url)}": stopped after {_REDIRECTS} redirects')

    def _check_redirect(self, url: str, following: str) -> None:
        before, after = urlsplit(url), urlsplit(following)
        if after.scheme not in ("http", "https") or not after.netloc:
            raise RegistryError(f'Get "{_shown(url)}": redirect to an unsupported address')
        if (before.scheme, after.scheme) == ("https", "http") and not is_insecure(after.netloc, self.options.insecure):
            raise RegistryError(f'Get "{_shown(url)}": refusing to follow a redirect from https to http')

    def _send(
        self,
        method: str,
        url: str,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        body: bytes | Readable | None,
        cancel: Cancel | None,
    ) -> Response:
        parts = urlsplit(url)
        same_host = parts.hostname == urlsplit(endpoint.url).hostname
        verify = endpoint.verify if same_host else not is_insecure(parts.netloc, self.options.insecure)
        pool = self._pool(parts.scheme, parts.netloc, verify)
        with _translated(method, url):
            raw = pool.request(
                method,
                url,
                body=body,  # type: ignore[arg-type]
                headers=dict(headers),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        return Response(raw, url, cancel)

    def _pool(self, scheme: str, host: str, verify: bool) -> urllib3.PoolManager:
        with self._lock:
            pool = self._pools.get((scheme, host, verify))
            if pool is None:
                pool = self._pools[scheme, host, verify] = self._new_pool(scheme, host, verify)
            return pool

    def _new_pool(self, scheme: str, host: str, verify: bool) -> urllib3.PoolManager:
        import urllib3

        logging.getLogger("urllib3").setLevel(logging.WARNING)  # below that it logs queries, which carry signatures
        settings: dict[str, Any] = {
            "num_pools": 4,
            "maxsize": 8,
            "blocksize": BLOCK,
            "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=_STALL_SECONDS),
        }
        if not verify:  # decided by the rules of `endpoints`, which is where users read about it
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        if scheme == "https":
            settings["ssl_context"] = self._tls(host, verify)
        proxy = self.options.https_proxy if scheme == "https" else self.options.http_proxy
        if proxy and not _bypasses_proxy(host, self.options.no_proxy):
            credentials = urllib3.util.parse_url(proxy).auth
            proxy_headers = urllib3.make_headers(proxy_basic_auth=credentials) if credentials else None
            return urllib3.ProxyManager(proxy, proxy_headers=proxy_headers, **settings)
        return urllib3.PoolManager(**settings)

    def _tls(self, host: str, verify: bool) -> ssl.SSLContext:
        """The context for a host: the system's CAs and those of certs.d, and the client certificates kept there."""
        import ssl

        if verify:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        folder = self.options.certificates / host
        if not folder.is_dir():
            return context
        try:
            for path in sorted(folder.iterdir()):
                if path.suffix == ".crt":
                    context.load_verify_locations(path)
                elif path.suffix == ".cert":
                    key = path.with_suffix(".key")
                    if not key.exists():
                        raise RegistryError(f"missing key {key.name} for client certificate {path.name}")
                    context.load_cert_chain(path, key)
        except (OSError, ssl.SSLError) as error:
            raise RegistryError(f"cannot use the certificates in {folder}: {error}") from error
        return context


@contextmanager
def _translated(method: str, url: str) -> Iterator[None]:
    """Turn urllib3's exceptions into what Go's HTTP client says for the same trouble."""
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (HTTPError, OSError) as error:
        chain = list(_causes(error))
        refusal = _refusal(chain, url)
        reason = refusal or _breakage(chain)
        raise RegistryError(f'{method.title()} "{_shown(url)}": {reason}', broken=not refusal) from error


def _refusal(chain: list[BaseException], url: str) -> str:
    """Why there is no connection at all, which does not change within seconds; '' when there was one."""
    import ssl

    from urllib3.exceptions import ConnectTimeoutError

    parts = urlsplit(url)
    address = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    for cause in chain:
        if isinstance(cause, socket.gaierror):
            temporary = cause.errno == socket.EAI_AGAIN
            why = "Temporary failure in name resolution" if temporary else "no such host"
            return f"dial tcp: lookup {parts.hostname}: {why}"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"tls: failed to verify certificate: x509: {_CERTIFICATE.get(cause.verify_code, _UNKNOWN_AUTHORITY)}"
        if isinstance(cause, ssl.SSLError):
            if cause.reason in _NOT_TLS:
                return "http: server gave HTTP response to HTTPS client"
            return f"remote error: tls: {(cause.reason or 'handshake failure').lower().replace('_', ' ')}"
        if isinstance(cause, OSError) and cause.errno in _CONNECT_ERRORS:
            return f"dial tcp {address}: connect: {_CONNECT_ERRORS[cause.errno]}"
    timed_out = any(isinstance(cause, ConnectTimeoutError) for cause in chain)
    return f"dial tcp {address}: i/o timeout" if timed_out else ""


def _breakage(chain: list[BaseException]) -> str:
    from urllib3.exceptions import IncompleteRead, ReadTimeoutError

    for cause in chain:
        if isinstance(cause, ReadTimeoutError | TimeoutError):
            return "net/http: timeout awaiting response headers"
        if isinstance(cause, IncompleteRead):
            return "unexpected EOF"
        if isinstance(cause, ConnectionResetError | BrokenPipeError):
            return "connection reset by peer"
    return "EOF"


_UNKNOWN_AUTHORITY = "certificate signed by unknown authority"
# OpenSSL's X509_V_ERR_* numbers.
_CERTIFICATE = {
    9: "certificate has expired or is not yet valid",
    10: "certificate has expired or is not yet valid",
    62: "certificate is valid for other names, not for this host",
    64: "certificate is valid for other names, not for this host",
}
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
_CONNECT_ERRORS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENETUNREACH: "network is unreachable",
    errno.EHOSTUNREACH: "no route to host",
}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        nested = [argument for argument in error.args if isinstance(argument, BaseException)]
        error = error.__cause__ or error.__context__ or (nested[0] if nested else None)


def back_off(attempt: int) -> float:
    """Seconds to wait after the so-manieth failure: doubling from half a second, with jitter."""
    base: float = 0.5 * 2 ** (attempt - 1)
    return min(base * random.uniform(0.8, 1.2), _LONGEST_WAIT)  # noqa: S311  spreads clients, hides nothing


def _retry_after(value: str | None, fallback: float) -> float:
    if not value:
        return fallback
    if value.strip().isdigit():
        return min(float(value), _LONGEST_WAIT)
    try:
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return fallback
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _bypasses_proxy(host: str, no_proxy: str) -> bool:
    name = (urlsplit(f"//{host}").hostname or host).lower()
    if is_insecure(name, ()):  # loopback never goes through a proxy, as in Go
        return True
    for entry in (item.strip().lower() for item in no_proxy.split(",")):
        if entry == "*" or entry in (name, host) or (entry and name.endswith("." + entry.removeprefix("."))):
            return True
        if "/" in entry and is_insecure(name, (entry,)):
            return True
    return False


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _shown(url: str) -> str:
    """The URL without user information and query (signed URLs carry secrets there)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def raise_for(response: Response, *, insufficient_scope: bool = False) -> None:
    """Raise what the registry's error answer says; the body is read (bounded) and the connection freed."""
    with response:
        body = b"" if insufficient_scope else _bounded(response)
    raise from_response(response.status, body, insufficient_scope=insufficient_scope)


def _bounded(response: Response) -> bytes:
    try:
        return response.read(_ERROR_BODY)
    except RegistryError:
        return b""
