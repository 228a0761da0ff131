"""The docker CLI at a terminal: sizes, detaching, attaching again, and what Ctrl-C does."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator

import pytest
from harness import Client, wait_for


class Terminal:
    """A command with a terminal of its own, and somebody who types and reads there."""

    def __init__(self, client: Client, *args: str, rows: int = 24, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = subprocess.Popen(
            client.argv(*args),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**client.environment, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: str, patience: float = 20) -> str:
        """Read until ``text`` comes; all that was read since the last time."""
        deadline = time.monotonic() + patience
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    break
        before, found, self.seen = self.seen.partition(text)
        assert found, f"no {text!r} in {before!r}"
        return before

    def end(self) -> int:
        """Its exit code, read to the end."""
        try:
            while data := os.read(self._master, 65536):
                self.seen += data.decode(errors="replace")
        except OSError:
            pass
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


Opener = Callable[..., Terminal]


@pytest.fixture
def terminal(cli: Client) -> Iterator[Opener]:
    made: list[Terminal] = []

    def start(*args: str, **size: int) -> Terminal:
        made.append(Terminal(cli, *args, **size))
        return made[-1]

    yield start
    for each in made:
        each.close()


def state(cli: Client, name: str) -> str:
    return str(cli.inspect(name)["State"]["Status"])


def test_the_size_follows_the_window(terminal: Opener, name: str) -> None:
    shell = terminal("run", "-it", "--name", name, "bb", "sh", rows=33, columns=111)
    shell.expect("# ")
    shell.type("until [ \"$(stty size)\" = '33 111' ]; do sleep 0.1; done; echo first$((1))\n")
    shell.expect("first1")
    shell.resize(44, 99)
    os.kill(shell.process.pid, signal.SIGWINCH)
    shell.type("until [ \"$(stty size)\" = '44 99' ]; do sleep 0.1; done; echo second$((1))\n")
    shell.expect("second1")
    shell.type("exit 7\n")
    assert shell.end() == 7


@pytest.mark.parametrize(("keys", "typed"), [((), "\x10\x11"), (("--detach-keys", "ctrl-e,e"), "\x05e")])
def test_detaching_leaves_it_running_and_attaching_comes_back(
    cli: Client, terminal: Opener, name: str, keys: tuple[str, ...], typed: str
) -> None:
    shell = terminal("run", "-it", *keys, "--name", name, "bb", "sh")
    shell.expect("# ")
    shell.type(typed)
    assert shell.end() == 0
    assert state(cli, name) == "running"
    again = terminal("attach", name)
    again.type("\necho back$((1))\n")
    again.expect("back1")
    again.type("exit 3\n")
    assert again.end() == 3
    assert state(cli, name) == "exited"


def test_ctrl_c_reaches_the_process_as_a_signal_or_a_key(terminal: Opener) -> None:
    trap = "trap 'echo got; exit 9' INT; echo up; while :; do sleep 0.1; done"
    for flags in ((), ("-it",)):
        running = terminal("run", "--rm", *flags, "bb", "sh", "-c", trap)
        running.expect("up")
        running.type("\x03")
        running.expect("got")
        assert running.end() == 9


def test_ctrl_c_ends_following_the_log_and_not_the_container(cli: Client, terminal: Opener, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sh", "-c", "while :; do echo tick; sleep 0.1; done")
    following = terminal("logs", "-f", name)
    following.expect("tick")
    following.type("\x03")
    assert following.end() in (130, -2)
    assert state(cli, name) == "running"


def test_exec_has_a_terminal_of_its_own_and_can_be_left(cli: Client, terminal: Opener, name: str) -> None:
    cli("run", "-d", "--name", name, "bb", "sleep", "99")
    shell = terminal("exec", "-it", name, "sh")
    shell.expect("# ")
    shell.type("tty; echo asked$((1))\n")
    assert "/dev/pts/" in shell.expect("asked1")
    shell.type("\x10\x11")
    shell.end()
    assert "sh" in cli("top", name).out
    wait_for(lambda: state(cli, name) == "running", "the container to be left alone")
