"""The registry client against a registry that misbehaves on request."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InvalidParameter, NotFound, NotSupported, Unauthorized
from engine.model.image import Descriptor
from engine.names import parse_reference, sha256
from engine.platforms import Platform
from engine.registry.auth import ANONYMOUS, RegistryAuth, decode_auth, parse_challenges
from engine.registry.client import Registries, Repository
from engine.registry.endpoints import Endpoint, RegistryOptions, endpoints, is_insecure
from engine.registry.errors import Cancelled, RegistryError, not_found
from engine.registry.manifests import MANIFEST_LIMIT, choose, compression, parse
from engine.registry.progress import draw
from engine.registry.transport import Cancel
from engine.testing.registry import FakeRegistry, answer, break_after, redirect

ADMIN = RegistryAuth(username="admin", password="secret")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def registries(pauses: list[float]) -> Iterator[Registries]:
    client = Registries(sleep=pauses.append)
    yield client
    client.close()


def opened(
    registries: Registries, registry: FakeRegistry, name: str = "app", auth: RegistryAuth = ANONYMOUS, **options: object
) -> Repository:
    return next(iter(registries.open(parse_reference(f"{registry.host}/{name}"), auth, **options)))  # type: ignore[arg-type]


def blob(registry: FakeRegistry, data: bytes, name: str = "app") -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=registry.add_blob(name, data), size=len(data))


# -- endpoints ----------------------------------------------------------------------------------------------------


def test_docker_io_is_served_by_its_mirrors_and_then_registry_1() -> None:
    options = RegistryOptions(mirrors=("https://mirror.example/hub/", "http://127.0.0.1:5001"))
    found = endpoints("docker.io", options)
    assert [endpoint.url for endpoint in found] == [
        "https://mirror.example/hub",
        "http://127.0.0.1:5001",
        "https://registry-1.docker.io",
    ]
    assert [endpoint.mirror for endpoint in found] == [True, True, False]
    assert [endpoint.url for endpoint in endpoints("docker.io", options, push=True)] == ["https://registry-1.docker.io"]


@pytest.mark.parametrize(
    ("host", "insecure"),
    [
        ("localhost:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("registry.example", False),
        ("10.0.0.1:5000", False),
        ("lab.example:5000", True),
        ("10.1.2.3:5000", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_plain_http_is_for_loopback_and_what_the_config_names(host: str, insecure: bool) -> None:
    assert is_insecure(host, ("lab.example:5000", "10.1.0.0/16")) is insecure


def test_a_registry_that_is_not_insecure_has_only_tls() -> None:
    assert endpoints("registry.example", RegistryOptions()) == [Endpoint("https://registry.example")]


# -- credentials --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encode", [base64.urlsafe_b64encode, base64.b64encode])
def test_the_auth_header_is_read_in_every_dialect_of_base64(encode: object) -> None:
    text = encode(json.dumps({"username": "ü?>", "password": "p?>>~"}).encode()).decode()  # type: ignore[operator]
    expected = RegistryAuth(username="ü?>", password="p?>>~")
    assert decode_auth(text) == expected
    assert decode_auth(text.rstrip("=")) == expected


@pytest.mark.parametrize("text", ["", None, "!!!", "e30", "bnVsbA==", "W10=", "eyJ"])
def test_an_auth_header_without_credentials_is_anonymous(text: str | None) -> None:
    assert decode_auth(text) == ANONYMOUS


def test_credentials_do_not_show_in_a_repr() -> None:
    shown = repr(RegistryAuth(username="me", password="hidden", identitytoken="idt", registrytoken="rgt"))
    assert "me" in shown
    assert not [secret for secret in ("hidden", "idt", "rgt") if secret in shown]


def test_several_challenges_in_one_header_are_told_apart() -> None:
    found = parse_challenges(
        ['Basic realm="a, b", Bearer realm="https://t/x",service="s \\"q\\"",scope=repository:x:pull']
    )
    assert [challenge.scheme for challenge in found] == ["basic", "bearer"]
    assert found[0].parameters == {"realm": "a, b"}
    assert found[1].parameters == {"realm": "https://t/x", "service": 's "q"', "scope": "repository:x:pull"}


def test_anonymous_bearer_tokens_are_asked_for_once(registries: Registries) -> None:
    with FakeRegistry("bearer") as registry:
        registry.add_image("app", "latest", [b"x"])
        repository = opened(registries, registry)
        for _ in range(3):
            repository.manifest("latest")
        assert registry.count("GET", "/token") == 1
        asked = next(asked for asked in registry.asked if asked.path.startswith("/token"))
        assert "scope=repository%3Aapp%3Apull" in asked.path
        assert "Authorization" not in asked.headers


def test_a_token_the_registry_forgot_is_renewed(registries: Registries) -> None:
    with FakeRegistry("bearer") as registry:
        registry.add_image("app", "latest", [b"x"])
        repository = opened(registries, registry)
        repository.manifest("latest")
        registry.tokens.clear()
        repository.manifest("latest")
        assert registry.count("GET", "/token") == 2


def test_a_registry_that_was_open_and_now_wants_credentials_gets_them(registries: Registries) -> None:
    with FakeRegistry() as registry:
        registry.add_image("app", "latest", [b"x"])
        opened(registries, registry).manifest("latest")
        for scheme in ("basic", "bearer", "basic"):
            registry.auth = scheme
            opened(registries, registry, auth=ADMIN).manifest("latest")


def test_a_token_that_expires_during_an_upload_is_renewed(registries: Registries) -> None:
    with FakeRegistry("bearer") as registry:
        data = os.urandom(900_000)

        def expire(handler: object) -> bool:
            registry.tokens.clear()
            return False

        registry.fault("PUT", "/uploads/", expire)
        repository = opened(registries, registry, push=True)
        repository.upload(descriptor_of(data), lambda: io.BytesIO(data), lambda _: None)
        assert registry.repository("app").blobs[sha256(data)] == data


def test_plain_http_is_asked_directly_once_it_is_known(registries: Registries, registry: FakeRegistry) -> None:
    registry.add_image("app", "latest", [b"x"])
    for _ in range(3):
        opened(registries, registry).manifest("latest")
    assert registry.count("GET", "^/v2/$") == 1
    assert len(registries.transport._pools) == 2  # one attempt at TLS, one plain connection


def test_an_identity_token_is_exchanged_by_post(registries: Registries) -> None:
    with FakeRegistry("bearer") as registry:
        registry.add_image("app", "latest", [b"x"])
        opened(registries, registry, auth=RegistryAuth(identitytoken="refresh-me")).manifest("latest")
        assert registry.count("POST", "/token") == 1


def test_wrong_credentials_at_the_token_server_are_named(registries: Registries) -> None:
    with FakeRegistry("bearer") as registry:
        wrong = RegistryAuth(username="admin", password="wrong-pass")
        with pytest.raises(RegistryError, match=r"^unauthorized: incorrect username or password$"):
            opened(registries, registry, auth=wrong).manifest("latest")


def test_a_registry_that_wants_basic_auth_gets_it(registries: Registries) -> None:
    with FakeRegistry("basic") as registry:
        registry.add_image("app", "latest", [b"x"])
        opened(registries, registry, auth=ADMIN).manifest("latest")
        with pytest.raises(RegistryError, match=r"no basic auth credentials$"):
            opened(registries, registry).manifest("latest")
        with pytest.raises(RegistryError, match=r"^unauthorized: authentication required$"):
            opened(registries, registry, auth=RegistryAuth(username="admin", password="no")).manifest("latest")


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_login_checks_credentials(registries: Registries, scheme: str) -> None:
    with FakeRegistry(scheme) as registry:
        good = RegistryAuth(username="admin", password="secret", serveraddress=registry.host)
        assert registries.login(good) == ("refresh-me" if scheme == "bearer" else "")
        with pytest.raises(Unauthorized) as caught:
            registries.login(
                RegistryAuth(username="admin", password="oops", serveraddress=f"http://{registry.host}/v2/")
            )
        assert "nauthorized" in str(caught.value)
        assert "oops" not in str(caught.value)


def test_credentials_do_not_follow_a_redirect_to_another_host(registries: Registries) -> None:
    with FakeRegistry("basic") as registry, FakeRegistry() as elsewhere:
        wanted = blob(registry, b"layer")
        elsewhere.add_blob("app", b"layer")
        registry.fault("GET", "/blobs/", redirect(lambda path: f"http://{elsewhere.host}{path}"))
        assert b"".join(opened(registries, registry, auth=ADMIN).blob(wanted)) == b"layer"
        assert registry.asked[-1].headers["Authorization"].startswith("Basic ")
        assert "Authorization" not in elsewhere.asked[-1].headers


def test_credentials_do_not_go_to_an_upload_location_on_another_host(registries: Registries) -> None:
    with FakeRegistry("basic") as registry, FakeRegistry() as elsewhere:
        elsewhere.repository("app").uploads["u"] = bytearray()
        location = f"http://{elsewhere.host}/v2/app/blobs/uploads/u"
        registry.fault("POST", "/uploads/", answer(202, {"Location": location}))
        data = b"content"
        descriptor = Descriptor(media_type="x", digest=sha256(data), size=len(data))
        repository = opened(registries, registry, auth=ADMIN, push=True)
        repository.upload(descriptor, lambda: io.BytesIO(data), lambda _: None)
        assert "Authorization" not in elsewhere.asked[-1].headers


def test_mirrors_get_no_credentials() -> None:
    with FakeRegistry() as mirror:
        client = Registries(RegistryOptions(mirrors=(f"http://{mirror.host}",)))
        mirror.add_image("library/app", "latest", [b"x"])
        repository = next(iter(client.open(parse_reference("app"), ADMIN)))
        repository.manifest("latest")
        assert repository.endpoint.mirror
        assert not [asked for asked in mirror.asked if "Authorization" in asked.headers]


# -- redirects, retries, words ------------------------------------------------------------------------------------


def test_redirects_in_circles_end(registry: FakeRegistry, registries: Registries) -> None:
    wanted = blob(registry, b"layer")
    registry.fault("GET", "/blobs/", redirect(lambda path: path), times=100)
    with pytest.raises(RegistryError, match=r"stopped after 10 redirects$"):
        list(opened(registries, registry).blob(wanted))


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(
    registry: FakeRegistry, registries: Registries, pauses: list[float], status: int
) -> None:
    registry.add_image("app", "latest", [b"x"])
    registry.fault("GET", "/manifests/", answer(status, {"Retry-After": "7"}), times=2)
    opened(registries, registry).manifest("latest")
    assert pauses == [7.0, 7.0]


def test_pauses_grow_and_attempts_end(registry: FakeRegistry, registries: Registries, pauses: list[float]) -> None:
    registry.fault("GET", "/manifests/", answer(503), times=100)
    with pytest.raises(RegistryError, match=r"^received unexpected HTTP status: 503 Service Unavailable$"):
        opened(registries, registry).manifest("latest")
    assert registry.count("GET", "/manifests/") == 5
    assert len(pauses) == 4
    assert pauses == sorted(pauses)


def test_a_retry_after_of_hours_is_cut(registry: FakeRegistry, registries: Registries, pauses: list[float]) -> None:
    registry.add_image("app", "latest", [b"x"])
    registry.fault("GET", "/manifests/", answer(429, {"Retry-After": "86400"}))
    opened(registries, registry).manifest("latest")
    assert pauses == [60.0]


def test_unknown_manifests_are_named_as_dockerd_does(registry: FakeRegistry, registries: Registries) -> None:
    with pytest.raises(RegistryError) as caught:
        opened(registries, registry).manifest("nope")
    shown = not_found(caught.value, f"{registry.host}/app", f"{registry.host}/app:nope")
    assert isinstance(shown, NotFound)
    assert str(shown) == f"manifest for {registry.host}/app:nope not found: manifest unknown: manifest unknown"


def test_insufficient_scope_is_access_denied(registry: FakeRegistry, registries: Registries) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{registry.host}/token",error="insufficient_scope"'}
    registry.fault("GET", "/manifests/", answer(401, challenge), times=5)
    with pytest.raises(RegistryError) as caught:
        opened(registries, registry).manifest("latest")
    assert str(not_found(caught.value, "x", "x:latest")) == (
        "pull access denied for x, repository does not exist or may require 'docker login': "
        "denied: requested access to the resource is denied"
    )


def test_html_instead_of_json_is_shown_in_short(registry: FakeRegistry, registries: Registries) -> None:
    registry.fault("GET", "/manifests/", answer(404, body=b"<html>" + b"x" * 9999))
    with pytest.raises(RegistryError) as caught:
        opened(registries, registry).manifest("latest")
    assert "error parsing HTTP 404 response body" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_html_with_status_200_is_no_manifest(registry: FakeRegistry, registries: Registries) -> None:
    registry.fault("GET", "/manifests/", answer(200, {"Content-Type": "text/html"}, b"<html>hello</html>"))
    with pytest.raises(InvalidParameter, match="failed to decode manifest"):
        opened(registries, registry).manifest("latest")


def test_a_closed_port_is_connection_refused(registries: Registries) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(RegistryError) as caught:
            next(iter(registries.open(parse_reference(f"127.0.0.1:{port}/app"))))
    assert str(caught.value) == (
        f'Get "http://127.0.0.1:{port}/v2/": dial tcp 127.0.0.1:{port}: connect: connection refused'
    )


def test_an_unknown_host_is_named(registries: Registries, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(RegistryError) as caught:
        next(iter(registries.open(parse_reference("nginx"))))
    assert str(caught.value) == (
        'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host'
    )


def test_plain_http_where_tls_is_needed_is_named_as_go_does(registry: FakeRegistry) -> None:
    with Registries().transport.request(
        "GET", f"http://{registry.host}/v2/", endpoint=Endpoint(f"http://{registry.host}")
    ) as response:
        assert response.status == 200
    with pytest.raises(RegistryError, match=r"http: server gave HTTP response to HTTPS client$"):
        Registries().transport.request(
            "GET", f"https://{registry.host}/v2/", endpoint=Endpoint(f"https://{registry.host}")
        )


def test_signed_urls_and_passwords_stay_out_of_errors(registries: Registries) -> None:
    with FakeRegistry() as registry:
        wanted = blob(registry, b"layer")
        registry.fault("GET", "/blobs/", redirect("http://u:pw@127.0.0.1:1/x?signature=s3cret"), times=9)
        with pytest.raises(RegistryError) as caught:
            list(opened(registries, registry).blob(wanted))
    assert "s3cret" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_secrets_stay_out_of_the_log_at_every_level(caplog: pytest.LogCaptureFixture) -> None:
    with FakeRegistry("bearer") as registry, FakeRegistry() as storage, caplog.at_level("DEBUG"):
        wanted = blob(registry, b"layer")
        storage.add_blob("app", b"layer")
        registry.fault("GET", "/blobs/", redirect(lambda path: f"http://{storage.host}{path}?signature=s3cret"))
        registry.fault("GET", "/manifests/", answer(503))
        registry.add_image("app", "latest", [b"x"])
        repository = opened(Registries(sleep=lambda _: None), registry, auth=ADMIN)
        repository.manifest("latest")
        assert b"".join(repository.blob(wanted)) == b"layer"
        logged = "".join(str(vars(record)) for record in caplog.records)
        assert "trying again" in logged
        assert not [secret for secret in ("s3cret", "secret", "YWRtaW46", *registry.tokens) if secret in logged]


def test_a_redirect_from_tls_to_a_foreign_plain_host_is_refused() -> None:
    transport = Registries().transport
    with pytest.raises(RegistryError, match="refusing to follow a redirect from https to http"):
        transport._check_redirect("https://registry.example/v2/x", "http://cdn.example/x")


# -- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=registry.test "
        "-addext subjectAltName=DNS:registry.test".split(),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def tls_registry(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    """A registry with its own CA, known to this process as registry.test."""
    real = socket.getaddrinfo

    def resolve(host: str, *rest: object, **more: object) -> object:
        return real("127.0.0.1" if host == "registry.test" else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with FakeRegistry() as fake:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        fake._server.socket = context.wrap_socket(fake._server.socket, server_side=True)
        yield fake


def test_an_unknown_authority_is_refused_and_certs_d_makes_it_known(
    tls_registry: FakeRegistry, certificate: Path, tmp_path: Path
) -> None:
    host = f"registry.test:{tls_registry.host.rpartition(':')[2]}"
    tls_registry.add_image("app", "latest", [b"x"])
    reference = parse_reference(f"{host}/app")
    options = RegistryOptions(certificates=tmp_path)
    with pytest.raises(RegistryError, match=r"x509: certificate signed by unknown authority$"):
        next(iter(Registries(options).open(reference)))
    (tmp_path / host).mkdir()
    (tmp_path / host / "ca.crt").write_bytes((certificate / "cert.pem").read_bytes())
    next(iter(Registries(options).open(reference))).manifest("latest")


def test_a_client_certificate_without_its_key_is_an_error(tls_registry: FakeRegistry, tmp_path: Path) -> None:
    host = f"registry.test:{tls_registry.host.rpartition(':')[2]}"
    (tmp_path / host).mkdir()
    (tmp_path / host / "client.cert").write_text("")
    with pytest.raises(RegistryError, match=r"missing key client\.key for client certificate client\.cert$"):
        next(iter(Registries(RegistryOptions(certificates=tmp_path)).open(parse_reference(f"{host}/app"))))


def test_an_insecure_registry_may_have_any_certificate(tls_registry: FakeRegistry) -> None:
    tls_registry.add_image("app", "latest", [b"x"])
    opened(Registries(), tls_registry).manifest("latest")


# -- manifests ----------------------------------------------------------------------------------------------------


def test_a_manifest_that_is_too_large_is_not_read(registry: FakeRegistry, registries: Registries) -> None:
    registry.fault("GET", "/manifests/", answer(200, {}, b" " * (MANIFEST_LIMIT + 1)))
    with pytest.raises(RegistryError, match="larger than 4194304 bytes"):
        opened(registries, registry).manifest("latest")


def test_a_manifest_must_hash_to_what_was_asked_for(registry: FakeRegistry, registries: Registries) -> None:
    wanted = registry.add_image("app", "latest", [b"x"])
    kind, raw = registry.repository("app").manifests[wanted["digest"]]
    registry.repository("app").manifests[wanted["digest"]] = (kind, raw + b" ")
    with pytest.raises(InvalidParameter, match=f"manifest verification failed for digest {wanted['digest']}"):
        opened(registries, registry).manifest(wanted["digest"])


def test_a_manifest_must_hash_to_what_the_registry_promised(registry: FakeRegistry, registries: Registries) -> None:
    registry.add_image("app", "latest", [b"x"])
    _, raw = registry.repository("app").manifests["latest"]
    registry.fault("GET", "/manifests/", answer(200, {"Docker-Content-Digest": "sha256:" + "0" * 64}, raw))
    with pytest.raises(InvalidParameter, match="manifest verification failed"):
        opened(registries, registry).manifest("latest")


def test_schema_1_is_refused_with_advice() -> None:
    with pytest.raises(NotSupported, match="schema 1 support has been removed"):
        parse(b'{"schemaVersion": 1, "fsLayers": []}', "application/vnd.docker.distribution.manifest.v1+prettyjws")


OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SOME = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "a" * 64, "size": 3}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"mediaType": OCI_INDEX, "manifests": [], "config": SOME}, ""),
        ({"mediaType": OCI_MANIFEST, "manifests": [], "config": SOME}, ""),
        ({"mediaType": OCI_INDEX, "manifests": []}, OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST}, ""),
        ({"mediaType": OCI_MANIFEST, "config": {**SOME, "digest": "sha256:../../x"}}, ""),
        ({"mediaType": OCI_MANIFEST, "config": {**SOME, "size": -1}}, ""),
        ({"mediaType": OCI_MANIFEST, "config": SOME, "layers": [SOME] * 1000}, ""),
        ([1, 2], ""),
    ],
)
def test_documents_that_are_two_things_or_none_are_refused(document: object, said: str) -> None:
    with pytest.raises(InvalidParameter):
        parse(json.dumps(document).encode(), said)


def test_unknown_types_are_refused() -> None:
    with pytest.raises(NotSupported, match="unsupported manifest media type"):
        parse(b'{"mediaType": "application/vnd.other"}')


def test_foreign_layers_are_refused_with_the_reason() -> None:
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    with pytest.raises(NotSupported, match="is a foreign layer"):
        compression(Descriptor(media_type=kind, digest="sha256:" + "a" * 64, size=1))


def index(*platforms: str) -> bytes:
    entries = []
    for number, text in enumerate(platforms):
        shown = dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))
        entries.append({**SOME, "digest": f"sha256:{number:064x}", "platform": shown})
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ([Platform("linux", "amd64")], 1),
        ([Platform("linux", "arm", "v7")], 3),
        ([Platform("linux", "arm64")], 4),
        ([Platform("linux", "riscv64"), Platform("wasi", "wasm")], 5),
    ],
)
def test_the_entry_for_the_platform_is_chosen(wanted: list[Platform], number: int) -> None:
    found = choose(
        parse(index("unknown/unknown", "linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "wasip1/wasm")),
        wanted,
    )
    assert found.digest == f"sha256:{number:064x}"


def test_a_platform_that_is_missing_is_named() -> None:
    with pytest.raises(NotFound) as caught:
        choose(parse(index("linux/amd64")), [Platform("windows", "amd64")])
    assert str(caught.value) == (
        "no matching manifest for windows/amd64 in the manifest list entries: "
        "no match for platform in manifest: not found"
    )


# -- blobs --------------------------------------------------------------------------------------------------------


def test_a_broken_download_goes_on_where_it_stopped(
    registry: FakeRegistry, registries: Registries, pauses: list[float]
) -> None:
    data = os.urandom(700_000)
    wanted = blob(registry, data)
    registry.fault("GET", "/blobs/", break_after(300_000), times=2)
    assert b"".join(opened(registries, registry).blob(wanted)) == data
    ranges = [asked.headers.get("Range") for asked in registry.asked if "/blobs/" in asked.path]
    assert ranges[0] is None
    assert ranges[1] == "bytes=300000-699999"
    assert len(ranges) == 3


def test_a_registry_without_ranges_starts_over_and_nothing_is_doubled(
    registry: FakeRegistry, registries: Registries
) -> None:
    data = os.urandom(700_000)
    wanted = blob(registry, data)
    registry.fault("GET", "/blobs/", break_after(300_000))
    registry.fault("GET", "/blobs/", answer(200, {}, data))
    assert b"".join(opened(registries, registry).blob(wanted)) == data


def test_a_download_that_never_moves_is_given_up(registry: FakeRegistry, registries: Registries) -> None:
    wanted = blob(registry, b"x" * 1000)
    registry.fault("GET", "/blobs/", break_after(0), times=100)
    with pytest.raises(RegistryError) as caught:
        list(opened(registries, registry).blob(wanted))
    assert caught.value.broken
    assert registry.count("GET", "/blobs/") == 5


def test_more_bytes_than_promised_end_the_download(registry: FakeRegistry, registries: Registries) -> None:
    wanted = blob(registry, b"x" * 1000)
    small = Descriptor(media_type="x", digest=wanted.digest, size=10)
    with pytest.raises(RegistryError, match="is larger than its size of 10 bytes"):
        list(opened(registries, registry).blob(small))


def test_a_missing_blob_is_an_error_at_once(registry: FakeRegistry, registries: Registries) -> None:
    missing = Descriptor(media_type="x", digest="sha256:" + "b" * 64, size=10)
    with pytest.raises(RegistryError, match=r"^blob unknown: blob unknown to registry$"):
        list(opened(registries, registry).blob(missing))
    assert registry.count("GET", "/blobs/") == 1


def test_a_wrong_range_is_not_taken(registry: FakeRegistry, registries: Registries) -> None:
    wanted = blob(registry, b"0123456789")
    registry.fault("GET", "/blobs/", answer(206, {"Content-Range": "bytes 0-4/10"}, b"01234"))
    with pytest.raises(RegistryError, match="wrong range"):
        list(opened(registries, registry).blob(wanted, 5))


def test_a_cancelled_download_stops(registry: FakeRegistry, registries: Registries) -> None:
    cancel = Cancel()
    wanted = blob(registry, b"x" * 2_000_000)
    pieces = opened(registries, registry, cancel=cancel).blob(wanted)
    next(pieces)
    cancel.set()
    with pytest.raises(Cancelled):
        list(pieces)


def test_a_stalled_download_ends_when_the_transfer_is_cancelled(registry: FakeRegistry) -> None:
    cancel, stalled, ended = Cancel(), threading.Event(), threading.Event()
    wanted = blob(registry, b"x" * 1000)

    def stall(handler: Any) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.flush()
        stalled.set()
        ended.wait(30)
        return True

    registry.fault("GET", "/blobs/", stall)

    def leave() -> None:
        stalled.wait(30)
        cancel.set()

    threading.Thread(target=leave).start()
    try:
        with pytest.raises(Cancelled):
            list(opened(Registries(), registry, cancel=cancel).blob(wanted))
    finally:
        ended.set()


def test_a_pause_ends_when_the_transfer_is_cancelled(registry: FakeRegistry) -> None:
    cancel = Cancel()
    repository = opened(Registries(), registry, cancel=cancel)
    registry.fault("GET", "/manifests/", answer(503, {"Retry-After": "50"}), times=9)
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(Cancelled):
        repository.manifest("latest")


def test_tags_are_read_page_by_page(registry: FakeRegistry, registries: Registries) -> None:
    for tag in ("v1", "v2", "v3", "v4", "v5"):
        registry.add_image("app", tag, [b"x"])
    assert opened(registries, registry).tags() == ["v1", "v2", "v3", "v4", "v5"]
    assert registry.count("GET", "/tags/list") == 3


# -- uploads ------------------------------------------------------------------------------------------------------


def descriptor_of(data: bytes) -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=sha256(data), size=len(data))


def test_a_blob_is_uploaded_whole(registry: FakeRegistry, registries: Registries) -> None:
    data = os.urandom(900_000)
    told: list[int] = []
    opened(registries, registry, push=True).upload(descriptor_of(data), lambda: io.BytesIO(data), told.append)
    assert registry.repository("app").blobs[sha256(data)] == data
    assert registry.count("PATCH") == 0
    assert told[-1] == len(data)


def test_a_registry_that_takes_no_large_body_gets_chunks(registry: FakeRegistry, registries: Registries) -> None:
    data = os.urandom(900_000)
    registry.monolithic = False
    opened(registries, registry, push=True).upload(descriptor_of(data), lambda: io.BytesIO(data), lambda _: None)
    assert registry.repository("app").blobs[sha256(data)] == data
    assert registry.count("PATCH") == 1


def test_an_upload_that_fails_is_sent_again(registry: FakeRegistry, registries: Registries) -> None:
    data = os.urandom(900_000)
    registry.fault("PUT", "/uploads/", answer(503), times=2)
    opened(registries, registry, push=True).upload(descriptor_of(data), lambda: io.BytesIO(data), lambda _: None)
    assert registry.repository("app").blobs[sha256(data)] == data


def test_an_upload_the_registry_finds_wrong_is_an_error(registry: FakeRegistry, registries: Registries) -> None:
    wrong = Descriptor(media_type="x", digest="sha256:" + "c" * 64, size=3)
    with pytest.raises(RegistryError, match=r"^digest invalid: provided digest did not match uploaded content$"):
        opened(registries, registry, push=True).upload(wrong, lambda: io.BytesIO(b"abc"), lambda _: None)


def test_a_blob_of_another_repository_is_mounted(registry: FakeRegistry, registries: Registries) -> None:
    wanted = blob(registry, b"shared", name="base")
    repository = opened(registries, registry, push=True)
    assert repository.mount(wanted.digest, "base") == ""
    assert wanted.digest in registry.repository("app").blobs
    place = repository.mount("sha256:" + "d" * 64, "base")
    assert place.startswith(f"http://{registry.host}/v2/app/blobs/uploads/")


# -- the rest -----------------------------------------------------------------------------------------------------


def test_the_bar_is_dockers() -> None:
    assert draw(0, 2000) == "[>" + " " * 50 + "]       0B/2kB"
    assert draw(1000, 2000) == "[" + "=" * 25 + ">" + " " * 25 + "]      1kB/2kB"
    assert draw(2000, 2000) == "[" + "=" * 50 + ">]      2kB/2kB"


def test_the_client_is_imported_without_urllib3_and_ssl() -> None:
    code = "import sys, engine.registry.client; sys.exit(bool({'urllib3', 'ssl', 'http.client'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
