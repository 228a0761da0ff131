"""OCI artifacts as images: things in registries that are no container images and yet are kept, named and pushed on.

An artifact keeps its manifest and blobs byte for byte. What the engine needs besides to list and run it is made here,
and the same artifact always gives the same: a config, and for WebAssembly (the CNCF layout: a config
``application/vnd.wasm.config.v0+json`` and a layer ``application/wasm``) one layer with the module as its only file.
Any other artifact is an image without layers for the platform ``unknown/unknown``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.content import Content
from engine.errors import InvalidParameter
from engine.layers import tar
from engine.model.image import Descriptor

__all__ = ["as_image", "is_artifact"]

_CONFIGS = frozenset(("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"))
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MODULES = frozenset(("application/wasm", "application/vnd.wasm.content.layer.v1+wasm"))
_TITLE = "org.opencontainers.image.title"
_CREATED = "org.opencontainers.image.created"
_CHUNK = 1 << 20


def is_artifact(config: Descriptor) -> bool:
    """Whether a manifest with this config is no container image."""
    return config.media_type not in _CONFIGS


def as_image(content: Content, manifest: Descriptor) -> tuple[Descriptor, list[Descriptor]]:
    """Config and layers, in ``content``, for the artifact whose manifest and blobs are there. Blocks."""
    try:
        body = msgspec.json.decode(content.read(manifest.digest), type=dict[str, Any])
        blobs = msgspec.convert(body.get("layers") or [], type=list[Descriptor])
        own = msgspec.convert(body.get("config"), type=Descriptor)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvalidParameter(f"invalid manifest: {error}") from None
    module = next((blob for blob in blobs if blob.media_type in _MODULES), None)
    annotations = body.get("annotations") or {}
    document: dict[str, Any] = {
        "architecture": "unknown",
        "os": "unknown",
        "config": {"Labels": dict(annotations)} if annotations else {},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }
    if created := annotations.get(_CREATED):
        document["created"] = created
    layers = []
    if module is not None:
        name = posixpath.basename((module.annotations or {}).get(_TITLE, "")) or "module.wasm"
        layers = [_module_layer(content, module, name)]
        document |= {"architecture": "wasm", "os": _operating_system(content, own)}
        document["config"]["Entrypoint"] = [f"/{name}"]
        document["rootfs"]["diff_ids"] = [layers[0].digest]
        document["history"] = [{"created_by": f"artifact {module.media_type} {module.digest}"}]
    return content.put(msgspec.json.encode(document), _OCI_CONFIG, durable=False), layers


def _operating_system(content: Content, config: Descriptor) -> str:
    """``wasip1`` or ``wasip2``, when the artifact says so."""
    try:
        found: Any = msgspec.json.decode(content.read(config.digest))
    except msgspec.DecodeError:
        return "wasi"
    told = found.get("os") if isinstance(found, Mapping) else None
    return told if isinstance(told, str) and told.startswith("wasi") else "wasi"


def _module_layer(content: Content, module: Descriptor, name: str) -> Descriptor:
    size = content.size(module.digest)
    with content.writer() as writer, content.path(module.digest).open("rb") as file:
        writer.write(tar.header(tar.Entry(name=name.encode(), mode=0o755, size=size)))
        while chunk := file.read(_CHUNK):
            writer.write(chunk)
        writer.write(bytes(tar.padding(size) + 2 * tar.BLOCK))
        length = writer.offset
        return Descriptor(media_type=_OCI_LAYER, digest=writer.commit(durable=False), size=length)
