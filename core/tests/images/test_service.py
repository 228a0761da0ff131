from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.drivers import DriverContext
from engine.drivers.store import Change, ImageStoreDriver, LayerSource, LayerUsage
from engine.errors import Conflict, EngineError, InvalidParameter, NotFound
from engine.events import Events
from engine.images import Images
from engine.layers import chain_ids
from engine.layers.compression import decompressor
from engine.layers.tar import Stream, entries
from engine.model.filters import Filters
from engine.model.image import Descriptor
from engine.names import parse_reference, sha256
from engine.platforms import Platform
from engine.store import Store
from engine.workers import Workers


class MemoryStore(ImageStoreDriver):
    """Reads layers like a real store - digest checked, tar parsed - and keeps only how big they are."""

    capabilities = frozenset({"parallel"})

    def __init__(self, kept: dict[str, LayerUsage], rootfs: dict[str, str | None]) -> None:
        super().__init__(DriverContext(name="memory", instance="0" * 8, root=Path(), state=Path()))
        self.kept, self.rootfs = kept, rootfs

    def commit_layer(self, chain_id: str, parent: str | None, source: LayerSource) -> LayerUsage:
        assert source.path is not None
        data = b"".join(decompressor(source.compression)(io.BytesIO(source.path.read_bytes()).read))
        if sha256(data) != source.diff_id:
            raise InvalidParameter(f"layer content does not match its diff id {source.diff_id}")
        size = sum(entry.size for entry in entries(Stream(iter([data]))))
        return self.kept.setdefault(chain_id, LayerUsage(size=size))

    def remove_layer(self, chain_id: str) -> None:
        self.kept.pop(chain_id, None)

    def layers(self) -> Mapping[str, LayerUsage]:
        return dict(self.kept)

    def create_rootfs(self, container_id: str, parent: str | None, options: Mapping[str, str]) -> None:
        self.rootfs[container_id] = parent

    def mount_rootfs(self, container_id: str) -> Path:
        return Path("/")

    def unmount_rootfs(self, container_id: str) -> None:
        pass

    def remove_rootfs(self, container_id: str) -> None:
        self.rootfs.pop(container_id, None)

    def changes(self, container_id: str) -> Iterator[Change]:
        return iter(())

    def rootfs_parents(self) -> Mapping[str, str | None]:
        return dict(self.rootfs)


class Engine:
    """The images service over a directory; can be stopped and started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layers: dict[str, LayerUsage] = {}
        self.rootfs: dict[str, str | None] = {}
        self.messages: list[Mapping[str, object]] = []
        self.containers: list[Any] = []

    async def __aenter__(self) -> Images:
        self.store = Store(self.root / "engine.db")
        self.workers = Workers(4)
        self.driver = MemoryStore(self.layers, self.rootfs)
        self.images = Images(
            config=SimpleNamespace(root=self.root, storage_driver=""),  # type: ignore[arg-type]
            workers=self.workers,
            store=self.store,
            events=Events(self.store),
            plugins=SimpleNamespace(image_store=lambda name: self.driver, hooks=None),  # type: ignore[arg-type]
        )
        self.images.users = lambda image_id: [one for one in self.containers if one.image_id == image_id]
        await self.images.start()
        return self.images

    async def __aexit__(self, *error: object) -> None:
        await self.images.close()
        await self.workers.close()
        await self.store.close()

    async def load(self, data: bytes) -> list[str]:
        self.messages.clear()
        await self.images.load(body(data), quiet=True, progress=self.messages.append)
        return [str(message.get("stream", "")).strip() for message in self.messages]

    def container(self, identifier: str, image_id: str, status: str) -> None:
        self.containers.append(SimpleNamespace(id=identifier, image_id=image_id, state=SimpleNamespace(status=status)))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def run(test: Callable[[Engine], Awaitable[None]]) -> Callable[[Engine], None]:
    import asyncio

    def wrapper(engine: Engine) -> None:
        asyncio.run(test(engine))  # type: ignore[arg-type]

    wrapper.__name__ = test.__name__
    return wrapper


async def body(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def tar(files: Mapping[str, bytes | str]) -> bytes:
    """Files by name; a string value is a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def config(*layers: bytes, **values: Any) -> bytes:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Labels": {"kind": "test"}, "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
        **values,
    }
    return json.dumps(document).encode()


ONE = tar({"one": b"1" * 100})
TWO = tar({"two": b"2" * 300_000})


def docker_archive(tags: list[str], *layers: bytes, **values: Any) -> bytes:
    """As dockerd 20.10 writes it."""
    raw = config(*layers, **values)
    name = hashlib.sha256(raw).hexdigest() + ".json"
    folders = {f"{number:064x}/layer.tar": layer for number, layer in enumerate(layers)}
    manifest = [{"Config": name, "RepoTags": tags, "Layers": list(folders)}]
    return tar({**folders, name: raw, "manifest.json": json.dumps(manifest).encode()})


def blobs(images: Images) -> list[str]:
    return sorted(digest for digest, _ in images.content.blobs())


@run
async def test_a_docker_archive_gives_the_images_it_names(engine: Engine) -> None:
    async with engine as images:
        assert await engine.load(docker_archive(["bb:latest", "r.example:5000/x:y"], ONE, TWO)) == [
            "Loaded image: bb:latest",
            "Loaded image: r.example:5000/x:y",
        ]
        image = images.get("bb")
        assert image.id == sha256(config(ONE, TWO))
        assert image.chain_id == chain_ids([sha256(ONE), sha256(TWO)])[-1]
        assert (image.size, image.repo_tags) == (300_100, ["bb:latest", "r.example:5000/x:y"])
        assert images.get(image.id[7:19]).id == image.id
        assert [step["Size"] for step in images.history("bb")] == [300_000, 100]


@run
async def test_archives_come_compressed_with_links_and_without_names(engine: Engine) -> None:
    raw = config(ONE, ONE)
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}]
    data = tar(
        {
            "a/layer.tar": ONE,
            "b/layer.tar": "../a/layer.tar",
            "c.json": raw,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )
    async with engine:
        assert await engine.load(gzip.compress(data)) == [f"Loaded image ID: {sha256(raw)}"]


@run
async def test_what_is_saved_loads_again_with_the_same_ids_and_manifest_bytes(engine: Engine) -> None:
    packed = gzip.compress(TWO, mtime=0)
    async with engine as images:
        await engine.load(docker_archive(["bb:1"], ONE, packed, rootfs=_rootfs(ONE, TWO)))
        saved = b"".join([chunk async for chunk in await images.save(["bb:1"])])
        again = b"".join([chunk async for chunk in await images.save(["bb:1"])])
        assert saved == again
        before = images.get("bb:1")
        await images.remove("bb:1")
        assert blobs(images) == []
        await engine.load(saved)
        after = images.get("bb:1")
        assert (after.id, after.chain_id, after.repo_tags) == (before.id, before.chain_id, ["bb:1"])
        assert after.manifest is not None
        assert sha256(packed) in blobs(images)
        with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
            assert {"index.json", "manifest.json", "oci-layout", "repositories"} <= set(archive.getnames())


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_finds_the_same_image_in_what_is_saved(engine: Engine, tmp_path: Path) -> None:
    @run
    async def test(engine: Engine) -> None:
        async with engine as images:
            await engine.load(docker_archive(["bb:1"], ONE, TWO))
            (tmp_path / "saved.tar").write_bytes(b"".join([chunk async for chunk in await images.save(["bb:1"])]))

    test(engine)
    for transport in ("docker-archive", "oci-archive"):
        copied = tmp_path / transport
        command = ["skopeo", "--tmpdir", str(tmp_path), "copy", "--insecure-policy", "-q"]
        subprocess.run([*command, f"{transport}:{tmp_path}/saved.tar", f"dir:{copied}"], check=True, timeout=60)
        manifest = json.loads((copied / "manifest.json").read_bytes())
        assert manifest["config"]["digest"] == sha256(config(ONE, TWO))
        assert [layer["digest"] for layer in manifest["layers"]] == [sha256(ONE), sha256(TWO)]


def _rootfs(*layers: bytes) -> dict[str, Any]:
    return {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]}


@run
async def test_saving_what_is_missing_is_refused_before_the_first_byte(engine: Engine) -> None:
    async with engine as images:
        with pytest.raises(NotFound, match="No such image: nosuch:latest"):
            await images.save(["nosuch"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"no tar at all" * 100, "invalid tar header"),
        (tar({"x": b"y"}), "does not contain a manifest.json"),
        (docker_archive(["bb:1"], ONE)[:5000], "truncated"),
        (gzip.compress(docker_archive(["bb:1"], ONE))[:-20], "truncated"),
        (tar({"manifest.json": b"[{]"}), "manifest.json"),
        (tar({"manifest.json": b'{"a":1}'}), "not a list"),
        (tar({"manifest.json": b'[{"Config":"../../etc/passwd","Layers":[]}]'}), "missing"),
        (tar({"manifest.json": b'[{"Config":"c","Layers":[]}]', "c": "c"}), "missing"),
        (tar({"manifest.json": b'[{"Config":"c","Layers":[]}]', "c": b"{}"}), "no RootFS key"),
        (docker_archive(["Bad Name"], ONE), "invalid reference format"),
        (docker_archive(["bb:1"], ONE, rootfs=_rootfs(TWO)), "does not match its diff id"),
        (docker_archive(["bb:1"], ONE, rootfs=_rootfs(ONE, TWO)), "length mismatch"),
        (tar({"blobs/sha256/" + "0" * 64: b"x" * 300_000}), "unexpected commit digest"),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(engine: Engine, data: bytes, message: str) -> None:
    @run
    async def test(engine: Engine) -> None:
        async with engine as images:
            with pytest.raises(EngineError, match=message):
                await engine.load(data)
            await images.prune()
            assert (images.list(), blobs(images), engine.layers) == ([], [], {})
            assert os.listdir(engine.root / "content" / "ingest") == []

    test(engine)


@run
async def test_images_and_names_survive_a_restart_and_garbage_does_not(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["bb:1"], ONE, TWO))
        await images.tag("bb:1", "other")
        before = images.inspect("other")
        engine.layers["sha256:" + "f" * 64] = LayerUsage(size=1)
    async with engine as images:
        assert images.inspect("other") == before
        assert sorted(engine.layers) == sorted(chain_ids([sha256(ONE), sha256(TWO)]))


@run
async def test_a_lost_layer_is_unpacked_again_at_start(engine: Engine) -> None:
    async with engine:
        await engine.load(docker_archive(["bb:1"], ONE, TWO))
    before = dict(engine.layers)
    engine.layers.clear()
    async with engine as images:
        assert engine.layers == before
        assert images.get("bb:1").size == 300_100


@run
async def test_a_tag_that_moves_leaves_the_old_image_dangling(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["bb:1"], ONE))
        old = images.get("bb:1").id
        messages = await engine.load(docker_archive(["bb:1"], TWO))
        assert messages[0] == f"The image bb:1 already exists, renaming the old one with ID {old} to empty string"
        assert [row["Id"] for row in images.list(Filters({"dangling": ["true"]}))] == [old]
        assert (await images.prune())["SpaceReclaimed"] == 100
        assert len(images.list()) == 1


@run
async def test_removing_follows_dockerds_rules(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["bb:1", "bb:2"], ONE, TWO))
        image = images.get("bb:1").id
        engine.container("c" * 64, image, "exited")
        with pytest.raises(Conflict) as error:
            await images.remove(image)
        assert str(error.value) == (
            f"conflict: unable to delete {image[7:19]} (must be forced) - image is referenced in multiple repositories"
        )
        assert await images.remove("bb:1") == [{"Untagged": "bb:1"}]
        with pytest.raises(Conflict) as error:
            await images.remove("bb:2")
        assert str(error.value) == (
            'conflict: unable to remove repository reference "bb:2" (must force) - container cccccccccccc is using '
            f"its referenced image {image[7:19]}"
        )
        with pytest.raises(Conflict, match=r"\(must be forced\) - image is being used by stopped container cccccccc"):
            await images.remove(image[7:19])
        engine.containers.clear()
        engine.container("d" * 64, image, "running")
        for force in (False, True):
            with pytest.raises(Conflict, match=r"\(cannot be forced\) - image is being used by running container dddd"):
                await images.remove(image, force=force)
        assert await images.remove("bb:2", force=True) == [{"Untagged": "bb:2"}]
        assert images.get(image).repo_tags == []
        engine.containers.clear()
        chain = chain_ids([sha256(ONE), sha256(TWO)])
        assert await images.remove(image) == [{"Deleted": image}, {"Deleted": chain[1]}, {"Deleted": chain[0]}]
        assert (blobs(images), engine.layers) == ([], {})
        with pytest.raises(NotFound, match=r"No such image: bb:2"):
            await images.remove("bb:2")


@run
async def test_the_digest_reference_goes_with_the_last_tag_of_its_repository(engine: Engine) -> None:
    async with engine as images:
        with images.content.lease():
            image = await _pulled(images, ONE)
        row = images.list()[0]
        assert (row["RepoTags"], row["RepoDigests"]) == (["r.io/a:1"], [f"r.io/a@{image.manifest.digest}"])
        assert images.get(f"r.io/a@{image.manifest.digest}").id == image.id
        removed = await images.remove("r.io/a:1")
        assert removed[:3] == [
            {"Untagged": "r.io/a:1"},
            {"Untagged": f"r.io/a@{image.manifest.digest}"},
            {"Deleted": image.id},
        ]


async def _pulled(images: Images, layer: bytes) -> Any:
    blob = images.content.put(gzip.compress(layer, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
    raw = images.content.put(config(layer), "application/vnd.oci.image.config.v1+json")
    document = {"schemaVersion": 2, "config": {"digest": raw.digest}, "layers": [{"digest": blob.digest}]}
    manifest = images.content.put(json.dumps(document).encode(), "application/vnd.oci.image.manifest.v1+json")
    await images.unpack_layer([sha256(layer)], 0, blob)
    name = parse_reference("r.io/a:1")
    references = [(name, manifest), (name.with_digest(manifest.digest), manifest)]
    return await images.add(config=raw, layers=[blob], manifest=manifest, references=references)


@run
async def test_what_a_lease_holds_is_not_collected_before_the_image_is_recorded(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["old:1"], TWO))
        with images.content.lease():
            blob = images.content.put(ONE, "application/vnd.oci.image.layer.v1.tar")
            await images.unpack_layer([sha256(ONE)], 0, blob)
            await images.remove("old:1")
            assert (blobs(images), list(engine.layers)) == ([blob.digest], [sha256(ONE)])
        await images.prune()
        assert (blobs(images), engine.layers) == ([], {})


@run
async def test_a_container_keeps_the_layers_of_an_image_that_was_removed_by_force(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["bb:1"], ONE, TWO))
        image = images.get("bb:1")
        await images.create_rootfs("c" * 64, image, {})
        engine.container("c" * 64, image.id, "exited")
        assert await images.remove("bb:1", force=True) == [{"Untagged": "bb:1"}, {"Deleted": image.id}]
        assert len(engine.layers) == 2
    async with engine as images:
        assert len(engine.layers) == 2
        await images.remove_rootfs("c" * 64)
        await images.prune()
        assert engine.layers == {}


@run
async def test_pushing_makes_a_manifest_once_with_compressed_layers(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["bb:1"], ONE, TWO))
        first = await images.pushable("bb:1")
        assert [layer.media_type for layer in first.layers] == ["application/vnd.oci.image.layer.v1.tar+gzip"] * 2
        assert gzip.decompress(images.content.read(first.layers[1].digest)) == TWO
        assert (await images.pushable("bb:1")).manifest == first.manifest
        await images.prune()
        assert len(blobs(images)) == 4
        assert images.get("bb:1").id == first.image.id


@run
async def test_lists_are_filtered_as_docker_does(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["lib/one:1", "two:x"], ONE))
        await engine.load(docker_archive(["three:1"], TWO, created="2026-02-01T00:00:00Z", config={}))

        def tags(**filters: str) -> list[str]:
            rows = images.list(Filters({key.rstrip("_"): [value] for key, value in filters.items()}))
            return [tag for row in rows for tag in row["RepoTags"]]

        assert tags() == ["three:1", "lib/one:1", "two:x"]
        assert tags(reference="*:1") == ["three:1"]
        assert tags(reference="*/one") == ["lib/one:1"]
        assert tags(label="kind=test") == ["lib/one:1", "two:x"]
        assert tags(before="three:1") == ["lib/one:1", "two:x"]
        assert tags(since="two:x") == ["three:1"]
        assert tags(dangling="true") == []
        with pytest.raises(InvalidParameter, match="invalid filter 'nope'"):
            tags(nope="1")
        with pytest.raises(NotFound, match="No such image: nosuch:latest"):
            tags(before="nosuch")


@run
async def test_import_makes_an_image_with_the_changes_asked_for(engine: Engine) -> None:
    async with engine as images:
        identifier = await images.import_(
            body(gzip.compress(ONE)),
            repository="deb",
            tag="12",
            message="hello",
            changes=['CMD ["sh", "-c"]', "ENV A=1 B='2 3'", "EXPOSE 80 53/udp", "LABEL x=y", "WORKDIR srv"],
            progress=engine.messages.append,
        )
        shown = images.inspect("deb:12")
        assert (shown["Id"], shown["Comment"], shown["RootFS"]["Layers"]) == (identifier, "hello", [sha256(ONE)])
        expected = {
            "Cmd": ["sh", "-c"],
            "Env": ["A=1", "B=2 3"],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Labels": {"x": "y"},
            "WorkingDir": "/srv",
        }
        assert {key: shown["Config"][key] for key in expected} == expected
        with pytest.raises(InvalidParameter, match="run is not a valid change command"):
            await images.import_(body(ONE), changes=["RUN true"], progress=engine.messages.append)


@run
async def test_names_are_resolved_as_dockerd_does(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["abc:latest"], ONE))
        image = images.get("abc")
        for name in (
            "abc",
            "abc:latest",
            "docker.io/library/abc",
            image.id,
            image.id[7:],
            image.id[:20],
            image.id[7:10],
        ):
            assert images.get(name).id == image.id
        for name, text in (("nope", "nope:latest"), ("nope:1", "nope:1"), ("f" * 64, "sha256:" + "f" * 64)):
            with pytest.raises(NotFound, match=f"No such image: {text}"):
                images.get(name)
        with pytest.raises(InvalidParameter, match="must be lowercase"):
            images.get("ABC")
        with pytest.raises(InvalidParameter, match="refusing to create a tag with a digest reference"):
            await images.tag("abc", f"x@{image.id}")


@run
async def test_an_oci_layout_keeps_its_index_as_what_the_name_stands_for(engine: Engine) -> None:
    layer = gzip.compress(ONE, mtime=0)
    raw = config(ONE)

    def descriptor(data: bytes, media: str, **more: Any) -> dict[str, Any]:
        return {"mediaType": f"application/vnd.oci.image.{media}", "digest": sha256(data), "size": len(data), **more}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": descriptor(raw, "config.v1+json"),
            "layers": [descriptor(layer, "layer.v1.tar+gzip")],
        }
    ).encode()
    absent = descriptor(b"absent", "manifest.v1+json", platform={"os": "linux", "architecture": "s390x"})
    index = json.dumps({"manifests": [absent, descriptor(manifest, "manifest.v1+json")]}).encode()
    named = {"io.containerd.image.name": "docker.io/library/multi:1"}
    top = json.dumps({"manifests": [descriptor(index, "index.v1+json", annotations=named)]}).encode()
    files = {"blobs/sha256/" + sha256(data)[7:]: data for data in (layer, raw, manifest, index)}
    async with engine as images:
        assert await engine.load(tar({**files, "index.json": top, "oci-layout": b"{}"})) == ["Loaded image: multi:1"]
        target = images.target("multi:1")
        assert isinstance(target, Descriptor)
        assert target.digest == sha256(index)
        assert images.get("multi:1").manifest == Descriptor(
            media_type="application/vnd.oci.image.manifest.v1+json", digest=sha256(manifest), size=len(manifest)
        )
        await images.prune()
        assert set(blobs(images)) == {sha256(data) for data in (layer, raw, manifest, index)}


def _multi_platform() -> dict[str, bytes | str]:
    """An OCI layout of ``multi:1``: two platforms and the attestation of the first."""
    files: dict[str, bytes | str] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def put(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        files["blobs/sha256/" + sha256(data)[7:]] = data
        return {"mediaType": f"application/vnd.{kind}", "digest": sha256(data), "size": len(data), **more}

    def manifest(configuration: bytes, layer: bytes, kind: str = "oci.image.layer.v1.tar") -> bytes:
        entry = put(configuration, "oci.image.config.v1+json")
        body = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
        return json.dumps({**body, "config": entry, "layers": [put(layer, kind)]}).encode()

    own = put(
        manifest(config(ONE), ONE), "oci.image.manifest.v1+json", platform={"os": "linux", "architecture": "amd64"}
    )
    arm = put(
        manifest(config(TWO, architecture="arm64"), TWO),
        "oci.image.manifest.v1+json",
        platform={"os": "linux", "architecture": "arm64"},
    )
    claim = put(
        manifest(b"{}", b'{"_type":"https://in-toto.io/Statement/v0.1"}', "in-toto+json"),
        "oci.image.manifest.v1+json",
        platform={"os": "unknown", "architecture": "unknown"},
        annotations={
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": own["digest"],
        },
    )
    index = json.dumps({"schemaVersion": 2, "manifests": [arm, own, claim]}).encode()
    name = {"io.containerd.image.name": "docker.io/library/multi:1"}
    top = put(index, "oci.image.index.v1+json", annotations=name)
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    return files


@run
async def test_one_tag_stands_for_all_platforms_of_its_index(engine: Engine) -> None:
    async with engine as images:
        assert await engine.load(tar(_multi_platform())) == ["Loaded image: multi:1"] * 2
        assert [row["RepoTags"] for row in images.list()] == [["multi:1"]]
        own, arm = images.get("multi:1"), images.get("multi:1", Platform("linux", "arm64"))
        assert (own.platform, arm.platform) == ("linux/amd64", "linux/arm64")
        assert [step["Size"] for step in images.history("multi:1", Platform("linux", "arm64"))] == [300_000]
        with pytest.raises(NotFound, match="does not match the specified platform"):
            images.get("multi:1", Platform("linux", "s390x"))
        await images.tag("multi:1", "copy:1")
        assert images.get("copy:1", Platform("linux", "arm64")).id == arm.id
    async with engine as images:  # after a restart as before
        assert images.get("multi:1", Platform("linux", "arm64")).id == arm.id
        await images.remove("copy:1")
        assert len(images.table.images) == 2
        await images.remove("multi:1")
        assert (images.list(all=True), blobs(images), engine.layers) == ([], [], {})


@run
async def test_every_manifest_of_an_index_is_told_and_attestations_belong_to_their_image(engine: Engine) -> None:
    async with engine as images:
        await engine.load(tar(_multi_platform()))
        engine.container("c" * 64, images.get("multi:1").id, "exited")
        arm, own, claim = images.manifests("multi:1")
        assert (arm["Kind"], arm["Available"], arm["ImageData"]["Containers"]) == ("image", True, [])
        assert own["ImageData"]["Platform"] == {"os": "linux", "architecture": "amd64"}
        assert (own["ImageData"]["Containers"], own["ImageData"]["Size"]) == (["c" * 64], {"Unpacked": 100})
        assert (claim["Kind"], claim["Available"]) == ("attestation", True)
        assert claim["AttestationData"] == {"For": own["ID"]}
        assert own["Descriptor"]["digest"] == own["ID"]


@run
async def test_an_index_that_is_all_here_is_saved_and_loaded_whole(engine: Engine) -> None:
    async with engine as images:
        await engine.load(tar(_multi_platform()))
        target = images.target("multi:1")
        saved = b"".join([chunk async for chunk in await images.save(["multi:1"])])
        only = b"".join([chunk async for chunk in await images.save(["multi:1"], Platform("linux", "arm64"))])
        await images.remove("multi:1")
        await engine.load(saved)
        assert images.target("multi:1") == target
        assert len(images.table.images) == 2
        assert [one["Available"] for one in images.manifests("multi:1")] == [True] * 3
        await images.remove("multi:1")
        await engine.load(only)
        assert [one.platform for one in images.table.images.values()] == ["linux/arm64"]


@run
async def test_images_of_other_platforms_that_containers_use_are_not_pruned(engine: Engine) -> None:
    async with engine as images:
        await engine.load(tar(_multi_platform()))
        engine.container("c" * 64, images.get("multi:1", Platform("linux", "arm64")).id, "running")
        assert (await images.prune(Filters({"dangling": ["false"]})))["ImagesDeleted"] is None
        engine.containers.clear()
        await images.prune(Filters({"dangling": ["false"]}))
        assert images.table.images == {}


@run
async def test_pruning_removes_children_before_what_they_were_built_on(engine: Engine) -> None:
    async with engine as images:
        await engine.load(docker_archive(["base:1"], ONE))
        base = images.get("base:1")
        await engine.load(docker_archive(["child:1"], ONE, TWO))
        child = images.get("child:1")
        record = images.table.images[child.id]
        await images.add(config=record.config_blob, layers=record.layers, manifest=None, references=[], parent=base.id)
        assert [one.id for one in images.table.children_first()] == [child.id, base.id]
        report = await images.prune(Filters({"dangling": ["false"]}))
        deleted = [one["Deleted"] for one in report["ImagesDeleted"] if "Deleted" in one]
        assert deleted.index(child.id) < deleted.index(base.id)
        assert images.list(all=True) == []
