"""The services of a running engine, as one value: what the API and subsystem plugins are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.api.router import Route
    from engine.config import Config
    from engine.containers import Containers
    from engine.containers.execs import Execs
    from engine.events import Events
    from engine.images import Images
    from engine.networks import Networks
    from engine.plugins import Plugins
    from engine.store import Store
    from engine.system import System
    from engine.volumes import Volumes
    from engine.workers import Workers

__all__ = ["Services", "Subsystem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Built once by `engine.daemon`; holds no logic and no lock."""

    config: Config
    workers: Workers
    store: Store
    events: Events
    plugins: Plugins
    images: Images
    networks: Networks
    volumes: Volumes
    containers: Containers
    execs: Execs
    system: System


class Subsystem(Protocol):
    """What `engine_subsystems` returns: a name, HTTP routes, and a loop that runs while the daemon does."""

    name: str
    routes: Sequence[Route]

    async def run(self) -> None:
        """Run until cancelled. Started after the services, cancelled before they stop."""
        ...
