"""The HTTP side of the registry: the OCI distribution-spec (1.1), with Docker's headers.

One thread a connection; bodies are streamed to and from files, so memory does not grow with blobs.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from engine.errors import Conflict, EngineError, InvalidParameter, NotFound, TooLarge
from engine_registry.storage import MANIFEST_LIMIT, Storage

__all__ = ["RegistryServer"]

log = logging.getLogger(__name__)

_INDEX = "application/vnd.oci.image.index.v1+json"
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>blobs/uploads|blobs|manifests|tags|referrers)/(?P<rest>[^/]*)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d+)-(\d+)(?:/.*)?")


class RegistryServer(ThreadingHTTPServer):
    """Serves ``storage`` at ``address`` (``host:port``; port 0 takes a free one), with TLS given a certificate."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, storage: Storage, address: str, *, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        host, _, port = address.rpartition(":")
        self.storage = storage
        self.context: ssl.SSLContext | None = None
        if certificate is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate, key)
        super().__init__((host.strip("[]") or "127.0.0.1", int(port)), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Speak TLS first, on the connection's own thread."""
        if self.context is not None:
            request.settimeout(30)
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is nothing to report."""
        log.debug("a connection broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "engine-registry"
    timeout = 120
    server: RegistryServer

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: the daemon's log is no access log."""

    def do_GET(self) -> None:
        """GET and, without the body, HEAD."""
        self._dispatch()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    # -- requests ---------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        self._left = _body_reader(self.rfile, self.headers)
        try:
            self._route()
        except EngineError as error:
            status, code = _explained(error, self.path)
            self._json(status, {"errors": [{"code": code, "message": str(error), "detail": None}]})
        except OSError as error:
            log.error("the registry cannot use its disk", exc_info=error)
            self._json(500, {"errors": [{"code": "UNKNOWN", "message": error.strerror or "I/O error", "detail": None}]})

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path in ("/v2", "/v2/"):
            self._json(200, {})
            return
        if url.path == "/v2/_catalog":
            self._page("repositories", self.server.storage.repositories(), {})
            return
        match = _PATH.fullmatch(url.path if not url.path.endswith("/blobs/uploads") else url.path + "/")
        verb = "GET" if self.command == "HEAD" else self.command
        handler: Callable[[str, str], None] | None = None
        if match is not None:
            handler = getattr(self, f"_{verb.lower()}_{match['kind'].replace('blobs/uploads', 'upload')}", None)
        if match is None or handler is None:
            self._json(405 if match else 404, {"errors": [{"code": "UNSUPPORTED", "message": "unsupported"}]})
            return
        handler(match["name"], match["rest"])

    def _get_blobs(self, name: str, digest: str) -> None:
        path = self.server.storage.blob(name, digest)
        size = path.stat().st_size
        start, end, status = 0, size, 200
        if wanted := _RANGE.fullmatch(self.headers.get("Range", "")):
            start, end = int(wanted[1]), min(int(wanted[2] or size) + 1, size)
            status = 206
            if start >= size or end <= start:
                self._empty(416, {"Content-Range": f"bytes */{size}"})
                return
        headers = {"Docker-Content-Digest": digest, "Accept-Ranges": "bytes", "ETag": f'"{digest}"'}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(status, end - start, "application/octet-stream", headers)
        if self.command == "GET":
            self.wfile.flush()
            with path.open("rb") as file:
                self.connection.sendfile(file, start, end - start)

    def _delete_blobs(self, name: str, digest: str) -> None:
        self.server.storage.delete_blob(name, digest)
        self._empty(202, {"Docker-Content-Digest": digest})

    def _get_manifests(self, name: str, reference: str) -> None:
        digest, media_type, data = self.server.storage.manifest(name, reference)
        self._head(200, len(data), media_type, {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'})
        if self.command == "GET":
            self.wfile.write(data)

    def _put_manifests(self, name: str, reference: str) -> None:
        data = b""
        while len(data) <= MANIFEST_LIMIT and (part := self._left(1 << 20)):
            data += part
        media_type = self.headers.get("Content-Type", "").partition(";")[0].strip()
        digest, subject = self.server.storage.put_manifest(name, reference, media_type, data)
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        if subject:
            headers["OCI-Subject"] = subject
        self._empty(201, headers)

    def _delete_manifests(self, name: str, reference: str) -> None:
        self.server.storage.delete_manifest(name, reference)
        self._empty(202, {})

    def _get_tags(self, name: str, rest: str) -> None:
        if rest != "list":
            raise NotFound("page not found")
        self._page("tags", self.server.storage.tags(name), {"name": name})

    def _get_referrers(self, name: str, digest: str) -> None:
        found = self.server.storage.referrers(name, digest)
        headers = {}
        if wanted := self.query.get("artifactType"):
            found = [entry for entry in found if entry.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        self._json(200, {"schemaVersion": 2, "mediaType": _INDEX, "manifests": found}, headers, _INDEX)

    def _post_upload(self, name: str, rest: str) -> None:
        storage = self.server.storage
        storage.repository(name)
        digest = self.query.get("digest") or self.query.get("mount") or ""
        if "mount" in self.query and storage.mount(name, digest, self.query.get("from", "")):
            self._created(name, digest)
            return
        upload = storage.begin()
        if "digest" in self.query:
            storage.append(upload, self._left)
            storage.finish(name, upload, digest)
            self._created(name, digest)
            return
        self._progress(202, name, upload, 0)

    def _get_upload(self, name: str, upload: str) -> None:
        self._progress(204, name, upload, self.server.storage.offset(upload))

    def _patch_upload(self, name: str, upload: str) -> None:
        size = self.server.storage.append(upload, self._left, self._start())
        self._progress(202, name, upload, size)

    def _put_upload(self, name: str, upload: str) -> None:
        storage = self.server.storage
        storage.append(upload, self._left, self._start())
        storage.finish(name, upload, self.query.get("digest", ""))
        self._created(name, self.query["digest"])

    def _delete_upload(self, name: str, upload: str) -> None:
        self.server.storage.cancel(upload)
        self._empty(204, {})

    def _start(self) -> int | None:
        text = self.headers.get("Content-Range")
        if text is None:
            return None
        match = _CONTENT_RANGE.fullmatch(text)
        if match is None:
            raise InvalidParameter(f"invalid Content-Range {text!r}")
        return int(match[1])

    # -- answers ----------------------------------------------------------------------------------------------

    def _created(self, name: str, digest: str) -> None:
        self._empty(201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    def _progress(self, status: int, name: str, upload: str, size: int) -> None:
        headers = {"Location": f"/v2/{name}/blobs/uploads/{upload}", "Docker-Upload-UUID": upload}
        self._empty(status, {**headers, "Range": f"0-{max(0, size - 1)}"})

    def _page(self, key: str, items: list[str], more: Mapping[str, Any]) -> None:
        """A list, from ``last`` on and ``n`` entries long, with a link to the next page."""
        if last := self.query.get("last"):
            items = [item for item in items if item > last]
        headers = {}
        if "n" in self.query:
            if not self.query["n"].isdigit():
                raise InvalidParameter("n must be a number")
            count = int(self.query["n"])
            if len(items) > count > 0:
                path = urlsplit(self.path).path
                headers["Link"] = f'<{path}?n={count}&last={quote(items[count - 1], safe="")}>; rel="next"'
            items = items[:count]
        self._json(200, {**more, key: items}, headers)

    def _json(
        self, status: int, body: object, headers: Mapping[str, str] = {}, media_type: str = "application/json"
    ) -> None:
        data = json.dumps(body).encode()
        self._head(status, len(data), media_type, headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def _empty(self, status: int, headers: Mapping[str, str]) -> None:
        self._head(status, None if status == 204 else 0, "", headers)

    def _head(self, status: int, length: int | None, media_type: str, headers: Mapping[str, str]) -> None:
        while self._left(1 << 20):  # what is left of the body would be taken for the next request
            pass
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        if media_type:
            self.send_header("Content-Type", media_type)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def _explained(error: EngineError, path: str) -> tuple[int, str]:
    """Status and the specification's code of an error."""
    upload, manifest = "/uploads/" in path, "/manifests/" in path
    text = str(error)
    if isinstance(error, NotFound):
        if text.startswith("manifest blob"):
            return 400, "MANIFEST_BLOB_UNKNOWN"
        if text.startswith("repository name"):
            return 404, "NAME_UNKNOWN"
        return 404, "BLOB_UPLOAD_UNKNOWN" if upload else "MANIFEST_UNKNOWN" if manifest else "BLOB_UNKNOWN"
    if isinstance(error, TooLarge):
        return 413, "SIZE_INVALID"
    if isinstance(error, Conflict):
        return 416, "BLOB_UPLOAD_INVALID"
    if isinstance(error, InvalidParameter):
        if "repository name" in text:
            return 400, "NAME_INVALID"
        return 400, "DIGEST_INVALID" if "digest" in text else "MANIFEST_INVALID" if manifest else "BLOB_UPLOAD_INVALID"
    return error.http_status, "UNKNOWN"


def _body_reader(file: Any, headers: Message) -> Callable[[int], bytes]:
    """Reads of the request's body, whose length is said or which comes in chunks; empty at its end."""
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return _Chunked(file).read
    left = int(headers.get("Content-Length") or 0)

    def read(count: int) -> bytes:
        nonlocal left
        data: bytes = file.read(min(count, left)) if left else b""
        if left and not data:
            left = 0
            raise InvalidParameter("unexpected EOF")
        left -= len(data)
        return data

    return read


class _Chunked:
    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = 0
        self._ended = False

    def read(self, count: int) -> bytes:
        if not self._left and not self._ended:
            line = self._file.readline(1024)
            try:
                self._left = int(line.split(b";")[0], 16)
            except ValueError:
                self._ended = True
                raise InvalidParameter("malformed chunked encoding") from None
            if not self._left:
                self._ended = True
                while self._file.readline(1 << 16) not in (b"\r\n", b"\n", b""):
                    pass
        if self._ended:
            return b""
        data: bytes = self._file.read(min(count, self._left))
        if not data:
            self._ended = True
            raise InvalidParameter("unexpected EOF")
        self._left -= len(data)
        if not self._left:
            self._file.readline(16)
        return data
