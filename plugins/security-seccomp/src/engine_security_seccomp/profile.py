"""Profiles: our default (``default.toml``) and Docker's JSON, both resolved to OCI ``linux.seccomp``.

Conditions (``includes``, ``excludes``) are decided here, for one architecture, kernel and set of capabilities; what
remains is the plain OCI form. Semantics are those of moby/profiles/seccomp.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import InvalidParameter
from engine.platforms import host_platform

__all__ = ["Profile", "builtin", "machine", "parse", "resolve"]

_NATIVE = {
    "386": "SCMP_ARCH_X86",
    "amd64": "SCMP_ARCH_X86_64",
    "arm": "SCMP_ARCH_ARM",
    "arm64": "SCMP_ARCH_AARCH64",
    "loong64": "SCMP_ARCH_LOONGARCH64",
    "mips64": "SCMP_ARCH_MIPS64",
    "mips64le": "SCMP_ARCH_MIPSEL64",
    "mips64p32": "SCMP_ARCH_MIPS64N32",
    "mips64p32le": "SCMP_ARCH_MIPSEL64N32",
    "mipsle": "SCMP_ARCH_MIPSEL",
    "ppc": "SCMP_ARCH_PPC",
    "ppc64": "SCMP_ARCH_PPC64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "riscv64": "SCMP_ARCH_RISCV64",
    "s390x": "SCMP_ARCH_S390X",
}
_ALLOW = "SCMP_ACT_ALLOW"
_ERRNO = "SCMP_ACT_ERRNO"


class _Struct(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Docker's JSON spelling; unknown keys (comments) are ignored."""


class Argument(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition on an argument of the call."""

    index: int = 0
    value: int = 0
    value_two: int = 0
    op: str = ""


class Conditions(_Struct, frozen=True, kw_only=True):
    """When a rule counts; architectures in Go's spelling, ``min_kernel`` as ``4.8``."""

    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str = ""


class Rule(_Struct, frozen=True, kw_only=True):
    """One entry of ``syscalls``; ``name`` is the older form of ``names``."""

    name: str = ""
    names: list[str] | None = None
    action: str = ""
    errno_ret: int | None = None
    args: list[Argument] | None = None
    includes: Conditions | None = None
    excludes: Conditions | None = None


class Architecture(_Struct, frozen=True, kw_only=True):
    """A native architecture and those it can also run."""

    architecture: str
    sub_architectures: list[str] | None = None


class Profile(_Struct, frozen=True, kw_only=True):
    """A profile in Docker's form."""

    default_action: str = ""
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[Architecture] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[Rule] | None = None


def parse(text: str) -> Profile:
    """Read a profile. Raises `InvalidParameter` in dockerd's words."""
    try:
        profile = msgspec.json.decode(text, type=Profile)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidParameter(f"Decoding seccomp profile failed: {error}") from None
    if profile.architectures and profile.arch_map:
        raise InvalidParameter(
            "'architectures' and 'archMap' were specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    for rule in profile.syscalls or ():
        if rule.name and rule.names:
            raise InvalidParameter(
                "'name' and 'names' were specified in the seccomp profile, use either 'name' or 'names'"
            )
        for conditions in (rule.includes, rule.excludes):
            if conditions is not None:
                _version(conditions.min_kernel)
    return profile


@cache
def machine() -> tuple[str, tuple[int, int]]:
    """This machine's architecture (Go's name) and kernel (major, minor)."""
    major, minor = os.uname().release.split(".")[:2]
    return host_platform().architecture, (int(major), int("".join(filter(str.isdigit, minor)) or 0))


@cache
def builtin() -> Profile:
    """The default profile, from ``default.toml``."""
    data = tomllib.loads(Path(__file__).with_name("default.toml").read_text())
    always = sorted({name for group in data["allow"].values() for name in group.split()})
    rules = [Rule(names=always, action=_ALLOW)]
    for capability, names in data["capability"].items():
        rules.append(Rule(names=names.split(), action=_ALLOW, includes=Conditions(caps=[capability])))
    for entry in data["architecture"]:
        rules.append(Rule(names=entry["names"].split(), action=_ALLOW, includes=Conditions(arches=entry["on"])))
    rules += [_builtin_rule(entry) for entry in data["rule"]]
    return Profile(
        default_action=_ERRNO,
        default_errno_ret=data["errno"],
        arch_map=[
            Architecture(architecture=native, sub_architectures=others)
            for native, *others in data["architectures"].values()
        ],
        syscalls=rules,
    )


def _builtin_rule(entry: Mapping[str, Any]) -> Rule:
    arguments = None
    if "args" in entry:
        index, operator, value = entry["args"]
        # MASKED_EQ compares (argument & value) with value_two: none of the bits of the mask may be set.
        arguments = [Argument(index=index, op=f"SCMP_CMP_{operator}", value=value)]
    return Rule(
        names=entry["names"].split(),
        action=_ERRNO if "errno" in entry else _ALLOW,
        errno_ret=entry.get("errno"),
        args=arguments,
        includes=Conditions(arches=entry.get("on"), min_kernel=entry.get("kernel", "")),
        excludes=Conditions(arches=entry.get("off"), caps=[entry["without"]] if "without" in entry else None),
    )


def resolve(
    profile: Profile, capabilities: frozenset[str], architecture: str, kernel: tuple[int, int]
) -> dict[str, Any] | None:
    """OCI ``linux.seccomp`` for one container; None for a profile that filters nothing.

    ``capabilities`` is the bounding set. The answer may be shared: do not change it.
    """
    if profile is builtin():
        return _resolve_builtin(capabilities, architecture, kernel)
    return _resolve(profile, capabilities, architecture, kernel)


@lru_cache(maxsize=64)
def _resolve_builtin(capabilities: frozenset[str], architecture: str, kernel: tuple[int, int]) -> dict[str, Any] | None:
    return _resolve(builtin(), capabilities, architecture, kernel)


def _resolve(
    profile: Profile, capabilities: frozenset[str], architecture: str, kernel: tuple[int, int]
) -> dict[str, Any] | None:
    if not profile.default_action and not profile.syscalls:
        return None
    seccomp: dict[str, Any] = {"defaultAction": profile.default_action}
    if profile.default_errno_ret is not None:
        seccomp["defaultErrnoRet"] = profile.default_errno_ret
    architectures = _architectures(profile, architecture)
    if architectures:
        seccomp["architectures"] = architectures
    if profile.flags:
        seccomp["flags"] = profile.flags
    if profile.listener_path:
        seccomp["listenerPath"] = profile.listener_path
        seccomp["listenerMetadata"] = profile.listener_metadata
    seccomp["syscalls"] = [
        _syscall(rule) for rule in profile.syscalls or () if _counts(rule, capabilities, architecture, kernel)
    ]
    return seccomp


def _architectures(profile: Profile, architecture: str) -> list[str]:
    if profile.architectures:
        return profile.architectures
    native = _NATIVE.get(architecture)
    for entry in profile.arch_map or ():
        if entry.architecture == native:
            return [entry.architecture, *(entry.sub_architectures or ())]
    return []


def _counts(rule: Rule, capabilities: frozenset[str], architecture: str, kernel: tuple[int, int]) -> bool:
    excludes, includes = rule.excludes, rule.includes
    if excludes is not None and (
        architecture in (excludes.arches or ())
        or not capabilities.isdisjoint(excludes.caps or ())
        or (excludes.min_kernel and kernel >= _version(excludes.min_kernel))
    ):
        return False
    return includes is None or not (
        (includes.arches and architecture not in includes.arches)
        or not capabilities.issuperset(includes.caps or ())
        or (includes.min_kernel and kernel < _version(includes.min_kernel))
    )


def _version(text: str) -> tuple[int, int]:
    major, _, minor = (text or "0.0").partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise InvalidParameter(f"invalid kernel version: {text}, expected x.y")
    return int(major), int(minor)


def _syscall(rule: Rule) -> dict[str, Any]:
    entry: dict[str, Any] = {"names": rule.names or [rule.name], "action": rule.action}
    if rule.errno_ret is not None:
        entry["errnoRet"] = rule.errno_ret
    if rule.args:
        entry["args"] = [
            {"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op} for arg in rule.args
        ]
    return entry
