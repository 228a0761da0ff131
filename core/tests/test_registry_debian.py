"""Pull and push against Debian's docker-registry on a port of 127.0.0.1, with skopeo as the second opinion."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config
from engine.errors import EngineError, NotFound, Unauthorized
from engine.events import Events
from engine.images import Images
from engine.plugins import PluginSettings, discover
from engine.registry.auth import RegistryAuth
from engine.store import Store
from engine.workers import Workers

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("docker-registry") or not shutil.which("skopeo"), reason="tools are missing"),
]

USER, PASSWORD = "admin", "secret"
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"  # bcrypt of PASSWORD


@pytest.fixture(scope="module", params=["open", "basic"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``127.0.0.1:<port>`` of a running registry."""
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if request.param == "basic":
        (folder / "htpasswd").write_text(HTPASSWD)
        settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=output, stderr=output
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/v2/", process)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except urllib.error.HTTPError as answered:
            answered.close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("docker-registry did not start")


@pytest.fixture
def auth(registry: str) -> RegistryAuth:
    return RegistryAuth(username=USER, password=PASSWORD, serveraddress=registry)


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def tar_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def layout(folder: Path, layers: list[bytes]) -> None:
    """An OCI image layout of uncompressed layers; skopeo compresses them on their way to a registry."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]}
    config = {"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/hello"]}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [put(layer, "layer.v1.tar") for layer in layers],
    }
    top = put(json.dumps(manifest).encode(), "manifest.v1+json")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@contextlib.asynccontextmanager
async def engine(root: Path) -> AsyncIterator[Images]:
    """An images service of its own, on the vfs store."""
    config = Config(data_root=str(root / "data"), exec_root=str(root / "run"), storage_driver="vfs")
    config.root.mkdir(parents=True, exist_ok=True)
    settings = PluginSettings(
        instance=config.instance, data_root=config.root, exec_root=config.state, default_store="vfs"
    )
    workers, store = Workers(), Store(config.root / "engine.db")
    images = Images(config=config, workers=workers, store=store, events=Events(store), plugins=discover(settings))
    await images.start()
    try:
        yield images
    finally:
        await images.close()
        await workers.close()
        await store.close()


@pytest.fixture
def published(registry: str, tmp_path: Path) -> str:
    """An image that skopeo put into the registry."""
    layout(tmp_path / "layout", [tar_of({"hello": b"one"}), tar_of({"etc/two": b"two" * 50_000})])
    name = f"{registry}/team/app:v1"
    skopeo(
        "copy", "-q", "--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}",
        f"oci:{tmp_path / 'layout'}", f"docker://{name}",
    )  # fmt: skip
    return name


def raw_manifest(name: str) -> bytes:
    return skopeo("inspect", "--raw", "--tls-verify=false", f"--creds={USER}:{PASSWORD}", f"docker://{name}").encode()


def test_what_skopeo_pushed_is_pulled_and_pushed_back_unchanged(
    registry: str, published: str, auth: RegistryAuth, tmp_path: Path
) -> None:
    digest = "sha256:" + hashlib.sha256(raw_manifest(published)).hexdigest()
    copy = f"{registry}/other/copy:v2"

    async def there_and_back() -> None:
        async with engine(tmp_path) as images:
            said: list[Mapping[str, Any]] = []
            await images.pull(published, auth=auth, progress=said.append)
            assert said[-2]["status"] == f"Digest: {digest}"
            image = images.get(published)
            assert image.repo_digests == [f"{registry}/team/app@{digest}"]
            await images.tag(published, copy)
            said.clear()
            await images.push(copy, auth=auth, progress=said.append)
            assert said[-1]["aux"]["Digest"] == digest
            assert f"{registry}/other/copy@{digest}" in images.get(copy).repo_digests
            assert sum("Mounted from team/app" in str(line.get("status")) for line in said) == 2

    asyncio.run(there_and_back())
    assert raw_manifest(copy) == raw_manifest(published)
    target = tmp_path / "checked"
    skopeo(
        "copy", "-q", "--src-tls-verify=false", f"--src-creds={USER}:{PASSWORD}", f"docker://{copy}", f"dir:{target}"
    )
    assert len(list(target.iterdir())) == 5  # manifest, version, config, two layers: all verified by skopeo


def test_a_pull_by_digest_survives_a_moved_tag(
    registry: str, published: str, auth: RegistryAuth, tmp_path: Path
) -> None:
    digest = "sha256:" + hashlib.sha256(raw_manifest(published)).hexdigest()

    async def by_digest() -> None:
        async with engine(tmp_path) as images:
            await images.pull(f"{registry}/team/app@{digest}", auth=auth, progress=lambda _: None)
            assert images.get(f"{registry}/team/app@{digest}").repo_tags == []

    asyncio.run(by_digest())


def test_a_new_daemon_finds_what_was_pulled(published: str, auth: RegistryAuth, tmp_path: Path) -> None:
    async def pull_then_look() -> None:
        async with engine(tmp_path) as images:
            await images.pull(published, auth=auth, progress=lambda _: None)
        async with engine(tmp_path) as images:
            said: list[Mapping[str, Any]] = []
            await images.pull(published, auth=auth, progress=said.append)
            assert said[-1]["status"] == f"Status: Image is up to date for {published}"

    asyncio.run(pull_then_look())


def test_errors_are_dockerds(registry: str, published: str, auth: RegistryAuth, tmp_path: Path) -> None:
    async def ask() -> None:
        async with engine(tmp_path) as images:
            with pytest.raises(NotFound) as caught:
                await images.pull(f"{registry}/team/app:nope", auth=auth, progress=lambda _: None)
            assert str(caught.value) == (
                f"manifest for {registry}/team/app:nope not found: manifest unknown: manifest unknown"
            )
            with pytest.raises(EngineError, match="An image does not exist locally with the tag"):
                await images.push(f"{registry}/team/nothing:v1", auth=auth, progress=lambda _: None)

    asyncio.run(ask())


def test_login_knows_good_from_bad(registry: str, auth: RegistryAuth, tmp_path: Path) -> None:
    wrong = RegistryAuth(username=USER, password="wrong", serveraddress=registry)
    needs_password = False
    try:
        urllib.request.urlopen(f"http://{registry}/v2/", timeout=5).close()
    except urllib.error.HTTPError as refused:
        refused.close()
        needs_password = True

    async def log_in() -> None:
        async with engine(tmp_path) as images:
            assert await images.transfers.login(auth) == ""
            if needs_password:
                with pytest.raises(Unauthorized):
                    await images.transfers.login(wrong)
                with pytest.raises(EngineError, match="no basic auth credentials"):
                    await images.pull(f"{registry}/team/app:v1", progress=lambda _: None)

    asyncio.run(log_in())
