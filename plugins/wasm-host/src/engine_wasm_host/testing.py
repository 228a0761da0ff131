"""Modules for tests, compiled from C when this machine has clang, lld and wasi-libc; pytest is needed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

__all__ = ["compile_c"]

_SYSROOT_HEADERS = Path("/usr/include/wasm32-wasi")


def compile_c(source: Path, *options: str) -> bytes:
    """The WASI preview 1 module of a C file, kept between runs; skips the test where it cannot be compiled."""
    text = source.read_bytes()
    key = hashlib.sha256(text + " ".join(options).encode()).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"engine-wasm-tests-{key}.wasm"
    if not kept.exists():
        clang = shutil.which("clang")
        if clang is None or not shutil.which("wasm-ld") or not _SYSROOT_HEADERS.is_dir():
            pytest.skip("needs clang, lld, wasi-libc and libclang-rt-dev-wasm32")
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory, "out.wasm")
            subprocess.run(
                [clang, "--target=wasm32-wasi", "--sysroot=/usr", "-O2", *options, str(source), "-o", str(made)],
                check=True,
            )
            shutil.move(made, kept)
    return kept.read_bytes()
