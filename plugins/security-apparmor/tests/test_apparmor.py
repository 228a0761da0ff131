"""AppArmor: which profile a container gets, and what happens where the kernel has none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import engine_security_apparmor as plugin
from engine.errors import EngineError, InvalidParameter
from engine.model.admission import ContainerRequest
from engine.model.container import Config, Container, HostConfig
from engine_security_apparmor.kernel import DEFAULT, AppArmor, profile


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppArmor]:
    """A machine with AppArmor whose parser does what the file ``parser`` says."""
    module = tmp_path / "sys/module/apparmor/parameters/enabled"
    profiles = tmp_path / "sys/kernel/security/apparmor/profiles"
    for path, text in ((module, "Y\n"), (profiles, "mine (enforce)\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    parser = tmp_path / "apparmor_parser"
    parser.write_text(f"#!/bin/sh\ncat >{tmp_path}/loaded\necho 'engine-default (enforce)' >>{profiles}\n")
    parser.chmod(0o755)
    found = AppArmor(tmp_path)
    found.__dict__["_parser"] = str(parser)
    monkeypatch.setattr(plugin, "apparmor", found)
    return found


def spec_of(**options: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"process": {}}
    container = cast("Container", SimpleNamespace(host_config=HostConfig(**options)))
    plugin.engine_oci_spec(container, spec)
    return dict(spec["process"])


def request(*options: str) -> ContainerRequest:
    return ContainerRequest(
        name="x",
        image="x",
        image_id="",
        platform="linux/amd64",
        runtime="runc",
        config=Config(),
        host_config=HostConfig(security_opt=list(options)),
        networks={},
    )


def test_containers_run_under_the_default_profile_which_is_loaded_for_them(kernel: AppArmor, tmp_path: Path) -> None:
    assert spec_of() == {"apparmorProfile": DEFAULT}
    assert (tmp_path / "loaded").read_text() == profile(abi=False)
    (tmp_path / "loaded").unlink()
    spec_of()
    assert not (tmp_path / "loaded").exists()  # once is enough
    (tmp_path / "sys/kernel/security/apparmor/profiles").write_text("")
    spec_of()
    assert (tmp_path / "loaded").exists()  # unless somebody removed it


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"security_opt": ["apparmor=mine"]}, "mine"),
        ({"security_opt": ["apparmor:unconfined"]}, "unconfined"),
        ({"security_opt": ["apparmor=docker-default"]}, DEFAULT),
        ({"privileged": True}, "unconfined"),
        ({"privileged": True, "security_opt": ["apparmor=mine"]}, "mine"),
    ],
)
def test_what_was_asked_for_is_applied(kernel: AppArmor, options: dict[str, Any], wanted: str) -> None:
    assert spec_of(**options) == {"apparmorProfile": wanted}


def test_a_profile_that_cannot_be_loaded_stops_the_start(kernel: AppArmor, tmp_path: Path) -> None:
    (tmp_path / "apparmor_parser").write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(EngineError, match="engine-default cannot be loaded: broken"):
        spec_of()


def test_a_profile_nobody_loaded_is_refused_at_create(kernel: AppArmor) -> None:
    plugin.engine_container_admit(request("apparmor=mine"))
    plugin.engine_container_admit(request("apparmor=unconfined"))
    with pytest.raises(InvalidParameter, match="profile theirs is not loaded"):
        plugin.engine_container_admit(request("apparmor=theirs"))


def test_without_apparmor_only_an_explicit_wish_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "apparmor", AppArmor(tmp_path))
    assert plugin.engine_security_options() == ()
    assert spec_of() == {}
    plugin.engine_container_admit(request())
    plugin.engine_container_admit(request("apparmor=unconfined"))
    with pytest.raises(InvalidParameter, match="AppArmor is not enabled in this kernel"):
        plugin.engine_container_admit(request("apparmor=mine"))


@pytest.mark.skipif(not shutil.which("apparmor_parser"), reason="needs the package apparmor")
def test_the_parser_understands_the_profile() -> None:
    done = subprocess.run(
        ["apparmor_parser", "--skip-kernel-load", "--skip-cache", "--stdout"],
        input=profile(abi=Path("/etc/apparmor.d/abi/3.0").exists()).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
