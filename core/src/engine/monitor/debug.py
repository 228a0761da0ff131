"""A debug shell: a process in all namespaces of a container, with tools of ours that the container does not see.

A guest of the monitor (see `engine.drivers.runtime.Launch`). The tools are mounted in a private copy of the container's
mount namespace: at ``/`` is what the container sees, and what is changed there is changed for it; the tools are only
here. It may do what the container may do, and trace its processes.
"""

from __future__ import annotations

import json
import os
import signal

from engine import kernel

TOOLBOX = "/dev/.toolbox"
_NAMESPACES = ("cgroup", "ipc", "uts", "net", "pid")
_SYS_PTRACE = 19
_PR_CAPBSET_DROP = 24
_LAST_CAPABILITY = 63


def main(bundle: str, report: int) -> int:
    """``bundle`` holds ``debug.json``: pid of the container, toolbox directory, args, env, cwd, uid, gid, groups."""
    with open(f"{bundle}/debug.json") as file:
        task = json.load(file)
    pid = task["pid"]
    # Descriptors first: afterwards neither /proc nor the toolbox can be found.
    own = [(kind, os.readlink(f"/proc/self/ns/{kind}")) for kind in ("user", *_NAMESPACES)]
    others = {
        kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        for kind, ours in own
        if os.readlink(f"/proc/{pid}/ns/{kind}") != ours
    }
    mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    allowed = _bounding(pid)
    toolbox = kernel.open_tree(task["toolbox"])
    _join_cgroups(pid)
    kernel.setns(mounts)
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    os.makedirs(TOOLBOX, exist_ok=True)
    kernel.move_mount(toolbox, TOOLBOX)
    kernel.mount("", TOOLBOX, flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NODEV)
    for kind in (*_NAMESPACES, "user"):
        if kind in others:
            kernel.setns(others[kind])
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal's are for the shell
    child = os.fork()  # only a child is in the other process namespace
    if child == 0:
        _become(task, allowed, report)
    os.close(report)
    _, status = os.waitpid(child, 0)
    _clean_up()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _become(task: dict[str, object], allowed: int, report: int) -> None:
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for capability in range(_LAST_CAPABILITY + 1):
            if not allowed >> capability & 1:
                try:
                    kernel.prctl(_PR_CAPBSET_DROP, capability)
                except OSError:
                    break  # the kernel knows no more
        os.setgroups(task["groups"])  # type: ignore[arg-type]
        os.setgid(task["gid"])  # type: ignore[arg-type]
        os.setuid(task["uid"])  # type: ignore[arg-type]
        try:
            os.chdir(str(task["cwd"]))
        except OSError:
            os.chdir("/")
        environment = dict(line.split("=", 1) for line in task["env"])  # type: ignore[attr-defined]
        arguments = list(task["args"])  # type: ignore[call-overload]
        program = _find(arguments[0], environment["PATH"])
        os.set_inheritable(report, False)
        os.write(report, b"\0")
        os.execve(program, arguments, environment)  # noqa: S606 - no shell is the point
    except BaseException as error:
        os.write(report, f"engine debug: {error}".encode())
    finally:
        os._exit(127)


def _find(name: str, path: str) -> str:
    if "/" in name:
        return name
    for directory in path.split(":"):
        candidate = f"{directory}/{name}"
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(f"{name}: not found, neither in the container nor in the toolbox")


def _bounding(pid: int) -> int:
    """The container's capabilities, and that to trace."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("CapBnd:"):
                return int(line.split()[1], 16) | 1 << _SYS_PTRACE
    return 1 << _SYS_PTRACE


def _join_cgroups(pid: int) -> None:
    """What the shell uses counts as the container's."""
    with open(f"/proc/{pid}/cgroup") as file:
        lines = file.read().splitlines()
    for line in lines:
        number, controllers, path = line.split(":", 2)
        name = controllers.removeprefix("name=") if number != "0" else ""
        for root in (f"/sys/fs/cgroup/{name}".rstrip("/"), "/sys/fs/cgroup/unified" if number == "0" else ""):
            try:
                with open(f"{root}{path}/cgroup.procs", "w") as procs:
                    procs.write(str(os.getpid()))
                break
            except OSError:
                continue  # not mounted here


def _clean_up() -> None:
    try:
        kernel.umount(TOOLBOX, kernel.MNT_DETACH)
        os.rmdir(TOOLBOX)
    except OSError:
        pass  # another debug shell is in there
