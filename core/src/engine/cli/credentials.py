"""Registry credentials: config.json's ``auths`` and the docker-credential-* helpers."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess

from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.session import Session

INDEX = "https://index.docker.io/v1/"
TOKEN_USER = "<token>"  # noqa: S105  the protocol's marker, no secret


def server_key(domain: str) -> str:
    """The name under which a registry's credentials are kept."""
    return INDEX if domain in ("docker.io", "index.docker.io", "registry-1.docker.io") else domain


def encode(value: dict[str, Any]) -> str:
    """A header value: URL-safe base64 of JSON."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def registry_header(session: Session, domain: str) -> str:
    """``X-Registry-Auth`` for a registry; empty credentials when none are stored."""
    return encode(find(session, server_key(domain)))


def helper_for(session: Session, server: str) -> str:
    """The credential helper responsible for a server; empty for config.json itself."""
    helpers = session.config.get("credHelpers") or {}
    return str(helpers.get(server) or session.config.get("credsStore") or "")


def _call(helper: str, action: str, text: str) -> str:
    program = f"docker-credential-{helper}"
    path = shutil.which(program)
    if path is None:
        raise Failure(
            f'error getting credentials - err: exec: "{program}": executable file not found in $PATH, out: ``'
        )
    result = subprocess.run([path, action], input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        said = result.stdout.strip()
        if "credentials not found" in said:
            return ""
        raise Failure(f"error getting credentials - err: exit status {result.returncode}, out: `{said}`")
    return result.stdout


def find(session: Session, server: str) -> dict[str, Any]:
    """The credentials for a server as the API's AuthConfig; empty when there are none."""
    helper = helper_for(session, server)
    if helper:
        said = _call(helper, "get", server)
        if not said:
            return {}
        found = json.loads(said)
        if found.get("Username") == TOKEN_USER:
            return {"identitytoken": found["Secret"], "serveraddress": server}
        return {"username": found.get("Username", ""), "password": found.get("Secret", ""), "serveraddress": server}
    stored = session.config.get("auths") or {}
    for key, entry in stored.items():
        if key == server or _bare(key) == _bare(server):
            return _decoded(entry, server)
    return {}


def _bare(server: str) -> str:
    return server.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _decoded(entry: dict[str, Any], server: str) -> dict[str, Any]:
    result = {"serveraddress": server}
    if entry.get("identitytoken"):
        return {**result, "identitytoken": entry["identitytoken"]}
    if entry.get("registrytoken"):
        return {**result, "registrytoken": entry["registrytoken"]}
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"]).decode("utf-8", "replace").partition(":")
        return {"username": user, "password": password.strip("\0"), **result}
    return {"username": entry.get("username", ""), "password": entry.get("password", ""), **result}


def store(session: Session, server: str, auth: dict[str, str]) -> bool:
    """Keep credentials; True when they are in config.json, unencrypted."""
    helper = helper_for(session, server)
    token = auth.get("identitytoken")
    if helper:
        user, secret = (TOKEN_USER, token) if token else (auth["username"], auth["password"])
        _call(helper, "store", json.dumps({"ServerURL": server, "Username": user, "Secret": secret}))
        save_config(session, lambda config: config.setdefault("auths", {}).__setitem__(server, {}))
        return False
    pair = f"{auth['username']}:{'' if token else auth['password']}"
    entry = {"auth": base64.b64encode(pair.encode()).decode(), **({"identitytoken": token} if token else {})}
    save_config(session, lambda config: config.setdefault("auths", {}).__setitem__(server, entry))
    return True


def erase(session: Session, server: str) -> bool:
    """Forget credentials; whether there were any."""
    helper = helper_for(session, server)
    known = server in (session.config.get("auths") or {})
    if helper:
        _call(helper, "erase", server)
    if known:
        save_config(session, lambda config: config["auths"].pop(server, None))
    return known or bool(helper)


def save_config(session: Session, change: Any) -> None:
    """Change config.json atomically; it stays private."""
    change(session.config)
    os.makedirs(session.directory, mode=0o700, exist_ok=True)
    path = os.path.realpath(f"{session.directory}/config.json")
    fresh = f"{path}.{os.getpid()}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        json.dump(session.config, file, indent="\t")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
