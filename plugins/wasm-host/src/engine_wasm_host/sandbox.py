"""Walls around a guest's process: cgroup, namespaces, mounts, user, capabilities, system calls.

Runs in the process that becomes the container, before any guest code. The plan is plain data made by the driver
(`engine_wasm_host.driver`); nothing is decided here. Order matters: what needs the host's files comes before `enclose`,
what needs privileges before `renounce`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
from typing import Any

from engine import kernel
from engine_wasm_host import seccomp

__all__ = ["enclose", "join_cgroups", "renounce", "share_processes"]

_OPEN_PATH = os.O_PATH | os.O_CLOEXEC
_NO_SPECIAL_FILES = kernel.MS_NOSUID | kernel.MS_NODEV  # MOUNT_ATTR_* has the same values
_READ_ONLY = kernel.MS_RDONLY
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_NAMESPACES = {
    "mount": kernel.CLONE_NEWNS,
    "uts": kernel.CLONE_NEWUTS,
    "ipc": kernel.CLONE_NEWIPC,
    "network": kernel.CLONE_NEWNET,
    "cgroup": kernel.CLONE_NEWCGROUP,
}
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_CAPABILITY_VERSION = 0x20080522
_FILTER = seccomp.program(os.uname().machine)
_libc = ctypes.CDLL(None, use_errno=True)


def share_processes(namespaces: list[dict[str, str]]) -> None:
    """In the parent: the next child is the first process of a new pid namespace, or one more of another container's."""
    for namespace in namespaces:
        if namespace["type"] == "pid":
            if namespace.get("path"):
                _enter(namespace["path"], kernel.CLONE_NEWPID)
            else:
                kernel.unshare(kernel.CLONE_NEWPID)


def join_cgroups(cgroups: list[dict[str, Any]]) -> None:
    """Make the cgroups, set their limits, enter them.

    In cgroup v1 a thread that moves itself (``tasks``, not ``cgroup.procs``) does not wait for the whole machine, which
    is 10 to 30 ms saved; this process has one thread.
    """
    for cgroup in cgroups:
        directory = cgroup["path"]
        os.makedirs(directory, exist_ok=True)
        for name, value in cgroup["values"]:
            _write(f"{directory}/{name}", value)
        _write(f"{directory}/{cgroup['entrance']}", "0")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write {text} to {path}: {error.strerror}") from None
    finally:
        os.close(fd)


def enclose(plan: dict[str, Any]) -> None:
    """Enter the namespaces, build the mounts, and make the root file system the only one there is."""
    fresh = 0
    for namespace in plan["namespaces"]:
        kind = _NAMESPACES.get(namespace["type"], 0)
        if namespace.get("path") and kind:
            _enter(namespace["path"], kind)
        else:
            fresh |= kind
    kernel.unshare(fresh)
    for name, value in plan["sysctls"]:  # of the namespaces just entered
        _write("/proc/sys/" + name.replace(".", "/"), value)
    if plan["oom_score_adj"] is not None:
        _write("/proc/self/oom_score_adj", str(plan["oom_score_adj"]))
    _rename_process(plan["title"], plan["args"])
    for name, soft, hard in plan["rlimits"]:
        resource.setrlimit(getattr(resource, name), (soft, hard))
    root = plan["root"]
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount(root, root, flags=kernel.MS_BIND | kernel.MS_REC)
    base = os.open(root, _OPEN_PATH | os.O_DIRECTORY)
    for mount in plan["mounts"]:
        _mount(base, mount)
    _restrict(base, _NO_SPECIAL_FILES | (_READ_ONLY if plan["readonly"] else 0))
    os.fchdir(base)
    os.close(base)
    kernel.pivot_root(".", ".")
    kernel.umount(".", kernel.MNT_DETACH)
    os.chdir("/")
    if plan["hostname"]:
        name = plan["hostname"].encode()
        if _libc.sethostname(name, len(name)):
            raise OSError(ctypes.get_errno(), "sethostname")


def _rename_process(title: str, arguments: list[str]) -> None:
    """What ``docker top`` and ``ps`` show: the guest's arguments, as far as there is room for them."""
    _write("/proc/self/comm", title[:15])
    with open("/proc/self/stat", "rb") as stat_:
        fields = stat_.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(argument.encode() for argument in arguments) + b"\0"
    ctypes.memmove(start, text.ljust(end - start, b"\0")[: end - start - 1], end - start - 1)


def _enter(path: str, kind: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.setns(fd, kind)
    finally:
        os.close(fd)


def _mount(base: int, mount: dict[str, Any]) -> None:
    """One bind mount or tmpfs at ``destination`` below the descriptor ``base``, never through a link out of it."""
    destination, options = mount["destination"], mount["options"]
    bind = mount["type"] != "tmpfs"
    directory = not bind or stat.S_ISDIR(os.stat(mount["source"]).st_mode)
    target = _place(base, destination, directory)
    try:
        if bind:
            recursive = kernel.MS_REC if "rbind" in options else 0
            kernel.mount(mount["source"], f"/proc/self/fd/{target}", flags=kernel.MS_BIND | recursive)
        else:
            data = ",".join(option for option in options if "=" in option)
            kernel.mount("tmpfs", f"/proc/self/fd/{target}", "tmpfs", _NO_SPECIAL_FILES, data)
    finally:
        os.close(target)
    mounted = kernel.openat2(base, destination, _OPEN_PATH)
    try:
        _restrict(mounted, _NO_SPECIAL_FILES, recursive=True)
        if "ro" in options or "rro" in options:
            _restrict(mounted, _READ_ONLY, recursive="rro" in options)
    finally:
        os.close(mounted)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")]


def _restrict(mounted: int, attributes: int, *, recursive: bool = False) -> None:
    """mount_setattr(2), Linux 5.12: what a mount and perhaps those below it do not allow."""
    wanted = _MountAttributes(set=attributes)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    if _libc.syscall(ctypes.c_long(_SYS_MOUNT_SETATTR), mounted, b"", flags, ctypes.byref(wanted), size):
        number = ctypes.get_errno()
        raise OSError(number, f"mount_setattr: {os.strerror(number)}")


def _place(base: int, destination: str, directory: bool) -> int:
    """The mount point, made if it is missing: directories, and for a file an empty one."""
    try:
        return kernel.openat2(base, destination, _OPEN_PATH)
    except FileNotFoundError:
        pass
    parent, _, name = destination.rstrip("/").rpartition("/")
    above = _place(base, parent or "/", True)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=above)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=above))
    finally:
        os.close(above)
    return kernel.openat2(base, destination, _OPEN_PATH)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def renounce(plan: dict[str, Any]) -> None:
    """Become the container's user without any capability, for good, and filter the system calls."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    number = 0
    while _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:  # until the kernel knows no such capability
        number += 1
    os.setgroups(plan["groups"])
    os.setresgid(plan["gid"], plan["gid"], plan["gid"])
    os.setresuid(plan["uid"], plan["uid"], plan["uid"])
    header = _CapabilityHeader(_CAPABILITY_VERSION, 0)
    if _libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())):
        raise OSError(ctypes.get_errno(), "capset")
    if plan["seccomp"] and _FILTER:
        seccomp.install(_FILTER)
