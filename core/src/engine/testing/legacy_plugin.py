"""A volume plugin of Docker's legacy protocol; ``python -m engine.testing.legacy_plugin SOCKET ROOT`` runs it.

Volumes are directories below ROOT. The option ``fail`` makes Create fail with its value; ``hang`` makes Mount wait for
that many seconds. What was called is appended to ``ROOT/calls``.
"""

from __future__ import annotations

import json
import os
import shutil
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

__all__ = ["serve"]


class Handler(BaseHTTPRequestHandler):
    """Answers from files below ``root``; nothing is kept in memory."""

    root: Path

    def address_string(self) -> str:
        """Unix sockets have none."""
        return "unix"

    def log_message(self, *args: object) -> None:
        """Tests are told by what was called, not by a log."""

    def do_POST(self) -> None:
        """One call of the protocol."""
        length = int(self.headers.get("Content-Length") or 0)
        question = json.loads(self.rfile.read(length) or b"{}")
        method = self.path.removeprefix("/")
        with open(self.root / "calls", "a") as calls:
            calls.write(json.dumps([method, question]) + "\n")
        answer = self.answer(method, question)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.plugins.v1.1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, method: str, question: dict[str, Any]) -> dict[str, Any]:
        """What the protocol says to ``method``."""
        if method == "Plugin.Activate":
            return {"Implements": ["VolumeDriver"]}
        name = question.get("Name", "")
        place = self.root / f"volume-{name}"
        if method == "VolumeDriver.Capabilities":
            return {"Capabilities": {"Scope": "global"}}
        if method == "VolumeDriver.List":
            return {"Volumes": [self.shown(path) for path in sorted(self.root.glob("volume-*"))], "Err": ""}
        if method == "VolumeDriver.Create":
            options = question.get("Opts") or {}
            if "fail" in options:
                return {"Err": options["fail"]}
            place.mkdir(exist_ok=True)
            (self.root / f"options-{name}").write_text(json.dumps(options))
            return {"Err": ""}
        if not place.is_dir():
            return {"Err": f"there is no volume {name}"}
        if method == "VolumeDriver.Get":
            return {"Volume": self.shown(place), "Err": ""}
        if method == "VolumeDriver.Mount":
            time.sleep(float(json.loads((self.root / f"options-{name}").read_text()).get("hang", 0)))
            return {"Mountpoint": str(place), "Err": ""}
        if method == "VolumeDriver.Remove":
            shutil.rmtree(place)
        return {"Mountpoint": str(place), "Err": ""}

    def shown(self, place: Path) -> dict[str, Any]:
        """A volume as ``Get`` and ``List`` tell it."""
        return {
            "Name": place.name.removeprefix("volume-"),
            "Mountpoint": str(place),
            "CreatedAt": "2026-01-01T00:00:00Z",
            "Status": {"kind": "test", "blocks": 7},
        }


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on a unix socket; a thread for each call."""

    daemon_threads = True


def serve(address: str, root: Path) -> Server:
    """A server that listens; the caller runs it."""
    handler = type("Bound", (Handler,), {"root": root})
    return Server(address, handler)


if __name__ == "__main__":
    if os.path.exists(sys.argv[1]):
        os.unlink(sys.argv[1])
    serve(sys.argv[1], Path(sys.argv[2])).serve_forever()
