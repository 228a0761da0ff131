"""What a name stands for, manifest by manifest: the platforms of an index, its attestations, and what of it is here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from engine.content import Content
from engine.errors import EngineError
from engine.images.records import ImageRecord
from engine.model.image import Descriptor
from engine.platforms import parse_platform

if TYPE_CHECKING:
    from engine.images import Images

__all__ = ["summaries"]

_REFERENCE_TYPE = "vnd.docker.reference.type"
_REFERENCE_DIGEST = "vnd.docker.reference.digest"


def summaries(images: Images, reference: str) -> list[dict[str, Any]]:
    """``Manifests`` of the image ``reference``, as API 1.47 has it; one entry for an image without an index."""
    record = images.table.find(reference)
    family = {one.manifest.digest: one for one in (record, *images.table.companions(record.id)) if one.manifest}
    target = images.target(reference)
    entries = _entries(images.content, target) if target is not None else None
    if entries is None:
        entries = [record.manifest] if record.manifest is not None else []
    return [_summary(images, entry, family.get(entry.digest)) for entry in entries]


def _entries(content: Content, target: Descriptor) -> list[Descriptor] | None:
    """The manifests of an index; None when the target is none, or not here."""
    listed = _document(content, target.digest).get("manifests")
    return None if listed is None else msgspec.convert(listed, type=list[Descriptor])


def _document(content: Content, digest: str) -> Mapping[str, Any]:
    try:
        document = msgspec.json.decode(content.read(digest))
    except (EngineError, msgspec.DecodeError):
        return {}
    return document if isinstance(document, dict) else {}


def _summary(images: Images, entry: Descriptor, record: ImageRecord | None) -> dict[str, Any]:
    content = images.content
    body = _document(content, entry.digest) if content.has(entry.digest) else {}
    children = [item for item in (body.get("config"), *(body.get("layers") or ())) if isinstance(item, dict)]
    here = [int(item.get("size", 0)) for item in children if content.has(str(item.get("digest")))]
    size = sum(here) + (entry.size if body else 0)
    annotations = entry.annotations or {}
    shown: dict[str, Any] = {
        "ID": entry.digest,
        "Descriptor": msgspec.to_builtins(entry),
        "Available": bool(body) and len(here) == len(children),
        "Size": {"Content": size, "Total": size + (record.size if record else 0)},
    }
    if annotations.get(_REFERENCE_TYPE) == "attestation-manifest":
        return {**shown, "Kind": "attestation", "AttestationData": {"For": annotations.get(_REFERENCE_DIGEST, "")}}
    platform = entry.platform
    if platform is None and record is not None:
        own = parse_platform(record.platform)
        platform = {"architecture": own.architecture, "os": own.os}
        if own.variant:
            platform["variant"] = own.variant
    if not platform:
        return {**shown, "Kind": "unknown"}
    containers = [user.id for user in images.users(record.id)] if record else []
    unpacked = {"Unpacked": record.size if record else 0}
    return {**shown, "Kind": "image", "ImageData": {"Platform": platform, "Containers": containers, "Size": unpacked}}
