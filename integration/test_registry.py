"""Push, pull, save, load, import: with a real registry on loopback, and checked by other tools."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from harness import Client


@pytest.fixture
def pushed(cli: Client, registry: str) -> str:
    reference = f"{registry}/test/bb-{cli.program}:v1"
    cli("tag", "bb", reference)
    cli("push", reference)
    return reference


def test_push_reports_layers_and_digest(cli: Client, registry: str) -> None:
    reference = f"{registry}/push/{cli.program}:one"
    cli("tag", "bb", reference)

    out = cli("push", reference).out

    assert f"The push refers to repository [{registry}/push/{cli.program}]" in out
    assert re.search(r"one: digest: sha256:[0-9a-f]{64} size: \d+", out)
    assert "Layer already exists" in cli("push", reference).out


def test_pull_reports_status_and_is_repeatable(cli: Client, pushed: str) -> None:
    cli("rmi", pushed)
    if cli("images", "-q", pushed).out:
        pytest.fail("still there")

    first = cli("pull", pushed).out
    second = cli("pull", pushed).out

    assert f"v1: Pulling from test/bb-{cli.program}" in first
    assert re.search(r"Digest: sha256:[0-9a-f]{64}", first)
    assert first.splitlines()[-1] == pushed
    assert f"Status: Image is up to date for {pushed}" in second


def test_an_image_comes_back_from_the_registry_unchanged(cli: Client, pushed: str) -> None:
    before = cli.inspect(pushed)
    digest = next(d for d in before["RepoDigests"] if d.startswith(pushed.rpartition(":")[0]))
    cli("rmi", pushed)

    cli("pull", digest)

    after = cli.inspect(digest)
    assert (after["Id"], after["RootFS"]) == (before["Id"], before["RootFS"])
    assert cli("run", "--rm", digest, "echo", "works").out == "works\n"
    cli("rmi", digest)


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (":nosuch", "manifest unknown"),
        ("@sha256:" + "0" * 64, ("manifest unknown", "not found")),
        ("/UPPER", "must be lowercase"),
    ],
)
def test_what_the_registry_does_not_have_is_named(
    cli: Client, pushed: str, suffix: str, words: str | tuple[str, ...]
) -> None:
    result = cli("pull", pushed.rpartition(":")[0] + suffix, check=False)

    assert result.code == 1
    assert any(text in result.err for text in ([words] if isinstance(words, str) else words)), result


def test_a_registry_that_is_not_there_is_an_error_with_its_name(cli: Client) -> None:
    result = cli("pull", "127.0.0.1:5999/x", check=False)

    assert result.code == 1
    assert "127.0.0.1:5999" in result.err
    assert "connection refused" in result.err


def test_several_tags_are_one_image_and_rmi_untags(cli: Client) -> None:
    names = [f"multi-{cli.program}:{number}" for number in (1, 2)]
    for name in names:
        cli("tag", "bb", name)

    assert len(set(cli("images", "-q", "--no-trunc", f"multi-{cli.program}").out.split())) == 1
    assert cli("rmi", names[0]).out == f"Untagged: {names[0]}\n"
    assert cli("rmi", names[1]).out == f"Untagged: {names[1]}\n"
    assert "bb" in cli("images", "bb").out


def test_an_image_in_use_is_not_removed(cli: Client, name: str, tmp_path: Path) -> None:
    reference = f"used-{cli.program}:1"
    with tarfile.open(tmp_path / "rootfs.tar", "w") as archive:
        archive.add(__file__, "file")
    cli("import", "-c", "CMD /x", str(tmp_path / "rootfs.tar"), reference)
    identifier = cli("create", "--name", name, reference).out.strip()

    result = cli("rmi", reference, check=False)

    assert result.code == 1
    assert (
        f'conflict: unable to remove repository reference "{reference}" (must force) - '
        f"container {identifier[:12]} is using its referenced image"
    ) in result.err
    cli("rm", name)
    cli("rmi", reference)


def test_save_and_load_round_trip_and_other_tools_agree(cli: Client, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    reference = f"saved-{cli.program}:1"
    cli("tag", "bb", reference)
    before = cli.inspect(reference)["Id"]
    cli("save", "-o", str(archive), reference)
    cli("rmi", reference)

    assert f"Loaded image: {reference}" in cli("load", "-i", str(archive)).out
    assert cli.inspect(reference)["Id"] == before
    cli("rmi", reference)
    if shutil.which("skopeo"):
        shown = subprocess.run(
            ["skopeo", "inspect", "--config", f"docker-archive:{archive}"], capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["rootfs"]["type"] == "layers"


def test_import_makes_an_image_of_a_root_file_system(cli: Client, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs.tar"
    with tarfile.open(rootfs, "w") as archive:
        archive.add(shutil.which("busybox") or "", "bin/busybox")
    reference = f"imported-{cli.program}:1"

    identifier = cli("import", "-c", 'CMD ["/bin/busybox", "echo", "imported"]', str(rootfs), reference).out.strip()

    assert re.fullmatch(r"sha256:[0-9a-f]{64}", identifier)
    assert cli("run", "--rm", reference).out == "imported\n"
    assert "imported" in cli("history", "--no-trunc", reference).out.lower()
    cli("rmi", reference)


@pytest.mark.parametrize("damage", ["cut", "garbage", "escape"])
def test_a_damaged_archive_is_refused_and_leaves_nothing(
    cli: Client, busybox_tar: Path, tmp_path: Path, damage: str
) -> None:
    before = cli("images", "-aq", "--no-trunc").out
    broken = tmp_path / "broken.tar"
    if damage == "cut":
        broken.write_bytes(busybox_tar.read_bytes()[:700_000])
    elif damage == "garbage":
        broken.write_bytes(b"\xde\xad" * 50_000)
    else:
        with tarfile.open(broken, "w") as archive:
            info = tarfile.TarInfo("../../../../../../../../../tmp/engine-escaped")
            archive.addfile(info)
            link = tarfile.TarInfo("manifest.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)

    result = cli("load", "-i", str(broken), check=False)

    assert result.code == 1, result
    assert result.err
    assert cli("images", "-aq", "--no-trunc").out == before
    assert not Path("/tmp/engine-escaped").exists()
