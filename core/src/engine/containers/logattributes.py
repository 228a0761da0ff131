"""What of a container goes with its log: the tag, and the labels and variables the log options name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.errors import InvalidParameter

if TYPE_CHECKING:
    from engine.model.container import Container

__all__ = ["chosen", "tag"]

_ACTION = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_LABEL = re.compile(r"index \.ContainerLabels \"([^\"]*)\"")


def tag(container: Container, template: str) -> str:
    """``template`` (``{{.Name}}/{{.ID}}``) filled in; `InvalidParameter` for a field there is not."""
    short = container.image_id.removeprefix("sha256:")[:12]
    values = {
        ".ID": container.id[:12],
        ".FullID": container.id,
        ".Name": container.name,
        ".ImageID": short,
        ".ImageFullID": container.image_id,
        ".ImageName": container.config.image,
        ".Command": " ".join((container.path, *container.args)),
        ".DaemonName": "docker",
    }

    def fill(match: re.Match[str]) -> str:
        action = match[1]
        label = _LABEL.fullmatch(action)
        if label is not None:
            return (container.config.labels or {}).get(label[1], "")
        if action not in values:
            raise InvalidParameter(f"failed to initialize logging driver: template: log-tag: unknown field {action}")
        return values[action]

    return _ACTION.sub(fill, template)


def chosen(container: Container, options: Mapping[str, str]) -> dict[str, str]:
    """Labels and environment variables named by ``labels``, ``labels-regex``, ``env`` and ``env-regex``."""
    labels = container.config.labels or {}
    environment = dict(line.partition("=")[::2] for line in container.config.env or () if "=" in line)
    return {
        **_chosen(labels, options.get("labels", ""), options.get("labels-regex", "")),
        **_chosen(environment, options.get("env", ""), options.get("env-regex", "")),
    }


def _chosen(values: Mapping[str, str], names: str, pattern: str) -> dict[str, str]:
    wanted = {name for name in names.split(",") if name}
    try:
        matching = re.compile(pattern) if pattern else None
    except re.error as error:
        raise InvalidParameter(f"failed to initialize logging driver: bad regular expression: {error}") from None
    return {name: value for name, value in values.items() if name in wanted or (matching and matching.search(name))}
