"""spin.toml in both versions, routes, allowed hosts."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine_runtime_spin.hosts import allows
from engine_runtime_spin.manifest import parse, resolve
from engine_runtime_spin.routes import Router

VERSION_2 = """
spin_manifest_version = 2
[application]
name = "demo"
[variables]
token = { required = true, secret = true }
greeting = { default = "hello" }
[[trigger.http]]
route = "/..."
component = "web"
[[trigger.http]]
route = "/cgi"
component = { source = "cgi.wasm" }
executor = { type = "wagi" }
[component.web]
source = "web.wasm"
files = ["assets/*", { source = "static", destination = "/" }]
environment = { A = "{{ greeting }}" }
allowed_outbound_hosts = ["https://api.example.com"]
"""
VERSION_1 = """
spin_manifest_version = "1"
name = "old"
trigger = { type = "http", base = "/" }
[[component]]
id = "web"
source = "web.wasm"
allowed_http_hosts = ["example.com"]
[component.trigger]
route = "/hello"
"""


def test_version_2_is_read() -> None:
    application = parse(VERSION_2)

    assert application.name == "demo"
    assert dict(application.variables) == {"token": None, "greeting": "hello"}
    assert [(route.pattern, route.component, route.executor) for route in application.routes] == [
        ("/...", "web", "http"),
        ("/cgi", "inline-1", "wagi"),
    ]
    assert application.components["web"].files == ("assets/*", ("static", "/"))


def test_version_1_is_read() -> None:
    application = parse(VERSION_1)

    assert application.routes[0].pattern == "/hello"
    assert application.components["web"].allowed_outbound_hosts == ("http://example.com", "https://example.com")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("spin_manifest_version = 2", "spin_manifest_version = 3"), "spin_manifest_version"),
        (('name = "demo"', 'nmae = "demo"'), "unknown key nmae in [application]"),
        (('component = "web"', 'component = "nosuch"'), "'nosuch', which is not defined"),
        (('source = "web.wasm"', 'source = { url = "https://x", digest = "sha256:1" }'), "nothing is downloaded"),
        (("[[trigger.http]]", "[[trigger.redis]]"), "redis are not supported"),
        (("required = true, secret = true", "secret = true"), "token has neither a default nor"),
        (("[application]", "[application"), "spin.toml:"),
        (('files = ["assets/*"', 'sqlite_databases = ["default"]\nfiles = ["assets/*"'), "sqlite_databases"),
    ],
)
def test_what_is_wrong_is_named(change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(VERSION_2.replace(*change))
    assert complaint in str(caught.value)


def test_templates_take_variables_and_miss_none_silently() -> None:
    assert resolve("a {{ x }} {{y}}", {"x": "1", "y": "2"}) == "a 1 2"
    with pytest.raises(InvalidParameter, match="variable x has no value"):
        resolve("{{ x }}", {"x": None})


@pytest.mark.parametrize(
    ("path", "name", "rest", "parameters"),
    [
        ("/", "all", "", {}),
        ("/a/b", "exact", "", {}),
        ("/a/c", "deep", "", {}),
        ("/a/x", "parameter", "", {"id": "x"}),
        ("/a/c/d", "deep", "/d", {}),
        ("/x/y/z", "all", "/x/y/z", {}),
    ],
)
def test_the_most_exact_route_answers(path: str, name: str, rest: str, parameters: dict[str, str]) -> None:
    patterns = {"all": "/...", "deep": "/a/c/...", "parameter": "/a/:id", "exact": "/a/b"}
    router = Router([{"pattern": pattern, "component": name} for name, pattern in patterns.items()])

    match = router.find(path)

    assert match is not None
    assert (match.route["component"], match.rest, dict(match.parameters)) == (name, rest, parameters)


def test_no_route_no_answer() -> None:
    assert Router([{"pattern": "/only", "component": "x"}]).find("/other") is None


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("https://api.example.com", "https://api.example.com/x", True),
        ("https://api.example.com", "http://api.example.com/x", False),
        ("https://api.example.com", "https://api.example.com:8443/", False),
        ("https://api.example.com", "https://evil.com/?api.example.com", False),
        ("https://api.example.com", "https://api.example.com@evil.com/", False),
        ("http://*.example.com", "http://a.example.com/", True),
        ("http://*.example.com", "http://badexample.com/", False),
        ("http://db:8080", "http://db:8080/", True),
        ("http://db:*", "http://db:9/", True),
        ("http://db:80..90", "http://db:85/", True),
        ("http://db:80..90", "http://db:90/", False),
        ("*://db:*", "https://db:1/", True),
        ("http://10.0.0.0/8", "http://10.2.3.4/", True),
        ("http://10.0.0.0/8", "http://11.2.3.4/", False),
    ],
)
def test_outbound_hosts(pattern: str, url: str, allowed: bool) -> None:
    assert allows([pattern], url) is allowed
    assert not allows([], url)
