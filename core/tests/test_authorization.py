"""Authorization: who is asked, what they are shown, and that nothing is served which they did not see."""

from __future__ import annotations

import asyncio
import base64
import http.client
import http.server
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pluggy
import pytest

from engine.api.http import HttpServer
from engine.api.router import Request, Response, Route, Router
from engine.authorization import Authorization
from engine.errors import Forbidden
from engine.hookspecs import PROJECT, Hooks, hookimpl
from engine.services import Services
from engine.workers import Workers

Ask = Callable[..., tuple[int, bytes]]


class Decider:
    """An implementation of the hook that notes what it was shown."""

    def __init__(self, refuse: Exception | None = None) -> None:
        self.refuse = refuse
        self.shown: list[tuple[Any, str, str, bytes | None]] = []

    @hookimpl
    def engine_request_authorize(self, identity: Any, method: str, path: str, body: bytes | None) -> None:
        self.shown.append((identity, method, path, body))
        if self.refuse:
            raise self.refuse


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Ask]]:
    """Serve an echo behind authorization; gives a function that asks and returns status and body."""
    stops: list[Callable[[], None]] = []

    def start(*deciders: object, plugins: tuple[str, ...] = ()) -> Ask:
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(Hooks)
        for number, decider in enumerate(deciders):
            manager.register(decider, f"decider{number}=x")
        served = threading.Event()
        ends: list[asyncio.Event] = []
        loop = asyncio.new_event_loop()
        path = tmp_path / f"api{len(stops)}.sock"

        async def echo(services: Services, request: Request) -> Response:
            if request.path == "/stream":
                return Response(200, {}, b"".join([piece async for piece in request.stream()]))
            return Response(200, {}, await request.body())

        async def run() -> None:
            workers = Workers()
            authorization = Authorization(
                config=cast("Any", SimpleNamespace(authorization_plugins=plugins)),
                plugins=cast("Any", SimpleNamespace(hooks=manager.hook)),
                workers=workers,
                directories=(tmp_path,),
            )
            routes = [
                Route("POST", "/echo", echo),
                Route("GET", "/echo", echo, prompt=lambda services, request: Response(200, {}, b"prompt")),
                Route("POST", "/auth", echo),
                Route("POST", "/stream", echo, stream=True),
            ]
            server = HttpServer(Router(routes), cast("Services", None), authorization=authorization)
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(path))
            sock.listen()
            sock.setblocking(False)
            await server.listen(sock)
            ends.append(asyncio.Event())
            served.set()
            await ends[0].wait()
            await server.close(0.1)
            await workers.close()

        thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
        thread.start()
        assert served.wait(10)

        def end() -> None:
            loop.call_soon_threadsafe(ends[0].set)
            thread.join()
            loop.close()

        stops.append(end)

        def ask(method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("d")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request(method, target, body or None, headers)
            answer = connection.getresponse()
            found = answer.status, answer.read()
            connection.close()
            return found

        return ask

    yield start
    for stop in stops:
        stop()


def test_nobody_is_asked_where_nobody_wants_to_be(serve: Callable[..., Ask]) -> None:
    ask = serve()
    assert ask("GET", "/echo") == (200, b"prompt")
    assert ask("POST", "/echo", b"x") == (200, b"x")


def test_the_hook_sees_who_asks_for_what_and_every_byte_that_is_served(serve: Callable[..., Ask]) -> None:
    import os

    decider = Decider()
    ask = serve(decider)
    body = os.urandom(3_000_000)
    assert ask("POST", "/v1.41/echo?a=b", body) == (200, body)
    [(identity, method, path, shown)] = decider.shown
    assert (method, path, shown) == ("POST", "/v1.41/echo?a=b", body)
    assert (identity.method, identity.uid, identity.pid) == ("unix", os.getuid(), os.getpid())


def test_a_stream_is_authorized_unread_and_served(serve: Callable[..., Ask]) -> None:
    decider = Decider()
    assert serve(decider)("POST", "/stream", b"tar") == (200, b"tar")
    assert decider.shown[0][3] is None


def test_what_is_answered_promptly_is_authorized_too(serve: Callable[..., Ask]) -> None:
    assert serve(Decider(Forbidden("no")))("GET", "/echo") == (403, b'{"message":"no"}\n')


def test_a_body_too_large_to_show_is_not_served(serve: Callable[..., Ask]) -> None:
    decider = Decider()
    assert serve(decider)("POST", "/echo", b"x" * (17 << 20))[0] == 413
    assert decider.shown == []


def test_one_who_breaks_has_refused_and_is_named(serve: Callable[..., Ask]) -> None:
    status, body = serve(Decider(RuntimeError("boom")))("POST", "/echo", b"x")
    assert status == 403
    assert "authorization denied by plugin decider0: it failed with RuntimeError: boom" in body.decode()


def test_one_who_hangs_has_refused(serve: Callable[..., Ask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.authorization.PATIENCE", 0.1)
    release = threading.Event()

    class Hangs:
        @hookimpl
        def engine_request_authorize(self) -> None:
            release.wait(10)

    ask = serve(Hangs())
    started = time.monotonic()
    status, body = ask("POST", "/echo", b"x")
    release.set()
    assert (status, b"did not answer in time" in body) == (403, True)
    assert time.monotonic() - started < 5


# -- Docker's protocol ------------------------------------------------------------------------------------------


class DockerAuthz:
    """A plugin of Docker's kind, whose answers the test says."""

    def __init__(self, path: Path) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        plugin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                call = self.path.rpartition(".")[2]
                plugin.asked.append((call, json.loads(body or b"{}")))
                default = {"Implements": ["authz"]} if call == "Activate" else {"Allow": True}
                data = json.dumps(plugin.answers.get(call, default)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def authz(tmp_path: Path) -> Iterator[DockerAuthz]:
    made = DockerAuthz(tmp_path / "guard.sock")
    yield made
    made.close()


def test_a_docker_plugin_is_asked_before_and_after(serve: Callable[..., Ask], authz: DockerAuthz) -> None:
    ask = serve(plugins=("guard",))
    assert ask("POST", "/echo", b"deed", **{"Content-Type": "text/plain", "X-Registry-Auth": "secret"}) == (
        200,
        b"deed",
    )
    assert [call for call, _ in authz.asked] == ["Activate", "AuthZReq", "AuthZRes"]
    question, answer = authz.asked[1][1], authz.asked[2][1]
    assert (question["RequestMethod"], question["RequestUri"]) == ("POST", "/echo")
    assert base64.b64decode(question["RequestBody"]) == b"deed"
    assert question["RequestHeaders"]["Content-Type"] == "text/plain"
    assert "X-Registry-Auth" not in question["RequestHeaders"]
    assert base64.b64decode(answer["ResponseBody"]) == b"deed"
    assert answer["ResponseStatusCode"] == 200


def test_credentials_are_not_shown_to_plugins(serve: Callable[..., Ask], authz: DockerAuthz) -> None:
    serve(plugins=("guard",))("POST", "/auth", b'{"password":"x"}')
    assert "RequestBody" not in authz.asked[1][1]


@pytest.mark.parametrize(
    ("answers", "status", "message"),
    [
        ({"AuthZReq": {"Allow": False, "Msg": "not you"}}, 403, "authorization denied by plugin guard: not you"),
        ({"AuthZRes": {"Allow": False, "Msg": "not that"}}, 403, "authorization denied by plugin guard: not that"),
        ({"AuthZReq": {"Allow": True, "Err": "broken"}}, 500, "plugin guard failed with error: broken"),
        ({"AuthZReq": {}}, 403, "authorization denied by plugin guard: "),
        ({"AuthZReq": []}, 500, "plugin guard failed with error: AuthZReq"),
        ({"Activate": {"Implements": ["VolumeDriver"]}}, 500, "plugin guard does not implement authz"),
    ],
)
def test_only_a_clear_yes_is_a_yes(
    serve: Callable[..., Ask], authz: DockerAuthz, answers: dict[str, Any], status: int, message: str
) -> None:
    authz.answers = answers
    found = serve(plugins=("guard",))("POST", "/echo", b"x")
    assert found[0] == status
    assert message in json.loads(found[1])["message"]


def test_a_plugin_that_is_not_there_refuses_everything(serve: Callable[..., Ask]) -> None:
    status, body = serve(plugins=("missing",))("POST", "/echo", b"x")
    assert status == 500
    assert b"authorization plugin missing not found" in body
