"""The ``nfs`` volume driver.

On this host::

    <root>/<name>.json                   a volume: its options, when it was made
    <state>/<share>/mount                where a share is mounted: once, for all volumes and containers that use it
    <state>/<share>/users/<name>@<id>    a container that uses a volume of that share

A volume with the option ``share`` is that directory of the server; removing it leaves the data alone. A volume
without one is a directory of its own in the share of the configuration, made with it and removed with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from engine.drivers import DriverContext
from engine.drivers.volume import Volume, VolumeDriver
from engine.errors import EngineError, InvalidParameter, NotFound, Unavailable
from engine.names import valid_name
from engine_volume_nfs import lease
from engine_volume_nfs.client import NfsClient, Share
from engine_volume_nfs.lease import Holder

__all__ = ["NfsVolumes"]

_KNOWN = frozenset(("share", "device", "o", "access", "lease"))
_ACCESS = ("", "shared", "single-writer")
_LEASE_SECONDS = 60


class _Record(msgspec.Struct, frozen=True):
    options: dict[str, str]
    created: str


class NfsVolumes(VolumeDriver):
    """Shares are mounted for their first user and unmounted after their last."""

    scope = "global"

    def __init__(self, context: DriverContext, client: NfsClient | None = None) -> None:
        super().__init__(context)
        self._client = NfsClient() if client is None else client
        self._lock = threading.Lock()  # of mounts: volumes of one share use the same
        self._renewing: dict[tuple[str, str], threading.Event] = {}
        self._resume()

    def create(self, name: str, options: Mapping[str, str]) -> Volume:
        if not valid_name(name):
            raise InvalidParameter(f'"{name}" is no volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed')
        self._check(options)
        place = self._record_path(name)
        if not place.exists():
            self._client.check()
            share, inside = self._share(name, options)
            if inside:
                with self._borrowed(share, name) as mounted:
                    (mounted / inside).mkdir(mode=0o755, exist_ok=True)
            else:
                self._client.reach(share)
            created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            fresh = place.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(_Record(options=dict(options), created=created)))
            fresh.rename(place)
        return self._volume(name)

    def remove(self, name: str) -> None:
        if not valid_name(name) or not self._record_path(name).exists():
            return
        share, inside = self._share(name, self._record(name).options)
        for user in self._users(share, f"{name}@"):
            self.unmount(name, user.partition("@")[2])
        if inside:
            with self._borrowed(share, name) as mounted:
                shutil.rmtree(mounted / inside, ignore_errors=False)
        self._record_path(name).unlink()

    def get(self, name: str) -> Volume:
        if not valid_name(name):
            raise NotFound(f"get {name}: no such volume")
        volume = self._volume(name)
        share, _ = self._share(name, volume.options)
        status = {"Share": str(share), "Mounted": str(bool(self._users(share))).lower(), "Server": "reachable"}
        try:
            self._client.reach(share)
        except Unavailable as error:
            status["Server"] = str(error)
        return Volume(
            name=name, mountpoint=volume.mountpoint, created=volume.created, options=volume.options, status=status
        )

    def list(self) -> Sequence[Volume]:
        names = sorted(path.stem for path in self.context.root.glob("*.json"))
        return [self._volume(name) for name in names]

    def mount(self, name: str, consumer: str) -> Path:
        options = self._record(name).options
        share, inside = self._share(name, options)
        self._client.check()
        path = self._attach(share, f"{name}@{consumer}") / inside
        try:
            if not path.is_dir():
                raise NotFound(f"{share} has no directory {inside}: somebody removed it on the server")
            if options.get("access") == "single-writer":
                self._take_lease(name, consumer, path, options)
        except BaseException:
            self._detach(share, f"{name}@{consumer}")
            raise
        return path

    def unmount(self, name: str, consumer: str) -> None:
        try:
            options = self._record(name).options
        except NotFound:
            return
        share, inside = self._share(name, options)
        if options.get("access") == "single-writer" and f"{name}@{consumer}" in self._users(share):
            self._give_back_lease(name, consumer, self._mountpoint(share) / inside, options)
        self._detach(share, f"{name}@{consumer}")

    # -- records ------------------------------------------------------------------------------------------------

    def _check(self, options: Mapping[str, str]) -> None:
        for key in options:
            if key not in _KNOWN:
                raise InvalidParameter(f'invalid option: "{key}"; nfs has {", ".join(sorted(_KNOWN))}')
        if options.get("access", "") not in _ACCESS:
            raise InvalidParameter(f"invalid access '{options['access']}': shared or single-writer")
        if not options.get("lease", "1").isdigit() or int(options.get("lease", "1")) < 1:
            raise InvalidParameter(f"invalid lease '{options['lease']}': seconds")
        share, _ = self._share("name", options)
        if options.get("access") == "single-writer" and share.version.startswith("3"):
            raise InvalidParameter("access=single-writer needs the locks of NFS version 4")

    def _share(self, name: str, options: Mapping[str, str]) -> tuple[Share, str]:
        """What to mount and the place in it: none for a share of the volume's own."""
        common = str(self.context.options.get("o", ""))
        words = ",".join(filter(None, (common, options.get("o", ""))))
        own = options.get("share") or options.get("device")
        if own:
            return Share.parse(own, words), ""
        default = self.context.options.get("share")
        if not default:
            raise InvalidParameter('missing required option: "share" (HOST:/PATH), and the configuration has none')
        return Share.parse(str(default), words), name

    def _record_path(self, name: str) -> Path:
        return self.context.root / f"{name}.json"

    def _record(self, name: str) -> _Record:
        try:
            return msgspec.json.decode(self._record_path(name).read_bytes(), type=_Record)
        except FileNotFoundError:
            raise NotFound(f"get {name}: no such volume") from None
        except msgspec.DecodeError as error:
            raise EngineError(f"volume {name}: {self._record_path(name)} is damaged: {error}") from None

    def _volume(self, name: str) -> Volume:
        record = self._record(name)
        share, inside = self._share(name, record.options)
        return Volume(
            name=name, mountpoint=self._mountpoint(share) / inside, created=record.created, options=record.options
        )

    # -- mounts -------------------------------------------------------------------------------------------------

    def _home(self, share: Share) -> Path:
        key = hashlib.sha256(f"{share} {share.options}".encode()).hexdigest()[:16]
        return self.context.state / key

    def _mountpoint(self, share: Share) -> Path:
        return self._home(share) / "mount"

    def _users(self, share: Share, prefix: str = "") -> Sequence[str]:
        try:
            return [user for user in os.listdir(self._home(share) / "users") if user.startswith(prefix)]
        except FileNotFoundError:
            return []

    def _attach(self, share: Share, user: str) -> Path:
        home, target = self._home(share), self._mountpoint(share)
        with self._lock:
            for directory in (home, target, home / "users"):
                directory.mkdir(mode=0o700, exist_ok=True)
            (home / "users" / user).touch()
            try:
                if not self._client.mounted(target):
                    self._client.mount(share, target)
            except BaseException:
                (home / "users" / user).unlink()
                raise
        return target

    def _detach(self, share: Share, user: str) -> None:
        home = self._home(share)
        with self._lock:
            (home / "users" / user).unlink(missing_ok=True)
            if not self._users(share):
                self._client.unmount(self._mountpoint(share))
                for directory in (self._mountpoint(share), home / "users", home):
                    with suppress(FileNotFoundError):
                        directory.rmdir()

    def _borrowed(self, share: Share, name: str) -> _Borrowed:
        return _Borrowed(self, share, f"{name}@")

    # -- the single writer ----------------------------------------------------------------------------------------

    def _holder(self, consumer: str, options: Mapping[str, str]) -> Holder:
        seconds = int(options.get("lease", _LEASE_SECONDS))
        return Holder(host=socket.gethostname(), instance=self.context.instance, consumer=consumer, seconds=seconds)

    def _take_lease(self, name: str, consumer: str, path: Path, options: Mapping[str, str]) -> None:
        holder = self._holder(consumer, options)
        lease.take(path, holder)
        if (name, consumer) not in self._renewing:
            stopped = self._renewing[name, consumer] = threading.Event()
            threading.Thread(target=_keep, args=(path, holder, stopped), name=f"nfs-lease-{name}", daemon=True).start()

    def _give_back_lease(self, name: str, consumer: str, path: Path, options: Mapping[str, str]) -> None:
        stopped = self._renewing.pop((name, consumer), None)
        if stopped is not None:
            stopped.set()
        with suppress(OSError):  # a server that is gone: the lease ends by itself
            lease.release(path, self._holder(consumer, options))

    def _resume(self) -> None:
        """After a restart of the engine the containers go on, and so must their leases."""
        for volume in self.list():
            if volume.options.get("access") == "single-writer":
                share, _ = self._share(volume.name, volume.options)
                for user in self._users(share, f"{volume.name}@"):
                    with suppress(EngineError, OSError):
                        self._take_lease(volume.name, user.partition("@")[2], volume.mountpoint, volume.options)


class _Borrowed:
    """A share mounted for the length of a ``with`` block."""

    def __init__(self, driver: NfsVolumes, share: Share, user: str) -> None:
        self._driver, self._share, self._user = driver, share, user

    def __enter__(self) -> Path:
        return self._driver._attach(self._share, self._user)

    def __exit__(self, *_: object) -> None:
        self._driver._detach(self._share, self._user)


def _keep(path: Path, holder: Holder, stopped: threading.Event) -> None:
    """Renew a lease three times in its length until it is given back or lost."""
    while not stopped.wait(holder.seconds / 3):
        with suppress(OSError):  # the server may come back
            if not lease.renew(path, holder):
                return
