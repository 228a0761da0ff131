"""``spin.toml``, versions 1 and 2, as one form: an application with routes and components.

Source: Spin's manifest reference (developer.fermyon.com/spin/v3/manifest-reference). What is not known is refused, as
Spin does, so that a misspelt key is not silently without effect.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidParameter

__all__ = ["Application", "Component", "Route", "parse"]

_TOP_2 = {"spin_manifest_version", "application", "variables", "trigger", "component"}
_TOP_1 = {
    "spin_manifest_version", "spin_version", "name", "version", "description", "authors", "trigger", "variables",
    "component", "namespace",
}  # fmt: skip
_COMPONENT = {
    "source", "description", "environment", "files", "exclude_files", "variables", "allowed_outbound_hosts",
    "allowed_http_hosts", "key_value_stores", "sqlite_databases", "ai_models", "build", "tool", "dependencies",
    "targets", "profile", "dependencies_inherit_configuration", "id", "trigger", "config",
}  # fmt: skip
_TEMPLATE = re.compile(r"\{\{\s*([a-z][a-z0-9_]*)\s*\}\}")
_EXECUTORS = ("http", "spin", "wagi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``pattern`` (``/a/:name/...``) is answered by ``component`` through ``executor`` (``http`` or ``wagi``)."""

    pattern: str
    component: str
    executor: str = "http"
    argv: str = "${SCRIPT_NAME} ${ARGS}"
    entrypoint: str = "_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """``files`` are a glob or (source, destination); ``variables`` may contain ``{{ name }}``."""

    name: str
    source: str
    environment: Mapping[str, str]
    files: tuple[str | tuple[str, str], ...]
    exclude_files: tuple[str, ...]
    variables: Mapping[str, str]
    allowed_outbound_hosts: tuple[str, ...]
    key_value_stores: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """``variables`` are those of the manifest: name -> default, or None when a value is required."""

    name: str
    base: str
    variables: Mapping[str, str | None]
    routes: tuple[Route, ...]
    components: Mapping[str, Component]


def parse(text: str) -> Application:
    """Read a manifest; `InvalidParameter` names the key that is wrong."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidParameter(f"spin.toml: {error}") from None
    version = raw.get("spin_manifest_version", raw.get("spin_version"))
    if version == 2:
        return _version_2(raw)
    if version in ("1", 1):
        return _version_1(raw)
    raise InvalidParameter(f'spin.toml: spin_manifest_version must be 2 or "1", not {version!r}')


def _known(table: Mapping[str, Any], keys: set[str], where: str) -> None:
    unknown = sorted(set(table) - keys)
    if unknown:
        raise InvalidParameter(f"spin.toml: unknown key {unknown[0]} in {where}")


def _version_2(raw: dict[str, Any]) -> Application:
    _known(raw, _TOP_2, "the manifest")
    application = raw.get("application") or {}
    _known(application, {"name", "version", "description", "authors", "trigger", "tool"}, "[application]")
    if not application.get("name"):
        raise InvalidParameter("spin.toml: [application] has no name")
    components = {name: _component(name, table) for name, table in (raw.get("component") or {}).items()}
    routes = []
    for kind, triggers in (raw.get("trigger") or {}).items():
        if kind != "http":
            raise InvalidParameter(f"spin.toml: triggers of the type {kind} are not supported; supported is http")
        for number, trigger in enumerate(triggers):
            target = trigger.get("component")
            if isinstance(target, dict):
                name = f"inline-{number}"
                components[name] = _component(name, target)
                target = name
            if target not in components:
                raise InvalidParameter(f"spin.toml: trigger for component {target!r}, which is not defined")
            route = trigger.get("route")
            if isinstance(route, dict):  # { private = true }: reached only from inside
                continue
            if not isinstance(route, str):
                raise InvalidParameter(f"spin.toml: the trigger of component {target} has no route")
            routes.append(_route(route, target, trigger.get("executor") or {}))
    base = ((application.get("trigger") or {}).get("http") or {}).get("base", "/")
    return _application(application["name"], base, raw, routes, components)


def _version_1(raw: dict[str, Any]) -> Application:
    _known(raw, _TOP_1, "the manifest")
    trigger = raw.get("trigger") or {}
    if trigger.get("type") != "http":
        raise InvalidParameter(f"spin.toml: triggers of the type {trigger.get('type')} are not supported")
    components = {}
    routes = []
    for table in raw.get("component") or []:
        name = table.get("id")
        if not name:
            raise InvalidParameter("spin.toml: a component has no id")
        components[name] = _component(name, table)
        own = table.get("trigger") or {}
        if not isinstance(own.get("route"), str):
            raise InvalidParameter(f"spin.toml: component {name} has no trigger.route")
        routes.append(_route(own["route"], name, own.get("executor") or {}))
    return _application(raw.get("name", ""), trigger.get("base", "/"), raw, routes, components)


def _application(
    name: str, base: str, raw: dict[str, Any], routes: list[Route], components: dict[str, Component]
) -> Application:
    variables: dict[str, str | None] = {}
    for variable, table in (raw.get("variables") or {}).items():
        _known(table, {"default", "required", "secret", "description"}, f"[variables.{variable}]")
        if "default" not in table and not table.get("required"):
            raise InvalidParameter(f"spin.toml: variable {variable} has neither a default nor required = true")
        variables[variable] = table.get("default")
    if not routes:
        raise InvalidParameter("spin.toml: the application has no HTTP trigger")
    return Application(name=name, base=base, variables=variables, routes=tuple(routes), components=components)


def _route(pattern: str, component: str, executor: Mapping[str, Any]) -> Route:
    kind = executor.get("type", "http")
    if kind not in _EXECUTORS:
        raise InvalidParameter(f"spin.toml: the executor {kind} of component {component} is not supported")
    if not pattern.startswith("/"):
        pattern = "/" + pattern
    return Route(
        pattern=pattern,
        component=component,
        executor="wagi" if kind == "wagi" else "http",
        argv=executor.get("argv", "${SCRIPT_NAME} ${ARGS}"),
        entrypoint=executor.get("entrypoint", "_start"),
    )


def _component(name: str, table: Mapping[str, Any]) -> Component:
    _known(table, _COMPONENT, f"component {name}")
    source = table.get("source")
    if isinstance(source, str):
        place = source
    elif isinstance(source, dict) and isinstance(source.get("path"), str):
        place = source["path"]
    else:
        raise InvalidParameter(
            f"spin.toml: the source of component {name} must be a file of the image; nothing is downloaded at start"
        )
    for absent in ("sqlite_databases", "ai_models", "dependencies"):
        if table.get(absent):
            raise InvalidParameter(f"spin.toml: {absent} of component {name} are not supported")
    hosts = tuple(table.get("allowed_outbound_hosts") or ())
    for host in table.get("allowed_http_hosts") or ():  # version 1
        hosts += ("http://*", "https://*") if host == "insecure:allow-all" else _both_schemes(host)
    files = tuple(
        (entry["source"], entry["destination"]) if isinstance(entry, dict) else str(entry)
        for entry in table.get("files") or ()
    )
    return Component(
        name=name,
        source=place,
        environment={key: str(value) for key, value in (table.get("environment") or {}).items()},
        files=files,
        exclude_files=tuple(table.get("exclude_files") or ()),
        variables={key: str(value) for key, value in (table.get("variables") or table.get("config") or {}).items()},
        allowed_outbound_hosts=hosts,
        key_value_stores=tuple(table.get("key_value_stores") or ()),
    )


def _both_schemes(host: str) -> tuple[str, ...]:
    return (host,) if "://" in host else (f"http://{host}", f"https://{host}")


def resolve(template: str, values: Mapping[str, str | None]) -> str:
    """``{{ name }}`` replaced by the application's variables; `InvalidParameter` for one without a value."""

    def value(found: re.Match[str]) -> str:
        known = values.get(found[1])
        if known is None:
            raise InvalidParameter(
                f"the variable {found[1]} has no value: give one with -e SPIN_VARIABLE_{found[1].upper()}=..."
            )
        return known

    return _TEMPLATE.sub(value, template)
