"""What a client wants and who it is, as admission and authorization plugins see it."""

from __future__ import annotations

import msgspec

from engine.model.container import Config, HostConfig
from engine.model.network import EndpointSettings

__all__ = ["ContainerRequest", "Identity"]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end of a connection.

    ``method`` is ``unix`` (``uid``, ``gid`` and ``pid`` as the kernel vouches for), ``TLS`` (``user`` is the common
    name of the client's certificate, ``certificates`` its chain as DER) or empty: nobody knows.
    """

    method: str = ""
    user: str = ""
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    certificates: tuple[bytes, ...] = ()


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
