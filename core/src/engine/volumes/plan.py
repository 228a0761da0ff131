"""What a container asks to have mounted, from all places it can ask in, as one list of mount points.

Later sources win: volumes-from, binds, mounts; anonymous volumes fill what is left. Nothing is made here.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from engine import mounts
from engine.errors import InvalidParameter, NotFound
from engine.model.container import Config, Container, HostConfig, MountPoint, VolumeOptions

__all__ = ["IDMAP_ANNOTATION", "check_tmpfs", "explicit_propagation", "plan"]

IDMAP_ANNOTATION = "engine.idmap."
"""``--annotation engine.idmap.<destination>=uids=...`` is ``--mount ...,idmap=...`` for clients that lack it."""


def check_tmpfs(host_config: HostConfig) -> None:
    """Refuse what ``--tmpfs`` cannot mean."""
    for destination, options in (host_config.tmpfs or {}).items():
        mounts.parse_tmpfs(destination, options)


def plan(
    config: Config, host_config: HostConfig, others: Callable[[str], Container], data_root: Path
) -> list[MountPoint]:
    """All mount points; volumes and image roots are not made yet. Looks at the host for the sources of binds."""
    check_tmpfs(host_config)
    tmpfs = {posixpath.normpath(destination) for destination in host_config.tmpfs or {}}
    points: dict[str, MountPoint] = {}
    for text in host_config.volumes_from or ():
        reference, mode = mounts.parse_volumes_from(text)
        writable = "ro" not in mode.split(",")
        try:
            donor = others(reference)
        except NotFound as error:
            # Not 404: the docker CLI takes that for a missing image and pulls.
            raise InvalidParameter(str(error)) from None
        for point in donor.mounts:
            points[point.destination] = _borrowed(point, writable)
    asked: set[str] = set()
    requested = [mounts.parse_bind(text, host_config.volume_driver) for text in host_config.binds or ()]
    requested += [mounts.parse_mount(mount) for mount in host_config.mounts or ()]
    for point in requested:
        if point.destination in asked or point.destination in tmpfs:
            raise InvalidParameter(f"Duplicate mount point: {point.destination}")
        asked.add(point.destination)
        points[point.destination] = _slave_around(point, data_root)
    for path in config.volumes or {}:
        mounts.check_destination(path)
        destination = posixpath.normpath(path)
        if destination not in points and destination not in tmpfs:
            points[destination] = MountPoint(type="volume", destination=destination, driver=host_config.volume_driver)
    _map_ids(points, host_config)
    return list(points.values())


def _map_ids(points: dict[str, MountPoint], host_config: HostConfig) -> None:
    for key, text in (host_config.annotations or {}).items():
        if not key.startswith(IDMAP_ANNOTATION):
            continue
        destination = posixpath.normpath(key.removeprefix(IDMAP_ANNOTATION))
        point = points.get(destination)
        if point is None:
            raise InvalidParameter(f"annotation {key}: nothing is mounted at {destination}")
        spec = replace(point.spec, type=point.type, id_map=text)
        mounts.check_id_map(spec)
        points[destination] = replace(point, spec=spec)


def explicit_propagation(point: MountPoint) -> str:
    """The propagation the user asked for; empty when it was chosen for them."""
    return point.spec.bind_options.propagation if point.spec.bind_options else ""


def _slave_around(point: MountPoint, data_root: Path) -> MountPoint:
    """A bind that contains the engine's data follows our unmounts (rslave), as in dockerd: a private copy would keep
    the root file systems of other containers busy."""
    if point.type != "bind" or explicit_propagation(point):
        return point
    source = Path(point.source)
    if data_root.is_relative_to(source) or source.is_relative_to(data_root):
        return replace(point, propagation="rslave")
    return point


def _borrowed(point: MountPoint, writable: bool) -> MountPoint:
    """A mount of another container (``--volumes-from``): never copied into, read-only if either side says so."""
    options = point.spec.volume_options or VolumeOptions()
    spec = replace(point.spec, volume_options=replace(options, no_copy=True)) if point.type == "volume" else point.spec
    return replace(point, rw=point.rw and writable, mode="", spec=spec)
