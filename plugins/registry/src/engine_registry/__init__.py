"""A registry on a local directory, run by ``engine registry serve`` or by the daemon when told to listen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import InvalidParameter
from engine.hookspecs import hookimpl

__all__ = ["engine_configure", "engine_subsystems"]

_options: dict[str, str] = {}


@hookimpl
def engine_configure(options: Mapping[str, Any]) -> None:
    """Take ``listen`` (an address such as ``127.0.0.1:5000``; without it nothing is served) and ``root``."""
    unknown = set(options) - {"listen", "root"}
    if unknown:
        raise InvalidParameter(f"unknown option: {', '.join(sorted(unknown))}")
    _options.clear()
    _options.update({key: str(value) for key, value in options.items()})


@hookimpl
def engine_subsystems(services: Any) -> Sequence[Any]:
    """The registry, when it is to listen."""
    listen = _options.get("listen")
    if not listen:
        return ()
    return (_Serving(listen, Path(_options.get("root") or services.config.root / "registry")),)


class _Serving:
    """The registry inside the daemon, on threads of its own: an `engine.services.Subsystem` without routes."""

    def __init__(self, listen: str, root: Path) -> None:
        self.name = "registry"
        self.routes: Sequence[Any] = ()
        self._listen = listen
        self._root = root

    async def run(self) -> None:
        from engine_registry.server import RegistryServer
        from engine_registry.storage import Storage

        server = await asyncio.to_thread(lambda: RegistryServer(Storage(self._root), self._listen))
        try:
            await asyncio.to_thread(server.serve_forever, 0.1)
        finally:
            server.shutdown()
            server.server_close()
