"""``explain CONTAINER``: what isolates it, what limits it, and why it ended; in words, from what the engine knows."""

from __future__ import annotations

import signal

from engine.cli.client import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from engine.cli.session import Session

_DEFAULT_CAPABILITIES = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID "
    "SYS_CHROOT"
)
_ENDINGS = {
    125: "the engine could not start it",
    126: "its command cannot be executed (permission, or not a program)",
    127: "its command was not found",
    255: "nobody saw how it ended (its monitor was killed), or the program said 255",
}


def explain(session: Session, name: str, output: str) -> None:
    """Print all findings about one container; ``output`` is ``json`` or empty."""
    info = session.client.get(f"/containers/{segment(name)}/json")
    sections = findings(info)
    if output == "json":
        import json

        session.out(json.dumps({title: [dict(zip(("What", "Is"), row, strict=True)) for row in rows]
                                for title, rows in sections.items()}))  # fmt: skip
        return
    lines = [f"{info['Name'].lstrip('/')} ({info['Id'][:12]})"]
    for title, rows in sections.items():
        width = max(len(what) for what, _ in rows)
        lines += ["", title, *(f"  {what:<{width}}  {text}" for what, text in rows)]
    session.out("\n".join(lines))


def findings(info: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Section -> (what, explanation) rows, of the body of ``inspect``."""
    return {
        "State": list(_state(info)),
        "Isolation": list(_isolation(info)),
        "Limits": list(_limits(info["HostConfig"])),
    }


def _state(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    state, policy = info["State"], info["HostConfig"]["RestartPolicy"]
    yield "status", state["Status"]
    if state["Status"] in ("exited", "dead", "restarting") or (state["Status"] == "created" and state["Error"]):
        yield "why it ended", why_ended(state)
    health = state.get("Health")
    if health:
        yield "health", f"{health['Status']}, {health['FailingStreak']} failures in a row"
        last = (health.get("Log") or [None])[-1]
        if last and last["ExitCode"] != 0:
            yield "last health check", f"exit code {last['ExitCode']}: {last['Output'].strip() or 'no output'}"
    count = f" (at most {policy['MaximumRetryCount']} times)" if policy["MaximumRetryCount"] else ""
    yield "restart policy", {
        "": "never restarted", "no": "never restarted", "always": "always restarted",
        "unless-stopped": "restarted unless stopped by hand", "on-failure": f"restarted after a failure{count}",
        "on-unhealthy": f"restarted after a failure and when its health check fails{count}",
    }[policy["Name"]] + (f"; {info['RestartCount']} restarts so far" if info["RestartCount"] else "")  # fmt: skip


def why_ended(state: dict[str, Any]) -> str:
    """The reason for an end, from exit code, OOM flag and error."""
    code = state["ExitCode"]
    if state["OOMKilled"]:
        text = f"out of memory: the kernel killed it at its memory limit (exit code {code})"
    elif code == 0:
        text = "its command ended without an error (exit code 0)"
    elif code in _ENDINGS:
        text = f"{_ENDINGS[code]} (exit code {code})"
    elif code > 128:
        try:
            name = signal.Signals(code - 128).name
        except ValueError:
            name = f"signal {code - 128}"
        cause = {
            "SIGKILL": " - docker kill, rm -f, a stop that took too long, or the host's OOM killer",
            "SIGTERM": " - as docker stop sends",
            "SIGSEGV": " - a crash",
            "SIGABRT": " - it aborted itself",
        }
        text = f"it was ended by {name}{cause.get(name, '')} (exit code {code})"
    else:
        text = f"its command failed with exit code {code}"
    return f"{text}: {state['Error']}" if state["Error"] else text


def _isolation(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    host = info["HostConfig"]
    if host["Privileged"]:
        yield "privileged", "YES: all capabilities and devices, no seccomp: it can take over the host"
    for what, mode in (
        ("network", host["NetworkMode"]), ("processes", host["PidMode"]), ("ipc", host["IpcMode"]),
        ("hostname", host["UTSMode"]), ("cgroups", host["CgroupnsMode"]), ("users", host["UsernsMode"]),
    ):  # fmt: skip
        yield what, _namespace(what, mode)
    yield "root file system", "read-only" if host["ReadonlyRootfs"] else "writable, a layer of its own"
    for mount in info["Mounts"]:
        source = mount.get("Name") or mount.get("Source") or "memory"
        access = "writable" if mount["RW"] else "read-only"
        yield f"mount {mount['Destination']}", f"{mount['Type']} {source}, {access}"
    yield "runs as", f"user {info['Config']['User'] or 'root'}, runtime {host.get('Runtime') or 'default'}"
    yield "capabilities", _capabilities(host)
    options = host["SecurityOpt"] or []
    unconfined = [option for option in options if "unconfined" in option]
    yield "security options", ", ".join(options) if options else "the defaults (seccomp filter)"
    if unconfined:
        yield "weakened by", ", ".join(unconfined)
    if host.get("Devices"):
        yield "devices", ", ".join(device["PathOnHost"] for device in host["Devices"])


def _namespace(what: str, mode: str) -> str:
    kind, _, other = mode.partition(":")
    if what == "network":
        return {"host": "SHARED with the host", "none": "its own, without any network",
                "container": f"shared with container {other[:12]}",
                }.get(kind, f"its own, on network {mode}")  # fmt: skip
    if what == "users" and not mode:
        return "the host's: root inside is root outside, with fewer capabilities"
    return {"host": "SHARED with the host", "container": f"shared with container {other[:12]}",
            "shareable": "its own, others may join"}.get(kind, "its own")  # fmt: skip


def _capabilities(host: dict[str, Any]) -> str:
    if host["Privileged"]:
        return "all"
    added = sorted(name.removeprefix("CAP_") for name in host["CapAdd"] or [])
    dropped = sorted(name.removeprefix("CAP_") for name in host["CapDrop"] or [])
    if "ALL" in dropped:
        return f"only {', '.join(added)}" if added else "none"
    text = f"the default {len(_DEFAULT_CAPABILITIES.split())}"
    text += f", and {', '.join(added)}" if added else ""
    return text + (f", without {', '.join(dropped)}" if dropped else "")


def _limits(host: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory, swap = host["Memory"], host["MemorySwap"]
    yield "memory", _bytes(memory) if memory else "no limit: it can use all of the host's"
    if memory:
        extra = "no limit" if swap < 0 else "none" if swap <= memory else _bytes(swap - memory)
        yield "swap", f"{extra} on top"
    cpus = host["NanoCpus"] / 10**9 if host["NanoCpus"] else 0
    if not cpus and host["CpuQuota"] > 0:
        cpus = host["CpuQuota"] / (host["CpuPeriod"] or 100_000)
    text = f"at most {cpus:g} CPUs" if cpus else "no limit"
    text += f", only on {host['CpusetCpus']}" if host["CpusetCpus"] else ""
    yield "cpu", text + (f", weight {host['CpuShares']}" if host["CpuShares"] else "")
    pids = host["PidsLimit"] or 0
    yield "processes", f"at most {pids}" if pids > 0 else "no limit: a fork bomb reaches the host"
    for field, what in (("BlkioDeviceReadBps", "read"), ("BlkioDeviceWriteBps", "write")):
        for device in host[field] or []:
            yield f"disk {what}", f"{device['Path']} at most {_bytes(device['Rate'])} a second"
    for limit in host["Ulimits"] or []:
        yield f"ulimit {limit['Name']}", f"{limit['Soft']} (hard {limit['Hard']})"
    yield "shared memory", _bytes(host["ShmSize"])


def _bytes(count: int) -> str:
    from engine.cli.units import binary_size

    return binary_size(count)
