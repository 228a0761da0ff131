"""The grammar of mounts: ``-v`` (Binds), ``--mount`` (Mounts), ``--tmpfs`` and ``--volumes-from``; nothing is mounted.

Source of the rules and of the error texts: moby's volume/mounts (linux_parser.go) and moby/sys/mount.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.errors import InvalidParameter
from engine.model.container import BindOptions, Mount, MountPoint, TmpfsOptions, VolumeDriverConfig, VolumeOptions

__all__ = [
    "DEFAULT_PROPAGATION",
    "IdRange",
    "OciMount",
    "check_destination",
    "check_id_map",
    "parse_bind",
    "parse_id_map",
    "parse_mount",
    "parse_tmpfs",
    "parse_volumes_from",
    "tmpfs_options",
]

DEFAULT_PROPAGATION = "rprivate"

IdRange = tuple[int, int, int]
"""(first id on disk, first id as seen through the mount, how many)."""

_ID_RANGE = re.compile(r"(\d{1,10})-(\d{1,10})-([1-9]\d{0,9})")
_IDS = 0xFFFFFFFF  # the last one is no id

_RW = frozenset(("rw", "ro"))
_LABELS = frozenset(("z", "Z"))
_PROPAGATION = frozenset(("private", "rprivate", "slave", "rslave", "shared", "rshared"))
_COPY = frozenset(("copy", "nocopy"))
_CONSISTENCY = frozenset(("default", "consistent", "cached", "delegated"))
_MODE_GROUPS = (_RW, _LABELS, _PROPAGATION, _COPY, _CONSISTENCY)

_TMPFS_VALUES = frozenset(("", "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"))
# Flags that exclude each other share a key: the last one given wins.
_TMPFS_FLAGS = {
    flag: key
    for key, flags in (
        ("ro", ("ro", "rw")),
        ("suid", ("suid", "nosuid")),
        ("dev", ("dev", "nodev")),
        ("exec", ("exec", "noexec")),
        ("sync", ("sync", "async")),
        ("dirsync", ("dirsync",)),
        ("remount", ("remount",)),
        ("mand", ("mand", "nomand")),
        ("atime", ("atime", "noatime")),
        ("diratime", ("diratime", "nodiratime")),
        ("bind", ("bind", "rbind")),
        ("propagation", (*sorted(_PROPAGATION), "unbindable", "runbindable")),
        ("relatime", ("relatime", "norelatime")),
        ("strictatime", ("strictatime", "nostrictatime")),
    )
    for flag in flags
}


@dataclass(frozen=True, slots=True)
class OciMount:
    """One entry of the OCI spec's ``mounts``; ``source`` is a host path for binds."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()


def parse_bind(text: str, volume_driver: str = "") -> MountPoint:
    """``-v``: ``source:destination[:mode,...]``. An absolute source is a bind, anything else a volume's name.

    A bind's source is made at start when it is missing (``create_mountpoint``).
    """
    parts = text.split(":")
    if not parts[0] or len(parts) > 3:
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    source, target, mode = "", parts[0], ""
    if len(parts) > 1:
        if len(parts) == 2 and _valid_mode(parts[1]):
            raise InvalidParameter(f"invalid volume specification: '{text}'")
        source, target = parts[0], parts[1]
        mode = parts[2] if len(parts) == 3 else ""
    if not _valid_mode(mode):
        raise InvalidParameter(f"invalid mode: {mode}")
    options = frozenset(mode.split(","))
    is_bind = source.startswith("/")
    volume_options = None
    if options & _COPY or (volume_driver and not is_bind):
        volume_options = VolumeOptions(
            no_copy="nocopy" in options,
            driver_config=VolumeDriverConfig(name=volume_driver) if volume_driver and not is_bind else None,
        )
    propagation = next(iter(options & _PROPAGATION), "")
    bind_options = None
    if is_bind or propagation:
        bind_options = BindOptions(propagation=propagation, create_mountpoint=is_bind)
    mount = Mount(
        type="bind" if is_bind else "volume",
        source=source,
        target=target,
        read_only="ro" in options,
        bind_options=bind_options,
        volume_options=volume_options,
    )
    try:
        point = _point(mount, mode)
    except InvalidParameter as error:
        raise InvalidParameter(f"invalid volume specification: '{text}': {error}") from None
    return point


def parse_mount(mount: Mount) -> MountPoint:
    """``--mount``. A bind's source must exist, unless ``bind-create-src`` was asked for: this looks at the host."""
    point = _point(mount, "")
    if (
        mount.type == "bind"
        and not (mount.bind_options and mount.bind_options.create_mountpoint)
        and not os.path.lexists(mount.source)
    ):
        raise _bad(mount, f"bind source path does not exist: {mount.source}")
    return point


def parse_volumes_from(text: str) -> tuple[str, str]:
    """``--volumes-from``: the container and the mode (``rw`` when left out)."""
    if not text:
        raise InvalidParameter("volumes-from specification cannot be an empty string")
    container, _, mode = text.partition(":")
    options = frozenset(mode.split(","))
    if not _valid_mode(mode) or options & (_PROPAGATION | _COPY):
        raise InvalidParameter(f"invalid mode: {mode}")
    return container, mode or "rw"


def parse_tmpfs(destination: str, options: str) -> OciMount:
    """``--tmpfs``: not executable, no set-id, no devices, unless the options say otherwise."""
    check_destination(destination)
    defaults = ("noexec", "nosuid", "nodev", DEFAULT_PROPAGATION)
    given = options.split(",") if options else ()
    return OciMount(posixpath.normpath(destination), "tmpfs", "tmpfs", _merge_tmpfs((*defaults, *given)))


def tmpfs_options(options: TmpfsOptions | None, read_only: bool) -> str:
    """The options of ``--mount type=tmpfs`` as `parse_tmpfs` takes them."""
    parts = ["ro"] if read_only else []
    if options is not None:
        if options.mode:
            parts.append(f"mode={options.mode:o}")
        if options.size_bytes:
            parts.append(f"size={_size(options.size_bytes)}")
        for pair in options.options or ():
            if not 1 <= len(pair) <= 2:
                raise InvalidParameter("invalid option array length")
            if pair[0] not in ("exec", "noexec"):
                raise InvalidParameter(f"invalid option: {pair[0]}")
            parts.append("=".join(pair))
    return ",".join(parts)


def check_destination(path: str) -> None:
    """Refuse what nothing can be mounted on."""
    if posixpath.normpath(path or ".") in ("/", "//"):
        raise InvalidParameter("invalid specification: destination can't be '/'")
    if not path.startswith("/"):
        raise InvalidParameter(f"invalid mount path: '{path}' mount path must be absolute")


def _size(size: int) -> str:
    for suffix, unit in (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def _valid_mode(mode: str) -> bool:
    """Whether every word is known and no two are of one group."""
    if not mode:
        return True
    words = mode.split(",")
    return all(any(word in group for group in _MODE_GROUPS) for word in words) and all(
        sum(word in group for word in words) <= 1 for group in _MODE_GROUPS
    )


def _bad(mount: Mount, reason: str) -> InvalidParameter:
    return InvalidParameter(f'invalid mount config for type "{mount.type}": {reason}')


def _point(mount: Mount, mode: str) -> MountPoint:
    """Check a mount and turn it into a mount point whose volume is not made yet."""
    if not mount.target:
        raise _bad(mount, "field Target must not be empty")
    try:
        check_destination(mount.target)
    except InvalidParameter as error:
        raise _bad(mount, str(error)) from None
    checks = {"bind": _check_bind, "volume": _check_volume, "tmpfs": _check_tmpfs, "image": _check_image}
    check = checks.get(mount.type)
    if check is None:
        raise _bad(mount, "mount type unknown")
    check(mount)
    check_id_map(mount)
    driver = mount.volume_options.driver_config if mount.volume_options else None
    propagation = ""
    if mount.type == "bind":
        propagation = (mount.bind_options.propagation if mount.bind_options else "") or DEFAULT_PROPAGATION
    return MountPoint(
        type=mount.type,
        name=mount.source if mount.type in ("volume", "image") else "",
        source=posixpath.normpath(mount.source) if mount.type == "bind" else "",
        destination=posixpath.normpath(mount.target),
        driver=driver.name if driver else "",
        mode=mode,
        rw=not mount.read_only and mount.type != "image",
        propagation=propagation,
        spec=mount,
    )


def _check_bind(mount: Mount) -> None:
    if not mount.source:
        raise _bad(mount, "field Source must not be empty")
    options = mount.bind_options
    if options is not None and options.propagation and options.propagation not in _PROPAGATION:
        raise _bad(mount, f"invalid propagation mode: {options.propagation}")
    if mount.volume_options is not None:
        raise _bad(mount, "field VolumeOptions must not be specified")
    if not mount.source.startswith("/"):
        raise _bad(mount, f"invalid mount path: '{mount.source}' mount path must be absolute")


def _check_volume(mount: Mount) -> None:
    if mount.bind_options is not None:
        raise _bad(mount, "field BindOptions must not be specified")
    if mount.volume_options is not None and mount.volume_options.subpath:
        if not mount.source:
            raise _bad(mount, "must not set Subpath when using anonymous volumes")
        if not _is_local(mount.volume_options.subpath):
            raise _bad(mount, "subpath must be a relative path within the volume")
    if mount.read_only and not mount.source:
        raise _bad(mount, "must not set ReadOnly mode when using anonymous volumes")


def _check_tmpfs(mount: Mount) -> None:
    if mount.bind_options is not None:
        raise _bad(mount, "field BindOptions must not be specified")
    if mount.source:
        raise _bad(mount, "field Source must not be specified")
    try:
        tmpfs_options(mount.tmpfs_options, mount.read_only)
    except InvalidParameter as error:
        raise _bad(mount, str(error)) from None


def _check_image(mount: Mount) -> None:
    if mount.bind_options is not None:
        raise _bad(mount, "field BindOptions must not be specified")
    if mount.volume_options is not None:
        raise _bad(mount, "field VolumeOptions must not be specified")
    if not mount.source:
        raise _bad(mount, "field Source must not be empty")
    if mount.image_options is not None and not _is_local(mount.image_options.subpath):
        raise _bad(mount, "subpath must be a relative path within the image")


def check_id_map(mount: Mount) -> None:
    """Refuse an ``idmap`` that is none, or on a mount that cannot have one."""
    if not mount.id_map:
        return
    if mount.type not in ("bind", "volume"):
        raise _bad(mount, "only binds and volumes can have an idmap")
    try:
        parse_id_map(mount.id_map)
    except InvalidParameter as error:
        raise _bad(mount, str(error)) from None


def parse_id_map(text: str) -> tuple[Sequence[IdRange], Sequence[IdRange]]:
    """``uids=0-1000-1#1-2000-10;gids=...``: ranges of (id on disk, id seen in the mount, how many), for users and
    groups; the groups' are the users' when left out. This is the grammar of crun's and podman's ``idmap``."""
    found: dict[str, Sequence[IdRange]] = {}
    for part in text.split(";"):
        key, _, values = part.partition("=")
        ranges = [_ID_RANGE.fullmatch(value) for value in values.split("#")]
        if key not in ("uids", "gids") or key in found or not all(ranges):
            raise InvalidParameter(f"invalid idmap '{text}': it reads uids=DISK-SEEN-COUNT[#...][;gids=...]")
        found[key] = [(int(match[1]), int(match[2]), int(match[3])) for match in ranges if match]
    if "uids" not in found or any(seen + count > _IDS for each in found.values() for _, seen, count in each):
        raise InvalidParameter(f"invalid idmap '{text}': it needs uids, and no id above {_IDS - 1}")
    return found["uids"], found.get("gids", found["uids"])


def _is_local(path: str) -> bool:
    """Whether ``path`` stays below the directory it is relative to (Go's filepath.IsLocal)."""
    clean = posixpath.normpath(path)
    return not path.startswith("/") and clean != ".." and not clean.startswith("../")


def _merge_tmpfs(options: Iterable[str]) -> tuple[str, ...]:
    """Drop what a later option overrides; unknown options are refused."""
    merged: dict[str, str] = {}
    for option in options:
        if option == "defaults":
            continue
        key = _TMPFS_FLAGS.get(option)
        if key is None:
            name, separator, _ = option.partition("=")
            if not separator or name not in _TMPFS_VALUES:
                words = " ".join(f'"{word}"' for word in option.split("=", 1))
                raise InvalidParameter(f"invalid tmpfs option [{words}]")
            key = f"{name}="
        merged.pop(key, None)
        merged[key] = option
    return tuple(merged.values())
