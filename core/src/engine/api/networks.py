"""``/networks``: list, inspect, create, remove and prune networks, connect and disconnect containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from engine.api.router import Request, Response, Route
from engine.errors import InvalidParameter
from engine.model.network import EndpointSettings
from engine.networks import NetworkCreate
from engine.networks.policies import PolicyRecord

if TYPE_CHECKING:
    from engine.services import Services

__all__ = ["ROUTES"]


class _Connect(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    container: str = ""
    endpoint_config: EndpointSettings | None = None


class _Disconnect(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    container: str = ""
    force: bool = False


async def _list(services: Services, request: Request) -> Response:
    bodies = services.networks.list(request.query.filters())
    if request.version < (1, 28):  # older clients expect the containers in the list
        bodies = [services.networks.inspect(body["Id"]) for body in bodies]
    return Response.json([_for_version(body, request.version) for body in bodies])


async def _inspect(services: Services, request: Request) -> Response:
    scope = request.query.get("scope")
    if scope not in ("", "local", "swarm", "global"):
        raise InvalidParameter(f'invalid scope: "{scope}"')
    return Response.json(_for_version(services.networks.inspect(request.params["ref"], scope=scope), request.version))


async def _create(services: Services, request: Request) -> Response:
    identifier, warning = await services.networks.create(await request.json(NetworkCreate))
    return Response.json({"Id": identifier, "Warning": warning}, status=201)


async def _remove(services: Services, request: Request) -> Response:
    await services.networks.remove(request.params["ref"])
    return Response.empty()


async def _prune(services: Services, request: Request) -> Response:
    return Response.json(await services.networks.prune(request.query.filters()))


async def _connect(services: Services, request: Request) -> Response:
    body = await request.json(_Connect)
    await services.containers.connect(request.params["ref"], body.container, body.endpoint_config or EndpointSettings())
    return Response.empty(200)


async def _disconnect(services: Services, request: Request) -> Response:
    body = await request.json(_Disconnect)
    await services.containers.disconnect(request.params["ref"], body.container, force=body.force)
    return Response.empty(200)


async def _explain(services: Services, request: Request) -> Response:
    query = request.query
    number, protocol = query.get("port") or "0", query.get("protocol") or "tcp"
    if not (number.isascii() and number.isdigit() and int(number) <= 65535) or protocol not in ("tcp", "udp"):
        raise InvalidParameter(f'invalid port specification: "{number}/{protocol}"')
    if query.get("from"):
        body = await services.networks.explain(query.get("from"), query.get("to"), int(number), protocol)
    else:
        body = await services.networks.explain_port(int(number), protocol)
    return Response.json(body)


async def _doctor(services: Services, request: Request) -> Response:
    return Response.json(await services.networks.examine())


async def _policies(services: Services, request: Request) -> Response:
    return Response.json([msgspec.to_builtins(policy) for policy in services.networks.policies()])


async def _create_policy(services: Services, request: Request) -> Response:
    await services.networks.create_policy(await request.json(PolicyRecord))
    return Response.empty(201)


async def _remove_policy(services: Services, request: Request) -> Response:
    await services.networks.remove_policy(request.params["name"])
    return Response.empty()


def _for_version(body: dict[str, Any], version: tuple[int, int]) -> dict[str, Any]:
    if version < (1, 47):
        body.pop("EnableIPv4", None)
    return body


ROUTES = [
    Route("GET", "/networks", _list),
    Route("GET", "/networks/{ref}", _inspect),
    Route("POST", "/networks/create", _create),
    Route("POST", "/networks/prune", _prune, since=(1, 25)),
    Route("POST", "/networks/{ref}/connect", _connect),
    Route("POST", "/networks/{ref}/disconnect", _disconnect),
    Route("DELETE", "/networks/{ref}", _remove),
    Route("GET", "/engine/networks/explain", _explain),
    Route("GET", "/engine/networks/doctor", _doctor),
    Route("GET", "/engine/networks/policies", _policies),
    Route("POST", "/engine/networks/policies", _create_policy),
    Route("DELETE", "/engine/networks/policies/{name}", _remove_policy),
]
