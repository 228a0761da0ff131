"""The driver: plans for the monitor, and everything done to a container that runs.

One driver serves every binary with runc's command line. What only runc and crun are known to do alike - where they keep
state, which cgroups they make - is done here in process and fast for these two, and through the binary for any other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine import kernel
from engine.drivers import DriverContext, cgroup_stats
from engine.drivers.cgroups import Cgroup, Layout
from engine.drivers.runtime import Bundle, Launch, RuntimeDriver, RuntimeInfo
from engine.errors import EngineError, InvalidParameter, NotSupported, PluginError, Unavailable
from engine_runtime_oci import wording
from engine_runtime_oci.moves import MoveAhead
from engine_runtime_oci.sealed import SealedProgram

_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KNOWN = ("runc", "crun")
_COMMAND_TIMEOUT = 60.0
_VERSION = re.compile(r"^(\S+) version (\S+)", re.MULTILINE)
_COMMIT = re.compile(r"^commit: (\S+)", re.MULTILINE)
_CAP_SYS_RESOURCE = 24


class _Linux(msgspec.Struct):
    cgroupsPath: str = ""


class _Process(msgspec.Struct):
    args: list[str] = []


class _Config(msgspec.Struct):
    linux: _Linux | None = None
    process: _Process | None = None


class OciRuntime(RuntimeDriver):
    """runc, crun, or the binary in ``options["path"]`` with the global arguments in ``options["args"]``."""

    capabilities = frozenset({"exec", "pause", "update", "stats", "top", "terminal"})

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._binary = str(context.options.get("path") or context.name)
        arguments = context.options.get("args") or []
        if not isinstance(arguments, Sequence) or isinstance(arguments, str):
            raise InvalidParameter(f"runtime {context.name}: the option args must be a list")
        self._arguments = tuple(str(argument) for argument in arguments)
        self._root = context.state / "containers"
        self._layout = Layout.read()
        self._hide: tuple[str, ...] = ()
        self._sealed: SealedProgram | None = None
        self._moves = MoveAhead()
        self._kind = ""
        self._info: RuntimeInfo | None = None
        self._lock = threading.Lock()

    # -- probe ----------------------------------------------------------------------------------------------

    def probe(self) -> RuntimeInfo:
        """Asks the binary its version and, if it is runc or crun, really starts a container that has nothing to run."""
        with self._lock:
            if self._info is None:
                self._info = self._probe()
            return self._info

    def _probe(self) -> RuntimeInfo:
        path = shutil.which(self._binary) or shutil.which(self._binary, path=_SEARCH)
        if path is None:
            raise NotSupported(
                f"runtime {self.context.name}: {self._binary} is not installed; install it, "
                f"or name its path in the configuration of this runtime"
            )
        self._binary = path
        about = self._command("--version").stdout
        version = _VERSION.search(about)
        self._kind = version[1] if version and version[1] in _KNOWN else ""
        commit = _COMMIT.search(about)
        features = {
            "cgroup": self._layout.version,
            "cgroup_version": "2" if self._layout.version == "v2" else "1",
            "rlimits": str(_has_capability(_CAP_SYS_RESOURCE)).lower(),
            **self._features(about),
        }
        if self._kind:
            self._try()
        if self._hide:
            features["hidden"] = ",".join(self._hide)
        return RuntimeInfo(
            path=path, version=version[2] if version else "", commit=commit[1] if commit else "", features=features
        )

    def _features(self, about: str) -> dict[str, str]:
        if self._kind == "crun":
            words = about.split()
            return {
                name: str(f"+{name.upper()}" in words).lower() for name in ("seccomp", "apparmor", "selinux", "systemd")
            }
        done = self._command("features", check=False)
        try:
            linux = json.loads(done.stdout)["linux"]
            return {name: str(bool(linux[name]["enabled"])).lower() for name in ("seccomp", "apparmor", "selinux")}
        except (ValueError, KeyError, TypeError):
            return {}

    def _try(self) -> None:
        """Start a container whose command does not exist: being told so proves that all before it works."""
        refusal = ""
        for sealed in (SealedProgram(self._binary), None):  # some security modules let nobody execute from memory
            for hide in ((), (self._layout.unified,)) if self._layout.version == "hybrid" else ((),):
                # crun before 1.9 refuses cgroup v1 when it sees a cgroup2 mount beside it; it need not see it.
                self._sealed, self._hide = sealed, hide
                refusal = self._refusal()
                if not refusal:
                    return
        self._hide = ()
        raise Unavailable(
            f"runtime {self.context.name}: {self._binary} cannot run containers on this host "
            f"(cgroup {self._layout.version}): {refusal}; use another runtime"
        )

    def _refusal(self) -> str:
        identifier = f"probe-{self.context.instance}-{os.getpid()}-{self._kind}"
        with tempfile.TemporaryDirectory(dir=self.context.state, prefix="probe-") as directory:
            bundle = Bundle(container_id=identifier, path=Path(directory))
            for name in ("dev", "proc", "sys"):
                (bundle.path / "rootfs" / name).mkdir(parents=True)
            (bundle.path / "config.json").write_text(json.dumps(_nothing_to_run(f"/{identifier}")))
            launch = self._launch(bundle, terminal=False)
            try:
                done = self._run(launch.argv, launch.executable)
                text = launch.error_log.read_text() if launch.error_log and launch.error_log.exists() else done.stderr
            finally:
                self.delete(bundle)
        message = wording.last_error(text)
        error = wording.start_error(text, done.returncode, arguments=["/nothing"], exec=False)
        return "" if error.exit_code == 127 and "/nothing" in message else message or f"status {done.returncode}"

    # -- launch ---------------------------------------------------------------------------------------------

    def launch(self, bundle: Bundle, *, terminal: bool) -> Launch:
        """``run --detach``: one program start brings the process to life."""
        self._ready()
        self._moves.hint()
        return self._launch(bundle, terminal=terminal)

    def _launch(self, bundle: Bundle, *, terminal: bool) -> Launch:
        self._complete(bundle)
        log, pid_file = bundle.path / "runtime.log", bundle.path / "init.pid"
        log.unlink(missing_ok=True)
        return self._plan(
            ("run", "--detach", "--bundle", str(bundle.path)), bundle.container_id, pid_file, log, terminal, (log,)
        )

    def launch_exec(self, bundle: Bundle, exec_id: str, process: Mapping[str, Any], *, terminal: bool) -> Launch:
        """``exec --detach`` with the process in a file, which goes once it has been read."""
        self._ready()
        self._moves.hint()
        base = bundle.path / f"exec-{exec_id}"
        description, pid_file, log = (base.with_name(base.name + suffix) for suffix in (".json", ".pid", ".log"))
        fd = os.open(description, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode({**process, "terminal": terminal}))
        return self._plan(
            ("exec", "--detach", "--process", str(description)),
            bundle.container_id,
            pid_file,
            log,
            terminal,
            (description, pid_file, log),
        )

    def _plan(
        self,
        command: tuple[str, ...],
        container_id: str,
        pid_file: Path,
        log: Path,
        terminal: bool,
        temporary: tuple[Path, ...],
    ) -> Launch:
        console = None
        if terminal:
            # Short: the kernel limits a socket's path to 107 bytes.
            (self.context.state / "tty").mkdir(mode=0o700, exist_ok=True)
            console = self.context.state / "tty" / os.urandom(6).hex()
            command += ("--console-socket", str(console))
        return Launch(
            argv=(
                *(self._binary, *self._arguments, "--root", str(self._root), "--log", str(log), "--log-format", "json"),
                *(*command, "--pid-file", str(pid_file), container_id),
            ),
            executable=self._executable(),
            pid_file=pid_file,
            error_log=log,
            console_socket=console,
            hide=self._hide,
            temporary=temporary,
        )

    def _executable(self) -> str | None:
        return self._sealed.executable() if self._sealed else None

    def _ready(self) -> None:
        if self._info is None:
            self.probe()

    def _complete(self, bundle: Bundle) -> None:
        """Give the container cgroups of its own name if the core named none."""
        if not self._config(bundle).linux or not self._cgroups_path(bundle):
            file = bundle.path / "config.json"
            config = json.loads(file.read_bytes())
            config.setdefault("linux", {})["cgroupsPath"] = self._default_cgroups_path(bundle)
            file.write_text(json.dumps(config))

    def start_error(self, bundle: Bundle, status: int, text: str) -> EngineError:
        """See `engine_runtime_oci.wording`."""
        process = self._config(bundle).process
        return wording.start_error(text, status, arguments=process.args if process else [], exec=False)

    def exec_error(self, bundle: Bundle, arguments: Sequence[str], status: int, text: str) -> EngineError:
        """As `start_error`, for an exec."""
        return wording.start_error(text, status, arguments=arguments, exec=True)

    # -- delete ---------------------------------------------------------------------------------------------

    def delete(self, bundle: Bundle) -> None:
        """Kills what is left, removes cgroups, the runtime's state, and the driver's files in the bundle."""
        cgroup = self._cgroup(bundle)
        if cgroup is not None:
            cgroup.kill()
        if self._kind or not (self._root / bundle.container_id).exists():
            shutil.rmtree(self._root / bundle.container_id, ignore_errors=True)
        else:
            self._command("delete", "--force", bundle.container_id, check=False)
        if cgroup is not None:
            cgroup.remove()
        for name in ("runtime.log", "init.pid"):
            (bundle.path / name).unlink(missing_ok=True)
        for left in bundle.path.glob("exec-*"):
            left.unlink(missing_ok=True)

    # -- while it runs --------------------------------------------------------------------------------------

    def pause(self, bundle: Bundle) -> None:
        """By the freezer."""
        self._existing(bundle).freeze()

    def resume(self, bundle: Bundle) -> None:
        """By the freezer."""
        self._existing(bundle).thaw()

    def update(self, bundle: Bundle, resources: Mapping[str, Any]) -> None:
        """By the runtime, which knows what each cgroup version calls it."""
        self._ready()
        with tempfile.NamedTemporaryFile(dir=self.context.state, prefix="update-") as file:
            file.write(msgspec.json.encode(resources))
            file.flush()
            self._command("update", "--resources", file.name, bundle.container_id)

    def processes(self, bundle: Bundle) -> Sequence[int]:
        """From ``cgroup.procs``."""
        pids = self._existing(bundle).processes()
        try:
            first = int((bundle.path / "init.pid").read_text())
        except (FileNotFoundError, ValueError):
            return pids
        return sorted(pids, key=lambda pid: (pid != first, pid))

    def stats(self, bundle: Bundle) -> Mapping[str, Any]:
        """From the cgroups' files."""
        return cgroup_stats.measure(self._existing(bundle))

    # -- the bundle -----------------------------------------------------------------------------------------

    @staticmethod
    def _config(bundle: Bundle) -> _Config:
        try:
            return msgspec.json.decode((bundle.path / "config.json").read_bytes(), type=_Config)
        except FileNotFoundError:
            return _Config()
        except msgspec.DecodeError as error:
            raise PluginError(f"{bundle.path}/config.json is not an OCI runtime configuration: {error}") from error

    def _cgroups_path(self, bundle: Bundle) -> str:
        linux = self._config(bundle).linux
        return linux.cgroupsPath if linux else ""

    def _default_cgroups_path(self, bundle: Bundle) -> str:
        return f"/engine-{self.context.instance}/{bundle.container_id}"

    def _cgroup(self, bundle: Bundle) -> Cgroup | None:
        path = self._cgroups_path(bundle) or self._default_cgroups_path(bundle)
        if ".." in Path(path).parts or path.strip("/") == "":
            raise PluginError(f"refusing the cgroup path {path!r} of {bundle.container_id}")
        return Cgroup(self._layout, path) if path.startswith("/") else None

    def _existing(self, bundle: Bundle) -> Cgroup:
        cgroup = self._cgroup(bundle)
        if cgroup is None:
            raise NotSupported("the container's cgroup is managed by systemd, which this driver does not ask")
        return cgroup

    # -- the binary -----------------------------------------------------------------------------------------

    def _command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = (self._binary, *self._arguments, "--root", str(self._root), *arguments)
        done = self._run(command, self._executable())
        if check and done.returncode != 0:
            said = wording.last_error(done.stderr) or f"status {done.returncode}"
            raise PluginError(f"{self._binary} {arguments[0]}: {said}")
        return done

    def _run(self, argv: Sequence[str], executable: str | None) -> subprocess.CompletedProcess[str]:
        """Run the binary as a monitor would, with the same mounts hidden."""
        outcome: list[subprocess.CompletedProcess[str] | BaseException] = []

        def run() -> None:
            try:
                if self._hide:
                    _hide_from_this_thread(self._hide)
                outcome.append(
                    subprocess.run(
                        list(argv),
                        executable=executable,
                        stdin=subprocess.DEVNULL,
                        capture_output=True,
                        text=True,
                        errors="replace",
                        timeout=_COMMAND_TIMEOUT,
                        env={"PATH": _SEARCH},
                    )
                )
            except BaseException as error:  # handed to the caller, whatever it is
                outcome.append(error)

        thread = threading.Thread(target=run, name="oci-runtime")  # a thread may have mounts of its own
        thread.start()
        thread.join()
        result = outcome[0]
        if isinstance(result, (OSError, subprocess.SubprocessError)):
            raise Unavailable(f"runtime {self.context.name}: {self._binary}: {result}") from result
        if isinstance(result, BaseException):
            raise result
        return result


def _hide_from_this_thread(mount_points: Sequence[str]) -> None:
    kernel.unshare(kernel.CLONE_NEWNS)
    for point in mount_points:
        parent = Path(point).parent
        while not parent.is_mount():
            parent = parent.parent
        kernel.mount("", parent, flags=kernel.MS_PRIVATE)  # so that the host does not see the unmount
        kernel.mount("", point, flags=kernel.MS_PRIVATE | kernel.MS_REC)
        kernel.umount(point, kernel.MNT_DETACH)


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _nothing_to_run(cgroups_path: str) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/nothing"], "env": [], "cwd": "/"},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
        },
    }
