"""`docker commit`: a container's writable layer and its configuration become an image."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from engine.containers import create as container_create
from engine.containers import views as container_views
from engine.errors import Conflict, InvalidParameter, NotFound
from engine.images.changes import apply_changes
from engine.model.image import Descriptor, Image, ImageConfig
from engine.names import Reference, parse_reference
from engine.platforms import parse_platform
from engine.timestamps import now

if TYPE_CHECKING:
    from engine.containers import Containers
    from engine.content import Content
    from engine.model.container import Config, Container

__all__ = ["commit"]

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_CHUNK = 1 << 20


async def commit(
    containers: Containers,
    ref: str,
    *,
    repository: str = "",
    tag: str = "",
    message: str = "",
    author: str = "",
    pause: bool = True,
    changes: Sequence[str] = (),
    config: Config,
) -> str:
    """Make an image of a container; returns its id. ``config`` overrides the container's, ``changes`` (Dockerfile
    instructions) both. A running container is paused meanwhile unless ``pause`` is off."""
    reference = _reference(repository, tag)
    container = containers.get(ref)
    merged = container_create.merge_image(config, _as_image(container))
    document_config = apply_changes(container_views.config_view(merged), changes)
    images, call = containers.images, containers.workers.call
    base = images.table.images.get(container.image_id)
    with images.content.lease():
        paused = pause and container.state.status == "running"
        if paused:
            with contextlib.suppress(Conflict):  # it has just ended
                await containers.pause(container.id)
        try:
            layer = await _layer(containers, container, images.content)
        finally:
            if paused:
                with contextlib.suppress(Conflict, NotFound):
                    await containers.unpause(container.id)
        diff_ids = [*(base.config.diff_ids if base else ()), layer.digest]
        await images.unpack_layer(diff_ids, len(diff_ids) - 1, layer)
        document = _document(
            container, base.config if base else ImageConfig(), diff_ids, document_config, author, message
        )
        blob = await call(images.content.put, msgspec.json.encode(document), _CONFIG)
        image = await images.add(
            config=blob,
            layers=[*(base.layers if base else ()), layer],
            manifest=None,
            references=[(reference, None)] if reference else [],
            parent=container.image_id,
        )
    await containers.event(
        container,
        "commit",
        comment=message,
        imageID=image.id,
        imageRef=str(reference) if reference else "",
    )
    return image.id


def _reference(repository: str, tag: str) -> Reference | None:
    if not repository:
        return None
    reference = parse_reference(repository)
    if reference.digest:
        raise InvalidParameter("cannot commit to a digest reference")
    if tag:
        reference = parse_reference(f"{reference.name}:{tag}")
    return reference.with_default_tag()


def _as_image(container: Container) -> Image:
    """The container's configuration in the place of an image's, for merging."""
    raw = container_views.config_view(container.config)
    for own in ("Hostname", "Domainname", "Image", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin"):
        raw.pop(own, None)
    return Image(
        id=container.image_id,
        config=ImageConfig(config=raw),
        platform=container.platform,
        chain_id=container.chain_id,
        size=0,
    )


async def _layer(containers: Containers, container: Container, content: Content) -> Descriptor:
    """The writable layer as a blob: the store writes a tar into a pipe, the content store reads it."""
    call = containers.workers.call
    readable, writable = os.pipe2(os.O_CLOEXEC)

    def produce() -> None:
        try:
            containers.image_store(container).diff(container.id, writable)
        finally:
            os.close(writable)

    def consume() -> Descriptor:
        with os.fdopen(readable, "rb", buffering=0) as source, content.writer() as writer:
            while data := source.read(_CHUNK):
                writer.write(data)
            size = writer.offset
            return Descriptor(media_type=_LAYER, digest=writer.commit(), size=size)

    produced, descriptor = await asyncio.gather(
        call(produce, deadline=None), call(consume, deadline=None), return_exceptions=True
    )
    for outcome in (produced, descriptor):
        if isinstance(outcome, BaseException):
            raise outcome
    assert isinstance(descriptor, Descriptor)
    return descriptor


def _document(
    container: Container,
    base: ImageConfig,
    diff_ids: Sequence[str],
    config: dict[str, Any],
    author: str,
    message: str,
) -> dict[str, Any]:
    platform = parse_platform(container.platform)
    created = now()
    step = {"created": created, "created_by": " ".join((container.path, *container.args))}
    if author:
        step["author"] = author
    if message:
        step["comment"] = message
    return {
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "author": author or base.author,
        "comment": message,
        "config": config,
        "created": created,
        "history": [*base.history, step],
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
