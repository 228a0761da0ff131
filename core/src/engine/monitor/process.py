"""The monitor: one process that holds one container (or one exec) from before its start until after its end.

States: ``created`` (may be started once) -> ``starting`` (the runtime runs) -> ``running`` -> ``exited``. A start that
fails ends the monitor, and so does a daemon that leaves before it asked for a start. An exit is recorded durably before
it is told to anyone; once it is recorded the monitor touches neither its directory nor the log again, and only finishes
its attachments.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import termios
import time

from engine import kernel
from engine.monitor import start
from engine.monitor.attachment import CHUNK, UNSTARTED, Attachment
from engine.monitor.loop import READ, WRITE, Loop
from engine.monitor.oom import OomWatch
from engine.monitor.stdin import Stdin
from engine.monitor.wire import decode, encode, receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections import deque
    from typing import Any, NoReturn
else:
    import _signal as signal
    from _collections import deque

SETTLE = 0.1  # after the exit: how long output may still arrive before the exit is recorded
LINGER = 2.0  # after the exit: how long a grandchild that holds the output open keeps the attachments
REAP = 1.0  # after the exit: how long until a process nobody gave to us is given up
LOST = 255  # the exit code of such a process, which nobody knows
PIPE_SIZE = 256 * 1024
_PACKET = 1 << 18
_TASK = 1 << 20
_BACKLOG = 4096


class Refused(Exception):
    """A request that cannot be served; ``kind`` tells the daemon which error it is."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Connection:
    """A control connection: JSON packets, requests in, replies and events out."""

    def __init__(self, monitor: Monitor, sock: _socket.socket) -> None:
        sock.setblocking(False)
        self._monitor = monitor
        self._sock = sock
        self._queue: deque[bytes] = deque()
        self.closed = False
        monitor.loop.watch(sock.fileno(), READ, self._ready)

    @property
    def pending(self) -> bool:
        """Whether something still has to be sent."""
        return bool(self._queue)

    def send(self, message: dict[str, Any]) -> None:
        """Send now or later; a peer that takes nothing for long is dropped."""
        if self.closed:
            return
        self._queue.append(encode(message))
        if len(self._queue) > _BACKLOG:
            self.close()
        elif len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._queue:
                self._sock.send(self._queue[0])
                self._queue.popleft()
        except BlockingIOError:
            self._monitor.loop.watch(self._sock.fileno(), READ | WRITE, self._ready)
            return
        except OSError:
            self.close()
            return
        self._monitor.loop.watch(self._sock.fileno(), READ, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & ~WRITE and not self.closed:
            self._receive()
        if not self._queue:
            self._monitor.maybe_done()

    def _receive(self) -> None:
        try:
            packet, fds, truncated = receive(self._sock, _PACKET, 8)
        except BlockingIOError:
            return
        except OSError:
            packet, fds, truncated = b"", [], False
        if not packet:
            self.close()
            return
        identifier: Any = None
        try:
            message = decode(packet)
            identifier = message["id"]
            if truncated:
                raise Refused("invalid", "too many descriptors")
            self._monitor.request(self, identifier, message, fds)
        except Refused as refusal:
            self.send({"id": identifier, "error": str(refusal), "kind": refusal.kind})
        except Exception as error:  # whatever a client sends must not end a monitor
            self.send({"id": identifier, "error": f"{type(error).__name__}: {error}", "kind": "invalid"})
        finally:
            for fd in fds:  # those a request kept were taken out of the list
                os.close(fd)

    def close(self) -> None:
        """Close; the monitor is told."""
        if not self.closed:
            self.closed = True
            self._queue.clear()
            self._monitor.loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._monitor.disconnected(self)


class Monitor:
    """All state of one monitor; every method runs on its loop."""

    def __init__(self, task: dict[str, Any], control: _socket.socket) -> None:
        self.loop = Loop()
        self._task = task
        self._launch: dict[str, Any] = task["launch"]
        self._directory: str = task["directory"]
        self._terminal: bool = task["terminal"]
        self._size: tuple[int, int] | None = tuple(task["console_size"]) if task["console_size"] else None
        self._state = "created"
        self._pid = 0
        self._pidfd = -1
        self._program = 0  # the runtime while it starts the process
        self._start_request: tuple[Connection, Any] | None = None
        self._start_timer: int | None = None
        self._start_note = ""
        self._outputs: dict[int, int] = {}  # stream -> descriptor we read
        self._readers = {1: lambda _mask: self._output(1), 2: lambda _mask: self._output(2)}
        self._child_stdin = -1  # our end of the input pipe, until the process runs
        self._stdin = Stdin(self.loop, self._resume_input)
        self._master = -1
        self._console: start.Console | None = None
        self._report = -1  # where a guest says that it runs, and why it ended
        self._report_text = b""
        self._log: Any = None
        self._oom: OomWatch | None = None
        self._attachments: dict[int, Attachment] = {}
        self._next_attachment = 0
        self._exit: dict[str, Any] | None = None
        self._settle_timer: int | None = None
        self._recorded = False
        self._finished = False
        self._connections: list[Connection] = []
        self._listener = self._listen()
        self.loop.watch(self._listener.fileno(), READ, self._accept)
        self._wakeup, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _noted)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _noted)  # a monitor ends with its container; at shutdown it still records the exit
        self.loop.watch(self._wakeup, READ, self._signalled)
        self._add_connection(control)

    # -- control --------------------------------------------------------------------------------------------

    def _listen(self) -> _socket.socket:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK)
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            start.unlink(self._directory + "/monitor.sock")
            listener.bind(f"/proc/self/fd/{directory}/monitor.sock")  # the real path may be too long for a socket
        finally:
            os.close(directory)
        os.chmod(self._directory + "/monitor.sock", 0o600)
        listener.listen(16)
        return listener

    def _accept(self, _mask: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        self._add_connection(_socket.socket(fileno=fd))

    def _add_connection(self, sock: _socket.socket) -> None:
        connection = Connection(self, sock)
        self._connections.append(connection)
        connection.send(
            {
                "event": "hello",
                "monitor": os.getpid(),
                "state": self._state,
                "pid": self._pid or None,
                "exit": self._exit,
            }
        )

    def disconnected(self, connection: Connection) -> None:
        """A control connection is gone."""
        self._connections.remove(connection)
        if self._state == "created" and not self._connections:
            self._give_up()
        self.maybe_done()

    def request(self, connection: Connection, identifier: Any, message: dict[str, Any], fds: list[int]) -> None:
        """Serve one request; raises `Refused`. Descriptors it keeps are removed from ``fds``."""
        operation = message["op"]
        if operation == "start":
            self._start(connection, identifier, float(message["deadline"]))
            return  # answered when the process runs, or does not
        reply: dict[str, Any] = {}
        if operation == "kill":
            self._kill(int(message["signal"]))
        elif operation == "resize":
            self._resize(int(message["height"]), int(message["width"]))
        elif operation == "attach":
            reply["attachment"] = self._attach(message, fds)
        else:
            raise Refused("invalid", f"unknown operation {operation!r}")
        connection.send({"id": identifier, **reply})

    def _tell(self, message: dict[str, Any]) -> None:
        for connection in list(self._connections):
            connection.send(message)

    # -- start ----------------------------------------------------------------------------------------------

    def _start(self, connection: Connection, identifier: Any, deadline: float) -> None:
        if self._state != "created":
            raise Refused("conflict", "already started")
        self._state = "starting"
        self._start_request = (connection, identifier)
        self._start_timer = self.loop.after(deadline, self._start_overdue)
        try:
            if self._task["log"]:
                writer = start.load_source(self._task["log"]["source"])
                self._log = writer.open_log(self._task["log"]["options"])
            for stale in (f"{self._directory}/exit.json", f"{self._directory}/process.json", self._launch["pid_file"]):
                start.unlink(stale)
            self._run()
        except Exception as error:
            self._start_failed(-1, f"{type(error).__name__}: {error}")
            return
        if self._launch["guest"]:
            self._pidfd = os.pidfd_open(self._program)
            self.loop.watch(self._report, READ, self._reported)

    def _run(self) -> None:
        """Make the process's stdio and fork the runtime or the guest."""
        guest = bool(self._launch["guest"])
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        theirs = [null]
        try:
            stdin = stdout = stderr = null
            if guest and self._terminal:
                self._master, stdin = os.openpty()
                theirs.append(stdin)
                stdout = stderr = stdin
                self._set_size()
            else:
                if self._task["open_stdin"] and not self._terminal:
                    stdin, self._child_stdin = os.pipe2(os.O_CLOEXEC)
                    theirs.append(stdin)
                    os.set_blocking(self._child_stdin, False)
                if not self._terminal:
                    stdout = self._output_pipe(1)
                    theirs.append(stdout)
                stderr = self._output_pipe(2)  # with a terminal, only the runtime's own complaints
                theirs.append(stderr)
            if guest:
                self._report, report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                theirs.append(report)
                self._program = start.run_guest(self._launch, stdin, stdout, stderr, report, terminal=self._terminal)
                return
            if self._terminal:
                self._console = start.Console(self._launch["console_socket"])
                self.loop.watch(self._console.fileno(), READ, self._console_ready)
            self._program = start.run_program(self._launch, stdin, stdout, stderr)
        finally:
            for fd in theirs:
                os.close(fd)

    def _output_pipe(self, stream: int) -> int:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        self._outputs[stream] = ours
        try:
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:  # over the user's limit for pipes; the default size does
            pass
        return theirs

    def _console_ready(self, _mask: int) -> None:
        if self._console is None:
            return
        try:
            master = self._console.receive()
        except OSError as error:
            self._start_note = f"console: {error}"
            return
        if master is not None:
            self._master = master
            self._set_size()
            self._close_console()

    def _close_console(self) -> None:
        if self._console is not None:
            self.loop.unwatch(self._console.fileno())
            self._console.close()
            self._console = None

    def _reported(self, _mask: int) -> None:
        """A guest runs, or says why not, or why it ended; its silence while it starts is seen when it has ended."""
        try:
            text = os.read(self._report, 65536)
        except BlockingIOError:
            return
        if not text:
            self.loop.unwatch(self._report)
        self._report_text += text[: max(0, _PACKET - len(self._report_text))]
        if self._state == "starting" and self._report_text.startswith(b"\0"):
            pid, self._program = self._program, 0
            self._started(pid)

    def _guest_ended(self, status: int) -> None:
        """A guest has ended before we knew that it ran: it was quick, or it could not start."""
        pid = self._program
        self._reported(READ)
        code = os.waitstatus_to_exitcode(status)
        if self._state == "running":
            self._exited(code)
        else:
            self._program = 0
            text = self._report_text.decode(errors="replace").strip()
            self._start_failed(code, text or f"the guest {pid} ended with {code} before it ran")

    def _start_overdue(self) -> None:
        self._start_note = "the runtime did not start the process in time"
        self._kill_children()

    def _kill_children(self) -> None:
        """Kill what a start has brought to life so far; the runtime's end is then a failed start."""
        for pid in start.children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _program_ended(self, status: int) -> None:
        """The runtime has ended: with 0 the process runs (or has run already)."""
        if self._launch["guest"]:
            self._guest_ended(status)
            return
        self._program = 0
        if self._terminal and self._master < 0:
            self._console_ready(READ)
        self._close_console()
        code = os.waitstatus_to_exitcode(status)
        if code != 0 or self._start_note:
            self._start_failed(code, "")
            return
        try:
            with open(self._launch["pid_file"]) as file:
                pid = int(file.read())
            self._pidfd = os.pidfd_open(pid)
        except (OSError, ValueError) as error:
            self._start_failed(code, f"the runtime left no process: {error}")
            return
        if self._terminal and self._master < 0:
            self._start_failed(code, "the runtime sent no terminal")
            return
        self._started(pid)

    def _started(self, pid: int) -> None:
        self.loop.cancel(self._start_timer)
        self._remove_temporary()
        self._state = "running"
        self._pid = pid
        self.loop.watch(self._pidfd, READ, self._gone)
        if not self._task["exec"]:
            self._oom = OomWatch(pid)
            if self._oom.fd >= 0:
                self.loop.watch(self._oom.fd, READ, self._oom_noticed)
        record = {"pid": pid, "ticks": start.start_ticks(pid), "monitor": os.getpid()}
        start.write_file(self._directory + "/process.json", encode(record), durable=False)
        if self._terminal:
            stderr = self._outputs.pop(2, -1)
            if stderr >= 0:
                os.close(stderr)
            os.set_blocking(self._master, False)
            self._outputs[1] = self._master
            self._stdin.connect(os.dup(self._master))
        elif self._child_stdin >= 0:
            self._stdin.connect(self._child_stdin)
        self._read_outputs()
        self._tell({"event": "started", "pid": pid})
        if self._start_request is not None:
            connection, identifier = self._start_request
            connection.send({"id": identifier, "pid": pid})

    def _start_failed(self, code: int, text: str) -> None:
        self.loop.cancel(self._start_timer)
        self._close_console()
        self._kill_children()
        text = text or self._start_note or start.error_text(self._launch, self._outputs.get(2, -1))
        if self._start_request is not None:
            connection, identifier = self._start_request
            connection.send({"id": identifier, "error": text, "kind": "launch", "status": code})
        self._remove_temporary()
        self._give_up()

    def _remove_temporary(self) -> None:
        for path in self._launch["temporary"]:
            start.unlink(path)

    def _give_up(self) -> None:
        """End without ever having run anything."""
        self._state = "exited"
        self._recorded = True
        start.unlink(self._directory + "/monitor.sock")
        self._release()
        for attachment in list(self._attachments.values()):
            attachment.end(UNSTARTED)
        self._finish()

    # -- the process's output, input and size ---------------------------------------------------------------

    def _read_outputs(self) -> None:
        """Read the output unless a client is behind; what the process left behind is read in any case."""
        if self._state == "exited" and not self._recorded:
            wanted = True
        else:
            wanted = self._pid != 0 and not any(attachment.full for attachment in self._attachments.values())
        for stream, fd in self._outputs.items():
            if wanted:
                self.loop.watch(fd, READ, self._readers[stream])
            else:
                self.loop.unwatch(fd)

    def _output(self, stream: int) -> None:
        fd = self._outputs[stream]
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: all ends of the terminal are closed
            data = b""
        if not data:
            self._output_ended(stream)
            return
        if self._log is not None:
            try:
                self._log.write(stream, data, time.time_ns())
            except Exception:
                self._log_failed()
        behind = False
        for attachment in list(self._attachments.values()):
            attachment.send(stream, data)
            behind = behind or attachment.full
        if behind:
            self._read_outputs()

    def _output_ended(self, stream: int) -> None:
        fd = self._outputs.pop(stream)
        self.loop.unwatch(fd)
        os.close(fd)
        if fd == self._master:
            self._master = -1
        if self._state == "exited" and not self._outputs:
            self._all_read()

    def _log_failed(self) -> None:
        self._log = None
        note_crash(self._directory)

    def _input(self, data: bytes) -> None:
        self._stdin.write(data)
        if self._stdin.full:
            for attachment in self._attachments.values():
                attachment.pause_input()

    def _resume_input(self) -> None:
        for attachment in list(self._attachments.values()):
            attachment.resume_input()

    def _resize(self, height: int, width: int) -> None:
        if not self._terminal:
            raise Refused("conflict", "the process has no terminal")
        self._size = (height, width)
        if self._master >= 0:
            self._set_size()

    def _set_size(self) -> None:
        if self._size is not None:
            termios.tcsetwinsize(self._master, self._size)

    def _kill(self, number: int) -> None:
        if self._state == "starting":
            self._start_note = "killed while starting"
            self._kill_children()
        elif self._state == "running":
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                raise Refused("conflict", "the process has exited") from None
        else:
            raise Refused("conflict", "no process is running")

    # -- attachments ----------------------------------------------------------------------------------------

    def _attach(self, message: dict[str, Any], fds: list[int]) -> int:
        if self._exit is not None or self._state == "exited":
            raise Refused("conflict", "the process has exited")
        streams = frozenset(stream for stream, name in ((1, "stdout"), (2, "stderr")) if message[name])
        stdin = bool(message["stdin"]) and self._task["open_stdin"]
        keys = bytes.fromhex(message["keys"])
        leftover = b""
        if message["leftover"]:
            with open(fds[1], "rb", closefd=False) as early:
                leftover = early.read()
        self._next_attachment += 1
        number = self._next_attachment
        sock = _socket.socket(fileno=fds.pop(0))
        attachment = Attachment(
            self.loop,
            sock,
            terminal=self._terminal,
            raw=self._terminal if message.get("raw") is None else message["raw"],
            streams=streams,
            keys=keys,
            spool_directory=self._directory,
            on_input=self._input if stdin else None,
            on_input_end=lambda: self._input_ended(number),
            on_room=self._read_outputs,
            on_end=lambda how: self._attachment_ended(number, how),
        )
        self._attachments[number] = attachment
        if self._stdin.full:
            attachment.pause_input()
        if leftover:
            attachment.feed(leftover)
        return number

    def _input_ended(self, number: int) -> None:
        # dockerd's rule: with StdinOnce the client's end of input is the process's; else it ends the attachment.
        if self._task["stdin_once"] and not self._terminal:
            self._stdin.end()
        elif number in self._attachments:
            self._attachments[number].end("closed")

    def _attachment_ended(self, number: int, how: str) -> None:
        self._attachments.pop(number, None)
        self._tell({"event": "ended", "attachment": number, "how": how})
        self.maybe_done()

    # -- exit -----------------------------------------------------------------------------------------------

    def _signalled(self, _mask: int) -> None:
        os.read(self._wakeup, 4096)
        if self._program and self._state == "starting":
            # Only the runtime: the process itself stays a zombie, with its /proc entry, until we know its id.
            pid, status = os.waitpid(self._program, os.WNOHANG)
            if pid:
                self._program_ended(status)
        if self._state == "starting":
            return
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid and self._state == "running":
                self._exited(os.waitstatus_to_exitcode(status))

    def _gone(self, _mask: int) -> None:
        """The process has ended; its status comes with SIGCHLD (crun's helper, its parent, may outlive it a little)."""
        self.loop.unwatch(self._pidfd)
        self.loop.after(REAP, self._never_ours)

    def _never_ours(self) -> None:
        if self._state == "running":
            self._exited(LOST)

    def _exited(self, code: int) -> None:
        self._state = "exited"
        self.loop.unwatch(self._pidfd)
        self._exit = {
            "event": "exit",
            "code": code if code >= 0 else 128 - code,
            "oom_killed": False,
            "finished_ns": time.time_ns(),
        }
        if self._oom is not None:
            self._oom_noticed(0)
            self._exit["oom_killed"] = self._oom.killed
        if self._report >= 0:
            self._reported(READ)
            self._exit["error"] = self._report_text[1:].decode(errors="replace").strip()
        self._settle_timer = self.loop.after(SETTLE, self._record)
        if self._outputs:
            self._read_outputs()
        else:
            self._all_read()

    def _oom_noticed(self, _mask: int) -> None:
        if self._oom is not None and self._oom.fresh():
            self._tell({"event": "oom"})

    def _all_read(self) -> None:
        """The process is gone and so is everything that could still write."""
        if not self._recorded:
            self._record()
        self._finish()

    def _record(self) -> None:
        """Make the exit durable, leave the directory alone from now on, and tell."""
        if self._exit is None or self._recorded:
            return
        self._recorded = True
        self.loop.cancel(self._settle_timer)
        self._release()
        record = {key: value for key, value in self._exit.items() if key != "event"}
        start.write_file(self._directory + "/exit.json", encode(record), durable=not self._task["exec"])
        start.unlink(self._directory + "/monitor.sock")
        self._tell(self._exit)
        if self._outputs:
            self._read_outputs()
            self.loop.after(LINGER, self._finish)

    def _release(self) -> None:
        """Give back what belongs to the container."""
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._stdin.close()
        if self._oom is not None:
            if self._oom.fd >= 0:
                self.loop.unwatch(self._oom.fd)
            self._oom.close()
        if self._log is not None:
            try:
                self._log.sync()
                self._log.close()
            except Exception:
                note_crash(self._directory)
            self._log = None

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        for fd in self._outputs.values():
            self.loop.unwatch(fd)
            os.close(fd)
        self._outputs.clear()
        for attachment in list(self._attachments.values()):
            attachment.finish()
        self.maybe_done()

    def maybe_done(self) -> None:
        """End the monitor when nothing is left to do."""
        if self._finished and not self._attachments and not any(c.pending for c in self._connections):
            self.loop.stop()


def _noted(_number: int, _frame: Any) -> None:
    """Signals arrive through the wake-up descriptor."""


def note_crash(directory: str) -> None:
    """Write the traceback of the current exception to ``monitor.err``."""
    import traceback

    with open(directory + "/monitor.err", "a") as file:
        traceback.print_exc(file=file)


def stand_by(requests: _socket.socket, told: int) -> NoReturn:
    """Wait for a task, say on ``told`` that it is taken and by which source its log is written, and be its monitor."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    packet, fds, _ = receive(requests, _TASK, 1)
    if not packet:
        os._exit(0)
    task = decode(packet)
    status = 0
    try:
        os.write(told, (task["log"]["source"] if task["log"] else "").encode() + b"\n")
        os.close(told)
        requests.close()
        start.set_title("engine-monitor")
        Monitor(task, _socket.socket(fileno=fds[0])).loop.run()
    except BaseException:
        status = 1
        note_crash(task["directory"])
    os._exit(status)
