"""The HTTP server of guests, against sockets: what clients send, right and wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from engine_wasm_host.server import HttpConnection, Request, Server, listen


def echo(connection: HttpConnection, request: Request) -> None:
    if request.target == "/unread":
        connection.send_plain(200, "no body read")
        return
    body = b""
    while piece := connection.read_body(65536):
        body += piece
    connection.send_head(200, [("x-method", request.method.encode())])
    connection.send_body(b"%b:%b" % (request.target.encode(), body))
    connection.end()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listener = listen("127.0.0.1", 0)
    threading.Thread(target=Server(listener, echo).run, daemon=True).start()
    return listener.getsockname()[1]


def talk(port: int, *parts: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for part in parts:
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(65536):
            answer += data
    return answer


def test_requests_are_answered_one_after_the_other_on_one_connection(port: int) -> None:
    answer = talk(port, b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /b HTTP/1.1\r\nhost: x\r\n\r\n")

    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"3\r\n/a:\r\n0\r\n\r\n" in answer
    assert b"3\r\n/b:\r\n0\r\n\r\n" in answer


def test_bodies_arrive_whole_however_they_are_cut(port: int) -> None:
    head = b"POST /p HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"

    assert b"/p:hello world" in talk(port, head, b"5\r\nhello\r\n", b"6\r\n wo", b"rld\r\n0\r\n\r\n")
    sized = b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
    assert b"/p:abc" in talk(port, sized[:20], sized[20:])


def test_head_has_no_body(port: int) -> None:
    assert talk(port, b"HEAD /a HTTP/1.1\r\nhost: x\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "nonsense",
    [b"\x16\x03\x01\x02\0", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"],
)
def test_what_is_no_http_is_refused(port: int, nonsense: bytes) -> None:
    assert talk(port, nonsense).startswith(b"HTTP/1.1 400")


def test_two_lengths_are_refused(port: int) -> None:
    smuggled = b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    assert b"400" in talk(port, smuggled)[:20]


def test_endless_headers_are_refused(port: int) -> None:
    assert talk(port, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 40000 + b"\r\n").startswith(b"HTTP/1.1 431")


def test_an_unread_body_closes_the_connection(port: int) -> None:
    answer = talk(port, b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
    assert b"connection: close" in answer


def test_many_silent_clients_do_not_stop_others(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    try:
        assert b"/a:" in talk(port, b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n")
    finally:
        for client in idle:
            client.close()
