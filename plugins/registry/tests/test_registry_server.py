"""The registry against the distribution-spec's own list: pull, push, content discovery, content management."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import InvalidParameter
from engine.names import sha256
from engine_registry import engine_configure, engine_subsystems
from engine_registry.server import RegistryServer
from engine_registry.storage import Storage

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = b'{"architecture":"amd64","os":"linux"}'
LAYER = os.urandom(100_000)


def image(**more: object) -> bytes:
    def entry(kind: str, data: bytes) -> dict[str, object]:
        return {"mediaType": kind, "digest": sha256(data), "size": len(data)}

    config = entry("application/vnd.oci.image.config.v1+json", CONFIG)
    layers = [entry("application/vnd.oci.image.layer.v1.tar", LAYER)]
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **more}
    return json.dumps(body).encode()


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["errors"][0]["code"])


class Client:
    def __init__(self, server: RegistryServer) -> None:
        self.server = server
        self.address = f"127.0.0.1:{server.server_address[1]}"
        self.connection = http.client.HTTPConnection(self.address, timeout=10)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        self.connection.request(method, path, body, named)  # type: ignore[arg-type]
        return Answer(self.connection.getresponse())

    def blob(self, data: bytes, name: str = "app") -> None:
        answer = self.ask("POST", f"/v2/{name}/blobs/uploads/?digest={sha256(data)}", data)
        assert answer.status == 201, answer.body

    def manifest(self, reference: str = "v1", data: bytes | None = None, kind: str = MANIFEST) -> Answer:
        return self.ask("PUT", f"/v2/app/manifests/{reference}", data or image(), Content_Type=kind)

    def push(self, *tags: str) -> str:
        self.blob(CONFIG)
        self.blob(LAYER)
        for tag in tags:
            assert self.manifest(tag).status == 201
        return sha256(image())


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    server = RegistryServer(Storage(tmp_path / "registry"), "127.0.0.1:0")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = Client(server)
    yield client
    client.connection.close()
    server.shutdown()
    server.server_close()
    thread.join()


class TestDistributionConformance:
    """By the chapters of the specification."""

    def test_the_version_is_answered(self, client: Client) -> None:
        answer = client.ask("GET", "/v2/")
        assert answer.status == 200
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"

    def test_pull_by_tag_and_by_digest_with_and_without_body(self, client: Client) -> None:
        digest = client.push("v1")
        for reference in ("v1", digest):
            answer = client.ask("GET", f"/v2/app/manifests/{reference}")
            assert (answer.status, answer.body) == (200, image())
            assert answer.headers["Content-Type"] == MANIFEST
            assert answer.headers["Docker-Content-Digest"] == digest
        head = client.ask("HEAD", "/v2/app/manifests/v1")
        assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(image())), b"")
        assert client.ask("GET", f"/v2/app/blobs/{sha256(LAYER)}").body == LAYER
        assert client.ask("HEAD", f"/v2/app/blobs/{sha256(LAYER)}").headers["Content-Length"] == str(len(LAYER))

    def test_a_download_goes_on_where_it_stopped(self, client: Client) -> None:
        client.push("v1")
        part = client.ask("GET", f"/v2/app/blobs/{sha256(LAYER)}", Range="bytes=90000-")
        assert (part.status, part.body) == (206, LAYER[90_000:])
        assert part.headers["Content-Range"] == f"bytes 90000-{len(LAYER) - 1}/{len(LAYER)}"
        assert client.ask("GET", f"/v2/app/blobs/{sha256(LAYER)}", Range="bytes=100000-").status == 416

    def test_what_is_missing_is_404_with_the_code_for_it(self, client: Client) -> None:
        client.push("v1")
        absent = sha256(b"absent")
        assert client.ask("GET", "/v2/app/manifests/none").code == "MANIFEST_UNKNOWN"
        assert client.ask("GET", f"/v2/app/manifests/{absent}").code == "MANIFEST_UNKNOWN"
        assert client.ask("GET", f"/v2/app/blobs/{absent}").code == "BLOB_UNKNOWN"
        assert client.ask("GET", "/v2/other/tags/list").code == "NAME_UNKNOWN"
        assert client.ask("GET", f"/v2/other/blobs/{sha256(LAYER)}").status == 404, "another repository's blob"

    def test_a_blob_comes_in_chunks_in_order(self, client: Client) -> None:
        begun = client.ask("POST", "/v2/app/blobs/uploads/", Content_Length="0")
        assert begun.status == 202
        place = begun.headers["Location"]
        first = client.ask("PATCH", place, LAYER[:60_000], Content_Range="0-59999")
        assert (first.status, first.headers["Range"]) == (202, "0-59999")
        wrong = client.ask("PATCH", place, LAYER[70_000:], Content_Range="70000-99999")
        assert wrong.status == 416
        assert client.ask("GET", place).headers["Range"] == "0-59999"
        client.ask("PATCH", place, iter([LAYER[60_000:90_000]]))  # Transfer-Encoding: chunked
        done = client.ask("PUT", f"{place}?digest={sha256(LAYER)}", LAYER[90_000:])
        assert (done.status, done.headers["Location"]) == (201, f"/v2/app/blobs/{sha256(LAYER)}")
        assert client.ask("GET", done.headers["Location"]).body == LAYER

    def test_an_upload_can_be_given_up(self, client: Client) -> None:
        place = client.ask("POST", "/v2/app/blobs/uploads/").headers["Location"]
        assert client.ask("DELETE", place).status == 204
        assert client.ask("PATCH", place, b"x").code == "BLOB_UPLOAD_UNKNOWN"

    def test_content_that_is_not_its_digest_is_refused_and_not_kept(self, client: Client) -> None:
        answer = client.ask("POST", f"/v2/app/blobs/uploads/?digest={sha256(b'other')}", LAYER)
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
        assert os.listdir(client.server.storage.root / "uploads") == []
        assert client.manifest(sha256(b"other")).code in {"DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"}

    def test_a_blob_is_mounted_from_another_repository_or_uploaded(self, client: Client) -> None:
        client.push("v1")
        mount = f"/v2/other/blobs/uploads/?mount={sha256(LAYER)}&from=app"
        assert client.ask("POST", mount).status == 201
        assert client.ask("GET", f"/v2/other/blobs/{sha256(LAYER)}").body == LAYER
        assert client.ask("POST", mount.replace("from=app", "from=nobody")).status == 202

    def test_a_manifest_needs_its_blobs_and_a_reasonable_size(self, client: Client) -> None:
        assert (client.manifest().status, client.manifest().code) == (400, "MANIFEST_BLOB_UNKNOWN")
        assert client.manifest(data=b"no json").code == "MANIFEST_INVALID"
        assert client.manifest(data=b" " * (5 << 20)).status == 413

    def test_tags_come_in_order_and_in_pages(self, client: Client) -> None:
        client.push("c", "a", "b")
        assert json.loads(client.ask("GET", "/v2/app/tags/list").body) == {"name": "app", "tags": ["a", "b", "c"]}
        page = client.ask("GET", "/v2/app/tags/list?n=2")
        assert json.loads(page.body)["tags"] == ["a", "b"]
        link = page.headers["Link"]
        assert link == '</v2/app/tags/list?n=2&last=b>; rel="next"'
        rest = client.ask("GET", link[1 : link.index(">")])
        assert (json.loads(rest.body)["tags"], rest.headers["Link"]) == (["c"], None)
        assert json.loads(client.ask("GET", "/v2/_catalog").body) == {"repositories": ["app"]}

    def test_referrers_are_listed_and_filtered_by_type(self, client: Client) -> None:
        digest = client.push("v1")
        subject = {"mediaType": MANIFEST, "digest": digest, "size": len(image())}
        sbom = image(subject=subject, artifactType="application/sbom", annotations={"by": "us"})
        answer = client.manifest(sha256(sbom), sbom)
        assert answer.headers["OCI-Subject"] == digest
        signature = image(subject=subject, artifactType="application/signature")
        client.manifest(sha256(signature), signature)
        everything = json.loads(client.ask("GET", f"/v2/app/referrers/{digest}").body)
        assert {entry["digest"] for entry in everything["manifests"]} == {sha256(sbom), sha256(signature)}
        only = client.ask("GET", f"/v2/app/referrers/{digest}?artifactType=application/sbom")
        assert only.headers["OCI-Filters-Applied"] == "artifactType"
        assert [entry["annotations"] for entry in json.loads(only.body)["manifests"]] == [{"by": "us"}]
        assert client.ask("DELETE", f"/v2/app/manifests/{sha256(sbom)}").status == 202
        assert len(json.loads(client.ask("GET", f"/v2/app/referrers/{digest}").body)["manifests"]) == 1
        assert json.loads(client.ask("GET", f"/v2/app/referrers/{sha256(b'x')}").body)["manifests"] == []

    def test_deleting_a_tag_keeps_the_manifest_and_deleting_that_takes_its_tags(self, client: Client) -> None:
        digest = client.push("a", "b")
        assert client.ask("DELETE", "/v2/app/manifests/a").status == 202
        assert client.ask("GET", f"/v2/app/manifests/{digest}").status == 200
        assert client.ask("DELETE", f"/v2/app/manifests/{digest}").status == 202
        assert client.ask("GET", "/v2/app/manifests/b").status == 404
        assert client.ask("DELETE", f"/v2/app/blobs/{sha256(LAYER)}").status == 202
        assert client.ask("GET", f"/v2/app/blobs/{sha256(LAYER)}").status == 404

    @pytest.mark.parametrize("path", ["/v2/../../etc/tags/list", "/v2/Upper/tags/list", "/v2/a/_tags/tags/list"])
    def test_names_that_lead_elsewhere_are_refused(self, client: Client, path: str) -> None:
        assert (client.ask("GET", path).status, client.ask("GET", path).code) == (400, "NAME_INVALID")


def test_garbage_goes_at_the_next_start_and_images_stay(client: Client, tmp_path: Path) -> None:
    client.push("v1")
    client.blob(b"nobody's")
    blobs = client.server.storage.root / "blobs" / "sha256"
    for file in blobs.iterdir():
        os.utime(file, (time.time() - 7200,) * 2)
    Storage(client.server.storage.root)
    kept = {f"sha256:{file.name}" for file in blobs.iterdir()}
    assert kept == {sha256(CONFIG), sha256(LAYER), sha256(image())}


def test_skopeo_copies_an_image_in_and_out_unchanged(client: Client, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    digest = client.push("v1")
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]
    place = f"docker://{client.address}"
    subprocess.run([*copy, f"{place}/app:v1", f"dir:{tmp_path / 'out'}"], check=True)
    subprocess.run([*copy, f"dir:{tmp_path / 'out'}", f"{place}/deep/er/copy:v2"], check=True)
    assert client.ask("HEAD", "/v2/deep/er/copy/manifests/v2").headers["Docker-Content-Digest"] == digest


def test_the_daemon_serves_only_what_it_was_told_to(tmp_path: Path) -> None:
    engine_configure({})
    assert engine_subsystems(services=None) == ()  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="unknown option: port"):
        engine_configure({"port": 5000})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    engine_configure({"listen": address, "root": str(tmp_path)})
    (subsystem,) = engine_subsystems(services=None)  # type: ignore[arg-type]
    engine_configure({})
    assert subsystem.name == "registry"
