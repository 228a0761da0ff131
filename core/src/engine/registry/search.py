"""Searching a registry by name: the Docker Hub's v1 search, which private indexes imitate."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

from engine.errors import InvalidParameter
from engine.registry.auth import RegistryAuth
from engine.registry.client import Registries
from engine.registry.endpoints import Endpoint, endpoints
from engine.registry.errors import RegistryError, describe_status

__all__ = ["search"]

_INDEX = "index.docker.io"
_BODY_LIMIT = 4 * 1024 * 1024
_DEFAULT_LIMIT, _MAX_LIMIT = 25, 100


class _Found(msgspec.Struct):
    name: str = ""
    description: str | None = None
    star_count: int = 0
    is_official: bool = False
    is_automated: bool = False


class _Answer(msgspec.Struct):
    results: list[_Found] = []


def search(registries: Registries, term: str, limit: int, auth: RegistryAuth) -> list[Mapping[str, object]]:
    """Repositories that match ``term`` (``registry.example/term`` asks that registry), best first. Blocks."""
    if not 0 <= limit <= _MAX_LIMIT:
        raise InvalidParameter(f"limit {limit} is outside the range of [1, {_MAX_LIMIT}]")
    if "://" in term:
        raise InvalidParameter(f"invalid repository name: repository name ({term}) should not have a scheme")
    host, slash, rest = term.partition("/")
    private = bool(slash) and ("." in host or ":" in host or host == "localhost")
    if private:
        places, name = endpoints(host, registries.options), rest
    else:
        places, name = [Endpoint(f"https://{_INDEX}")], term.removeprefix("library/")
    query = urlencode({"q": name, "n": str(limit or _DEFAULT_LIMIT)})
    headers = {"X-Docker-Token": "true"}
    if auth.basic:
        headers["Authorization"] = auth.basic
    failure: RegistryError | None = None
    for place in places:
        url = f"{place.url}/v1/search?{query}"
        try:
            with registries.transport.request("GET", url, endpoint=place, headers=headers, attempts=2) as response:
                status, body = response.status, response.read(_BODY_LIMIT)
        except RegistryError as error:
            failure = error
            continue
        if status != 200:
            raise RegistryError(f"Unexpected status code {status} ({describe_status(status)})", status=status)
        try:
            return [msgspec.to_builtins(found) for found in msgspec.json.decode(body, type=_Answer).results]
        except msgspec.DecodeError as error:
            raise RegistryError("error decoding registry search results: invalid JSON") from error
    assert failure is not None, "there is a place to ask"
    raise failure
