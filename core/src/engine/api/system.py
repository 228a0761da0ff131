"""Routes of the engine as a whole: ping, version, info, events, disk usage, plugins, and what is not served here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from engine.api import codec
from engine.api.router import API_VERSION, MIN_API_VERSION, Handler, Request, Response, Route, version_text
from engine.errors import EngineError, InvalidParameter, NotSupported, Unavailable
from engine.events import FILTERS, Subscription
from engine.timestamps import parse_timestamp

if TYPE_CHECKING:
    from engine.services import Services

__all__ = ["NOT_SERVED", "ROUTES"]

_PING = {
    "Builder-Version": "1",
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Content-Type": "text/plain; charset=utf-8",
    "Pragma": "no-cache",
    "Swarm": "inactive",
}
_PONG = Response(200, _PING, b"OK")

_NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)


async def ping(services: Services, request: Request) -> Response:
    """``GET`` and ``HEAD /_ping``."""
    return pong(services, request)


def pong(services: Services, request: Request) -> Response:
    """The same at once: clients ask before everything else they do."""
    return _PONG


async def version(services: Services, request: Request) -> Response:
    """``GET /version``."""
    return Response.json(services.system.version(version_text(API_VERSION), version_text(MIN_API_VERSION)))


async def info(services: Services, request: Request) -> Response:
    """``GET /info``; fields that left the API are given to the versions that had them."""
    body = await services.system.info()
    if request.version < (1, 42):
        body["KernelMemory"] = body["KernelMemoryTCP"] = False
    if request.version >= (1, 50):
        for name in ("BridgeNfIptables", "BridgeNfIp6tables"):
            body.pop(name)
    return Response.json(body)


async def events(services: Services, request: Request) -> Response:
    """``GET /events``: the past from ``since``, then live until ``until`` or until the client leaves."""
    since, until = _time(request, "since"), _time(request, "until")
    if since is not None and until is not None and since > until:
        raise InvalidParameter(
            f"`since` time ({request.query.get('since')}) cannot be after `until` time ({request.query.get('until')})"
        )
    filters = request.query.filters()
    filters.check(FILTERS)
    subscription = services.events.subscribe(since_ns=since, until_ns=until, filters=filters)
    return Response.stream(_encode(subscription))


async def _encode(subscription: Subscription) -> AsyncIterator[bytes]:
    try:
        async for event in subscription:
            yield codec.encode(event)
    finally:
        await subscription.aclose()


def _time(request: Request, name: str) -> int | None:
    text = request.query.get(name)
    if not text or text == "0":
        return None
    try:
        return parse_timestamp(text)
    except EngineError:
        raise
    except ValueError as error:
        raise InvalidParameter(str(error)) from None


async def disk_usage(services: Services, request: Request) -> Response:
    """``GET /system/df``."""
    kinds = request.query.all("type")
    for kind in kinds:
        if kind not in ("container", "image", "volume", "build-cache"):
            raise InvalidParameter(f"unknown object type: {kind}")
    body = await services.system.disk_usage(kinds)
    if kinds:
        names = {"container": "Containers", "image": "Images", "volume": "Volumes", "build-cache": "BuildCache"}
        keep = {names[kind] for kind in kinds} | ({"LayersSize"} if "image" in kinds else set())
        body = {key: value for key, value in body.items() if key in keep}
    if request.version < (1, 42):
        body["BuilderSize"] = 0
    return Response.json(body)


async def engine_plugins(services: Services, request: Request) -> Response:
    """``GET /engine/plugins``: this engine's own plugin report."""
    reports = await services.system.plugins()
    return Response.json(
        [
            {
                "Name": report.name,
                "Version": report.version,
                "Distribution": report.distribution,
                "Kind": report.kind,
                "Provides": list(report.provides),
                "State": report.state,
                "Error": report.error,
            }
            for report in reports
        ]
    )


async def docker_plugins(services: Services, request: Request) -> Response:
    """``GET /plugins``: Docker's managed plugins; this engine's plugins are Python distributions."""
    return Response.json([])


async def not_a_manager(services: Services, request: Request) -> Response:
    """Everything of Swarm, on a node that is in none."""
    raise Unavailable(_NOT_A_MANAGER)


async def not_in_a_swarm(services: Services, request: Request) -> Response:
    """``POST /swarm/leave`` on a node that is in none."""
    raise Unavailable("This node is not part of a swarm")


async def no_build_cache(services: Services, request: Request) -> Response:
    """``POST /build/prune`` (part of ``docker system prune``) where nothing builds: there is nothing to remove."""
    return Response.json({"CachesDeleted": None, "SpaceReclaimed": 0})


def _not_served(what: str) -> Handler:
    async def refuse(services: Services, request: Request) -> Response:
        raise NotSupported(f"{what} is not supported by this engine: no installed plugin provides it")

    return refuse


_SWARM = ["/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs"]

ROUTES = [
    Route("GET", "/_ping", ping, prompt=pong),
    Route("HEAD", "/_ping", ping, prompt=pong),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
    Route("GET", "/events", events),
    Route("GET", "/system/df", disk_usage),
    Route("GET", "/engine/plugins", engine_plugins),
    Route("GET", "/plugins", docker_plugins),
]

# Registered after the routes of subsystem plugins, which take their place when they are installed.
NOT_SERVED = [
    Route("POST", "/swarm/init", _not_served("swarm")),
    Route("POST", "/swarm/join", _not_served("swarm")),
    Route("POST", "/swarm/leave", not_in_a_swarm),
    *(Route(method, path, not_a_manager) for path in _SWARM for method in ("GET", "POST")),
    *(Route(method, path + "/{rest:path}", not_a_manager) for path in _SWARM for method in ("GET", "POST", "DELETE")),
    Route("POST", "/build", _not_served("building images")),
    Route("POST", "/build/prune", no_build_cache),
    Route("POST", "/build/cancel", _not_served("building images")),
    Route("POST", "/session", _not_served("building images")),
    Route("POST", "/plugins/{rest:path}", _not_served("Docker's managed plugins")),
    Route("GET", "/distribution/{name:path}/json", _not_served("looking at images in a registry")),
]
