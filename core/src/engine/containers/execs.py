"""Exec sessions: further processes in a running container, each with a monitor of its own.

A session is created, started once, and can be inspected until five minutes after its end. Sessions live in memory: a
daemon that starts anew does not know those of the last one, though their processes and clients go on undisturbed.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import field

from engine.containers import toolbox
from engine.containers.attach import Client, parse_keys
from engine.drivers.runtime import Launch, RuntimeDriver
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound, StartFailed
from engine.monitor import debug as monitor_debug
from engine.monitor.client import LaunchFailed, Task
from engine.names import new_id
from engine.oci import spec as ocispec
from engine.oci import users

if TYPE_CHECKING:
    from engine.containers import Containers
    from engine.model.container import Container
    from engine.monitor.client import Launcher, Monitor

__all__ = ["ExecConfig", "Execs"]

log = logging.getLogger(__name__)

REMEMBERED = 300.0  # seconds a session can be inspected after its end
_frame_header = struct.Struct(">BxxxL").pack


class ExecConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What ``POST /containers/{id}/exec`` asks for."""

    user: str = ""
    privileged: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None
    attach_stdin: bool = False
    attach_stderr: bool = False
    attach_stdout: bool = False
    detach: bool = False
    detach_keys: str = ""
    env: list[str] | None = None
    working_dir: str = ""
    cmd: list[str] | None = field(default=None)
    toolbox: bool = False  # ours: with the tools of ``engine debug``


class _Session:
    """One exec."""

    __slots__ = ("config", "container_id", "exit_code", "id", "monitor", "over", "pid", "started")

    def __init__(self, exec_id: str, container_id: str, config: ExecConfig) -> None:
        self.id = exec_id
        self.container_id = container_id
        self.config = config
        self.monitor: Monitor | None = None
        self.pid = 0
        self.exit_code: int | None = None
        self.started = False
        self.over: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.monitor is not None and self.exit_code is None


class Execs:
    """All exec sessions of this daemon."""

    def __init__(self, *, containers: Containers, launcher: Launcher) -> None:
        self._containers = containers
        self._workers = containers.workers
        self._launcher = launcher
        self._sessions: dict[str, _Session] = {}
        self._of: dict[str, dict[str, None]] = {}  # container id -> session ids, in order
        containers.exec_ids = self._ids
        containers.gone.append(self._forget_container)

    def _ids(self, container_id: str) -> Sequence[str]:
        return tuple(self._of.get(container_id, ()))

    def _forget_container(self, container_id: str) -> None:
        for exec_id in self._of.pop(container_id, ()):
            self._sessions.pop(exec_id, None)

    def _forget(self, session: _Session) -> None:
        self._sessions.pop(session.id, None)
        self._of.get(session.container_id, {}).pop(session.id, None)

    def forget(self, exec_id: str) -> None:
        """Know no more of a session that has ended. Idempotent."""
        session = self._sessions.get(exec_id)
        if session is not None:
            self._forget(session)

    def _get(self, exec_id: str) -> _Session:
        session = self._sessions.get(exec_id)
        if session is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return session

    def _active(self, ref: str) -> Container:
        container = self._containers.get(ref)
        match container.state.status:
            case "running":
                return container
            case "paused":
                raise Conflict(f"Container {container.id} is paused, unpause the container before exec")
            case "restarting":
                raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        raise Conflict(f"Container {container.id} is not running")

    # -- the API's four calls -----------------------------------------------------------------------------------

    async def create(self, ref: str, config: ExecConfig) -> str:
        """A session in a running container; nothing runs yet."""
        if not config.cmd:
            self._containers.get(ref)
            raise InvalidParameter("No exec command specified")
        container = self._active(ref)
        parse_keys(config.detach_keys)
        for line in config.env or ():
            if not line or line.startswith("="):
                raise InvalidParameter(f"invalid environment variable: {line}")
        if config.working_dir and not config.working_dir.startswith("/"):
            raise InvalidParameter(
                f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
            )
        runtime = await self._workers.call(self._containers.runtime, container)
        if "exec" not in runtime.capabilities:
            raise Conflict(f"exec is not supported by the runtime {container.runtime} of container {container.id}")
        session = _Session(new_id(), container.id, config)
        self._sessions[session.id] = session
        self._of.setdefault(container.id, {})[session.id] = None
        await self._event(container, session, f"exec_create: {_line(config)}")
        return session.id

    def check_start(self, exec_id: str) -> ExecConfig:
        """What `start` would refuse, before the client's connection is taken over; the session's config."""
        session = self._get(exec_id)
        if session.exit_code is not None:
            raise Conflict(f"exec command {exec_id} has already run")
        if session.started:
            raise Conflict(f"exec command {exec_id} is already running")
        self._active(session.container_id)
        return session.config

    async def start(
        self,
        exec_id: str,
        client: Client | None = None,
        *,
        raw: bool = False,
        console_size: tuple[int, int] | None = None,
    ) -> None:
        """Run the session's process; with a client, its streams are the process's and this returns when it runs.
        Output comes in Docker's frames unless ``raw``.

        A failed start is told to the client on its stream, as dockerd does, and raised.
        """
        config = self.check_start(exec_id)
        session = self._get(exec_id)
        session.started = True
        container = self._containers.get(session.container_id)
        await self._event(container, session, f"exec_start: {_line(config)}")
        reserve = client.reserve() if client else None
        try:
            await self._run(session, container, client, raw, console_size or config.console_size)
        except BaseException as error:
            session.exit_code = error.exit_code if isinstance(error, StartFailed) else 126
            if reserve is not None and isinstance(error, EngineError):
                text = f"{error}\r\n".encode()
                await reserve.send(text if raw else _frame_header(1, len(text)) + text)
            if reserve is not None:
                reserve.finish()
            self._ended(session)
            raise
        finally:
            if reserve is not None:
                reserve.close()

    async def _run(
        self,
        session: _Session,
        container: Container,
        client: Client | None,
        raw: bool,
        console_size: tuple[int, int] | None,
    ) -> None:
        config = session.config
        linked = self._containers.networks.link_environment(container)
        directory = self._containers.starter.bundle(container.id).path / "exec" / session.id
        try:
            runtime, launch = await self._workers.call(self._prepare, session, container, directory, linked)
            monitor = await self._launcher.spawn(
                Task(
                    id=session.id,
                    directory=directory,
                    launch=launch,
                    terminal=config.tty,
                    console_size=console_size,
                    open_stdin=config.attach_stdin and client is not None,
                    stdin_once=True,
                    log=None,
                    exec=True,
                )
            )
            try:
                if client is not None:
                    await client.hand_over(
                        monitor,
                        stdin=config.attach_stdin,
                        stdout=config.attach_stdout or not (config.attach_stdin or config.attach_stderr),
                        stderr=config.attach_stderr or not (config.attach_stdin or config.attach_stdout),
                        keys=parse_keys(config.detach_keys),
                        raw=raw,
                    )
                session.monitor = monitor
                session.pid = await monitor.start()
            except LaunchFailed as failure:
                bundle = self._containers.starter.bundle(container.id)
                raise runtime.exec_error(bundle, config.cmd or (), failure.status, failure.text) from None
            except BaseException:
                monitor.close()
                raise
        except BaseException:
            session.monitor = None
            await self._workers.call(shutil.rmtree, directory, True)
            raise
        session.over = self._workers.spawn(self._watch(session, monitor, directory), name=f"exec {session.id[:12]}")

    def _prepare(
        self, session: _Session, container: Container, directory: Path, linked: Sequence[str]
    ) -> tuple[RuntimeDriver, Launch]:
        config = session.config
        root = Path(f"/proc/{container.state.pid}/root")
        process = ocispec.exec_process(
            container,
            args=config.cmd or [],
            env=config.env or [],
            working_dir=config.working_dir or container.config.working_dir,
            tty=config.tty,
            user=users.find(root, config.user or container.config.user, container.host_config.group_add),
            defaults=self._containers.settings.defaults,
            linked=linked,
        )
        self._containers.plugins.hooks.engine_exec_process(
            container=container, process=process, privileged=config.privileged or container.host_config.privileged
        )
        directory.mkdir(mode=0o700, parents=True)
        runtime = self._containers.runtime(container)
        if config.toolbox:
            return runtime, self._debug(container, directory, process)
        bundle = self._containers.starter.bundle(container.id)
        return runtime, runtime.launch_exec(bundle, session.id, process, terminal=config.tty)

    def _debug(self, container: Container, directory: Path, process: Mapping[str, Any]) -> Launch:
        """The plan of a debug shell; see `engine.monitor.debug`."""
        tools = toolbox.provide(self._containers.settings.root.parent)
        environment = dict(line.partition("=")[::2] for line in process.get("env", ()))
        environment["PATH"] = f"{environment.get('PATH', '')}:{toolbox.PATH}/bin".lstrip(":")
        user = process["user"]
        task = {
            "pid": container.state.pid,
            "toolbox": str(tools),
            "args": list(process["args"]),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": process["cwd"],
            "uid": user["uid"],
            "gid": user["gid"],
            "groups": list(user.get("additionalGids", ())),
        }
        (directory / "debug.json").write_bytes(msgspec.json.encode(task))
        return Launch(
            guest=str(Path(monitor_debug.__file__)),
            bundle=directory,
            pid_file=directory / "pid",
            environment={},
        )

    async def _watch(self, session: _Session, monitor: Monitor, directory: Path) -> None:
        exit_ = await monitor.exit
        monitor.close()
        session.exit_code = exit_.code
        self._ended(session)
        try:
            container = self._containers.get(session.container_id)
        except NotFound:
            return
        await self._event(container, session, "exec_die", exitCode=str(exit_.code))
        await self._workers.call(shutil.rmtree, directory, True)

    def _ended(self, session: _Session) -> None:
        session.monitor = None
        session.pid = 0
        asyncio.get_running_loop().call_later(REMEMBERED, self._forget, session)

    async def _event(self, container: Container, session: _Session, action: str, **attributes: str) -> None:
        await self._containers.event(container, action, execID=session.id, **attributes)

    async def finished(self, exec_id: str) -> int:
        """Wait for a started session's end; its exit code."""
        session = self._get(exec_id)
        if session.over is not None:
            await asyncio.wait((session.over,))
        return session.exit_code if session.exit_code is not None else -1

    async def kill(self, exec_id: str, signal: int) -> None:
        """Send a signal to a session's process; nothing happens when it has ended."""
        monitor = self._get(exec_id).monitor
        if monitor is not None:
            try:
                await monitor.kill(signal)
            except Conflict:
                pass

    async def resize(self, exec_id: str, height: int, width: int) -> None:
        """Tell a session's terminal its size."""
        monitor = self._get(exec_id).monitor
        if monitor is None:
            raise Conflict(f"exec process is not started: {exec_id}")
        await monitor.resize(height, width)

    def inspect(self, exec_id: str) -> dict[str, Any]:
        """The body of ``/exec/{id}/json``."""
        session = self._get(exec_id)
        config = session.config
        command = config.cmd or [""]
        process = {
            "tty": config.tty,
            "entrypoint": command[0],
            "arguments": command[1:],
            "privileged": config.privileged,
        }
        if config.user:
            process["user"] = config.user
        return {
            "ID": session.id,
            "Running": session.running,
            "ExitCode": session.exit_code,
            "ProcessConfig": process,
            "OpenStdin": config.attach_stdin,
            "OpenStderr": config.attach_stderr,
            "OpenStdout": config.attach_stdout,
            "CanRemove": session.exit_code is not None,
            "ContainerID": session.container_id,
            "DetachKeys": config.detach_keys,
            "Pid": session.pid,
        }


def _line(config: ExecConfig) -> str:
    """The command as events show it: with dockerd's trailing space when there are no arguments."""
    command = config.cmd or [""]
    return f"{command[0]} {' '.join(command[1:])}"
