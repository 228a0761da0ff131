"""What confines a container: ours, not Docker's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import confinement
from engine.api.router import Request, Response, Route
from engine.errors import Conflict

if TYPE_CHECKING:
    from engine.services import Services

__all__ = ["ROUTES"]


async def security(services: Services, request: Request) -> Response:
    """``GET /engine/containers/{ref}/security``."""
    container = services.containers.get(request.params["ref"])
    if container.state.pid == 0:
        raise Conflict(f"Container {container.id} is not running: what confines it is known while it runs")
    bundle = services.containers.starter.bundle(container.id).path
    found = await services.workers.call(confinement.report, container.state.pid, bundle)
    return Response.json({"Id": container.id, "Name": f"/{container.name}"} | found)


ROUTES = [Route("GET", "/engine/containers/{ref}/security", security)]
