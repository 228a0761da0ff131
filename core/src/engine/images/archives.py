"""Images as archives: ``docker load``, ``save`` and ``import``.

Loading takes Docker's archives (``manifest.json``, with the layers in folders or as blobs) and OCI layouts, compressed
or not. The archive is read once, as a stream: what is small is kept in memory until it is known what it is, everything
else goes to the content store as it comes. What is saved is both: an OCI layout with Docker's ``manifest.json`` in it.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from engine.content import Content
from engine.errors import EngineError, InvalidParameter, NotFound
from engine.images.artifacts import as_image, is_artifact
from engine.images.changes import apply_changes
from engine.images.inlet import receive
from engine.images.preparing import Preparing
from engine.images.records import ImageRecord, image_platform
from engine.layers import detect_compression, tar
from engine.layers.compression import CHUNK, Read, decompressor, gzip_stream
from engine.layers.tar import Entry, Stream
from engine.model.image import Descriptor
from engine.names import Reference, is_id, is_sha256, parse_reference, sha256, short_id
from engine.platforms import Platform, host_platform, normalise
from engine.timestamps import now

if TYPE_CHECKING:
    from engine.images import Images
    from engine.workers import Workers

__all__ = ["compressed", "import_", "load", "manifest", "plan", "stream"]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_INDEXES = frozenset({OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
_MANIFESTS = frozenset({OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})
_SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}

_SMALL = 256 << 10
_SMALL_TOTAL = 64 << 20
_MAX_MEMBERS = 100_000
_NAME = "io.containerd.image.name"
_REFERENCE_TYPE = "vnd.docker.reference.type"
_ATTESTATION = "attestation-manifest"
_REF_NAME = "org.opencontainers.image.ref.name"

Progress = Callable[[Mapping[str, object]], None]
_T = TypeVar("_T")


# -- load -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Archive:
    """Members by name: small ones as bytes, others as digest and size in the content store; links by target."""

    content: Content
    small: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, tuple[str, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def resolve(self, name: str) -> str:
        """The member behind a name that may be a link. Raises `InvalidParameter` when there is none."""
        found = posixpath.normpath(name).lstrip("/")
        for _ in range(16):
            if found in self.small or found in self.large:
                return found
            if found not in self.links:
                break
            found = self.links[found]
        raise InvalidParameter(f"invalid archive: {name} is missing")

    def has(self, name: str) -> bool:
        return name in self.small or name in self.large

    def read(self, name: str, limit: int = 16 << 20) -> bytes:
        member = self.resolve(name)
        return self.small[member] if member in self.small else self.content.read(self.large[member][0], limit)

    def blob(self, name: str, media_type: str) -> Descriptor:
        """The member as a blob in the content store."""
        member = self.resolve(name)
        if member in self.small:
            return self.content.put(self.small[member], media_type, durable=False)
        digest, size = self.large[member]
        return Descriptor(media_type=media_type, digest=digest, size=size)

    def has_blob(self, digest: str) -> bool:
        return is_sha256(digest) and (self.has("blobs/sha256/" + digest[7:]) or self.content.has(digest))

    def named_blob(self, digest: str, media_type: str) -> Descriptor:
        """A blob of the OCI layout, or one that is here already."""
        name = "blobs/sha256/" + digest.removeprefix("sha256:")
        if self.has(name):
            blob = self.blob(name, media_type)
            if blob.digest != digest:
                raise InvalidParameter(f"invalid archive: {name} has the digest {blob.digest}")
            return blob
        return Descriptor(media_type=media_type, digest=digest, size=self.content.size(digest))


@dataclass(slots=True)
class _Found:
    """An image in an archive."""

    config: Descriptor
    layers: list[Descriptor]
    manifest: Descriptor | None = None
    target: Descriptor | None = None
    references: list[Reference] = field(default_factory=list)


async def load(
    images: Images,
    workers: Workers,
    body: AsyncIterator[bytes],
    *,
    quiet: bool,
    platform: Platform | None,
    progress: Progress,
) -> None:
    """Record every image in the archive; messages as dockerd's. Raises `InvalidParameter` for what is no archive."""
    with images.content.lease():
        archive = _Archive(images.content)
        try:
            await receive(workers, body, lambda read: _take_in(archive, images.preparing, read))
            found = await workers.call(_images_in, archive, platform, deadline=None)
            for image in found:
                await _load_one(images, workers, image, quiet, progress)
        finally:
            for digest, _ in archive.large.values():
                await workers.call(images.preparing.drop, digest, deadline=None)


async def _load_one(images: Images, workers: Workers, image: _Found, quiet: bool, progress: Progress) -> None:
    config = await workers.call(images.config, image.config)
    if len(config.diff_ids) != len(image.layers):
        raise InvalidParameter(
            f"invalid manifest, layers length mismatch: expected {len(image.layers)}, got {len(config.diff_ids)}"
        )

    async def unpack(index: int, blob: Descriptor) -> None:
        label = short_id(config.diff_ids[index])
        if not quiet:
            progress(_bar("Loading layer", label, 0, blob.size))
        await images.unpack_layer(config.diff_ids, index, blob)
        if not quiet:
            progress(_bar("Loading layer", label, blob.size, blob.size))

    try:
        async with asyncio.TaskGroup() as group:
            for index, blob in enumerate(image.layers):
                group.create_task(unpack(index, blob))
    except* EngineError as errors:
        raise _first(errors) from None
    for reference in image.references:
        before = images.table.lookup(reference)
        same_index = before is not None and before.target is not None and before.target == image.target
        if before is not None and before.image != image.config.digest and not same_index:
            progress(
                {
                    "stream": f"The image {reference.familiar} already exists, renaming the old one with ID "
                    f"{before.image} to empty string\n"
                }
            )
    record = await images.add(
        config=image.config,
        layers=image.layers,
        manifest=image.manifest,
        references=[(reference, image.target or image.manifest) for reference in image.references],
    )
    for reference in image.references:
        progress({"stream": f"Loaded image: {reference.familiar}\n"})
    if not image.references:
        progress({"stream": f"Loaded image ID: {record.id}\n"})
    await images.event(record.id, record.id, "load")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _bar(status: str, label: str, current: int, total: int) -> dict[str, object]:
    return {"status": status, "progressDetail": {"current": current, "total": total}, "id": label}


def _take_in(archive: _Archive, preparing: Preparing, read: Read) -> None:
    """Read the whole archive; on a worker thread."""
    total = 0
    members = Stream(_decompressed(read))
    for entry in tar.entries(members):
        name = posixpath.normpath(entry.name.decode("utf-8", "surrogateescape")).lstrip("/")
        if len(archive.small) + len(archive.large) + len(archive.links) > _MAX_MEMBERS:
            raise InvalidParameter(f"invalid archive: more than {_MAX_MEMBERS} members")
        if entry.kind == tar.SYMLINK:
            target = entry.link.decode("utf-8", "surrogateescape")
            archive.links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target)).lstrip("/")
        elif entry.kind == tar.LINK:
            archive.links[name] = posixpath.normpath(entry.link.decode("utf-8", "surrogateescape")).lstrip("/")
        elif entry.kind == tar.REGULAR and entry.segments is None:
            if entry.size <= _SMALL and total + entry.size <= _SMALL_TOTAL:
                total += entry.size
                archive.small[name] = b"".join(members.parts(entry.size))
            else:
                archive.large[name] = (_store(archive.content, preparing, name, members, entry.size), entry.size)
    members.drain()


def _store(content: Content, preparing: Preparing, name: str, members: Stream, size: int) -> str:
    folder, _, base = name.rpartition("/")
    expected = f"sha256:{base}" if folder == "blobs/sha256" and is_id(base) else None
    if expected is not None and content.has(expected):
        return expected
    with content.writer(expected, size) as writer:
        writer.restart()
        head = members.read(tar.BLOCK)
        writer.write(head)
        with preparing.begin(writer, head) as name_layer:
            for part in members.parts(size - len(head)):
                writer.write(part)
            digest = writer.commit(durable=False)
            name_layer(digest)
        return digest


def _decompressed(read: Read) -> Iterator[bytes]:
    head = b""
    while len(head) < 8 and (more := read(CHUNK)):
        head += more
    if not head:
        raise InvalidParameter("invalid archive: it is empty")
    waiting = [head]

    def again(count: int) -> bytes:
        return waiting.pop() if waiting else read(count)

    return decompressor(detect_compression(head))(again)


def _images_in(archive: _Archive, platform: Platform | None) -> list[_Found]:
    found: dict[str, _Found] = {}
    if archive.has("index.json"):
        for image in _from_index(archive, platform):
            found.setdefault(image.config.digest, image).references.extend(
                reference for reference in image.references if reference not in found[image.config.digest].references
            )
    if archive.has("manifest.json"):
        for image in _from_manifest(archive):
            known = found.setdefault(image.config.digest, image)
            known.references += [reference for reference in image.references if reference not in known.references]
    elif not archive.has("index.json"):
        raise InvalidParameter("invalid archive: does not contain a manifest.json or index.json")
    if platform is not None:
        found = {key: image for key, image in found.items() if _platform_of(archive, image.config).satisfies(platform)}
        if not found:
            raise NotFound(f"the archive does not contain an image for the platform {platform}")
    return list(found.values())


def _platform_of(archive: _Archive, config: Descriptor) -> Platform:
    from engine.images.records import parse_config

    return image_platform(parse_config(archive.content.read(config.digest, 8 << 20)))


def _from_manifest(archive: _Archive) -> Iterator[_Found]:
    """Docker's ``manifest.json``."""
    document = _json(archive.read("manifest.json"), "manifest.json")
    if not isinstance(document, list):
        raise InvalidParameter("invalid archive: manifest.json is not a list")
    for item in document:
        if not isinstance(item, dict) or not isinstance(item.get("Config"), str):
            raise InvalidParameter("invalid archive: manifest.json names no config")
        config = archive.blob(item["Config"], OCI_CONFIG)
        layers = [_layer(archive, str(name)) for name in item.get("Layers") or ()]
        references = [parse_reference(str(text)).with_default_tag() for text in item.get("RepoTags") or ()]
        yield _Found(config, layers, references=references)


def _layer(archive: _Archive, name: str) -> Descriptor:
    blob = archive.blob(name, _LAYER)
    with archive.content.path(blob.digest).open("rb") as file:
        compression = detect_compression(file.read(8))
    return msgspec.structs.replace(blob, media_type=_LAYER + _SUFFIX.get(compression, ""))


def _from_index(archive: _Archive, platform: Platform | None) -> Iterator[_Found]:
    """The ``index.json`` of an OCI layout."""
    index = _document(archive.read("index.json"), "index.json")
    for top in _descriptors(index, "manifests"):
        target = archive.named_blob(top.digest, top.media_type)
        chosen = [top]
        if top.media_type in _INDEXES:
            inner = _document(archive.content.read(target.digest), top.digest)
            entries = _descriptors(inner, "manifests")
            for entry in entries:
                if archive.has_blob(entry.digest) and entry.media_type in _MANIFESTS:
                    _keep(archive, entry)
            chosen = _choose(archive, entries, platform)
        for entry in chosen:
            if entry.media_type not in _MANIFESTS:
                continue
            manifest = archive.named_blob(entry.digest, entry.media_type)
            body = _document(archive.content.read(manifest.digest), entry.digest)
            config, *_ = [*_descriptors({"config": [body.get("config")]}, "config"), None]
            layers = _descriptors(body, "layers")
            if config is None or not _is_image(body):
                continue
            if entry is not chosen[0] and not all(archive.has_blob(blob.digest) for blob in (config, *layers)):
                continue  # a platform that was left out
            config = archive.named_blob(config.digest, config.media_type)
            layers = [archive.named_blob(layer.digest, layer.media_type) for layer in layers]
            if is_artifact(config):
                config, layers = as_image(archive.content, manifest)
            yield _Found(config, layers, manifest, target, _names(top))


def _keep(archive: _Archive, entry: Descriptor) -> None:
    """A manifest belongs to its index even when it is not the image wanted; an attestation with all it consists of."""
    kept = archive.named_blob(entry.digest, entry.media_type)
    if (entry.annotations or {}).get(_REFERENCE_TYPE) != _ATTESTATION:
        return
    body = _document(archive.content.read(kept.digest), entry.digest)
    for blob in (*_descriptors({"config": [body.get("config")]}, "config"), *_descriptors(body, "layers")):
        if archive.has_blob(blob.digest):
            archive.named_blob(blob.digest, blob.media_type)


def _choose(archive: _Archive, entries: Sequence[Descriptor], platform: Platform | None) -> list[Descriptor]:
    """The images of an index to load: the one for ``platform``, else all, the best suited first."""
    here = [
        entry
        for entry in entries
        if entry.media_type in _MANIFESTS
        and archive.has_blob(entry.digest)
        and (entry.annotations or {}).get(_REFERENCE_TYPE) != _ATTESTATION
    ]
    wanted = [platform] if platform is not None else [host_platform(), Platform("wasi", "wasm")]
    for want in wanted:
        for entry in here:
            raw = entry.platform or {}
            own = normalise(str(raw.get("os", "")), str(raw.get("architecture", "")), str(raw.get("variant") or ""))
            if own.satisfies(want):
                return [entry, *(other for other in here if other is not entry and platform is None)]
    return here if platform is None else []


def _is_image(body: Mapping[str, Any]) -> bool:
    layers = body.get("layers") or ()
    return all(isinstance(layer, dict) and "in-toto" not in str(layer.get("mediaType")) for layer in layers)


def _names(descriptor: Descriptor) -> list[Reference]:
    annotations = descriptor.annotations or {}
    text = annotations.get(_NAME) or annotations.get(_REF_NAME) or ""
    if not annotations.get(_NAME) and not set(text) & set(":/"):
        return []  # a bare tag: of what is not said
    try:
        return [parse_reference(text).with_default_tag()]
    except InvalidParameter:
        return []


def _json(data: bytes, name: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"invalid archive: {name}: {error}") from None


def _document(data: bytes, name: str) -> dict[str, Any]:
    document = _json(data, name)
    if not isinstance(document, dict):
        raise InvalidParameter(f"invalid archive: {name} is not an object")
    return document


def _descriptors(document: Mapping[str, Any], key: str) -> list[Descriptor]:
    try:
        found = msgspec.convert(document.get(key) or [], type=list[Descriptor])
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"invalid archive: {key}: {error}") from None
    for descriptor in found:
        if not is_sha256(descriptor.digest):
            raise InvalidParameter(f"invalid archive: unsupported digest {descriptor.digest!r}")
    return found


# -- save -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Contents:
    """What an archive will hold: blobs of the content store by digest, and files made for it."""

    image_ids: list[str] = field(default_factory=list)
    blobs: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def plan(images: Images, references: Sequence[str], platform: Platform | None = None) -> Contents:
    """Find everything ``references`` name. Raises `NotFound` for a missing image or blob."""
    wanted: dict[str, list[Reference]] = {}
    for text in references:
        for record, names in _named(images, text, platform):
            wanted.setdefault(record.id, []).extend(name for name in names if name not in wanted[record.id])
    contents = Contents()
    index: list[dict[str, Any]] = []
    docker: list[dict[str, Any]] = []
    repositories: dict[str, dict[str, str]] = {}
    for image_id, names in wanted.items():
        record = images.table.images[image_id]
        contents.image_ids.append(image_id)
        for blob in (record.config_blob, *record.layers):
            contents.blobs[blob.digest] = images.content.size(blob.digest)
        descriptor = _manifest_of(images, record, contents)
        entry = msgspec.to_builtins(descriptor)
        if not names:
            index.append(entry)
        for name in names:
            whole = _whole_index(images, name, contents) if platform is None else None
            entry = msgspec.to_builtins(whole or descriptor)
            index.append({**entry, "annotations": {_NAME: str(name), _REF_NAME: name.tag or ""}})
            top = record.layers[-1].digest if record.layers else record.id
            repositories.setdefault(name.familiar_name, {})[name.tag or ""] = top[7:]
        docker.append(
            {
                "Config": _blob_path(record.config_blob.digest),
                "RepoTags": [name.familiar for name in names] or None,
                "Layers": [_blob_path(blob.digest) for blob in record.layers],
            }
        )
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index}
    contents.files["index.json"] = msgspec.json.encode(body)
    contents.files["manifest.json"] = msgspec.json.encode(docker)
    contents.files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    if repositories:
        contents.files["repositories"] = msgspec.json.encode(repositories)
    return contents


def _named(images: Images, text: str, platform: Platform | None) -> list[tuple[ImageRecord, list[Reference]]]:
    """The images a name stands for: a repository without a tag stands for all of its tags."""
    try:
        wanted = parse_reference(text)
    except InvalidParameter:
        return [(images.table.find(text, platform), [])]
    if wanted.tag is None and wanted.digest is None:
        tags = [parse_reference(key) for key in images.references(wanted.name)]
        found = [(images.table.find(str(tag), platform), [tag]) for tag in tags if tag.tag]
        if found:
            return found
    record = images.table.find(text, platform)
    is_tag = wanted.tag is not None and not wanted.digest and images.table.lookup(wanted) is not None
    return [(record, [wanted] if is_tag else [])]


def _whole_index(images: Images, name: Reference, contents: Contents) -> Descriptor | None:
    """The index a name stands for, when all of it is here; it is then part of the archive."""
    found = images.table.lookup(name)
    target = found.target if found is not None else None
    if target is None or target.media_type not in _INDEXES:
        return None
    return _whole(images, target, contents)


def _whole(images: Images, target: Descriptor, contents: Contents) -> Descriptor | None:
    """A manifest or index with all that it consists of; None when some of it is missing."""
    blobs: dict[str, int] = {}
    pending = [target]
    while pending:
        blob = pending.pop()
        if not images.content.has(blob.digest):
            return None
        blobs[blob.digest] = blob.size
        if blob.media_type in _INDEXES | _MANIFESTS:
            body = _document(images.content.read(blob.digest), blob.digest)
            children = {"all": [body.get("config"), *(body.get("layers") or ()), *(body.get("manifests") or ())]}
            children["all"] = [child for child in children["all"] if child]
            pending += [child for child in _descriptors(children, "all") if child.digest not in blobs]
    contents.blobs.update(blobs)
    return Descriptor(media_type=target.media_type, digest=target.digest, size=target.size)


def _manifest_of(images: Images, record: ImageRecord, contents: Contents) -> Descriptor:
    own = record.manifest
    if own is not None and images.content.has(own.digest):
        contents.blobs[own.digest] = own.size
        whole = _whole(images, own, contents)  # of an artifact more than the layers made of it
        return whole or Descriptor(media_type=own.media_type, digest=own.digest, size=own.size)
    raw = manifest(msgspec.structs.replace(record.config_blob, media_type=OCI_CONFIG), record.layers)
    digest = sha256(raw)
    contents.files[_blob_path(digest)] = raw
    return Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(raw))


def manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """An OCI manifest; the same image always gives the same bytes."""
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": config.media_type, "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": one.media_type, "digest": one.digest, "size": one.size} for one in layers],
    }
    return msgspec.json.encode(body)


def _blob_path(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


async def stream(content: Content, workers: Workers, contents: Contents) -> AsyncIterator[bytes]:
    """The archive, in chunks. The blobs stay until it is complete."""
    with content.lease():
        for digest in contents.blobs:
            content.path(digest)
        parts = _parts(content, contents)
        while chunk := await workers.call(next, parts, b"", deadline=None):
            yield chunk


def _parts(content: Content, contents: Contents) -> Iterator[bytes]:
    for folder in (b"blobs/", b"blobs/sha256/"):
        yield tar.header(Entry(name=folder, kind=tar.DIRECTORY, mode=0o755))
    members = sorted([_blob_path(digest) for digest in contents.blobs] + list(contents.files))
    for name in members:
        if name in contents.files:
            data = contents.files[name]
            header = tar.header(Entry(name=name.encode(), size=len(data)))
            yield header + data + bytes(tar.padding(len(data)))
            continue
        digest = "sha256:" + name.rpartition("/")[2]
        size = contents.blobs[digest]
        yield tar.header(Entry(name=name.encode(), size=size))
        with content.path(digest).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
        if pad := tar.padding(size):
            yield bytes(pad)
    yield bytes(2 * tar.BLOCK)


def compressed(content: Content, blob: Descriptor) -> Descriptor:
    """The layer as a compressed blob: itself when it is one, else its gzip, made once and kept."""
    with content.path(blob.digest).open("rb") as file:
        compression = detect_compression(file.read(8))
        if compression != "none":
            return msgspec.structs.replace(blob, media_type=_LAYER + _SUFFIX.get(compression, ""))
        file.seek(0)
        with content.writer() as writer:
            for chunk in gzip_stream(file.read):
                writer.write(chunk)
            size = writer.offset
            return Descriptor(media_type=_LAYER + "+gzip", digest=writer.commit(), size=size)


# -- import ---------------------------------------------------------------------------------------------------


async def import_(
    images: Images,
    workers: Workers,
    body: AsyncIterator[bytes],
    *,
    repository: str,
    tag: str,
    message: str,
    changes: Sequence[str],
    platform: Platform | None,
) -> str:
    """Make an image with one layer of a root file system's tar (any compression); returns its id."""
    reference = None
    if repository:
        reference = parse_reference(repository)
        if reference.digest:
            raise InvalidParameter("cannot import digest reference")
        if tag:
            reference = parse_reference(f"{reference.name}:{tag}")
        reference = reference.with_default_tag()
    container_config = apply_changes({}, changes)
    target = platform or host_platform()
    with images.content.lease():
        layer = await receive(workers, body, lambda read: _plain_layer(images.content, images.preparing, read))
        try:
            await images.unpack_layer([layer.digest], 0, layer)
        finally:
            await workers.call(images.preparing.drop, layer.digest, deadline=None)
        created = now()
        document: dict[str, Any] = {
            "architecture": target.architecture,
            **({"variant": target.variant} if target.variant else {}),
            "comment": message,
            "config": container_config,
            "created": created,
            "history": [{"created": created, "comment": message}],
            "os": target.os,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        }
        config = await workers.call(images.content.put, msgspec.json.encode(document), OCI_CONFIG)
        references = [(reference, None)] if reference is not None else []
        image = await images.add(config=config, layers=[layer], manifest=None, references=references)
    await images.event(image.id, reference.familiar if reference else image.id, "import")
    return image.id


def _plain_layer(content: Content, preparing: Preparing, read: Read) -> Descriptor:
    plain = Stream(_decompressed(read))
    with content.writer() as writer:
        head = plain.read(tar.BLOCK)
        writer.write(head)
        with preparing.begin(writer, head) as name_layer:
            for part in plain.rest():
                writer.write(part)
            size = writer.offset
            digest = writer.commit(durable=False)
            name_layer(digest)
        return Descriptor(media_type=_LAYER, digest=digest, size=size)
