"""Tags and attributes of a log, and the copy of one that cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.containers import logcache
from engine.containers.logattributes import chosen, tag
from engine.drivers.log import LogTarget, LogWriter
from engine.errors import InvalidParameter
from engine.model.container import Config, Container, HostConfig
from engine.monitor import tee

CONTAINER = Container(
    id="0123456789abcdef" * 4,
    name="web",
    created="2026-01-01T00:00:00Z",
    image_id="sha256:" + "f" * 64,
    chain_id=None,
    platform="linux/amd64",
    runtime="runc",
    store="vfs",
    log_driver="syslog",
    path="nginx",
    args=["-g", "x"],
    config=Config(image="nginx:1", labels={"a": "1", "b": "2", "com.x": "3"}, env=["E=v", "F=w", "BARE"]),
    host_config=HostConfig(),
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("{{.Name}}/{{.ID}}", "web/0123456789ab"),
        ("{{ .FullID }}", "0123456789abcdef" * 4),
        ("{{.ImageName}} {{.ImageID}}", "nginx:1 ffffffffffff"),
        ("{{.Command}}", "nginx -g x"),
        ('{{index .ContainerLabels "com.x"}}', "3"),
    ],
)
def test_a_tag_is_filled_in(template: str, text: str) -> None:
    assert tag(CONTAINER, template) == text


def test_a_tag_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"unknown field \.Nope"):
        tag(CONTAINER, "{{.Nope}}")


def test_labels_and_variables_are_chosen_by_name_and_pattern() -> None:
    assert chosen(CONTAINER, {"labels": "a,nosuch", "env-regex": "^[EF]"}) == {"a": "1", "E": "v", "F": "w"}
    assert chosen(CONTAINER, {}) == {}


class _Plugins:
    def __init__(self, tmp_path: Path) -> None:
        self._remote = SimpleNamespace(
            capabilities=frozenset(), writer=lambda target: LogWriter(source=tmp_path / "r.py", options={})
        )
        self._local = SimpleNamespace(
            capabilities=frozenset({"read"}),
            writer=lambda target: LogWriter(source=tmp_path / "l.py", options=dict(target.options)),
        )

    def log(self, name: str) -> Any:
        return {"syslog": self._remote, "local": self._local}[name]


def test_what_cannot_be_read_is_kept_beside_unless_that_is_switched_off(tmp_path: Path) -> None:
    plugins: Any = _Plugins(tmp_path)
    target = LogTarget(container_id="a", directory=tmp_path, options={"cache-max-size": "5m"})
    made = logcache.writer(plugins, "syslog", target)
    assert made is not None
    assert made.source.name == "tee.py"
    driver, of_copy = logcache.readable(plugins, "syslog", target)
    assert driver is plugins.log("local")
    assert of_copy.options == {"max-size": "5m"}

    off = replace(target, options={"cache-disabled": "true"})
    assert logcache.readable(plugins, "syslog", off) == (plugins.log("syslog"), off)
    assert logcache.readable(plugins, "local", target) == (plugins.log("local"), target)


def test_a_writer_that_fails_is_left_out_and_the_others_go_on() -> None:
    class Good:
        def __init__(self) -> None:
            self.got: list[bytes] = []

        def write(self, stream: int, data: bytes, now_ns: int) -> None:
            self.got.append(data)

    class Bad:
        def write(self, stream: int, data: bytes, now_ns: int) -> None:
            raise OSError

    good = Good()
    both = tee.Tee([Bad(), good])
    both.write(1, b"a", 0)
    both.write(1, b"b", 0)
    assert good.got == [b"a", b"b"]
