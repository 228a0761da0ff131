"""Runs containers with an OCI runtime binary: runc, crun or any other that has their command line."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

_CAPABILITIES = frozenset({"exec", "pause", "update", "stats", "top", "terminal", "oci-binary"})
_OPTIONS = {
    "path": "the runtime's binary: an absolute path, or a name looked up in PATH and the system directories",
    "args": "global arguments given to the binary before the command, a list",
}


@hookimpl
def engine_runtimes() -> Sequence[DriverDescription]:
    """``crun`` and ``runc``; with the option ``path`` either runs any OCI runtime binary."""
    return [
        DriverDescription(
            name="crun",
            loader="engine_runtime_oci.driver:OciRuntime",
            summary="containers by crun, the OCI runtime in C: the fastest start",
            platforms=("linux",),
            capabilities=_CAPABILITIES,
            options=_OPTIONS,
        ),
        DriverDescription(
            name="runc",
            loader="engine_runtime_oci.driver:OciRuntime",
            summary="containers by runc, the reference OCI runtime",
            aliases=("io.containerd.runc.v2",),
            platforms=("linux",),
            capabilities=_CAPABILITIES,
            options=_OPTIONS,
        ),
    ]
