"""What one container says of another: ``container:...`` modes and links, by id from the create on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import Conflict, InvalidParameter, NotFound
from engine.model.container import Container, HostConfig
from engine.networks import links

if TYPE_CHECKING:
    from engine.containers import Containers

__all__ = ["by_id", "remove"]


def by_id(host_config: HostConfig, get: Callable[[str], Container]) -> HostConfig:
    """``host_config`` with ids in the place of names, which may change hands later.

    Who is not there is an `InvalidParameter`: of a create, 404 says that the image is missing, and clients pull it.
    """
    changes: dict[str, Any] = {}
    for field in ("network_mode", "ipc_mode", "pid_mode"):
        kind, _, other = getattr(host_config, field).partition(":")
        if kind == "container" and other:
            try:
                changes[field] = f"container:{get(other).id}"
            except NotFound as error:
                raise InvalidParameter(str(error)) from None
    if legacy := links.legacy(host_config):
        changes["links"] = [_link_by_id(name, alias, get) for name, alias in legacy]
    return msgspec.structs.replace(host_config, **changes) if changes else host_config


def _link_by_id(name: str, alias: str, get: Callable[[str], Container]) -> str:
    try:
        other = get(name)
    except NotFound as error:
        raise InvalidParameter(f"could not get container for {name}: {error}") from None
    if other.host_config.network_mode == "host":
        raise InvalidParameter(
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior"
        )
    return f"{other.id}:{alias}"


async def remove(containers: Containers, ref: str) -> None:
    """``docker rm --link container/alias``: both containers stay."""
    parent, _, alias = ref.strip("/").partition("/")
    if not alias:
        raise Conflict("Conflict, cannot remove the default link name of the container")
    live = containers.live(containers.get(parent).id)
    async with live.lock:
        container = containers.get(live.id)
        kept = [f"{other}:{name}" for other, name in links.legacy(container.host_config) if name != alias]
        if len(kept) == len(container.host_config.links or ()):
            raise NotFound(f"No such container: {ref}")
        changed = msgspec.structs.replace(container.host_config, links=kept or None)
        await containers.save(msgspec.structs.replace(container, host_config=changed))
