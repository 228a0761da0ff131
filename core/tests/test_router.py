"""Paths, versions, queries and filters."""

from __future__ import annotations

import pytest

from engine.api.router import API_VERSION, Query, Request, Response, Route, Router
from engine.errors import EngineError, InvalidParameter, NotFound
from engine.model.filters import Filters
from engine.services import Services


async def handler(services: Services, request: Request) -> Response:
    return Response.empty()


@pytest.fixture(scope="module")
def router() -> Router:
    return Router(
        [
            Route("GET", "/images/json", handler),
            Route("GET", "/images/{name:path}/json", handler),
            Route("GET", "/containers/{ref}/json", handler),
            Route("DELETE", "/containers/{ref}", handler),
            Route("GET", "/new", handler, since=(1, 44)),
            Route("GET", "/old", handler, until=(1, 40)),
        ]
    )


@pytest.mark.parametrize(
    ("target", "pattern", "params"),
    [
        ("/images/json", "/images/json", {}),
        ("/v1.40/images/json", "/images/json", {}),
        ("/images/host:5000/a/b:1/json", "/images/{name:path}/json", {"name": "host:5000/a/b:1"}),
        ("/images/a%2Fb/json", "/images/{name:path}/json", {"name": "a/b"}),
        ("/containers/web/json", "/containers/{ref}/json", {"ref": "web"}),
        ("/containers//web/json", "/containers/{ref}/json", {"ref": "web"}),
        ("/v1.24/containers/%2Fweb/json", "/containers/{ref}/json", {"ref": "web"}),
    ],
)
def test_paths_find_their_route(router: Router, target: str, pattern: str, params: dict[str, str]) -> None:
    route, found, _, _ = router.match("GET", target)
    assert (route.pattern, found) == (pattern, params)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/nope"),
        ("POST", "/images/json"),
        ("GET", "/containers/a/b/json"),
        ("DELETE", "/containers/"),
        ("GET", "/v1.x/images/json"),
        ("GET", "/v1.43/new"),
        ("GET", "/old"),
        ("GET", ""),
    ],
)
def test_everything_else_is_page_not_found(router: Router, method: str, target: str) -> None:
    with pytest.raises(NotFound, match=r"^page not found$"):
        router.match(method, target)


def test_the_version_is_the_one_asked_for_or_the_newest(router: Router) -> None:
    assert router.match("GET", "/v1.30/images/json")[3] == (1, 30)
    assert router.match("GET", "/images/json")[3] == API_VERSION
    assert router.match("GET", "/v1.44/new")[0].pattern == "/new"
    assert router.match("GET", "/v1.40/old")[0].pattern == "/old"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "1.23",
            "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a "
            "newer version",
        ),
        ("1.99", "client version 1.99 is too new. Maximum supported API version is 1.50"),
        ("2.0", "client version 2.0 is too new. Maximum supported API version is 1.50"),
    ],
)
def test_versions_out_of_range_are_refused_in_dockerds_words(router: Router, version: str, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        router.match("GET", f"/v{version}/images/json")
    assert (caught.value.http_status, caught.value.message) == (400, message)


def test_flags_are_true_unless_they_say_no() -> None:
    query = Query("a=1&b=0&c=false&d=no&e=none&f=&g=True&h=yes&i=%20")
    assert [key for key in "abcdefghi" if query.flag(key)] == ["a", "g", "h"]
    assert query.flag("absent", default=True)
    assert not query.flag("f", default=True)


def test_numbers_are_read_as_go_does() -> None:
    query = Query("t=-1&x=ten&n=")
    assert (query.number("t"), query.number("n", 5), query.number("none")) == (-1, 5, None)
    with pytest.raises(InvalidParameter) as caught:
        query.number("x")
    assert caught.value.message == 'strconv.Atoi: parsing "ten": invalid syntax'


def test_filters_come_in_two_forms() -> None:
    assert dict(Filters.parse('{"name":{"a":true,"b":true}}')) == {"name": ["a", "b"]}
    assert dict(Filters.parse('{"name":["a","b"],"label":["x"]}')) == {"name": ["a", "b"], "label": ["x"]}
    assert not Filters.parse("")
    for bad in ("x", "[]", '{"a":1}', '{"a":[1]}', '{"a":{"b":1}}'):
        with pytest.raises(InvalidParameter, match=r"^invalid filter$"):
            Filters.parse(bad)


def test_unknown_filters_and_bad_values_are_named() -> None:
    with pytest.raises(InvalidParameter, match=r"^invalid filter 'nope'$"):
        Filters({"nope": ["x"]}).check({"name"})
    with pytest.raises(InvalidParameter, match=r"^invalid filter 'dangling=\[maybe\]'$"):
        Filters({"dangling": ["maybe"]}).flag("dangling")
    assert Filters({"dangling": ["1"]}).flag("dangling")
    assert Filters().flag("dangling", default=True)


def test_filters_match_by_text_expression_prefix_and_label() -> None:
    filters = Filters({"name": ["^we", "db"], "id": ["ab"], "label": ["a", "b=1"], "label!": ["keep"]})
    assert filters.match("name", "web")
    assert not filters.match("name", "cache")
    assert filters.prefix("id", "abc")
    assert not filters.exact("id", "abc")
    assert filters.labels({"a": "", "b": "1"})
    assert not filters.labels({"a": "", "b": "2"})
    assert filters.without_labels({})
    assert not filters.without_labels({"keep": "x"})
    assert not Filters({"name": ["("]}).match("name", "x")
