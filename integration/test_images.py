"""Images of many platforms, our own registry between real clients, and archives other tools read and write."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Client, connects, wait_for


def _serve(root: Path, port: int) -> Iterator[str]:
    program = [os.path.join(os.path.dirname(sys.executable), "engine"), "registry", "serve"]
    address = f"127.0.0.1:{port}"
    process = subprocess.Popen([*program, "--addr", address, "--root", str(root)], stdout=subprocess.DEVNULL)
    wait_for(lambda: connects("127.0.0.1", port), "the registry to listen")
    yield address
    process.terminate()
    assert process.wait(10) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``engine registry serve`` on 127.0.0.1; its ``host:port``."""
    yield from _serve(tmp_path_factory.mktemp("registry"), 5055)


def _digest(output: str) -> str:
    found = re.search(r"sha256:[0-9a-f]{64}", output)
    assert found, output
    return found[0]


def test_push_and_pull_through_our_registry_keep_the_digest(cli: Client, served: str) -> None:
    reference = f"{served}/deep/app-{cli.program}:v1"
    cli("tag", "bb", reference)
    pushed = _digest(cli("push", reference).out)
    assert "Layer already exists" in cli("push", reference).out
    cli("rmi", reference)

    assert _digest(cli("pull", reference).out) == pushed
    assert cli("run", "--rm", reference, "echo", "works").out == "works\n"
    cli("rmi", reference)


def test_other_repositories_of_the_registry_lend_their_layers(docker: Client, served: str) -> None:
    docker("tag", "bb", f"{served}/lender/a:1")
    docker("push", f"{served}/lender/a:1")
    docker("tag", "bb", f"{served}/borrower/b:1")

    assert re.search(r"Mounted from lender/a|Layer already exists", docker("push", f"{served}/borrower/b:1").out)
    docker("rmi", f"{served}/lender/a:1", f"{served}/borrower/b:1")


def _two_platforms(docker: Client, served: str, directory: Path) -> str:
    """An index of amd64 and arm64 in the registry; its reference."""
    base = f"{served}/multi/app"
    docker("tag", "bb", f"{base}:amd64")
    docker("push", f"{base}:amd64")
    archive, changed = directory / "bb.tar", directory / "arm.tar"
    docker("save", "-o", str(archive), f"{base}:amd64")
    _for_arm(archive, changed, f"{base}:arm64")
    docker("load", "-i", str(changed))
    docker("push", f"{base}:arm64")
    entries = []
    for architecture in ("amd64", "arm64"):
        with urllib.request.urlopen(f"http://{served}/v2/multi/app/manifests/{architecture}", timeout=10) as answer:
            data, kind = answer.read(), answer.headers["Content-Type"]
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        platform = {"os": "linux", "architecture": architecture}
        entries.append({"mediaType": kind, "digest": digest, "size": len(data), "platform": platform})
    media_type = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()
    put = urllib.request.Request(f"http://{served}/v2/multi/app/manifests/v1", index, method="PUT")
    put.add_header("Content-Type", media_type)
    urllib.request.urlopen(put, timeout=10).close()
    docker("rmi", f"{base}:amd64", f"{base}:arm64")
    return f"{base}:v1"


def _for_arm(archive: Path, changed: Path, tag: str) -> None:
    """The same image, said to be for arm64, as a plain docker archive."""
    with tarfile.open(archive) as source, tarfile.open(changed, "w") as target:

        def read(name: str) -> bytes:
            file = source.extractfile(name)
            assert file is not None
            return file.read()

        (image,) = json.loads(read("manifest.json"))
        config = json.dumps({**json.loads(read(image["Config"])), "architecture": "arm64"}).encode()
        layers = {f"{number}/layer.tar": read(name) for number, name in enumerate(image["Layers"])}
        name = hashlib.sha256(config).hexdigest() + ".json"
        manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": list(layers)}]).encode()
        for path, data in {**layers, name: config, "manifest.json": manifest}.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))


def test_one_tag_has_every_platform_that_was_pulled(docker: Client, served: str, tmp_path: Path, target: str) -> None:
    if target == "dockerd":
        pytest.skip("dockerd 20.10 keeps one platform a tag")
    reference = _two_platforms(docker, served, tmp_path)

    docker("pull", reference)
    docker("pull", "--platform", "linux/arm64", reference)

    assert len(docker("images", "-q", reference).out.split()) == 1
    assert docker.inspect(reference)["Architecture"] == "amd64"
    shown = json.loads(docker("image", "inspect", "--platform", "linux/arm64", reference).out)[0]
    assert shown["Architecture"] == "arm64"
    tree = docker("images", "--tree", reference).out
    assert "linux/amd64" in tree
    assert "linux/arm64" in tree
    saved = tmp_path / "saved.tar"
    docker("save", "-o", str(saved), reference)
    docker("rmi", reference)
    docker("load", "-i", str(saved))
    shown = json.loads(docker("image", "inspect", "--platform", "linux/arm64", reference).out)[0]
    assert shown["Architecture"] == "arm64"
    docker("rmi", reference)
    assert docker("images", "-q", reference).out == ""


def test_distribution_inspect_tells_the_platforms_of_an_index(docker: Client, served: str, tmp_path: Path) -> None:
    reference = _two_platforms(docker, served, tmp_path)
    path = f"http://localhost/v1.43/distribution/{reference}/json"

    raw = subprocess.run(
        ["curl", "-s", "--unix-socket", str(docker.daemon.socket), path], capture_output=True, check=True
    ).stdout

    assert [entry["architecture"] for entry in json.loads(raw)["Platforms"]] == ["amd64", "arm64"]


def test_a_tag_that_is_pulled_again_for_all_tags_brings_them_all(cli: Client, served: str) -> None:
    base = f"{served}/tags/{cli.program}"
    for tag in ("a", "b"):
        cli("tag", "bb", f"{base}:{tag}")
        cli("push", f"{base}:{tag}")
        cli("rmi", f"{base}:{tag}")

    cli("pull", "-a", base)

    tags = cli("images", "--format", "{{.Tag}}", base).out.split()
    assert sorted(tags) == ["a", "b"]
    cli("rmi", f"{base}:a", f"{base}:b")


@pytest.mark.parametrize("tool", ["skopeo", "umoci", "buildah"])
def test_other_tools_read_what_is_saved(docker: Client, tool: str, tmp_path: Path) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    archive = tmp_path / "saved.tar"
    docker("save", "-o", str(archive), "bb")
    identifier = docker.inspect("bb")["Id"]
    if tool == "skopeo":
        raw = subprocess.run(
            ["skopeo", "inspect", "--raw", "--config", f"docker-archive:{archive}"], capture_output=True, check=True
        ).stdout
        assert "sha256:" + hashlib.sha256(raw).hexdigest() == identifier
    elif tool == "umoci":
        layout = tmp_path / "layout"
        with tarfile.open(archive) as source:
            source.extractall(layout, filter="data")
        subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", str(tmp_path / "bundle")], check=True)
        assert (tmp_path / "bundle" / "rootfs" / "bin").is_dir()
    else:
        storage = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
        subprocess.run(["buildah", *storage, "pull", f"docker-archive:{archive}"], check=True, capture_output=True)
        shown = subprocess.run(
            ["buildah", *storage, "images", "--json", "--no-trunc"], check=True, capture_output=True, text=True
        ).stdout
        assert identifier.removeprefix("sha256:") in shown


def test_what_skopeo_writes_loads_with_the_same_id(docker: Client, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    archive = tmp_path / "saved.tar"
    docker("save", "-o", str(archive), "bb")
    identifier = docker.inspect("bb")["Id"]
    copied = tmp_path / "copied.tar"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", f"docker-archive:{archive}", f"docker-archive:{copied}:copied:1"],
        check=True,
    )

    docker("load", "-i", str(copied))

    assert docker.inspect("copied:1")["Id"] == identifier
    docker("rmi", "copied:1")
