"""What a client wants to create, as admission plugins see it."""

from __future__ import annotations

import msgspec

from engine.model.container import Config, HostConfig
from engine.model.network import EndpointSettings

__all__ = ["ContainerRequest"]


class ContainerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A container about to be created. ``image`` is what the user typed, ``config`` what the client sent,
    before the image's defaults are merged in."""

    name: str
    image: str
    image_id: str
    platform: str
    runtime: str
    config: Config
    host_config: HostConfig
    networks: dict[str, EndpointSettings]
