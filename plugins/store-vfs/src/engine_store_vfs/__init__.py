"""Image layers and root file systems as plain folders, each a full copy: works everywhere, shares nothing."""

from __future__ import annotations

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl


@hookimpl
def engine_image_stores() -> list[DriverDescription]:
    """The ``vfs`` store."""
    return [
        DriverDescription(
            name="vfs",
            loader="engine_store_vfs.driver:VfsStore",
            summary="Layers and root file systems as full copies, for file systems without overlayfs",
        )
    ]
