"""Commands that change a container's state: stop, restart, kill, rm, pause, unpause, wait, rename, update."""

from __future__ import annotations

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.failures import ApiFailure, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session


def _timeout(flags: Flags) -> Any:
    for name in ("timeout", "time"):
        if flags.changed(name):
            return flags[name]
    return None


def stop(session: Session, flags: Flags) -> None:
    """Stop containers."""
    query = {"signal": flags["signal"], "t": _timeout(flags)}
    session.each(flags.arguments, lambda name: session.client.post(f"/containers/{segment(name)}/stop", query))


def restart(session: Session, flags: Flags) -> None:
    """Restart containers."""
    query = {"signal": flags["signal"], "t": _timeout(flags)}
    session.each(flags.arguments, lambda name: session.client.post(f"/containers/{segment(name)}/restart", query))


def kill(session: Session, flags: Flags) -> None:
    """Send a signal to containers."""
    query = {"signal": flags["signal"]}
    session.each(flags.arguments, lambda name: session.client.post(f"/containers/{segment(name)}/kill", query))


def remove(session: Session, flags: Flags) -> None:
    """Remove containers."""
    query = {"v": flags["volumes"] or None, "link": flags["link"] or None, "force": flags["force"] or None}

    def one(name: str) -> None:
        name = name.strip("/")
        if not name:
            raise Failure("container name cannot be empty")
        try:
            session.client.delete(f"/containers/{segment(name)}", query)
        except ApiFailure as failure:
            if not (flags["force"] and failure.status == 404):
                raise
            session.warn(str(failure))
            raise Failure("") from None

    try:
        session.each(flags.arguments, one)
    except Failure as failure:
        if str(failure).strip():
            raise Failure(str(failure).strip("\n")) from None


def pause(session: Session, flags: Flags) -> None:
    """Freeze containers."""
    session.each(flags.arguments, lambda name: session.client.post(f"/containers/{segment(name)}/pause"))


def unpause(session: Session, flags: Flags) -> None:
    """Thaw containers."""
    session.each(flags.arguments, lambda name: session.client.post(f"/containers/{segment(name)}/unpause"))


def wait(session: Session, flags: Flags) -> None:
    """Print each container's exit code when it stops."""

    def one(name: str) -> None:
        session.out(str(session.client.post(f"/containers/{segment(name)}/wait")["StatusCode"]))

    session.each(flags.arguments, one, echo=False)


def rename(session: Session, flags: Flags) -> None:
    """Give a container another name."""
    old, new = (name.strip() for name in flags.arguments)
    if not old or not new:
        raise Failure("Error: Neither old nor new names may be empty")
    try:
        session.client.post(f"/containers/{segment(old)}/rename", {"name": new})
    except ApiFailure as failure:
        raise Failure(f"{failure}\nError: failed to rename container named {old}") from None


def update(session: Session, flags: Flags) -> None:
    """Change limits and the restart policy of containers."""
    names = {
        "blkio-weight": "BlkioWeight", "cpu-period": "CpuPeriod", "cpu-quota": "CpuQuota",
        "cpu-rt-period": "CpuRealtimePeriod", "cpu-rt-runtime": "CpuRealtimeRuntime", "cpu-shares": "CpuShares",
        "cpus": "NanoCpus", "cpuset-cpus": "CpusetCpus", "cpuset-mems": "CpusetMems", "memory": "Memory",
        "memory-reservation": "MemoryReservation", "memory-swap": "MemorySwap", "pids-limit": "PidsLimit",
    }  # fmt: skip
    if not flags.values:
        raise Failure("you must provide one or more flags when using this command")
    body: dict[str, Any] = {field: flags[name] for name, field in names.items() if flags.changed(name)}
    if flags["volume"]:
        body["Binds"] = flags["volume"]
    if flags.changed("restart"):
        from engine.cli.run_options import restart_policy

        body["RestartPolicy"] = restart_policy(flags["restart"])

    warnings: list[str] = []

    def one(name: str) -> None:
        answer = session.client.post(f"/containers/{segment(name)}/update", body=body)
        warnings.extend((answer or {}).get("Warnings") or [])

    try:
        session.each(flags.arguments, one)
    finally:
        session.warn(*warnings)


_STOP_FLAGS = """
s signal string Signal to send to the container
- !time int Seconds to wait before killing the container
t timeout int Seconds to wait before killing the container
"""
_MANY = "CONTAINER [CONTAINER...]"

COMMANDS = {
    "stop": Command(stop, f"[OPTIONS] {_MANY}", _STOP_FLAGS, arguments=(1, None)),
    "restart": Command(restart, f"[OPTIONS] {_MANY}", _STOP_FLAGS, arguments=(1, None)),
    "kill": Command(kill, f"[OPTIONS] {_MANY}", "s signal string Signal to send to the container", arguments=(1, None)),
    "rm": Command(remove, f"[OPTIONS] {_MANY}", """
f force bool Force the removal of a running container (uses SIGKILL)
l link bool Remove the specified link
v volumes bool Remove anonymous volumes associated with the container
""", arguments=(1, None)),
    "pause": Command(pause, _MANY, arguments=(1, None)),
    "unpause": Command(unpause, _MANY, arguments=(1, None)),
    "wait": Command(wait, _MANY, arguments=(1, None)),
    "rename": Command(rename, "CONTAINER NEW_NAME", arguments=(2, 2)),
    "update": Command(update, f"[OPTIONS] {_MANY}", """
- blkio-weight uint16 Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)
- cpu-period int Limit CPU CFS (Completely Fair Scheduler) period
- cpu-quota int Limit CPU CFS (Completely Fair Scheduler) quota
- cpu-rt-period int Limit the CPU real-time period in microseconds
- cpu-rt-runtime int Limit the CPU real-time runtime in microseconds
c cpu-shares int CPU shares (relative weight)
- cpus decimal Number of CPUs
- cpuset-cpus string CPUs in which to allow execution (0-3, 0,1)
- cpuset-mems string MEMs in which to allow execution (0-3, 0,1)
m memory bytes Memory limit
- memory-reservation bytes Memory soft limit
- memory-swap swap Swap limit equal to memory plus swap: -1 to enable unlimited swap
- pids-limit int Tune container pids limit (set -1 for unlimited)
- restart string Restart policy to apply when a container exits
v volume list Mount a path of the host as well (HOST:CONTAINER[:ro]), at once if the container runs
""", arguments=(1, None)),
}  # fmt: skip
