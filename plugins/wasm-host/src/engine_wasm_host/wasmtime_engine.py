"""The one wasmtime configuration there is: code compiled under it runs under it, and under no other."""

from __future__ import annotations

import wasmtime

__all__ = ["SETTINGS", "make"]

SETTINGS = "e1"
"""Names the settings below in the cache's keys: change it with them."""


def make() -> wasmtime.Engine:
    """A new engine. Making one starts no thread; compiling with it does."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    return wasmtime.Engine(config)
