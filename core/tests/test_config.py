"""Flags, daemon.json and what they make together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config, options, parse_arguments, usage
from engine.errors import InvalidParameter

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def run(*arguments: str, **content: Any) -> Config:
        path = tmp_path / "daemon.json"
        path.write_text(json.dumps({key.replace("_", "-"): value for key, value in content.items()}))
        return parse_arguments(["--config-file", str(path), *arguments]).load()

    return run


def test_flags_have_the_grammar_of_dockerds(load: Load) -> None:
    config = load("-Dl", "warn", "-Hunix:///a", "-H", "unix:///b", "--icc=false", "--mtu=1400", "--label", "a=b=c")
    assert (config.debug, config.log_level, config.hosts) == (True, "warn", ("unix:///a", "unix:///b"))
    assert (config.icc, config.mtu, config.labels) == (False, 1400, ("a=b=c",))


def test_structured_flags_are_parsed(load: Load) -> None:
    config = load(
        *("--add-runtime", "Kata=/usr/bin/kata", "--default-ulimit", "nofile=10:20", "--default-shm-size", "1.5g"),
        *("--default-address-pool", "base=10.0.0.0/8,size=24", "--log-opt", "max-size=1m", "--log-opt", "max-file=2"),
    )
    assert config.runtimes == {"kata": {"path": "/usr/bin/kata"}}
    assert config.default_ulimits == {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}}
    assert config.default_shm_size == 3 << 29
    assert config.default_address_pools == ({"base": "10.0.0.0/8", "size": 24},)
    assert config.log_opts == {"max-size": "1m", "max-file": "2"}


def test_the_file_has_dockers_keys(load: Load) -> None:
    config = load(
        **{"hosts": ["unix:///a"], "registry-mirrors": ["http://m"], "insecure-registries": ["r:5000"]},
        **{"data-root": "/d", "log-opts": {"max-size": "1m"}, "runtimes": {"x": {"path": "/x"}}, "debug": True},
        **{"default-shm-size": "32M", "labels": None, "features": {"buildkit": True}},
    )
    assert (config.hosts, config.registry_mirrors) == (("unix:///a",), ("http://m",))
    assert (config.insecure_registries, config.data_root, config.debug) == (("r:5000",), "/d", True)
    assert (config.default_shm_size, config.labels) == (32 << 20, ())


def test_flag_and_file_must_not_say_the_same_thing(load: Load) -> None:
    with pytest.raises(InvalidParameter) as caught:
        load("--label", "a=b", "-D", labels=["c=d"], debug=True)
    assert caught.value.message.endswith(
        "the following directives are specified both as a flag and in the configuration file: "
        "labels: (from flag: [a=b], from file: [c=d]), debug: (from flag: true, from file: true)"
    )


def test_runtimes_of_flag_and_file_add_up(load: Load) -> None:
    assert set(load("--add-runtime", "a=/a", runtimes={"b": {"path": "/b"}}).runtimes) == {"a", "b"}


def test_unknown_keys_are_named(load: Load) -> None:
    with pytest.raises(InvalidParameter, match=r"directives don't match any configuration option: nope, wrong-too$"):
        load(nope=1, wrong_too=2)


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["--nope"], {}, "unknown flag: --nope"),
        (["-X"], {}, "unknown shorthand flag: 'X' in -X"),
        (["--mtu"], {}, "flag needs an argument: --mtu"),
        (["-l"], {}, "flag needs an argument: 'l' in -l"),
        (["serve"], {}, '"engined" accepts no arguments: serve'),
        (["--mtu", "x"], {}, 'invalid argument "x" for "--mtu" flag: strconv.ParseInt: parsing "x": invalid syntax'),
        (["--debug=maybe"], {}, 'invalid argument "maybe" for "-D, --debug" flag'),
        (["--log-level", "loud"], {}, 'not a valid logrus Level: "loud"'),
        (["--bip", "x"], {}, "--bip: invalid CIDR address: x"),
        (["--bip", "10.0.0.1/24", "-b", "br0"], {}, "mutually exclusive"),
        (["--dns", "x"], {}, "--dns: x is not an ip address"),
        (["--label", "x"], {}, "bad attribute format: x"),
        (["--userns-remap", "default"], {}, "--userns-remap: not supported yet"),
        (["--exec-opt", "native.cgroupdriver=systemd"], {}, "only cgroupfs is supported"),
        ([], {"max-concurrent-downloads": -1}, "invalid max concurrent downloads: -1"),
        ([], {"debug": "yes"}, "debug: wrong type of value in the configuration file: yes"),
        ([], {"hosts": "unix:///x"}, "hosts: wrong type of value"),
    ],
)
def test_nonsense_is_refused_by_name(load: Load, arguments: list[str], content: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        load(*arguments, **content)
    assert message in caught.value.message


def test_a_missing_file_matters_only_when_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="no such file or directory"):
        parse_arguments(["--config-file", str(tmp_path / "none")]).load()


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    for text in ("{", "[]", '{"debug": true} x'):
        path.write_text(text)
        with pytest.raises(InvalidParameter, match="unable to configure the engine with file"):
            parse_arguments(["--config-file", str(path)]).load()
    path.write_text("")
    assert parse_arguments(["--config-file", str(path)]).load() == Config(config_file=str(path))


def test_only_reloadable_options_are_taken_over(load: Load) -> None:
    config = load(labels=["a=1"], mtu=1400)
    changed = config.apply(load("--data-root", "/else", labels=["a=2"], mtu=1300, debug=True))
    assert changed == {"labels": ("a=2",), "debug": True}
    assert (config.labels, config.mtu, config.data_root) == (("a=2",), 1400, "/var/lib/engine")


def test_engines_with_different_roots_have_different_names(load: Load, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    real, link = load("--data-root", f"{tmp_path}/real"), load("--data-root", f"{tmp_path}/link/../real")
    assert real.instance == link.instance == hashlib.sha256(str(tmp_path / "real").encode()).hexdigest()[:8]
    assert load().instance != real.instance


def test_help_names_every_flag_once() -> None:
    text = usage()
    for option in options():
        if option.flag:
            assert text.count(f"--{option.flag} ") == 1, option.flag
