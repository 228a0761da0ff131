"""Policies: what each rule refuses, what it says, and that whoever cannot decide has refused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import engine_security_policy as plugin
from engine.errors import Forbidden, InvalidParameter
from engine.model.admission import ContainerRequest
from engine.model.container import Config, Container, DeviceMapping, HostConfig, Mount
from engine_security_policy.policies import Policies

DIGEST = "@sha256:" + "a" * 64


def request(image: str = "bb", *, config: dict[str, Any] | None = None, **host: Any) -> ContainerRequest:
    return ContainerRequest(
        name="x",
        image=image,
        image_id="",
        platform="linux/amd64",
        runtime="runc",
        config=Config(**(config or {})),
        host_config=HostConfig(**host),
        networks={},
    )


Load = Callable[..., Policies]


@pytest.fixture
def policies() -> Iterator[Load]:
    loaded: list[Policies] = []

    def load(directory: Path, text: str, name: str = "p.toml", timeout: float = 2.0) -> Policies:
        path = directory / name
        path.write_text(text)
        path.chmod(0o644)
        loaded.append(Policies.load([str(path)], timeout=timeout))
        return loaded[-1]

    yield load
    for made in loaded:
        made.close()


@pytest.mark.parametrize(
    ("rule", "refused", "allowed", "reason"),
    [
        ("deny-privileged = true", request(privileged=True), request(), "privileged containers are not allowed"),
        (
            'deny-host = ["pid"]',
            request(pid_mode="host"),
            request(pid_mode="", network_mode="host"),
            "the host's pid namespace is not allowed",
        ),
        (
            'capabilities = ["net_bind_service"]',
            request(cap_add=["CAP_SYS_ADMIN"]),
            request(cap_add=["NET_BIND_SERVICE"], cap_drop=["ALL"]),
            "capability SYS_ADMIN is not allowed",
        ),
        (
            'deny-security-opts = ["seccomp=unconfined"]',
            request(security_opt=["seccomp:unconfined"]),
            request(security_opt=["seccomp=builtin"]),
            "security option seccomp=unconfined is not allowed",
        ),
        (
            'deny-security-opts = ["systempaths=unconfined"]',
            request(masked_paths=[]),
            request(),
            "systempaths=unconfined is not allowed",
        ),
        (
            'registries = ["registry.example.com", "docker.io/library/*"]',
            request("docker.io/evil/image"),
            request("bb"),
            "image docker.io/evil/image is not from an allowed registry",
        ),
        (
            'registries = ["registry.example.com"]',
            request("registry.example.com.evil.org/x"),
            request("registry.example.com/deep/x:1"),
            "not from an allowed registry",
        ),
        ("require-digest = true", request("bb:latest"), request("bb" + DIGEST), "not pinned by its digest"),
        ('mounts = ["/srv/**"]', request(binds=["/etc:/x"]), request(binds=["/srv/a/b:/x", "v:/y"]), "mounting /etc"),
        (
            'mounts = ["/srv/**"]',
            request(mounts=[Mount(type="bind", source="/srv/../etc", target="/x")]),
            request(mounts=[Mount(type="volume", source="v", target="/x")]),
            "mounting /etc is not allowed",
        ),
        ('mounts = ["/srv/*"]', request(binds=["/srv/a/b:/x"]), request(binds=["/srv/a:/x"]), "mounting /srv/a/b"),
        (
            'require-labels = ["owner", "team=web"]',
            request(config={"labels": {"owner": "me", "team": "db"}}),
            request(config={"labels": {"owner": "me", "team": "web"}}),
            "label team=web is missing",
        ),
        ("require-user = true", request(config={"user": "0:0"}), request(config={"user": "1000"}), "run as root"),
        (
            "deny-devices = true",
            request(devices=[DeviceMapping(path_on_host="/dev/kmsg")]),
            request(),
            "devices are not allowed",
        ),
        ('require-limits = ["memory"]', request(), request(memory=1 << 30), "a limit of memory is missing"),
        ("require-read-only = true", request(), request(readonly_rootfs=True), "read-only root"),
        (
            "require-no-new-privileges = true",
            request(security_opt=["no-new-privileges=false"]),
            request(security_opt=["no-new-privileges"]),
            "no-new-privileges is missing",
        ),
    ],
)
def test_a_rule_refuses_what_it_names_and_nothing_else(
    policies: Load, tmp_path: Path, rule: str, refused: ContainerRequest, allowed: ContainerRequest, reason: str
) -> None:
    found = policies(tmp_path, f'[[rule]]\nname = "the rule"\nmessage = "ask ops"\n{rule}\n')
    found.create(allowed)
    with pytest.raises(Forbidden) as caught:
        found.create(refused)
    assert str(caught.value).startswith(f'denied by policy "the rule" ({tmp_path}/p.toml): ')
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; ask ops")


def test_a_link_does_not_hide_what_is_mounted(policies: Load, tmp_path: Path) -> None:
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv/innocent").symlink_to("/etc")
    found = policies(tmp_path, f'[[rule]]\nname = "mounts"\nmounts = ["{tmp_path}/srv/**"]\n')
    with pytest.raises(Forbidden, match="mounting /etc is not allowed"):
        found.create(request(binds=[f"{tmp_path}/srv/innocent:/x"]))
    with pytest.raises(Forbidden, match="a volume of /etc is not allowed"):
        found.volume("v", "local", {"type": "none", "o": "bind", "device": "/etc"})


def test_labels_can_exempt_and_an_image_id_hides_no_origin(policies: Load, tmp_path: Path) -> None:
    found = policies(
        tmp_path,
        '[[rule]]\nname = "r"\ndeny-privileged = true\nregistries = ["a.example"]\nunless-labels = ["team=infra"]\n',
    )
    found.create(request("other/x", config={"labels": {"team": "infra"}}, privileged=True))
    with pytest.raises(Forbidden, match="says nothing of where it came from"):
        found.create(request("sha256:" + "b" * 64))
    with pytest.raises(Forbidden, match="not from an allowed registry"):
        found.pull("docker.io/library/bb:latest", {})


def test_exec_privileged_is_refused_too(policies: Load, tmp_path: Path) -> None:
    found = policies(tmp_path, '[[rule]]\nname = "r"\ndeny-privileged = true\n')
    container = cast("Container", SimpleNamespace(config=Config(), host_config=HostConfig()))
    found.exec(container, {}, False)
    with pytest.raises(Forbidden, match="exec --privileged is not allowed"):
        found.exec(container, {}, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[rule]\n", "Expected"),
        ("", "no rules"),
        ('[[rule]]\nname = "x"\nalow-everything = true\n', "unknown field"),
        ('[[rule]]\nname = "x"\ndeny-host = ["pdi"]\n', "deny-host knows"),
        ('[[rule]]\nname = "x"\nmounts = ["srv"]\n', "must be absolute"),
    ],
)
def test_a_file_that_makes_no_sense_stops_the_daemon(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InvalidParameter, match=message):
        plugin.engine_configure({"files": [str(path)]})


def test_a_file_others_can_change_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[[rule]]\nname = "x"\n')
    path.chmod(0o666)
    with pytest.raises(InvalidParameter, match="can be changed by others"):
        plugin.engine_configure({"files": [str(path)]})


def test_a_python_policy_decides_with_a_text(policies: Load, tmp_path: Path) -> None:
    found = policies(
        tmp_path,
        "print('noise')\n"
        "def create(request):\n"
        "    print('more noise')\n"
        "    return 'no privilege' if request['HostConfig']['Privileged'] else None\n",
        "p.py",
    )
    found.create(request())
    found.volume("v", "local", {})  # it has no opinion
    with pytest.raises(Forbidden, match=r'denied by policy "create" \(.*p.py\): no privilege'):
        found.create(request(privileged=True))
    found.create(request())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("__import__('time').sleep(60)", "did not answer in"),
        ("raise ValueError('oops')", "failed: ValueError: oops"),
        ("return 5", "a policy returns None or a text"),
        ("import os; os._exit(1)", "it ended"),
        ("return 'x' * (1 << 31)", "MemoryError"),
    ],
)
def test_a_python_policy_that_breaks_or_hangs_refuses_and_the_next_question_works(
    policies: Load, tmp_path: Path, body: str, reason: str
) -> None:
    found = policies(tmp_path, f"def create(request):\n    if request['Image'] == 'bad': {body}\n", "p.py", timeout=0.3)
    started = time.monotonic()
    with pytest.raises(Forbidden, match=reason):
        found.create(request("bad"))
    assert time.monotonic() - started < 5
    found.create(request("good"))


def test_a_python_policy_that_cannot_be_run_stops_the_daemon(policies: Load, tmp_path: Path) -> None:
    for text in ("syntax error here", "x = 1"):
        with pytest.raises(InvalidParameter, match=r"p\.py"):
            policies(tmp_path, text, "p.py")


def test_a_policy_file_brings_its_own_tests(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        '[[rule]]\nname = "nothing privileged"\ndeny-privileged = true\n'
        '[[test]]\nname = "yes"\ncreate = { Image = "x" }\n'
        '[[test]]\nname = "no"\ncreate = { Image = "x", HostConfig = { Privileged = true } }\n'
        'refused-by = "nothing privileged"\n'
    )

    def tested() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "engine_security_policy", "test", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert tested().returncode == 0
    path.write_text(path.read_text() + '[[test]]\nname = "wrong"\ncreate = {}\nrefused-by = "nothing privileged"\n')
    failed = tested()
    assert failed.returncode == 1
    assert "FAIL" in failed.stdout
    assert "should refuse it" in failed.stdout
