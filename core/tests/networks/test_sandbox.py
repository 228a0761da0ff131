"""Sandboxes: made, kept and removed by path."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from engine import kernel
from engine.networks import sandbox

pytestmark = pytest.mark.root


def test_a_sandbox_has_loopback_up_and_nothing_else(tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "netns" / "one"
    sandbox.create(path)
    sandbox.create(path)
    assert sandbox.exists(path)

    def talk() -> list[str]:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            return [name for _, name in socket.if_nameindex()]

    assert "lo" in kernel.in_namespace(path, talk)
    assert os.stat(path).st_ino != os.stat("/proc/self/ns/net").st_ino
    sandbox.delete(path)
    sandbox.delete(path)
    assert not path.exists()


def test_a_sweep_removes_all_but_those_to_keep(tmp_path: Path, no_leaks: None) -> None:
    for name in ("kept", "old"):
        sandbox.create(tmp_path / "netns" / name)
    (tmp_path / "netns" / "half-made").touch()
    assert sandbox.sweep(tmp_path / "netns", {"kept"}) == ["half-made", "old"]
    assert sandbox.exists(tmp_path / "netns" / "kept")
    assert sandbox.sweep(tmp_path / "netns", ()) == ["kept"]
    assert sandbox.sweep(tmp_path / "nowhere", ()) == []
