"""The ``local`` volume driver.

On disk::

    <root>/<name>/_data            the volume, or the place something is mounted on
    <root>/<name>/options.json     only for volumes with options
    <root>/.removed-<random>       being deleted, in the background; swept at start
    <state>/<name>/<consumer>      an empty file for each container using a volume that needs a mount

Options are those of dockerd's local driver: ``type``, ``device`` and ``o`` as for mount(8), without which a volume is
simply a directory; and ``size``, a limit of the file system's project quotas (`engine_volume_local.quota`).
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from engine import kernel
from engine.drivers import DriverContext
from engine.drivers.volume import Volume, VolumeDriver
from engine.errors import EngineError, InvalidParameter, NotFound
from engine.names import new_id, valid_name
from engine_volume_local import quota

__all__ = ["LocalVolumes"]

_DATA = "_data"
_OPTIONS = "options.json"
_REMOVED = ".removed-"
_LINGER = 0.2  # seconds before deleting begins: whoever removed a volume gets the answer first
_KNOWN = ("type", "o", "device", "size")
_REQUIRED = {"device": ("type",), "type": ("device",), "o": ("device", "type")}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp])?i?b?", re.IGNORECASE)

# mount(8)'s words for flags: (flag, whether the word clears it). Everything else is data for the file system.
_FLAGS = {
    "defaults": (0, False),
    "ro": (kernel.MS_RDONLY, False),
    "rw": (kernel.MS_RDONLY, True),
    "nosuid": (kernel.MS_NOSUID, False),
    "suid": (kernel.MS_NOSUID, True),
    "nodev": (kernel.MS_NODEV, False),
    "dev": (kernel.MS_NODEV, True),
    "noexec": (kernel.MS_NOEXEC, False),
    "exec": (kernel.MS_NOEXEC, True),
    "sync": (1 << 4, False),
    "async": (1 << 4, True),
    "dirsync": (1 << 7, False),
    "noatime": (1 << 10, False),
    "atime": (1 << 10, True),
    "nodiratime": (1 << 11, False),
    "diratime": (1 << 11, True),
    "relatime": (1 << 21, False),
    "norelatime": (1 << 21, True),
    "strictatime": (1 << 24, False),
    "nostrictatime": (1 << 24, True),
    "bind": (kernel.MS_BIND, False),
    "rbind": (kernel.MS_BIND | kernel.MS_REC, False),
}
_PROPAGATION = {
    "private": kernel.MS_PRIVATE,
    "rprivate": kernel.MS_PRIVATE | kernel.MS_REC,
    "slave": kernel.MS_SLAVE,
    "rslave": kernel.MS_SLAVE | kernel.MS_REC,
    "shared": kernel.MS_SHARED,
    "rshared": kernel.MS_SHARED | kernel.MS_REC,
}


class LocalVolumes(VolumeDriver):
    """Directories below the driver's root. The core makes no two calls for one name at once, so nothing is locked."""

    capabilities = frozenset({"usage"})

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._trash = _Trash()
        for path in context.root.glob(f"{_REMOVED}*"):
            self._trash.put(path)

    def create(self, name: str, options: Mapping[str, str]) -> Volume:
        _check_name(name)
        _check_options(options)
        home = self._home(name)
        if not home.exists():
            # Made aside and renamed: a volume is there with its options or not at all.
            fresh = self.context.root / f"{_REMOVED}{new_id()}"
            data = fresh / _DATA
            data.mkdir(parents=True)
            fresh.chmod(0o701)
            data.chmod(0o755)
            size = _size(options)
            if size:
                try:
                    homes = [self._home(entry) / _DATA for entry in os.listdir(self.context.root) if valid_name(entry)]
                    quota.set_limit(data, quota.free_project(self.context.instance, homes), size)
                except BaseException:
                    shutil.rmtree(fresh, ignore_errors=True)
                    raise
            if options:
                (fresh / _OPTIONS).write_text(json.dumps(dict(options)))
            fresh.rename(home)
        return self._volume(name)

    def remove(self, name: str) -> None:
        if not valid_name(name):
            return
        home = self._home(name)
        if (home / _OPTIONS).exists():
            self._detach(home / _DATA)
            shutil.rmtree(self.context.state / name, ignore_errors=True)
        removed = self.context.root / f"{_REMOVED}{new_id()}"
        try:
            home.rename(removed)
        except FileNotFoundError:
            return
        self._trash.put(removed)

    def get(self, name: str) -> Volume:
        if not valid_name(name):
            raise NotFound(f"get {name}: no such volume")
        return self._volume(name)

    def list(self) -> Sequence[Volume]:
        volumes = []
        for entry in sorted(os.listdir(self.context.root)):
            if valid_name(entry):
                with suppress(NotFound):
                    volumes.append(self._volume(entry))
        return volumes

    def mount(self, name: str, consumer: str) -> Path:
        volume = self._volume(name)
        if _needs_mount(volume.options):
            consumers = self.context.state / name
            consumers.mkdir(mode=0o700, exist_ok=True)
            if not _is_mounted(volume.mountpoint):
                _attach(volume.mountpoint, volume.options)
            (consumers / consumer).touch()
        return volume.mountpoint

    def unmount(self, name: str, consumer: str) -> None:
        consumers = self.context.state / name
        try:
            (consumers / consumer).unlink(missing_ok=True)
            consumers.rmdir()
        except FileNotFoundError:
            return  # nothing was ever mounted for it
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                return  # others still use it
            raise
        self._detach(self._home(name) / _DATA)

    def usage(self, name: str) -> int:
        seen: set[tuple[int, int]] = set()
        return _usage(str(self.get(name).mountpoint), seen)

    def _home(self, name: str) -> Path:
        return self.context.root / name

    def _volume(self, name: str) -> Volume:
        home = self._home(name)
        try:
            created = os.stat(home).st_ctime
            options = json.loads((home / _OPTIONS).read_bytes()) if (home / _OPTIONS).exists() else {}
        except FileNotFoundError:
            raise NotFound(f"get {name}: no such volume") from None
        except ValueError as error:
            raise EngineError(f"volume {name}: {home / _OPTIONS} is damaged: {error}") from None
        when = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Volume(name=name, mountpoint=home / _DATA, created=when, options=options)

    def _detach(self, path: Path) -> None:
        while _is_mounted(path):
            try:
                kernel.umount(path, kernel.UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise EngineError(f"failed to unmount local volume {path}: {error.strerror}") from None
                kernel.umount(path, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)


class _Trash:
    """Deletes what was renamed away, on a thread that is there while there is something to delete."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: list[Path] = []
        self._busy = False

    def put(self, path: Path) -> None:
        with self._lock:
            self._paths.append(path)
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._empty, name="volume-trash", daemon=True).start()

    def _empty(self) -> None:
        while True:
            time.sleep(_LINGER)
            with self._lock:
                paths, self._paths = self._paths, []
                if not paths:
                    self._busy = False
                    return
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)  # what stays is tried again at the next start


def _check_name(name: str) -> None:
    if len(name) == 1:
        raise InvalidParameter("volume name is too short, names should be at least two alphanumeric characters")
    if not valid_name(name):
        raise InvalidParameter(
            f'"{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are '
            "allowed. If you intended to pass a host directory, use absolute path"
        )


def _check_options(options: Mapping[str, str]) -> None:
    for key in options:
        if key not in _KNOWN:
            raise InvalidParameter(f'invalid option: "{key}"')
    if options.get("type") == "cifs" and options.get("device") and urlsplit(options["device"]).port is not None:
        raise InvalidParameter("port not allowed in CIFS device URL, include 'port' in 'o='")
    if "size" in options:
        _size(options)
    for key, others in _REQUIRED.items():
        for other in others:
            if key in options and other not in options:
                raise InvalidParameter(f'missing required option: "{other}"')


def _size(options: Mapping[str, str]) -> int:
    """Bytes; 0 for no limit. Units are powers of 1024, as in dockerd."""
    text = options.get("size", "0").strip()
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"invalid size: '{options['size']}'")
    return int(float(match[1]) * 1024 ** (" kmgtp".index(match[2].lower()) if match[2] else 0))


def _needs_mount(options: Mapping[str, str]) -> bool:
    return bool(options.get("device") or options.get("type"))


def _is_mounted(path: Path) -> bool:
    """Whether something is mounted on ``path``. Mount ids tell; device numbers (os.path.ismount) do not for binds."""
    try:
        return _mount_id(path) != _mount_id(path.parent)
    except FileNotFoundError:
        return False


def _mount_id(path: Path) -> int:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    finally:
        os.close(fd)
    raise EngineError(f"cannot tell whether {path} is mounted: /proc/self/fdinfo has no mnt_id")


def _attach(target: Path, options: Mapping[str, str]) -> None:
    """mount(8) without mount(8). Raises `EngineError` in dockerd's words, without passwords."""
    device, kind, text = options.get("device", ""), options.get("type", ""), options.get("o", "")
    if not device:
        raise EngineError("missing device in volume options")
    if kind in ("nfs", "nfs4", "cifs"):
        text = _with_address(text)
    flags, propagation, data = 0, 0, []
    for option in filter(None, text.split(",")):
        if option in _FLAGS:
            flag, clears = _FLAGS[option]
            flags = flags & ~flag if clears else flags | flag
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        else:
            data.append(option)
    filesystem = "" if kind == "none" or flags & kernel.MS_BIND else kind
    words = ",".join(data)
    try:
        kernel.mount(device, target, filesystem, flags, words)
        if flags & kernel.MS_BIND and flags & ~(kernel.MS_BIND | kernel.MS_REC):
            kernel.mount(device, target, "", flags | kernel.MS_REMOUNT)  # a bind takes its flags in a second step
        if propagation:
            kernel.mount("", target, "", propagation)
    except OSError as error:
        shown = re.sub(r"password=[^,]*", "password=********", words)
        shown = f", data: {shown}" if shown else ""
        reason = (error.strerror or str(error)).lower()
        raise EngineError(
            f"failed to mount local volume: mount {device}:{target}, flags: {flags:#x}{shown}: {reason}"
        ) from None


def _with_address(text: str) -> str:
    """The kernel wants an address where users write a host name (``addr=``)."""
    for option in text.split(","):
        key, _, host = option.partition("=")
        if key == "addr" and host:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                try:
                    address = str(socket.getaddrinfo(host, None)[0][4][0])
                except OSError as error:
                    raise EngineError(f"error resolving passed in network volume address: {error}") from None
                return text.replace(f"addr={host}", f"addr={address}", 1)
    return text


def _usage(path: str, seen: set[tuple[int, int]]) -> int:
    """Bytes of the files below ``path``, hard links once; what vanishes meanwhile does not count."""
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        total += _usage(entry.path, seen)
                        continue
                    facts = entry.stat(follow_symlinks=False)
                    if facts.st_nlink > 1:
                        if (facts.st_dev, facts.st_ino) in seen:
                            continue
                        seen.add((facts.st_dev, facts.st_ino))
                    total += facts.st_size
    except FileNotFoundError:
        pass
    return total
