"""Components that handle HTTP requests: a fresh instance for each request, in the thread that serves it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import wasmtime
import wasmtime.component

from engine_wasm_host import wasi, wasi_http
from engine_wasm_host.command import Loaded, engine
from engine_wasm_host.linking import Host, Linked
from engine_wasm_host.server import HttpConnection, Request, Server, listen
from engine_wasm_host.values import Call, current

__all__ = ["Handler", "load", "serve"]

TICK = 0.1
_HANDLER = "wasi:http/incoming-handler@"
_HOP_BY_HOP = frozenset(("connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"))


def start_clock() -> None:
    """Make deadlines of guests run out."""

    def tick() -> None:
        while True:
            time.sleep(TICK)
            engine.increment_epoch()

    threading.Thread(target=tick, daemon=True).start()


class Handler:
    """A component with an incoming-handler, ready to answer."""

    def __init__(
        self, component: wasmtime.component.Component, exports: list[str], host: Host, *, memory: int, timeout: float
    ) -> None:
        self._linked = Linked(engine, component, host)
        self._interface = next(name for name in exports if name.startswith(_HANDLER))
        self._memory = memory
        self._ticks = max(1, round(timeout / TICK))

    def __call__(self, connection: HttpConnection, request: Request, extra: Mapping[str, str] | None = None) -> None:
        """Answer. What goes wrong in the guest is in the container's log."""
        headers = [entry for entry in request.headers if entry[0] not in _HOP_BY_HOP]
        headers += [(name, value.encode()) for name, value in (extra or {}).items()]
        incoming = wasi_http.IncomingRequest(
            method=request.method,
            target=request.target,
            authority=request.header("host"),
            headers=headers,
            connection=connection,
        )
        out = wasi_http.ResponseOut(connection)
        store = wasmtime.Store(engine)
        store.set_epoch_deadline(self._ticks)
        if self._memory:
            store.set_limits(memory_size=self._memory)
        current.call = call = Call()
        try:
            instance = self._linked.instantiate(store)
            self._linked.function(store, instance, self._interface, "handle")(store, incoming, out)
            if not out.status:
                connection.send_plain(500, "the component did not answer")
            else:
                connection.end()
        except wasmtime.WasmtimeError as error:
            late = "interrupt" in str(error)
            os.write(2, f"engine: {request.method} {request.target}: {error}\n".encode())
            if out.status:
                connection.abort()
            else:
                status, reason = (504, "took too long") if late else (500, "failed")
                connection.send_plain(status, f"the component {reason}")
        except OSError:
            connection.abort()  # the client went away
        finally:
            call.close()
            current.call = None


def address(text: str, default: tuple[str, int]) -> tuple[str, int]:
    """``host:port``, ``:port`` or nothing."""
    if not text:
        return default
    host, _, port = text.rpartition(":")
    return host.strip("[]") or default[0], int(port)


def load(plan: dict[str, Any]) -> Loaded:
    """The server of one component, at WASMTIME_HTTP_PROXY_SOCKET_ADDR or port 8080."""
    component = wasmtime.component.Component.deserialize_file(engine, plan["code"])
    environment = [(name, value) for name, value in plan["env"]]
    host = {
        **wasi.tables(plan["args"], environment, [("/", "/", True)]),
        **wasi_http.tables(lambda url: True),
    }
    handler = Handler(component, plan["exports"], host, memory=plan["memory"], timeout=60.0)
    where = address(dict(environment).get("WASMTIME_HTTP_PROXY_SOCKET_ADDR", ""), ("0.0.0.0", 8080))  # noqa: S104

    return lambda: serve(Server(listen(*where), handler))


def serve(server: Server) -> Callable[[], int]:
    """What runs a server whose port is bound."""

    def run() -> int:
        start_clock()
        return server.run()

    return run
