"""Pull and push between a registry in this process and a real content store; images are recorded in a dictionary."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine.content import Content, Writer
from engine.errors import EngineError, Forbidden, InvalidParameter, NotFound, NotSupported
from engine.images.preparing import Preparing
from engine.images.transfers import Transfers
from engine.model.image import Descriptor, Image, ImageConfig
from engine.names import Reference, parse_reference, sha256
from engine.platforms import Platform
from engine.registry.auth import RegistryAuth
from engine.registry.client import Registries
from engine.registry.endpoints import RegistryOptions
from engine.registry.errors import RegistryError
from engine.testing.registry import FakeRegistry, answer, break_after
from engine.workers import Workers


@dataclass
class Ready:
    image: Image
    manifest: Descriptor
    config: Descriptor
    layers: list[Descriptor]


class Records:
    """Images as transfers know them, without unpacking or database."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.preparing = Preparing(SimpleNamespace(capabilities=frozenset()), 1)
        self.images: dict[str, Ready] = {}
        self.names: dict[str, tuple[str, Descriptor | None]] = {}
        self.unpacked: list[str] = []
        self.events: list[tuple[str, str, str]] = []
        self.refuse_layer = ""
        self.collected = 0

    def config(self, descriptor: Descriptor) -> ImageConfig:
        body = json.loads(self.content.read(descriptor.digest))
        return ImageConfig(
            os=body["os"], architecture=body["architecture"], diff_ids=body.get("rootfs", {}).get("diff_ids", [])
        )

    async def unpack_layer(self, diff_ids: Sequence[str], index: int, blob: Descriptor) -> None:
        if self.refuse_layer:
            raise InvalidParameter(self.refuse_layer)
        raw = self.content.path(blob.digest).read_bytes()
        assert sha256(gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw) == diff_ids[index]
        self.unpacked.append(blob.digest)

    async def add(
        self,
        *,
        config: Descriptor,
        layers: Sequence[Descriptor],
        manifest: Descriptor | None,
        references: Sequence[tuple[Reference, Descriptor | None]] = (),
    ) -> Image:
        assert manifest is not None
        image = Image(id=config.digest, config=self.config(config), platform="", chain_id=None, size=0)
        self.images[image.id] = Ready(image, manifest, config, list(layers))
        await self.add_references(image.id, references)
        return image

    async def add_references(self, image_id: str, references: Sequence[tuple[Reference, Descriptor | None]]) -> None:
        for reference, target in references:
            self.names[reference.familiar] = (image_id, target)
        ready = self.images[image_id]
        digests = sorted(name for name, (held, _) in self.names.items() if held == image_id and "@" in name)
        ready.image = msgspec.structs.replace(ready.image, repo_digests=digests)

    def target(self, reference: str) -> Descriptor | None:
        if reference not in self.names:
            raise NotFound(f"No such image: {reference}")
        return self.names[reference][1]

    def references(self, name: str) -> list[str]:
        return [text for text in self.names if parse_reference(text).name == name]

    async def pushable(self, reference: str, platform: Platform | None = None) -> Ready:
        return self.images[self.names[reference][0]]

    async def collect(self) -> None:
        self.collected += 1
        self.content.collect(set())

    async def event(self, actor: str, name: str, action: str, image_id: str | None = None) -> None:
        self.events.append((actor, name, action))


class Hooks:
    def __init__(self) -> None:
        self.verified: list[tuple[str, str]] = []
        self.refusal = ""

    def engine_image_verify(self, reference: str, descriptor: Mapping[str, Any]) -> None:
        self.verified.append((reference, descriptor["digest"]))
        if self.refusal:
            raise Forbidden(self.refusal)


@dataclass(frozen=True)
class Settings:
    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    max_concurrent_downloads: int = 2
    max_concurrent_uploads: int = 2
    max_download_attempts: int = 3

    def proxy(self, name: str) -> str:
        return ""


@dataclass
class Engine:
    """One daemon's transfers, and what its user saw."""

    root: Path
    settings: Settings = Settings()
    said: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.content = Content(self.root)
        self.records = Records(self.content)
        self.hooks = Hooks()
        self.workers = Workers()
        registries = (
            Registries(RegistryOptions(attempts=3), sleep=lambda _: None)
            if not self.settings.registry_mirrors
            else None
        )
        self.transfers = Transfers(self.records, self.workers, self.hooks, self.settings, registries)  # type: ignore[arg-type]

    async def pull(self, reference: str, **options: Any) -> list[str]:
        self.said.clear()
        await self.transfers.pull(reference, progress=self.said.append, **options)
        return self.texts()

    async def push(self, reference: str, **options: Any) -> list[str]:
        self.said.clear()
        await self.transfers.push(reference, progress=self.said.append, **options)
        return self.texts()

    def texts(self) -> list[str]:
        return [f"{said['id']}: {said['status']}" if "id" in said else said.get("status", "") for said in self.said]

    def blobs(self) -> set[str]:
        return {digest for digest, _ in self.content.blobs()}

    def partial(self) -> list[str]:
        return os.listdir(self.root / "ingest")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path / "content")


def run(work: Any) -> Any:
    return asyncio.run(work)


def short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


LAYERS = [b"first layer" * 1000, b"second layer" * 1000]


# -- pull ---------------------------------------------------------------------------------------------------------


def test_a_pull_brings_everything_tags_it_and_says_so(registry: FakeRegistry, engine: Engine) -> None:
    manifest = registry.add_image("app", "v1", LAYERS)
    name = f"{registry.host}/app"
    texts = run(engine.pull(f"{name}:v1"))
    assert texts[0] == "v1: Pulling from app"
    assert texts[-2:] == [f"Digest: {manifest['digest']}", f"Status: Downloaded newer image for {name}:v1"]
    layers = json.loads(registry.repository("app").manifests["v1"][1])["layers"]
    for layer in layers:
        mine = [text.partition(": ")[2] for text in texts if text.startswith(short(layer["digest"]))]
        assert mine[0] == "Pulling fs layer"
        assert [text for text in mine if text not in ("Waiting", "Downloading")][1:] == [
            "Verifying Checksum",
            "Download complete",
            "Extracting",
            "Pull complete",
        ]
    assert set(engine.records.names) == {f"{name}:v1", f"{name}@{manifest['digest']}"}
    assert engine.blobs() == {*registry.repository("app").blobs, manifest["digest"]}
    assert engine.records.events == [(f"{name}:v1", name, "pull")]
    assert not engine.partial()


def test_the_tag_latest_is_pulled_when_there_is_none(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "latest", LAYERS)
    assert run(engine.pull(f"{registry.host}/app"))[-1] == (
        f"Status: Downloaded newer image for {registry.host}/app:latest"
    )


def test_a_second_pull_is_up_to_date_and_asks_for_no_bytes(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", LAYERS)
    run(engine.pull(f"{registry.host}/app:v1"))
    registry.asked.clear()
    texts = run(engine.pull(f"{registry.host}/app:v1"))
    assert texts[-1] == f"Status: Image is up to date for {registry.host}/app:v1"
    assert sum("Already exists" in text for text in texts) == 2
    assert [asked.method for asked in registry.asked] == ["HEAD"]


def test_a_moved_tag_is_downloaded_and_shared_layers_are_not(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", LAYERS)
    run(engine.pull(f"{registry.host}/app:v1"))
    registry.add_image("app", "v1", [LAYERS[0], b"third"])
    registry.asked.clear()
    texts = run(engine.pull(f"{registry.host}/app:v1"))
    assert texts[-1].startswith("Status: Downloaded newer image")
    assert registry.count("GET", "/blobs/") == 2  # the config and the new layer


def test_a_digest_is_pulled_after_its_tag_moved(registry: FakeRegistry, engine: Engine) -> None:
    first = registry.add_image("app", "v1", LAYERS)
    registry.add_image("app", "v1", [b"other"])
    wanted = f"{registry.host}/app@{first['digest']}"
    texts = run(engine.pull(wanted))
    assert texts[0] == f"{first['digest']}: Pulling from app"
    assert list(engine.records.names) == [wanted]


def test_an_unknown_tag_fails_before_the_first_message(registry: FakeRegistry, engine: Engine) -> None:
    with pytest.raises(NotFound) as caught:
        run(engine.pull(f"{registry.host}/app:no"))
    assert str(caught.value) == f"manifest for {registry.host}/app:no not found: manifest unknown: manifest unknown"
    assert engine.said == []


def test_all_tags_are_pulled(registry: FakeRegistry, engine: Engine) -> None:
    for tag in ("a", "b", "c"):
        registry.add_image("app", tag, [tag.encode()])
    texts = run(engine.pull(f"{registry.host}/app", all_tags=True))
    assert [text for text in texts if "Pulling from" in text] == [f"{tag}: Pulling from app" for tag in "abc"]
    assert texts[-1] == f"Status: Downloaded newer image for {registry.host}/app"


def test_the_platform_is_chosen_from_an_index(registry: FakeRegistry, engine: Engine) -> None:
    arm = registry.add_image("app", "", [b"arm"], architecture="arm64")
    amd = registry.add_image("app", "", [b"amd"])
    index = registry.add_index("app", "multi", {"linux/arm64": arm, "linux/amd64": amd})
    run(engine.pull(f"{registry.host}/app:multi", platform=Platform("linux", "arm64")))
    (ready,) = engine.records.images.values()
    assert ready.manifest.digest == arm["digest"]
    assert engine.records.names[f"{registry.host}/app:multi"][1].digest == index["digest"]  # type: ignore[union-attr]
    with pytest.raises(NotFound, match="no matching manifest for windows/amd64 in the manifest list entries"):
        run(Engine(engine.root).pull(f"{registry.host}/app:multi", platform=Platform("windows", "amd64")))


def test_an_image_for_another_platform_is_pulled_with_a_warning(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", LAYERS)
    texts = run(engine.pull(f"{registry.host}/app:v1", platform=Platform("linux", "arm64")))
    assert any("does not match the specified platform (linux/arm64)" in text for text in texts)


def test_an_operating_system_we_cannot_run_is_refused_before_layers(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", LAYERS, os="windows")
    with pytest.raises(NotSupported, match='image operating system "windows" cannot be used on this platform'):
        run(engine.pull(f"{registry.host}/app:v1"))
    assert registry.count("GET", "/blobs/") == 1
    assert engine.records.names == {}


def test_an_image_of_another_operating_system_than_asked_for_is_refused(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", LAYERS)
    text = 'cannot download image with operating system "linux" when requesting "windows"'
    with pytest.raises(NotSupported, match=text):
        run(engine.pull(f"{registry.host}/app:v1", platform=Platform("windows", "amd64")))
    assert engine.records.names == {}


def test_verification_sees_the_target_before_anything_it_names(registry: FakeRegistry, engine: Engine) -> None:
    manifest = registry.add_image("app", "v1", LAYERS)
    engine.hooks.refusal = "not signed"
    with pytest.raises(Forbidden, match="not signed"):
        run(engine.pull(f"{registry.host}/app:v1"))
    assert engine.hooks.verified == [(f"{registry.host}/app:v1", manifest["digest"])]
    assert registry.count("GET", "/blobs/") == 0


def test_a_blob_with_other_bytes_is_refused_and_not_kept(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", [LAYERS[0]])
    layer = json.loads(registry.repository("app").manifests["v1"][1])["layers"][0]
    blobs = registry.repository("app").blobs
    blobs[layer["digest"]] = bytes(len(blobs[layer["digest"]]))
    with pytest.raises(InvalidParameter, match=f"filesystem layer verification failed for digest {layer['digest']}"):
        run(engine.pull(f"{registry.host}/app:v1"))
    assert layer["digest"] not in engine.blobs()
    assert engine.partial() == []
    assert engine.records.names == {}


def test_a_download_that_broke_for_good_goes_on_at_the_next_pull(registry: FakeRegistry, engine: Engine) -> None:
    tar = os.urandom(900_000)
    registry.add_image("app", "v1", [tar])
    layer = json.loads(registry.repository("app").manifests["v1"][1])["layers"][0]
    registry.fault("GET", layer["digest"], break_after(400_000))
    registry.fault("GET", layer["digest"], break_after(0), times=2)
    with pytest.raises(RegistryError):
        run(engine.pull(f"{registry.host}/app:v1"))
    assert len(engine.partial()) == 1
    assert engine.records.collected == 0
    registry.asked.clear()
    again = Engine(engine.root)
    run(again.pull(f"{registry.host}/app:v1"))
    (asked,) = [asked for asked in registry.asked if layer["digest"] in asked.path]
    assert asked.headers["Range"].startswith("bytes=400000-")
    assert again.partial() == []


def test_a_partial_download_that_was_damaged_is_fetched_anew(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", [os.urandom(900_000)])
    layer = json.loads(registry.repository("app").manifests["v1"][1])["layers"][0]
    with engine.content.writer(layer["digest"], layer["size"]) as writer:
        writer.write(b"damaged")
        writer.suspend()
    run(engine.pull(f"{registry.host}/app:v1"))
    assert layer["digest"] in engine.blobs()


def test_concurrent_pulls_download_a_layer_once(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("one", "v1", LAYERS)
    registry.add_image("two", "v1", LAYERS)

    async def both() -> None:
        await asyncio.gather(*(engine.pull(f"{registry.host}/{name}:v1") for name in ("one", "two", "one", "two")))

    run(both())
    for digest in registry.repository("one").blobs:
        if digest not in {config.digest for config in (ready.config for ready in engine.records.images.values())}:
            assert registry.count("GET", f"/blobs/{digest}") == 1


def test_a_shared_download_that_fails_is_tried_alone(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("one", "v1", [LAYERS[0]])
    registry.add_image("two", "v1", [LAYERS[0]])
    layer = json.loads(registry.repository("one").manifests["v1"][1])["layers"][0]
    shared = threading.Event()

    def refuse_once_shared(handler: Any) -> bool:
        shared.wait(10)
        return answer(404)(handler)

    registry.fault("GET", f"/one/blobs/{layer['digest']}", refuse_once_shared)

    async def two_joins_one() -> list[Any]:
        one = asyncio.create_task(engine.pull(f"{registry.host}/one:v1"))
        while not engine.transfers._flights:
            await asyncio.sleep(0.001)
        two = asyncio.create_task(engine.pull(f"{registry.host}/two:v1"))
        while len(engine.transfers._flights[layer["digest"]].bars) < 2:
            await asyncio.sleep(0.001)
        shared.set()
        return list(await asyncio.gather(one, two, return_exceptions=True))

    one, two = run(two_joins_one())
    assert isinstance(one, RegistryError)
    assert two[-1].startswith("Status: Downloaded newer image")


def test_a_cancelled_pull_stops_its_download_and_records_nothing(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", [os.urandom(3_000_000)])
    layer = json.loads(registry.repository("app").manifests["v1"][1])["layers"][0]

    def stall(handler: Any) -> bool:
        data = registry.repository("app").blobs[layer["digest"]]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for start in range(0, len(data), 1000):
            handler.wfile.write(data[start : start + 1000])
            handler.wfile.flush()
            if start > 400_000 and released.wait(0.001):
                break
        return True

    released = threading.Event()
    registry.fault("GET", layer["digest"], stall)

    async def start_and_leave() -> None:
        moving = asyncio.Event()
        loop = asyncio.get_running_loop()

        def watch(said: Mapping[str, Any]) -> None:
            if said.get("status") == "Downloading":
                loop.call_soon_threadsafe(moving.set)

        pull = asyncio.create_task(engine.transfers.pull(f"{registry.host}/app:v1", progress=watch))
        await moving.wait()
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        while engine.transfers._flights:
            await asyncio.sleep(0)
        await engine.workers.close()

    try:
        run(start_and_leave())
    finally:
        released.set()
    assert engine.records.names == {}
    assert layer["digest"] not in engine.blobs()


def test_a_full_disk_is_said_plainly_and_nothing_stays(
    registry: FakeRegistry, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_image("app", "v1", [os.urandom(100_000)])
    real = Writer.write

    def full(self: Writer, data: bytes) -> None:
        if len(data) > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(Writer, "write", full)
    with pytest.raises(EngineError, match=r"no space left on device$"):
        run(engine.pull(f"{registry.host}/app:v1"))
    assert engine.partial() == []
    assert engine.records.names == {}


def test_a_layer_that_cannot_be_unpacked_fails_the_pull(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", LAYERS)
    engine.records.refuse_layer = "failed to register layer: bad tar"
    with pytest.raises(InvalidParameter, match="failed to register layer: bad tar"):
        run(engine.pull(f"{registry.host}/app:v1"))
    assert engine.records.names == {}
    assert engine.blobs() == set()


def test_a_mirror_without_the_image_is_passed_over(tmp_path: Path) -> None:
    with FakeRegistry() as empty, FakeRegistry() as full:
        full.add_image("library/app", "v1", LAYERS)
        engine = Engine(tmp_path, Settings(registry_mirrors=(f"http://{empty.host}", f"http://{full.host}")))
        texts = run(engine.pull("app:v1"))
        assert texts[0] == "v1: Pulling from library/app"
        assert texts[-1] == "Status: Downloaded newer image for app:v1"


def test_a_config_that_does_not_fit_its_layers_is_refused(registry: FakeRegistry, engine: Engine) -> None:
    registry.add_image("app", "v1", LAYERS)
    document = json.loads(registry.repository("app").manifests["v1"][1])
    document["layers"].pop()
    registry.add_manifest("app", "v1", document)
    with pytest.raises(InvalidParameter, match="mismatched image rootfs and manifest layers"):
        run(engine.pull(f"{registry.host}/app:v1"))


def test_progress_is_throttled_and_complete() -> None:
    from engine.registry.progress import Bar

    said: list[Mapping[str, Any]] = []
    bar = Bar(said.append, "abc", 1000)
    for current in range(1, 1001):
        bar.show("Downloading", current)
    assert len(said) < 20
    assert said[-1]["progressDetail"] == {"current": 1000, "total": 1000}


# -- push ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pulled(engine: Engine, registry: FakeRegistry) -> Engine:
    registry.add_image("app", "v1", LAYERS)
    run(engine.pull(f"{registry.host}/app:v1"))
    return engine


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


def retag(engine: Engine, source: str, target: str) -> None:
    engine.records.names[target] = engine.records.names[source]


def test_a_push_sends_everything_and_keeps_the_digest(
    pulled: Engine, registry: FakeRegistry, other: FakeRegistry
) -> None:
    name = f"{other.host}/copy"
    retag(pulled, f"{registry.host}/app:v1", f"{name}:v2")
    texts = run(pulled.push(f"{name}:v2"))
    kind, raw = registry.repository("app").manifests["v1"]
    assert other.repository("copy").manifests["v2"] == (kind, raw)
    assert other.repository("copy").blobs == registry.repository("app").blobs
    assert texts[0] == f"The push refers to repository [{name}]"
    layer = short(sha256(LAYERS[0]))
    mine = [text.partition(": ")[2] for text in texts if text.startswith(layer)]
    assert [text for text in mine if text not in ("Waiting", "Pushing")] == ["Preparing", "Pushed"]
    assert texts[-2] == f"v2: digest: {sha256(raw)} size: {len(raw)}"
    assert pulled.said[-1]["aux"] == {"Tag": "v2", "Digest": sha256(raw), "Size": len(raw)}
    assert f"{name}@{sha256(raw)}" in pulled.records.names
    assert pulled.records.events[-1] == (f"{name}:v2", name, "push")


def test_layers_the_registry_has_are_not_sent(pulled: Engine, registry: FakeRegistry) -> None:
    texts = run(pulled.push(f"{registry.host}/app:v1"))
    assert sum("Layer already exists" in text for text in texts) == 2
    assert registry.count("PUT", "/blobs/") == 0


def test_layers_of_a_sister_repository_are_mounted(pulled: Engine, registry: FakeRegistry) -> None:
    retag(pulled, f"{registry.host}/app:v1", f"{registry.host}/sister:v1")
    texts = run(pulled.push(f"{registry.host}/sister:v1"))
    assert sum("Mounted from app" in text for text in texts) == 2
    assert registry.repository("sister").blobs == registry.repository("app").blobs


def test_all_tags_of_a_name_are_pushed(pulled: Engine, registry: FakeRegistry, other: FakeRegistry) -> None:
    for tag in ("a", "b"):
        retag(pulled, f"{registry.host}/app:v1", f"{other.host}/copy:{tag}")
    run(pulled.push(f"{other.host}/copy"))
    assert {"a", "b"} <= set(other.repository("copy").manifests)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("nosuch:v1", "An image does not exist locally with the tag: HOST/nosuch"),
        ("app:nosuch", "tag does not exist: HOST/app:nosuch"),
        ("app@sha256:" + "a" * 64, "cannot push a digest reference"),
    ],
)
def test_what_cannot_be_pushed_is_named(pulled: Engine, registry: FakeRegistry, reference: str, text: str) -> None:
    with pytest.raises(EngineError) as caught:
        run(pulled.push(f"{registry.host}/{reference}"))
    assert str(caught.value) == text.replace("HOST", registry.host)


def test_an_index_is_pushed_whole_when_all_of_it_is_here(
    registry: FakeRegistry, engine: Engine, other: FakeRegistry
) -> None:
    arm = registry.add_image("app", "", [b"arm"], architecture="arm64")
    amd = registry.add_image("app", "", [b"amd"])
    index = registry.add_index("app", "multi", {"linux/arm64": arm, "linux/amd64": amd})
    for architecture in ("amd64", "arm64"):
        run(engine.pull(f"{registry.host}/app:multi", platform=Platform("linux", architecture)))
    retag(engine, f"{registry.host}/app:multi", f"{other.host}/copy:multi")
    run(engine.push(f"{other.host}/copy:multi"))
    assert {arm["digest"], amd["digest"], index["digest"]} <= set(other.repository("copy").manifests)
    assert other.repository("copy").manifests["multi"] == registry.repository("app").manifests["multi"]


def test_of_an_index_that_is_not_whole_the_platform_here_is_pushed(
    registry: FakeRegistry, engine: Engine, other: FakeRegistry
) -> None:
    arm = registry.add_image("app", "", [b"arm"], architecture="arm64")
    amd = registry.add_image("app", "", [b"amd"])
    registry.add_index("app", "multi", {"linux/arm64": arm, "linux/amd64": amd})
    run(engine.pull(f"{registry.host}/app:multi"))
    retag(engine, f"{registry.host}/app:multi", f"{other.host}/copy:multi")
    run(engine.push(f"{other.host}/copy:multi"))
    assert other.repository("copy").manifests["multi"] == registry.repository("app").manifests[amd["digest"]]


def test_a_push_without_credentials_where_they_are_needed_is_refused(pulled: Engine, registry: FakeRegistry) -> None:
    with FakeRegistry("basic") as closed:
        retag(pulled, f"{registry.host}/app:v1", f"{closed.host}/copy:v1")
        with pytest.raises(RegistryError, match=r"no basic auth credentials$"):
            run(pulled.push(f"{closed.host}/copy:v1"))
        run(pulled.push(f"{closed.host}/copy:v1", auth=RegistryAuth(username="admin", password="secret")))
        assert "v1" in closed.repository("copy").manifests


def test_a_bearer_token_for_a_push_covers_pull_and_push(pulled: Engine, registry: FakeRegistry) -> None:
    with FakeRegistry("bearer") as closed:
        retag(pulled, f"{registry.host}/app:v1", f"{closed.host}/copy:v1")
        run(pulled.push(f"{closed.host}/copy:v1"))
        asked = next(asked for asked in closed.asked if asked.path.startswith("/token"))
        assert "scope=repository%3Acopy%3Apull%2Cpush" in asked.path


def test_a_wasm_artifact_is_an_image_with_its_module_and_is_pushed_on_unchanged(
    engine: Engine, registry: FakeRegistry
) -> None:
    module = b"\0asm\1\0\0\0" + bytes(100)
    config = b'{"architecture":"wasm","os":"wasip1","layerDigests":[]}'
    manifest = registry.add_manifest(
        "hello",
        "v1",
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _blob(registry, config, "application/vnd.wasm.config.v0+json"),
            "layers": [{**_blob(registry, module, "application/wasm"), "annotations": {TITLE: "x/hello.wasm"}}],
        },
    )

    async def test() -> None:
        await engine.pull(f"{registry.host}/hello:v1")
        (image,) = engine.records.images.values()
        found = json.loads(engine.content.read(image.config.digest))
        assert (found["os"], found["architecture"]) == ("wasip1", "wasm")
        assert found["config"]["Entrypoint"] == ["/hello.wasm"]
        with tarfile.open(engine.content.path(image.layers[0].digest)) as layer:
            member = layer.extractfile("hello.wasm")
            assert member is not None
            assert member.read() == module
        assert {sha256(module), sha256(config), manifest["digest"]} <= engine.blobs()
        await engine.push(f"{registry.host}/hello:v1")
        assert registry.repository("hello").manifests["v1"][1] == engine.content.read(manifest["digest"])

    asyncio.run(test())


def test_any_other_artifact_is_kept_as_an_image_of_no_platform(engine: Engine, registry: FakeRegistry) -> None:
    chart = gzip.compress(b"chart" * 1000)
    registry.add_manifest(
        "chart",
        "1",
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _blob(registry, b"{}", "application/vnd.cncf.helm.config.v1+json"),
            "layers": [_blob(registry, chart, "application/vnd.cncf.helm.chart.content.v1.tar+gzip")],
        },
    )
    asyncio.run(engine.pull(f"{registry.host}/chart:1"))
    (image,) = engine.records.images.values()
    assert json.loads(engine.content.read(image.config.digest))["os"] == "unknown"
    assert image.layers == []
    assert sha256(chart) in engine.blobs()


TITLE = "org.opencontainers.image.title"


def _blob(registry: FakeRegistry, data: bytes, media_type: str) -> dict[str, Any]:
    for name in ("hello", "chart"):
        registry.add_blob(name, data)
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}
