"""TLS in front of the API, and the certificates it needs."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from engine.api.http import HttpServer
from engine.api.router import Request, Response, Route, Router
from engine.api.tls import server_context
from engine.errors import AlreadyExists, InvalidParameter, NotFound
from engine.services import Services

certificates = pytest.importorskip("engine.certificates")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pki")
    certificates.make_ca(root / "ca")
    certificates.make_server(root / "server", ["localhost", "127.0.0.1"], ca=root / "ca")
    certificates.make_client(root / "alice", "alice", ca=root / "ca")
    certificates.make_ca(root / "other")
    certificates.make_client(root / "mallory", "mallory", ca=root / "other")
    return root


@pytest.fixture
def port(pki: Path) -> Iterator[int]:
    """A server that demands certificates, with an echo, a stream and a socket to take."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    ends: list[asyncio.Event] = []
    sock = socket.create_server(("127.0.0.1", 0))
    files = pki / "server"
    context = server_context(certificate=str(files / "cert.pem"), key=str(files / "key.pem"), ca=str(files / "ca.pem"))

    async def who(services: Services, request: Request) -> Response:
        assert request.connection is not None
        identity = request.connection.identity
        return Response.json([identity.method, identity.user, len(await request.body())])

    async def shout(services: Services, request: Request) -> None:
        taken = await request.hijack()
        heard = b""
        while data := await taken.receive():
            heard += data
        await taken.send(heard.upper())  # after the client has said that it is done
        taken.close()

    async def run() -> None:
        routes = [Route("POST", "/who", who), Route("POST", "/shout", shout, hijack=True)]
        server = HttpServer(Router(routes), cast("Services", None))
        sock.setblocking(False)
        await server.listen_tls(sock, context, host_check=None)
        ends.append(asyncio.Event())
        started.set()
        await ends[0].wait()
        await server.close(0.1)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert started.wait(10)
    yield int(sock.getsockname()[1])
    loop.call_soon_threadsafe(ends[0].set)
    thread.join()
    loop.close()


def connect(pki: Path, port: int, client: str = "alice") -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(pki / "ca/ca.pem"))
    context.load_cert_chain(pki / client / "cert.pem", pki / client / "key.pem")
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=10), server_hostname="localhost")


def read_all(door: ssl.SSLSocket) -> bytes:
    found = b""
    while data := door.recv(65536):
        found += data
    return found


def test_a_certificates_common_name_is_who_one_is(pki: Path, port: int) -> None:
    with connect(pki, port) as door:
        body = b"x" * 1_000_000
        door.sendall(
            b"POST /who HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        assert read_all(door).endswith(b'["TLS","alice",1000000]\n')


def test_a_client_that_has_said_everything_still_hears_the_answer(pki: Path, port: int) -> None:
    """close_notify is a half-close: what `docker run -i` relies on."""
    context = ssl.create_default_context(cafile=str(pki / "ca/ca.pem"))
    context.load_cert_chain(pki / "alice/cert.pem", pki / "alice/key.pem")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")  # an SSLSocket cannot close one half

    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:

        def until_done(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    wire.sendall(outgoing.read())
                    incoming.write(wire.recv(65536))
                finally:
                    wire.sendall(outgoing.read())

        until_done(tls.do_handshake)
        tls.write(b"POST /shout HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        assert until_done(lambda: tls.read(1000)).startswith(b"HTTP/1.1 101")
        data = b"quiet " * 30_000
        tls.write(data)
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()  # says goodbye; the server's is not there yet
        wire.sendall(outgoing.read())
        heard = b""
        while len(heard) < len(data):
            heard += until_done(lambda: tls.read(65536))
        assert heard == data.upper()


@pytest.mark.parametrize("client", ["mallory", None])
def test_nobody_else_comes_in(pki: Path, port: int, client: str | None) -> None:
    context = ssl.create_default_context(cafile=str(pki / "ca/ca.pem"))
    if client:
        context.load_cert_chain(pki / client / "cert.pem", pki / client / "key.pem")
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    with pytest.raises(OSError), context.wrap_socket(plain, server_hostname="localhost") as door:
        door.sendall(b"POST /who HTTP/1.1\r\nHost: d\r\n\r\n")
        if not door.recv(100):
            raise ConnectionResetError
    plain.close()


def test_plain_http_is_told_what_it_met(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP request to an HTTPS server" in plain.recv(1000)


# -- certificates -----------------------------------------------------------------------------------------------


def test_keys_are_their_owners_and_never_overwritten(pki: Path) -> None:
    for key in (pki / "ca/ca-key.pem", pki / "server/key.pem", pki / "alice/key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(AlreadyExists, match=r"ca-key\.pem exists already"):
        certificates.make_ca(pki / "ca")


def test_certificates_say_what_they_are(pki: Path) -> None:
    found = certificates.describe(pki / "server/cert.pem")
    assert (found.kind, found.names, found.issuer) == ("server", ("localhost", "127.0.0.1"), "engine CA")
    left = found.not_after - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=396) < left <= datetime.timedelta(days=397)
    assert certificates.describe(pki / "alice/cert.pem").kind == "client"
    assert certificates.describe(pki / "ca/ca.pem").kind == "ca"


def test_what_makes_no_sense_is_refused(pki: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="makes a CA first"):
        certificates.make_client(tmp_path / "x", "x", ca=tmp_path)
    with pytest.raises(InvalidParameter, match="at least one name"):
        certificates.make_server(tmp_path / "x", [], ca=pki / "ca")
    with pytest.raises(InvalidParameter, match="number of days"):
        certificates.make_client(tmp_path / "y", "x", ca=pki / "ca", days=0)


@pytest.mark.parametrize("broken", ["missing", "garbage", "open", "other-key"])
def test_a_server_does_not_start_with_bad_files(pki: Path, tmp_path: Path, broken: str) -> None:
    files: dict[str, Any] = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "ca")}
    for name, path in files.items():
        path.write_bytes((pki / "server" / f"{name}.pem").read_bytes())
        path.chmod(0o600)
    match broken:
        case "missing":
            files["key"].unlink()
        case "garbage":
            files["ca"].write_text("no certificate")
        case "open":
            files["key"].chmod(0o644)
        case _:
            files["key"].write_bytes((pki / "alice/key.pem").read_bytes())
    with pytest.raises(InvalidParameter, match=str(tmp_path)):
        server_context(certificate=str(files["cert"]), key=str(files["key"]), ca=str(files["ca"]))


def test_the_command_makes_a_set_that_works(tmp_path: Path) -> None:
    def engine(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "engine.cli", "cert", *words], capture_output=True, text=True, check=False
        )

    assert engine("ca", "--dir", str(tmp_path)).returncode == 0
    assert engine("server", "--dir", str(tmp_path), "host.example").returncode == 0
    made = engine("client", "--dir", str(tmp_path), "--out", str(tmp_path / "me"), "me")
    assert f"DOCKER_CERT_PATH={tmp_path}/me" in made.stderr
    listed = engine("ls", str(tmp_path), str(tmp_path / "me")).stdout
    assert "host.example" in listed
    assert engine("ca", "--dir", str(tmp_path)).returncode == 1
