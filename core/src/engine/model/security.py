"""``--security-opt``: its grammar, in one place for the core and for the security plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.errors import InvalidParameter

__all__ = ["SecurityOptions", "parse_security_opts"]

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityOptions:
    """What the user asked for; None (or empty) where nothing was said, so that defaults can apply.

    ``seccomp`` is ``unconfined``, ``builtin`` or a profile as JSON text; ``apparmor`` a profile's name;
    ``labels`` are SELinux options without ``label=`` (``user:x``, ``disable``).
    """

    no_new_privileges: bool | None = None
    writable_cgroups: bool | None = None
    seccomp: str | None = None
    apparmor: str | None = None
    labels: tuple[str, ...] = ()


def parse_security_opts(options: Sequence[str] | None) -> SecurityOptions:
    """Parse ``HostConfig.SecurityOpt``; later options win over earlier ones.

    The first ``=`` separates key and value, an old-style ``:`` does where there is no ``=``.
    Raises `InvalidParameter` in dockerd's words: ``invalid --security-opt 1: "x"`` without a separator,
    ``invalid --security-opt 2: "x"`` for an unknown key or a bad value.
    """
    parsed = SecurityOptions()
    for option in options or ():
        if option == "no-new-privileges":
            parsed = replace(parsed, no_new_privileges=True)
            continue
        if option == "writable-cgroups":
            parsed = replace(parsed, writable_cgroups=True)
            continue
        if option == "disable":
            parsed = replace(parsed, labels=(*parsed.labels, "disable"))
            continue
        separator = "=" if "=" in option else ":"
        key, found, value = option.partition(separator)
        if not found:
            raise InvalidParameter(f'invalid --security-opt 1: "{option}"')
        match key:
            case "label":
                parsed = replace(parsed, labels=(*parsed.labels, value))
            case "apparmor":
                parsed = replace(parsed, apparmor=value)
            case "seccomp":
                parsed = replace(parsed, seccomp=value)
            case "no-new-privileges":
                parsed = replace(parsed, no_new_privileges=_boolean(option, value))
            case "writable-cgroups":
                parsed = replace(parsed, writable_cgroups=_boolean(option, value))
            case _:
                raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
    return parsed


def _boolean(option: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
