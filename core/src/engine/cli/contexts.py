"""Contexts: named addresses of daemons, in the files the docker CLI keeps them in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

from engine.cli.commands import Command
from engine.cli.containers import FORMAT_HELP, INSPECT_FORMAT_HELP
from engine.cli.failures import Failure
from engine.cli.flags import parse_bool
from engine.cli.tables import Columns, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

DEFAULT = "default"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _meta_path(directory: str, name: str) -> str:
    return f"{directory}/contexts/meta/{_digest(name)}"


def _tls_path(directory: str, name: str) -> str:
    return f"{directory}/contexts/tls/{_digest(name)}"


def load(directory: str, name: str) -> dict[str, Any]:
    """A context's metadata. Raises `Failure` when there is none."""
    path = f"{_meta_path(directory, name)}/meta.json"
    try:
        with open(path, "rb") as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        raise Failure(f'context "{name}": context not found: open {path}: no such file or directory') from None
    except ValueError as error:
        raise Failure(f'context "{name}": parsing {path}: {error}') from None
    return found


def endpoint(directory: str, name: str) -> tuple[str, dict[str, Any] | None]:
    """The address of a context's daemon, and its TLS files."""
    settings = (load(directory, name).get("Endpoints") or {}).get("docker") or {}
    files = f"{_tls_path(directory, name)}/docker"
    tls: dict[str, Any] = {
        key: f"{files}/{key}.pem" for key in ("ca", "cert", "key") if os.path.exists(f"{files}/{key}.pem")
    }
    if not tls:
        return settings.get("Host", ""), None
    return settings.get("Host", ""), {**tls, "verify": not settings.get("SkipTLSVerify")}


CONTEXTS = Columns(
    "*formatter.clientContextContext",
    {
        "Name": ("NAME", lambda record, full: record["Name"]),
        "Current": ("CURRENT", lambda record, full: record["Current"]),
        "Description": ("DESCRIPTION", lambda record, full: record["Description"]),
        "DockerEndpoint": ("DOCKER ENDPOINT", lambda record, full: record["Endpoint"]),
        "Error": ("ERROR", lambda record, full: record.get("Error", "")),
    },
    "Name Description DockerEndpoint Error",
    quiet="Name",
)


def _default_host(session: Session) -> str:
    return session._default_endpoint()[0]


def ls(session: Session, flags: Flags) -> None:
    """List contexts; a star marks the one in use."""
    current = session.context
    records: list[dict[str, Any]] = [
        {"Name": DEFAULT, "Description": "Current ENGINE_HOST based configuration", "Endpoint": _default_host(session)}
    ]
    root = f"{session.directory}/contexts/meta"
    for entry in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        with open(f"{root}/{entry}/meta.json", "rb") as file:
            meta = json.load(file)
        records.append({
            "Name": meta["Name"],
            "Description": (meta.get("Metadata") or {}).get("Description", ""),
            "Endpoint": ((meta.get("Endpoints") or {}).get("docker") or {}).get("Host", ""),
        })  # fmt: skip
    records.sort(key=lambda record: str(record["Name"]))
    for record in records:
        record["Current"] = record["Name"] == current
        if record["Current"] and flags["format"] in ("", "table") and not flags["quiet"]:
            record["Name"] += " *"
    show(session, CONTEXTS, records, flags["format"] or "table", quiet=flags["quiet"])


def use(session: Session, flags: Flags) -> None:
    """Make a context the current one."""
    from engine.cli.credentials import save_config

    name = flags.arguments[0]
    if name != DEFAULT:
        load(session.directory, name)

    def change(config: dict[str, Any]) -> None:
        if name == DEFAULT:
            config.pop("currentContext", None)
        else:
            config["currentContext"] = name

    save_config(session, change)
    session.out(name)
    session.warn(f'Current context is now "{name}"')
    for variable in ("ENGINE_HOST", "DOCKER_HOST"):
        if session.environ.get(variable):
            session.warn(
                f"Warning: {variable} environment variable overrides the active context. To use "
                f'"{name}", either set the global --context flag, or unset {variable} environment variable.'
            )
            break


def current(session: Session, flags: Flags) -> None:
    """Print the name of the context in use."""
    session.out(session.context)


def create(session: Session, flags: Flags) -> None:
    """Create a context from an address, or from another context."""
    import re

    name = flags.arguments[0]
    if name == DEFAULT:
        raise Failure('"default" is a reserved context name')
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.+-]+", name):
        raise Failure(
            f'context name "{name}" is invalid, names are validated against regexp "^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$"'
        )
    if os.path.exists(_meta_path(session.directory, name)):
        raise Failure(f'context "{name}" already exists')
    values: dict[str, str] = {}
    for text in flags["docker"]:
        for pair in text.split(","):
            key, equals, value = pair.partition("=")
            if not equals:
                raise flags.invalid("docker", text, f"{pair} must be formatted as key=value")
            values[key] = value
    source = values.pop("from", "") or flags["from"]
    host, skip = values.get("host", ""), False
    if source:
        host, _ = (_default_host(session), None) if source == DEFAULT else endpoint(session.directory, source)
    elif not flags["docker"]:
        host = _default_host(session)
    if values.get("skip-tls-verify"):
        skip = parse_bool(values["skip-tls-verify"])
    if not host or "://" not in host:
        raise Failure(f"unable to parse docker host `{host}`")
    meta = {
        "Name": name,
        "Metadata": {"Description": flags["description"]} if flags["description"] else {},
        "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": skip}},
    }
    files = f"{_tls_path(session.directory, name)}/docker"
    for key in ("ca", "cert", "key"):
        if values.get(key):
            os.makedirs(files, mode=0o700, exist_ok=True)
            shutil.copyfile(os.path.expanduser(values[key]), f"{files}/{key}.pem")
            os.chmod(f"{files}/{key}.pem", 0o600)
    os.makedirs(_meta_path(session.directory, name), mode=0o755, exist_ok=True)
    with open(f"{_meta_path(session.directory, name)}/meta.json", "w") as file:
        json.dump(meta, file)
    session.out(name)
    session.warn(f'Successfully created context "{name}"')


def remove(session: Session, flags: Flags) -> None:
    """Remove contexts."""
    used = session.config.get("currentContext")

    def one(name: str) -> None:
        if name == DEFAULT:
            raise Failure('context "default" cannot be removed')
        load(session.directory, name)
        if name == used and not flags["force"]:
            raise Failure(f'context "{name}" is in use, set -f flag to force remove')
        if name == used:
            from engine.cli.credentials import save_config

            save_config(session, lambda config: config.pop("currentContext", None))
        shutil.rmtree(_meta_path(session.directory, name))
        shutil.rmtree(_tls_path(session.directory, name), ignore_errors=True)

    session.each(flags.arguments, one)


def inspect(session: Session, flags: Flags) -> None:
    """Print contexts as JSON."""
    from engine.cli.inspect import show_objects

    def get(name: str) -> dict[str, Any]:
        in_memory = {"MetadataPath": "<IN MEMORY>", "TLSPath": "<IN MEMORY>"}
        if name == DEFAULT:
            docker = {"Host": _default_host(session), "SkipTLSVerify": False}
            return {
                "Name": name,
                "Metadata": {},
                "Endpoints": {"docker": docker},
                "TLSMaterial": {},
                "Storage": in_memory,
            }
        tls = endpoint(session.directory, name)[1]
        files = [f"{key}.pem" for key in ("ca", "cert", "key") if tls and key in tls]
        return {
            **load(session.directory, name),
            "TLSMaterial": {"docker": files} if files else {},
            "Storage": {
                "MetadataPath": _meta_path(session.directory, name),
                "TLSPath": _tls_path(session.directory, name),
            },
        }

    show_objects(session, flags.arguments or [session.context], flags["format"], get, escape=True)


COMMANDS = {
    "context ls": Command(ls, "[OPTIONS]", f"- format string {FORMAT_HELP}\nq quiet bool Only show context names"),
    "context use": Command(use, "CONTEXT", arguments=(1, 1)),
    "context show": Command(current, ""),
    "context create": Command(create, "[OPTIONS] CONTEXT", """
- description string Description of the context
- docker stringToString set the docker endpoint (default [])
- from string create context from a named context
""", arguments=(1, 1)),
    "context rm": Command(remove, "CONTEXT [CONTEXT...]", "f force bool Force the removal of a context in use",
                          arguments=(1, None)),
    "context inspect": Command(inspect, "[OPTIONS] [CONTEXT] [CONTEXT...]",
                               f"f format string {INSPECT_FORMAT_HELP}", arguments=(0, None)),
}  # fmt: skip
