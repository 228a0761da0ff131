"""Sizes, durations, tables, ports, progress and JSON are written as docker writes them."""

from __future__ import annotations

import io
import json

import pytest

from engine.cli.containers import displayable_ports, ellipsis, quoted, trimmed_image
from engine.cli.events import line
from engine.cli.failures import Failure
from engine.cli.images import rows, split_name
from engine.cli.jsontext import dumps, loads
from engine.cli.progress import bar, display
from engine.cli.streams import EscapeFilter, write_frames
from engine.cli.tables import aligned
from engine.cli.terminal import detach_keys
from engine.cli.units import binary_size, human_duration, human_size, parse_bytes, parse_duration, rfc3339, timestamp


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (125, "2 minutes"),
        (3000, "50 minutes"), (3600, "About an hour"), (5400, "2 hours"),
        (47 * 3600, "47 hours"), (3 * 86400, "3 days"),
        (20 * 86400, "2 weeks"), (90 * 86400, "3 months"), (800 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_durations_are_rounded_for_people(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "digits", "text"),
    [(0, 4, "0B"), (999, 4, "999B"), (1000, 4, "1kB"), (1982000, 3, "1.98MB"), (1982000, 4, "1.982MB"),
     (12345678, 3, "12.3MB"),
     (5 * 10**9, 4, "5GB")],
)  # fmt: skip
def test_sizes_have_decimal_units(size: int, digits: int, text: str) -> None:
    assert human_size(size, digits) == text


def test_memory_has_binary_units() -> None:
    assert binary_size(8219000000) == "7.655GiB"


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("5b", 5), ("1k", 1024), ("64MiB", 64 << 20), ("1.5gb", 3 << 29), ("2 g", 2 << 30)]
)
def test_sizes_are_read_in_binary_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1x", "1.2.3k"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        parse_bytes(text)


def test_durations_are_read_as_go_reads_them() -> None:
    assert parse_duration("1h30m10.5s") == 5410500000000
    assert parse_duration("-2ms") == -2000000
    with pytest.raises(ValueError, match='unknown unit "x"'):
        parse_duration("3x")


def test_times_for_since_and_until() -> None:
    assert timestamp("1700000000.5") == "1700000000.5"
    assert timestamp("2023-11-14T22:13:20.25Z") == "1700000000.250000000"
    assert rfc3339("2023-11-14T22:13:20.25Z") == 1700000000.25
    with pytest.raises(ValueError, match="cannot parse"):
        timestamp("yesterday")


def test_columns_are_three_spaces_apart_and_at_least_ten_wide() -> None:
    assert aligned([["ID", "NAME", "X"], ["1", "a-very-long-name", "y"]]) == [
        "ID        NAME               X",
        "1         a-very-long-name   y",
    ]


def test_a_column_is_as_wide_as_its_adjoining_cells_only() -> None:
    assert aligned([["a", "b"], ["title"], ["longer cell", "c"]], least=0, padding=1) == [
        "a b",
        "title",
        "longer cell c",
    ]


def port(private: int, public: int | None = None, address: str = "0.0.0.0", kind: str = "tcp") -> dict[str, object]:
    return {"PrivatePort": private, "Type": kind, **({"PublicPort": public, "IP": address} if public else {})}


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ([port(80, 80)], "0.0.0.0:80->80/tcp"),
        ([port(80, 8080), port(443)], "443/tcp, 0.0.0.0:8080->80/tcp"),
        (
            [port(7000, 7000), port(7001, 7001), port(7003, 7003)],
            "0.0.0.0:7000-7001->7000-7001/tcp, 0.0.0.0:7003->7003/tcp",
        ),
        ([port(80, 80, "::"), port(53, kind="udp"), port(54, kind="udp")], "53-54/udp, [::]:80->80/tcp"),
        ([], ""),
    ],
)
def test_ports_collapse_into_ranges(ports: list[dict[str, object]], text: str) -> None:
    assert displayable_ports(ports) == text


def test_commands_are_cut_and_quoted() -> None:
    assert quoted(ellipsis('sh -c "sleep 1000000"', 20)) == '"sh -c \\"sleep 100000…"'
    assert quoted("a\tb") == '"a\\tb"'


def test_an_image_without_a_name_is_shown_by_its_id() -> None:
    record = {"Image": "sha256:" + "ab" * 32, "ImageID": "sha256:" + "ab" * 32}
    assert trimmed_image(record, False) == "abababababab"
    assert trimmed_image({"Image": "a/b:c@sha256:" + "0" * 64, "ImageID": ""}, False) == "a/b:c"


def test_an_image_has_a_line_for_each_tag() -> None:
    image = {"Id": "sha256:1", "RepoTags": ["a:1", "a:2", "r:5000/b:3"], "RepoDigests": ["a@sha256:9", "c@sha256:8"]}
    found = [(row["Repository"], row["Tag"], row["Digest"]) for row in rows([image], digests=True)]
    assert found == [
        ("a", "1", "sha256:9"),
        ("a", "2", "sha256:9"),
        ("r:5000/b", "3", "<none>"),
        ("c", "<none>", "sha256:8"),
    ]
    assert split_name("r:5000/b") == ("r:5000/b", "", "")
    assert [row["Tag"] for row in rows([{"Id": "x", "RepoTags": None}], digests=False)] == ["<none>"]


def test_an_event_is_one_line() -> None:
    event = {"Type": "container", "Action": "die", "timeNano": 1700000000000000005,
             "Actor": {"ID": "abc", "Attributes": {"name": "x", "exitCode": "3"}}}  # fmt: skip
    text = line(event)
    assert text.endswith(" container die abc (exitCode=3, name=x)")
    assert ".000000005" in text


PULL = [
    {"status": "Pulling from library/nginx", "id": "latest"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "aaaaaaaaaaaa"},
    {"status": "Downloading", "progressDetail": {"current": 5, "total": 10}, "progress": "[=> ]", "id": "aaaaaaaaaaaa"},
    {"status": "Pull complete", "progressDetail": {}, "id": "aaaaaaaaaaaa"},
    {"status": "Digest: sha256:1"},
    {"status": "Status: Downloaded newer image for nginx:latest"},
]


def test_without_a_terminal_progress_is_plain_lines() -> None:
    output = io.StringIO()
    display(PULL, output)
    assert output.getvalue().splitlines() == [
        "latest: Pulling from library/nginx",
        "aaaaaaaaaaaa: Pulling fs layer",
        "aaaaaaaaaaaa: Pull complete",
        "Digest: sha256:1",
        "Status: Downloaded newer image for nginx:latest",
    ]


def test_an_error_in_the_stream_ends_it() -> None:
    with pytest.raises(Failure, match="no space left"):
        display([{"errorDetail": {"message": "no space left"}, "error": "no space left"}], io.StringIO())


def test_the_bar_shows_how_much_is_there() -> None:
    assert bar({"current": 5_000_000, "total": 10_000_000}, 120) == f"[{'=' * 25}>{' ' * 25}]      5MB/10MB"
    assert bar({"current": 5_000_000}, 120) == "     5MB"
    assert bar({}, 120) == ""


def test_frames_go_where_they_belong_however_they_are_cut(tmp_path: object, capfd: pytest.CaptureFixture[str]) -> None:
    stream = b"\1\0\0\0\0\0\0\5hello\2\0\0\0\0\0\0\3err\1\0\0\0\0\0\0\1!"
    write_frames([stream[index : index + 1] for index in range(len(stream))], 1, 2)
    assert capfd.readouterr() == ("hello!", "err")


def test_an_error_frame_is_an_error() -> None:
    with pytest.raises(Failure, match="error from daemon in stream: broken"):
        write_frames([b"\3\0\0\0\0\0\0\6broken"], 1, 2)


def test_the_detach_keys_are_found_across_reads() -> None:
    find = EscapeFilter(detach_keys(""))
    assert find(b"a\x10") == (b"a", False)
    assert find(b"b") == (b"\x10b", False)
    assert find(b"\x10\x10") == (b"\x10", False)
    assert find(b"\x11rest") == (b"", True)


def test_detach_keys_are_read_from_text() -> None:
    assert detach_keys("ctrl-a,x,ctrl-_") == b"\x01x\x1f"
    with pytest.raises(Failure, match=r"Unknown character: 'ctrl-\?'"):
        detach_keys("ctrl-?")


@pytest.mark.parametrize("value", [None, True, [1, 2.5, -3], {"a": {"b": []}}, 'x"\\\n\t\x7fé\U0001f600', ""])
def test_our_json_is_the_json_packages(value: object) -> None:
    assert json.loads(dumps(value)) == value
    assert loads(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["", "{x", "[1", "1 2", '{"a":}'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text)
