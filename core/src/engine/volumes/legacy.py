"""Docker's legacy volume plugins (``VolumeDriver.*``) as volume drivers of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.drivers import DriverContext
from engine.drivers.volume import Volume, VolumeDriver
from engine.errors import EngineError, NotFound, PluginError
from engine.legacy_plugins import LegacyPlugin, directories_of

__all__ = ["LegacyVolumes"]

_LONG, _SHORT = 110.0, 60.0  # seconds, as dockerd's, and below the deadline of the core's calls


class _Shown(msgspec.Struct, frozen=True, rename="pascal"):
    name: str = ""
    mountpoint: str = ""
    created_at: str = ""
    status: dict[str, Any] | None = None


class _One(msgspec.Struct, frozen=True, rename="pascal"):
    volume: _Shown | None = None


class _Many(msgspec.Struct, frozen=True, rename="pascal"):
    volumes: list[_Shown] | None = None


class _Where(msgspec.Struct, frozen=True, rename="pascal"):
    mountpoint: str = ""


class _Scope(msgspec.Struct, frozen=True, rename="pascal"):
    scope: str = ""


class _Capabilities(msgspec.Struct, frozen=True, rename="pascal"):
    capabilities: _Scope = _Scope()


class LegacyVolumes(VolumeDriver):
    """The driver's name is the plugin's."""

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._plugin = LegacyPlugin(context.name, directories_of(context.options))
        self._plugin.require("VolumeDriver")
        self.scope = self._ask_scope()

    def create(self, name: str, options: Mapping[str, str]) -> Volume:
        """``VolumeDriver.Create``, then ``Get``."""
        self._plugin.call("VolumeDriver.Create", {"Name": name, "Opts": dict(options)}, _Where, timeout=_LONG)
        return self._with(name, options)

    def remove(self, name: str) -> None:
        """``VolumeDriver.Remove``; a volume the plugin does not know is gone already."""
        try:
            self._plugin.call("VolumeDriver.Remove", {"Name": name}, _Where, timeout=_LONG)
        except PluginError:
            raise
        except EngineError:
            try:
                self.get(name)
            except NotFound:
                return
            raise

    def get(self, name: str) -> Volume:
        """``VolumeDriver.Get``."""
        return self._with(name, {})

    def list(self) -> Sequence[Volume]:
        """``VolumeDriver.List``."""
        answer = self._plugin.call("VolumeDriver.List", {}, _Many, timeout=_SHORT)
        return [_volume(shown, {}) for shown in answer.volumes or ()]

    def mount(self, name: str, consumer: str) -> Path:
        """``VolumeDriver.Mount``: a directory of this host."""
        answer = self._plugin.call("VolumeDriver.Mount", {"Name": name, "ID": consumer}, _Where, timeout=_LONG)
        path = Path(answer.mountpoint)
        if not path.is_absolute():
            raise PluginError(f"plugin {self.context.name}: the mountpoint of {name} is {answer.mountpoint!r}")
        return path

    def unmount(self, name: str, consumer: str) -> None:
        """``VolumeDriver.Unmount``."""
        self._plugin.call("VolumeDriver.Unmount", {"Name": name, "ID": consumer}, _Where, timeout=_SHORT)

    def _with(self, name: str, options: Mapping[str, str]) -> Volume:
        try:
            answer = self._plugin.call("VolumeDriver.Get", {"Name": name}, _One, timeout=_SHORT)
        except PluginError:
            raise
        except EngineError as error:  # the protocol has no code for "there is none"
            raise NotFound(f"get {name}: {error}") from None
        if answer.volume is None or not answer.volume.name:
            raise NotFound(f"get {name}: no such volume")
        return _volume(answer.volume, options)

    def _ask_scope(self) -> str:
        try:
            answer = self._plugin.call("VolumeDriver.Capabilities", {}, _Capabilities, timeout=_SHORT)
        except PluginError:
            raise
        except EngineError:
            return "local"  # plugins older than this call
        return "global" if answer.capabilities.scope.lower() == "global" else "local"


def _volume(shown: _Shown, options: Mapping[str, str]) -> Volume:
    status = {key: value if isinstance(value, str) else str(value) for key, value in (shown.status or {}).items()}
    return Volume(
        name=shown.name, mountpoint=Path(shown.mountpoint), created=shown.created_at, options=options, status=status
    )
