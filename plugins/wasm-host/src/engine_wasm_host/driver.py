"""The runtime driver all WebAssembly runtimes are: plans for the guest, and everything done to one that runs.

A subclass says what a container runs (`WasmHost.describe`); sandbox, limits, cache and process are the same for all.
"""

from __future__ import annotations

import json
import os
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.drivers import DriverContext, cgroup_stats
from engine.drivers.cgroups import Cgroup, Layout
from engine.drivers.runtime import Bundle, Launch, LauncherPlan, RuntimeDriver, RuntimeInfo
from engine.errors import Conflict, EngineError, InvalidParameter, StartFailed
from engine_wasm_host import cgroups, modules
from engine_wasm_host.cache import AotCache, Compiled, search_path

__all__ = ["WasmHost"]

_PLAN = "wasm.json"
_OVERHEAD = 12 << 20  # what the host process itself may need of the memory limit
_KERNEL_PATHS = ("/proc", "/sys", "/dev")
_cache_lock = threading.Lock()
_caches: dict[Path, AotCache] = {}


class _Process(msgspec.Struct):
    args: list[str] = []
    env: list[str] = []
    cwd: str = "/"
    user: dict[str, Any] = {}
    rlimits: list[dict[str, Any]] = []
    oomScoreAdj: int | None = None


class _Linux(msgspec.Struct):
    cgroupsPath: str = ""
    namespaces: list[dict[str, str]] = []
    resources: dict[str, Any] = {}
    seccomp: msgspec.Raw = msgspec.Raw()
    sysctl: dict[str, str] = {}


class _Root(msgspec.Struct):
    path: str
    readonly: bool = False


class Spec(msgspec.Struct):
    """The parts of an OCI runtime configuration that mean something to a guest."""

    root: _Root
    process: _Process
    linux: _Linux
    hostname: str = ""
    mounts: list[dict[str, Any]] = []
    annotations: dict[str, str] = {}


def shared_cache(root: Path) -> AotCache:
    """One cache a directory, for all drivers of this daemon."""
    with _cache_lock:
        if root not in _caches:
            _caches[root] = AotCache(root)
        return _caches[root]


class WasmHost(RuntimeDriver):
    """Runs each container as one process forked from the launcher that has wasmtime loaded."""

    capabilities = frozenset({"pause", "update", "stats", "top", "terminal"})

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._layout = Layout.read()
        self._info: RuntimeInfo | None = None
        self.cache = shared_cache(context.root.parent / "wasm-aot")

    # -- what a subclass says -------------------------------------------------------------------------------

    @abstractmethod
    def describe(self, spec: Spec, mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What to run: the part of the plan its guest reads. Raises `StartFailed` when it cannot be run."""

    def guest(self, plan: Mapping[str, Any]) -> Path:
        """The guest's source for a plan."""
        return Path(__file__).with_name("guest.py")

    # -- probe ----------------------------------------------------------------------------------------------

    def probe(self) -> RuntimeInfo:
        """Whether wasmtime is installed."""
        if self._info is None:
            search_path()
            version = self.cache.version
            self._info = RuntimeInfo(
                path="wasmtime", version=version, features={"cgroup": self._layout.version, "wasi": "0.1, 0.2"}
            )
        return self._info

    # -- start ----------------------------------------------------------------------------------------------

    def launch(self, bundle: Bundle, *, terminal: bool) -> Launch:
        """Finds the module, compiles it unless that was done before, and writes the guest's plan."""
        spec = msgspec.json.decode((bundle.path / "config.json").read_bytes(), type=Spec)
        mounts = [mount for mount in spec.mounts if _concerns_guest(mount)]
        try:
            what = self.describe(spec, mounts)
        except StartFailed:
            raise
        except InvalidParameter as error:
            raise modules.failed(spec.process.args[0], str(error)) from None
        plan = {**self._walls(bundle, spec, mounts), **what}
        (bundle.path / _PLAN).write_text(json.dumps(plan))
        guest = self.guest(plan)
        return Launch(
            guest=str(guest),
            bundle=bundle.path,
            launcher=LauncherPlan(search=search_path(), preload=(Path(__file__).with_name("guest.py"),)),
            pid_file=bundle.path / "guest.pid",
        )

    def _walls(self, bundle: Bundle, spec: Spec, mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        limit = (spec.linux.resources.get("memory") or {}).get("limit") or 0
        user = spec.process.user
        return {
            "args": spec.process.args,
            "env": [entry.split("=", 1) for entry in spec.process.env if "=" in entry],
            "title": os.path.basename(spec.process.args[0].partition("#")[0]) or self.context.name,
            "namespaces": spec.linux.namespaces,
            "cgroups": cgroups.plan(self._layout, self._cgroups_path(bundle, spec), spec.linux.resources),
            "root": spec.root.path,
            "readonly": spec.root.readonly,
            "mounts": mounts,
            "hostname": spec.hostname,
            "uid": user.get("uid", 0),
            "gid": user.get("gid", 0),
            "groups": user.get("additionalGids") or [],
            "rlimits": [(limit["type"], limit["soft"], limit["hard"]) for limit in spec.process.rlimits],
            "sysctls": list(spec.linux.sysctl.items()),
            "oom_score_adj": spec.process.oomScoreAdj,
            "memory": max(limit - _OVERHEAD, limit // 2) if limit > 0 else 0,
            "seccomp": bool(bytes(spec.linux.seccomp)),
        }

    def load_module(self, fd: int, command: str) -> Compiled:
        """The compiled module open at ``fd``, which is closed; `StartFailed` when it is none."""
        try:
            modules.check_magic(fd, command)
            return self.cache.compiled(fd)
        except InvalidParameter as error:
            raise modules.failed(command, str(error)) from None
        finally:
            os.close(fd)

    def start_error(self, bundle: Bundle, status: int, text: str) -> EngineError:
        """The guest says itself what went wrong."""
        spec = self._spec(bundle)
        return modules.failed(spec.process.args[0] if spec else "", text or f"the guest ended with status {status}")

    def launch_exec(self, bundle: Bundle, exec_id: str, process: Mapping[str, Any], *, terminal: bool) -> Launch:
        """A WebAssembly container is one program: nothing else can run in it."""
        raise Conflict(
            f"exec is not supported for WebAssembly containers: container {bundle.container_id[:12]} "
            f"(runtime {self.context.name}) is a single module without a shell or other programs"
        )

    # -- end ------------------------------------------------------------------------------------------------

    def delete(self, bundle: Bundle) -> None:
        """Kills what is left, removes cgroups and the plan."""
        spec = self._spec(bundle)
        cgroup = Cgroup(self._layout, self._cgroups_path(bundle, spec))
        cgroup.kill()
        cgroup.remove()
        for name in (_PLAN, "guest.pid"):
            (bundle.path / name).unlink(missing_ok=True)

    # -- while it runs --------------------------------------------------------------------------------------

    def pause(self, bundle: Bundle) -> None:
        """By the freezer."""
        self._cgroup(bundle).freeze()

    def resume(self, bundle: Bundle) -> None:
        """By the freezer."""
        self._cgroup(bundle).thaw()

    def update(self, bundle: Bundle, resources: Mapping[str, Any]) -> None:
        """In the cgroups; the guest's own view of its memory stays what it was at the start."""
        cgroup = self._cgroup(bundle)
        pending = [
            (cgroup.directory(owner) / name, text) for owner, name, text in cgroups.limits(self._layout, resources)
        ]
        before = [(path, path.read_text().strip()) for path, _ in pending if path.exists()]
        try:
            _write_in_some_order(pending)
        except OSError as error:
            _write_in_some_order(before)
            raise InvalidParameter(f"cannot update the limits: {error.filename}: {error.strerror}") from None

    def processes(self, bundle: Bundle) -> Sequence[int]:
        """From the cgroup."""
        return self._cgroup(bundle).processes()

    def stats(self, bundle: Bundle) -> Mapping[str, Any]:
        """From the cgroups' files."""
        return cgroup_stats.measure(self._cgroup(bundle))

    # -- the bundle -----------------------------------------------------------------------------------------

    def _spec(self, bundle: Bundle) -> Spec | None:
        try:
            return msgspec.json.decode((bundle.path / "config.json").read_bytes(), type=Spec)
        except FileNotFoundError:
            return None

    def _cgroups_path(self, bundle: Bundle, spec: Spec | None) -> str:
        path = spec.linux.cgroupsPath if spec else ""
        if path and (not path.startswith("/") or ".." in path.split("/") or not path.strip("/")):
            raise InvalidParameter(f"refusing the cgroup path {path!r} of {bundle.container_id}")
        return path or f"/engine-{self.context.instance}/{bundle.container_id}"

    def _cgroup(self, bundle: Bundle) -> Cgroup:
        return Cgroup(self._layout, self._cgroups_path(bundle, self._spec(bundle)))


def _concerns_guest(mount: Mapping[str, Any]) -> bool:
    """A guest gets what the user asked for and the network's files; not the kernel's file systems."""
    if mount["type"] not in ("bind", "tmpfs") and not {"bind", "rbind"} & set(mount.get("options") or ()):
        return False
    inside = mount["destination"] + "/"
    return not inside.startswith(tuple(path + "/" for path in _KERNEL_PATHS))


def _write_in_some_order(values: Sequence[tuple[Path, str]]) -> None:
    """The kernel wants memory before memory with swap when lowering, the other way round when raising."""
    try:
        for path, text in values:
            path.write_text(text)
    except OSError:
        for path, text in reversed(values):
            path.write_text(text)
        for path, text in values:
            path.write_text(text)
