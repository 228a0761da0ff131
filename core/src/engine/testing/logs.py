"""Conformance of log drivers (`engine.drivers.log`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.log import LogDriver, LogEntry, LogQuery, LogTarget
from engine.errors import InvalidParameter, NotSupported

__all__ = ["LogConformance", "open_writer"]


def open_writer(driver: LogDriver, target: LogTarget) -> Any:
    """Load the driver's writer by path, as the monitor does; skips when the driver keeps nothing."""
    made = driver.writer(target)
    if made is None:
        pytest.skip(f"log driver {driver.context.name} keeps nothing")
    specification = importlib.util.spec_from_file_location("conformance_writer", made.source)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.open_log(dict(made.options))


class LogConformance:
    """Subclass and provide ``driver``."""

    @pytest.fixture
    def driver(self) -> LogDriver:
        """The driver under test."""
        raise NotImplementedError

    @pytest.fixture
    def target(self, tmp_path: Path) -> LogTarget:
        """A container with a directory of its own."""
        directory = tmp_path / "container"
        directory.mkdir()
        return LogTarget(container_id="ab" * 32, directory=directory)

    @pytest.fixture
    def written(self, driver: LogDriver, target: LogTarget) -> LogTarget:
        """A log with three lines, one on stderr."""
        log = open_writer(driver, target)
        log.write(1, b"one\n", 1_000)
        log.write(2, memoryview(b"two\n"), 2_000)
        log.write(1, b"thr", 3_000)
        log.write(1, b"ee\n", 3_001)
        log.close()
        return target

    def _readable(self, driver: LogDriver) -> None:
        if "read" not in driver.capabilities:
            pytest.skip(f"log driver {driver.context.name} does not claim read")

    def test_what_is_written_is_read_back(self, driver: LogDriver, written: LogTarget) -> None:
        """Order, streams, and a line that came in two pieces."""
        self._readable(driver)
        found = list(driver.read(written, LogQuery()))
        assert [(entry.stream, entry.data) for entry in found] == [(1, b"one\n"), (2, b"two\n"), (1, b"three\n")]
        assert all(isinstance(entry, LogEntry) for entry in found)

    def test_tail_and_time_choose(self, driver: LogDriver, written: LogTarget) -> None:
        """``tail`` counts lines, ``since_ns`` and ``until_ns`` are inclusive."""
        self._readable(driver)
        assert [entry.data for entry in driver.read(written, LogQuery(tail=1))] == [b"three\n"]
        assert [entry.data for entry in driver.read(written, LogQuery(since_ns=2_000, until_ns=2_000))] == [b"two\n"]

    def test_a_cursor_sees_what_comes_later(self, driver: LogDriver, written: LogTarget) -> None:
        """First the history, then each new line once."""
        self._readable(driver)
        cursor = driver.follow(written, LogQuery(tail=0))
        assert cursor.advance() == []
        log = open_writer(driver, written)
        log.write(1, b"late\n", 4_000)
        assert [entry.data for entry in cursor.advance()] == [b"late\n"]
        assert cursor.advance() == []
        log.close()
        cursor.close()

    def test_unknown_options_are_refused(self, driver: LogDriver) -> None:
        """In dockerd's words."""
        with pytest.raises(InvalidParameter, match="unknown log opt 'no-such-option' for"):
            driver.validate({"no-such-option": "1"})
        driver.validate({})

    def test_delete_leaves_nothing_and_may_be_repeated(self, driver: LogDriver, written: LogTarget) -> None:
        """The directory is the container's; the files in it were the driver's."""
        driver.delete(written)
        driver.delete(written)
        assert [path for path in written.directory.rglob("*") if path.is_file()] == []

    def test_a_driver_that_cannot_read_says_so(self, driver: LogDriver, target: LogTarget) -> None:
        """`NotSupported`, in dockerd's words."""
        if "read" in driver.capabilities:
            pytest.skip("it can")
        with pytest.raises(NotSupported, match="configured logging driver does not support reading"):
            list(driver.read(target, LogQuery()))
