"""The launcher and its monitors, driven for real with a fake runtime: a script that starts a detached process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.log import LogWriter
from engine.drivers.runtime import Launch
from engine.errors import Conflict, EngineError, NotFound
from engine.monitor import wire
from engine.monitor.client import Exit, Launcher, LaunchFailed, Monitor, Task, read_exit

# A runtime as `Launch` describes it: starts its arguments detached on its own stdio, writes the process id, exits.
# (Not a shell script: shells reap a child that is quicker than they are, which no runtime does.)
RUNTIME = f"""#!{getattr(sys, "_base_executable", sys.executable)} -IS
import os, sys
pid = os.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(pid))
"""
LOG_WRITER = """
class Log:
    def __init__(self, options):
        self.file = open(options["path"], "ab", buffering=0)
    def write(self, stream, data, now_ns):
        self.file.write(data)
    def sync(self):
        self.file.write(b"<end>")
    def close(self):
        self.file.close()
def open_log(options):
    return Log(options)
"""

Run = Callable[[Callable[["Bench"], Coroutine[Any, Any, None]]], None]


class Bench:
    """A launcher, and tasks made easily."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runtime = root / "runtime"
        self.runtime.write_text(RUNTIME)
        self.runtime.chmod(0o755)
        self.writer = root / "writer.py"
        self.writer.write_text(LOG_WRITER)
        self.log = root / "log"
        self.launcher = Launcher(preload=[self.writer])
        self.monitors: list[Monitor] = []
        self.clients: list[Client] = []

    def task(self, *argv: str, name: str = "one", **more: Any) -> Task:
        directory = self.root / name
        directory.mkdir(exist_ok=True, mode=0o700)
        launch = Launch(argv=(str(self.runtime), str(directory / "pid"), *argv), pid_file=directory / "pid")
        more.setdefault("log", LogWriter(source=self.writer, options={"path": str(self.log)}))
        return Task(id=name, directory=directory, **{"launch": launch, **more})

    async def spawn(self, *argv: str, **more: Any) -> Monitor:
        monitor = await self.launcher.spawn(self.task(*argv, **more))
        self.monitors.append(monitor)
        return monitor

    async def attach(self, monitor: Monitor, **more: Any) -> Client:
        client = Client()
        self.clients.append(client)
        options = {"stdin": True, "stdout": True, "stderr": True, **more}
        client.ended = await monitor.attach(client.far, **options)
        return client

    async def close(self) -> None:
        for client in self.clients:
            client.near.close()
            client.far.close()
        for monitor in self.monitors:
            try:
                await monitor.kill(signal.SIGKILL)
            except EngineError:
                pass
            monitor.close()
        await self.launcher.stop()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def runner(body: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
        async def everything() -> None:
            bench = Bench(tmp_path)
            try:
                await asyncio.wait_for(body(bench), 30)
            finally:
                await bench.close()

        asyncio.run(everything())

    return runner


class Client:
    """The far end of an attachment."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.ended: asyncio.Future[str] | None = None

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.near, data)

    async def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await asyncio.get_running_loop().sock_recv(self.near, size - len(data))
            if not more:
                break
            data += more
        return data

    async def rest(self) -> bytes:
        parts = []
        while part := await asyncio.get_running_loop().sock_recv(self.near, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    async def frames(self) -> dict[int, bytes]:
        data, found = await self.rest(), {1: b"", 2: b""}
        while data:
            stream, length = struct.unpack(">BxxxL", data[:8])
            found[stream] += data[8 : 8 + length]
            data = data[8 + length :]
        return found

    def end_input(self) -> None:
        self.near.shutdown(socket.SHUT_WR)


def test_exit_code_and_output_are_kept(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("sh", "-c", "echo out; echo err >&2; exit 7")
        pid = await monitor.start()
        assert pid > 0
        end = await monitor.exit
        assert (end.code, end.oom_killed, end.error) == (7, False, "")
        assert read_exit(monitor.directory) == end
        assert bench.log.read_bytes() in (b"out\nerr\n<end>", b"err\nout\n<end>")
        assert not (monitor.directory / "monitor.sock").exists()

    run(body)


def test_death_by_a_signal_is_128_and_the_signal(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("sleep", "60")
        await monitor.start()
        await monitor.kill(signal.SIGTERM)
        assert (await monitor.exit).code == 128 + signal.SIGTERM
        with pytest.raises(Conflict):
            await monitor.kill(signal.SIGTERM)

    run(body)


def test_a_failed_start_tells_status_and_text_and_ends_the_monitor(run: Run) -> None:
    async def body(bench: Bench) -> None:
        task = bench.task()
        bench.runtime.write_text("#!/bin/sh\necho no such thing >&2; exit 3\n")
        monitor = await bench.launcher.spawn(task)
        client = await bench.attach(monitor)
        with pytest.raises(LaunchFailed) as failure:
            await monitor.start()
        assert (failure.value.status, failure.value.text) == (3, "no such thing")
        assert await client.rest() == b""
        with pytest.raises(NotFound):
            await Monitor.connect(task.directory)

    run(body)


def test_a_runtime_that_cannot_be_executed_is_a_failed_start(run: Run) -> None:
    async def body(bench: Bench) -> None:
        launch = Launch(argv=("/nonexistent/runtime",), pid_file=bench.root / "pid")
        monitor = await bench.spawn(launch=launch)
        with pytest.raises(LaunchFailed, match=r"/nonexistent/runtime.*No such file"):
            await monitor.start()

    run(body)


def test_a_runtime_that_hangs_is_killed_at_the_deadline(run: Run) -> None:
    async def body(bench: Bench) -> None:
        task = bench.task()
        bench.runtime.write_text("#!/bin/sh\nsleep 60\n")
        monitor = await bench.launcher.spawn(task)
        with pytest.raises(LaunchFailed, match="in time"):
            await monitor.start(deadline=0.05)

    run(body)


def test_killing_a_start_ends_it(run: Run) -> None:
    async def body(bench: Bench) -> None:
        task = bench.task()
        bench.runtime.write_text(f"#!/bin/sh\necho > {bench.root}/running; sleep 60\n")
        monitor = await bench.launcher.spawn(task)
        starting = asyncio.ensure_future(monitor.start())
        while not (bench.root / "running").exists():
            await asyncio.sleep(0.002)
        await monitor.kill(signal.SIGKILL)
        with pytest.raises(LaunchFailed, match="killed while starting"):
            await starting

    run(body)


def test_an_attachment_made_before_the_start_misses_nothing(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("sh", "-c", "echo out; echo err >&2")
        client = await bench.attach(monitor)
        await monitor.start()
        assert await client.frames() == {1: b"out\n", 2: b"err\n"}
        assert client.ended is not None
        assert await client.ended == "exited"

    run(body)


def test_only_the_streams_asked_for_are_sent(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("sh", "-c", "echo out; echo err >&2")
        client = await bench.attach(monitor, stdout=False)
        await monitor.start()
        assert await client.frames() == {1: b"", 2: b"err\n"}

    run(body)


def test_input_reaches_the_process_early_input_first_and_its_end_too(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("cat", open_stdin=True, stdin_once=True)
        client = await bench.attach(monitor, leftover=b"early ")
        await client.send(b"late")
        client.end_input()
        await monitor.start()
        assert await client.frames() == {1: b"early late", 2: b""}
        assert (await monitor.exit).code == 0

    run(body)


def test_without_stdin_once_the_end_of_input_ends_the_attachment_only(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("cat", open_stdin=True)
        await monitor.start()
        first = await bench.attach(monitor)
        await first.send(b"one\n")
        assert await first.read(12) == b"\1\0\0\0\0\0\0\4one\n"
        first.end_input()
        assert await first.rest() == b""
        second = await bench.attach(monitor)
        await second.send(b"two\n")
        assert await second.read(12) == b"\1\0\0\0\0\0\0\4two\n"

    run(body)


def test_a_hundred_megabytes_go_through_cat_unharmed(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("cat", open_stdin=True, stdin_once=True, log=None)
        client = await bench.attach(monitor)
        await monitor.start()
        total = 20 << 20
        blob = os.urandom(1 << 20)

        async def feed() -> None:
            for _ in range(total // len(blob)):
                await client.send(blob)
            client.end_input()

        feeding = asyncio.ensure_future(feed())
        assert (await client.frames())[1] == blob * (total // len(blob))
        await feeding

    run(body)


def test_a_slow_reader_holds_the_process_back_and_loses_nothing(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("head", "-c", "8000000", "/dev/zero")
        client = await bench.attach(monitor)
        await monitor.start()
        while bench.log.stat().st_size < 200_000:
            await asyncio.sleep(0.002)
        assert not monitor.exit.done()
        assert bench.log.stat().st_size < 2_000_000
        assert len((await client.frames())[1]) == 8_000_000
        assert (await monitor.exit).code == 0

    run(body)


def test_several_clients_see_the_same_and_one_that_leaves_disturbs_nobody(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("cat", open_stdin=True, stdin_once=True)
        await monitor.start()
        stays = await bench.attach(monitor)
        leaves = await bench.attach(monitor, stdin=False)
        await stays.send(b"a")
        assert await leaves.read(9) == b"\1\0\0\0\0\0\0\1a"
        leaves.near.close()
        await stays.send(b"b")
        stays.end_input()
        assert (await stays.frames())[1] == b"ab"
        assert leaves.ended is not None
        assert await leaves.ended == "closed"

    run(body)


def test_a_new_daemon_finds_the_process_and_learns_its_exit(run: Run) -> None:
    async def body(bench: Bench) -> None:
        first = await bench.spawn("sh", "-c", "read line; exit 5", open_stdin=True)
        pid = await first.start()
        first.close()
        await bench.launcher.stop()
        again = await Monitor.connect(first.directory)
        bench.monitors.append(again)
        assert again.pid == pid
        client = await bench.attach(again)
        await client.send(b"go\n")
        assert (await again.exit).code == 5

    run(body)


def test_an_exit_nobody_was_told_of_is_on_disk(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("sh", "-c", "read line; exit 4", open_stdin=True, stdin_once=True)
        await monitor.start()
        client = await bench.attach(monitor)
        monitor.close()
        await client.send(b"go\n")
        assert await client.rest() == b""
        recorded = read_exit(monitor.directory)
        assert recorded is not None
        assert recorded.code == 4
        with pytest.raises(NotFound):
            await Monitor.connect(monitor.directory)

    run(body)


def test_a_monitor_nobody_starts_goes_away_with_its_daemon(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("true")
        monitor.close()
        while (monitor.directory / "monitor.sock").exists():
            await asyncio.sleep(0.002)

    run(body)


def test_a_killed_monitor_takes_its_process_along_and_says_so(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("sleep", "60")
        pid = await monitor.start()
        os.kill(monitor.monitor_pid, signal.SIGKILL)
        end = await monitor.exit
        assert end.code == 255
        assert "monitor was killed" in end.error
        assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()

    run(body)


def test_a_launcher_that_died_is_replaced_and_its_monitors_live_on(run: Run) -> None:
    async def body(bench: Bench) -> None:
        first = await bench.spawn("sleep", "60", name="one")
        await first.start()
        assert bench.launcher.pid is not None
        os.kill(bench.launcher.pid, signal.SIGKILL)
        second = await bench.spawn("true", name="two")
        await second.start()
        assert (await second.exit).code == 0
        await first.kill(signal.SIGKILL)
        assert (await first.exit).code == 137

    run(body)


def waiting(launcher: Launcher) -> list[int]:
    """Processes forked from ``launcher`` that are no monitor yet."""
    own = Path(f"/proc/{launcher.pid}/cmdline").read_bytes()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            same = (entry / "cmdline").read_bytes() == own and (entry / "comm").read_text() == "engine-launcher\n"
        except OSError:
            continue
        if same and int(entry.name) != launcher.pid:
            found.append(int(entry.name))
    return found


def test_a_monitor_that_is_killed_while_it_waits_for_a_task_is_replaced(run: Run) -> None:
    async def body(bench: Bench) -> None:
        first = await bench.spawn("true", name="one")
        await first.start()
        await first.exit
        while not (ahead := waiting(bench.launcher)):
            await asyncio.sleep(0)
        os.kill(ahead[0], signal.SIGKILL)
        second = await bench.spawn("true", name="two")
        await second.start()
        assert (await second.exit).code == 0
        assert bench.launcher.pid is not None

    run(body)


def test_what_a_launcher_forked_ahead_ends_with_it(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("true")
        await monitor.start()
        await monitor.exit
        while not (ahead := waiting(bench.launcher)):
            await asyncio.sleep(0)
        await bench.launcher.stop()
        assert not Path(f"/proc/{ahead[0]}/cmdline").exists() or not Path(f"/proc/{ahead[0]}/cmdline").read_bytes()

    run(body)


def test_many_monitors_at_once(run: Run) -> None:
    async def body(bench: Bench) -> None:
        async def one(number: int) -> Exit:
            monitor = await bench.spawn("sh", "-c", f"exit {number}", name=f"m{number}")
            await monitor.start()
            return await monitor.exit

        ends = await asyncio.gather(*(one(number) for number in range(12)))
        assert [end.code for end in ends] == list(range(12))

    run(body)


def test_nonsense_on_the_control_socket_is_refused_and_harms_nothing(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("sleep", "60")
        await monitor.start()
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with raw:
            os.chdir(monitor.directory)
            raw.connect("monitor.sock")
            os.chdir("/")
            assert json.loads(raw.recv(65536))["state"] == "running"
            for nonsense in (b"\xff", b"[]", b"{}", b'{"id": 1, "op": "nosuch"}', b'{"id": 2, "op": "attach"}'):
                raw.send(nonsense)
                assert "error" in json.loads(raw.recv(65536))
        await monitor.kill(signal.SIGKILL)
        assert (await monitor.exit).code == 137

    run(body)


def test_a_grandchild_that_holds_the_output_does_not_hold_the_exit(run: Run) -> None:
    async def body(bench: Bench) -> None:
        monitor = await bench.spawn("sh", "-c", "sleep 5 & echo $! >&2; echo done")
        client = await bench.attach(monitor)
        await monitor.start()
        assert (await monitor.exit).code == 0
        output = await client.frames()
        assert output[1] == b"done\n"
        os.kill(int(output[2]), signal.SIGKILL)

    run(body)


GUEST = """
import os, sys
def main(bundle, report):
    os.write(report, b"\\0")
    name = os.environ["NAME"]
    if name == "tty":
        os.write(1, b"tty %dx%d" % tuple(os.get_terminal_size(0)))
        return int(sys.stdin.readline())
    print(name, bundle, os.path.exists("/proc/self/fd/4"))
    return 9
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_guest_is_python_run_in_a_fork(run: Run, terminal: bool) -> None:
    async def body(bench: Bench) -> None:
        guest = bench.root / "guest.py"
        guest.write_text(GUEST)
        launch = Launch(
            guest=str(guest),
            bundle=Path("/some/bundle"),
            pid_file=bench.root / "pid",
            environment={"NAME": "tty" if terminal else "plain"},
        )
        monitor = await bench.spawn(launch=launch, terminal=terminal, open_stdin=True, console_size=(33, 44))
        client = await bench.attach(monitor, detach_keys=b"\x10\x11")
        await monitor.start()
        if not terminal:
            assert (await client.frames())[1] == b"plain /some/bundle False\n"
            assert (await monitor.exit).code == 9
            return
        assert await client.read(9) == b"tty 44x33"
        await client.send(b"\x10\x11")
        assert client.ended is not None
        assert await client.ended == "detached"
        other = await bench.attach(monitor, detach_keys=b"\x10\x11")
        await other.send(b"3\x10\r")
        await other.send(b"\x7f\x7f\n")
        assert b"3" in await other.rest()

    run(body)


def test_the_launcher_imports_nothing_but_what_a_monitor_needs(tmp_path: Path) -> None:
    source = tmp_path / "report.py"
    source.write_text(f"import sys; open({str(tmp_path / 'modules')!r}, 'w').write(' '.join(sys.modules))")

    async def body() -> None:
        launcher = Launcher(preload=[source])
        await launcher.start()
        await launcher.stop()

    asyncio.run(body())
    modules = set((tmp_path / "modules").read_text().split())
    assert "engine.monitor.process" in modules
    assert not modules & {"asyncio", "threading", "logging", "typing", "msgspec", "subprocess", "dataclasses"}
    assert not modules & {
        "re",
        "enum",
        "json",
        "signal",
        "socket",
        "collections",
        "functools",
    }  # memory of each monitor


@pytest.mark.parametrize("value", [{"a": [1, -2.5, True, None], "ä\n": "\u2028\U0001f600"}, [], "", 0, {"x": {}}])
def test_the_monitors_json_is_json(value: object) -> None:
    assert json.loads(wire.encode(value)) == value
    assert wire.decode(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", [b"", b"{", b"{} {}", b"nul", b"\xff"])
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        wire.decode(text)


def test_a_reader_that_has_stopped_neither_holds_the_process_nor_loses_anything(run: Run) -> None:
    async def body(bench: Bench) -> None:
        impatient = bench.root / "impatient.py"
        impatient.write_text("from engine.monitor import attachment; attachment.STALL = 0.05")
        bench.launcher = Launcher(preload=[impatient])
        monitor = await bench.spawn("sh", "-c", "head -c 5000000 /dev/zero; seq 100000")
        client = await bench.attach(monitor)
        await monitor.start()
        assert (await monitor.exit).code == 0
        numbers = b"".join(b"%d\n" % number for number in range(1, 100001))
        assert bench.log.read_bytes() == bytes(5_000_000) + numbers + b"<end>"
        assert (await client.frames())[1] == bytes(5_000_000) + numbers
        assert client.ended is not None
        assert await client.ended == "exited"

    run(body)


def test_the_directory_serves_the_next_start_while_an_old_monitor_still_feeds_its_client(run: Run) -> None:
    async def body(bench: Bench) -> None:
        first = await bench.spawn("head", "-c", "300000", "/dev/zero")
        client = await bench.attach(first)
        await first.start()
        await client.read(1000)
        assert (await first.exit).code == 0
        second = await bench.spawn("sh", "-c", "exit 6")
        await second.start()
        assert (await second.exit).code == 6
        recorded = read_exit(second.directory)
        assert recorded is not None
        assert recorded.code == 6
        assert len(await client.rest()) > 298_000

    run(body)
