"""The plugin host: finds plugins at start, answers who provides a driver, hands out drivers built on first use.

stevedore finds the entry points of the group ``engine.plugins``; pluggy joins the plugins' hooks. A plugin that
cannot be imported, breaks a hook's signature or raises in a providing hook is set aside with its name and error
(`Plugins.report`) and changes nothing for the others. A driver name claimed by two plugins is an error for whoever
asks for that name, naming both; every other name works.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import pluggy

from engine import legacy_plugins
from engine.drivers import DriverContext, DriverDescription
from engine.errors import EngineError, InvalidParameter, NotFound, PluginError
from engine.hookspecs import PROJECT, Hooks
from engine.platforms import Platform

if TYPE_CHECKING:
    from engine.drivers.log import LogDriver
    from engine.drivers.network import NetworkDriver
    from engine.drivers.runtime import RuntimeDriver
    from engine.drivers.store import ImageStoreDriver
    from engine.drivers.volume import VolumeDriver

__all__ = ["PluginReport", "PluginSettings", "Plugins", "discover"]

ENTRY_POINTS = "engine.plugins"
OCI_BINARY = "oci-binary"  # capability: the driver runs any OCI runtime binary named by the option ``path``

_log = logging.getLogger(__name__)
_CONTAINERD = re.compile(r"io\.containerd\.([a-z0-9-]+)\.v\d+")

_PROVIDING = {
    "runtime": "engine_runtimes",
    "network": "engine_network_drivers",
    "volume": "engine_volume_drivers",
    "store": "engine_image_stores",
    "log": "engine_log_drivers",
}
# What speaks Docker's legacy plugin protocol for us, by kind.
_LEGACY = {"volume": "engine.volumes.legacy:LegacyVolumes"}
# Names preferred where several drivers could serve by default: faster or more capable first.
_PREFERRED = {"runtime": ("crun", "runc"), "store": ("overlay2", "vfs")}


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """What of the daemon's configuration concerns plugins.

    ``options`` holds a section for each driver name; ``runtimes`` is daemon.json's ``runtimes`` (``path`` and
    ``runtimeArgs``, or ``runtimeType`` and ``options``); ``disabled`` are plugin names.
    """

    instance: str
    data_root: Path
    exec_root: Path
    disabled: frozenset[str] = frozenset()
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    runtimes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    default_runtime: str = ""
    default_store: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginReport:
    """One line of ``engine plugin ls``. ``state`` is enabled, disabled, broken or conflict; ``kind`` and ``provides``
    list what the plugin offers (``runtime``; ``runc, crun``)."""

    name: str
    version: str
    distribution: str
    kind: str
    provides: tuple[str, ...]
    state: str
    error: str = ""


class _ConfigurationError(Exception):
    """A plugin cannot do what the administrator asked of it: nothing to go on without."""


@dataclass(slots=True)
class _Plugin:
    name: str
    target: str
    module: Any = None
    state: str = "enabled"
    error: str = ""
    distribution: str = ""
    version: str = ""
    descriptions: dict[str, list[DriverDescription]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unlike the name unique: two distributions may use one entry point name."""
        return f"{self.name}={self.target}"

    @property
    def label(self) -> str:
        return self.distribution or f"{self.name} ({self.target})"


def discover(settings: PluginSettings) -> Plugins:
    """Find, import and register every installed plugin. Raises `InvalidParameter` when a plugin
    cannot follow its configuration; otherwise never because of a plugin.

    stevedore caches entry points on disk and trusts that cache, so it is pinned to a directory only root can write.
    """
    with _stevedore_cache(settings.data_root / "cache"):
        from stevedore import ExtensionManager
    found: list[_Plugin] = []

    def failed(_manager: object, entry_point: Any, error: BaseException) -> None:
        found.append(
            _Plugin(entry_point.name, entry_point.value, state="broken", error=f"{type(error).__name__}: {error}")
        )

    def chosen(name: str) -> bool:
        return name not in settings.disabled

    ExtensionManager.ENTRY_POINT_CACHE.pop(ENTRY_POINTS, None)  # a class attribute that never expires
    lister: Iterable[Any] = ExtensionManager(ENTRY_POINTS, on_load_failure_callback=failed, invoke_on_load=False)
    for extension in lister:
        found.append(_Plugin(extension.name, extension.entry_point_target, module=extension.plugin))
    for plugin in found:
        if not chosen(plugin.name):
            plugin.state, plugin.module, plugin.error = "disabled", None, ""
    return Plugins(settings, found)


@contextmanager
def _stevedore_cache(directory: Path) -> Iterator[None]:
    """stevedore reads XDG_CACHE_HOME when it is first imported; give it a directory of our own for that moment."""
    if "stevedore" in sys.modules:
        yield
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


class Plugins:
    """All plugins of this daemon. Methods may be called from any thread; those that hand out drivers may block
    (a driver is imported and built), so the core calls them in a worker."""

    def __init__(self, settings: PluginSettings, found: Iterable[_Plugin]) -> None:
        self._settings = settings
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._plugins = sorted(found, key=lambda plugin: plugin.name)
        self._table: dict[str, dict[str, list[tuple[_Plugin, DriverDescription]]]] = {kind: {} for kind in _PROVIDING}
        self._drivers: dict[tuple[str, str], Any] = {}
        self._lock = threading.RLock()
        self._default_runtime = settings.default_runtime
        for plugin in self._plugins:
            if plugin.state == "enabled":
                self._register(plugin)
        self.hooks = cast("Hooks", self._manager.hook)

    # -- registration ---------------------------------------------------------------------------------------

    def add(self, plugin: object, name: str) -> None:
        """Register a plugin object that is not installed (tests, ``engine plugin dev``). Raises `PluginError`."""
        entry = _Plugin(name, type(plugin).__name__, module=plugin)
        self._plugins.append(entry)
        self._register(entry)
        if entry.state == "broken":
            raise PluginError(f"plugin {name}: {entry.error}")

    def _register(self, plugin: _Plugin) -> None:
        try:
            self._refuse_coroutines(plugin)
            self._manager.register(plugin.module, plugin.key)
            self._manager.check_pending()
            self._configure(plugin)
            for kind, hook in _PROVIDING.items():
                plugin.descriptions[kind] = self._provided(plugin, hook)
        except _ConfigurationError as error:
            raise InvalidParameter(f"plugin {plugin.name}: {error}") from error
        except Exception as error:  # a plugin may fail in any way; it must not take the daemon with it
            plugin.state, plugin.error = "broken", f"{type(error).__name__}: {error}"
            plugin.descriptions = {}
            if self._manager.get_plugin(plugin.key) is plugin.module:
                self._manager.unregister(name=plugin.key)
            _log.error("plugin is broken and was set aside", extra={"plugin": plugin.name, "error": plugin.error})
            return
        for kind, descriptions in plugin.descriptions.items():
            for description in descriptions:
                for name in (description.name, *description.aliases):
                    self._table[kind].setdefault(name, []).append((plugin, description))

    @staticmethod
    def _refuse_coroutines(plugin: _Plugin) -> None:
        for name in dir(plugin.module):
            if name.startswith("engine_") and inspect.iscoroutinefunction(getattr(plugin.module, name, None)):
                raise PluginError(f"hook {name} is a coroutine function; hooks are synchronous")

    def _configure(self, plugin: _Plugin) -> None:
        options = MappingProxyType(dict(self._settings.options.get(plugin.name, {})))
        for implementation in self._manager.hook.engine_configure.get_hookimpls():
            if implementation.plugin is plugin.module:
                try:
                    implementation.function(*((options,) if implementation.argnames else ()))
                except EngineError as error:
                    raise _ConfigurationError(error.message) from error

    def _provided(self, plugin: _Plugin, hook: str) -> list[DriverDescription]:
        descriptions: list[DriverDescription] = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            if implementation.plugin is plugin.module:
                descriptions.extend(implementation.function())
        for description in descriptions:
            if not isinstance(description, DriverDescription):
                raise PluginError(f"hook {hook} returned {type(description).__name__}, not DriverDescription")
        return descriptions

    # -- lookup ---------------------------------------------------------------------------------------------

    def names(self, kind: str) -> list[str]:
        """Driver names of a kind (runtime, network, volume, store, log), sorted, without aliases and conflicts."""
        canonical = {d.name for entries in self._table[kind].values() for _, d in entries}
        if kind == "runtime":
            canonical |= set(self._settings.runtimes)
        return sorted(canonical)

    def describe(self, kind: str, name: str) -> DriverDescription:
        """The description of a driver; raises as the lookup of its kind does."""
        return self._find(kind, name)

    def _find(self, kind: str, name: str) -> DriverDescription:
        entries = self._table[kind].get(name, [])
        if not entries:
            raise self._unknown(kind, name)
        if len(entries) > 1:
            who = " and ".join(plugin.label for plugin, _ in entries)
            raise PluginError(f'{kind} "{name}" is provided by {who}: disable one of them (disabled-plugins)')
        return entries[0][1]

    def _unknown(self, kind: str, name: str) -> EngineError:
        installed = ", ".join(self.names(kind)) or "none"
        broken = [plugin.name for plugin in self._plugins if plugin.state == "broken"]
        hint = f" (broken plugins: {', '.join(broken)}; see engine plugin ls)" if broken else ""
        if kind == "runtime":
            return InvalidParameter(f"unknown or invalid runtime name: {name}; installed: {installed}{hint}")
        if kind == "log":
            return InvalidParameter(f'error looking up logging plugin {name}: plugin "{name}" not found{hint}')
        if kind == "store":
            return InvalidParameter(f"no image store named {name}; installed: {installed}{hint}")
        return NotFound(f'plugin "{name}" not found; installed {kind} drivers: {installed}{hint}')

    # -- drivers --------------------------------------------------------------------------------------------

    def runtime(self, name: str) -> RuntimeDriver:
        """A runtime by name, alias, ``io.containerd.<name>.v<N>``, entry of daemon.json's ``runtimes`` or absolute path
        of an OCI runtime binary. `InvalidParameter` lists what is installed."""
        description, options = self._runtime(name)
        return cast("RuntimeDriver", self._driver("runtime", description, options))

    def network(self, name: str) -> NetworkDriver:
        """A network driver; `NotFound` in dockerd's words."""
        return cast("NetworkDriver", self._driver("network", self._find("network", name)))

    def volume(self, name: str) -> VolumeDriver:
        """A volume driver: one of ours, else one of Docker's legacy plugins; `NotFound` in dockerd's words."""
        if name not in self._table["volume"] and (legacy := self._legacy("volume", name)) is not None:
            return cast("VolumeDriver", self._driver("volume", legacy))
        return cast("VolumeDriver", self._driver("volume", self._find("volume", name)))

    @staticmethod
    def _legacy(kind: str, name: str) -> DriverDescription | None:
        if legacy_plugins.find(name) is None:
            return None
        return DriverDescription(name=name, loader=_LEGACY[kind], summary="A legacy plugin of Docker's protocol")

    def image_store(self, name: str | None = None) -> ImageStoreDriver:
        """An image store; without a name the configured one, else the best that works here."""
        if name is None:
            name = self._settings.default_store or self._first_working("store", self.names("store"))
        return cast("ImageStoreDriver", self._driver("store", self._find("store", name)))

    def log(self, name: str) -> LogDriver:
        """A log driver; `InvalidParameter` in dockerd's words."""
        return cast("LogDriver", self._driver("log", self._find("log", name)))

    def runtime_name(self, name: str) -> str:
        """The name under which a runtime is shown and stored: aliases resolved, custom names and paths kept."""
        description, _ = self._runtime(name)
        return description.name

    def runtime_for(self, platform: Platform) -> str:
        """The runtime of an image for ``platform`` when the user names none."""
        kind = "wasi/wasm" if platform.is_wasm else platform.os
        if kind == "linux" and self._default_runtime:
            return self._default_runtime
        able = [
            name
            for name in self.names("runtime")
            if (d := self._table["runtime"].get(name)) and kind in d[0][1].platforms
        ]
        if not able:
            raise InvalidParameter(
                f"no installed runtime runs images for {platform}; "
                f"installed: {', '.join(self.names('runtime')) or 'none'}"
            )
        chosen = able[0] if len(able) == 1 else self._first_working("runtime", able)
        if kind == "linux":
            self._default_runtime = chosen
        return chosen

    def set_default_runtime(self, name: str) -> None:
        """Change the default for Linux images (configuration reload); unknown names raise."""
        self._runtime(name)
        self._default_runtime = name

    def _runtime(self, name: str) -> tuple[DriverDescription, Mapping[str, object]]:
        custom = self._settings.runtimes.get(name)
        if custom is not None:
            return self._custom_runtime(name, custom)
        if name in self._table["runtime"]:
            description = self._find("runtime", name)
            return description, self._settings.options.get(description.name, {})
        if name.startswith("/"):
            return self._binary(name, {"path": name})
        match = _CONTAINERD.fullmatch(name)
        if match and match[1] in self._table["runtime"]:
            return self._runtime(match[1])
        raise self._unknown("runtime", name)

    def _custom_runtime(
        self, name: str, custom: Mapping[str, object]
    ) -> tuple[DriverDescription, Mapping[str, object]]:
        if custom.get("runtimeType"):
            base, options = self._runtime(str(custom["runtimeType"]))
            extra = custom.get("options")
            merged = {**options, **(extra if isinstance(extra, dict) else {})}
            return replace(base, name=name, aliases=()), merged
        return self._binary(name, {"path": custom.get("path") or name, "args": custom.get("runtimeArgs") or []})

    def _binary(self, name: str, options: Mapping[str, object]) -> tuple[DriverDescription, Mapping[str, object]]:
        for entries in self._table["runtime"].values():
            description = entries[0][1]
            if OCI_BINARY in description.capabilities:
                return replace(description, name=name, aliases=()), options
        raise InvalidParameter(
            f"runtime {name}: no installed plugin runs OCI runtime binaries (engine-runtime-oci does)"
        )

    def _first_working(self, kind: str, names: list[str]) -> str:
        """The first of ``names``, in our order of preference, whose driver can be built and probed here."""
        if not names:
            raise PluginError(f"no {kind} plugin is installed")
        order = [name for name in _PREFERRED.get(kind, ()) if name in names]
        order += [name for name in names if name not in order]
        reasons = []
        for name in order:
            try:
                driver = self._driver(kind, self._find(kind, name), self._settings.options.get(name, {}))
                probe: Callable[[], object] | None = getattr(driver, "probe", None)
                if probe is not None:
                    probe()
            except EngineError as error:
                reasons.append(f"{name}: {error}")
                continue
            return name
        raise PluginError(f"no {kind} works on this host: " + "; ".join(reasons))

    def _driver(self, kind: str, description: DriverDescription, options: Mapping[str, object] | None = None) -> Any:
        with self._lock:
            key = (kind, description.name)
            if key not in self._drivers:
                self._drivers[key] = self._build(kind, description, options)
            return self._drivers[key]

    def _build(self, kind: str, description: DriverDescription, options: Mapping[str, object] | None) -> Any:
        from importlib import import_module

        root, state = self._directories(kind, description.name)
        context = DriverContext(
            name=description.name,
            instance=self._settings.instance,
            root=root,
            state=state,
            options=MappingProxyType(
                dict(self._settings.options.get(description.name, {}) if options is None else options)
            ),
        )
        module, _, attribute = description.loader.partition(":")
        try:
            driver = getattr(import_module(module), attribute)(context)
        except EngineError:
            raise
        except Exception as error:  # whatever a plugin raises becomes an error that names it
            raise PluginError(
                f'{kind} "{description.name}" cannot be loaded: {type(error).__name__}: {error}'
            ) from error
        return driver

    def _directories(self, kind: str, name: str) -> tuple[Path, Path]:
        """Docker's places where users know them: volumes/NAME/_data, overlay2; the rest below ``plugins``."""
        label = name.replace("/", "-").lstrip("-")
        data = self._settings.data_root
        if kind == "volume":
            root = data / ("volumes" if name == "local" else f"volumes-{label}")
        elif kind == "store":
            root = data / label
        else:
            root = data / "plugins" / kind / label
        state = self._settings.exec_root / kind / label
        for directory in (root, state):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return root, state

    def require(self, names: Iterable[str]) -> None:
        """Raise `PluginError` unless every plugin named is there and works: what must never be missing unnoticed."""
        states = {plugin.name: (plugin.state, plugin.error) for plugin in self._plugins}
        for name in names:
            state, error = states.get(name, ("not installed", ""))
            if state != "enabled":
                raise PluginError(f"required plugin {name} is {state}{': ' + error if error else ''}")

    # -- reports --------------------------------------------------------------------------------------------

    def report(self) -> list[PluginReport]:
        """Every plugin found, loaded or not. Looks up distributions on disk: call it in a worker."""
        self._fill_distributions()
        return [
            PluginReport(
                name=plugin.name,
                version=plugin.version,
                distribution=plugin.distribution,
                kind=", ".join(kind for kind, provided in plugin.descriptions.items() if provided)
                or self._other(plugin),
                provides=tuple(d.name for provided in plugin.descriptions.values() for d in provided),
                state="conflict" if self._conflicts(plugin) else plugin.state,
                error=plugin.error or self._conflicts(plugin),
            )
            for plugin in self._plugins
        ]

    def warnings(self) -> list[str]:
        """One sentence for each broken or conflicting plugin, for ``docker info``."""
        problems = [(plugin.name, plugin.error or self._conflicts(plugin)) for plugin in self._plugins]
        return [f"WARNING: plugin {name} is not usable: {error}" for name, error in problems if error]

    def _conflicts(self, plugin: _Plugin) -> str:
        for kind, table in self._table.items():
            for name, entries in table.items():
                if len(entries) > 1 and any(owner is plugin for owner, _ in entries):
                    return f'{kind} "{name}" is also provided by ' + ", ".join(
                        owner.label for owner, _ in entries if owner is not plugin
                    )
        return ""

    @staticmethod
    def _other(plugin: _Plugin) -> str:
        """The kind of a plugin that provides no driver, from the hooks it joins."""
        hooks = [name for name in dir(plugin.module) if name.startswith("engine_")] if plugin.module else []
        if "engine_oci_spec" in hooks or "engine_security_options" in hooks:
            return "security"
        if "engine_subsystems" in hooks:
            return "subsystem"
        return "policy" if hooks else ""

    def _fill_distributions(self) -> None:
        if all(plugin.distribution for plugin in self._plugins):
            return
        from importlib.metadata import distributions

        owners = {
            (entry.name, entry.value): distribution
            for distribution in distributions()
            for entry in distribution.entry_points
            if entry.group == ENTRY_POINTS
        }
        for plugin in self._plugins:
            owner = owners.get((plugin.name, plugin.target)) or owners.get((plugin.name, plugin.target.rstrip(":")))
            if owner is not None:
                plugin.distribution, plugin.version = owner.metadata["Name"], owner.version
