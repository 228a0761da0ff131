"""``/volumes``: create, list, inspect, remove, prune; ours below ``/engine/volumes``: archives and copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.api.router import Request, Response, Route
from engine.errors import InvalidParameter, Unavailable
from engine.model.filters import Filters
from engine.volumes import copies

if TYPE_CHECKING:
    from engine.services import Services

__all__ = ["ROUTES"]

_NAMED_ARE_KEPT = (1, 42)  # since this version prune only takes anonymous volumes, unless the filter "all" is set


class VolumeCreate(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Body of create."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class VolumeCopy(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Body of our copies: a clone, or a snapshot, which may name itself."""

    name: str = ""
    labels: dict[str, str] | None = None
    snapshot: bool = False


async def _create(services: Services, request: Request) -> Response:
    wanted = await request.json(VolumeCreate)
    record = await services.volumes.create(wanted.name, wanted.driver, wanted.driver_opts, wanted.labels)
    return Response.json(record, status=201)


async def _list(services: Services, request: Request) -> Response:
    records = services.volumes.list(request.query.filters())
    return Response.json({"Volumes": records, "Warnings": None})


async def _inspect(services: Services, request: Request) -> Response:
    return Response.json(await services.volumes.inspect(request.params["name"]))


async def _remove(services: Services, request: Request) -> Response:
    await services.volumes.remove(request.params["name"], force=request.query.flag("force"))
    return Response.empty(204)


async def _prune(services: Services, request: Request) -> Response:
    filters = request.query.filters()
    if request.version < _NAMED_ARE_KEPT:
        filters = Filters({**filters, "all": ["true"]})
    return Response.json(await services.volumes.prune(filters))


async def _export(services: Services, request: Request) -> Response:
    stream = await copies.export(services.volumes, services.workers, request.params["name"])
    return Response.stream(stream, "application/x-tar")


async def _import(services: Services, request: Request) -> Response:
    record = await copies.import_(services.volumes, services.workers, request.params["name"], request.stream())
    return Response.json(record, status=201)


async def _copy(services: Services, request: Request) -> Response:
    wanted = await request.json(VolumeCopy)
    volumes, workers, name = services.volumes, services.workers, request.params["name"]
    if wanted.snapshot:
        record = await copies.snapshot(volumes, workers, name, wanted.name)
    elif wanted.name:
        record = await copies.clone(volumes, workers, name, wanted.name, wanted.labels)
    else:
        raise InvalidParameter("a clone needs a name")
    return Response.json(record, status=201)


async def _update(services: Services, request: Request) -> Response:
    raise Unavailable(
        'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node '
        "to swarm and try again."
    )


ROUTES = [
    Route("GET", "/volumes", _list),
    Route("POST", "/volumes/create", _create),
    Route("POST", "/volumes/prune", _prune, since=(1, 25)),
    Route("GET", "/volumes/{name:path}", _inspect),
    Route("PUT", "/volumes/{name:path}", _update, since=(1, 42)),
    Route("DELETE", "/volumes/{name:path}", _remove),
    Route("GET", "/engine/volumes/{name}/archive", _export),
    Route("PUT", "/engine/volumes/{name}/archive", _import),
    Route("POST", "/engine/volumes/{name}/copies", _copy),
]
