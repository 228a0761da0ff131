"""The runtime ``spin``: an image's ``spin.toml`` and the components it names are the container."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import InvalidParameter
from engine_runtime_spin import manifest
from engine_wasm_host import modules
from engine_wasm_host.driver import Spec, WasmHost

_MANIFEST = "/spin.toml"
_LIMIT = 1 << 20
_HANDLER = "wasi:http/incoming-handler@0.2"
_FILES = "/.spin-files"


class SpinRuntime(WasmHost):
    """Serves the application's routes; an instance of the component for each request."""

    def guest(self, plan: Mapping[str, Any]) -> Path:
        """Spin's own."""
        return Path(__file__).with_name("guest.py")

    def describe(self, spec: Spec, mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The manifest read, its components compiled, its variables resolved."""
        root = Path(spec.root.path)
        asked = spec.process.args[0]
        place = asked if asked.endswith(".toml") else _MANIFEST
        place = posixpath.normpath(posixpath.join("/", spec.process.cwd, place))
        application = manifest.parse(_read(root, mounts, place))
        environment = dict(entry.split("=", 1) for entry in spec.process.env if "=" in entry)
        values = {name: _value(name, default, environment) for name, default in application.variables.items()}
        missing = sorted(name for name, value in values.items() if value is None)
        if missing:
            raise InvalidParameter(
                f"the application requires the variable {missing[0]}: "
                f"give it with -e SPIN_VARIABLE_{missing[0].upper()}=..."
            )
        base = posixpath.dirname(place)
        wanted = _retained(application, environment)
        components = {
            name: self._component(application.components[name], root, mounts, base, values) for name in sorted(wanted)
        }
        routes = [
            {
                "pattern": route.pattern,
                "component": route.component,
                "executor": route.executor,
                "argv": route.argv,
                "entrypoint": route.entrypoint,
            }
            for route in application.routes
            if route.component in wanted
        ]
        for route in routes:
            kind = components[route["component"]]["kind"]
            if (kind == "module") != (route["executor"] == "wagi"):
                needs = "a core module" if route["executor"] == "wagi" else "a component"
                raise InvalidParameter(f"component {route['component']} of spin.toml must be {needs} for its executor")
        return {
            "kind": "spin",
            "title": application.name or "spin",
            "args": ["spin", place],
            "base": application.base,
            "routes": routes,
            "components": components,
            "listen": environment.get("SPIN_HTTP_LISTEN_ADDR", ""),
            "mounts": [*mounts, {"destination": _FILES, "type": "tmpfs", "source": "tmpfs", "options": ["size=256m"]}],
        }

    def _component(
        self,
        component: manifest.Component,
        root: Path,
        mounts: Sequence[Mapping[str, Any]],
        base: str,
        values: Mapping[str, str | None],
    ) -> dict[str, Any]:
        source = posixpath.normpath(posixpath.join(base, component.source))
        try:
            fd = modules.open_inside(root, mounts, source)
        except OSError as error:
            raise InvalidParameter(
                f"component {component.name} of spin.toml: {source}: {(error.strerror or '').lower()}"
            ) from None
        compiled = self.load_module(fd, source)
        problem = modules.unsupported(compiled, "_start")
        if not problem and compiled.kind == "component" and not any(e.startswith(_HANDLER) for e in compiled.exports):
            problem = f"it does not export {_HANDLER}; it exports {', '.join(compiled.exports)}"
        if problem:
            raise InvalidParameter(f"component {component.name} of spin.toml: {problem}")
        return {
            "kind": compiled.kind,
            "code": str(compiled.code),
            "exports": compiled.exports,
            "environment": [(key, manifest.resolve(text, values)) for key, text in component.environment.items()],
            "variables": {key: manifest.resolve(text, values) for key, text in component.variables.items()},
            "allowed": [manifest.resolve(host, values) for host in component.allowed_outbound_hosts],
            "stores": component.key_value_stores,
            "base": base,
            "files": component.files,
            "exclude": component.exclude_files,
        }


def _read(root: Path, mounts: Sequence[Mapping[str, Any]], place: str) -> str:
    try:
        fd = modules.open_inside(root, mounts, place)
    except OSError as error:
        raise InvalidParameter(f"a Spin image needs {place}: {(error.strerror or '').lower()}") from None
    with open(fd, "rb") as file:
        text = file.read(_LIMIT + 1)
    if len(text) > _LIMIT:
        raise InvalidParameter(f"{place} is larger than {_LIMIT} bytes")
    return text.decode(errors="replace")


def _value(name: str, default: str | None, environment: Mapping[str, str]) -> str | None:
    """As the Spin shim: SPIN_VARIABLE_NAME, then NAME of the container's environment, then the default."""
    upper = name.upper()
    return environment.get(f"SPIN_VARIABLE_{upper}", environment.get(upper, default))


def _retained(application: manifest.Application, environment: Mapping[str, str]) -> set[str]:
    routed = {route.component for route in application.routes}
    chosen = {name for name in environment.get("SPIN_COMPONENTS_TO_RETAIN", "").split(",") if name}
    unknown = chosen - set(application.components)
    if unknown:
        raise InvalidParameter(f"SPIN_COMPONENTS_TO_RETAIN names {min(unknown)}, which is not defined")
    return routed & chosen if chosen else routed
