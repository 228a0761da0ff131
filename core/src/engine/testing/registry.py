"""A registry in this process, small and obedient, for tests of whatever talks to registries: it fails on request.

    with FakeRegistry() as registry:
        registry.add_image("app", "latest", [layer_tar])
        registry.fault("GET", "/blobs/", answer(503, {"Retry-After": "0"}), times=2)
        ...
        assert registry.count("GET", "/blobs/") == 3

It keeps everything in memory, listens on 127.0.0.1 and records every request it got.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["Asked", "FakeRegistry", "answer", "break_after", "redirect"]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Fault = Callable[["_Handler"], bool]
"""Deals with a request instead of the registry; False lets the registry answer after all."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]


def answer(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Fault:
    """Answer this, whatever was asked."""

    def fault(handler: _Handler) -> bool:
        handler.drain()
        handler.reply(status, body, dict(headers or {}))
        return True

    return fault


def redirect(location: Callable[[str], str] | str, status: int = 307) -> Fault:
    """Send the client elsewhere; a callable is given the path asked for."""

    def fault(handler: _Handler) -> bool:
        target = location if isinstance(location, str) else location(handler.path)
        handler.reply(status, b"", {"Location": target})
        return True

    return fault


def break_after(size: int) -> Fault:
    """Send ``size`` bytes of the blob that was asked for and cut the connection."""

    def fault(handler: _Handler) -> bool:
        handler.cut_after = size
        return False

    return fault


@dataclass(slots=True)
class _Fault:
    method: str
    path: str
    act: Fault
    times: int


@dataclass(slots=True)
class _Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)


class FakeRegistry:
    """``auth`` is '' (open), 'basic' or 'bearer'; credentials are user ``admin`` with password ``secret``."""

    user, password = "admin", "secret"

    def __init__(self, auth: str = "") -> None:
        self.auth = auth
        self.asked: list[Asked] = []
        self.repositories: dict[str, _Repository] = {}
        self.tokens: set[str] = set()
        self.monolithic = True
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.registry = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        """``127.0.0.1:<port>``."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def fault(self, method: str, path: str, act: Fault, times: int = 1) -> None:
        """Let ``act`` deal with the next ``times`` requests whose path contains the regular expression ``path``."""
        with self._lock:
            self._faults.append(_Fault(method, path, act, times))

    def count(self, method: str, path: str = "") -> int:
        """How often it was asked."""
        return sum(1 for asked in self.asked if asked.method == method and re.search(path, asked.path))

    def repository(self, name: str) -> _Repository:
        """A repository, made when it is not there."""
        return self.repositories.setdefault(name, _Repository())

    def add_blob(self, name: str, data: bytes) -> str:
        """Store a blob; its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.repository(name).blobs[digest] = data
        return digest

    def add_manifest(self, name: str, tag: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Store a manifest or index under its digest and, unless '', ``tag``; its descriptor."""
        raw = json.dumps(document).encode()
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        entry = (document["mediaType"], raw)
        for key in (digest, tag):
            if key:
                self.repository(name).manifests[key] = entry
        return {"mediaType": document["mediaType"], "digest": digest, "size": len(raw)}

    def add_image(
        self,
        name: str,
        tag: str,
        layers: Sequence[bytes],
        *,
        os: str = "linux",
        architecture: str = "amd64",
        config: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Store an image of tar layers (gzipped here); the descriptor of its manifest."""
        body = {
            "os": os,
            "architecture": architecture,
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in layers]},
        }
        raw = json.dumps(body).encode()
        blobs = [gzip.compress(tar, 1, mtime=0) for tar in layers]
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": self.add_blob(name, raw), "size": len(raw)},
            "layers": [
                {"mediaType": OCI_LAYER, "digest": self.add_blob(name, blob), "size": len(blob)} for blob in blobs
            ],
        }
        return self.add_manifest(name, tag, document)

    def add_index(self, name: str, tag: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Store an index of manifest descriptors by platform (``linux/amd64``)."""
        manifests = []
        for platform, descriptor in entries.items():
            parts = platform.split("/")
            shown = dict(zip(("os", "architecture", "variant"), parts, strict=False))
            manifests.append({**descriptor, "platform": shown})
        return self.add_manifest(name, tag, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})

    def _take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault.act
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024  # head and body in one segment
    disable_nagle_algorithm = True
    cut_after: int | None = None

    @property
    def registry(self) -> FakeRegistry:
        return self.server.registry  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError):
            pass

    def finish(self) -> None:
        try:
            super().finish()
        except ConnectionError:
            pass

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Answer; a HEAD gets the length only."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None:
            self.wfile.write(body[: self.cut_after])
            self.wfile.flush()
            self.cut_after = None
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)

    def drain(self) -> bytes:
        """The request's body."""
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length) if length else b""

    def refuse(self, status: int, code: str, text: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer an error in the protocol's form."""
        body = json.dumps({"errors": [{"code": code, "message": text, "detail": {}}]}).encode()
        self.reply(status, body, {"Content-Type": "application/json", **(headers or {})})

    def _serve(self) -> None:
        self.registry.asked.append(Asked(self.command, self.path, dict(self.headers.items())))
        fault = self.registry._take_fault(self.command, self.path)
        if fault and fault(self):
            return
        path = urlsplit(self.path).path
        if path == "/token":
            self._token()
        elif not self._authorized(path):
            self.drain()
        elif path == "/v2/":
            self.reply(200, b"{}")
        elif found := re.fullmatch(r"/v2/(.+)/(manifests|blobs|tags)/(.*)", path):
            name, kind, rest = found.groups()
            getattr(self, f"_{kind}")(name, rest)
        else:
            self.drain()
            self.reply(404, b"page not found")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _serve

    # -- who is asking ---------------------------------------------------------------------------------------------

    def _authorized(self, path: str) -> bool:
        registry, given = self.registry, self.headers.get("Authorization", "")
        if registry.auth == "basic":
            if given == self._basic():
                return True
            self.refuse(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": 'Basic realm="fake"'})
            return False
        if registry.auth == "bearer" and given.removeprefix("Bearer ") not in registry.tokens:
            challenge = f'Bearer realm="http://{registry.host}/token",service="fake"'
            self.refuse(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
            return False
        return True

    def _basic(self) -> str:
        pair = f"{self.registry.user}:{self.registry.password}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    def _token(self) -> None:
        body = parse_qs(self.drain().decode())
        refresh = body.get("refresh_token", [""])[0]
        given = self.headers.get("Authorization", "")
        if refresh not in ("", "refresh-me") or given not in ("", self._basic()):
            details = json.dumps({"details": "incorrect username or password"}).encode()
            self.reply(401, details, {"Content-Type": "application/json"})
            return
        token = secrets.token_hex(8)
        self.registry.tokens.add(token)
        shown = {"token": token, "expires_in": 300, "refresh_token": "refresh-me"}
        self.reply(200, json.dumps(shown).encode(), {"Content-Type": "application/json"})

    # -- resources -------------------------------------------------------------------------------------------------

    def _manifests(self, name: str, reference: str) -> None:
        repository = self.registry.repository(name)
        body = self.drain()
        if self.command == "PUT":
            digest = "sha256:" + hashlib.sha256(body).hexdigest()
            for key in (reference, digest):
                repository.manifests[key] = (self.headers["Content-Type"], body)
            self.reply(201, b"", {"Docker-Content-Digest": digest})
            return
        if reference not in repository.manifests:
            self.refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        kind, raw = repository.manifests[reference]
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        headers = {"Content-Type": kind, "Docker-Content-Digest": digest, "Content-Length": str(len(raw))}
        self.reply(200, raw, headers)

    def _tags(self, name: str, rest: str) -> None:
        tags = sorted(key for key in self.registry.repository(name).manifests if ":" not in key)
        query = parse_qs(urlsplit(self.path).query)
        last = query.get("last", [""])[0]
        page = [tag for tag in tags if tag > last][:2]
        headers = {"Content-Type": "application/json"}
        if page and page[-1] != tags[-1]:
            headers["Link"] = f'</v2/{name}/tags/list?n=2&last={page[-1]}>; rel="next"'
        self.reply(200, json.dumps({"name": name, "tags": page}).encode(), headers)

    def _blobs(self, name: str, rest: str) -> None:
        repository = self.registry.repository(name)
        if rest.startswith("uploads/"):
            self._upload(name, repository, rest.removeprefix("uploads/"))
            return
        data = repository.blobs.get(rest)
        if data is None:
            self.refuse(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span:
            self.reply(200, data, {"Content-Length": str(len(data))})
            return
        start = int(span[1])
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.reply(206, data[start:], headers)

    def _upload(self, name: str, repository: _Repository, upload: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        body = self.drain()
        if self.command == "POST":
            mount, source = query.get("mount", [""])[0], query.get("from", [""])[0]
            if mount and mount in self.registry.repository(source).blobs:
                repository.blobs[mount] = self.registry.repository(source).blobs[mount]
                self.reply(201, b"", {"Location": f"/v2/{name}/blobs/{mount}"})
                return
            upload = secrets.token_hex(4)
            repository.uploads[upload] = bytearray()
            self.reply(202, b"", {"Location": f"/v2/{name}/blobs/uploads/{upload}?_state=x"})
            return
        if upload not in repository.uploads:
            self.refuse(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        elif self.command == "PATCH":
            repository.uploads[upload] += body
            self.reply(202, b"", {"Location": f"/v2/{name}/blobs/uploads/{upload}?_state=y"})
        elif body and not self.registry.monolithic:
            self.refuse(413, "SIZE_INVALID", "too large")
        else:
            data = bytes(repository.uploads.pop(upload) + body)
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            if query.get("digest") != [digest]:
                self.refuse(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
                return
            repository.blobs[digest] = data
            self.reply(201, b"", {"Docker-Content-Digest": digest})
