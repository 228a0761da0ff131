"""A program that runs from memory: the same program, out of everyone's reach, and never an old one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from engine_runtime_oci.sealed import SealedProgram


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(shutil.copy(shutil.which("true") or "/bin/true", tmp_path / "program"))


def status(sealed: SealedProgram) -> int:
    return subprocess.run(["program"], executable=sealed.executable(), check=False).returncode


def test_the_copy_runs_like_the_program(program: Path) -> None:
    assert status(SealedProgram(str(program))) == 0


def test_nobody_can_write_to_the_copy(program: Path) -> None:
    copy = os.open(SealedProgram(str(program)).executable(), os.O_RDWR | os.O_CLOEXEC)
    try:
        with pytest.raises(PermissionError):
            os.write(copy, b"#!")
    finally:
        os.close(copy)


def test_an_upgraded_program_is_the_one_that_runs(program: Path) -> None:
    sealed = SealedProgram(str(program))
    before = sealed.executable()
    assert sealed.executable() == before
    program.unlink()
    shutil.copy(shutil.which("false") or "/bin/false", program)
    assert status(sealed) == 1


def test_a_program_that_is_gone_is_an_error(program: Path) -> None:
    sealed = SealedProgram(str(program))
    sealed.executable()
    program.unlink()
    with pytest.raises(FileNotFoundError):
        sealed.executable()
