"""A running Spin application: routes requests to components and gives them what the manifest grants."""

from __future__ import annotations

import fnmatch
import glob
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import wasmtime
import wasmtime.component
from wasmtime import _ffi as ffi

from engine_runtime_spin import hosts
from engine_runtime_spin.routes import Match, Router
from engine_wasm_host import serving, wasi, wasi_http
from engine_wasm_host.command import Loaded, engine
from engine_wasm_host.server import HttpConnection, Request, Server, listen
from engine_wasm_host.values import Err, Ok

__all__ = ["load"]

_HEALTH = "/.well-known/spin/health"
_FILES = "/.spin-files"
_STATE = "/.spin"
_TIMEOUT = 60.0
_BODY_LIMIT = 16 << 20


def load(plan: dict[str, Any]) -> Loaded:
    """The application's server: code is mapped now, files and store are opened inside."""
    codes = {
        name: wasmtime.component.Component.deserialize_file(engine, component["code"])
        if component["kind"] == "component"
        else wasmtime.Module.deserialize_file(engine, component["code"])
        for name, component in plan["components"].items()
    }
    where = serving.address(plan["listen"], ("0.0.0.0", 80))  # noqa: S104 - the container's own namespace

    return lambda: serving.serve(Server(listen(*where), _Application(plan, codes)))


class _Application:
    """Answers each request by the component of its route."""

    def __init__(self, plan: dict[str, Any], codes: Mapping[str, Any]) -> None:
        self._router = Router(plan["routes"], plan["base"])
        self._base = plan["base"]
        store = KeyValue()
        self._handlers: dict[str, serving.Handler | Wagi] = {}
        for name, component in plan["components"].items():
            preopens = prepare_files(name, component)
            if component["kind"] == "module":
                self._handlers[name] = Wagi(codes[name], component, preopens, plan["memory"])
                continue
            allowed = component["allowed"]
            host = {
                **wasi.tables([], component["environment"], preopens),
                **wasi_http.tables(lambda url, allowed=allowed: hosts.allows(allowed, url)),  # type: ignore[misc]
                **_variables(component["variables"]),
                **store.tables(component["stores"]),
            }
            self._handlers[name] = serving.Handler(
                codes[name], component["exports"], host, memory=plan["memory"], timeout=_TIMEOUT
            )

    def __call__(self, connection: HttpConnection, request: Request) -> None:
        path = urlsplit(request.target).path or "/"
        if path == _HEALTH:
            connection.send_plain(200, "OK")
            return
        match = self._router.find(path)
        if match is None:
            connection.send_plain(404, "")
            return
        self._handlers[match.route["component"]](connection, request, self._headers(connection, request, match))

    def _headers(self, connection: HttpConnection, request: Request, match: Match) -> dict[str, str]:
        pattern = match.route["pattern"]
        route = pattern.removesuffix("/...")
        return {
            "spin-path-info": match.rest,
            "spin-full-url": f"http://{request.header('host')}{request.target}",
            "spin-matched-route": self._base.rstrip("/") + pattern,
            "spin-base-path": self._base,
            "spin-component-route": route or "/",
            "spin-raw-component-route": pattern,
            "spin-client-addr": connection.peer,
            **{f"spin-path-match-{name}": value for name, value in match.parameters.items()},
        }


# -- files ------------------------------------------------------------------------------------------------------


def prepare_files(name: str, component: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """The component's preopened directories: directories as they are, single files and patterns copied together.

    All read-only. Runs inside the container, so no pattern reaches further than the image.
    """
    preopens = []
    copies = f"{_FILES}/{name}"
    for entry in component["files"]:
        if not isinstance(entry, str):
            source, destination = os.path.join(component["base"], entry[0]), entry[1]
            if os.path.isdir(source):
                preopens.append((source, destination, False))
                continue
            os.makedirs(copies + os.path.dirname(destination), exist_ok=True)
            shutil.copyfile(source, copies + destination)
            continue
        for found in glob.glob(entry, root_dir=component["base"], recursive=True):
            if any(fnmatch.fnmatch(found, pattern) for pattern in component["exclude"]):
                continue
            source = os.path.join(component["base"], found)
            if os.path.isfile(source):
                os.makedirs(os.path.dirname(os.path.join(copies, found)), exist_ok=True)
                shutil.copyfile(source, os.path.join(copies, found))
    if os.path.isdir(copies):
        preopens.append((copies, "/", False))
    return preopens


# -- what Spin offers besides WASI ------------------------------------------------------------------------------


def _variables(values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    def get(call: Any, name: str) -> Any:
        if name in values:
            return Ok(values[name])
        return Err(("undefined", f"no variable {name} is defined for this component"))

    return {
        "fermyon:spin/variables": {"get": get},
        "wasi:config/store": {
            "get": lambda call, name: Ok(values.get(name)),
            "get-all": lambda call: Ok(list(values.items())),
        },
    }


class KeyValue:
    """The stores of an application in one SQLite file: in the container, or on a volume mounted at /.spin."""

    def __init__(self) -> None:
        self._local = threading.local()

    def _database(self) -> sqlite3.Connection:
        if not hasattr(self._local, "database"):
            os.makedirs(_STATE, exist_ok=True)
            database = sqlite3.connect(f"{_STATE}/sqlite_key_value.db", isolation_level=None, timeout=10)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS spin_key_value "
                "(store TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (store, key))"
            )
            self._local.database = database
        found: sqlite3.Connection = self._local.database
        return found

    def tables(self, allowed: Sequence[str]) -> dict[str, dict[str, Any]]:
        """For a component that may open the stores ``allowed``."""

        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            def call_(call: Any, *arguments: Any) -> Any:
                try:
                    return Ok(function(*arguments))
                except (sqlite3.Error, OSError) as error:
                    return Err(("other", str(error)))

            return call_

        def open_(call: Any, label: str) -> Any:
            if label not in allowed:
                return Err(("access-denied", None))
            return Ok(_Bucket(label))

        operations = {
            "get": guarded(self._get),
            "set": guarded(self._set),
            "delete": guarded(self._delete),
            "exists": guarded(lambda store, key: self._get(store, key) is not None),
        }
        return {
            "fermyon:spin/key-value": {
                "[static]store.open": open_,
                "[method]store.get-keys": guarded(self._keys),
                **{f"[method]store.{name}": function for name, function in operations.items()},
            },
            "wasi:keyvalue/store": {
                "open": open_,
                "[method]bucket.list-keys": guarded(lambda store, cursor: (self._keys(store), None)),
                **{f"[method]bucket.{name}": function for name, function in operations.items()},
            },
        }

    def _get(self, store: _Bucket, key: str) -> bytes | None:
        query = "SELECT value FROM spin_key_value WHERE store = ? AND key = ?"
        row = self._database().execute(query, (store.label, key)).fetchone()
        return None if row is None else bytes(row[0])

    def _set(self, store: _Bucket, key: str, value: bytes) -> None:
        self._database().execute("REPLACE INTO spin_key_value VALUES (?, ?, ?)", (store.label, key, value))

    def _delete(self, store: _Bucket, key: str) -> None:
        self._database().execute("DELETE FROM spin_key_value WHERE store = ? AND key = ?", (store.label, key))

    def _keys(self, store: _Bucket) -> list[str]:
        rows = self._database().execute("SELECT key FROM spin_key_value WHERE store = ?", (store.label,))
        return [row[0] for row in rows]


class _Bucket:
    """An open store."""

    def __init__(self, label: str) -> None:
        self.label = label


# -- WAGI -------------------------------------------------------------------------------------------------------


class Wagi:
    """A WASI module as a CGI program: an instance for each request, its output the response."""

    def __init__(
        self, module: Any, component: Mapping[str, Any], preopens: Sequence[tuple[str, str, bool]], memory: int
    ) -> None:
        self._module = module
        self._environment = list(component["environment"])
        self._preopens = preopens
        self._memory = memory
        self._linker = wasmtime.Linker(engine)
        self._linker.define_wasi()

    def __call__(self, connection: HttpConnection, request: Request, extra: Mapping[str, str]) -> None:
        """Answer."""
        body = b""
        while len(body) < _BODY_LIMIT and (piece := connection.read_body(1 << 16)):
            body += piece
        target = urlsplit(request.target)
        output: list[bytes] = []

        def written(data: bytes) -> None:
            output.append(data)

        wasi_config = wasmtime.WasiConfig()
        wasi_config.argv = [target.path, *filter(None, target.query.split("&"))]
        wasi_config.env = [*self._environment, *_cgi(request, extra, len(body))]
        vector = ffi.bytes_to_capi(body)
        ffi.wasi_config_set_stdin_bytes(wasi_config.ptr(), vector)
        wasi_config.stdout_custom = written
        wasi_config.inherit_stderr()
        for source, destination, _ in self._preopens:
            wasi_config.preopen_dir(source, destination)
        store = wasmtime.Store(engine)
        store.set_wasi(wasi_config)
        store.set_epoch_deadline(round(_TIMEOUT / serving.TICK))
        if self._memory:
            store.set_limits(memory_size=self._memory)
        try:
            exports = self._linker.instantiate(store, self._module).exports(store)
            exports["_start"](store)  # type: ignore[operator]
        except wasmtime.ExitTrap as exit_:
            if exit_.code:
                os.write(2, f"engine: {request.target}: the module exited with {exit_.code}\n".encode())
        except wasmtime.WasmtimeError as error:
            os.write(2, f"engine: {request.target}: {error}\n".encode())
            connection.send_plain(500, "the module failed")
            return
        _answer(connection, b"".join(output))


def _cgi(request: Request, extra: Mapping[str, str], length: int) -> list[tuple[str, str]]:
    """RFC 3875."""
    target = urlsplit(request.target)
    host, _, port = request.header("host").partition(":")
    variables = {
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": target.query,
        "PATH_INFO": extra.get("spin-path-info", ""),
        "SCRIPT_NAME": extra.get("spin-component-route", ""),
        "SERVER_NAME": host,
        "SERVER_PORT": port or "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "engine",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REMOTE_ADDR": extra.get("spin-client-addr", ""),
        "CONTENT_LENGTH": str(length),
        "CONTENT_TYPE": request.header("content-type"),
        "X_MATCHED_ROUTE": extra.get("spin-matched-route", ""),
        "X_FULL_URL": extra.get("spin-full-url", ""),
    }
    for name, value in request.headers:
        variables.setdefault("HTTP_" + name.upper().replace("-", "_"), value.decode("latin-1"))
    variables.pop("HTTP_PROXY", None)  # httpoxy
    return list(variables.items())


def _answer(connection: HttpConnection, output: bytes) -> None:
    head, separator, body = output.replace(b"\r\n\r\n", b"\n\n", 1).partition(b"\n\n")
    status, headers = 200, []
    for line in head.splitlines():
        name, _, value = line.decode("latin-1").partition(":")
        if name.lower() == "status":
            status = int(value.split()[0])
        elif name.lower() == "location":
            status = 302 if status == 200 else status
            headers.append((name.lower(), value.strip().encode("latin-1")))
        elif value:
            headers.append((name.lower(), value.strip().encode("latin-1")))
    if not separator or not headers:
        connection.send_plain(500, "the module wrote no CGI header (content-type)")
        return
    connection.send_head(status, [*headers, ("content-length", str(len(body)).encode())])
    connection.send_body(body)
    connection.end()
