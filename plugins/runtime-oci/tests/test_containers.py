"""Real containers: a busybox root file system, runc and crun, through launcher and monitor."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.drivers import DriverContext
from engine.drivers.log import LogWriter
from engine.drivers.runtime import Bundle
from engine.errors import EngineError, StartFailed
from engine.monitor.client import Launcher, LaunchFailed, Monitor, Task
from engine_runtime_oci.driver import OciRuntime

pytestmark = pytest.mark.root

BUSYBOX = "/usr/bin/busybox"
WRITER = """
class Log:
    def __init__(self, options):
        self.file = open(options["path"], "ab", buffering=0)
    def write(self, stream, data, now_ns):
        self.file.write(data)
    def sync(self):
        pass
    def close(self):
        self.file.close()
def open_log(options):
    return Log(options)
"""
CAPABILITIES = ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"]


class Host:
    """One runtime, one launcher, one container after another."""

    def __init__(self, root: Path, driver: OciRuntime) -> None:
        self.root, self.driver = root, driver
        self.rootfs = root / "rootfs"
        for name in ("bin", "proc", "sys", "dev", "etc", "tmp"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.rootfs / "bin/busybox")
        for name in ("sh", "cat", "echo", "sleep", "true", "tail", "dd", "stty"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        self.writer = root / "writer.py"
        self.writer.write_text(WRITER)
        self.launcher = Launcher(preload=[self.writer])
        self.bundles: list[Bundle] = []
        self.monitors: list[Monitor] = []
        self.sockets: list[socket.socket] = []

    def bundle(self, *argv: str, terminal: bool = False, memory: int = 0) -> Bundle:
        identifier = f"t{uuid.uuid4().hex}"
        path = self.root / identifier
        path.mkdir()
        resources: dict[str, Any] = {"devices": [{"allow": True, "access": "rwm"}]}
        if memory:
            resources["memory"] = {"limit": memory, "swap": memory}
        config = {
            "ociVersion": "1.0.2",
            "process": {**self.process(*argv), "terminal": terminal},
            "root": {"path": str(self.rootfs)},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {
                "cgroupsPath": f"/engine-test/{identifier}",
                "resources": resources,
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
                # libseccomp of this age does not know every name: runtimes skip those
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["no_such_call", "mseal"], "action": "SCMP_ACT_ERRNO"}],
                },
            },
        }
        (path / "config.json").write_text(json.dumps(config))
        bundle = Bundle(container_id=identifier, path=path)
        self.bundles.append(bundle)
        return bundle

    @staticmethod
    def process(*argv: str) -> dict[str, Any]:
        return {
            "user": {"uid": 0, "gid": 0},
            "args": list(argv),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
        }

    async def spawn(self, bundle: Bundle, **more: Any) -> Monitor:
        launch = await asyncio.to_thread(self.driver.launch, bundle, terminal=more.get("terminal", False))
        log = LogWriter(source=self.writer, options={"path": str(bundle.path / "log")})
        return await self._spawn(Task(id=bundle.container_id, directory=bundle.path, launch=launch, log=log, **more))

    async def exec(self, bundle: Bundle, *argv: str, terminal: bool = False, **more: Any) -> Monitor:
        name = uuid.uuid4().hex
        launch = self.driver.launch_exec(bundle, name, self.process(*argv), terminal=terminal)
        directory = bundle.path / name
        directory.mkdir(mode=0o700)
        return await self._spawn(
            Task(id=name, directory=directory, launch=launch, exec=True, terminal=terminal, stdin_once=True, **more)
        )

    async def _spawn(self, task: Task) -> Monitor:
        monitor = await self.launcher.spawn(task)
        self.monitors.append(monitor)
        return monitor

    async def attach(self, monitor: Monitor, **more: Any) -> tuple[socket.socket, asyncio.Future[str]]:
        near, far = socket.socketpair()
        near.setblocking(False)
        self.sockets += [near, far]
        return near, await monitor.attach(far, **{"stdin": True, "stdout": True, "stderr": True, **more})

    async def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        for monitor in self.monitors:
            try:
                await monitor.kill(signal.SIGKILL)
            except EngineError:
                pass
            monitor.close()
        await self.launcher.stop()
        for bundle in self.bundles:
            self.driver.delete(bundle)
            self.driver.delete(bundle)


Run = Callable[[Callable[[Host], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module", params=["runc", "crun"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OciRuntime:
    state = tmp_path_factory.mktemp("s")
    made = OciRuntime(DriverContext(name=request.param, instance="0badcafe", root=state, state=state))
    made.probe()
    return made


@pytest.fixture
def run(driver: OciRuntime, tmp_path: Path) -> Iterator[Run]:
    def runner(body: Callable[[Host], Coroutine[Any, Any, None]]) -> None:
        async def everything() -> None:
            host = Host(tmp_path, driver)
            try:
                await asyncio.wait_for(body(host), 60)
            finally:
                await host.close()

        asyncio.run(everything())

    yield runner
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in mounts
    assert all(point in mounts for point in driver.probe().features.get("hidden", "").split(","))
    assert not [path for path in Path("/sys/fs/cgroup").glob("*/engine-test/*") if path.is_dir()]
    for left in Path("/sys/fs/cgroup").glob("*/engine-test"):
        left.rmdir()


async def rest(sock: socket.socket) -> bytes:
    parts = []
    while part := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        parts.append(part)
    return b"".join(parts)


async def until(sock: socket.socket, text: bytes) -> bytes:
    data = b""
    while text not in data:
        more = await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
        assert more, data
        data += more
    return data


async def until_child(pid: int, monitor: Monitor) -> None:
    """Until the process is the monitor's only child: no runtime remains (crun's helper ends just after the start)."""
    children = Path(f"/proc/{monitor.monitor_pid}/task/{monitor.monitor_pid}/children")
    while children.read_text().split() != [str(pid)]:
        await asyncio.sleep(0.001)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_output_and_exit_code_are_kept_and_the_process_belongs_to_its_monitor(run: Run) -> None:
    async def body(host: Host) -> None:
        bundle = host.bundle("sh", "-c", "echo hello; read line; exit 7")
        monitor = await host.spawn(bundle, open_stdin=True, stdin_once=True)
        pid = await monitor.start()
        assert parent(monitor.monitor_pid) == 1
        await until_child(pid, monitor)
        assert await asyncio.to_thread(host.driver.processes, bundle) == [pid]
        client, _ = await host.attach(monitor)
        await asyncio.get_running_loop().sock_sendall(client, b"go\n")
        assert (await monitor.exit).code == 7
        assert (bundle.path / "log").read_bytes() == b"hello\n"

    run(body)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("nosuch", 127, 'exec: "nosuch": executable file not found in $PATH: unknown'),
        ("/bin/nosuch", 127, "no such file or directory: unknown"),
        ("/etc", 126, 'exec: "/etc": '),
    ],
)
def test_a_command_that_cannot_run_fails_the_start_in_dockerds_words(
    run: Run, command: str, code: int, words: str
) -> None:
    async def body(host: Host) -> None:
        bundle = host.bundle(command)
        monitor = await host.spawn(bundle)
        with pytest.raises(LaunchFailed) as failure:
            await monitor.start()
        error = host.driver.start_error(bundle, failure.value.status, failure.value.text)
        assert isinstance(error, StartFailed)
        assert error.exit_code == code
        assert words in str(error)

    run(body)


def test_a_terminal_is_raw_has_a_size_and_can_be_detached(run: Run) -> None:
    async def body(host: Host) -> None:
        bundle = host.bundle("sh", terminal=True)
        monitor = await host.spawn(bundle, terminal=True, open_stdin=True, console_size=(33, 44))
        client, ended = await host.attach(monitor, detach_keys=b"\x10\x11")
        await monitor.start()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"stty size\n")
        assert b"33 44" in await until(client, b"33 44")
        await monitor.resize(50, 60)
        await loop.sock_sendall(client, b"stty size\n")
        await until(client, b"50 60")
        await loop.sock_sendall(client, b"\x10\x11")
        assert await ended == "detached"
        again, ended = await host.attach(monitor)
        await loop.sock_sendall(again, b"exit 3\n")
        await rest(again)
        assert await ended == "exited"
        assert (await monitor.exit).code == 3

    run(body)


def test_further_processes_run_in_the_container(run: Run) -> None:
    async def body(host: Host) -> None:
        bundle = host.bundle("sleep", "60")
        await (await host.spawn(bundle)).start()
        session = await host.exec(bundle, "sh", "-c", "cat; exit 5", open_stdin=True)
        client, _ = await host.attach(session)
        pid = await session.start()
        await until_child(pid, session)
        await asyncio.get_running_loop().sock_sendall(client, b"x")
        client.shutdown(socket.SHUT_WR)
        assert await rest(client) == b"\1\0\0\0\0\0\0\1x"
        assert (await session.exit).code == 5
        # crun lets the process run before it can have its size: it comes a moment later.
        wait = 'until [ "$(stty size 2>/dev/null)" = "11 22" ]; do :; done; echo sized'
        tty = await host.exec(bundle, "sh", "-c", wait, terminal=True, console_size=(11, 22))
        client, _ = await host.attach(tty)
        await tty.start()
        assert b"sized" in await rest(client)
        assert not list(bundle.path.glob("exec-*"))
        failing = await host.exec(bundle, "nosuch")
        with pytest.raises(LaunchFailed) as failure:
            await failing.start()
        error = host.driver.exec_error(bundle, ["nosuch"], failure.value.status, failure.value.text)
        assert str(error).startswith("OCI runtime exec failed: exec failed: ")
        assert 'exec: "nosuch": executable file not found in $PATH' in str(error)

    run(body)


def test_too_much_memory_is_noticed_as_such(run: Run) -> None:
    async def body(host: Host) -> None:
        bundle = host.bundle("tail", "/dev/zero", memory=16 << 20)
        monitor = await host.spawn(bundle)
        told: list[bool] = []
        monitor.on_oom = lambda: told.append(True)
        await monitor.start()
        end = await monitor.exit
        assert (end.code, end.oom_killed) == (137, True)
        assert told

    run(body)


def test_a_container_can_be_paused_measured_updated_and_resumed(run: Run) -> None:
    async def body(host: Host) -> None:
        bundle = host.bundle("sh", "-c", "while :; do :; done", memory=64 << 20)
        monitor = await host.spawn(bundle)
        pid = await monitor.start()
        driver = host.driver
        await asyncio.to_thread(driver.pause, bundle)
        first = driver.stats(bundle)["cpu_stats"]["cpu_usage"]["total_usage"]
        assert first > 0
        assert driver.stats(bundle)["cpu_stats"]["cpu_usage"]["total_usage"] == first
        assert driver.stats(bundle)["memory_stats"]["limit"] == 64 << 20
        assert driver.stats(bundle)["pids_stats"]["current"] == 1
        await asyncio.to_thread(driver.resume, bundle)
        await asyncio.to_thread(driver.update, bundle, {"memory": {"limit": 128 << 20, "swap": 128 << 20}})
        assert driver.stats(bundle)["memory_stats"]["limit"] == 128 << 20
        await asyncio.to_thread(driver.pause, bundle)
        await asyncio.to_thread(driver.delete, bundle)  # frozen things die too
        assert (await monitor.exit).code == 137
        assert not Path(f"/proc/{pid}").exists()

    run(body)


def test_containers_survive_launcher_and_daemon(run: Run) -> None:
    async def body(host: Host) -> None:
        bundle = host.bundle("sh", "-c", "read line; exit 9")
        first = await host.spawn(bundle, open_stdin=True)
        pid = await first.start()
        assert host.launcher.pid is not None
        os.kill(host.launcher.pid, signal.SIGKILL)
        first.close()
        again = await Monitor.connect(bundle.path)
        host.monitors.append(again)
        assert again.pid == pid
        client, _ = await host.attach(again)
        await asyncio.get_running_loop().sock_sendall(client, b"\n")
        assert (await again.exit).code == 9
        other = host.bundle("true")
        next_one = await host.spawn(other)
        await next_one.start()
        assert (await next_one.exit).code == 0

    run(body)
