"""The image routes: what they read from a request, ask of the service and answer in each version of the API."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.api.images import ROUTES
from engine.api.progress import progress_response
from engine.api.router import Query, Request, Response, Router
from engine.errors import Conflict, EngineError, Forbidden, InvalidParameter, NotFound
from engine.platforms import Platform
from engine.registry.auth import RegistryAuth
from engine.services import Services

DIGEST = "sha256:" + "a" * 64


class Body:
    """The request's body, as the server would hand it over."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read_body(self, limit: int) -> bytes:
        return self.data

    async def stream_body(self) -> AsyncIterator[bytes]:
        yield self.data


class Images:
    """Notes what it is asked and says what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, dict[str, Any]]] = []
        self.says: list[Mapping[str, object]] = []
        self.fails: Exception | None = None
        self.summaries: list[dict[str, Any]] = []
        self.transfers = self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def ask(*arguments: Any, **options: Any) -> Any:
            return self._note(name, *arguments, **options)

        return ask

    def _note(self, name: str, *arguments: Any, **options: Any) -> Any:
        progress = options.pop("progress", None)
        self.asked.append((name, arguments[0] if arguments else None, options))
        for line in self.says:
            progress(line)
        if self.fails:
            raise self.fails
        return {"import_": "sha256:new", "login": "", "describe": {"Descriptor": {}}}.get(name, [])

    def list(self, filters: Any, **options: Any) -> list[dict[str, Any]]:
        self._note("list", filters, **options)
        return self.summaries

    def inspect(self, reference: str, platform: Platform | None) -> dict[str, Any]:
        self._note("inspect", reference, platform=platform)
        return {"Id": DIGEST, "Size": 7, "Created": "", "Descriptor": {}}

    def history(self, reference: str) -> Any:
        self._note("history", reference)
        return []

    async def save(self, references: Sequence[str], platform: Platform | None) -> AsyncIterator[bytes]:
        self._note("save", references, platform=platform)
        return Body(b"tar").stream_body()


@pytest.fixture
def images() -> Images:
    return Images()


def call(
    images: Images,
    method: str,
    target: str,
    *,
    body: bytes = b"",
    version: tuple[int, int] = (1, 50),
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    async def exchange() -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        route, params, _, _ = Router(ROUTES).match(method, path)
        request = Request(method, path, params, Query(query), headers or {}, version, connection=cast(Any, Body(body)))
        response = await route.handler(cast(Services, SimpleNamespace(images=images)), request)
        assert response is not None
        return response.status, await read(response)

    return asyncio.run(exchange())


async def read(response: Response) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    return b"".join([piece async for piece in response.body])


def lines(body: bytes) -> list[Any]:
    assert body.endswith(b"\r\n")
    return [json.loads(line) for line in body.splitlines()]


# -- pull ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "reference", "all_tags"),
    [
        ("fromImage=nginx&tag=1.2", "nginx:1.2", False),
        ("fromImage=nginx:1.2", "nginx:1.2", False),
        ("fromImage=nginx", "nginx", True),
        ("fromImage=nginx:", "nginx", True),
        (f"fromImage=localhost:5000/a/b&tag={DIGEST}", f"localhost:5000/a/b@{DIGEST}", False),
        (f"fromImage=nginx@{DIGEST}", f"nginx@{DIGEST}", False),
        ("fromImage=docker.io/library/nginx&tag=x", "nginx:x", False),
    ],
)
def test_what_to_pull_is_read_as_dockerd_does(images: Images, query: str, reference: str, all_tags: bool) -> None:
    images.says = [{"status": "hello"}]
    status, body = call(images, "POST", f"/images/create?{query}")
    assert (status, lines(body)) == (200, [{"status": "hello"}])
    name, asked, options = images.asked[0]
    assert (name, asked, options["all_tags"]) == ("pull", reference, all_tags)


def test_platform_and_credentials_reach_the_pull(images: Images) -> None:
    text = base64.urlsafe_b64encode(json.dumps({"username": "u", "password": "p"}).encode()).decode()
    target = "/images/create?fromImage=x&tag=1&platform=linux/arm64"
    call(images, "POST", target, headers={"x-registry-auth": text})
    options = images.asked[0][2]
    assert options["platform"] == Platform("linux", "arm64")
    assert options["auth"] == RegistryAuth(username="u", password="p")


def test_the_platform_is_ignored_before_it_existed(images: Images) -> None:
    call(images, "POST", "/images/create?fromImage=x&tag=1&platform=linux/arm64", version=(1, 31))
    assert images.asked[0][2]["platform"] is None


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("fromImage=UPPER", InvalidParameter),
        ("fromImage=x&tag=b@d", InvalidParameter),
        ("fromImage=x&platform=what/ever", InvalidParameter),
        ("fromImage=scratch", Forbidden),
        ("", InvalidParameter),
    ],
)
def test_bad_requests_are_refused_before_anything_is_asked(images: Images, query: str, kind: type[EngineError]) -> None:
    with pytest.raises(kind):
        call(images, "POST", f"/images/create?{query}")
    assert images.asked == []


def test_an_error_before_the_first_message_is_a_status(images: Images) -> None:
    images.fails = NotFound("manifest for x:1 not found")
    with pytest.raises(NotFound, match="manifest for x:1 not found"):
        call(images, "POST", "/images/create?fromImage=x&tag=1")


def test_an_error_after_the_first_message_ends_the_stream(images: Images) -> None:
    images.says = [{"status": "Pulling from x", "id": "1"}]
    images.fails = InvalidParameter("filesystem layer verification failed")
    status, body = call(images, "POST", "/images/create?fromImage=x&tag=1")
    text = "filesystem layer verification failed"
    assert status == 200
    assert lines(body)[-1] == {"errorDetail": {"message": text}, "error": text}


def test_bars_that_were_not_read_are_replaced_by_newer_ones() -> None:
    async def work(progress: Any) -> None:
        progress({"status": "first"})
        for current in range(1, 1000):
            progress({"status": "Downloading", "id": "a", "progressDetail": {"current": current, "total": 1000}})
        progress({"status": "Pull complete", "id": "a", "progressDetail": {}})

    async def late_reader() -> list[Any]:
        response = await progress_response(work)
        return lines(await read(response))

    told = asyncio.run(late_reader())
    assert [line["status"] for line in told] == ["first", "Downloading", "Pull complete"]
    assert told[1]["progressDetail"]["current"] == 999


def test_a_client_that_leaves_cancels_the_work() -> None:
    ended: list[str] = []

    async def work(progress: Any) -> None:
        progress({"status": "first"})
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def leave() -> None:
        response = await progress_response(work)
        stream = cast(Any, response.body)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert ended == ["cancelled"]


# -- import, load, save, push -------------------------------------------------------------------------------------


def test_an_import_gets_its_name_message_and_changes(images: Images) -> None:
    target = "/images/create?fromSrc=-&repo=me/app&tag=v1&message=hi&changes=CMD%20x&changes=ENV%20a=b"
    _, body = call(images, "POST", target, body=b"tar")
    assert lines(body) == [{"status": "sha256:new"}]
    options = images.asked[0][2]
    assert (options["repository"], options["tag"]) == ("me/app", "v1")
    assert (options["message"], options["changes"]) == ("hi", ["CMD x", "ENV a=b"])


def test_an_import_may_be_nameless(images: Images) -> None:
    call(images, "POST", "/images/create?fromSrc=-", body=b"tar")
    options = images.asked[0][2]
    assert (options["repository"], options["tag"], options["message"]) == ("", "", "Imported from -")


def test_an_error_of_load_is_always_in_the_stream(images: Images) -> None:
    images.fails = InvalidParameter("unexpected EOF")
    status, body = call(images, "POST", "/images/load", body=b"x")
    assert status == 200
    assert lines(body) == [{"errorDetail": {"message": "unexpected EOF"}, "error": "unexpected EOF"}]


@pytest.mark.parametrize(("query", "quiet"), [("", True), ("?quiet=0", False), ("?quiet=1", True)])
def test_load_is_quiet_unless_told(images: Images, query: str, quiet: bool) -> None:
    call(images, "POST", f"/images/load{query}", body=b"x")
    assert images.asked[0][2]["quiet"] is quiet


@pytest.mark.parametrize(
    ("target", "names"),
    [("/images/get?names=a&names=b:1", ["a", "b:1"]), ("/images/reg:5/team/app:1/get", ["reg:5/team/app:1"])],
)
def test_save_takes_one_name_or_several(images: Images, target: str, names: list[str]) -> None:
    assert call(images, "GET", target) == (200, b"tar")
    assert images.asked[0][1] == names


@pytest.mark.parametrize(
    ("target", "reference", "all_tags"),
    [
        ("/images/reg.example:5000/team/app/push?tag=v1", "reg.example:5000/team/app:v1", False),
        ("/images/me/app/push", "me/app", True),
        ("/images/me/app:v2/push", "me/app:v2", False),
    ],
)
def test_what_to_push_is_read_as_dockerd_does(images: Images, target: str, reference: str, all_tags: bool) -> None:
    call(images, "POST", target)
    assert (images.asked[0][1], images.asked[0][2]["all_tags"]) == (reference, all_tags)


@pytest.mark.parametrize(
    ("version", "text", "expected"),
    [
        ((1, 50), '{"os":"linux","architecture":"arm64"}', Platform("linux", "arm64")),
        ((1, 45), '{"os":"linux","architecture":"arm64"}', None),
        ((1, 50), "{}", None),
    ],
)
def test_the_platform_of_a_push_is_json(
    images: Images, version: tuple[int, int], text: str, expected: Platform | None
) -> None:
    call(images, "POST", f"/images/x/push?tag=1&platform={text}", version=version)
    assert images.asked[0][2]["platform"] == expected


@pytest.mark.parametrize("text", ["linux/arm64", '{"architecture":"arm64"}'])
def test_a_platform_that_is_no_json_is_refused(images: Images, text: str) -> None:
    with pytest.raises(InvalidParameter):
        call(images, "POST", f"/images/x/push?tag=1&platform={text}")


# -- list, inspect, tag, remove, prune ----------------------------------------------------------------------------


def test_the_list_has_the_fields_of_the_version_asked_for(images: Images) -> None:
    images.summaries = [{"Id": DIGEST, "RepoTags": [], "RepoDigests": [], "Size": 5, "Containers": 2, "Descriptor": {}}]

    def row(version: tuple[int, int]) -> dict[str, Any]:
        body: list[dict[str, Any]] = json.loads(call(images, "GET", "/images/json", version=version)[1])
        return body[0]

    assert row((1, 42))["RepoTags"] == ["<none>:<none>"]
    assert row((1, 43))["RepoTags"] == []
    assert row((1, 43))["VirtualSize"] == 5
    assert "VirtualSize" not in row((1, 44))
    assert "Descriptor" not in row((1, 47))
    assert "Descriptor" in row((1, 48))
    assert row((1, 50))["Containers"] == -1


def test_the_old_filter_parameter_is_a_reference_filter(images: Images) -> None:
    call(images, "GET", "/images/json?filter=busy*&all=1", version=(1, 24))
    filters, options = images.asked[0][1], images.asked[0][2]
    assert filters["reference"] == ["busy*"]
    assert options["all"] is True


def test_inspect_has_the_fields_of_the_version_asked_for(images: Images) -> None:
    old = json.loads(call(images, "GET", "/images/a/b:c/json", version=(1, 43))[1])
    new = json.loads(call(images, "GET", "/images/a/b:c/json", version=(1, 50))[1])
    assert images.asked[0][1] == "a/b:c"
    assert (old["VirtualSize"], old["Created"], old["Container"]) == (7, "0001-01-01T00:00:00Z", "")
    assert not {"VirtualSize", "Container", "ContainerConfig"} & new.keys()


def test_inspect_of_manifests_and_of_a_platform_exclude_each_other(images: Images) -> None:
    with pytest.raises(InvalidParameter, match="conflicting options"):
        call(images, "GET", '/images/x/json?manifests=1&platform={"os":"linux"}')


def test_tags_are_made_of_repository_and_tag(images: Images) -> None:
    assert call(images, "POST", "/images/abc/tag?repo=reg:5000/x&tag=v2") == (201, b"")
    assert call(images, "POST", "/images/abc/tag?repo=y") == (201, b"")
    assert [asked[0] for asked in images.asked] == ["tag", "tag"]


@pytest.mark.parametrize("query", ["", "repo=UP", "repo=x&tag=b%20d", "repo=sha256&tag=1", f"repo=x&tag={DIGEST}"])
def test_bad_tags_are_refused(images: Images, query: str) -> None:
    with pytest.raises(InvalidParameter):
        call(images, "POST", f"/images/abc/tag?{query}")


def test_remove_passes_force_and_noprune(images: Images) -> None:
    call(images, "DELETE", "/images/a/b:c?force=1&noprune=1")
    call(images, "DELETE", "/images/a/b:c")
    assert images.asked[0][1:] == ("a/b:c", {"force": True, "prune": False})
    assert images.asked[1][1:] == ("a/b:c", {"force": False, "prune": True})


def test_a_conflict_of_remove_is_raised(images: Images) -> None:
    images.fails = Conflict("conflict: unable to remove repository reference")
    with pytest.raises(Conflict):
        call(images, "DELETE", "/images/x")


# -- registries ---------------------------------------------------------------------------------------------------


def test_login_answers_as_docker_does(images: Images) -> None:
    body = json.dumps({"username": "u", "password": "p", "serveraddress": "reg:5000"}).encode()
    status, answer = call(images, "POST", "/auth", body=body, headers={"content-type": "application/json"})
    assert (status, json.loads(answer)) == (200, {"Status": "Login Succeeded", "IdentityToken": ""})
    assert images.asked[0][1] == RegistryAuth(username="u", password="p", serveraddress="reg:5000")


def test_distribution_names_may_have_slashes_and_ports(images: Images) -> None:
    assert call(images, "GET", "/distribution/reg:5000/a/b:1/json")[0] == 200
    assert images.asked[0][:2] == ("describe", "reg:5000/a/b:1")


def test_search_results_are_filtered(images: Images) -> None:
    found = [
        {"name": "a", "star_count": 10, "is_official": True, "is_automated": False},
        {"name": "b", "star_count": 3, "is_official": False, "is_automated": False},
    ]
    images.__dict__["search"] = lambda *_: asyncio.sleep(0, found)
    for filters, names in [("", "ab"), ('{"stars":["5"]}', "a"), ('{"is-official":["false"]}', "b")]:
        _, body = call(images, "GET", f"/images/search?term=x&filters={filters}")
        assert "".join(row["name"] for row in json.loads(body)) == names
