"""`Registries`, the daemon's one client, and `Repository`, one repository at one endpoint with one user's credentials.

Everything blocks, so it belongs on worker threads; all of it is safe to use from several at once.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO, TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec

from engine.errors import EngineError, InvalidParameter, Unauthorized
from engine.model.image import Descriptor
from engine.names import Reference, is_sha256
from engine.registry.auth import ANONYMOUS, Challenge, RegistryAuth, Tokens, parse_challenges, request_token
from engine.registry.endpoints import DOCKER_HUB, Endpoint, RegistryOptions, endpoints
from engine.registry.errors import RegistryError, describe_status, from_response
from engine.registry.manifests import ACCEPT, MANIFEST_LIMIT, Manifest, parse
from engine.registry.transport import Cancel, Response, Transport, back_off, raise_for

if TYPE_CHECKING:
    pass

__all__ = ["Registries", "Repository"]

log = logging.getLogger(__name__)

PULL, PUSH = "pull", "pull,push"
_CHUNK = 16 * 1024 * 1024
_TAG_PAGES = 1000
_CONTACT_SECONDS = 300.0
# Answers to a monolithic upload that mean "send it in chunks".
_CHUNK_PLEASE = frozenset({405, 411, 413, 416, 501})


@dataclass(frozen=True, slots=True)
class _Contact:
    """An endpoint that answered at ``time`` (monotonic), and what it asks for."""

    endpoint: Endpoint
    challenges: tuple[Challenge, ...]
    time: float


class Registries:
    """Opens repositories; keeps connections, tokens and what is known of endpoints for the daemon's life."""

    def __init__(
        self,
        options: RegistryOptions | None = None,
        *,
        user_agent: str = "engine",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.options = options or RegistryOptions()
        self.transport = Transport(self.options, user_agent, sleep)
        self.tokens = Tokens()
        self._lock = threading.Lock()
        self._contacts: dict[Endpoint, _Contact] = {}

    def close(self) -> None:
        """Close idle connections."""
        self.transport.close()

    def open(
        self,
        reference: Reference,
        auth: RegistryAuth = ANONYMOUS,
        *,
        push: bool = False,
        cancel: Cancel | None = None,
    ) -> Iterator[Repository]:
        """The repository of ``reference`` at each endpoint that answers, best first.

        Lazy: take the first, and go on only when that one cannot serve (a mirror without the image). Raises the last
        endpoint's error when none answers. Mirrors are never given credentials meant for the registry itself.
        """
        failure: RegistryError | None = None
        answered = False
        places = endpoints(reference.domain, self.options, push=push)
        plain = [place for place in places if not place.mirror and place.url.startswith("http://")]
        if any(self._known(place) for place in plain):  # it had no TLS a moment ago
            places = plain
        for endpoint in places:
            if answered and not endpoint.mirror and endpoint.url.startswith("http://"):
                return  # HTTPS works: plain HTTP is no alternative
            try:
                contact = self._contact(endpoint, cancel)
            except RegistryError as error:
                log.debug("registry endpoint does not answer", extra={"endpoint": endpoint.url})
                failure = error
                continue
            answered = answered or not endpoint.mirror
            yield Repository(self, contact, reference.path, ANONYMOUS if endpoint.mirror else auth, push, cancel)
        if failure and not answered:
            raise failure

    def get(self, url: str) -> Response:
        """Any http(s) address, anonymously; the caller closes the response. An error status raises."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidParameter(f"unsupported address: {parts.scheme}://{parts.netloc}")
        response = self.transport.request("GET", url, endpoint=Endpoint(f"{parts.scheme}://{parts.netloc}"))
        if response.status != HTTPStatus.OK:
            response.close()
            raise RegistryError(
                f"failed to GET {parts.scheme}://{parts.netloc}{parts.path} with status "
                f"{describe_status(response.status)}",
                status=response.status,
            )
        return response

    def login(self, auth: RegistryAuth) -> str:
        """Check credentials against their registry; returns the identity (refresh) token, '' when there is none.

        Wrong credentials raise `Unauthorized` in dockerd's words.
        """
        domain = _registry_of(auth.serveraddress)
        failure: EngineError | None = None
        for endpoint in endpoints(domain, self.options, push=True):
            try:
                contact = self._contact(endpoint, None, fresh=True)
                return self._check_login(contact, auth)
            except RegistryError as error:
                failure = error
                if error.code in ("UNAUTHORIZED", "DENIED"):
                    raise Unauthorized(f'Get "{endpoint.url}/v2/": {error}') from error
        assert failure is not None, "every registry has an endpoint"
        raise failure

    def _check_login(self, contact: _Contact, auth: RegistryAuth) -> str:
        ping = f"{contact.endpoint.url}/v2/"
        headers, refresh = {}, ""
        bearer = next((challenge for challenge in contact.challenges if challenge.scheme == "bearer"), None)
        if bearer:

            def fetch(method: str, url: str, sent: Mapping[str, str], body: bytes | None) -> tuple[int, bytes]:
                return self.transport.fetch(contact.endpoint, method, url, sent, body)

            answer = request_token(bearer, "", auth, fetch, offline=True)
            refresh = answer.refresh_token
            headers["Authorization"] = f"Bearer {answer.token or answer.access_token}"
        elif contact.challenges and auth.basic:
            headers["Authorization"] = auth.basic
        with self.transport.request("GET", ping, endpoint=contact.endpoint, headers=headers) as response:
            status = response.status
        if status == 401:
            raise Unauthorized(f"login attempt to {ping} failed with status: {describe_status(status)}")
        if status != 200:
            raise RegistryError(f"login attempt to {ping} failed with status: {describe_status(status)}", status=status)
        return refresh

    def _contact(self, endpoint: Endpoint, cancel: Cancel | None, *, fresh: bool = False) -> _Contact:
        """Ping (``GET /v2/``) an endpoint once and remember what it asked for."""
        known = self._known(endpoint)
        if known and not fresh:
            return known
        url = f"{endpoint.url}/v2/"
        with self.transport.request("GET", url, endpoint=endpoint, cancel=cancel, attempts=2) as response:
            challenges = parse_challenges(response.all("WWW-Authenticate")) if response.status == 401 else []
            status = response.status
        if status >= 500:
            raise RegistryError(
                f'Get "{url}": received unexpected HTTP status: {describe_status(status)}', status=status
            )
        contact = _Contact(endpoint, tuple(challenges), time.monotonic())
        with self._lock:
            self._contacts[endpoint] = contact
        return contact

    def _known(self, endpoint: Endpoint) -> _Contact | None:
        with self._lock:
            contact = self._contacts.get(endpoint)
        return contact if contact and contact.time > time.monotonic() - _CONTACT_SECONDS else None

    def forget(self, endpoint: Endpoint) -> None:
        """Ping again at the next use: the endpoint changed or went away."""
        with self._lock:
            self._contacts.pop(endpoint, None)


def _registry_of(address: str) -> str:
    """The registry a login is for; '' and the historic index URL are Docker Hub."""
    host = urlsplit(address if "://" in address else f"//{address}").netloc
    return DOCKER_HUB if host in ("", "index.docker.io", "docker.io", "registry-1.docker.io") else host


class _Tags(msgspec.Struct):
    name: str = ""
    tags: list[str] | None = None


class Repository:
    """One repository: manifests, blobs, tags. Errors are `RegistryError`s; see `engine.registry.errors.not_found`."""

    def __init__(
        self,
        registries: Registries,
        contact: _Contact,
        path: str,
        auth: RegistryAuth,
        push: bool,
        cancel: Cancel | None,
    ) -> None:
        self.path = path
        self.endpoint = contact.endpoint
        self._registries = registries
        self._transport = registries.transport
        self._challenges = contact.challenges
        self._auth = auth
        self._scopes = [f"repository:{path}:{PUSH if push else PULL}"]
        self._cancel = cancel
        self._base = f"{contact.endpoint.url}/v2/{path}"

    def stopped_by(self, cancel: Cancel) -> Repository:
        """The same repository, whose transfers end with ``cancel``."""
        twin = copy.copy(self)
        twin._scopes = list(self._scopes)
        twin._cancel = cancel
        return twin

    # -- pulling -----------------------------------------------------------------------------------------------

    def head_manifest(self, reference: str) -> Descriptor | None:
        """What a tag or digest stands for, without fetching it; None when the registry does not say it all."""
        url = f"{self._base}/manifests/{reference}"
        with self._request("HEAD", url, headers={"Accept": ACCEPT}) as response:
            digest, length = response.headers.get("Docker-Content-Digest", ""), response.headers.get("Content-Length")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
            if response.status != 200 or not is_sha256(digest) or not (length or "").isdigit() or not kind:
                return None
            return Descriptor(media_type=kind, digest=digest, size=int(length or 0))

    def manifest(self, reference: str) -> Manifest:
        """Fetch a manifest or index by tag or digest; at most 4 MiB, checked against every digest there is."""
        response = self._request("GET", f"{self._base}/manifests/{reference}", headers={"Accept": ACCEPT})
        if response.status != 200:
            raise_for(response)
        with response:
            raw = response.read(MANIFEST_LIMIT)
            kind = response.headers.get("Content-Type", "")
            promised = response.headers.get("Docker-Content-Digest", "")
        digest = reference if ":" in reference else promised if is_sha256(promised) else ""
        return parse(raw, kind, digest)

    def blob(self, descriptor: Descriptor, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from ``offset`` on, resumed by Range when the connection breaks or stalls.

        The size is enforced here, the digest by whoever stores the bytes. Gives up after ``attempts`` tries in a
        row without a single new byte.
        """
        url, position, failures = f"{self._base}/blobs/{descriptor.digest}", offset, 0
        if descriptor.size == offset:
            return
        while True:
            before = position
            try:
                for chunk in self._blob_once(url, descriptor, position):
                    position += len(chunk)
                    yield chunk
                return
            except RegistryError as error:
                failures = failures + 1 if position == before else 1
                if not error.broken or failures >= self._registries.options.attempts:
                    raise
                log.info("download broke, resuming", extra={"digest": descriptor.digest, "offset": position})
                self._transport.sleep(back_off(failures), self._cancel)

    def _blob_once(self, url: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-{descriptor.size - 1}"
        response = self._request("GET", url, headers=headers)
        if response.status not in (200, 206):
            raise_for(response)
        with response:
            # A server that ignores Range starts over; one that answers another range is not to be trusted.
            skip = offset if response.status == 200 else 0
            if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise RegistryError(f"registry answered a wrong range of blob {descriptor.digest}")
            received = offset - skip
            for chunk in response.chunks():
                if self._cancel:
                    self._cancel.check()
                received += len(chunk)
                if received > descriptor.size:
                    raise RegistryError(f"blob {descriptor.digest} is larger than its size of {descriptor.size} bytes")
                if skip:
                    dropped = min(skip, len(chunk))
                    skip, chunk = skip - dropped, chunk[dropped:]
                if chunk:
                    yield chunk
            if received != descriptor.size:
                raise RegistryError(f'Get "{url}": unexpected EOF', broken=True)

    def tags(self) -> list[str]:
        """All tags, following the registry's pages."""
        url, found = f"{self._base}/tags/list", []
        for _ in range(_TAG_PAGES):
            response = self._request("GET", url)
            if response.status != 200:
                raise_for(response)
            with response:
                body = response.read(MANIFEST_LIMIT)
                following = _next_link(response.headers.get("Link", ""))
            try:
                found += msgspec.json.decode(body, type=_Tags).tags or []
            except msgspec.DecodeError as error:
                raise RegistryError("registry answered a tag list that is not JSON") from error
            if not following:
                return found
            url = urljoin(url, following)
        raise RegistryError("registry's tag list does not end")

    # -- pushing -----------------------------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        with self._request("HEAD", f"{self._base}/blobs/{digest}") as response:
            if response.status == 200:
                return True
            if response.status in (404, 405):
                return False
            status = response.status
        if status == 401:
            raise from_response(status, b"", insufficient_scope=True)
        raise from_response(status, b"")

    def mount(self, digest: str, source: str) -> str:
        """Ask for a blob of another repository of this registry: '' when mounted, else where to upload it."""
        self._also_pull_from(source)
        query = urlencode({"mount": digest, "from": source})
        return self._start_upload(f"{self._base}/blobs/uploads/?{query}")

    def upload(
        self,
        descriptor: Descriptor,
        opener: Callable[[], IO[bytes]],
        sent: Callable[[int], None],
        location: str = "",
    ) -> None:
        """Store a blob: in one PUT, or - when the registry or a broken connection asks for it - in chunks.

        ``opener`` gives the bytes from their start, ``sent`` is told how many of them are on their way.
        ``location`` is an upload that `mount` opened.
        """
        chunked, attempts = False, self._registries.options.attempts
        for attempt in range(1, attempts + 1):
            place = location or self._start_upload(f"{self._base}/blobs/uploads/")
            location = ""
            if not place:
                return
            try:
                with opener() as file:
                    watched = _Watched(file, sent, self._cancel)
                    if chunked:
                        self._upload_chunks(place, descriptor, watched)
                        return
                    status = self._upload_whole(place, descriptor, watched)
                if status in (201, 204):
                    return
                chunked = True
            except RegistryError as error:
                if not (error.broken or error.status >= 500 or error.status == 429) or attempt == attempts:
                    raise
                log.info("upload broke, trying again", extra={"digest": descriptor.digest, "attempt": attempt})
                self._transport.sleep(back_off(attempt), self._cancel)
        raise RegistryError(f"registry takes {descriptor.digest} neither whole nor in chunks")

    def put_manifest(self, reference: str, media_type: str, raw: bytes) -> None:
        """Store a manifest or index under a tag or its digest."""
        response = self._request(
            "PUT", f"{self._base}/manifests/{reference}", headers={"Content-Type": media_type}, body=raw
        )
        if response.status not in (200, 201, 202):
            raise_for(response)
        with response:
            pass

    def _start_upload(self, url: str) -> str:
        response = self._request("POST", url, headers={"Content-Length": "0"})
        if response.status not in (201, 202):
            raise_for(response)
        with response:
            location = response.headers.get("Location", "")
            if response.status == 201:
                return ""
        if not location:
            raise RegistryError("registry opened an upload without saying where")
        return urljoin(url, location)

    def _upload_whole(self, place: str, descriptor: Descriptor, file: _Watched) -> int:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor.size)}
        response = self._request("PUT", _with_digest(place, descriptor.digest), headers=headers, file=file)
        if response.status not in (201, 204) and response.status not in _CHUNK_PLEASE:
            raise_for(response)
        with response:
            return response.status

    def _upload_chunks(self, place: str, descriptor: Descriptor, file: _Watched) -> None:
        position = 0
        while position < descriptor.size:
            data = file.read(min(_CHUNK, descriptor.size - position))
            if not data:
                raise RegistryError(f"blob {descriptor.digest} ended after {position} of {descriptor.size} bytes")
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{position}-{position + len(data) - 1}",
            }
            response = self._request("PATCH", place, headers=headers, body=data)
            if response.status not in (202, 204):
                raise_for(response)
            with response:
                place = urljoin(place, response.headers.get("Location") or place)
            position += len(data)
        response = self._request("PUT", _with_digest(place, descriptor.digest), headers={"Content-Length": "0"})
        if response.status not in (201, 204):
            raise_for(response)
        with response:
            pass

    # -- authorisation -----------------------------------------------------------------------------------------

    def _request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        file: _Watched | None = None,
    ) -> Response:
        """Send with credentials; when the registry does not take them, once more with what it now asks for."""
        for again in (False, True):
            sent = dict(headers or {})
            authorization = self._authorization(method, url)
            if authorization:
                sent["Authorization"] = authorization
            try:
                response = self._transport.request(
                    method, url, endpoint=self.endpoint, headers=sent, body=file or body, cancel=self._cancel
                )
            except RegistryError:
                self._registries.forget(self.endpoint)
                raise
            if response.status == HTTPStatus.BAD_REQUEST and self.endpoint.url.startswith("http://"):
                self._registries.forget(self.endpoint)  # it may speak TLS by now
            if response.status != HTTPStatus.UNAUTHORIZED:
                return response
            challenges = parse_challenges(response.all("WWW-Authenticate"))
            if any(challenge.parameters.get("error") == "insufficient_scope" for challenge in challenges):
                raise_for(response, insufficient_scope=True)
            if again or not self._renew(challenges):
                if method == "HEAD":
                    return response
                raise_for(response)
            with response:
                pass
            if file:  # what was read of it is gone: `upload` opens it again
                raise RegistryError(f'{method.title()} "{url}": token expired', broken=True)
        raise AssertionError("unreachable: the second round returns or raises")

    def _authorization(self, method: str, url: str) -> str:
        if self._auth.registrytoken:
            return f"Bearer {self._auth.registrytoken}"
        if not self._challenges:
            return ""
        for challenge in self._challenges:
            if challenge.scheme == "bearer":
                token = self._registries.tokens.get(challenge, self._scope, self._auth, self._fetch)
                return f"Bearer {token}"
            if challenge.scheme == "basic" and self._auth.basic:
                return self._auth.basic
        parts = urlsplit(url)
        raise RegistryError(
            f'{method.title()} "{parts.scheme}://{parts.netloc}{parts.path}": no basic auth credentials', status=401
        )

    def _renew(self, challenges: Sequence[Challenge]) -> bool:
        """Drop the token in use and take over what the registry asks for now; whether that changes anything."""
        dropped = [self._registries.tokens.forget(challenge, self._scope, self._auth) for challenge in self._challenges]
        changed = [challenge.scheme for challenge in challenges] != [held.scheme for held in self._challenges]
        if changed and challenges:
            self._challenges = tuple(challenges)
            self._registries.forget(self.endpoint)
        return any(dropped) or (changed and bool(challenges))

    @property
    def _scope(self) -> str:
        return " ".join(self._scopes)

    def _also_pull_from(self, path: str) -> None:
        scope = f"repository:{path}:{PULL}"
        if scope not in self._scopes:
            self._scopes.append(scope)

    def _fetch(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> tuple[int, bytes]:
        return self._transport.fetch(self.endpoint, method, url, headers, body)


class _Watched:
    """A file being uploaded: tells how far it was read and stops when the transfer is cancelled."""

    def __init__(self, file: IO[bytes], sent: Callable[[int], None], cancel: Cancel | None) -> None:
        self._file, self._sent, self._cancel, self._total = file, sent, cancel, 0

    def read(self, size: int = -1) -> bytes:
        if self._cancel:
            self._cancel.check()
        data = self._file.read(size)
        self._total += len(data)
        self._sent(self._total)
        return data


def _with_digest(place: str, digest: str) -> str:
    return f"{place}{'&' if urlsplit(place).query else '?'}{urlencode({'digest': digest})}"


def _next_link(header: str) -> str:
    """The target of ``Link: <...>; rel="next"``."""
    target, _, relation = header.partition(">")
    return target.lstrip(" <") if "next" in relation else ""
