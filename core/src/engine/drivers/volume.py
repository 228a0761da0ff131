"""Volume drivers: named data that outlives containers.

A volume is created once, mounted for each container that uses it and unmounted when that container stops.
``mount`` is counted by consumer id, so that a driver can attach remote storage on first use and detach after the
last; calling it again for the same consumer is the same mount.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.drivers import DriverContext
from engine.errors import NotSupported

__all__ = ["Volume", "VolumeDriver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume as its driver knows it. ``mountpoint`` is the host path users see in ``inspect``; ``created`` is
    RFC 3339; ``status`` is free-form driver information."""

    name: str
    mountpoint: Path
    created: str
    options: Mapping[str, str] = field(default_factory=dict)
    status: Mapping[str, str] = field(default_factory=dict)


class VolumeDriver(ABC):
    """Capabilities: ``usage`` (usage). ``scope``: ``local``, or ``global`` when every node sees the same volumes."""

    capabilities: frozenset[str] = frozenset()
    scope: str = "local"

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    @abstractmethod
    def create(self, name: str, options: Mapping[str, str]) -> Volume:
        """Make the volume exist; same name and options, same volume. Bad options: `InvalidParameter`."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete the volume and its data; gone already is success."""

    @abstractmethod
    def get(self, name: str) -> Volume:
        """`NotFound` when there is none."""

    @abstractmethod
    def list(self) -> Sequence[Volume]:
        """All volumes this driver knows, also those made outside this engine."""

    @abstractmethod
    def mount(self, name: str, consumer: str) -> Path:
        """The directory to bind into the container ``consumer``."""

    @abstractmethod
    def unmount(self, name: str, consumer: str) -> None:
        """The container is done with it."""

    def usage(self, name: str) -> int:
        """Bytes on disk."""
        raise NotSupported(f"volume driver {self.context.name} cannot measure volumes")
