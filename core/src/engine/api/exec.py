"""``/exec`` and ``/containers/{ref}/exec``: further processes in running containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine.api.containers import stream_type, terminal_size
from engine.api.router import Request, Response, Route
from engine.containers.attach import Client
from engine.containers.execs import ExecConfig
from engine.containers.toolbox import provide
from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.services import Services

__all__ = ["ROUTES"]


class StartRequest(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The body of exec start."""

    detach: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None


async def create(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/exec."""
    config = await request.json(ExecConfig)
    return Response.json({"Id": await services.execs.create(request.params["ref"], config)}, 201)


async def start(services: Services, request: Request) -> Response | None:
    """POST /exec/{id}/start: detached, or on this very connection."""
    wanted = await request.json(StartRequest)
    exec_id = request.params["id"]
    services.execs.check_start(exec_id)
    if wanted.detach:
        await services.execs.start(exec_id, console_size=wanted.console_size)
        return Response.empty(200)
    # dockerd's rule: create says whether the process has a terminal, start whether its output comes in frames
    client = Client(await request.hijack(content_type=stream_type(request, wanted.tty)))
    try:
        await services.execs.start(exec_id, client, raw=wanted.tty, console_size=wanted.console_size)
    except EngineError:
        client.close()  # the client was told on the stream
    except BaseException:
        client.close()
        raise
    return None


async def inspect(services: Services, request: Request) -> Response:
    """GET /exec/{id}/json."""
    return Response.json(services.execs.inspect(request.params["id"]))


async def resize(services: Services, request: Request) -> Response:
    """POST /exec/{id}/resize."""
    height, width = terminal_size(request)
    await services.execs.resize(request.params["id"], height, width)
    return Response.empty(200)


async def toolbox(services: Services, request: Request) -> Response:
    """GET /engine/toolbox: where on the engine's host the tools of ``engine debug`` are; made if they are not."""
    path = await services.workers.call(provide, services.config.root)
    return Response.json({"Path": str(path)})


ROUTES = [
    Route("GET", "/engine/toolbox", toolbox),
    Route("POST", "/containers/{ref}/exec", create),
    Route("POST", "/exec/{id}/start", start, hijack=True),
    Route("GET", "/exec/{id}/json", inspect),
    Route("POST", "/exec/{id}/resize", resize),
]
