"""Images as the API shows them: list entries, inspect, history, filters. Pure functions of records."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.errors import InvalidParameter
from engine.images.records import ImageRecord, ImageTable
from engine.model.filters import Filters
from engine.names import Reference
from engine.timestamps import parse_rfc3339, parse_timestamp

__all__ = ["FILTERS", "PRUNE_FILTERS", "created_ns", "history", "inspect", "labels", "selector", "summary"]

FILTERS = frozenset(("dangling", "label", "label!", "before", "since", "reference", "until"))
PRUNE_FILTERS = frozenset(("dangling", "label", "label!", "until"))
_ZERO_TIME = "0001-01-01T00:00:00Z"


def created_ns(record: ImageRecord) -> int:
    """When the image was made; 0 when it does not say."""
    try:
        return parse_rfc3339(record.config.created)
    except ValueError:
        return 0


def labels(record: ImageRecord) -> dict[str, str]:
    """The image's labels."""
    value = record.config.config.get("Labels")
    return value if isinstance(value, dict) else {}


def summary(
    table: ImageTable, record: ImageRecord, references: Sequence[Reference], *, shared: int = -1, containers: int = -1
) -> dict[str, Any]:
    """An entry of ``GET /images/json``. Lists are empty for an image nobody names; the API of old adds ``<none>``."""
    return {
        "Containers": containers,
        "Created": created_ns(record) // 10**9,
        "Id": record.id,
        "Labels": record.config.config.get("Labels"),
        "ParentId": record.parent,
        "RepoDigests": [reference.familiar for reference in references if reference.digest],
        "RepoTags": [reference.familiar for reference in references if not reference.digest],
        "SharedSize": shared,
        "Size": record.size,
    }


def inspect(
    table: ImageTable, record: ImageRecord, raw: Mapping[str, Any], graph_driver: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of ``GET /images/{name}/json``; ``raw`` is the config blob."""
    references = table.references_of(record.id)
    config = record.config
    last = config.history[-1] if config.history else {}
    return {
        "Id": record.id,
        "RepoTags": [reference.familiar for reference in references if not reference.digest],
        "RepoDigests": [reference.familiar for reference in references if reference.digest],
        "Parent": record.parent,
        "Comment": raw.get("comment") or last.get("comment", ""),
        "Created": config.created or _ZERO_TIME,
        **({"Container": raw["container"]} if raw.get("container") else {}),
        **({"ContainerConfig": _container_config(raw["container_config"])} if raw.get("container_config") else {}),
        "DockerVersion": raw.get("docker_version") or "",
        "Author": config.author,
        "Config": _container_config(config.config),
        "Architecture": config.architecture,
        **({"Variant": config.variant} if config.variant else {}),
        "Os": config.os,
        **({"OsVersion": raw["os.version"]} if raw.get("os.version") else {}),
        "Size": record.size,
        "GraphDriver": graph_driver,
        "RootFS": {"Type": "layers", "Layers": config.diff_ids} if config.diff_ids else {"Type": "layers"},
        "Metadata": {"LastTagTime": record.tagged or _ZERO_TIME},
    }


CONFIG_DEFAULTS: dict[str, Any] = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}


def _container_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A container configuration with all the keys Docker's has."""
    return {**CONFIG_DEFAULTS, **config}


def history(table: ImageTable, record: ImageRecord) -> list[dict[str, Any]]:
    """The body of ``GET /images/{name}/history``, newest first."""
    sizes = [table.layers[chain].size if chain in table.layers else 0 for chain in table.chain(record.chain_id)][::-1]
    body: list[dict[str, Any]] = []
    used = 0
    for step in record.config.history:
        size = 0
        if not step.get("empty_layer"):
            size = sizes[used] if used < len(sizes) else 0
            used += 1
        body.append(_step(step, size))
    if not body:  # an image without history still has layers
        body = [_step({"created": record.config.created}, size) for size in sizes]
    body.reverse()
    if body:
        body[0]["Id"] = record.id
        tags = [reference.familiar for reference in table.references_of(record.id) if not reference.digest]
        body[0]["Tags"] = tags or None
    return body


def _step(step: Mapping[str, Any], size: int) -> dict[str, Any]:
    try:
        created = parse_rfc3339(str(step.get("created", ""))) // 10**9
    except ValueError:
        created = 0
    return {
        "Id": "<missing>",
        "Created": created,
        "CreatedBy": step.get("created_by", ""),
        "Tags": None,
        "Size": size,
        "Comment": step.get("comment", ""),
    }


Selector = Callable[[ImageRecord], "list[Reference] | None"]


def selector(table: ImageTable, filters: Filters, *, everything: bool) -> Selector:
    """A function from an image to the references to show, None when it is not to be shown.

    ``everything`` (``all=1``) also shows images that only are parents of others.
    """
    filters.check(FILTERS)
    dangling = filters.flag("dangling")
    before = [created_ns(table.find(value)) for value in filters.get("before", ())]
    since = [created_ns(table.find(value)) for value in filters.get("since", ())]
    until = [parse_timestamp(value) for value in filters.get("until", ())]
    patterns = [_path_match(value) for value in filters.get("reference", ())]
    parents = {record.parent for record in table.images.values()}

    def select(record: ImageRecord) -> list[Reference] | None:
        if table.is_other(record.id):
            return None
        created = created_ns(record)
        if any(created >= limit for limit in (*before, *until)) or any(created <= limit for limit in since):
            return None
        if not filters.labels(labels(record)) or not filters.without_labels(labels(record)):
            return None
        references = table.references_of(record.id)
        if patterns:
            references = [one for one in references if any(_matches(one, pattern) for pattern in patterns)]
            if not references:
                return None
        tagged = any(not reference.digest for reference in references)
        if not references:
            if not everything and record.id in parents:
                return None
            return [] if dangling or "dangling" not in filters else None
        return None if dangling and tagged else references

    return select


def _matches(reference: Reference, pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(text) for text in (reference.familiar, reference.familiar_name))


def _path_match(pattern: str) -> re.Pattern[str]:
    """Go's ``path.Match``: ``*`` and ``?`` stop at slashes."""
    text = ""
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if character == "*":
            text += "[^/]*"
        elif character == "?":
            text += "[^/]"
        elif character == "[":
            end = pattern.find("]", at + 2)
            if end < 0:
                raise InvalidParameter(f"invalid reference filter: syntax error in pattern: {pattern}")
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            text += "[" + inner + "]"
            at = end
        elif character == "\\" and at + 1 < len(pattern):
            at += 1
            text += re.escape(pattern[at])
        else:
            text += re.escape(character)
        at += 1
    try:
        return re.compile(text)
    except re.error:
        raise InvalidParameter(f"invalid reference filter: syntax error in pattern: {pattern}") from None
