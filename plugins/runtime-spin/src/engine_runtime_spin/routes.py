"""Which component answers a path: exact beats parameters, parameters beat a wildcard, longer beats shorter.

Source: Spin's HTTP trigger documentation (``/...`` is the rest of the path, ``/:name`` one segment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Match", "Router"]


@dataclass(frozen=True, slots=True)
class Match:
    """What answers: the route, what its parameters are, and the rest the wildcard stands for."""

    route: Mapping[str, Any]
    parameters: Mapping[str, str] = field(default_factory=dict)
    rest: str = ""


class Router:
    """``routes`` have a ``pattern``; of two with the same pattern the first wins."""

    def __init__(self, routes: Sequence[Mapping[str, Any]], base: str = "/") -> None:
        prefix = [part for part in base.split("/") if part]
        self._routes = sorted(
            (([*prefix, *[part for part in route["pattern"].split("/") if part]], route) for route in routes),
            key=lambda pair: _rank(pair[0]),
        )

    def find(self, path: str) -> Match | None:
        """The best route for a path without query."""
        parts = [part for part in path.split("/") if part]
        for pattern, route in self._routes:
            found = _match(pattern, parts)
            if found is not None:
                return Match(route, *found)
        return None


def _rank(pattern: Sequence[str]) -> tuple[Any, ...]:
    """Segment by segment: a word before a parameter before a wildcard."""
    return tuple(2 if part == "..." else 1 if part.startswith(":") else 0 for part in pattern), -len(pattern)


def _match(pattern: Sequence[str], parts: Sequence[str]) -> tuple[dict[str, str], str] | None:
    parameters: dict[str, str] = {}
    for index, part in enumerate(pattern):
        if part == "...":
            return parameters, "".join(f"/{rest}" for rest in parts[index:])
        if index >= len(parts):
            return None
        if part.startswith(":"):
            parameters[part[1:]] = parts[index]
        elif part != parts[index]:
            return None
    return (parameters, "") if len(parts) == len(pattern) else None
