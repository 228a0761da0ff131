"""A tiny daemon on a unix socket that answers create calls and remembers their bodies."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from pathlib import Path
from typing import Any


class Recorder(socketserver.ThreadingUnixStreamServer):
    """Collects (path, body) of each request; ``answers`` maps (method, path without query) to (status, value)."""

    daemon_threads = True

    def __init__(self, path: Path, answers: dict[tuple[str, str], tuple[int, Any]] | None = None) -> None:
        super().__init__(str(path), Handler)
        self.host = f"unix://{path}"
        self.requests: list[tuple[str, str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self.answers = {
            ("GET", "/_ping"): (200, "OK"),
            ("HEAD", "/_ping"): (200, "OK"),
            ("POST", "/containers/create"): (201, {"Id": "ab" * 32, "Warnings": []}),
            **(answers or {}),
        }
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is no error here; the default would print into the test's output."""

    @property
    def body(self) -> Any:
        """The body of the last request that had one."""
        return next(body for _, _, body in reversed(self.requests) if body is not None)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Recorder

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        return

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        path = self.path
        if path.startswith("/v1."):
            path = "/" + path.split("/", 2)[2]
        body = json.loads(raw) if raw.strip() else None
        self.server.requests.append((self.command, path, body))
        self.server.heads.append({key.lower(): value for key, value in self.headers.items()})
        missing = (404, {"message": f"page not found: {path}"})
        status, value = self.server.answers.get((self.command, path.partition("?")[0]), missing)
        text = value if isinstance(value, (bytes, str)) else json.dumps(value)
        payload = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        self.send_header("Api-Version", "1.50")
        self.send_header("OSType", "linux")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT = _answer
