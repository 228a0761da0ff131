"""Who may come in: TLS clients by their certificates, authorization plugins, requests made to confuse."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import BIN, Client, Daemon, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("docker"), reason="the docker CLI is not installed")

Start = Callable[..., Daemon]

NAME = f"engine-test-{os.getpid()}"  # of the authorization plugin: its place is the whole machine's


@pytest.fixture(scope="module")
def certificates(scratch: Path) -> Path:
    """A CA and another; a server's certificate; a client of ours, and one whose certificate the other CA signed."""
    root = scratch / "tls"

    def engine(*words: str) -> None:
        subprocess.run([str(BIN / "engine"), "cert", *words], check=True, capture_output=True)

    for ca in ("ca", "other"):
        engine("ca", "--dir", str(root / ca))
    engine("server", "--dir", str(root / "ca"), "--out", str(root / "server"), "localhost", "127.0.0.1")
    engine("client", "--dir", str(root / "ca"), "--out", str(root / "alice"), "alice")
    engine("client", "--dir", str(root / "other"), "--out", str(root / "mallory"), "mallory")
    return root


@pytest.fixture
def tls_daemon(own_daemon: Start, certificates: Path) -> Daemon:
    files = certificates / "server"
    return own_daemon(
        "--tlsverify",
        *(
            "--tlscacert",
            str(files / "ca.pem"),
            "--tlscert",
            str(files / "cert.pem"),
            "--tlskey",
            str(files / "key.pem"),
        ),
        *("-H", "tcp://127.0.0.1:2376"),
    )


def remote(
    certificates: Path, client: str, *words: str, input: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    directory = certificates / client
    return subprocess.run(
        ["docker", "--config", str(directory / "config"), *words],
        input=input,
        capture_output=True,
        timeout=60,
        env={
            "PATH": os.environ["PATH"],
            "DOCKER_HOST": "tcp://127.0.0.1:2376",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(directory),
        },
    )


def test_a_client_with_a_certificate_works_as_on_the_socket(tls_daemon: Daemon, certificates: Path) -> None:
    def docker(*words: str, input: bytes | None = None) -> bytes:
        done = remote(certificates, "alice", *words, input=input)
        assert done.returncode == 0, done
        return done.stdout

    assert docker("run", "--rm", "bb", "echo", "over TLS") == b"over TLS\n"
    big = os.urandom(3_000_000)
    assert docker("run", "--rm", "-i", "bb", "cat", input=big) == big  # the end of input arrives, the output goes on
    docker("run", "-d", "--name", "tls", "bb", "sleep", "99")
    assert docker("exec", "-i", "tls", "wc", "-c", input=b"x" * 100_000).strip() == b"100000"
    docker("rm", "-f", "tls")


def test_without_a_certificate_of_the_ca_nobody_comes_in(tls_daemon: Daemon, certificates: Path) -> None:
    refused = remote(certificates, "mallory", "version")
    assert refused.returncode == 1
    assert b"certificate" in refused.stderr

    context = ssl.create_default_context(cafile=str(certificates / "ca" / "ca.pem"))
    with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", 2376)) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as door:
            door.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            if not door.recv(100):
                raise ssl.SSLError("closed")


def test_plain_http_at_the_tls_door_is_told_so(tls_daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", 2376)) as plain:
        plain.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(10)
        assert plain.recv(1000).startswith(b"HTTP/1.0 400 Bad Request")


def test_half_finished_handshakes_do_not_keep_others_out(tls_daemon: Daemon, certificates: Path) -> None:
    idle = [socket.create_connection(("127.0.0.1", 2376)) for _ in range(300)]
    try:
        for sock in idle:
            sock.sendall(b"\x16\x03\x01\x02\x00")
        started = time.monotonic()
        assert remote(certificates, "alice", "version").returncode == 0
        assert time.monotonic() - started < 10
    finally:
        for sock in idle:
            sock.close()


def test_tcp_beyond_loopback_needs_certificates(target: str, scratch: Path) -> None:
    if target == "dockerd":
        pytest.skip("dockerd serves it, with a warning")
    done = subprocess.run(
        [
            str(BIN / "engined"),
            "--data-root",
            str(scratch / "x"),
            "--exec-root",
            str(scratch / "y"),
            "-H",
            "tcp://0.0.0.0:0",
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "--tlsverify" in done.stderr
    assert "--insecure-tcp" in done.stderr


# -- authorization -------------------------------------------------------------------------------------------------


class Plugin:
    """An authorization plugin of Docker's kind on a unix socket."""

    def __init__(self, name: str) -> None:
        self.path = Path(f"/run/docker/plugins/{name}.sock")
        self.asked: list[dict[str, object]] = []
        self.broken = False
        self.decide: Callable[[str, dict[str, object]], dict[str, object]] = lambda method, question: {"Allow": True}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        plugin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/Plugin.Activate":
                    answer: dict[str, object] = {"Implements": ["authz"]}
                else:
                    if plugin.broken:
                        self.send_error(500)
                        return
                    question = json.loads(body)
                    plugin.asked.append({"call": self.path.rpartition(".")[2], **question})
                    answer = plugin.decide(self.path.rpartition(".")[2], question)
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

            def address_string(self) -> str:
                return "unix"

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self.server = Server(str(self.path), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    made = Plugin(NAME)
    yield made
    made.close()


def test_an_authorization_plugin_sees_the_whole_body_and_can_refuse(
    plugin: Plugin, own_daemon: Start, scratch: Path
) -> None:
    daemon = own_daemon("--authorization-plugin", NAME)
    docker = Client("docker", daemon, scratch)

    def no_privilege(method: str, question: dict[str, object]) -> dict[str, object]:
        body = json.loads(base64.b64decode(str(question.get("RequestBody") or "")) or b"{}")
        if (body.get("HostConfig") or {}).get("Privileged"):
            return {"Allow": False, "Msg": "privileged is not for you"}
        return {"Allow": True}

    plugin.decide = no_privilege
    assert docker("run", "--rm", "bb", "echo", "allowed").out == "allowed\n"
    refused = docker("run", "--rm", "--privileged", "bb", "true", check=False)
    assert refused.code == 125
    assert f"authorization denied by plugin {NAME}: privileged is not for you" in refused.err

    large = [word for number in range(20) for word in ("-l", f"l{number}=" + "x" * 40_000)]
    refused = docker("create", *large, "--privileged", "bb", "true", check=False)
    assert "privileged is not for you" in refused.err  # 800 kB of labels hide nothing
    creates = [asked for asked in plugin.asked if "/containers/create" in str(asked["RequestUri"])]
    assert all("RequestBody" in asked for asked in creates if asked["call"] == "AuthZReq")
    assert {"AuthZReq", "AuthZRes"} <= {str(asked["call"]) for asked in plugin.asked}
    plugin.decide = lambda method, question: {"Allow": True}


def test_a_body_without_a_length_is_authorized_too(plugin: Plugin, own_daemon: Start) -> None:
    """CVE-2024-41110: a request that says it has no body, or sends it in chunks, must not slip past."""
    daemon = own_daemon("--authorization-plugin", NAME, image=False)
    seen: list[bytes] = []

    def note(method: str, question: dict[str, object]) -> dict[str, object]:
        if method == "AuthZReq":
            seen.append(base64.b64decode(str(question.get("RequestBody") or "")))
        return {"Allow": method != "AuthZReq" or "/containers/create" not in str(question["RequestUri"])}

    plugin.decide = note
    body = json.dumps({"Image": "bb", "HostConfig": {"Privileged": True}}).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(
            b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
        assert b" 403 " in client.recv(4096)
    assert seen[-1] == body
    plugin.decide = lambda method, question: {"Allow": True}


def test_without_its_plugin_the_daemon_serves_nobody(
    target: str, plugin: Plugin, own_daemon: Start, scratch: Path
) -> None:
    daemon = own_daemon("--authorization-plugin", NAME)
    docker = Client("docker", daemon, scratch)
    plugin.broken = True
    failed = docker("ps", check=False)
    assert failed.code == 1
    assert f"plugin {NAME} failed with error: " in failed.err
    plugin.broken = False
    docker("ps")


def test_a_certificates_name_is_the_user_that_plugins_see(
    plugin: Plugin, own_daemon: Start, certificates: Path
) -> None:
    files = certificates / "server"
    own_daemon(
        "--tlsverify",
        *(
            "--tlscacert",
            str(files / "ca.pem"),
            "--tlscert",
            str(files / "cert.pem"),
            "--tlskey",
            str(files / "key.pem"),
        ),
        *("-H", "tcp://127.0.0.1:2376", "--authorization-plugin", NAME),
        image=False,
    )
    assert remote(certificates, "alice", "ps").returncode == 0
    wait_for(lambda: any(asked.get("User") == "alice" for asked in plugin.asked), "alice to be seen")
    assert {asked["UserAuthNMethod"] for asked in plugin.asked if asked.get("User")} == {"TLS"}


# -- requests made to confuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: -1\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: d\r\nContent-Length : 3\r\n\r\nabc",
        b"GET /_ping HTTP/1.1\r\n\r\n",
    ],
    ids=["two-lengths", "negative-length", "space-before-colon", "no-host"],
)
def test_ambiguous_requests_are_refused(daemon: Daemon, head: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(daemon.socket))
        client.sendall(head)
        assert b" 400 " in client.recv(4096)


def test_deep_and_huge_json_is_refused_and_the_daemon_lives(daemon: Daemon, docker: Client) -> None:
    if daemon.target == "dockerd":
        pytest.skip("dockerd 20.10 reads all of it")
    for body in (b"[" * 100_000, b'{"Image":"' + b"x" * (40 << 20) + b'"}'):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(daemon.socket))
            try:
                client.sendall(
                    b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(body)
                )
                client.sendall(body)
            except OSError:
                pass  # refused before all of it was read
            assert b" 4" in client.recv(4096)[:20]
    docker("version")
