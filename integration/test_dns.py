"""Names on user-defined networks: what containers ask 127.0.0.11 and what they are told, at once and always."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from harness import Client, Daemon, wait_for

from engine import kernel

A, PTR, AAAA = 1, 12, 28
NXDOMAIN = 3
NOTHING = (["NXDOMAIN"], ["code 2"], ["no answer"])


def question(name: str, kind: int, *, edns: int = 0) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 1 if edns else 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    return query + (b"\0" + struct.pack("!HHIH", 41, edns, 0, 0) if edns else b"")


def ask(path: str, query: bytes, *, tcp: bool = False) -> bytes:
    """What 127.0.0.11 says in the network namespace at ``path``."""

    def exchange() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(("127.0.0.11", 53))
            sock.sendall(struct.pack("!H", len(query)) + query if tcp else query)
            answer = sock.recv(65535)
            while tcp and len(answer) - 2 < struct.unpack_from("!H", answer)[0]:
                answer += sock.recv(65535)
            return answer[2:] if tcp else answer

    return kernel.in_namespace(path, exchange)


class Names:
    """Asks as a container does."""

    def __init__(self, cli: Client) -> None:
        self.cli = cli
        self.sandboxes: dict[str, str] = {}

    def sandbox(self, container: str) -> str:
        if container not in self.sandboxes:
            self.sandboxes[container] = str(self.cli.inspect(container)["NetworkSettings"]["SandboxKey"])
        return self.sandboxes[container]

    def __call__(self, container: str, name: str, kind: int = A) -> list[str]:
        """The answers: addresses, or names for PTR; empty for NODATA; ``["NXDOMAIN"]`` and the like for errors."""
        try:
            answer = ask(self.sandbox(container), question(name, kind))
        except TimeoutError:
            return ["no answer"]  # an older dockerd's when no server outside answers
        code = answer[3] & 0xF
        if code:
            return ["NXDOMAIN" if code == NXDOMAIN else f"code {code}"]
        offset = answer.index(b"\0", 12) + 5
        found = []
        for _ in range(struct.unpack_from("!H", answer, 6)[0]):
            offset = offset + 2 if answer[offset] >= 0xC0 else answer.index(b"\0", offset) + 1
            kind, _, _, size = struct.unpack_from("!HHIH", answer, offset)
            data = answer[offset + 10 : offset + 10 + size]
            offset += 10 + size
            found.append(str(ip_address(data)) if kind in (A, AAAA) else _labels(data))
        return found


def _labels(data: bytes) -> str:
    words = []
    while data and data[0]:
        words.append(data[1 : data[0] + 1].decode())
        data = data[data[0] + 1 :]
    return ".".join(words)


@contextmanager
def server(address: str, respond: Callable[[bytes], bytes | None], port: int = 53) -> Iterator[list[str]]:
    """A nameserver; yields the addresses of those who asked, in order."""
    clients: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.settimeout(0.2)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    query, client = sock.recvfrom(4096)
                except TimeoutError:
                    continue
                clients.append(client[0])
                answer = respond(query)
                if answer is not None:
                    sock.sendto(answer, client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield clients
        finally:
            done.set()
            thread.join()


def always(address: str) -> Callable[[bytes], bytes]:
    def respond(query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5
        record = struct.pack("!HHHIH", 0xC00C, A, 1, 60, 4) + socket.inet_aton(address)
        return query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + query[12:end] + record

    return respond


@pytest.fixture
def network(cli: Client, name: str) -> Iterator[str]:
    text = f"{name[:40]}-n"
    cli("network", "create", "--subnet", "10.78.0.0/24", "--gateway", "10.78.0.1", text)
    yield text
    for container in cli("ps", "-aq", "--filter", f"network={text}").out.split():
        cli("rm", "-f", container)
    cli("network", "rm", text)


@pytest.fixture
def names(cli: Client) -> Names:
    return Names(cli)


def run(cli: Client, network: str, name: str, *options: str) -> str:
    """Start a sleeping container; its address. What it asks outside is refused at once unless a test serves there."""
    dns = () if "--dns" in options else ("--dns", "10.78.0.1")
    cli("run", "-d", "--network", network, "--name", name, *dns, *options, "bb", "sleep", "600")
    return str(cli.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"])


def test_containers_of_a_user_network_find_each_other_by_name(cli: Client, network: str, names: Names) -> None:
    one = run(cli, network, "one", "--network-alias", "first", "--hostname", "host-one")
    two = run(cli, network, "two")
    identifier = cli.inspect("two")["Id"]

    assert names("one", "two") == names("one", f"two.{network}") == names("one", "TWO") == [two]
    assert names("two", "first") == names("two", "host-one") == names("two", "one") == [one]
    assert names("one", identifier[:12]) == [two]
    assert names("one", "two", AAAA) == []
    assert names("one", ip_address(two).reverse_pointer, PTR) == [f"two.{network}"]
    assert cli("exec", "one", "ping", "-c", "1", "-W", "2", "two").code == 0


def test_the_default_bridge_has_no_names(cli: Client, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sleep", "600")

    assert "127.0.0.11" not in cli("exec", name, "cat", "/etc/resolv.conf").out
    assert cli("run", "--rm", "bb", "ping", "-c", "1", "-W", "1", name, check=False).code != 0


def test_resolv_conf_names_the_resolver_and_keeps_what_was_asked_for(cli: Client, network: str) -> None:
    cli("run", "-d", "--network", network, "--name", "plain", "bb", "sleep", "600")
    run(cli, network, "asked", "--dns", "10.78.0.1", "--dns-search", "corp.test", "--dns-option", "timeout:3")

    plain = cli("exec", "plain", "cat", "/etc/resolv.conf").out.splitlines()
    asked = cli("exec", "asked", "cat", "/etc/resolv.conf").out.splitlines()

    assert "nameserver 127.0.0.11" in plain
    assert any(line.startswith("options") and "ndots:0" in line for line in plain)
    assert [line for line in asked if line.startswith("nameserver")] == ["nameserver 127.0.0.11"]
    assert "search corp.test" in asked
    assert "options timeout:3 ndots:0" in asked


def test_an_alias_of_several_is_answered_with_all_in_turn(cli: Client, network: str, names: Names) -> None:
    addresses = {run(cli, network, f"web{number}", "--network-alias", "web") for number in range(3)}

    answers = [names("web0", "web") for _ in range(30)]

    assert all(set(answer) == addresses for answer in answers)
    assert {answer[0] for answer in answers} == addresses


def test_names_follow_connect_disconnect_rename_and_stop_at_once(
    cli: Client, network: str, names: Names, name: str
) -> None:
    run(cli, network, "asker")
    cli("run", "-d", "--name", name, "bb", "sleep", "600")
    assert names("asker", name) in NOTHING

    cli("network", "connect", "--alias", "late", network, name)
    address = cli.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"]
    assert names("asker", "late") == names("asker", name) == [address]
    assert len(names(name, "asker")) == 1  # it asks as well now
    assert address in cli("exec", name, "cat", "/etc/hosts").out
    assert "nameserver 127.0.0.11" in cli("exec", name, "cat", "/etc/resolv.conf").out

    cli("rename", name, "other-name")
    assert names("asker", "other-name") == [address]
    assert names("asker", name) != [address]
    cli("rename", "other-name", name)

    cli("network", "disconnect", network, name)
    assert names("asker", "late") != [address]
    assert address not in cli("exec", name, "cat", "/etc/hosts").out

    cli("network", "connect", network, name)
    cli("stop", "-t", "0", name)
    assert names("asker", name) != [address]


def test_links_give_names_of_ones_own(cli: Client, network: str, names: Names) -> None:
    address = run(cli, network, "database")
    run(cli, network, "app", "--link", "database:db")
    run(cli, network, "other")

    assert names("app", "db") == names("app", "database") == [address]
    assert names("other", "db") != [address]


def test_everything_else_is_asked_outside_from_the_containers_own_view(cli: Client, network: str, names: Names) -> None:
    with server("10.78.0.1", always("192.0.2.7")) as clients:
        address = run(cli, network, "asker", "--dns", "10.78.0.1")

        assert names("asker", "example.test") == ["192.0.2.7"]
        assert names("asker", "single") == ["192.0.2.7"]
        assert set(clients) == {address}


def test_a_server_that_fails_is_followed_by_the_next(cli: Client, network: str, names: Names) -> None:
    def fail(query: bytes) -> bytes:
        return query[:2] + b"\x81\x82" + query[4:]

    subprocess.run(["ip", "address", "replace", "10.79.0.1/32", "dev", "lo"], check=True)
    with server("10.78.0.1", fail) as first, server("10.79.0.1", always("192.0.2.1")) as second:
        run(cli, network, "asker", "--dns", "10.78.0.1", "--dns", "10.79.0.1")

        assert names("asker", "example.test") == ["192.0.2.1"]
        assert first
        assert second


def test_an_internal_network_has_names_and_no_outside(cli: Client, names: Names, name: str) -> None:
    network = f"{name[:40]}-i"
    cli("network", "create", "--internal", network)
    try:
        run(cli, network, "inner")
        address = run(cli, network, "inner2")
        assert names("inner", "inner2") == [address]
        assert names("inner", "example.test") in NOTHING
    finally:
        cli("rm", "-f", "inner", "inner2")
        cli("network", "rm", network)


def test_a_container_may_serve_port_53_itself(cli: Client, network: str, names: Names) -> None:
    address = run(cli, network, "asker")
    path = names.sandbox("asker")

    def bind() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 53))
        return sock

    with kernel.in_namespace(path, bind):
        assert names("asker", "asker") == [address]


def test_nonsense_is_survived(cli: Client, network: str, names: Names) -> None:
    address = run(cli, network, "asker")
    path = names.sandbox("asker")
    good = question("asker", A)

    def throw() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.11", 53))
            for size in range(len(good)):
                sock.send(good[:size])
            for position in range(len(good)):
                sock.send(good[:position] + b"\xff" + good[position + 1 :])
            sock.send(b"\0\7\1\0\0\1\0\0\0\0\0\0\0\0\1\0\1")  # the root
            sock.send(os.urandom(4000))
            sock.send(good[:2] + b"\x84" + good[3:])

    kernel.in_namespace(path, throw)
    assert names("asker", "asker") == [address]


def test_names_outlive_the_daemon_and_its_resolver(own_daemon: Callable[..., Daemon], home: Path, target: str) -> None:
    if target != "engine":
        pytest.skip("dockerd's resolver is the daemon")
    daemon = own_daemon()
    cli = Client("docker", daemon, home)
    names = Names(cli)
    cli("network", "create", "outlive")
    address = run(cli, "outlive", "survivor")
    path = names.sandbox("survivor")
    query = question("survivor", A)

    daemon.stop(signal.SIGKILL)
    assert socket.inet_aton(address) in ask(path, query)
    daemon.start()
    assert names("survivor", "survivor") == [address]
    late = run(cli, "outlive", "late")
    assert names("survivor", "late") == [late]

    (pid,) = _resolvers(path)
    os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        try:
            return names("survivor", "late") == [late]
        except OSError:
            return False

    wait_for(answers, "the resolver to be started again")
    cli("rm", "-f", "survivor", "late")
    cli("network", "rm", "outlive")


def _resolvers(path: str) -> list[int]:
    """The resolver processes that hold the network namespace at ``path`` open."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            ours = entry.name.isdigit() and (entry / "cmdline").read_bytes().endswith(b"networks/resolver.py\0")
            if ours and path in {os.readlink(fd) for fd in (entry / "fd").iterdir()}:
                found.append(int(entry.name))
        except OSError:
            continue
    return found
