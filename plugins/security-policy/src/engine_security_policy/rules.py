"""Rules in TOML: each key is one condition, each refusal one sentence."""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from engine.errors import InvalidParameter
from engine.model.admission import ContainerRequest
from engine.model.container import Config, Container, HostConfig
from engine.names import parse_reference

__all__ = ["Rule", "RuleFile", "Test", "parse"]

_T = TypeVar("_T")
_HOST_MODES = ("network", "pid", "ipc", "uts", "cgroup", "userns")
_LIMITS = ("memory", "pids", "cpus")


class Rule(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """One ``[[rule]]``: all of its conditions must hold."""

    name: str
    message: str = ""
    unless_labels: list[str] = []
    deny_privileged: bool = False
    deny_host: list[str] = []
    deny_devices: bool = False
    deny_security_opts: list[str] = []
    registries: list[str] | None = None
    require_digest: bool = False
    mounts: list[str] | None = None
    capabilities: list[str] | None = None
    require_labels: list[str] = []
    require_user: bool = False
    require_no_new_privileges: bool = False
    require_read_only: bool = False
    require_limits: list[str] = []

    def create(self, request: ContainerRequest) -> str | None:
        """Why this rule refuses the container; None when it does not."""
        if _any_label(self.unless_labels, request.config.labels or {}):
            return None
        for reason in self._objections(request):
            return f"{reason}; {self.message}" if self.message else reason
        return None

    def exec(self, container: Container, privileged: bool) -> str | None:
        """Why this rule refuses a process in the container."""
        if self.deny_privileged and privileged and not _any_label(self.unless_labels, container.config.labels or {}):
            return f"exec --privileged is not allowed{'; ' + self.message if self.message else ''}"
        return None

    def volume(self, options: Mapping[str, str]) -> str | None:
        """Why this rule refuses a volume: one that shows a place of the host is a mount of it."""
        device = options.get("device", "")
        if self.mounts is None or not device.startswith("/"):
            return None
        if any(_matches(_real(device), pattern) for pattern in self.mounts):
            return None
        return f"a volume of {_real(device)} is not allowed{'; ' + self.message if self.message else ''}"

    def pull(self, reference: str) -> str | None:
        """Why this rule refuses an image."""
        return next(self._about_image(reference), None)

    def _objections(self, request: ContainerRequest) -> Iterator[str]:
        config, host_config = request.config, request.host_config
        yield from self._about_power(config, host_config)
        yield from self._about_host(host_config)
        if request.image and not _is_id(request.image):
            yield from self._about_image(request.image)
        elif request.image and (self.registries is not None or self.require_digest):
            yield f"image {request.image} is named by its id, which says nothing of where it came from"
        for label in self.require_labels:
            if not _any_label([label], config.labels or {}):
                yield f"label {label} is missing"
        for limit in self.require_limits:
            if not _limited(limit, host_config):
                yield f"a limit of {limit} is missing"

    def _about_power(self, config: Config, host_config: HostConfig) -> Iterator[str]:
        options = [
            option.replace(":", "=", 1) if "=" not in option else option for option in _of(host_config.security_opt)
        ]
        if self.deny_privileged and host_config.privileged:
            yield "privileged containers are not allowed"
        if self.capabilities is not None:
            allowed = {_capability(name) for name in self.capabilities}
            for name in _of(host_config.cap_add):
                if _capability(name) not in allowed:
                    yield f"capability {_capability(name)} is not allowed"
        for denied in self.deny_security_opts:
            if denied == "systempaths=unconfined":
                if host_config.masked_paths == [] or host_config.readonly_paths == []:
                    yield "security option systempaths=unconfined is not allowed"
            elif denied in options:
                yield f"security option {denied} is not allowed"
        if self.require_no_new_privileges and not {"no-new-privileges", "no-new-privileges=true"} & set(options):
            yield "no-new-privileges is missing"
        if self.require_read_only and not host_config.readonly_rootfs:
            yield "a read-only root file system (--read-only) is missing"
        if self.require_user and config.user.partition(":")[0] in ("", "0", "root"):
            yield "the container would run as root: give it a user (--user)"

    def _about_host(self, host_config: HostConfig) -> Iterator[str]:
        modes = {
            "network": host_config.network_mode,
            "pid": host_config.pid_mode,
            "ipc": host_config.ipc_mode,
            "uts": host_config.uts_mode,
            "cgroup": host_config.cgroupns_mode,
            "userns": host_config.userns_mode,
        }
        for kind in self.deny_host:
            if modes[kind] == "host":
                yield f"the host's {kind} namespace is not allowed"
        if self.deny_devices and (
            host_config.devices or host_config.device_requests or host_config.device_cgroup_rules
        ):
            yield "devices are not allowed"
        if self.mounts is not None:
            for source in _sources(host_config):
                if not any(_matches(source, pattern) for pattern in self.mounts):
                    yield f"mounting {source} is not allowed"

    def _about_image(self, text: str) -> Iterator[str]:
        try:
            reference = parse_reference(text)
        except InvalidParameter as error:
            yield str(error)
            return
        name = f"{reference.domain}/{reference.path}"
        if self.registries is not None and not any(_from(name, allowed) for allowed in self.registries):
            yield f"image {name} is not from an allowed registry"
        if self.require_digest and not reference.digest:
            yield f"image {text} is not pinned by its digest (name@sha256:...)"


class Test(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """One ``[[test]]``: a request in the API's spelling, or a reference, and the rule that must refuse it."""

    name: str
    create: dict[str, Any] | None = None
    pull: str = ""
    refused_by: str = ""


class RuleFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy file."""

    rule: list[Rule] = []
    test: list[Test] = []


def parse(text: str) -> RuleFile:
    """Read a policy. Raises `InvalidParameter` saying what is wrong where."""
    try:
        found = msgspec.convert(tomllib.loads(text), RuleFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidParameter(str(error)) from None
    if not found.rule:
        raise InvalidParameter("no rules")
    for rule in found.rule:
        _check(rule)
    return found


def _check(rule: Rule) -> None:
    for kind in rule.deny_host:
        if kind not in _HOST_MODES:
            raise InvalidParameter(f'rule "{rule.name}": deny-host knows {", ".join(_HOST_MODES)}, not {kind}')
    for limit in rule.require_limits:
        if limit not in _LIMITS:
            raise InvalidParameter(f'rule "{rule.name}": require-limits knows {", ".join(_LIMITS)}, not {limit}')
    for pattern in rule.mounts or ():
        if not pattern.startswith("/"):
            raise InvalidParameter(f'rule "{rule.name}": mounts must be absolute paths, not {pattern}')


def _of(values: Sequence[_T] | None) -> Sequence[_T]:
    return values or ()


def _any_label(wanted: Sequence[str], labels: dict[str, str]) -> bool:
    for label in wanted:
        name, equals, value = label.partition("=")
        if name in labels and (not equals or labels[name] == value):
            return True
    return False


def _capability(name: str) -> str:
    return name.upper().removeprefix("CAP_")


def _is_id(image: str) -> bool:
    return re.fullmatch(r"(sha256:)?[0-9a-f]{12,64}", image) is not None


def _limited(limit: str, host_config: HostConfig) -> bool:
    match limit:
        case "memory":
            return host_config.memory > 0
        case "pids":
            return (host_config.pids_limit or 0) > 0
        case _:
            return host_config.nano_cpus > 0 or host_config.cpu_quota > 0


def _sources(host_config: HostConfig) -> Iterator[str]:
    """Host paths that would be mounted, links resolved: what a name points to counts, not the name."""
    for bind in _of(host_config.binds):
        source = bind.partition(":")[0]
        if source.startswith("/"):
            yield _real(source)
    for mount in _of(host_config.mounts):
        if mount.type == "bind":
            yield _real(mount.source)


def _real(path: str) -> str:
    return posixpath.realpath(path)


def _matches(path: str, pattern: str) -> bool:
    """``*`` is anything but ``/``; ``/**`` at the end is the directory and all below it."""
    below = pattern.endswith("/**")
    base = pattern.removesuffix("/**") or "/"
    expression = "[^/]*".join(re.escape(part) for part in base.split("*"))
    return re.fullmatch(expression + ("(/.*)?" if below and base != "/" else ".*" if below else ""), path) is not None


def _from(name: str, allowed: str) -> bool:
    expression = "[^/]*".join(re.escape(part) for part in allowed.split("*"))
    return re.fullmatch(expression + "(/.*)?", name) is not None
