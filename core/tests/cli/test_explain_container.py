"""Explanations of a container, and its past replayed from events: pure, from the bodies the API gives."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cli.explain_container import findings, why_ended
from engine.cli.history import replay

SECOND = 10**9


def event(action: str, second: int, **attributes: str) -> dict[str, Any]:
    return {
        "Type": "container",
        "Action": action,
        "Actor": {"ID": "c1", "Attributes": {"name": "web", "image": "nginx", "team": "blue", **attributes}},
        "time": second,
        "timeNano": second * SECOND,
    }


HISTORY = [
    event("create", 1),
    event("start", 2),
    event("health_status: healthy", 3),
    event("pause", 4),
    event("unpause", 5),
    event("rename", 6, name="www", oldName="/web"),
    event("oom", 7, name="www"),
    event("die", 8, name="www", exitCode="137"),
    event("destroy", 9, name="www"),
]


@pytest.mark.parametrize(
    ("count", "status"),
    [(1, "created"), (2, "running"), (4, "paused"), (5, "running"), (8, "exited")],
)
def test_each_event_moves_the_state(count: int, status: str) -> None:
    view = replay(HISTORY[:count])

    assert view is not None
    assert view["State"]["Status"] == status


def test_what_is_known_of_a_past_container() -> None:
    view = replay(HISTORY[:8])

    assert view is not None
    assert view["Name"] == "/www"
    assert view["Config"] == {"Image": "nginx", "Labels": {"team": "blue"}}
    assert view["Created"] == "1970-01-01T00:00:01.000000000Z"
    assert view["State"]["ExitCode"] == 137
    assert view["State"]["OOMKilled"] is True
    assert view["State"]["Health"] == {"Status": "healthy"}
    assert view["State"]["FinishedAt"] == "1970-01-01T00:00:08.000000000Z"


def test_before_its_creation_and_after_its_removal_there_is_none() -> None:
    assert replay([]) is None
    assert replay(HISTORY) is None


@pytest.mark.parametrize(
    ("code", "oom", "words"),
    [
        (0, False, "without an error"),
        (1, False, "failed with exit code 1"),
        (126, False, "cannot be executed"),
        (127, False, "was not found"),
        (137, False, "SIGKILL"),
        (137, True, "out of memory"),
        (139, False, "a crash"),
        (143, False, "as docker stop sends"),
        (200, False, "signal 72"),
        (255, False, "nobody saw"),
    ],
)
def test_exit_codes_have_reasons(code: int, oom: bool, words: str) -> None:
    assert words in why_ended({"ExitCode": code, "OOMKilled": oom, "Error": ""})


def info(**host: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "Privileged": False, "NetworkMode": "bridge",
        "PidMode": "", "IpcMode": "private", "UTSMode": "", "CgroupnsMode": "host", "UsernsMode": "",
        "ReadonlyRootfs": False, "CapAdd": None, "CapDrop": None, "SecurityOpt": None, "Memory": 0, "MemorySwap": 0,
        "NanoCpus": 0, "CpuQuota": 0, "CpuPeriod": 0, "CpusetCpus": "", "CpuShares": 0, "PidsLimit": None,
        "BlkioDeviceReadBps": None, "BlkioDeviceWriteBps": None, "Ulimits": None, "ShmSize": 64 << 20,
    }  # fmt: skip
    return {
        "State": {"Status": "running", "Error": "", "ExitCode": 0},
        "HostConfig": {**defaults, **host},
        "Config": {"User": ""},
        "Mounts": [],
        "RestartCount": 0,
    }


@pytest.mark.parametrize(
    ("host", "section", "what", "words"),
    [
        ({"Privileged": True}, "Isolation", "privileged", "can take over the host"),
        ({"PidMode": "host"}, "Isolation", "processes", "SHARED with the host"),
        ({"NetworkMode": "container:abcdef"}, "Isolation", "network", "shared with container abcdef"),
        ({"CapDrop": ["ALL"], "CapAdd": ["CAP_CHOWN"]}, "Isolation", "capabilities", "only CHOWN"),
        ({}, "Isolation", "capabilities", "the default 14"),
        ({"SecurityOpt": ["seccomp=unconfined"]}, "Isolation", "weakened by", "seccomp=unconfined"),
        ({"Memory": 1 << 30, "MemorySwap": 2 << 30}, "Limits", "swap", "1GiB on top"),
        ({"CpuQuota": 150_000}, "Limits", "cpu", "at most 1.5 CPUs"),
        ({}, "Limits", "processes", "no limit"),
        (
            {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}},
            "State",
            "restart policy",
            "restarted after a failure (at most 3 times)",
        ),
    ],
)
def test_settings_are_put_into_words(host: dict[str, Any], section: str, what: str, words: str) -> None:
    assert words in dict(findings(info(**host))[section])[what]
