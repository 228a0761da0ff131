"""The policy files in force: who is asked, and that whoever cannot answer has refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError, Forbidden, InvalidParameter
from engine.model.admission import ContainerRequest
from engine.model.container import Config, Container, HostConfig
from engine_security_policy.child import PythonPolicy
from engine_security_policy.rules import RuleFile, parse

__all__ = ["Policies", "read"]

_LIMIT = 10 << 20


class Policies:
    """All files, in order; each must agree. Methods raise `Forbidden` naming rule and file, and may be called from any
    thread."""

    def __init__(self, files: Sequence[tuple[str, RuleFile | PythonPolicy]]) -> None:
        self._files = files

    @classmethod
    def load(cls, paths: Sequence[str], *, timeout: float = 2.0) -> Policies:
        """Read every file. Raises `InvalidParameter` for one that cannot be trusted or understood."""
        return cls([(path, read(path, timeout=timeout)) for path in paths])

    def close(self) -> None:
        """End what runs for Python policies."""
        for _, policy in self._files:
            if isinstance(policy, PythonPolicy):
                policy.close()

    def create(self, request: ContainerRequest) -> None:
        """Before a container is made."""
        for file, policy in self._files:
            if isinstance(policy, PythonPolicy):
                policy.ask("create", _request(request))
                continue
            for rule in policy.rule:
                _refuse(rule.name, file, rule.create(request))

    def exec(self, container: Container, process: MutableMapping[str, Any], privileged: bool) -> None:
        """Before a process is started in a container."""
        for file, policy in self._files:
            if isinstance(policy, PythonPolicy):
                policy.ask("exec", _exec(container, process, privileged))
                continue
            for rule in policy.rule:
                _refuse(rule.name, file, rule.exec(container, privileged))

    def pull(self, reference: str, descriptor: Mapping[str, Any]) -> None:
        """Before an image's layers are fetched."""
        for file, policy in self._files:
            if isinstance(policy, PythonPolicy):
                found = {"Digest": descriptor.get("digest", ""), "MediaType": descriptor.get("mediaType", "")}
                policy.ask("pull", {"Reference": reference, **found})
                continue
            for rule in policy.rule:
                _refuse(rule.name, file, rule.pull(reference))

    def volume(self, name: str, driver: str, options: Mapping[str, str]) -> None:
        """Before a volume is made."""
        for file, policy in self._files:
            if isinstance(policy, PythonPolicy):
                policy.ask("volume", {"Name": name, "Driver": driver, "DriverOpts": dict(options)})
                continue
            for rule in policy.rule:
                _refuse(rule.name, file, rule.volume(options))


def read(path: str, *, timeout: float = 2.0, trusted: bool = True) -> RuleFile | PythonPolicy:
    """One policy file: TOML, or Python by its name. ``trusted`` demands that only root may change it."""
    try:
        found = os.stat(path)
        text = Path(path).read_text() if found.st_size <= _LIMIT else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"policy {path}: {error}") from None
    if found.st_size > _LIMIT:
        raise InvalidParameter(f"policy {path} is larger than {_LIMIT} bytes")
    if trusted:
        _check_owner(path, found)
    if path.endswith(".py"):
        policy = PythonPolicy(path, timeout=timeout)
        policy.check()
        return policy
    try:
        return parse(text)
    except InvalidParameter as error:
        raise InvalidParameter(f"policy {path}: {error}") from None


def _check_owner(path: str, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o022:
        raise InvalidParameter(f"policy {path} can be changed by others than root: chown root, chmod go-w")


def _refuse(rule: str, file: str, reason: str | None) -> None:
    if reason is not None:
        raise Forbidden(f'denied by policy "{rule}" ({file}): {reason}')


def _request(request: ContainerRequest) -> dict[str, Any]:
    """The body of ``POST /containers/create`` as the client sent it, with name and platform."""
    config: dict[str, Any] = msgspec.to_builtins(request.config)
    return config | {
        "Image": request.image,
        "Name": request.name,
        "Platform": request.platform,
        "Runtime": request.runtime,
        "HostConfig": msgspec.to_builtins(request.host_config),
        "NetworkingConfig": {"EndpointsConfig": msgspec.to_builtins(request.networks)},
    }


def _exec(container: Container, process: MutableMapping[str, Any], privileged: bool) -> dict[str, Any]:
    return {
        "Cmd": process["args"],
        "User": process["user"],
        "WorkingDir": process["cwd"],
        "Privileged": privileged,
        "Container": {"Id": container.id, "Name": container.name, "Config": msgspec.to_builtins(container.config)},
    }


def try_out(path: str) -> list[tuple[str, str]]:
    """Run a file's own tests: each name with what went wrong, empty when nothing did."""
    policy = read(path, trusted=False)
    if isinstance(policy, PythonPolicy):
        policy.close()
        return []
    policies = Policies([(path, policy)])
    return [(test.name, _try(policies, test.create, test.pull, test.refused_by)) for test in policy.test]


def _try(policies: Policies, create: dict[str, Any] | None, pull: str, refused_by: str) -> str:
    try:
        if create is not None:
            policies.create(_as_request(create))
        if pull:
            policies.pull(pull, {})
    except Forbidden as error:
        if refused_by and f'"{refused_by}"' in error.message:
            return ""
        return f"refused: {error}"
    except EngineError as error:
        return str(error)
    return f'allowed, though "{refused_by}" should refuse it' if refused_by else ""


def _as_request(body: dict[str, Any]) -> ContainerRequest:
    try:
        config = msgspec.convert({key: value for key, value in body.items() if key != "HostConfig"}, Config)
        host_config = msgspec.convert(body.get("HostConfig") or {}, HostConfig)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"not a request: {error}") from None
    return ContainerRequest(
        name="",
        image=str(body.get("Image", "")),
        image_id="",
        platform="",
        runtime="",
        config=config,
        host_config=host_config,
        networks={},
    )
