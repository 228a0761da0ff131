"""Where plugins join in: the index of the plugin API.

A plugin is a module (or object) named by an entry point in the group ``engine.plugins``; it implements any of
the hooks below with `hookimpl`. The module must be thin: it is imported at daemon start, so heavy libraries are
imported by the driver class it names, not by the plugin module.

    from engine.hookspecs import hookimpl

    @hookimpl
    def engine_runtimes():
        return [DriverDescription(name="wasm", loader="engine_runtime_wasm.driver:WasmRuntime", ...)]

Rules for every hook: synchronous; arguments are values a plugin may keep but (unless said) not change; argument
names are part of the API, and an implementation may take only those it needs. *Providing* hooks answer "what is
there", run once at start and must not fail: a plugin whose providing hook raises is disabled and shown as broken.
*Deciding* hooks run on a worker thread for every request of their kind; raising `engine.errors.Forbidden` (or any
`EngineError`) stops the request and the message goes to the user.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.drivers import DriverDescription
    from engine.model.admission import ContainerRequest, Identity
    from engine.model.container import Container
    from engine.services import Services, Subsystem

__all__ = ["PROJECT", "Hooks", "hookimpl"]

PROJECT = "engine"

_F = TypeVar("_F", bound="Callable[..., Any]")
_spec = cast("Callable[[_F], _F]", pluggy.HookspecMarker(PROJECT))
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks(Protocol):
    """All hooks. ``self`` is not part of an implementation's signature. Every hook collects a list."""

    # -- configuration --------------------------------------------------------------------------------------

    @_spec
    def engine_configure(self, options: Mapping[str, Any]) -> None:
        """Once, at start, on the main thread, before any other hook of the plugin: its own section of daemon.json's
        ``plugin-options`` (by the plugin's name; empty without one). An `EngineError` stops the daemon with that
        text, so that a rule nobody could read is never a rule nobody enforces; any other error breaks the plugin."""
        ...

    # -- providing: what drivers there are ------------------------------------------------------------------

    @_spec
    def engine_runtimes(self) -> Sequence[DriverDescription]:
        """Runtimes (`engine.drivers.runtime.RuntimeDriver`). Once, at start, on the main thread; imports no driver."""
        ...

    @_spec
    def engine_network_drivers(self) -> Sequence[DriverDescription]:
        """Network drivers (`engine.drivers.network.NetworkDriver`). As `engine_runtimes`."""
        ...

    @_spec
    def engine_volume_drivers(self) -> Sequence[DriverDescription]:
        """Volume drivers (`engine.drivers.volume.VolumeDriver`). As `engine_runtimes`."""
        ...

    @_spec
    def engine_image_stores(self) -> Sequence[DriverDescription]:
        """Image stores (`engine.drivers.store.ImageStoreDriver`). As `engine_runtimes`."""
        ...

    @_spec
    def engine_log_drivers(self) -> Sequence[DriverDescription]:
        """Log drivers (`engine.drivers.log.LogDriver`). As `engine_runtimes`."""
        ...

    # -- deciding: who wants a say --------------------------------------------------------------------------

    @_spec
    def engine_request_authorize(self, identity: Identity, method: str, path: str, body: bytes | None) -> None:
        """Before the handler of every API request, on a worker thread. Raise `Forbidden` to refuse.

        ``path`` is what the client asked for, with version and query; ``body`` is all of the request's body, byte
        for byte what the handler is given, or None where it is a stream (image tars, archives, build contexts).
        Order: registration; all must agree. Anything but a return within 10 seconds is a refusal.
        """
        ...

    @_spec
    def engine_container_admit(self, request: ContainerRequest) -> None:
        """Before a container is created, on a worker thread. Raise to refuse. Order: registration; all must agree.

        Validation of options a plugin owns (capability names, ``--security-opt`` values) belongs here too, so that
        a bad option is refused at create and not at start. May read files; must finish within seconds.
        """
        ...

    @_spec
    def engine_volume_admit(self, name: str, driver: str, options: Mapping[str, str]) -> None:
        """Before a volume is made (by request, or with a container), on a worker thread. Raise to refuse."""
        ...

    @_spec
    def engine_oci_spec(self, container: Container, spec: MutableMapping[str, Any]) -> None:
        """Before each start, on a worker thread: edit the OCI runtime spec in place. Security plugins live here.

        ``spec`` is complete JSON-like data; ``container`` is frozen. Order: ``tryfirst``/``trylast`` marks, then
        registration; an implementation sees the edits of those before it (seccomp runs last, since its rules depend
        on the capabilities others granted). Raising fails the start and leaves nothing behind.
        """
        ...

    @_spec
    def engine_exec_process(self, container: Container, process: MutableMapping[str, Any], privileged: bool) -> None:
        """Before each exec, on a worker thread: edit the OCI process in place. As `engine_oci_spec`."""
        ...

    @_spec
    def engine_image_verify(self, reference: str, descriptor: Mapping[str, Any]) -> None:
        """After a manifest was fetched and before anything it names is, on a worker thread. ``reference`` is the full
        name, ``descriptor`` an OCI descriptor. Raise `Forbidden` to refuse the image. May use the network."""
        ...

    # -- telling --------------------------------------------------------------------------------------------

    @_spec
    def engine_security_options(self) -> Sequence[str]:
        """``SecurityOptions`` of ``docker info`` (``name=seccomp,profile=builtin``). At start, on the main thread."""
        ...

    @_spec
    def engine_subsystems(self, services: Services) -> Sequence[Subsystem]:
        """Bring a subsystem (builder, swarm, ...): HTTP routes and a background loop. At start, on the event loop's
        thread, after all services exist; must not block. A subsystem that fails to start is reported, not fatal."""
        ...
