"""Sandboxes: network namespaces that live as long as a file, ``<exec-root>/netns/<sandbox id>``.

A namespace is made by a thread that ends at once and is kept alive by a bind mount on its file, so it survives the
daemon, and processes enter it by path. All functions block briefly; all are idempotent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Collection
from pathlib import Path

from engine import kernel, netlink
from engine.errors import EngineError

__all__ = ["create", "delete", "drop_default_routes", "exists", "sweep"]

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def create(path: Path) -> None:
    """Make a network namespace with loopback up, bound to ``path``; one that is there already is kept."""
    if exists(path):
        return
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    path.touch(mode=0o444)
    failure: list[OSError] = []

    def run() -> None:
        try:
            kernel.unshare(kernel.CLONE_NEWNET)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
            kernel.mount("/proc/thread-self/ns/net", path, flags=kernel.MS_BIND)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="new-sandbox")
    thread.start()
    thread.join()
    if failure:
        path.unlink(missing_ok=True)
        raise EngineError(f"failed to create a network namespace: {failure[0].strerror}") from failure[0]


def exists(path: Path) -> bool:
    """Whether a namespace is bound there."""
    try:
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except FileNotFoundError:
        return False


def delete(path: Path) -> None:
    """Let the namespace go: the kernel removes it, and the interfaces in it, once no process is inside."""
    try:
        kernel.umount(path, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted, or not there
            raise
    path.unlink(missing_ok=True)


def drop_default_routes() -> None:
    """Remove all default routes of the calling thread's network namespace."""
    with netlink.Netlink() as inside:
        for version in (4, 6):
            while inside.try_request(netlink.delete_default_route(version)) == [None]:
                pass  # there may be several


def sweep(directory: Path, keep: Collection[str]) -> list[str]:
    """Delete all sandboxes of ``directory`` but those in ``keep`` (ids); returns the ids of those deleted."""
    try:
        names = sorted(set(os.listdir(directory)) - set(keep))
    except FileNotFoundError:
        return []
    for name in names:
        delete(directory / name)
    return names
