"""Volumes on NFS servers: one mount on each host for each share, whoever uses it."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_volume_drivers"]


@hookimpl
def engine_volume_drivers() -> Sequence[DriverDescription]:
    """The ``nfs`` driver."""
    return (
        DriverDescription(
            name="nfs",
            loader="engine_volume_nfs.driver:NfsVolumes",
            summary="A directory of an NFS server (share, o, access); the same on every host",
            options={
                "share": "HOST:/PATH in which volumes created without a share of their own get a directory each",
                "o": "mount options for all shares, before those of a volume",
            },
        ),
    )
