"""Pull and push: what moves between registries and the content store, and what the user sees of it.

Bytes are moved on worker threads, several layers at a time and each of them once, however many pulls want it;
layers are unpacked while others still download. Everything fetched is held by a content lease until the image that
names it is recorded, which is the last thing a pull does: one that fails leaves no image, and no more than a verified
blob or a partial download that the next pull goes on with.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engine.errors import EngineError, InvalidParameter, NotFound, NotSupported
from engine.images.artifacts import as_image, is_artifact
from engine.layers.tar import BLOCK
from engine.model.image import Descriptor
from engine.names import Reference, parse_reference, sha256, short_id
from engine.platforms import Platform, host_platform, normalise
from engine.registry.auth import ANONYMOUS, RegistryAuth
from engine.registry.client import Registries, Repository
from engine.registry.endpoints import RegistryOptions
from engine.registry.errors import Cancelled, RegistryError, not_found
from engine.registry.manifests import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    MANIFEST_LIMIT,
    OCI_CONFIG,
    OCI_INDEX,
    Manifest,
    choose,
    compression,
    parse,
)
from engine.registry.progress import Bar, Progress, aux, message
from engine.registry.transport import Cancel, Response

if TYPE_CHECKING:
    from engine.content import Content, Writer
    from engine.hookspecs import Hooks
    from engine.images.preparing import Preparing
    from engine.model.image import Image, ImageConfig
    from engine.workers import Workers

__all__ = ["Records", "Transfers"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CONFIG_TYPES = frozenset({DOCKER_CONFIG, OCI_CONFIG})
_INDEX_TYPES = frozenset({DOCKER_INDEX, OCI_INDEX})
_USER_AGENT = "engine/0.1.0 (containers; python)"
_CURRENT = "Image is up to date"
_WASI = Platform("wasi", "wasm")


class _Unverified(Exception):
    """What came is not what its digest says."""


class Pushable(Protocol):
    """What `Records.pushable` gives: an image all of whose content is in the content store."""

    @property
    def image(self) -> Image: ...
    @property
    def manifest(self) -> Descriptor: ...
    @property
    def config(self) -> Descriptor: ...
    @property
    def layers(self) -> Sequence[Descriptor]: ...


class Records(Protocol):
    """The part of `engine.images.Images` that transfers work with; see specs/design/services.md."""

    content: Content

    @property
    def preparing(self) -> Preparing:
        """Layers that are unpacked while they arrive."""
        ...

    def config(self, descriptor: Descriptor) -> ImageConfig:
        """The parsed config blob."""
        ...

    async def unpack_layer(self, diff_ids: Sequence[str], index: int, blob: Descriptor) -> None:
        """Unpack a blob that is in content, unless its chain exists."""
        ...

    async def add(
        self,
        *,
        config: Descriptor,
        layers: Sequence[Descriptor],
        manifest: Descriptor | None,
        references: Sequence[tuple[Reference, Descriptor | None]] = (),
    ) -> Image:
        """Record an image and its references."""
        ...

    async def add_references(self, image_id: str, references: Sequence[tuple[Reference, Descriptor | None]]) -> None:
        """Point references at a recorded image."""
        ...

    def target(self, reference: str) -> Descriptor | None:
        """The index or manifest a reference names."""
        ...

    def references(self, name: str) -> list[str]:
        """All references of a repository, ``name`` with its registry."""
        ...

    async def pushable(self, reference: str, platform: Platform | None = None) -> Pushable:
        """An image with all content a push needs."""
        ...

    async def collect(self) -> None:
        """Give back the space of content nothing needs."""
        ...

    async def event(self, actor: str, name: str, action: str, image_id: str | None = None) -> None:
        """Publish an image event."""
        ...


class Settings(Protocol):
    """The settings that are about registries, as `engine.config.Config` has them."""

    @property
    def registry_mirrors(self) -> Sequence[str]: ...
    @property
    def insecure_registries(self) -> Sequence[str]: ...
    @property
    def max_concurrent_downloads(self) -> int: ...
    @property
    def max_concurrent_uploads(self) -> int: ...
    @property
    def max_download_attempts(self) -> int: ...

    def proxy(self, name: str) -> str:
        """``http-proxy``, ``https-proxy`` or ``no-proxy``."""
        ...


def _registry_options(settings: Settings) -> RegistryOptions:
    return RegistryOptions(
        mirrors=tuple(settings.registry_mirrors),
        insecure=tuple(settings.insecure_registries),
        attempts=settings.max_download_attempts,
        http_proxy=settings.proxy("http-proxy"),
        https_proxy=settings.proxy("https-proxy"),
        no_proxy=settings.proxy("no-proxy"),
    )


@dataclass(slots=True)
class _Flight:
    """One blob being downloaded, for everybody who wants it."""

    task: asyncio.Task[Exception | None]
    bars: list[Bar]


class Transfers:
    """Pulls and pushes of one daemon: the registry client, and the downloads that concurrent pulls share."""

    def __init__(
        self,
        records: Records,
        workers: Workers,
        hooks: Hooks,
        settings: Settings,
        registries: Registries | None = None,
    ) -> None:
        self._records = records
        self._content = records.content
        self._workers = workers
        self._hooks = hooks
        self._registries = registries or Registries(_registry_options(settings), user_agent=_USER_AGENT)
        self._downloads = asyncio.Semaphore(settings.max_concurrent_downloads)
        self._uploads = asyncio.Semaphore(settings.max_concurrent_uploads)
        self._flights: dict[str, _Flight] = {}

    async def close(self) -> None:
        """Close idle connections to registries."""
        await self._workers.call(self._registries.close)

    async def login(self, auth: RegistryAuth) -> str:
        """Check credentials with their registry; the identity token or ''. `Unauthorized` when they are wrong."""
        return await self._workers.call(self._registries.login, auth)

    async def search(self, term: str, limit: int, auth: RegistryAuth | None = None) -> list[Mapping[str, Any]]:
        """Repositories of Docker Hub, or of the registry ``term`` names, that match."""
        from engine.registry.search import search

        return await self._workers.call(search, self._registries, term, limit, auth or ANONYMOUS)

    async def describe(self, reference: str, auth: RegistryAuth | None = None) -> dict[str, object]:
        """What the registry has under a name: Docker's DistributionInspect body. Nothing is stored."""
        import msgspec

        wanted = parse_reference(reference).with_default_tag()
        repository, found = await self._workers.call(
            self._on_some_endpoint,
            wanted,
            auth or ANONYMOUS,
            Cancel(),
            lambda repository: repository.manifest(wanted.digest or wanted.tag or ""),
        )
        if found.is_index:
            platforms = [entry.platform for entry in found.manifests if entry.platform]
        else:
            platforms = await self._workers.call(_config_platform, repository, found)
        return {"Descriptor": msgspec.to_builtins(found.descriptor), "Platforms": platforms}

    async def open_url(self, url: str, progress: Progress) -> AsyncIterator[bytes]:
        """The bytes at an http(s) URL (``docker import URL``), said to be downloading; the scheme may be left out."""
        place = url if "://" in url else f"http://{url}"
        response = await self._workers.call(self._registries.get, place, deadline=None)
        progress(message(f"Downloading from {place}"))
        return self._read(response)

    async def _read(self, response: Response) -> AsyncIterator[bytes]:
        pieces = response.chunks()
        try:
            while piece := await self._workers.call(next, pieces, b""):
                yield piece
        finally:
            response.close()

    # -- pull --------------------------------------------------------------------------------------------------

    async def pull(
        self,
        reference: str,
        *,
        platform: Platform | None = None,
        all_tags: bool = False,
        auth: RegistryAuth | None = None,
        progress: Progress,
    ) -> None:
        """Bring an image (or, with ``all_tags``, every tag of a repository) here and tag it.

        Errors before the first message are about the reference or the registry's manifest, in dockerd's words. A
        caller that is cancelled stops the transfer within a second; what is complete or resumable is kept.
        """
        wanted = parse_reference(reference)
        if all_tags and (wanted.tag or wanted.digest):
            raise InvalidParameter("tag can't be used with --all-tags/-a")
        cancel = Cancel()
        await self._cancellable(cancel, self._pull(wanted, platform, all_tags, auth or ANONYMOUS, progress, cancel))

    async def _pull(
        self,
        wanted: Reference,
        platform: Platform | None,
        all_tags: bool,
        auth: RegistryAuth,
        progress: Progress,
        cancel: Cancel,
    ) -> None:
        if not all_tags:
            one = wanted.with_default_tag()
            status = (
                "Downloaded newer image" if await self._pull_one(one, platform, auth, progress, cancel) else _CURRENT
            )
            progress(message(f"Status: {status} for {one.familiar}"))
            return
        tags = await self._workers.call(self._tags, wanted, auth, cancel, deadline=None)
        newer = False
        for tag in tags:
            newer = await self._pull_one(replace(wanted, tag=tag), platform, auth, progress, cancel) or newer
        progress(message(f"Status: {'Downloaded newer image' if newer else _CURRENT} for {wanted.familiar_name}"))

    def _tags(self, wanted: Reference, auth: RegistryAuth, cancel: Cancel) -> list[str]:
        return self._on_some_endpoint(wanted, auth, cancel, lambda repository: repository.tags())[1]

    async def _pull_one(
        self, wanted: Reference, platform: Platform | None, auth: RegistryAuth, progress: Progress, cancel: Cancel
    ) -> bool:
        """Pull one tag or digest; whether that changed what is here.

        After trouble with the network what was downloaded is kept for the next try; after any other failure (a full
        disk, a layer that cannot be unpacked) the next try would fail alike, so the space is given back.
        """
        try:
            return await self._bring(wanted, platform, auth, progress, cancel)
        except EngineError as error:
            if not isinstance(error, RegistryError | Cancelled):
                await self._records.collect()
            raise

    async def _bring(
        self, wanted: Reference, platform: Platform | None, auth: RegistryAuth, progress: Progress, cancel: Cancel
    ) -> bool:
        with self._content.lease(), _disk_errors(wanted):
            before = self._target(wanted)
            repository, target = await self._workers.call(self._resolve, wanted, before, auth, cancel, deadline=None)
            await self._verify(wanted, target.descriptor)
            progress(message(f"Pulling from {wanted.path}", wanted.digest or wanted.tag or ""))
            manifest = await self._for_platform(repository, target, platform)
            assert manifest.config is not None, "an index was resolved to a manifest"
            if is_artifact(manifest.config):
                await self._workers.call(self._fetch_small, repository, manifest.config, deadline=None)
                config_blob, layers = await self._fetch_artifact(repository, manifest, progress)
            else:
                config = await self._fetch_config(repository, manifest, platform, wanted, progress)
                await self._fetch_layers(repository, manifest, config, progress)
                config_blob, layers = manifest.config, list(manifest.layers)
            progress(message(f"Digest: {target.descriptor.digest}"))
            known = wanted.with_digest(target.descriptor.digest)
            references = [(known, target.descriptor)]
            if not wanted.digest:
                references.insert(0, (wanted, target.descriptor))
            image = await self._records.add(
                config=config_blob,
                layers=layers,
                manifest=manifest.descriptor,
                references=references,
            )
        await self._records.event(wanted.familiar, wanted.familiar_name, "pull", image.id)
        return before is None or before.digest != target.descriptor.digest

    def _target(self, wanted: Reference) -> Descriptor | None:
        try:
            return self._records.target(wanted.familiar)
        except NotFound:
            return None

    def _resolve(
        self, wanted: Reference, before: Descriptor | None, auth: RegistryAuth, cancel: Cancel
    ) -> tuple[Repository, Manifest]:
        """The manifest or index ``wanted`` names now. A HEAD suffices when it is still what we have."""

        def ask(repository: Repository) -> Manifest:
            if wanted.digest and self._content.has(wanted.digest):
                return parse(self._content.read(wanted.digest, MANIFEST_LIMIT), digest=wanted.digest)
            if before is not None and wanted.tag and not wanted.digest:
                head = repository.head_manifest(wanted.tag)
                if head and head.digest == before.digest and self._content.has(head.digest):
                    return parse(self._content.read(head.digest, MANIFEST_LIMIT), head.media_type, head.digest)
            return self._keep(repository.manifest(wanted.digest or wanted.tag or "latest"))

        return self._on_some_endpoint(wanted, auth, cancel, ask)

    def _on_some_endpoint(
        self, wanted: Reference, auth: RegistryAuth, cancel: Cancel, ask: Callable[[Repository], _T]
    ) -> tuple[Repository, _T]:
        """The first endpoint that answers, and its answer; a mirror that cannot is passed over."""
        failure: RegistryError | None = None
        for repository in self._registries.open(wanted, auth, cancel=cancel):
            try:
                return repository, ask(repository)
            except RegistryError as error:
                failure = error
                if not repository.endpoint.mirror:
                    break
                log.info("mirror cannot serve", extra={"mirror": repository.endpoint.url, "image": wanted.familiar})
        assert failure is not None, "open() raises when there is no endpoint"
        raise not_found(failure, wanted.familiar_name, wanted.familiar) or failure

    def _keep(self, manifest: Manifest) -> Manifest:
        self._content.put(manifest.raw, manifest.descriptor.media_type)
        return manifest

    async def _verify(self, wanted: Reference, descriptor: Descriptor) -> None:
        import msgspec

        await self._workers.call(
            self._hooks.engine_image_verify,
            reference=str(wanted),
            descriptor=msgspec.to_builtins(descriptor),
            deadline=None,
        )

    async def _for_platform(self, repository: Repository, target: Manifest, platform: Platform | None) -> Manifest:
        """The manifest for the platform asked for; without one, for this machine, else for WebAssembly."""
        if not target.is_index:
            return target
        entry = choose(target, [platform] if platform else [host_platform(), _WASI])
        if entry.media_type in _INDEX_TYPES:
            raise NotSupported(f"manifest {entry.digest} is an index within an index, which is not supported")

        def fetch() -> Manifest:
            if self._content.has(entry.digest):
                return parse(self._content.read(entry.digest, MANIFEST_LIMIT), entry.media_type, entry.digest)
            return self._keep(repository.manifest(entry.digest))

        manifest = await self._workers.call(fetch, deadline=None)
        if manifest.is_index:
            raise InvalidParameter(f"manifest {entry.digest} is an index although it is listed as a manifest")
        return manifest

    async def _fetch_config(
        self,
        repository: Repository,
        manifest: Manifest,
        platform: Platform | None,
        wanted: Reference,
        progress: Progress,
    ) -> ImageConfig:
        """Fetch the config and check that the image can be used here, before any layer is downloaded."""
        descriptor = manifest.config
        assert descriptor is not None, "an index was resolved to a manifest"
        for layer in manifest.layers:
            compression(layer)
        await self._workers.call(self._fetch_small, repository, descriptor, deadline=None)
        config = await self._workers.call(self._records.config, descriptor)
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidParameter("mismatched image rootfs and manifest layers")
        actual = normalise(config.os or "linux", config.architecture, config.variant)
        if actual.os != "linux" and not actual.is_wasm:
            raise NotSupported(f'image operating system "{actual.os}" cannot be used on this platform')
        if platform and actual.os != platform.os and not (actual.is_wasm and platform.is_wasm):
            raise NotSupported(
                f'cannot download image with operating system "{actual.os}" when requesting "{platform.os}"'
            )
        if platform and not actual.satisfies(platform):
            progress(
                message(
                    f"WARNING: image with reference {wanted.familiar} was found but its platform ({actual}) "
                    f"does not match the specified platform ({platform})"
                )
            )
        return config

    def _fetch_small(self, repository: Repository, descriptor: Descriptor) -> None:
        if self._content.has(descriptor.digest):
            return
        if descriptor.size > MANIFEST_LIMIT:
            raise InvalidParameter(f"image config is larger than {MANIFEST_LIMIT} bytes")
        data = b"".join(repository.blob(descriptor))
        if sha256(data) != descriptor.digest:
            raise InvalidParameter(f"image config verification failed for digest {descriptor.digest}")
        self._content.put(data, descriptor.media_type)

    async def _fetch_artifact(
        self, repository: Repository, manifest: Manifest, progress: Progress
    ) -> tuple[Descriptor, list[Descriptor]]:
        """Fetch everything of an artifact but its config; config and layers of what the engine makes of it."""
        for layer in manifest.layers:
            if layer.urls:
                raise NotSupported(f"blob {layer.digest} is to be fetched from elsewhere, which is not supported")

        async def fetch(blob: Descriptor) -> None:
            bar = Bar(progress, short_id(blob.digest), blob.size)
            if await self._workers.call(self._content.has, blob.digest):
                bar.say("Already exists")
                return
            await self._download(repository, blob, bar)
            bar.say("Pull complete")

        try:
            await _together(fetch(blob) for blob in {blob.digest: blob for blob in manifest.layers}.values())
        finally:
            for blob in manifest.layers:
                await self._workers.call(self._records.preparing.drop, blob.digest, deadline=None)
        config_blob, layers = await self._workers.call(as_image, self._content, manifest.descriptor, deadline=None)
        config = await self._workers.call(self._records.config, config_blob)
        for index, blob in enumerate(layers):
            await self._records.unpack_layer(config.diff_ids, index, blob)
        return config_blob, layers

    async def _fetch_layers(
        self, repository: Repository, manifest: Manifest, config: ImageConfig, progress: Progress
    ) -> None:
        bars = [Bar(progress, short_id(layer.digest), layer.size) for layer in manifest.layers]
        missing = []
        for layer, bar in zip(manifest.layers, bars, strict=True):
            here = await self._workers.call(self._content.has, layer.digest)
            bar.say("Already exists" if here else "Pulling fs layer")
            missing.append(not here)

        async def fetch(index: int) -> None:
            layer, bar = manifest.layers[index], bars[index]
            if missing[index]:
                await self._download(repository, layer, bar)
                bar.show("Extracting", layer.size)
            await self._records.unpack_layer(config.diff_ids, index, layer)
            if missing[index]:
                bar.say("Pull complete")

        try:
            await _together(fetch(index) for index in range(len(bars)))
        finally:
            for layer in manifest.layers:
                await self._workers.call(self._records.preparing.drop, layer.digest, deadline=None)

    # -- one blob, once ----------------------------------------------------------------------------------------

    async def _download(self, repository: Repository, blob: Descriptor, bar: Bar) -> None:
        """Have ``blob`` in content, joining a download of it that is under way.

        A failure of somebody else's download is not ours: we then try with our own repository and credentials.
        """
        while (flight := self._flights.get(blob.digest)) is not None:
            flight.bars.append(bar)
            try:
                await self._ride(blob.digest, flight, bar)
                return
            except (EngineError, OSError):
                log.info("a shared download failed, trying alone", extra={"digest": blob.digest})
        # No await from here until the flight is known to others.
        if self._downloads.locked():
            bar.say("Waiting")
        bars = [bar]
        task = self._workers.spawn(self._fly(repository, blob, bars), name=f"download {blob.digest}")
        flight = self._flights[blob.digest] = _Flight(task, bars)
        flight.task.add_done_callback(lambda _: self._landed(blob.digest, flight))
        await self._ride(blob.digest, flight, bar)

    async def _ride(self, digest: str, flight: _Flight, bar: Bar) -> None:
        """Wait for a download; the last one who leaves early stops it."""
        try:
            error = await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            flight.bars.remove(bar)
            if not flight.bars:
                self._landed(digest, flight)
                flight.task.cancel()
            raise
        if error is not None:
            raise error

    def _landed(self, digest: str, flight: _Flight) -> None:
        if self._flights.get(digest) is flight:
            del self._flights[digest]

    async def _fly(self, repository: Repository, blob: Descriptor, bars: list[Bar]) -> Exception | None:
        """Download when it is our turn. A failure is the result: each rider raises it."""
        cancel = Cancel()
        stoppable = repository.stopped_by(cancel)
        try:
            async with self._downloads:
                work = self._workers.call(self._fetch_blob, stoppable, blob, bars, deadline=None)
                await self._cancellable(cancel, work)
        except Exception as error:
            return error
        return None

    def _fetch_blob(self, repository: Repository, blob: Descriptor, bars: list[Bar]) -> None:
        """Download and verify one blob, going on where an interrupted download stopped."""
        if self._content.has(blob.digest):
            return
        while True:
            with self._content.writer(blob.digest, blob.size) as writer:
                resumed = writer.offset > 0
                try:
                    self._receive(repository, blob, writer, bars)
                except (RegistryError, Cancelled) as error:
                    if isinstance(error, Cancelled) or error.broken:
                        writer.suspend()
                    raise
                except _Unverified as error:
                    if resumed:  # what was here before may be what is wrong
                        continue
                    raise InvalidParameter(f"filesystem layer verification failed for digest {blob.digest}") from error
            for bar in tuple(bars):
                bar.say("Download complete")
            return

    def _receive(self, repository: Repository, blob: Descriptor, writer: Writer, bars: list[Bar]) -> None:
        """Write what comes, which is unpacked meanwhile."""
        chunks = iter(repository.blob(blob, writer.offset))
        while writer.offset < min(blob.size, BLOCK) and (chunk := next(chunks, b"")):
            writer.write(chunk)
        with self._records.preparing.begin(writer, writer.head(BLOCK)) as name_layer:
            for chunk in chunks:
                writer.write(chunk)
                for bar in tuple(bars):
                    bar.show("Downloading", writer.offset)
            for bar in tuple(bars):
                bar.say("Verifying Checksum")
            try:
                writer.commit(durable=False)
            except InvalidParameter as error:
                raise _Unverified(str(error)) from error
            name_layer(blob.digest)

    # -- push --------------------------------------------------------------------------------------------------

    async def push(
        self,
        reference: str,
        *,
        platform: Platform | None = None,
        auth: RegistryAuth | None = None,
        progress: Progress,
    ) -> None:
        """Send an image to the registry its name says; a name without a tag means all its tags.

        What a tag names is sent whole when all of it is here - an index with every platform - else the manifest for
        ``platform`` (or this machine). Raises `NotFound` in dockerd's words when there is nothing to push.
        """
        wanted = parse_reference(reference)
        progress(message(f"The push refers to repository [{wanted.name}]"))
        if wanted.digest:
            raise InvalidParameter("cannot push a digest reference")
        tagged = self._tagged(wanted)
        cancel = Cancel()
        await self._cancellable(cancel, self._push(wanted, tagged, platform, auth or ANONYMOUS, progress, cancel))

    def _tagged(self, wanted: Reference) -> list[Reference]:
        known = [found for found in map(parse_reference, self._records.references(wanted.name)) if found.tag]
        if not known:
            raise NotFound(f"An image does not exist locally with the tag: {wanted.familiar_name}")
        if not wanted.tag:
            return known
        if wanted not in known:
            raise NotFound(f"tag does not exist: {wanted.familiar}")
        return [wanted]

    async def _push(
        self,
        wanted: Reference,
        tagged: Sequence[Reference],
        platform: Platform | None,
        auth: RegistryAuth,
        progress: Progress,
        cancel: Cancel,
    ) -> None:
        repository = await self._workers.call(self._writable, wanted, auth, cancel, deadline=None)
        for one in tagged:
            with self._content.lease(), _disk_errors(one):
                await self._push_one(repository, one, platform, progress)

    def _writable(self, wanted: Reference, auth: RegistryAuth, cancel: Cancel) -> Repository:
        return next(iter(self._registries.open(wanted, auth, push=True, cancel=cancel)))

    async def _push_one(
        self, repository: Repository, wanted: Reference, platform: Platform | None, progress: Progress
    ) -> None:
        pushable = await self._records.pushable(wanted.familiar, platform)
        whole = None if platform else await self._workers.call(self._complete_index, wanted)
        if whole is not None:
            top, manifests = whole
        else:
            top = await self._workers.call(self._stored, pushable.manifest)
            manifests = [top]
        sources = _same_registry(wanted, pushable.image)
        await self._push_blobs(repository, manifests, sources, progress)

        def put() -> None:
            for manifest in manifests:
                if manifest is not top:
                    repository.put_manifest(manifest.descriptor.digest, manifest.descriptor.media_type, manifest.raw)
            repository.put_manifest(wanted.tag or "latest", top.descriptor.media_type, top.raw)

        await self._workers.call(put, deadline=None)
        digest, size = top.descriptor.digest, len(top.raw)
        await self._records.add_references(pushable.image.id, [(wanted.with_digest(digest), top.descriptor)])
        await self._records.event(wanted.familiar, wanted.familiar_name, "push", pushable.image.id)
        progress(message(f"{wanted.tag}: digest: {digest} size: {size}"))
        progress(aux({"Tag": wanted.tag, "Digest": digest, "Size": size}))

    def _stored(self, descriptor: Descriptor) -> Manifest:
        return parse(self._content.read(descriptor.digest, MANIFEST_LIMIT), descriptor.media_type, descriptor.digest)

    def _complete_index(self, wanted: Reference) -> tuple[Manifest, list[Manifest]] | None:
        """The index a tag names with all its manifests; None when it names none or parts of it are not here."""
        target = self._target(wanted)
        if target is None or not self._content.has(target.digest):
            return None
        index = self._stored(target)
        if not index.is_index:
            return None
        manifests = []
        for entry in index.manifests:
            if not self._content.has(entry.digest):
                return None
            manifest = self._stored(entry)
            if manifest.is_index or not all(self._content.has(child.digest) for child in manifest.children):
                return None
            manifests.append(manifest)
        return index, manifests

    async def _push_blobs(
        self, repository: Repository, manifests: Sequence[Manifest], sources: Sequence[str], progress: Progress
    ) -> None:
        """Send all blobs the manifests name, each once, configs last and without a line of their own."""
        layers: dict[str, tuple[Descriptor, Bar]] = {}
        configs: dict[str, Descriptor] = {}
        for manifest in manifests:
            assert manifest.config is not None, "manifests of an index are no indexes"
            configs[manifest.config.digest] = manifest.config
            shown = await self._workers.call(self._layer_names, manifest)
            for layer, name in zip(manifest.layers, shown, strict=True):
                layers.setdefault(layer.digest, (layer, Bar(progress, short_id(name), layer.size)))
        for _, bar in layers.values():
            bar.say("Preparing")

        async def send(layer: Descriptor, bar: Bar) -> None:
            if self._uploads.locked():
                bar.say("Waiting")
            async with self._uploads:
                await self._workers.call(self._send_blob, repository, layer, bar, sources, deadline=None)

        await _together(send(layer, bar) for layer, bar in layers.values())
        for config in configs.values():
            await self._workers.call(self._send_blob, repository, config, None, (), deadline=None)

    def _layer_names(self, manifest: Manifest) -> list[str]:
        """What users know the layers by: diff ids; digests where the config has none (attestations)."""
        digests = [layer.digest for layer in manifest.layers]
        assert manifest.config is not None, "manifests of an index are no indexes"
        if manifest.config.media_type not in _CONFIG_TYPES:
            return digests
        diff_ids = self._records.config(manifest.config).diff_ids
        return diff_ids if len(diff_ids) == len(digests) else digests

    def _send_blob(self, repository: Repository, blob: Descriptor, bar: Bar | None, sources: Sequence[str]) -> None:
        if repository.has_blob(blob.digest):
            if bar:
                bar.say("Layer already exists")
            return
        place = ""
        for source in sources:
            place = repository.mount(blob.digest, source)
            if not place:
                if bar:
                    bar.say(f"Mounted from {source}")
                return
            break
        path = self._content.path(blob.digest)

        def sent(size: int) -> None:
            if bar:
                bar.show("Pushing", size)

        repository.upload(blob, lambda: path.open("rb", buffering=0), sent, place)
        if bar:
            bar.say("Pushed")

    # -- cancelling --------------------------------------------------------------------------------------------

    async def _cancellable(self, cancel: Cancel, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work``; a cancelled caller first tells the threads, which is what makes ``work`` end soon."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancel.set()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                log.info("transfer stopped", extra={"reason": str(error)})
            raise


def _config_platform(repository: Repository, manifest: Manifest) -> list[dict[str, Any]]:
    """The platform the config of an image says, as a list; empty when it says none (other artifacts)."""
    import msgspec

    descriptor = manifest.config
    if descriptor is None or descriptor.media_type not in _CONFIG_TYPES or descriptor.size > MANIFEST_LIMIT:
        return []
    raw = b"".join(repository.blob(descriptor))
    try:
        config = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError:
        return []
    shown = {key: config[key] for key in ("architecture", "os", "os.version", "variant") if config.get(key)}
    return [shown] if shown else []


def _same_registry(wanted: Reference, image: Image) -> list[str]:
    """Other repositories of the same registry that have this image's layers, for mounting."""
    known = (parse_reference(text) for text in image.repo_digests)
    return [found.path for found in known if found.domain == wanted.domain and found.path != wanted.path]


async def _together(work: Iterable[Awaitable[None]]) -> None:
    """Await all; the first failure cancels the others and is raised as it is."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@contextmanager
def _disk_errors(reference: Reference) -> Iterator[None]:
    """Say plainly that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise EngineError(f"failed to transfer {reference.familiar}: no space left on device") from error
