"""Images: descriptors and configs in OCI form, and the engine's record of an image."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

__all__ = ["Descriptor", "Image", "ImageConfig"]


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI content descriptor."""

    media_type: str
    digest: str
    size: int
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    platform: dict[str, Any] | None = None
    artifact_type: str = ""


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an OCI image config the engine uses. ``config`` is the container configuration as the image
    carries it (Docker's ``PascalCase`` keys); ``raw`` is the config blob as it was received."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str = ""
    author: str = ""
    config: dict[str, Any] = {}
    diff_ids: list[str] = []
    history: list[dict[str, Any]] = []


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image for one platform, ready to run.

    ``id`` is the digest of its config blob, ``manifest`` the descriptor of its manifest (None for images that never
    had one), ``chain_id`` the top of its unpacked layers (None: no layers), ``size`` bytes of the unpacked layers.
    """

    id: str
    config: ImageConfig
    platform: str
    chain_id: str | None
    size: int
    manifest: Descriptor | None = None
    repo_tags: list[str] = field(default_factory=list)
    repo_digests: list[str] = field(default_factory=list)
