"""The resolver process by itself: what it answers in a sandbox, how it is kept in step, how it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine import kernel
from engine.errors import EngineError
from engine.networks import dns, sandbox
from engine.networks.resolver import payload_size, question_end, reply, wire_name

A, AAAA = 1, 28


def query(name: str, kind: int = A, *, edns: int = 0) -> bytes:
    text = struct.pack("!HHHHHH", 9, 0x100, 1, 0, 0, 1 if edns else 0) + wire_name(name) + b"\0"
    return text + struct.pack("!HH", kind, 1) + (b"\0" + struct.pack("!HHIH", 41, edns, 0, 0) if edns else b"")


def count(answer: bytes) -> int:
    return int(struct.unpack_from("!H", answer, 6)[0])


def endpoint(
    names: Sequence[str], addresses: Sequence[str], links: Mapping[str, str] | None = None, network: str = "n1"
) -> dict[str, Any]:
    return {"network": network, "suffix": "net", "names": names, "addresses": addresses, "links": links or {}}


def test_a_question_ends_after_its_class_and_a_broken_one_nowhere() -> None:
    good = query("a.b")
    assert question_end(good) == len(good)
    assert all(question_end(good[:size]) == 0 for size in range(len(good)))
    assert question_end(good[:12] + b"\xc0\x0c\0\1\0\1") == 0


def test_names_dns_cannot_say_are_left_out() -> None:
    assert wire_name("Web_1.Net") == b"\5web_1\3net"
    assert wire_name("x" * 64) == wire_name("a..b") == wire_name("") == b""


def test_an_answer_that_does_not_fit_says_so() -> None:
    text = query("crowd")
    records = [bytes(16)] * 40
    assert count(reply(text, len(text), records)) == 40
    short = reply(text, len(text), records, limit=512)
    assert len(short) <= 512
    assert short[2] & 2
    assert payload_size(text, len(text)) == 0
    wide = query("crowd", edns=4096)
    assert payload_size(wide, question_end(wide)) == 4096


class Lab:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.resolver = dns.Resolver(root)
        self.paths: dict[str, Path] = {}

    def sandbox(self, name: str) -> Path:
        self.paths[name] = self.root / "netns" / name
        sandbox.create(self.paths[name])
        return self.paths[name]

    def describe(self, name: str, *endpoints: Mapping[str, Any], **options: Any) -> dns.Description:
        return dns.describe(self.paths[name], endpoints, **options)

    def ask(self, name: str, text: bytes, *, tcp: bool = False) -> bytes:
        def exchange() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.connect((dns.ADDRESS, 53))
                sock.sendall(struct.pack("!H", len(text)) + text if tcp else text)
                return sock.recv(65535)[2 if tcp else 0 :]

        return kernel.in_namespace(self.paths[name], exchange)

    def process(self) -> int:
        return self.resolver._child


@pytest.fixture
def lab(private_network: None, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    made.sandbox("a")
    made.sandbox("b")
    yield made
    made.resolver.restore({})
    made.resolver.disconnect()
    if made.process():
        os.waitpid(made.process(), 0)  # without sandboxes and engines it ends by itself
    for path in made.paths.values():
        sandbox.delete(path)


@pytest.mark.root
def test_crowds_come_whole_by_edns_and_by_tcp(lab: Lab) -> None:
    crowd = endpoint(["crowd"], [f"10.0.0.{number}" for number in range(2, 42)])
    lab.resolver.update({"a": lab.describe("a", crowd)})

    assert count(lab.ask("a", query("crowd"))) < 40
    assert count(lab.ask("a", query("crowd", edns=1232))) == 40
    assert count(lab.ask("a", query("crowd"), tcp=True)) == 40


@pytest.mark.root
def test_answers_given_before_are_forgotten_when_names_change(lab: Lab) -> None:
    lab.resolver.update({"a": lab.describe("a", endpoint(["one"], ["10.0.0.2"]))})
    assert count(lab.ask("a", query("two"))) == 0
    lab.resolver.update({"b": lab.describe("b", endpoint(["two"], ["10.0.0.3"]))})
    assert socket.inet_aton("10.0.0.3") in lab.ask("a", query("two"))
    lab.resolver.update({"b": lab.describe("b", endpoint(["two"], ["10.0.0.4"]))})
    assert socket.inet_aton("10.0.0.4") in lab.ask("a", query("two"))
    lab.resolver.update({"b": None})
    assert count(lab.ask("a", query("two"))) == 0


@pytest.mark.root
def test_names_of_one_network_are_not_seen_from_another(lab: Lab) -> None:
    lab.resolver.update(
        {
            "a": lab.describe("a", endpoint(["one"], ["10.0.0.2"], network="n1")),
            "b": lab.describe("b", endpoint(["two"], ["10.0.0.3", "fd00::3"], network="n2")),
        }
    )
    assert count(lab.ask("a", query("two"))) == 0
    assert count(lab.ask("b", query("two", AAAA))) == 1


@pytest.mark.root
def test_a_killed_process_is_replaced_and_knows_everything(lab: Lab) -> None:
    lab.resolver.update({"a": lab.describe("a", endpoint(["one"], ["10.0.0.2"]))})
    watched = lab.resolver.watch()
    assert watched is not None
    os.kill(lab.process(), signal.SIGKILL)
    with watched:
        assert select.select([watched], [], [], 10)[0]  # it has ended
    lab.resolver.revive()
    assert count(lab.ask("a", query("one"))) == 1


@pytest.mark.root
def test_the_next_engine_finds_the_process_and_says_what_should_be(lab: Lab) -> None:
    lab.resolver.update({name: lab.describe(name, endpoint([name], ["10.0.0.2"])) for name in ("a", "b")})
    lab.resolver.disconnect()
    assert count(lab.ask("a", query("b"))) == 1
    later = dns.Resolver(lab.root)
    later.restore({"a": lab.describe("a", endpoint(["a"], ["10.0.0.2"]))})
    assert count(lab.ask("a", query("b"))) == 0
    assert later._child == 0
    later.disconnect()


@pytest.mark.root
def test_a_sandbox_that_is_gone_is_an_error_and_disturbs_nobody(lab: Lab) -> None:
    lab.resolver.update({"a": lab.describe("a", endpoint(["one"], ["10.0.0.2"]))})
    lab.paths["gone"] = lab.root / "gone"
    with pytest.raises(EngineError, match="name resolver"):
        lab.resolver.update({"gone": lab.describe("gone", endpoint(["x"], ["10.0.0.9"]))})
    assert count(lab.ask("a", query("one"))) == 1


@pytest.mark.root
def test_a_silent_server_does_not_hold_up_other_questions(lab: Lab) -> None:
    silent = kernel.in_namespace(lab.paths["a"], lambda: _bound("127.0.0.5"))
    lab.resolver.update({"a": lab.describe("a", endpoint(["one"], ["10.0.0.2"]), servers=["127.0.0.5"])})
    waiting = threading.Thread(target=lambda: lab.ask("a", query("outside.test")))
    waiting.start()
    with silent:
        heard, client = silent.recvfrom(512)
        assert count(lab.ask("a", query("one"))) == 1
        silent.sendto(heard[:2] + b"\x81\x83" + heard[4:], client)
    waiting.join()


def _bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 53))
    return sock


@pytest.mark.root
def test_known_names_cost_two_system_calls(lab: Lab, tmp_path: Path) -> None:
    """A rate is the machine's, a count is ours: recvfrom and sendto, and a share of one epoll_wait."""
    strace = "/usr/bin/strace"
    if not os.path.exists(strace):
        pytest.skip("needs strace")
    import subprocess

    lab.resolver.update({"a": lab.describe("a", endpoint(["one"], ["10.0.0.2"]))})
    lab.ask("a", query("one"))
    log = tmp_path / "trace"
    tracer = subprocess.Popen([strace, "-c", "-o", str(log), "-p", str(lab.process())], stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    tracer.stderr.readline()  # attached

    def burst(number: int, window: int) -> Callable[[], None]:
        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.connect((dns.ADDRESS, 53))
                for _ in range(number // window):
                    for _ in range(window):
                        sock.send(query("one"))
                    for _ in range(window):
                        sock.recv(512)

        return send

    kernel.in_namespace(lab.paths["a"], burst(1000, 50))
    tracer.send_signal(signal.SIGINT)
    tracer.wait(10)
    tracer.stderr.close()
    calls = {line.split()[-1]: int(line.split()[3]) for line in log.read_text().splitlines()[2:] if "sendto" in line}
    total = int(log.read_text().splitlines()[-1].split()[2])
    assert calls["sendto"] >= 1000
    assert total <= 4 * 1000
