"""Conformance of runtime drivers (`engine.drivers.runtime`); needs root.

The driver's plans are carried out by the real launcher and monitor; the oracle is /proc.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.runtime import Bundle, RuntimeDriver, RuntimeInfo
from engine.errors import Conflict, EngineError, NotSupported, StartFailed
from engine.monitor.client import Launcher, LaunchFailed, Monitor, Task

__all__ = ["RuntimeConformance"]


def parent_of(pid: int) -> int:
    """The parent process, from /proc."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.root
class RuntimeConformance:
    """Subclass and provide ``driver``; a runtime for other platforms than Linux overrides ``process`` and ``rootfs``.

    ``start(...)`` below is the core's part: write a bundle, have a monitor carry the driver's plan out.
    """

    @pytest.fixture
    def driver(self) -> RuntimeDriver:
        """The driver under test."""
        raise NotImplementedError

    @pytest.fixture
    def working(self, driver: RuntimeDriver) -> RuntimeDriver:
        """The driver, if it works on this host; skips with its own reason otherwise."""
        try:
            driver.probe()
        except EngineError as error:
            pytest.skip(str(error))
        return driver

    @pytest.fixture
    def rootfs(self, tmp_path: Path) -> Path:
        """A root file system with a static busybox."""
        busybox = shutil.which("busybox")
        if busybox is None:
            pytest.skip("needs busybox-static")
        root = tmp_path / "rootfs"
        for name in ("bin", "proc", "dev", "etc", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        for name in ("sh", "cat", "sleep", "true", "echo", "tty"):
            (root / "bin" / name).symlink_to("busybox")
        return root

    def process(self, *args: str, terminal: bool = False) -> dict[str, Any]:
        """An OCI process."""
        return {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        }

    def spec(self, rootfs: Path, container_id: str, process: dict[str, Any]) -> dict[str, Any]:
        """A small OCI runtime spec."""
        kinds = ("pid", "mount", "ipc", "uts", "network")
        return {
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": str(rootfs), "readonly": False},
            "hostname": "conformance",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in kinds],
                "cgroupsPath": f"/engine-conformance/{container_id}",
                "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            },
        }

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Iterator[Bundle]:
        """The container of the test; its cgroups are removed afterwards."""
        container_id = os.urandom(32).hex()
        path = tmp_path / "bundle"
        path.mkdir(mode=0o700)
        yield Bundle(container_id=container_id, path=path)
        for base in (*Path("/sys/fs/cgroup").glob("*/engine-conformance"), Path("/sys/fs/cgroup/engine-conformance")):
            if base.is_dir():
                base.rmdir()

    def run(
        self,
        driver: RuntimeDriver,
        bundle: Bundle,
        rootfs: Path,
        args: tuple[str, ...],
        body: Callable[[Monitor, socket.socket], Awaitable[None]],
        *,
        terminal: bool = False,
    ) -> None:
        """Start ``args`` in a container, attach a client, let ``body`` look, and delete the container."""
        process = self.process(*args, terminal=terminal)
        (bundle.path / "config.json").write_text(json.dumps(self.spec(rootfs, bundle.container_id, process)))

        async def session() -> None:
            launcher = Launcher()
            await launcher.start()
            try:
                plan = driver.launch(bundle, terminal=terminal)
                task = Task(
                    id=bundle.container_id, directory=bundle.path, launch=plan, terminal=terminal, open_stdin=True
                )
                monitor = await launcher.spawn(task)
                ours, theirs = socket.socketpair()
                with ours:
                    await monitor.attach(theirs, stdin=True, stdout=True, stderr=True)
                    try:
                        await monitor.start()
                        await body(monitor, ours)
                    except LaunchFailed as failure:
                        raise driver.start_error(bundle, failure.status, failure.text) from failure
                    finally:
                        if monitor.pid and not monitor.exit.done():
                            await monitor.kill(signal.SIGKILL)
                            await asyncio.wait_for(monitor.exit, 10)
                        monitor.close()
            finally:
                driver.delete(bundle)
                driver.delete(bundle)
                await launcher.stop()

        asyncio.run(session())

    async def text(self, client: socket.socket) -> bytes:
        """All the client receives, framing removed."""
        client.settimeout(10)
        data = b""
        while block := await asyncio.to_thread(client.recv, 65536):
            data += block
        plain = b""
        while len(data) >= 8 and data[0] in (1, 2) and data[1:4] == b"\0\0\0":
            size = int.from_bytes(data[4:8], "big")
            plain, data = plain + data[8 : 8 + size], data[8 + size :]
        return plain or data

    def test_probe_reports_a_version(self, working: RuntimeDriver) -> None:
        """Twice the same answer."""
        assert isinstance(working.probe(), RuntimeInfo)
        assert working.probe() == working.probe()
        assert working.probe().version

    def test_output_and_exit_code_arrive(self, working: RuntimeDriver, bundle: Bundle, rootfs: Path) -> None:
        """What the process writes, and what it exits with."""

        async def body(monitor: Monitor, client: socket.socket) -> None:
            assert await self.text(client) == b"hello\n"
            assert (await asyncio.wait_for(monitor.exit, 10)).code == 7

        self.run(working, bundle, rootfs, ("sh", "-c", "echo hello; exit 7"), body)

    def test_the_process_runs_in_namespaces_of_its_own(
        self, working: RuntimeDriver, bundle: Bundle, rootfs: Path
    ) -> None:
        """Its parent is the monitor, which belongs to init and not to the daemon."""

        async def body(monitor: Monitor, client: socket.socket) -> None:
            pid = monitor.pid
            for kind in ("pid", "mnt", "uts", "ipc", "net"):
                assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
            assert pid is not None
            parent = parent_of(pid)
            assert parent not in (os.getpid(), 1)
            assert parent_of(parent) != os.getpid()

        self.run(working, bundle, rootfs, ("sleep", "60"), body)

    def test_a_killed_process_reports_128_plus_the_signal(
        self, working: RuntimeDriver, bundle: Bundle, rootfs: Path
    ) -> None:
        """SIGKILL is 137."""

        async def body(monitor: Monitor, client: socket.socket) -> None:
            await monitor.kill(signal.SIGKILL)
            assert (await asyncio.wait_for(monitor.exit, 10)).code == 137

        self.run(working, bundle, rootfs, ("sleep", "60"), body)

    def test_a_terminal_is_a_terminal(self, working: RuntimeDriver, bundle: Bundle, rootfs: Path) -> None:
        """Capability ``terminal``."""
        if "terminal" not in working.capabilities:
            pytest.skip(f"runtime {working.context.name} does not claim terminal")

        async def body(monitor: Monitor, client: socket.socket) -> None:
            assert b"/dev/" in await self.text(client)

        self.run(working, bundle, rootfs, ("tty",), body, terminal=True)

    def test_standard_input_reaches_the_process(self, working: RuntimeDriver, bundle: Bundle, rootfs: Path) -> None:
        """And comes back through cat."""

        async def body(monitor: Monitor, client: socket.socket) -> None:
            client.sendall(b"ping\n")
            client.settimeout(10)
            assert b"ping" in await asyncio.to_thread(client.recv, 100)

        self.run(working, bundle, rootfs, ("cat",), body)

    @pytest.mark.parametrize(("command", "code"), [("/bin/nosuch", 127), ("/etc", 126)])
    def test_a_command_that_cannot_run_is_explained(
        self, working: RuntimeDriver, bundle: Bundle, rootfs: Path, command: str, code: int
    ) -> None:
        """127 not found, 126 not executable, in words the docker CLI understands; nothing is left."""

        async def body(monitor: Monitor, client: socket.socket) -> None:
            raise AssertionError("it started")

        with pytest.raises(StartFailed) as caught:
            self.run(working, bundle, rootfs, (command,), body)
        words = {
            127: ("no such file or directory", "executable file not found"),
            126: ("permission denied", "is a directory"),
        }
        assert caught.value.exit_code == code
        assert any(text in str(caught.value) for text in words[code])

    def test_further_processes_run_inside(self, working: RuntimeDriver, bundle: Bundle, rootfs: Path) -> None:
        """Capability ``exec``: in the same namespaces, with an exit code of its own."""
        if "exec" not in working.capabilities:
            with pytest.raises((NotSupported, Conflict)):
                working.launch_exec(bundle, "x", self.process("true"), terminal=False)
            return

        async def body(monitor: Monitor, client: socket.socket) -> None:
            directory = bundle.path / "exec"
            directory.mkdir(mode=0o700)
            launcher = Launcher()
            await launcher.start()
            plan = working.launch_exec(bundle, "e" * 64, self.process("sh", "-c", "echo in; exit 5"), terminal=False)
            session = await launcher.spawn(Task(id="e" * 64, directory=directory, launch=plan, exec=True))
            ours, theirs = socket.socketpair()
            with ours:
                await session.attach(theirs, stdin=False, stdout=True, stderr=True)
                await session.start()
                assert await self.text(ours) == b"in\n"
                assert (await asyncio.wait_for(session.exit, 10)).code == 5
            session.close()
            await launcher.stop()

        self.run(working, bundle, rootfs, ("sleep", "60"), body)

    def test_a_paused_container_stands_still(self, working: RuntimeDriver, bundle: Bundle, rootfs: Path) -> None:
        """Capability ``pause``: cat does not answer until resumed."""
        if "pause" not in working.capabilities:
            with pytest.raises(NotSupported):
                working.pause(bundle)
            return

        async def body(monitor: Monitor, client: socket.socket) -> None:
            await asyncio.to_thread(working.pause, bundle)
            client.sendall(b"ping\n")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(client.recv, 100)
            await asyncio.to_thread(working.resume, bundle)
            client.settimeout(10)
            assert b"ping" in await asyncio.to_thread(client.recv, 100)

        self.run(working, bundle, rootfs, ("cat",), body)

    def test_processes_and_stats_tell_the_truth(self, working: RuntimeDriver, bundle: Bundle, rootfs: Path) -> None:
        """Capabilities ``top`` and ``stats``."""

        async def body(monitor: Monitor, client: socket.socket) -> None:
            if "top" in working.capabilities:
                assert monitor.pid in await asyncio.to_thread(working.processes, bundle)
            if "stats" in working.capabilities:
                found = await asyncio.to_thread(working.stats, bundle)
                assert found["memory_stats"]["usage"] > 0
                assert found["cpu_stats"]["cpu_usage"]["total_usage"] > 0

        self.run(working, bundle, rootfs, ("sh", "-c", "sleep 60 & cat"), body)
