"""Manifests and indexes as registries serve them: checked, typed, and the choice of a platform among them.

Accepted are OCI image manifests and indexes and Docker's schema 2 manifests and lists. A document that could be read
as both a manifest and an index is refused (CVE-2021-41190).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.errors import InvalidParameter, NotFound, NotSupported
from engine.model.image import Descriptor
from engine.names import is_sha256, sha256
from engine.platforms import Platform, normalise

__all__ = [
    "ACCEPT",
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_LAYER_GZIP",
    "DOCKER_MANIFEST",
    "MANIFEST_LIMIT",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_MANIFEST",
    "Manifest",
    "check_digest",
    "choose",
    "compression",
    "parse",
]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_SCHEMA1 = frozenset(f"application/vnd.docker.distribution.manifest.v1+{form}" for form in ("json", "prettyjws"))
_MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})

ACCEPT = ", ".join([OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST])
MANIFEST_LIMIT = 4 * 1024 * 1024
_MAX_LAYERS = 127 * 4
_MAX_ENTRIES = 10_000

_COMPRESSIONS = {
    OCI_LAYER: "none",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    DOCKER_LAYER_GZIP: "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None
    fs_layers: list[Any] | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest (``config`` and ``layers``) or an index (``manifests``), with the exact bytes the digest is of."""

    descriptor: Descriptor
    raw: bytes
    config: Descriptor | None = None
    layers: Sequence[Descriptor] = ()
    manifests: Sequence[Descriptor] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_index(self) -> bool:
        """Whether this lists manifests for platforms instead of layers."""
        return self.config is None

    @property
    def children(self) -> list[Descriptor]:
        """Everything the document names: config and layers, or manifests."""
        return [*([self.config] if self.config else []), *self.layers, *self.manifests]


def parse(raw: bytes, media_type: str = "", digest: str = "") -> Manifest:
    """Read a manifest or index and check that it is one thing only.

    ``media_type`` is what the registry says it is ('' when it does not say), ``digest`` what it must hash to.
    """
    if len(raw) > MANIFEST_LIMIT:
        raise InvalidParameter(f"manifest is larger than {MANIFEST_LIMIT} bytes")
    if digest:
        check_digest(raw, digest)
    said = media_type.partition(";")[0].strip().lower()
    try:
        document = msgspec.json.decode(raw, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"failed to decode manifest: {error}") from error
    if said in _SCHEMA1 or document.schema_version == 1 or document.fs_layers is not None:
        raise NotSupported(
            "Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed; "
            "push the image again with a current client"
        )
    kinds = _MANIFESTS | _INDEXES
    kind = document.media_type or (said if said in kinds else "")
    if not kind:
        kind = OCI_INDEX if document.manifests is not None else OCI_MANIFEST
    if kind not in kinds:
        raise NotSupported(f'unsupported manifest media type: "{kind}"')
    if said in kinds and said != kind:
        raise InvalidParameter(f'mediaType in manifest should be "{said}" not "{kind}"')
    descriptor = Descriptor(media_type=kind, digest=digest or sha256(raw), size=len(raw))
    annotations = document.annotations or {}
    if kind in _INDEXES:
        if document.config is not None or document.layers is not None:
            raise InvalidParameter("index: expected index but found manifest: it has config or layers")
        entries = [_checked(entry) for entry in document.manifests or []]
        if len(entries) > _MAX_ENTRIES:
            raise InvalidParameter(f"index has more than {_MAX_ENTRIES} entries")
        return Manifest(descriptor=descriptor, raw=raw, manifests=entries, annotations=annotations)
    if document.manifests is not None:
        raise InvalidParameter("manifest: expected manifest but found index: it has manifests")
    if document.config is None:
        raise InvalidParameter("manifest has no config")
    layers = [_checked(layer) for layer in document.layers or []]
    if len(layers) > _MAX_LAYERS:
        raise InvalidParameter(f"manifest has more than {_MAX_LAYERS} layers")
    return Manifest(
        descriptor=descriptor, raw=raw, config=_checked(document.config), layers=layers, annotations=annotations
    )


def check_digest(raw: bytes, digest: str) -> None:
    """Raise `InvalidParameter` unless ``raw`` hashes to ``digest``."""
    algorithm, _, expected = digest.partition(":")
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise InvalidParameter("unsupported digest algorithm")
    if hashlib.new(algorithm, raw).hexdigest() != expected:
        raise InvalidParameter(f"manifest verification failed for digest {digest}")


def _checked(descriptor: Descriptor) -> Descriptor:
    if not is_sha256(descriptor.digest):
        raise InvalidParameter(f"invalid or unsupported digest in manifest: {descriptor.digest[:80]!r}")
    if descriptor.size < 0:
        raise InvalidParameter(f"invalid size of {descriptor.digest} in manifest")
    return descriptor


def compression(layer: Descriptor) -> str:
    """How a layer is compressed: ``none``, ``gzip`` or ``zstd``. Foreign layers and unknown types are refused."""
    kind = layer.media_type
    if "foreign" in kind:
        raise NotSupported(
            f"layer {layer.digest} is a foreign layer ({kind}): it lives outside the registry and is not fetched"
        )
    kind = kind.replace("nondistributable.v1.", "v1.")
    if kind not in _COMPRESSIONS:
        raise NotSupported(f'unsupported layer media type: "{layer.media_type}"')
    return _COMPRESSIONS[kind]


def choose(index: Manifest, wanted: Sequence[Platform]) -> Descriptor:
    """The entry of an index for the first of the ``wanted`` platforms it has; exact variants before looser matches.

    Raises `NotFound` in containerd's words.
    """
    for platform in wanted:
        best: tuple[int, Descriptor] | None = None
        for entry in index.manifests:
            has = _platform(entry)
            if has is None or not has.satisfies(platform):
                continue
            rank = 0 if has == platform else 1
            if best is None or rank < best[0]:
                best = rank, entry
        if best:
            return best[1]
    raise NotFound(
        f"no matching manifest for {wanted[0]} in the manifest list entries: "
        "no match for platform in manifest: not found"
    )


def _platform(entry: Descriptor) -> Platform | None:
    """The platform an index entry says it is for; None for attestations and for entries that do not say."""
    fields = entry.platform or {}
    values = [fields.get(key, "") for key in ("os", "architecture", "variant")]
    if not all(isinstance(value, str) for value in values) or not all(values[:2]) or "unknown" in values[:2]:
        return None
    return normalise(*values)
