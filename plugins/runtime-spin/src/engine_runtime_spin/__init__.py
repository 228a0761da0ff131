"""Runs Spin applications: images with a ``spin.toml`` and the components it names."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl


@hookimpl
def engine_runtimes() -> Sequence[DriverDescription]:
    """``spin``."""
    return [
        DriverDescription(
            name="spin",
            loader="engine_runtime_spin.driver:SpinRuntime",
            summary="Spin applications with HTTP triggers, one sandboxed process for each application",
            aliases=("io.containerd.spin.v1", "io.containerd.spin.v2"),
            capabilities=frozenset({"pause", "update", "stats", "top", "terminal"}),
        )
    ]
