"""Volumes in the shape of the Docker Engine API."""

from __future__ import annotations

import msgspec

__all__ = ["ANONYMOUS_LABEL", "VolumeRecord"]

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
"""Set on volumes nobody named; ``volume prune`` takes those."""


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The engine's record of a volume, persisted as one row; ``docker volume inspect`` without ``Status``."""

    created_at: str
    driver: str
    labels: dict[str, str] | None = None
    mountpoint: str = ""
    name: str
    options: dict[str, str] | None = None
    scope: str = "local"
