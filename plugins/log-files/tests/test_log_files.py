"""What is written comes back: order, times, tails, rotation, crashes, full disks, and logs dockerd wrote."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.drivers import DriverContext
from engine.drivers.log import LogDriver, LogEntry, LogQuery, LogTarget
from engine.errors import InvalidParameter, NotSupported
from engine_log_files import writer as writing
from engine_log_files.driver import JsonFile, Local, Nothing, parse_size

CLASSES = {"json-file": JsonFile, "local": Local}
SECOND = 1_000_000_000


@pytest.fixture(params=sorted(CLASSES))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> LogDriver:
    return make(request.param, tmp_path)


def make(name: str, tmp_path: Path) -> LogDriver:
    return CLASSES[name](DriverContext(name=name, instance="0" * 8, root=tmp_path, state=tmp_path))


@pytest.fixture
def target(tmp_path: Path) -> Callable[..., LogTarget]:
    def build(**options: str) -> LogTarget:
        named = {key.replace("_", "-"): value for key, value in options.items()}
        return LogTarget(container_id="c" * 64, directory=tmp_path, options=named)

    return build


def open_log(driver: LogDriver, target: LogTarget) -> Any:
    made = driver.writer(target)
    assert made is not None
    return writing.open_log(dict(made.options))


def texts(entries: Any) -> list[bytes]:
    return [entry.data for entry in entries]


def test_lines_of_both_streams_come_back_in_order_with_their_times(driver: LogDriver, target: Any) -> None:
    log = open_log(driver, target())
    log.write(1, b"one\ntwo\n", 5 * SECOND + 7)
    log.write(2, b"error\n", 6 * SECOND)
    log.close()

    assert list(driver.read(target(), LogQuery())) == [
        LogEntry(1, 5 * SECOND + 7, b"one\n"),
        LogEntry(1, 5 * SECOND + 7, b"two\n"),
        LogEntry(2, 6 * SECOND, b"error\n"),
    ]


def test_a_line_written_in_pieces_is_one_entry(driver: LogDriver, target: Any) -> None:
    log = open_log(driver, target())
    log.write(1, b"hel", 1)
    log.write(2, b"between\n", 2)
    log.write(1, b"lo\n", 3)
    log.close()

    assert texts(driver.read(target(), LogQuery())) == [b"between\n", b"hello\n"]


def test_an_unfinished_line_is_kept_when_the_container_ends(driver: LogDriver, target: Any) -> None:
    log = open_log(driver, target())
    log.write(1, b"no newline", 1)
    log.close()

    assert texts(driver.read(target(), LogQuery())) == [b"no newline"]


def test_bytes_that_json_and_lines_dislike_survive(driver: LogDriver, target: Any) -> None:
    lines = [
        b'"quoted" \\ back\n',
        b"tab\tand\rreturn\n",
        "unicode \u2028 \U0001f600\n".encode(),
        b"\n",
        b"\x01\x1b[0m\n",
    ]
    log = open_log(driver, target())
    log.write(1, b"".join(lines), 1)
    log.close()

    assert texts(driver.read(target(), LogQuery())) == lines


def test_a_very_long_line_is_cut_but_complete(driver: LogDriver, target: Any) -> None:
    log = open_log(driver, target())
    log.write(1, b"x" * 100_000, 1)
    log.write(1, b"end\n", 2)
    log.close()

    assert b"".join(texts(driver.read(target(), LogQuery()))) == b"x" * 100_000 + b"end\n"


@pytest.mark.parametrize("tail", [0, 1, 3, 10, 999, 5000])
def test_tail_is_the_end_of_the_whole(driver: LogDriver, target: Any, tail: int) -> None:
    log = open_log(driver, target(max_size="20k", max_file="9", compress="false"))
    for number in range(1000):
        log.write(1 + number % 2, b"line %d\n" % number, number * SECOND)
    log.close()
    everything = texts(driver.read(target(), LogQuery()))

    found = texts(driver.read(target(), LogQuery(tail=tail)))

    assert found == (everything[-tail:] if tail else [])


def test_tail_reads_the_tail_and_not_the_log(driver: LogDriver, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(driver, target(max_size="-1", compress="false"))
    for number in range(400):
        log.write(1, b"y" * 99 + b"\n" + b"z" * 9900 + b"\n", number)
    log.close()
    parsed = 0
    form = type(driver).form  # type: ignore[attr-defined]
    original = form.entries

    def counting(data: bytes) -> Any:
        nonlocal parsed
        parsed += len(data)
        return original(data)

    monkeypatch.setattr(form, "entries", counting)

    assert len(list(driver.read(target(), LogQuery(tail=10)))) == 10
    assert parsed < 100_000


def test_since_until_and_streams_choose(driver: LogDriver, target: Any) -> None:
    log = open_log(driver, target())
    for number in range(20_000):
        log.write(1 + number % 2, b"%d %s\n" % (number, b"p" * 60), number * SECOND)
    log.close()
    query = LogQuery(since_ns=15_000 * SECOND, until_ns=15_010 * SECOND, streams=frozenset({2}))

    found = [int(text.split()[0]) for text in texts(driver.read(target(), query))]

    assert found == [15_001, 15_003, 15_005, 15_007, 15_009]


@pytest.mark.parametrize("compress", ["false", "true"])
def test_rotation_keeps_the_newest_files_only(driver: LogDriver, target: Any, tmp_path: Path, compress: str) -> None:
    chosen = target(max_size="10k", max_file="3", compress=compress)
    log = open_log(driver, chosen)
    for number in range(2000):
        log.write(1, b"line %06d\n" % number, number)
    log._await_compression()
    log.close()

    found = texts(driver.read(chosen, LogQuery()))
    names = sorted(path.name for path in tmp_path.iterdir())

    assert len(names) == 3
    assert sum(name.endswith(".gz") for name in names) == (2 if compress == "true" else 0)
    assert found == [b"line %06d\n" % number for number in range(2000 - len(found), 2000)]
    driver.delete(chosen)
    assert list(tmp_path.iterdir()) == []


def test_following_tells_each_line_once_across_rotation(driver: LogDriver, target: Any) -> None:
    chosen = target(max_size="2k", max_file="9", compress="false")
    log = open_log(driver, chosen)
    log.write(1, b"before\n", 1)
    cursor = driver.follow(chosen, LogQuery())
    seen = texts(cursor.advance())
    expected = [b"before\n"]
    for number in range(300):
        line = b"line %d of many\n" % number
        expected.append(line)
        log.write(1, line, 2 + number)
        if number % 7 == 0:
            seen += texts(cursor.advance())
    while batch := cursor.advance():
        seen += texts(batch)
    log.close()
    cursor.close()

    assert seen == expected


def test_following_wakes_by_inotify(driver: LogDriver, target: Any) -> None:
    import select

    cursor = driver.follow(target(), LogQuery())
    assert cursor.advance() == []
    log = open_log(driver, target())
    log.write(1, b"hello\n", 1)

    readable, _, _ = select.select([cursor.fileno()], [], [], 5)

    assert readable
    assert texts(cursor.advance()) == [b"hello\n"]
    log.close()
    cursor.close()


def test_a_record_cut_short_by_a_crash_is_dropped_at_the_next_start(driver: LogDriver, target: Any) -> None:
    log = open_log(driver, target())
    log.write(1, b"whole\n", 1)
    log.close()
    path = Path(driver.path(target()))
    content = path.read_bytes()
    path.write_bytes(content + content[: len(content) // 2])

    log = open_log(driver, target())
    log.write(1, b"next\n", 2)
    log.close()

    assert texts(driver.read(target(), LogQuery())) == [b"whole\n", b"next\n"]


def test_a_full_disk_loses_output_and_says_so(driver: LogDriver, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(driver, target())
    log.write(1, b"first\n", 1)
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 4:
            return real(fd, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        writing.os, "write", lambda fd, data: full(fd, bytes(data)[:8]) if len(data) > 8 else full(fd, b"")
    )
    log.write(1, b"lost\n", 2)
    monkeypatch.undo()
    log.write(1, b"after\n", 3)
    log.close()

    found = list(driver.read(target(), LogQuery()))
    assert [entry.data for entry in found if entry.stream == 1] == [b"first\n", b"after\n"]
    assert [b"lost because the disk was full" in entry.data for entry in found if entry.stream == 2] == [True]


def test_a_log_dockerd_wrote_can_be_read(tmp_path: Path, target: Any) -> None:
    driver = make("json-file", tmp_path)
    Path(driver.path(target())).write_bytes(
        b'{"log":"a \\u003cb\\u003e\\n","stream":"stdout","time":"2023-05-06T07:08:09.123456Z"}\n'
        b'{"log":"part","stream":"stderr","attrs":{"tag":"x"},"time":"2023-05-06T07:08:10Z"}\n'
    )

    first, second = driver.read(target(), LogQuery())

    assert (first.stream, first.data, first.time_ns % SECOND) == (1, b"a <b>\n", 123456000)
    assert (second.stream, second.data) == (2, b"part")
    assert time.gmtime(second.time_ns // SECOND)[:6] == (2023, 5, 6, 7, 8, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nope": "1"}, "unknown log opt 'nope' for json-file log driver"),
        ({"max-size": "ten"}, "invalid size: 'ten'"),
        ({"max-file": "0"}, "max-file cannot be less than 1"),
        ({"max-file": "1", "compress": "true"}, "compress cannot be true"),
        ({"mode": "sometimes"}, "logging mode not supported: sometimes"),
        ({"max-buffer-size": "1m"}, "only supported with 'mode=non-blocking'"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words.replace("(", r"\(")):
        make("json-file", tmp_path).validate(options)


def test_sizes_are_read_as_dockerd_reads_them() -> None:
    assert [parse_size(text) for text in ("10m", "1.5kB", "4096", "1KiB", "-1")] == [10_000_000, 1500, 4096, 1024, -1]


def test_none_keeps_nothing_and_says_so(tmp_path: Path, target: Any) -> None:
    driver = Nothing(DriverContext(name="none", instance="0" * 8, root=tmp_path, state=tmp_path))

    assert driver.writer(target()) is None
    with pytest.raises(NotSupported, match="does not support reading"):
        driver.read(target(), LogQuery())
