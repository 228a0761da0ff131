"""``/volumes``: create, list, inspect, remove, prune."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.api.router import Request, Response, Route
from engine.model.filters import Filters

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


ROUTES = [
    Route("GET", "/volumes", _list),
    Route("POST", "/volumes/create", _create),
    Route("POST", "/volumes/prune", _prune, since=(1, 25)),
    Route("GET", "/volumes/{name:path}", _inspect),
    Route("DELETE", "/volumes/{name:path}", _remove),
]
