"""The HTTP server as a client with a raw socket sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from engine.api.http import HttpServer, Limits
from engine.api.router import Request, Response, Route, Router
from engine.errors import Conflict, NotModified
from engine.services import Services


class App:
    """Handlers that note what happened to them."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.noted = threading.Condition()
        self.release: asyncio.Event | None = None

    def note(self, text: str) -> None:
        with self.noted:
            self.notes.append(text)
            self.noted.notify_all()

    def wait_for(self, text: str) -> None:
        with self.noted:
            assert self.noted.wait_for(lambda: text in self.notes, timeout=10), self.notes

    async def echo(self, services: Services, request: Request) -> Response:
        return Response.json({"body": (await request.body(100_000)).decode(), "query": request.query.get("q")})

    def prompt(self, services: Services, request: Request) -> Response | None:
        match request.params["how"]:
            case "yes":
                return Response.text("at once")
            case "conflict":
                raise Conflict("it is <taken>")
        return None

    async def count(self, services: Services, request: Request) -> Response:
        size = 0
        async for data in request.stream():
            size += len(data)
        return Response.json({"size": size})

    async def slowly(self, services: Services, request: Request) -> Response:
        stream = request.stream()
        await anext(stream)
        self.note("first")
        await self.gate()
        return Response.json({"size": 1 + sum([len(data) async for data in stream])})

    async def gate(self) -> None:
        self.release = asyncio.Event()
        self.note("waiting")
        await self.release.wait()

    async def ignore(self, services: Services, request: Request) -> Response:
        return Response.error(400, "no")

    async def numbers(self, services: Services, request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"%d\n" % number
                await asyncio.sleep(0)

        return Response.stream(body())

    async def forever(self, services: Services, request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            try:
                yield b"begin"
                await asyncio.Event().wait()
            finally:
                self.note("closed")

        return Response.stream(body())

    async def breaks(self, services: Services, request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"begin"
            raise RuntimeError("half way")

        return Response.stream(body())

    async def wait(self, services: Services, request: Request) -> Response:
        try:
            await self.gate()
        except asyncio.CancelledError:
            self.note("cancelled")
            raise
        self.note("finished")
        return Response.text("waited")

    async def fail(self, services: Services, request: Request) -> Response:
        match request.params["how"]:
            case "conflict":
                raise Conflict("it is <taken>")
            case "same":
                raise NotModified("already")
            case _:
                raise RuntimeError("secret detail")

    async def attach(self, services: Services, request: Request) -> Response | None:
        hello = await request.body()
        hijacked = await request.hijack(content_type="application/vnd.docker.multiplexed-stream")
        await hijacked.send(b"<" + hello + b">")
        while data := await hijacked.receive():
            await hijacked.send(data.upper())
        await hijacked.send(b"bye")
        hijacked.close()
        return None

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/echo", self.echo),
            Route("HEAD", "/echo", self.echo),
            Route("GET", "/prompt/{how}", self.echo, prompt=self.prompt),
            Route("POST", "/echo", self.echo),
            Route("POST", "/count", self.count),
            Route("POST", "/slowly", self.slowly),
            Route("POST", "/ignore", self.ignore),
            Route("GET", "/numbers", self.numbers),
            Route("GET", "/forever", self.forever),
            Route("GET", "/breaks", self.breaks),
            Route("POST", "/wait", self.wait, cancel=True),
            Route("POST", "/change", self.wait),
            Route("GET", "/fail/{how}", self.fail),
            Route("POST", "/attach", self.attach, hijack=True),
        ]


class Running:
    """A server on a thread of its own, and clients for it."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.app = App()
        self.path = path
        self.limits = limits
        self.started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main()))
        self.thread.start()
        assert self.started.wait(10)

    async def main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = HttpServer(
            Router(self.app.routes()), cast("Services", None), headers={"Server": "test"}, limits=self.limits
        )
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        sock.listen()
        await self.server.listen(sock)
        self.ended = asyncio.Event()
        self.started.set()
        await self.ended.wait()
        await self.server.close(grace=0.1)

    def call(self, function: Callable[[], Any]) -> None:
        self.loop.call_soon_threadsafe(function)

    def open_gate(self) -> None:
        self.app.wait_for("waiting")
        self.call(lambda: self.app.release.set() if self.app.release else None)

    def settle(self) -> None:
        """Let the server read what has been sent."""

        async def turns() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(turns(), self.loop).result(10)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(str(self.path))
        return sock

    def stop(self) -> None:
        self.call(self.ended.set)
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
def server(tmp_path: Path, limits: Limits) -> Iterator[Running]:
    running = Running(tmp_path / "s", limits)
    yield running
    running.stop()


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    return data


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def response(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and the body of a response with a length."""
    head, _, body = read_until(sock, b"\r\n\r\n").partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = int(headers.get("content-length", "0"))
    while len(body) < length:
        body += sock.recv(65536)
    return int(first.split()[1]), headers, body


def test_requests_of_one_connection_are_answered_one_after_the_other(server: Running) -> None:
    with server.connect() as sock:
        for number in range(3):
            sock.sendall(b"GET /echo?q=%d HTTP/1.1\r\nHost: d\r\n\r\n" % number)
            assert json.loads(response(sock)[2])["query"] == str(number)


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"".join(b"GET /echo?q=<%d> HTTP/1.1\r\nHost: d\r\n\r\n" % n for n in range(50)))
        data = b""
        while data.count(b'"query"') < 50:
            data += sock.recv(65536)
    assert re.findall(rb"u003c(\d+)", data) == [b"%d" % n for n in range(50)]


def test_a_prompt_answer_waits_for_nothing_and_overtakes_nothing(server: Running) -> None:
    with server.connect() as sock:
        heads = [f"GET {path} HTTP/1.1\r\nHost: d\r\n" for path in ("/prompt/yes", "/echo?q=1", "/prompt/yes?q=2")]
        sock.sendall(("\r\n".join(heads) + "Connection: close\r\n\r\n").encode())
        answers = read_all(sock)
    assert re.findall(rb'at once|"query":"\d"', answers) == [b"at once", b'"query":"1"', b'"query":"2"']


def test_what_cannot_be_answered_promptly_goes_to_the_handler(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /prompt/later?q=2 HTTP/1.1\r\nHost: d\r\n\r\n")
        assert json.loads(response(sock)[2])["query"] == "2"
        sock.sendall(b"GET /prompt/conflict HTTP/1.1\r\nHost: d\r\n\r\n")
        assert response(sock)[0] == 409
        sock.sendall(b"GET /prompt/yes HTTP/1.1\r\nHost: d\r\n\r\n")
        assert response(sock)[2] == b"at once"


def test_a_prompt_answer_to_a_client_that_wants_to_close_is_the_last(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /prompt/yes HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        assert read_all(sock).endswith(b"at once")


def test_a_request_in_single_bytes_is_understood(server: Running) -> None:
    with server.connect() as sock:
        for (
            byte
        ) in b"POST /echo HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert json.loads(response(sock)[2])["body"] == "abcde"


def test_a_streamed_answer_is_chunked_and_keeps_the_connection(server: Running) -> None:
    with server.connect() as sock:
        for _ in range(2):
            sock.sendall(b"GET /numbers HTTP/1.1\r\nHost: d\r\n\r\n")
            data = read_until(sock, b"0\r\n\r\n")
            assert b"Transfer-Encoding: chunked" in data
            assert data.endswith(b"2\r\n0\n\r\n2\r\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n")


def test_http_1_0_gets_a_stream_that_ends_with_the_connection(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /numbers HTTP/1.0\r\n\r\n")
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert body == b"0\n1\n2\n"
    assert b"chunked" not in head


def test_head_has_the_length_and_no_body(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"HEAD /echo HTTP/1.1\r\nHost: d\r\n\r\nGET /echo HTTP/1.1\r\nHost: d\r\n\r\n")
        data = b""
        while data.count(b"HTTP/1.1 200") < 2 or not data.endswith(b"}\n"):
            data += sock.recv(65536)
    assert data.count(b'{"body"') == 1
    assert data.count(b"Content-Length: 23") == 2


def test_expect_is_answered_only_when_the_body_is_wanted(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ok")
        assert json.loads(response(sock)[2])["body"] == "ok"
    with server.connect() as sock:
        sock.sendall(b"POST /ignore HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert response(sock)[0] == 400


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/fail/conflict", 409, "it is <taken>"),
        ("/fail/broken", 500, "internal error while serving GET /fail/broken: see the log"),
        ("/nothing", 404, "page not found"),
        ("/v1.99/echo", 400, "client version 1.99 is too new. Maximum supported API version is 1.50"),
    ],
)
def test_errors_are_json_with_a_message(server: Running, path: str, status: int, message: str) -> None:
    logging.getLogger("engine.api.http").setLevel(logging.CRITICAL)
    with server.connect() as sock:
        sock.sendall(b"GET %s HTTP/1.1\r\nHost: d\r\n\r\n" % path.encode())
        found, headers, body = response(sock)
    assert (found, json.loads(body)) == (status, {"message": message})
    assert headers["content-type"] == "application/json"
    assert b"Traceback" not in body


def test_not_modified_has_no_body(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /fail/same HTTP/1.1\r\nHost: d\r\n\r\nGET /echo?q=next HTTP/1.1\r\nHost: d\r\n\r\n")
        data = read_until(sock, b"next")
    first = data.partition(b"\r\n\r\n")[0]
    assert b" 304 " in first
    assert b"Content-Length" not in first


def test_a_stream_that_breaks_is_not_ended_properly(server: Running) -> None:
    logging.getLogger("engine.api.http").setLevel(logging.CRITICAL)
    with server.connect() as sock:
        sock.sendall(b"GET /breaks HTTP/1.1\r\nHost: d\r\n\r\n")
        data = b""
        try:
            data = read_all(sock)
        except ConnectionResetError:
            pass
    assert not data.endswith(b"0\r\n\r\n")


def test_an_upload_waits_for_its_reader(server: Running) -> None:
    size = 50 << 20
    with server.connect() as sock:
        sock.sendall(b"POST /slowly HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\nx" % size)
        server.app.wait_for("first")
        sock.settimeout(0.3)
        sent = 1
        with pytest.raises(TimeoutError):
            while sent < size:
                sent += sock.send(b"x" * min(65536, size - sent))
        assert sent < 4 << 20
        sock.settimeout(10)
        server.open_gate()
        while sent < size:
            sent += sock.send(b"x" * min(65536, size - sent))
        assert json.loads(response(sock)[2]) == {"size": size}


def test_an_upload_that_breaks_off_is_an_error_for_its_handler(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /count HTTP/1.1\r\nHost: d\r\nContent-Length: 10\r\n\r\nabc")
        sock.shutdown(socket.SHUT_WR)
        status, _, body = response(sock)
    assert (status, json.loads(body)["message"]) == (400, "unexpected EOF")


def test_a_body_over_its_limit_is_refused_before_it_was_sent(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: d\r\nContent-Length: 90000000\r\n\r\n" + b"x" * 150_000)
        status, headers, _ = response(sock)
        assert status == 413
        assert headers["connection"] == "close"


def test_an_answer_given_before_the_body_was_read_still_arrives(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /ignore HTTP/1.1\r\nHost: d\r\nContent-Length: 3000000\r\n\r\n")
        sock.sendall(b"x" * 3_000_000)
        assert response(sock)[0] == 400
        assert sock.recv(1) == b""


def test_a_client_that_leaves_ends_its_stream(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /forever HTTP/1.1\r\nHost: d\r\n\r\n")
        read_until(sock, b"begin")
    server.app.wait_for("closed")


def test_a_client_that_leaves_cancels_a_long_wait(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /wait HTTP/1.1\r\nHost: d\r\n\r\n")
        server.app.wait_for("waiting")
    server.app.wait_for("cancelled")


def test_a_client_that_leaves_does_not_tear_a_change(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /change HTTP/1.1\r\nHost: d\r\n\r\n")
        server.app.wait_for("waiting")
    server.open_gate()
    server.app.wait_for("finished")
    assert "cancelled" not in server.app.notes


def test_a_half_closed_client_gets_its_answer(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /wait HTTP/1.1\r\nHost: d\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        server.open_gate()
        assert response(sock)[2] == b"waited"
        assert sock.recv(1) == b""


def test_bytes_after_a_body_are_told_from_it_wherever_the_pieces_meet(server: Running) -> None:
    head = b"POST /attach HTTP/1.1\r\nHost: d\r\nContent-Length: 6\r\n\r\n"
    message = head + b"abcdef" + b"early\r\n\r\nbird"
    for cut in range(len(head) - 3, len(message)):
        with server.connect() as sock:
            sock.sendall(message[:cut])
            server.settle()
            sock.sendall(message[cut:])
            sock.shutdown(socket.SHUT_WR)
            rest = read_all(sock).partition(b"\r\n\r\n")[2]
        assert rest == b"<abcdef>EARLY\r\n\r\nBIRDbye", cut


UPGRADE = b"Connection: Upgrade\r\nUpgrade: tcp\r\n"


@pytest.mark.parametrize("upgrade", [b"", UPGRADE], ids=["plain", "upgrade"])
@pytest.mark.parametrize("body", [b"", b'{"Tty":true}'], ids=["no body", "body"])
@pytest.mark.parametrize("pieces", [1, 2, 1000], ids=["at once", "two pieces", "single bytes"])
def test_a_handler_takes_the_socket_with_what_came_early(
    server: Running, upgrade: bytes, body: bytes, pieces: int
) -> None:
    head = b"POST /attach HTTP/1.1\r\nHost: d\r\n" + upgrade + b"Content-Length: %d\r\n\r\n" % len(body)
    message = head + body + b"early\r\n\r\nbird"
    size = -(-len(message) // pieces)
    with server.connect() as sock:
        for start in range(0, len(message), size):
            sock.sendall(message[start : start + size])
        sock.sendall(b" more")
        sock.shutdown(socket.SHUT_WR)
        head, _, rest = read_all(sock).partition(b"\r\n\r\n")
    assert rest == b"<" + body + b">EARLY\r\n\r\nBIRD MOREbye"
    if upgrade:
        assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
        assert b"Content-Type: application/vnd.docker.multiplexed-stream" in head
        assert b"Upgrade: tcp" in head
    else:
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream")


def test_an_upgrade_nobody_takes_is_ignored(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: d\r\n" + UPGRADE + b"Content-Length: 2\r\n\r\nhi")
        status, headers, body = response(sock)
        assert (status, json.loads(body)["body"], headers["connection"]) == (200, "hi", "close")
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost : d\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n\r\n",
    ],
    ids=["garbage", "two lengths", "length and chunked", "space in a name", "no host"],
)
def test_ambiguous_requests_are_refused(server: Running, request_bytes: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(request_bytes)
        assert response(sock)[0] == 400


class TestLimits:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(connections=2, head=2000, head_time=0.2, idle_time=0.2)

    def test_a_head_that_is_too_long(self, server: Running) -> None:
        with server.connect() as sock:
            sock.sendall(b"GET /echo HTTP/1.1\r\nHost: d\r\nX: " + b"x" * 3000)
            assert response(sock)[0] == 431

    def test_a_head_that_comes_too_slowly(self, server: Running) -> None:
        with server.connect() as sock:
            sock.sendall(b"GET /echo HTTP/1.1\r\nHost")
            assert response(sock)[0] == 408

    def test_an_idle_connection_is_closed(self, server: Running) -> None:
        with server.connect() as sock:
            sock.sendall(b"GET /echo HTTP/1.1\r\nHost: d\r\n\r\n")
            assert response(sock)[0] == 200
            assert sock.recv(1) == b""

    def test_too_many_connections(self, server: Running) -> None:
        with server.connect() as one, server.connect() as two:
            for sock in (one, two):
                sock.sendall(b"POST /wait HTTP/1.1\r\nHost: d\r\n\r\n")
            server.app.wait_for("waiting")
            with server.connect() as three:
                assert response(three)[0] == 503


def test_closing_ends_streams_and_idle_connections(tmp_path: Path) -> None:
    running = Running(tmp_path / "s", Limits())
    with running.connect() as idle, running.connect() as stream:
        idle.sendall(b"GET /echo HTTP/1.1\r\nHost: d\r\n\r\n")
        response(idle)
        stream.sendall(b"GET /forever HTTP/1.1\r\nHost: d\r\n\r\n")
        read_until(stream, b"begin")
        running.stop()
        assert idle.recv(1) == b""
    assert running.app.notes == ["closed"]
