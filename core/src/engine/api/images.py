"""``/images``, ``/distribution`` and ``/auth``: images, registries and credentials."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from engine.api import codec
from engine.api.progress import Progress, progress_response
from engine.api.router import Request, Response, Route
from engine.errors import Forbidden, InvalidParameter
from engine.images.views import CONFIG_DEFAULTS
from engine.model.container import ZERO_TIME
from engine.model.filters import Filters
from engine.names import Reference, is_sha256, parse_reference
from engine.platforms import Platform, normalise, parse_platform
from engine.registry.auth import RegistryAuth, auth_from_mapping, decode_auth

if TYPE_CHECKING:
    from engine.services import Services

__all__ = ["ROUTES"]

_TAR = "application/x-tar"


# -- what there is ------------------------------------------------------------------------------------------------


async def _list(services: Services, request: Request) -> Response:
    filters = request.query.filters()
    if request.version < (1, 25) and "reference" not in filters and request.query.get("filter"):
        filters = Filters({**filters, "reference": [request.query.get("filter")]})
    shared_size = request.version >= (1, 42) and request.query.flag("shared-size")
    found = services.images.list(filters, all=request.query.flag("all"), shared_size=shared_size)
    rows = [_summary(image, request.version) for image in found]
    if request.version >= (1, 47) and request.query.flag("manifests"):
        for row in rows:
            row["Manifests"] = services.images.manifests((row["RepoTags"] or row["RepoDigests"] or [row["Id"]])[0])
    return Response.json(rows)


def _summary(image: dict[str, Any], version: tuple[int, int]) -> dict[str, Any]:
    """One row of the list as ``version`` of the API has it."""
    shown = dict(image)
    if version < (1, 43) and not shown["RepoTags"] and not shown["RepoDigests"]:
        shown["RepoTags"], shown["RepoDigests"] = ["<none>:<none>"], ["<none>@<none>"]
    if version < (1, 44):
        shown["VirtualSize"] = shown["Size"]
    if version < (1, 48):
        shown.pop("Descriptor", None)
    if version < (1, 51):
        shown["Containers"] = -1
    return shown


async def _inspect(services: Services, request: Request) -> Response:
    manifests = request.version >= (1, 48) and request.query.flag("manifests")
    platform = _platform(request, since=(1, 49))
    if manifests and platform:
        raise InvalidParameter("conflicting options: manifests and platform options cannot both be set")
    shown = dict(services.images.inspect(request.params["name"], platform))
    if request.version < (1, 44):
        shown["VirtualSize"] = shown["Size"]
        shown["Created"] = shown.get("Created") or ZERO_TIME
    if request.version < (1, 45):
        shown.setdefault("Container", "")
        shown.setdefault("ContainerConfig", CONFIG_DEFAULTS)
    if request.version < (1, 48):
        shown.pop("Descriptor", None)
    if manifests:
        shown["Manifests"] = services.images.manifests(request.params["name"])
    return Response.json(shown)


async def _history(services: Services, request: Request) -> Response:
    return Response.json(services.images.history(request.params["name"], _platform(request, since=(1, 48))))


async def _search(services: Services, request: Request) -> Response:
    filters = request.query.filters()
    filters.check({"is-automated", "is-official", "stars"})
    limit = request.query.number("limit", 0)
    found = await services.images.transfers.search(request.query.get("term"), limit, _credentials(request))
    official, automated = filters.flag("is-official", False), filters.flag("is-automated", False)
    stars = max((_stars(text) for text in filters.get("stars", ())), default=0)
    return Response.json(
        [
            repository
            for repository in found
            if ("is-official" not in filters or repository["is_official"] is official)
            and ("is-automated" not in filters or repository["is_automated"] is automated)
            and repository["star_count"] >= stars
        ]
    )


def _stars(text: str) -> int:
    if not text.isdigit():
        raise InvalidParameter(f"invalid filter 'stars=[{text}]'")
    return int(text)


# -- changing what there is ---------------------------------------------------------------------------------------


async def _tag(services: Services, request: Request) -> Response:
    target = _repository_and_tag(request.query.get("repo"), request.query.get("tag"))
    if target is None:
        raise InvalidParameter("invalid reference format")
    if target.familiar_name == "sha256":
        raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
    await services.images.tag(request.params["name"], target.with_default_tag().familiar)
    return Response.empty(201)


async def _remove(services: Services, request: Request) -> Response:
    name = request.params["name"]
    if not name.strip():
        raise InvalidParameter("image name cannot be blank")
    removed = await services.images.remove(
        name, force=request.query.flag("force"), prune=not request.query.flag("noprune")
    )
    return Response.json(removed)


async def _prune(services: Services, request: Request) -> Response:
    return Response.json(await services.images.prune(request.query.filters()))


# -- streams ------------------------------------------------------------------------------------------------------


async def _create(services: Services, request: Request) -> Response:
    """Pull (``fromImage``) or import (``fromSrc``)."""
    text = request.query.get("platform") if request.version >= (1, 32) else ""
    platform = parse_platform(text) if text else None
    if request.query.get("fromImage"):
        return await _pull(services, request, platform)
    return await _import(services, request, platform)


async def _pull(services: Services, request: Request, platform: Platform | None) -> Response:
    reference = parse_reference(request.query.get("fromImage").removesuffix(":"))
    tag = request.query.get("tag")
    if tag:
        wanted = f"{reference.name}@{tag}" if is_sha256(tag) else f"{reference.name}:{tag}"
        reference = replace(parse_reference(wanted), digest=tag if is_sha256(tag) else reference.digest)
    if reference.familiar_name == "scratch":
        raise Forbidden("'scratch' is a reserved name")
    auth = _credentials(request)

    async def work(progress: Progress) -> None:
        await services.images.pull(
            reference.familiar,
            platform=platform,
            all_tags=not reference.tag and not reference.digest,
            auth=auth,
            progress=progress,
        )

    return await progress_response(work)


async def _import(services: Services, request: Request, platform: Platform | None) -> Response:
    source = request.query.get("fromSrc")
    target = _repository_and_tag(request.query.get("repo"), request.query.get("tag"))
    message = request.query.get("message") or f"Imported from {source}"
    if not source:
        raise InvalidParameter("neither fromImage nor fromSrc is given")
    body = request.stream() if source == "-" else None

    async def work(progress: Progress) -> None:
        identifier = await services.images.import_(
            body if body is not None else await services.images.transfers.open_url(source, progress),
            repository=target.familiar_name if target else "",
            tag=(target.with_default_tag().tag or "") if target else "",
            message=message,
            changes=request.query.all("changes"),
            platform=platform,
            progress=progress,
        )
        progress({"status": identifier})

    return await progress_response(work)


async def _push(services: Services, request: Request) -> Response:
    name, tag = request.params["name"], request.query.get("tag")
    reference = _repository_and_tag(name, tag) if tag else parse_reference(name)
    if reference is None:
        raise InvalidParameter("invalid reference format")
    platform = _platform(request, since=(1, 46))
    auth = _credentials(request)

    async def work(progress: Progress) -> None:
        await services.images.push(
            reference.familiar, platform=platform, all_tags=not tag and not reference.tag, auth=auth, progress=progress
        )

    return await progress_response(work)


async def _load(services: Services, request: Request) -> Response:
    platform = _platform(request, since=(1, 48))
    quiet = request.query.flag("quiet", default=True)
    body = request.stream()

    async def work(progress: Progress) -> None:
        await services.images.load(body, quiet=quiet, platform=platform, progress=progress)

    return await progress_response(work, always_stream=True)


async def _save(services: Services, request: Request) -> Response:
    names = [request.params["name"]] if "name" in request.params else request.query.all("names")
    archive = await services.images.save(names, _platform(request, since=(1, 48)))
    return Response.stream(archive, _TAR)


# -- registries ---------------------------------------------------------------------------------------------------


async def _distribution(services: Services, request: Request) -> Response:
    return Response.json(await services.images.transfers.describe(request.params["name"], _credentials(request)))


async def _auth(services: Services, request: Request) -> Response:
    body = codec.decode(await request.body(), dict[str, Any])
    token = await services.images.transfers.login(auth_from_mapping(body))
    return Response.json({"Status": "Login Succeeded", "IdentityToken": token})


def _credentials(request: Request) -> RegistryAuth:
    return decode_auth(request.headers.get("x-registry-auth"))


# -- parameters ---------------------------------------------------------------------------------------------------


class _PlatformParameter(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


def _platform(request: Request, since: tuple[int, int]) -> Platform | None:
    """The ``platform`` parameter, a JSON object; ignored in versions before ``since``."""
    texts = [text for text in request.query.all("platform") if text] if request.version >= since else []
    if not texts:
        return None
    if len(texts) > 1:
        raise InvalidParameter(
            "multiple platform parameters are not supported in this API version; use API version 1.52 or later"
        )
    try:
        found = msgspec.json.decode(texts[0].encode(), type=_PlatformParameter)
    except msgspec.DecodeError as error:
        raise InvalidParameter(f"failed to parse platform: {error}") from error
    if (found.architecture or found.variant) and not found.os:
        raise InvalidParameter("optional platform components provided, but OS is missing")
    if not found.os:
        return None
    if not found.architecture:
        return parse_platform(found.os)
    return normalise(found.os, found.architecture, found.variant)


def _repository_and_tag(repository: str, tag: str) -> Reference | None:
    """A new name from its two parts; None when there is no repository."""
    if not repository:
        return None
    reference = parse_reference(repository)
    if reference.digest:
        raise InvalidParameter("cannot import digest reference")
    if not tag:
        return reference
    if is_sha256(tag):
        raise InvalidParameter("refusing to create a tag with a digest reference")
    try:
        return parse_reference(f"{reference.name}:{tag}")
    except InvalidParameter:
        raise InvalidParameter("invalid tag format") from None


ROUTES = [
    Route("GET", "/images/json", _list),
    Route("GET", "/images/search", _search),
    Route("GET", "/images/get", _save),
    Route("POST", "/images/create", _create, cancel=True, stream=True),
    Route("POST", "/images/load", _load, cancel=True, stream=True),
    Route("POST", "/images/prune", _prune, since=(1, 25)),
    Route("GET", "/images/{name:path}/get", _save),
    Route("GET", "/images/{name:path}/history", _history),
    Route("GET", "/images/{name:path}/json", _inspect),
    Route("POST", "/images/{name:path}/push", _push, cancel=True),
    Route("POST", "/images/{name:path}/tag", _tag),
    Route("DELETE", "/images/{name:path}", _remove),
    Route("GET", "/distribution/{name:path}/json", _distribution, since=(1, 30)),
    Route("POST", "/auth", _auth),
]
