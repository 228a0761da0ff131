"""``/containers``: requests translated into calls of the containers service, and nothing more."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from engine.api import codec
from engine.api.router import Request, Response, Route
from engine.api.websocket import Bridge, accept_key
from engine.containers import commit as container_commit
from engine.containers import files as container_files
from engine.containers import livemounts
from engine.containers import stats as container_stats
from engine.containers.attach import check as check_attachable
from engine.containers.attach import parse_keys
from engine.containers.logs import LogRequest, parse_tail
from engine.errors import EngineError, InvalidParameter
from engine.model.container import Config, HostConfig, RestartPolicy
from engine.model.network import EndpointSettings
from engine.signals import parse_signal

if TYPE_CHECKING:
    from engine.containers.records import Waiter
    from engine.services import Services

__all__ = ["ROUTES"]

_RAW = "application/vnd.docker.raw-stream"
_MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
_TAR = "application/x-tar"
_STAT_HEADER = "X-Docker-Container-Path-Stat"


class NetworkingConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``NetworkingConfig`` of create."""

    endpoints_config: dict[str, EndpointSettings | None] | None = None


class CreateExtras(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What a create body has beside the `Config` that is spread over its top level."""

    host_config: HostConfig = HostConfig()
    networking_config: NetworkingConfig = NetworkingConfig()
    runtime: str = ""  # docker-py puts it here; dockerd does not look, as its default has the usual name


class UpdateRequest(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``RestartPolicy`` of update; the limits are read as a `HostConfig`."""

    restart_policy: RestartPolicy = RestartPolicy()


# -- list, inspect, create --------------------------------------------------------------------------------------


async def list_containers(services: Services, request: Request) -> Response:
    """GET /containers/json."""
    query = request.query
    size = query.flag("size")
    limit = query.number("limit", 0)
    if size:
        await services.containers.measure()
    return Response.json(
        services.containers.list(query.filters(), all=query.flag("all"), limit=max(0, limit), size=size)
    )


async def inspect(services: Services, request: Request) -> Response:
    """GET /containers/{ref}/json."""
    size = request.query.flag("size")
    if size:
        await services.containers.measure([services.containers.get(request.params["ref"]).id])
    return _inspected(services, request, size)


def inspect_known(services: Services, request: Request) -> Response | None:
    """The same at once, when nothing has to be measured."""
    return None if request.query.flag("size") else _inspected(services, request, False)


def _inspected(services: Services, request: Request, size: bool) -> Response:
    view = services.containers.inspect(request.params["ref"], size=size)
    if request.version >= (1, 52):
        settings = view["NetworkSettings"]
        view["NetworkSettings"] = {key: settings[key] for key in ("SandboxID", "SandboxKey", "Ports", "Networks")}
    return Response.json(view)


async def create(services: Services, request: Request) -> Response:
    """POST /containers/create."""
    body = await request.body()
    content_type = request.headers.get("content-type", "")
    if not body:
        raise InvalidParameter("invalid JSON: got EOF while reading request body")
    config = codec.read_json(body, content_type, Config)
    extras = codec.read_json(body, content_type, CreateExtras)
    if not _has_config(body):
        raise InvalidParameter("config cannot be empty in order to create a container")
    host_config = extras.host_config
    if extras.runtime and not host_config.runtime:
        host_config = msgspec.structs.replace(host_config, runtime=extras.runtime)
    endpoints = {
        name: settings or EndpointSettings()
        for name, settings in (extras.networking_config.endpoints_config or {}).items()
    }
    container_id, warnings = await services.containers.create(
        request.query.get("name"), config, host_config, endpoints, request.query.get("platform")
    )
    return Response.json({"Id": container_id, "Warnings": warnings}, 201)


def _has_config(body: bytes) -> bool:
    """Whether any field of the container's config is there, beside the two other parts of the body."""
    raw = msgspec.json.decode(body)
    return isinstance(raw, dict) and bool({key.lower() for key in raw} - {"hostconfig", "networkingconfig"})


# -- start, stop and the like -----------------------------------------------------------------------------------


async def start(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/start."""
    await services.containers.start(request.params["ref"])
    return Response.empty()


async def stop(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/stop."""
    query = request.query
    await services.containers.stop(request.params["ref"], timeout=query.number("t"), signal=query.get("signal") or None)
    return Response.empty()


async def restart(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/restart."""
    query = request.query
    await services.containers.restart(
        request.params["ref"], timeout=query.number("t"), signal=query.get("signal") or None
    )
    return Response.empty()


async def kill(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/kill."""
    signal = request.query.get("signal") or "KILL"
    parse_signal(signal)
    ref = request.params["ref"]
    try:
        await services.containers.kill(ref, signal)
    except EngineError as error:
        raise type(error)(f"cannot kill container: {ref}: {error}") from None
    return Response.empty()


async def remove(services: Services, request: Request) -> Response:
    """DELETE /containers/{ref}."""
    query = request.query
    await services.containers.remove(
        request.params["ref"], force=query.flag("force"), volumes=query.flag("v"), link=query.flag("link")
    )
    return Response.empty()


async def prune(services: Services, request: Request) -> Response:
    """POST /containers/prune."""
    return Response.json(await services.containers.prune(request.query.filters()))


async def rename(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/rename."""
    await services.containers.rename(request.params["ref"], request.query.get("name"))
    return Response.empty()


async def pause(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/pause."""
    await services.containers.pause(request.params["ref"])
    return Response.empty()


async def unpause(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/unpause."""
    await services.containers.unpause(request.params["ref"])
    return Response.empty()


async def resize(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/resize."""
    height, width = terminal_size(request)
    await services.containers.resize(request.params["ref"], height, width)
    return Response.empty(200)


def terminal_size(request: Request) -> tuple[int, int]:
    """``h`` and ``w`` of a resize call."""
    height, width = request.query.number("h"), request.query.number("w")
    if height is None or width is None:
        raise InvalidParameter('strconv.ParseUint: parsing "": invalid syntax')
    if not (0 <= height < 1 << 16 and 0 <= width < 1 << 16):
        raise InvalidParameter("invalid resize height or width: value out of range")
    return height, width


async def update(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/update."""
    changes = await request.json(HostConfig)
    if changes.binds:  # ours: dockerd ignores them
        await livemounts.add(services.containers, request.params["ref"], changes.binds)
    return Response.json({"Warnings": await services.containers.update(request.params["ref"], changes)})


async def wait(services: Services, request: Request) -> Response:
    """POST /containers/{ref}/wait: the head goes out at once, the exit code when it is known."""
    waiter = services.containers.wait(request.params["ref"], request.query.get("condition") or "not-running")
    return Response.stream(_Outcome(waiter))


class _Outcome:
    """The body of wait: one document, when there is something to say."""

    def __init__(self, waiter: Waiter) -> None:
        self._waiter: Waiter | None = waiter

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._waiter is None:
            raise StopAsyncIteration
        waiter, self._waiter = self._waiter, None
        code, error = await waiter
        body: dict[str, Any] = {"StatusCode": code}
        if error:
            body["Error"] = {"Message": error}
        return codec.encode(body)

    async def aclose(self) -> None:
        """The client has left."""
        if self._waiter is not None:
            self._waiter.cancel()


# -- streams ----------------------------------------------------------------------------------------------------


async def attach(services: Services, request: Request) -> None:
    """POST /containers/{ref}/attach."""
    query = request.query
    container = services.containers.get(request.params["ref"])
    check_attachable(container)
    parse_keys(query.get("detachKeys"))
    connection = await request.hijack(content_type=stream_type(request, container.config.tty))
    await services.containers.attach(
        container.id,
        connection,
        logs=query.flag("logs"),
        stream=query.flag("stream"),
        stdin=query.flag("stdin"),
        stdout=query.flag("stdout"),
        stderr=query.flag("stderr"),
        detach_keys=query.get("detachKeys"),
    )


async def attach_websocket(services: Services, request: Request) -> None:
    """GET /containers/{ref}/attach/ws."""
    query = request.query
    container = services.containers.get(request.params["ref"])
    check_attachable(container)
    parse_keys(query.get("detachKeys"))
    accept = accept_key(request.headers.get("sec-websocket-key", ""))
    client = await request.hijack(websocket=accept)
    bridge = Bridge(client, framed=not container.config.tty)
    serving = services.workers.spawn(bridge.run(), name=f"websocket {container.id[:12]}")
    try:
        await services.containers.attach(
            container.id,
            bridge,
            logs=query.flag("logs"),
            stream=query.flag("stream"),
            stdin=query.flag("stdin"),
            stdout=query.flag("stdout"),
            stderr=query.flag("stderr"),
            detach_keys=query.get("detachKeys"),
        )
    except BaseException:
        serving.cancel()
        raise


def stream_type(request: Request, terminal: bool) -> str:
    """The content type of a stream of output; before API 1.42 it is always the raw one."""
    return _RAW if terminal or request.version < (1, 42) else _MULTIPLEXED


async def logs(services: Services, request: Request) -> Response:
    """GET /containers/{ref}/logs."""
    query = request.query
    wanted = LogRequest(
        stdout=query.flag("stdout"),
        stderr=query.flag("stderr"),
        follow=query.flag("follow"),
        since=query.get("since"),
        until=query.get("until"),
        timestamps=query.flag("timestamps"),
        tail=parse_tail(query.get("tail") or "all"),
        details=query.flag("details"),
    )
    container = services.containers.get(request.params["ref"])
    chunks = services.containers.logs(container.id, wanted)
    return Response.stream(chunks, stream_type(request, container.config.tty))


async def stats(services: Services, request: Request) -> Response:
    """GET /containers/{ref}/stats."""
    query = request.query
    stream = query.flag("stream", True)
    one_shot = query.flag("one-shot")
    if stream and one_shot:
        raise InvalidParameter("cannot have stream=true and one-shot=true")
    services.containers.get(request.params["ref"])
    samples = container_stats.stats(services.containers, request.params["ref"], stream=stream, one_shot=one_shot)
    return Response.stream(_documents(samples))


async def _documents(values: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(values):
        async for value in values:
            yield codec.encode(value)


async def top(services: Services, request: Request) -> Response:
    """GET /containers/{ref}/top."""
    return Response.json(
        await container_stats.top(services.containers, request.params["ref"], request.query.get("ps_args"))
    )


async def changes(services: Services, request: Request) -> Response:
    """GET /containers/{ref}/changes."""
    return Response.json(await container_files.changes(services.containers, request.params["ref"]))


async def export(services: Services, request: Request) -> Response:
    """GET /containers/{ref}/export."""
    return Response.stream(
        await container_files.export(services.containers, request.params["ref"]), "application/octet-stream"
    )


async def archive_head(services: Services, request: Request) -> Response:
    """HEAD /containers/{ref}/archive."""
    status = await container_files.status(services.containers, request.params["ref"], _archive_path(request))
    return Response(200, {_STAT_HEADER: status})


async def archive_get(services: Services, request: Request) -> Response:
    """GET /containers/{ref}/archive: a path as a tar stream (docker cp from a container)."""
    status, chunks = await container_files.read(services.containers, request.params["ref"], _archive_path(request))
    return Response(200, {"Content-Type": _TAR, _STAT_HEADER: status}, chunks)


async def archive_put(services: Services, request: Request) -> Response:
    """PUT /containers/{ref}/archive: unpack a tar stream into a directory (docker cp to a container)."""
    await container_files.write(
        services.containers,
        request.params["ref"],
        _archive_path(request),
        request.stream(),
        keep_kinds=request.query.flag("noOverwriteDirNonDir"),
        copy_owner=request.query.flag("copyUIDGID"),
    )
    return Response.empty(200)


async def commit(services: Services, request: Request) -> Response:
    """POST /commit."""
    query = request.query
    image_id = await container_commit.commit(
        services.containers,
        query.get("container"),
        repository=query.get("repo"),
        tag=query.get("tag"),
        message=query.get("comment"),
        author=query.get("author"),
        pause=query.flag("pause", True),
        changes=query.all("changes"),
        config=await request.json(Config),
    )
    return Response.json({"Id": image_id}, 201)


def _archive_path(request: Request) -> str:
    path = request.query.get("path")
    if not path:
        raise InvalidParameter("bad parameter: path cannot be empty")
    return path


ROUTES = [
    Route("POST", "/commit", commit),
    Route("GET", "/containers/json", list_containers),
    Route("POST", "/containers/create", create),
    Route("POST", "/containers/prune", prune),
    Route("GET", "/containers/{ref:path}/json", inspect, prompt=inspect_known),
    Route("POST", "/containers/{ref:path}/start", start),
    Route("POST", "/containers/{ref:path}/stop", stop),
    Route("POST", "/containers/{ref:path}/restart", restart),
    Route("POST", "/containers/{ref:path}/kill", kill),
    Route("DELETE", "/containers/{ref:path}", remove),
    Route("POST", "/containers/{ref:path}/rename", rename),
    Route("POST", "/containers/{ref:path}/pause", pause),
    Route("POST", "/containers/{ref:path}/unpause", unpause),
    Route("POST", "/containers/{ref:path}/resize", resize),
    Route("POST", "/containers/{ref:path}/update", update),
    Route("POST", "/containers/{ref:path}/wait", wait),
    Route("POST", "/containers/{ref:path}/attach", attach, hijack=True),
    Route("GET", "/containers/{ref:path}/attach/ws", attach_websocket, hijack=True),
    Route("GET", "/containers/{ref:path}/logs", logs),
    Route("GET", "/containers/{ref:path}/stats", stats),
    Route("GET", "/containers/{ref:path}/top", top),
    Route("GET", "/containers/{ref:path}/changes", changes),
    Route("GET", "/containers/{ref:path}/export", export),
    Route("HEAD", "/containers/{ref:path}/archive", archive_head),
    Route("GET", "/containers/{ref:path}/archive", archive_get),
    Route("PUT", "/containers/{ref:path}/archive", archive_put, stream=True),
]
