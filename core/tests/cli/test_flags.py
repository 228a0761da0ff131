"""Flags are read as pflag reads them, and refused in its words."""

from __future__ import annotations

import pytest

from engine.cli.flags import FlagError, Flags, declare, parse

DECLARED = declare("""
a all bool Show all
d detach bool Detach
e env list Environment
i interactive bool Stdin
t tty bool Terminal
n last int=-1 Last
m memory bytes Memory
- cpus decimal CPUs
- size uint16 Size
- wait duration Wait
- platform strings Platforms
- sig-proxy bool=true Proxy
""")


def read(line: str, *, interspersed: bool = True) -> Flags:
    return parse(DECLARED, line.split(), interspersed=interspersed)


@pytest.mark.parametrize(
    ("line", "values", "arguments"),
    [
        ("-it x", {"interactive": True, "tty": True}, ["x"]),
        ("x -a", {"all": True}, ["x"]),
        ("-d=false", {"detach": False}, []),
        ("--detach=0 --all=T", {"detach": False, "all": True}, []),
        ("-e a -e=b -ec --env d --env=e", {"env": ["a", "b", "c", "d", "e"]}, []),
        ("-itn5", {"interactive": True, "tty": True, "last": 5}, []),
        ("-- -a --nope", {}, ["-a", "--nope"]),
        ("x -- -a", {}, ["x", "-a"]),
        ("- x", {}, ["-", "x"]),
        ("--env --all", {"env": ["--all"]}, []),
        ("--sig-proxy=false", {"sig-proxy": False}, []),
        ("--platform a,b --platform c", {"platform": ["a", "b", "c"]}, []),
        ("-m 1.5g --cpus .5 --wait 1m30s", {"memory": 1610612736, "cpus": 500000000, "wait": 90 * 10**9}, []),
        ("-n 0x10", {"last": 16}, []),
    ],
)
def test_a_command_line_gives_these_values(line: str, values: dict[str, object], arguments: list[str]) -> None:
    flags = read(line)
    assert flags.values == values
    assert flags.arguments == arguments


def test_the_first_argument_ends_the_flags_of_run_and_exec() -> None:
    flags = read("-i image -t --nope", interspersed=False)
    assert flags.values == {"interactive": True}
    assert flags.arguments == ["image", "-t", "--nope"]


def test_defaults_are_told_from_given_values() -> None:
    flags = read("--sig-proxy")
    assert flags["last"] == -1
    assert not flags.changed("last")
    assert flags.changed("sig-proxy")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--nope", "unknown flag: --nope"),
        ("-x", "unknown shorthand flag: 'x' in -x"),
        ("-ax", "unknown shorthand flag: 'x' in -x"),
        ("--last", "flag needs an argument: --last"),
        ("-n", "flag needs an argument: 'n' in -n"),
        ("--last x", 'invalid argument "x" for "-n, --last" flag: strconv.ParseInt: parsing "x": invalid syntax'),
        ("--all=x", 'invalid argument "x" for "-a, --all" flag: strconv.ParseBool: parsing "x": invalid syntax'),
        ("-m x", "invalid argument \"x\" for \"-m, --memory\" flag: invalid size: 'x'"),
        ("--size 70000",
         'invalid argument "70000" for "--size" flag: strconv.ParseUint: parsing "70000": value out of range'),
        ("--wait 3", 'invalid argument "3" for "--wait" flag: time: missing unit in duration "3"'),
        ("---x", "bad flag syntax: ---x"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_in_pflags_words(line: str, text: str) -> None:
    with pytest.raises(FlagError) as caught:
        read(line)
    assert str(caught.value) == text
    assert caught.value.exit_code == 125
