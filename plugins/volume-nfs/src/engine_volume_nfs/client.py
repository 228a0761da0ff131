"""What the driver needs of the kernel's NFS client: is there one, is the server there, mount and unmount a share."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from engine import kernel
from engine.errors import EngineError, InvalidParameter, NotSupported, Unavailable

__all__ = ["NfsClient", "Share"]

_PATIENCE = 5.0  # seconds for a server to accept a connection
_PORT = 2049
_SHARE = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:/\[\],\s]+):(/[^,\s]*)")
_FLAGS = {
    "ro": kernel.MS_RDONLY,
    "nosuid": kernel.MS_NOSUID,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
    "sync": 1 << 4,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
}
_NOTHING = frozenset(("rw", "defaults", "suid", "dev", "exec", "async", "_netdev"))
_OURS = frozenset(("addr", "clientaddr", "mountaddr"))  # found out, never asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What is mounted: ``path`` of ``host``, with options as written by the user."""

    host: str
    path: str
    options: str = ""

    @classmethod
    def parse(cls, text: str, options: str = "") -> Share:
        """``HOST:/PATH``; IPv6 addresses in brackets. `InvalidParameter` for what is none."""
        match = _SHARE.fullmatch(text)
        if match is None:
            raise InvalidParameter(f"invalid share '{text}': it reads HOST:/PATH")
        for option in filter(None, options.split(",")):
            if option.partition("=")[0] in _OURS:
                raise InvalidParameter(f"mount option {option} is found out from the share, not given")
        return cls(host=match[1].strip("[]"), path=match[2], options=options)

    def value(self, key: str, default: str = "") -> str:
        """The value of an option; of its last mention."""
        found = default
        for option in self.options.split(","):
            name, _, value = option.partition("=")
            if name == key:
                found = value
        return found

    def has(self, word: str) -> bool:
        """Whether an option without a value is there."""
        return word in self.options.split(",")

    @property
    def version(self) -> str:
        """``3``, ``4``, ``4.1``, ``4.2``."""
        for key in ("vers", "nfsvers"):
            if self.value(key):
                return self.value(key)
        return "4.2"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.path}"


class NfsClient:
    """mount(2) itself: no helper program is needed, for version 3 neither rpcbind nor statd on this host."""

    def check(self) -> None:
        """`NotSupported` when this kernel cannot mount NFS, even after asking for the module."""
        if self._known():
            return
        try:
            subprocess.run(["modprobe", "nfs"], capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            pass  # no modprobe: what the kernel knows is all there is
        if not self._known():
            raise NotSupported(
                "this kernel has no NFS client (CONFIG_NFS_FS): /proc/filesystems lists neither nfs nor nfs4, and the "
                "module nfs cannot be loaded"
            )

    def _known(self) -> bool:
        return any(line.split()[-1:] in (["nfs"], ["nfs4"]) for line in _lines("/proc/filesystems"))

    def reach(self, share: Share) -> str:
        """The server's address, once it has accepted a connection; `Unavailable` within seconds otherwise.

        Asked before every mount: the kernel itself waits for minutes.
        """
        port = int(share.value("port") or _PORT)
        try:
            with socket.create_connection((share.host, port), timeout=_PATIENCE) as connection:
                return str(connection.getpeername()[0])
        except OSError as error:
            reason = error.strerror or str(error)
            raise Unavailable(f"NFS server {share.host} does not answer on port {port}: {reason.lower()}") from None

    def mount(self, share: Share, target: Path) -> None:
        """Mount ``share`` on ``target``; `EngineError` with the kernel's reason and what it usually means."""
        address = self.reach(share)
        flags, data = 0, []
        for option in filter(None, share.options.split(",")):
            if option in _FLAGS:
                flags |= _FLAGS[option]
            elif option not in _NOTHING and option.partition("=")[0] not in ("vers", "nfsvers"):
                data.append(option)
        data += [f"vers={share.version}", f"addr={address}"]
        if share.version.startswith("3"):
            data += [f"mountaddr={address}", *([] if share.has("nolock") or share.has("lock") else ["nolock"])]
        kind = "nfs" if share.version.startswith("3") else "nfs4"
        try:
            kernel.mount(str(share), target, kind, flags, ",".join(data))
        except OSError as error:
            hint = {
                errno.EACCES: "the server does not export this path to this host",
                errno.ENOENT: "the server has no such path",
                errno.EPROTONOSUPPORT: f"the server does not speak version {share.version}; try o=vers=...",
                errno.EINVAL: "the kernel does not know one of the options",
                errno.ENODEV: "this kernel has no NFS client of that version",
            }.get(error.errno or 0, "")
            reason = (error.strerror or str(error)).lower()
            raise EngineError(f"mounting {share} failed: {reason}{f' ({hint})' if hint else ''}") from None

    def unmount(self, target: Path) -> None:
        """Unmount; a server that is gone does not keep it."""
        while self.mounted(target):
            try:
                kernel.umount(target, kernel.UMOUNT_NOFOLLOW)
            except OSError:
                kernel.umount(target, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)

    def mounted(self, target: Path) -> bool:
        """Whether something is mounted on ``target``; never asks the server."""
        wanted = os.fsencode(target)
        return any(line.split(b" ")[4] == wanted for line in Path("/proc/self/mountinfo").read_bytes().splitlines())


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
