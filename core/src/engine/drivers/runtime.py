"""Runtime drivers: how a container's process comes to life.

Vocabulary. A *bundle* is the OCI runtime bundle of one container: a directory with ``config.json``; the
root file system is already mounted, the network namespace already made. A *launch* is a plan - plain data -
that the container's monitor carries out; the driver itself starts nothing. The *monitor* is the core's small
per-container process: it owns stdio or the terminal, is the child subreaper, writes the log and records the
exit. It outlives the daemon, and so does everything it does.

Life of a container as the driver sees it::

    launch(bundle, terminal=...)   plan made by the driver, carried out by a monitor
    ... the process runs; signals, exit and stdio belong to the monitor ...
    launch_exec(bundle, ...)       any number of times
    delete(bundle)                 after the process is gone: cgroup, runtime state
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.drivers import DriverContext
from engine.errors import EngineError, NotSupported

__all__ = ["Bundle", "Launch", "LauncherPlan", "RuntimeDriver", "RuntimeInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One container as the runtime sees it. ``path`` holds ``config.json`` and is writable by the driver."""

    container_id: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherPlan:
    """A launcher that has more loaded than the standard library, so that its guests need not load it: the core keeps
    one process for each plan, from the first launch that asks for it. ``search`` are directories where its imports
    are looked for after the standard library; ``preload`` are Python source files it runs once (see `Launch.guest`).

    The launcher forks, so what it preloads must start no thread.
    """

    search: tuple[Path, ...] = ()
    preload: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a monitor does to start a process; JSON-serialisable plain data.

    Exactly one of ``argv`` and ``guest`` is set.

    ``argv``: a program that starts the process *detached* and exits 0 once it runs, having written the
    process id to ``pid_file``. Its stdin, stdout and stderr are those of the container's process, except with
    ``console_socket``: then the monitor listens there and receives the pty master (SCM_RIGHTS).
    Any other exit status means the start failed: text found in ``error_log`` (or, without one, on the
    program's stderr) goes to `RuntimeDriver.start_error`.

    ``guest``: a Python source file; the monitor calls its ``prepare(bundle)`` if it has one, forks and calls
    ``main(bundle: str, report: int) -> int`` in the child, which *is* the container's process. ``launcher`` is the
    launcher to fork from, ``bundle`` is the path handed to both. ``report`` is a descriptor: the guest writes one zero
    byte to it when it runs. What it writes instead, before it ends, says why it could not start, its exit status being
    the launch's; what it writes afterwards says why it ended (the container's ``State.Error``).

    ``temporary``: files the monitor removes once the start has succeeded or failed.

    ``executable``: what is executed as ``argv``, where that is another file than ``argv[0]`` says.

    ``hide``: mount points unmounted in a private mount namespace before ``argv`` runs (the host keeps them).
    """

    argv: tuple[str, ...] = ()
    executable: str | None = None
    guest: str | None = None
    bundle: Path | None = None
    launcher: LauncherPlan | None = None
    pid_file: Path
    error_log: Path | None = None
    console_socket: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    hide: tuple[str, ...] = ()
    temporary: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """What `probe` found out. ``features`` are facts for `info` (cgroup version, seccomp, systemd...)."""

    path: str
    version: str
    commit: str = ""
    features: Mapping[str, str] = field(default_factory=dict)


class RuntimeDriver(ABC):
    """Runs containers of the platforms its description names.

    Capabilities: ``exec`` (launch_exec), ``pause`` (pause and resume), ``update``, ``stats``, ``top``
    (processes), ``terminal`` (launch with a pty).
    """

    capabilities: frozenset[str] = frozenset()

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    @abstractmethod
    def probe(self) -> RuntimeInfo:
        """Find out whether this runtime works on this host; cheap after the first call.

        Raises `NotSupported` or `Unavailable` with the reason and the cure when it does not
        (binary not installed, cgroup layout refused). Never guesses: it tries.
        """

    @abstractmethod
    def launch(self, bundle: Bundle, *, terminal: bool) -> Launch:
        """The plan that starts the container's first process. May complete ``config.json`` for this
        runtime; must not start anything."""

    @abstractmethod
    def start_error(self, bundle: Bundle, status: int, text: str) -> EngineError:
        """Turn the output of a failed launch into an error in dockerd's words (`StartFailed` with 127, 126 or 128)."""

    def exec_error(self, bundle: Bundle, arguments: Sequence[str], status: int, text: str) -> EngineError:
        """As `start_error`, for a failed `launch_exec` of ``arguments`` (``OCI runtime exec failed: ...``)."""
        return self.start_error(bundle, status, text)

    @abstractmethod
    def delete(self, bundle: Bundle) -> None:
        """Remove what the runtime left behind (state directory, cgroups), killing what still runs in it.

        Called after the first process is gone, and again at reconciliation; idempotent.
        """

    def launch_exec(self, bundle: Bundle, exec_id: str, process: Mapping[str, Any], *, terminal: bool) -> Launch:
        """The plan that runs another ``process`` (OCI runtime-spec form) inside a running container."""
        raise NotSupported(f"runtime {self.context.name} cannot run further processes in a container (exec)")

    def pause(self, bundle: Bundle) -> None:
        """Freeze all processes of the container."""
        raise NotSupported(f"runtime {self.context.name} cannot pause containers")

    def resume(self, bundle: Bundle) -> None:
        """Undo `pause`."""
        raise NotSupported(f"runtime {self.context.name} cannot resume containers")

    def update(self, bundle: Bundle, resources: Mapping[str, Any]) -> None:
        """Apply OCI ``linux.resources`` to a running container; all or nothing."""
        raise NotSupported(f"runtime {self.context.name} cannot update the limits of running containers")

    def processes(self, bundle: Bundle) -> Sequence[int]:
        """Host process ids of everything in the container, first process first."""
        raise NotSupported(f"runtime {self.context.name} cannot list processes")

    def stats(self, bundle: Bundle) -> Mapping[str, Any]:
        """Resource use now, as the ``cpu_stats``, ``memory_stats``, ``blkio_stats`` and ``pids_stats`` of the
        Docker API (nanoseconds, bytes)."""
        raise NotSupported(f"runtime {self.context.name} cannot measure containers")
