"""JSON as Go reads and writes it. Texts compared with dockerd's answers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.api.codec import decode, encode, read_json
from engine.errors import InvalidParameter
from engine.model.container import Config, HostConfig, RestartPolicy


class Body(msgspec.Struct, rename="pascal", kw_only=True):
    """A request body with one field of every kind."""

    name: str = ""
    count: int = 0
    ratio: float = 0.0
    on: bool = False
    maybe: bool | None = None
    names: list[str] | None = None
    labels: dict[str, str] | None = None
    sets: dict[str, dict[str, Any]] | None = None
    size: tuple[int, int] = (0, 0)
    inner: RestartPolicy = RestartPolicy()
    anything: Any = None


def test_keys_match_whatever_their_case_and_unknown_ones_are_ignored() -> None:
    body = decode(b'{"NAME":"a","cOUNT":3,"nope":{"deep":[1]},"inner":{"maximumretrycount":2}}', Body)
    assert (body.name, body.count, body.inner.maximum_retry_count) == ("a", 3, 2)


def test_null_is_the_zero_value_everywhere() -> None:
    keys = ("Name", "Count", "Ratio", "On", "Maybe", "Names", "Labels", "Sets", "Size", "Inner", "Anything")
    assert decode(encode(dict.fromkeys(keys)), Body) == Body()
    assert decode(b"null", Body) == Body()
    assert decode(b'{"Names":[null],"Labels":{"a":null},"Sets":{"b":null}}', Body) == Body(
        names=[""], labels={"a": ""}, sets={"b": {}}
    )


def test_a_command_may_be_a_string_or_a_list() -> None:
    assert decode(b'{"Cmd":"ls -l","Entrypoint":["sh"]}', Config).cmd == ["ls -l"]
    assert decode(b'{"CapAdd":"ALL"}', HostConfig).cap_add == ["ALL"]


def test_whole_floats_are_integers() -> None:
    assert decode(b'{"Count":3.0,"Ratio":3}', Body) == Body(count=3, ratio=3.0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "invalid JSON: got EOF while reading request body"),
        (b"  \n", "invalid JSON: got EOF while reading request body"),
        (b'{"Name":"a"', "invalid JSON: unexpected EOF"),
        (b'{"Name":"a"}{"Name":"b"}', "unexpected content after JSON"),
        (b"[]", "invalid JSON: json: cannot unmarshal array into Go value of type Body"),
        (b'{"Count":"x"}', "invalid JSON: json: cannot unmarshal string into Go struct field Body.Count of type int64"),
        (
            b'{"Count":1.5}',
            "invalid JSON: json: cannot unmarshal number 1.5 into Go struct field Body.Count of type int64",
        ),
        (b'{"On":1}', "invalid JSON: json: cannot unmarshal number into Go struct field Body.On of type bool"),
        (
            b'{"Labels":[1]}',
            "invalid JSON: json: cannot unmarshal array into Go struct field Body.Labels of type map[string]string",
        ),
        (
            b'{"Inner":{"Name":{}}}',
            "invalid JSON: json: cannot unmarshal object into Go struct field RestartPolicy.Inner.Name of type string",
        ),
    ],
)
def test_bad_bodies_are_refused_in_gos_words(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        decode(raw, Body)
    assert caught.value.message == message


def test_a_syntax_error_names_the_character() -> None:
    with pytest.raises(InvalidParameter, match="invalid character 'x'"):
        decode(b"{x", Body)


def test_absurd_nesting_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="max depth"):
        decode(b"[" * 100_000, Body)


def test_the_content_type_must_be_json_unless_there_is_no_body() -> None:
    assert read_json(b"", "", Body) == Body()
    assert read_json(b'{"Name":"a"}', "application/json; charset=utf-8", Body).name == "a"
    with pytest.raises(InvalidParameter) as caught:
        read_json(b"{}", "text/plain", Body)
    assert caught.value.message == "unsupported Content-Type header (text/plain): must be 'application/json'"
    with pytest.raises(InvalidParameter, match="malformed Content-Type header"):
        read_json(b"{}", "", Body)


def test_writing_escapes_html_as_go_does_and_ends_the_line() -> None:
    assert encode({"a": "<b> & \u2028 é"}) == '{"a":"\\u003cb\\u003e \\u0026 \\u2028 é"}\n'.encode()
    assert decode(encode({"Name": "<&>\u2029"}), Body).name == "<&>\u2029"
