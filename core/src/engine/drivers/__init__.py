"""The contracts drivers implement: one abstract class per kind.

A driver is found through a providing hook (`engine.hookspecs`), which returns `DriverDescription`s;
the class is imported and built with one `DriverContext` on first use. What every method of every
driver promises, and what the core promises in return:

* **sync and bounded** - the core calls drivers from a pool of worker threads; a method may block on the
  kernel, never on a user. Methods of one driver may be called concurrently for different ids; the core
  never makes two concurrent calls for the same id.
* **idempotent** - calling twice with the same arguments is calling once; deleting what is gone succeeds.
  That is what makes recovery after a crash a matter of calling again.
* **keyed by id** - drivers get ids, never names a user can change.
* **plain values** - frozen dataclasses in, frozen dataclasses out; never HTTP, services or sockets of the core.
* **errors** - only `engine.errors`; a missing kernel feature is `NotSupported` naming the feature.
* **optional powers** are named in ``capabilities``; calling one that is not claimed raises `NotSupported`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DriverContext", "DriverDescription"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverContext:
    """All a driver is given when it is built.

    ``instance`` is 8 hex digits naming this engine on this host (derived from its data root): every
    name a driver gives to something the whole host can see (links, tables, cgroups) contains it or is
    derived from it, so that several engines run side by side. ``root`` is the driver's own directory
    for what must survive a reboot, ``state`` for what must not (both exist, mode 0700, owned by root).
    ``options`` is the driver's section of the daemon's configuration.
    """

    name: str
    instance: str
    root: Path
    state: Path
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverDescription:
    """What a plugin offers, said without importing the driver.

    ``name`` is what the user types; ``aliases`` are other spellings (``io.containerd.runc.v2``).
    ``loader`` is ``"package.module:Class"``; the class takes one `DriverContext`.
    ``platforms`` (runtimes only) are OCI platforms such as ``linux`` or ``wasi/wasm`` the driver runs
    when the user names no runtime. ``options`` documents the configuration keys: name -> one sentence.
    """

    name: str
    loader: str
    summary: str
    aliases: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
