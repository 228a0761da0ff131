"""The ``filters`` of list, prune and events calls: parsing, checking and matching as in dockerd."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from engine.errors import InvalidParameter

__all__ = ["Filters", "invalid_filter"]

_TRUE = frozenset({"1", "true"})
_FALSE = frozenset({"0", "false"})


def invalid_filter(key: str = "", values: Collection[str] | None = None) -> InvalidParameter:
    """The error dockerd gives: ``invalid filter 'key'``, ``invalid filter 'key=[values]'``."""
    if not key:
        return InvalidParameter("invalid filter")
    value = "" if values is None else f"=[{' '.join(values)}]"
    return InvalidParameter(f"invalid filter '{key}{value}'")


class Filters(Mapping[str, list[str]]):
    """Filter name -> the values asked for (any of them may match, except labels: all must)."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Iterable[str]] | None = None) -> None:
        self._values = {key: list(wanted) for key, wanted in (values or {}).items()}

    @classmethod
    def parse(cls, text: str) -> Filters:
        """From the query parameter: ``{"name":{"x":true}}`` or the older ``{"name":["x"]}``; empty is no filter."""
        if not text:
            return cls()
        try:
            raw = msgspec.json.decode(text.encode())
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise invalid_filter() from None
        if raw is None:
            return cls()
        if not isinstance(raw, dict):
            raise invalid_filter()
        values: dict[str, list[str]] = {}
        for key, wanted in raw.items():
            if isinstance(wanted, dict) and all(isinstance(flag, bool) for flag in wanted.values()):
                values[key] = [value for value, flag in wanted.items() if flag]
            elif isinstance(wanted, list) and all(isinstance(value, str) for value in wanted):
                values[key] = list(dict.fromkeys(wanted))
            elif wanted is None:
                values[key] = []
            else:
                raise invalid_filter()
        return cls(values)

    def __getitem__(self, key: str) -> list[str]:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Filters({self._values!r})"

    def check(self, accepted: Collection[str]) -> None:
        """Raise ``invalid filter 'x'`` for a name that is not accepted."""
        for key in self._values:
            if key not in accepted:
                raise invalid_filter(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """A filter that is true or false (``dangling=1``)."""
        values = self._values.get(key)
        if not values:
            return default
        if len(values) == 1 and values[0] in _TRUE:
            return True
        if len(values) == 1 and values[0] in _FALSE:
            return False
        raise invalid_filter(key, values)

    def exact(self, key: str, value: str) -> bool:
        """Whether ``value`` is one of those asked for; True when nothing was."""
        values = self._values.get(key)
        return not values or value in values

    def prefix(self, key: str, value: str) -> bool:
        """Whether ``value`` starts with one of those asked for; True when nothing was."""
        values = self._values.get(key)
        return not values or any(value.startswith(wanted) for wanted in values)

    def match(self, key: str, value: str) -> bool:
        """Whether ``value`` equals, or as a regular expression contains, one of those asked for; True when nothing."""
        values = self._values.get(key)
        return not values or any(value == wanted or _search(wanted, value) for wanted in values)

    def labels(self, labels: Mapping[str, str] | None, key: str = "label") -> bool:
        """Whether all of ``label=k`` and ``label=k=v`` hold; True when nothing was asked."""
        for wanted in self._values.get(key, ()):
            name, equals, value = wanted.partition("=")
            if not labels or name not in labels or (equals and labels[name] != value):
                return False
        return True

    def without_labels(self, labels: Mapping[str, str] | None) -> bool:
        """The ``label!`` filter of prune: whether none of its labels is there."""
        return "label!" not in self._values or not self.labels(labels, "label!")


def _search(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return False
