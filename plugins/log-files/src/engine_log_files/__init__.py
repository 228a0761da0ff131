"""Container logs in files: ``json-file`` (Docker's format, the default), ``local`` (framed, faster), and ``none``."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_log_drivers"]

_ROTATION = {
    "max-size": "size at which the log is rotated, such as 10m; -1 never rotates (default 100m)",
    "max-file": "how many files are kept, the current one included (default 3)",
    "compress": "whether rotated files are compressed with gzip (default false; local: true)",
    "mode": "blocking or non-blocking: whether a slow disk holds the container back (both are accepted)",
}


@hookimpl
def engine_log_drivers() -> Sequence[DriverDescription]:
    """The three drivers of this package."""
    return (
        DriverDescription(
            name="json-file",
            loader="engine_log_files.driver:JsonFile",
            summary="One JSON object a line, readable by everything that reads Docker's logs",
            capabilities=frozenset({"read"}),
            options=_ROTATION,
        ),
        DriverDescription(
            name="local",
            loader="engine_log_files.driver:Local",
            summary="Framed chunks: a fifth of the cost of json-file",
            capabilities=frozenset({"read"}),
            options=_ROTATION,
        ),
        DriverDescription(
            name="none",
            loader="engine_log_files.driver:Nothing",
            summary="Output is not kept",
        ),
    )
