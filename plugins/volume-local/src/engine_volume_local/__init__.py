"""Volumes in a directory of this host: ``<data root>/volumes/<name>/_data``, or a mount made there on first use."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_volume_drivers"]


@hookimpl
def engine_volume_drivers() -> Sequence[DriverDescription]:
    """The ``local`` driver."""
    return (
        DriverDescription(
            name="local",
            loader="engine_volume_local.driver:LocalVolumes",
            summary="A directory of this host, or a file system mounted on first use (type, o, device)",
            capabilities=frozenset({"usage"}),
        ),
    )
