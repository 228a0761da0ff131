"""Making a container's mounts ready for the runtime, and taking them down again: all that blocks on the kernel.

What has to be mounted by the engine itself (places inside volumes and images, mapped owners) is mounted in a
directory for each container below ``state``. That directory is there from `Attacher.mount` to `Attacher.unmount`,
so it also tells, across daemon restarts, whose mounts are up.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from engine import kernel, mounts
from engine.errors import EngineError, InvalidParameter, NotFound, NotSupported
from engine.model.container import Container, MountPoint, VolumeOptions
from engine.mounts import IdRange, OciMount
from engine.volumes.plan import explicit_propagation
from engine.volumes.treecopy import copy_up, holds_directory

if TYPE_CHECKING:
    from engine.plugins import Plugins

__all__ = ["Attacher"]

_KEPT_FLAGS = ((os.ST_NOSUID, "nosuid"), (os.ST_NODEV, "nodev"), (os.ST_NOEXEC, "noexec"))
_MOUNTINFO_OCTAL = re.compile(rb"\\([0-7]{3})")
_NEW_NAMESPACE = (
    "import ctypes, sys; "
    f"failed = ctypes.CDLL(None).unshare({kernel.CLONE_NEWUSER}); "
    "print(failed, flush=True); sys.stdin.read()"
)


class Attacher:
    """Calls drivers and the kernel; used from worker threads, never for one container at once."""

    def __init__(self, plugins: Plugins, state: Path) -> None:
        self._plugins = plugins
        self._state = state

    def mounted(self, container_id: str) -> bool:
        """Whether `mount` was called for the container and `unmount` not yet."""
        return (self._state / container_id).is_dir()

    def populate(self, container: Container, rootfs: Path) -> None:
        """Copy what the image has at the places of empty volumes into them."""
        for point in container.mounts:
            options = point.spec.volume_options or VolumeOptions()
            if point.type != "volume" or options.no_copy or options.subpath:
                continue
            if holds_directory(rootfs, point.destination):
                try:
                    copy_up(rootfs, point.destination, self._mount_volume(container, point))
                finally:
                    self._plugins.volume(point.driver).unmount(point.name, container.id)

    def mount(self, container: Container, roots: Mapping[int, Path]) -> Sequence[OciMount]:
        """``roots`` are the mounted root file systems for mounts of type image, by position."""
        self._state.mkdir(mode=0o711, parents=True, exist_ok=True)  # parents would get the umask's mode
        (self._state / container.id).mkdir(mode=0o700, exist_ok=True)
        return [self._mount(container, index, point, roots) for index, point in enumerate(container.mounts)]

    def unmount(self, container: Container) -> None:
        """Idempotent; goes through all mounts and raises the first error afterwards."""
        self._unbind(container.id)
        errors: list[EngineError] = []
        for point in container.mounts:
            if point.type == "volume":
                try:
                    self._plugins.volume(point.driver).unmount(point.name, container.id)
                except NotFound:
                    continue  # the volume or its driver is gone
                except EngineError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def _mount(self, container: Container, index: int, point: MountPoint, roots: Mapping[int, Path]) -> OciMount:
        if point.type == "tmpfs":
            words = mounts.tmpfs_options(point.spec.tmpfs_options, point.spec.read_only)
            return mounts.parse_tmpfs(point.destination, words)
        own = self._state / container.id / str(index)
        subpath = ""
        if point.type == "bind":
            _prepare_bind_source(point)
            source = Path(point.source)
        elif point.type == "image":
            source = roots[index]
            subpath = point.spec.image_options.subpath if point.spec.image_options else ""
        else:
            source = self._mount_volume(container, point)
            subpath = point.spec.volume_options.subpath if point.spec.volume_options else ""
        if subpath:
            source = _bind_subpath(source, subpath, own)
        if point.spec.id_map:
            source = _bind_mapped(source, point, own.with_suffix(".mapped"))
        return OciMount(point.destination, "bind", str(source), _bind_options(point, source))

    def _mount_volume(self, container: Container, point: MountPoint) -> Path:
        try:
            return self._plugins.volume(point.driver).mount(point.name, container.id)
        except NotFound:
            raise
        except EngineError as error:
            raise type(error)(f"error while mounting volume '{point.source}': {error}") from None

    def _unbind(self, container_id: str) -> None:
        directory = self._state / container_id
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        for name in sorted(names, reverse=True):
            path = directory / name
            with suppress(OSError):  # EINVAL: not mounted any more
                kernel.umount(path, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        directory.rmdir()


def _bind_subpath(source: Path, subpath: str, target: Path) -> Path:
    """Pin a place inside a volume by mounting it: whoever can write the volume cannot swap it for a link later."""
    root = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = kernel.openat2(root, subpath, os.O_PATH, resolve=kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidParameter(f"cannot access path {source / subpath}: {reason}") from None
    finally:
        os.close(root)
    try:
        here = f"/proc/self/fd/{found}"
        _make_place(target, directory=os.path.isdir(here))
        kernel.mount(here, target, flags=kernel.MS_BIND | kernel.MS_REC)
    finally:
        os.close(found)
    return target


def _make_place(target: Path, *, directory: bool) -> None:
    if directory:
        target.mkdir(exist_ok=True)
    else:
        target.touch()


# -- mapped owners --------------------------------------------------------------------------------------------


def _bind_mapped(source: Path, point: MountPoint, target: Path) -> Path:
    """Mount ``source`` again with the owners of its files mapped."""
    recursive = not (point.spec.bind_options and point.spec.bind_options.non_recursive)
    with _user_namespace(*mounts.parse_id_map(point.spec.id_map)) as namespace:
        try:
            tree = kernel.idmapped(source, namespace, recursive=recursive)
        except OSError as error:
            raise NotSupported(
                f"idmap of {point.destination}: the file system of {source} or this kernel has no idmapped mounts: "
                f"{error.strerror}"
            ) from None
    try:
        _make_place(target, directory=source.is_dir())
        kernel.move_mount(tree, target)
    finally:
        os.close(tree)
    return target


@contextmanager
def _user_namespace(uids: Sequence[IdRange], gids: Sequence[IdRange]) -> Iterator[int]:
    """A descriptor of a user namespace with these maps. A process of its own makes it: a daemon with threads cannot."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _NEW_NAMESPACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"0":
            raise NotSupported("idmap: this host lets nobody make user namespaces (user.max_user_namespaces)")
        proc = Path(f"/proc/{process.pid}")
        for name, ranges in (("uid_map", uids), ("gid_map", gids)):
            try:
                (proc / name).write_text("".join(f"{disk} {seen} {count}\n" for disk, seen, count in ranges))
            except OSError as error:
                raise InvalidParameter(f"the kernel refuses this idmap: {error.strerror}") from None
        namespace = os.open(proc / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield namespace
        finally:
            os.close(namespace)


# -- binds ----------------------------------------------------------------------------------------------------


def _prepare_bind_source(point: MountPoint) -> None:
    """``-v`` makes the missing directory (`mounts.parse_bind` asks for it); ``--mount`` wants it to be there."""
    if not os.path.lexists(point.source):
        options = point.spec.bind_options
        if not (options and options.create_mountpoint):
            raise InvalidParameter(
                f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
            )
        try:
            os.makedirs(point.source, 0o755, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InvalidParameter(
                f"error while creating mount source path '{point.source}': mkdir {point.source}: {reason}"
            ) from None


def _propagation(point: MountPoint) -> str:
    """The propagation to ask the runtime for. What the user asked for must be possible: the mount that holds the
    source must be shared (or a slave). What we chose ourselves falls back to the default."""
    wanted = {"shared": (b"shared:",), "slave": (b"shared:", b"master:")}.get(point.propagation.removeprefix("r"))
    if wanted is None:
        return point.propagation
    place, optional = _mount_of(point.source)
    if any(word.startswith(wanted) for word in optional):
        return point.propagation
    if not explicit_propagation(point):
        return mounts.DEFAULT_PROPAGATION
    kind = "shared mount" if len(wanted) == 1 else "shared or slave mount"
    raise InvalidParameter(f"path {point.source} is mounted on {place} but it is not a {kind}")


def _mount_of(source: str) -> tuple[str, Sequence[bytes]]:
    """Where the mount that holds ``source`` is, and the optional fields of its line in mountinfo."""
    path = os.fsencode(os.path.realpath(source))
    best, optional = b"", [b""]
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        words = line.partition(b" - ")[0].split(b" ")
        place = _MOUNTINFO_OCTAL.sub(lambda match: bytes((int(match[1], 8),)), words[4])
        if (path == place or path.startswith(place.rstrip(b"/") + b"/")) and len(place) >= len(best):
            best, optional = place, words[6:]
    return os.fsdecode(best), optional


def _bind_options(point: MountPoint, source: str | Path) -> tuple[str, ...]:
    """Read-only holds for everything mounted below, too, where the kernel can do that (rro, Linux 5.12).

    What the mount of the source forbids stays forbidden: runc keeps those flags by itself, crun 1.8 clears them.
    """
    options = point.spec.bind_options
    alone = bool(options and options.non_recursive) or not os.path.isdir(source)
    words = ["bind" if alone else "rbind"]
    flags = os.statvfs(source).f_flag
    words += [word for flag, word in _KEPT_FLAGS if flags & flag]
    if point.rw:
        words += ["ro"] if flags & os.ST_RDONLY else []
    else:
        shallow = alone or (options and options.read_only_non_recursive) or not _recursive_read_only()
        if shallow and options and options.read_only_force_recursive and not alone:
            raise NotSupported(f"{point.source}: this kernel has no recursively read-only mounts (Linux 5.12)")
        words.append("ro" if shallow else "rro")
    if point.propagation:
        propagation = _propagation(point)
        # crun would bind recursively for the sake of rprivate
        words.append(propagation.removeprefix("r") if alone else propagation)
    return tuple(words)


@cache
def _recursive_read_only() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (5, 12)
