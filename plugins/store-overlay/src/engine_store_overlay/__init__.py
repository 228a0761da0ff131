"""Image layers and root file systems on overlayfs."""

from __future__ import annotations

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl


@hookimpl
def engine_image_stores() -> list[DriverDescription]:
    """The ``overlay`` store, under Docker's name ``overlay2`` too."""
    return [
        DriverDescription(
            name="overlay2",
            aliases=("overlay", "overlayfs"),
            loader="engine_store_overlay.driver:OverlayStore",
            summary="Layers in folders of their own, stacked by the kernel's overlayfs",
            capabilities=frozenset({"parallel", "prepare"}),
        )
    ]
