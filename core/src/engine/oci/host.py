"""Facts of this machine that containers depend on, read once and passed around as a frozen value."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Host", "probe"]

_INIT_BINARIES = ("docker-init", "tini", "tini-static", "catatonit")
_INIT_PLACES = ("/usr/libexec/docker/docker-init", "/usr/lib/podman/catatonit", "/usr/libexec/podman/catatonit")
_SWAP_FILES = (
    "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes",
    "/sys/fs/cgroup/memory.swap.max",
)
_WEIGHT_FILES = (
    "/sys/fs/cgroup/blkio/blkio.weight",
    "/sys/fs/cgroup/blkio/blkio.bfq.weight",
    "/sys/fs/cgroup/cgroup.controllers",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """``cgroup_version`` is 1 (also hybrid) or 2; ``kernel`` is (major, minor).

    ``init`` is the program behind ``--init``, empty when none is installed. ``sysctls`` are those of the engine's
    defaults that this kernel has. ``masked_paths`` are files that exist only on some machines and must be hidden.
    ``time_namespaces`` says whether the default runtime and the kernel both know them.
    """

    cgroup_version: int
    cpus: int
    kernel: tuple[int, int]
    swap_limit: bool = True
    blkio_weight: bool = True
    init: str = ""
    oom_score_adj: int = 0
    sysctls: frozenset[str] = frozenset()
    masked_paths: tuple[str, ...] = ()
    time_namespaces: bool = False


def probe(*, init_path: str = "", time_namespaces: bool = False) -> Host:
    """Read the facts of this machine; ``init_path`` is the configured ``--init`` program, if any.

    Reads a few files below /proc and /sys; call it once, on a worker thread.
    """
    release = os.uname().release.split(".")
    kernel = (int(release[0]), int("".join(c for c in release[1] if c.isdigit()) or 0))
    wanted = ("net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start")
    thermal = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle"))
    return Host(
        cgroup_version=2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1,
        cpus=os.cpu_count() or 1,
        kernel=kernel,
        swap_limit=_swap_limit(),
        blkio_weight=any(map(os.path.exists, _WEIGHT_FILES)),
        init=init_path or _find_init(),
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
        sysctls=frozenset(name for name in wanted if os.path.exists("/proc/sys/" + name.replace(".", "/"))),
        masked_paths=tuple(map(str, thermal)),
        time_namespaces=time_namespaces and os.path.exists("/proc/self/ns/time"),
    )


def _swap_limit() -> bool:
    if any(os.path.exists(path) for path in _SWAP_FILES):
        return True
    # On cgroup v2 the root group has no limits of its own; any child with the memory controller tells.
    root = Path("/sys/fs/cgroup")
    return os.path.exists(root / "cgroup.controllers") and any(root.glob("*/memory.swap.max"))


def _find_init() -> str:
    for name in _INIT_BINARIES:
        found = shutil.which(name)
        if found:
            return found
    return next((path for path in _INIT_PLACES if os.access(path, os.X_OK)), "")
