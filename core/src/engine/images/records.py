"""What the engine remembers of images: records, references that point at them, and how users' names are resolved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from engine import names
from engine.errors import InvalidParameter, NotFound
from engine.model.image import Descriptor, Image, ImageConfig
from engine.names import Reference, parse_reference
from engine.platforms import Platform, normalise, parse_platform
from engine.store import Change, Delete, Put

__all__ = ["IMAGE", "LAYER", "REFERENCE", "ImageRecord", "ImageTable", "LayerRecord", "ReferenceRecord", "parse_config"]

IMAGE = "image"
REFERENCE = "reference"
LAYER = "layer"

_HEX = frozenset("0123456789abcdef")
MAX_LAYERS = 500  # what overlayfs can stack
_CONFIG_LIMIT = 8 << 20


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One image for one platform. ``layers`` are its blobs as they are in the content store, lowest first; ``tagged``
    is when it was last tagged."""

    id: str
    config_blob: Descriptor
    layers: list[Descriptor]
    config: ImageConfig
    platform: str
    chain_id: str | None
    size: int
    manifest: Descriptor | None = None
    parent: str = ""
    tagged: str = ""


class ReferenceRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a reference names: an image, and the index or manifest it was pulled by or pushed as; of an index also the
    images for other platforms that are here."""

    image: str
    target: Descriptor | None = None
    others: list[str] = []


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An unpacked layer that an image or a root file system needs."""

    parent: str | None
    diff_id: str
    size: int


class _RootFs(msgspec.Struct):
    type: str = "layers"
    diff_ids: list[str] | None = None


class _RawConfig(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    config: dict[str, Any] | None = None
    rootfs: _RootFs | None = None
    history: list[dict[str, Any]] | None = None


def parse_config(data: bytes) -> ImageConfig:
    """Parse a config blob. Raises `InvalidParameter` for one that describes no image."""
    if len(data) > _CONFIG_LIMIT:
        raise InvalidParameter(f"image config of {len(data)} bytes is too large")
    try:
        raw = msgspec.json.decode(data, type=_RawConfig)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"invalid image config: {error}") from None
    if raw.rootfs is None or raw.rootfs.type != "layers":
        raise InvalidParameter("invalid image JSON, no RootFS key")
    diff_ids = raw.rootfs.diff_ids or []
    for diff_id in diff_ids:
        if not names.is_sha256(diff_id):
            raise InvalidParameter(f"invalid image config: invalid diff id {diff_id!r}")
    if len(diff_ids) > MAX_LAYERS:
        raise InvalidParameter(f"image has {len(diff_ids)} layers, more than the {MAX_LAYERS} that can be stacked")
    return ImageConfig(
        architecture=raw.architecture,
        os=raw.os,
        variant=raw.variant or "",
        created=raw.created or "",
        author=raw.author or "",
        config=raw.config or {},
        diff_ids=diff_ids,
        history=raw.history or [],
    )


class ImageTable:
    """All records in memory, as loaded and as committed; no I/O. Only the event loop's thread changes it."""

    def __init__(self) -> None:
        self.images: dict[str, ImageRecord] = {}
        self.references: dict[str, ReferenceRecord] = {}
        self.layers: dict[str, LayerRecord] = {}
        self._by_image: dict[str, dict[str, Reference]] = {}

    def load(self, images: Mapping[str, bytes], references: Mapping[str, bytes], layers: Mapping[str, bytes]) -> None:
        """Take over what the store holds."""
        self.images = {key: msgspec.json.decode(body, type=ImageRecord) for key, body in images.items()}
        self.layers = {key: msgspec.json.decode(body, type=LayerRecord) for key, body in layers.items()}
        for key, body in references.items():
            self._point(key, msgspec.json.decode(body, type=ReferenceRecord))

    # -- changes: built here, committed by the caller, then applied -------------------------------------------

    def apply(self, changes: Iterable[Change]) -> None:
        """Take over committed changes."""
        for change in changes:
            if isinstance(change, Put) and change.kind == IMAGE:
                self.images[change.id] = msgspec.json.decode(change.body, type=ImageRecord)
            elif isinstance(change, Put) and change.kind == LAYER:
                self.layers[change.id] = msgspec.json.decode(change.body, type=LayerRecord)
            elif isinstance(change, Put) and change.kind == REFERENCE:
                self._unpoint(change.id)
                self._point(change.id, msgspec.json.decode(change.body, type=ReferenceRecord))
            elif isinstance(change, Delete) and change.kind == IMAGE:
                self.images.pop(change.id, None)
            elif isinstance(change, Delete) and change.kind == LAYER:
                self.layers.pop(change.id, None)
            elif isinstance(change, Delete) and change.kind == REFERENCE:
                self._unpoint(change.id)

    def _point(self, key: str, record: ReferenceRecord) -> None:
        self.references[key] = record
        reference = parse_reference(key)
        for image in (record.image, *record.others):
            self._by_image.setdefault(image, {})[key] = reference

    def _unpoint(self, key: str) -> None:
        record = self.references.pop(key, None)
        for image in (record.image, *record.others) if record is not None else ():
            held = self._by_image[image]
            del held[key]
            if not held:
                del self._by_image[image]

    # -- reading ----------------------------------------------------------------------------------------------

    def references_of(self, image_id: str) -> list[Reference]:
        """All references to an image, sorted as dockerd shows them."""
        return [reference for _, reference in sorted(self._by_image.get(image_id, {}).items())]

    def is_other(self, image_id: str) -> bool:
        """Whether an image has names, but each of them stands for the image of a better suited platform."""
        keys = self._by_image.get(image_id)
        return keys is not None and all(self.references[key].image != image_id for key in keys)

    def companions(self, image_id: str) -> list[ImageRecord]:
        """The images that share a name with this one: the same for other platforms."""
        found = {
            image: None
            for key in self._by_image.get(image_id, {})
            for image in (self.references[key].image, *self.references[key].others)
        }
        return [self.images[image] for image in found if image != image_id and image in self.images]

    def same_target(self, target: Descriptor) -> list[str]:
        """The references that name an index or manifest."""
        return [key for key, known in self.references.items() if known.target and known.target.digest == target.digest]

    def image(self, record: ImageRecord) -> Image:
        """The value given out for a record."""
        references = self.references_of(record.id)
        return Image(
            id=record.id,
            config=record.config,
            platform=record.platform,
            chain_id=record.chain_id,
            size=record.size,
            manifest=record.manifest,
            repo_tags=[reference.familiar for reference in references if not reference.digest],
            repo_digests=[reference.familiar for reference in references if reference.digest],
        )

    def find(self, text: str, platform: Platform | None = None) -> ImageRecord:
        """By name, tag, digest, id or unique beginning of an id, in dockerd's order.

        Raises `NotFound` (``No such image: x:latest``), `InvalidParameter` for what cannot be a reference.
        """
        record = self._find(text)
        if platform is not None and not parse_platform(record.platform).satisfies(platform):
            # the name, not the id, of an index stands for all its platforms
            others = [] if self.is_id(text, record.id) else self.companions(record.id)
            record = next((one for one in others if parse_platform(one.platform).satisfies(platform)), record)
        if platform is not None and not parse_platform(record.platform).satisfies(platform):
            raise NotFound(
                f"image with reference {text} was found but its platform ({record.platform}) does not match the"
                f" specified platform ({platform})"
            )
        return record

    def _find(self, text: str) -> ImageRecord:
        bare = text.removeprefix("sha256:")
        if names.is_id(bare):
            if (record := self.images.get("sha256:" + bare)) is not None:
                return record
            raise NotFound(f"No such image: sha256:{bare}")
        prefix = self._by_prefix(bare) if text.startswith("sha256:") else None
        if prefix is not None:
            return prefix
        reference = parse_reference(text)
        if (found := self.lookup(reference)) is not None:
            return self.images[found.image]
        prefix = self._by_prefix(text)
        if prefix is not None:
            return prefix
        raise NotFound(f"No such image: {reference.with_default_tag().familiar}")

    def lookup(self, reference: Reference) -> ReferenceRecord | None:
        """What a reference points at; a digest wins over a tag."""
        key = reference.with_digest(reference.digest) if reference.digest else reference.with_default_tag()
        return self.references.get(str(key))

    def _by_prefix(self, text: str) -> ImageRecord | None:
        if not text or len(text) > names.ID_LENGTH or not set(text) <= _HEX:
            return None
        found = names.find_by_prefix("sha256:" + text, self.images)
        return None if found is None else self.images[found]

    def is_id(self, text: str, image_id: str) -> bool:
        """Whether ``text`` names the image by (the beginning of) its id, not by a reference."""
        return image_id.startswith(text) or image_id.removeprefix("sha256:").startswith(text)

    def children(self, image_id: str) -> list[str]:
        """Images built on this one here."""
        return [record.id for record in self.images.values() if record.parent == image_id]

    def children_first(self) -> list[ImageRecord]:
        """All images, each before the one it was built on (which cannot be removed before it)."""
        ordered: dict[str, ImageRecord] = {}
        for record in self.images.values():
            line: ImageRecord | None = record
            while line is not None:
                ordered.pop(line.id, None)  # once more, behind the child
                ordered[line.id] = line
                line = self.images.get(line.parent)
        return list(ordered.values())

    def chain(self, top: str | None) -> Iterator[str]:
        """The chain ids below and including ``top``, uppermost first."""
        while top is not None:
            yield top
            layer = self.layers.get(top)
            top = layer.parent if layer is not None else None


def image_platform(config: ImageConfig) -> Platform:
    """The platform an image says it is for."""
    return normalise(config.os or "linux", config.architecture or "amd64", config.variant)
