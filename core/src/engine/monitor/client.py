"""The daemon's side of launcher and monitors: spawn, start, attach, be told of the exit.

    launcher = Launcher(preload=[writer.source])
    monitor = await launcher.spawn(Task(id=..., directory=..., launch=driver.launch(bundle, terminal=False), ...))
    await monitor.attach(client_socket, stdin=True, stdout=True, stderr=True)     # now or later
    pid = await monitor.start()
    exit = await monitor.exit

Everything here runs on the event loop and blocks it for no longer than a small packet takes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import select
import signal as signals
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.drivers.log import LogWriter
from engine.drivers.runtime import Launch, LauncherPlan
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound, Unavailable
from engine.monitor.start import start_ticks

__all__ = ["Exit", "LaunchFailed", "Launcher", "Monitor", "Task", "kill_orphan", "read_exit"]

_log = logging.getLogger(__name__)
_PACKET = 1 << 18
_HELLO_TIMEOUT = 20.0
_EXITED = "the process has exited"
LOST_MONITOR = 255


class LaunchFailed(EngineError):
    """The runtime did not start the process: its exit ``status`` (-1 when it did not even run) and its ``text``.

    `RuntimeDriver.start_error` turns this into what the user reads.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Exit(msgspec.Struct, frozen=True):
    """How a process ended. ``code`` is the exit status, or 128 + the signal; ``error`` says why, when a guest
    gave a reason or the code is a guess."""

    code: int
    oom_killed: bool = False
    finished_ns: int = 0
    error: str = ""


class _Process(msgspec.Struct):
    pid: int
    ticks: int
    monitor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a monitor is for. ``directory`` exists, belongs to this container or exec alone, and is private."""

    id: str
    directory: Path
    launch: Launch
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    open_stdin: bool = False
    stdin_once: bool = False
    log: LogWriter | None = None
    exec: bool = False

    def encode(self) -> bytes:
        """As the launcher reads it."""
        launch = self.launch

        def path(value: Path | None) -> str | None:
            return None if value is None else str(value)

        return json.dumps(
            {
                "id": self.id,
                "directory": str(self.directory),
                "terminal": self.terminal,
                "console_size": self.console_size,
                "open_stdin": self.open_stdin,
                "stdin_once": self.stdin_once,
                "exec": self.exec,
                "log": self.log and {"source": str(self.log.source), "options": dict(self.log.options)},
                "launch": {
                    "argv": list(launch.argv),
                    "executable": launch.executable,
                    "guest": launch.guest,
                    "bundle": path(launch.bundle),
                    "pid_file": path(launch.pid_file),
                    "error_log": path(launch.error_log),
                    "console_socket": path(launch.console_socket),
                    "environment": dict(launch.environment),
                    "hide": list(launch.hide),
                    "temporary": [str(path) for path in launch.temporary],
                },
            }
        ).encode()


def read_exit(directory: Path) -> Exit | None:
    """The exit recorded in ``directory``; None if there is none."""
    try:
        return msgspec.json.decode((directory / "exit.json").read_bytes(), type=Exit)
    except FileNotFoundError:
        return None


def kill_orphan(directory: Path) -> bool:
    """Kill the process a lost monitor left running, if that very process still runs; waits up to 5 s for its end.

    Blocks: for worker threads. Returns whether there was one.
    """
    try:
        process = msgspec.json.decode((directory / "process.json").read_bytes(), type=_Process)
        pidfd = os.pidfd_open(process.pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:
        if start_ticks(process.pid) != process.ticks:
            return False
        signals.pidfd_send_signal(pidfd, signals.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(5000)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)


class Launcher:
    """A child process that forks monitors. What it has preloaded makes no difference but in speed and memory.

    A task that asks for a launcher of another plan gets a monitor of such a one, started at the first and kept.
    """

    def __init__(self, preload: Sequence[Path] = (), search: Sequence[Path] = ()) -> None:
        self._preload = tuple(str(path) for path in preload)
        self._search = ":".join(str(path) for path in search)
        self._planned: dict[LauncherPlan, Launcher] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id of the launcher, when it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    async def start(self) -> None:
        """Start the launcher; does nothing when it runs."""
        async with self._lock:
            self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._process is not None:
            _log.warning("the launcher has ended; starting another", extra={"status": self._process.returncode})
        self._close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [
                    getattr(sys, "_base_executable", None) or sys.executable,
                    "-I",
                    "-S",
                    str(Path(__file__).with_name("launcher.py")),
                    str(theirs.fileno()),
                    self._search,
                    *self._preload,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={"LANG": "C.UTF-8"},
                cwd="/",
            )
        self._socket = ours
        return self._process

    async def stop(self) -> None:
        """End the launcher. Its monitors, and what they hold, live on."""
        for other in self._planned.values():
            await other.stop()
        async with self._lock:
            self._close()
            if self._process is not None:
                await asyncio.to_thread(self._process.wait)
                self._process = None

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def spawn(self, task: Task) -> Monitor:
        """Fork a monitor for ``task``; nothing of the container runs yet. Restarts a launcher that has died.

        Raises `Unavailable` when no monitor can be had.
        """
        plan = task.launch.launcher
        if plan is not None:
            if plan not in self._planned:
                self._planned[plan] = Launcher((*map(Path, self._preload), *plan.preload), plan.search)
            return await self._planned[plan]._spawn(task)
        return await self._spawn(task)

    async def _spawn(self, task: Task) -> Monitor:
        packet = task.encode()
        last: Exception | None = None
        for _ in range(3):
            async with self._lock:
                process = self._start()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            monitor = Monitor(task.directory, ours)
            try:
                with theirs:
                    await self._request(packet, theirs)
                await monitor._greeted()
                return monitor
            except (OSError, Unavailable) as error:
                monitor.close()
                last = error
                if isinstance(error, OSError):  # it ends: its socket is closed already
                    await asyncio.to_thread(process.wait)
        raise Unavailable(f"cannot start a monitor for {task.id}: {last}")

    async def _request(self, packet: bytes, theirs: socket.socket) -> None:
        while True:
            if self._socket is None:
                raise Unavailable("the launcher has stopped")
            try:
                socket.send_fds(self._socket, [packet], [theirs.fileno()])
                return
            except BlockingIOError:  # many starts at once
                await asyncio.sleep(0.001)


class Monitor:
    """A handle on one monitor. Made by `Launcher.spawn` and `Monitor.connect` only.

    ``exit`` is done when the process has ended and that is on disk. ``on_oom``, when set, is called at each OOM kill.
    """

    def __init__(self, directory: Path, sock: socket.socket) -> None:
        self.directory = directory
        self.pid: int | None = None
        self.monitor_pid = 0
        self.on_oom: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self.exit: asyncio.Future[Exit] = self._loop.create_future()
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._running: asyncio.Future[None] = self._loop.create_future()
        self._state = "created"
        self._sock: socket.socket | None = sock
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._attachments: dict[int, asyncio.Future[str]] = {}
        self._ended_early: dict[int, str] = {}
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._receive)

    @classmethod
    async def connect(cls, directory: Path) -> Monitor:
        """The handle of the monitor that serves ``directory``, left by an earlier daemon.

        Raises `NotFound` when there is none: then see `read_exit` and `kill_orphan`.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{fd}/monitor.sock")
            finally:
                os.close(fd)
        except OSError as error:
            sock.close()
            raise NotFound(f"no monitor at {directory}: {error.strerror}") from None
        monitor = cls(directory, sock)
        try:
            await monitor._greeted()
            if monitor._state == "starting":
                await monitor._running
        except Unavailable as error:
            monitor.close()
            raise NotFound(f"no monitor at {directory}: {error}") from None
        return monitor

    async def _greeted(self) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(self._hello), _HELLO_TIMEOUT)
        except TimeoutError:
            raise Unavailable("the monitor does not answer") from None

    # -- requests -------------------------------------------------------------------------------------------

    async def start(self, *, deadline: float = 120.0) -> int:
        """Start the process; returns its id on the host.

        `LaunchFailed` when the runtime failed or took longer than ``deadline`` seconds; the monitor is gone then.
        When the caller is cancelled, so is the start.
        """
        try:
            reply = await self._call({"op": "start", "deadline": deadline})
        except asyncio.CancelledError:
            self._send({"id": 0, "op": "kill", "signal": int(signals.SIGKILL)})
            raise
        return int(reply["pid"])

    async def kill(self, signal: int) -> None:
        """Send ``signal`` to the process (while it is starting: end the start). `Conflict` when it has exited."""
        await self._call({"op": "kill", "signal": int(signal)})

    async def resize(self, height: int, width: int) -> None:
        """Set the terminal's size, now or for the start. `Conflict` without a terminal."""
        await self._call({"op": "resize", "height": height, "width": width})

    async def attach(
        self,
        sock: socket.socket,
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        detach_keys: bytes = b"",
        raw: bool | None = None,
        leftover: bytes = b"",
    ) -> asyncio.Future[str]:
        """Hand the client's connected socket over; ``leftover`` is input that was already read from it. Output is
        ``raw`` or comes in frames: unless said otherwise raw with a terminal.

        Afterwards ``sock`` is closed here and served by the monitor. The future tells how the attachment ended:
        ``"detached"``, ``"closed"`` (by the client, or it was too far behind), ``"exited"`` or ``"unstarted"`` (the
        start failed; the connection is then not shut down, so a duplicate of ``sock`` may still say why). When this
        raises (`Conflict` once the process has exited), ``sock`` is untouched.
        """
        message = {
            "op": "attach",
            "stdin": stdin,
            "stdout": stdout,
            "stderr": stderr,
            "keys": detach_keys.hex(),
            "raw": raw,
            "leftover": bool(leftover),
        }
        fds = [os.dup(sock.fileno())]
        if leftover:
            early = os.memfd_create("leftover", os.MFD_CLOEXEC)
            fds.append(early)
            os.pwrite(early, leftover, 0)
        reply = await self._call(message, fds)
        sock.close()
        number = int(reply["attachment"])
        ended: asyncio.Future[str] = self._loop.create_future()
        if number in self._ended_early:
            ended.set_result(self._ended_early.pop(number))
        elif self._sock is None:
            ended.set_result("closed")
        else:
            self._attachments[number] = ended
        return ended

    def close(self) -> None:
        """Let go of the monitor. One that was never started ends; any other lives on."""
        if self._sock is None:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._sock = None
        for _, fds in self._outgoing:
            _close_all(fds)
        self._outgoing.clear()
        gone = Conflict(_EXITED) if self.exit.done() else Unavailable("the monitor has gone away")
        waiting: list[asyncio.Future[Any]] = [*self._replies.values(), self._hello, self._running]
        for future in waiting:
            if not future.done():
                future.set_exception(gone)
                future.exception()  # nobody may be waiting, and that is no mistake
        for ended in self._attachments.values():
            if not ended.done():
                ended.set_result("closed")
        self._attachments.clear()

    async def _call(self, message: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        identifier = next(self._ids)
        reply: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._replies[identifier] = reply
        try:
            self._send({"id": identifier, **message}, fds)
            return await reply
        finally:
            del self._replies[identifier]

    # -- wire -----------------------------------------------------------------------------------------------

    def _send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send now or as soon as there is room; ``fds`` are closed here once they are sent."""
        if self._sock is None:
            _close_all(fds)
            raise Conflict(_EXITED)
        self._outgoing.append((json.dumps(message).encode(), list(fds)))
        if len(self._outgoing) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outgoing and self._sock is not None:
            packet, fds = self._outgoing[0]
            try:
                socket.send_fds(self._sock, [packet], fds)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self._lost()
                return
            _close_all(fds)
            self._outgoing.popleft()
        if self._sock is not None:
            self._loop.remove_writer(self._sock.fileno())

    def _receive(self) -> None:
        while self._sock is not None:
            try:
                packet = self._sock.recv(_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._lost()
                return
            self._handle(json.loads(packet))

    def _handle(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event is None:
            reply = self._replies.get(message["id"])
            if reply is None or reply.done():
                return
            if "error" in message:
                reply.set_exception(_error(message))
            else:
                reply.set_result(message)
        elif event == "hello":
            self._greet(message)
        elif event == "started":
            self._state, self.pid = "running", message["pid"]
            if not self._running.done():
                self._running.set_result(None)
        elif event == "exit":
            self._exited(message)
        elif event == "oom":
            if self.on_oom is not None:
                self.on_oom()
        elif event == "ended":
            ended = self._attachments.pop(message["attachment"], None)
            if ended is None:
                self._ended_early[message["attachment"]] = message["how"]
            elif not ended.done():
                ended.set_result(message["how"])

    def _greet(self, message: dict[str, Any]) -> None:
        if "error" in message:
            self._hello.set_exception(Unavailable(message["error"]))
            return
        self.monitor_pid = message["monitor"]
        self.pid = message["pid"]
        self._state = message["state"]
        if message["exit"]:
            self._exited(message["exit"])
        if not self._hello.done():
            self._hello.set_result(None)

    def _exited(self, message: dict[str, Any]) -> None:
        self._state = "exited"
        if not self.exit.done():
            self.exit.set_result(msgspec.convert(message, Exit))

    def _lost(self) -> None:
        """The monitor is gone: as it should when all is told, or else it was killed."""
        self.close()
        if self._state == "running" and not self.exit.done():
            self._loop.run_in_executor(None, self._post_mortem).add_done_callback(self._buried)

    def _post_mortem(self) -> Exit:
        recorded = read_exit(self.directory)
        if recorded is not None:
            return recorded
        kill_orphan(self.directory)
        return Exit(LOST_MONITOR, error="the container's monitor was killed; the container was stopped")

    def _buried(self, done: asyncio.Future[Exit]) -> None:
        if not self.exit.done() and not done.cancelled():
            error = done.exception()
            self.exit.set_result(done.result() if error is None else Exit(LOST_MONITOR, error=str(error)))


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _error(message: dict[str, Any]) -> EngineError:
    kind, text = message["kind"], message["error"]
    if kind == "launch":
        return LaunchFailed(message["status"], text)
    if kind == "conflict":
        return Conflict(text)
    return InvalidParameter(text)
