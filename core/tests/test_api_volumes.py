from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from engine.api import volumes
from engine.api.router import Query, Request
from engine.model.volume import VolumeRecord

RECORD = VolumeRecord(name="v", driver="local", created_at="2026-01-01T00:00:00Z", mountpoint="/v/_data")


class FakeVolumes:
    def __init__(self):
        self.calls = []

    def list(self, filters):
        self.calls.append(("list", dict(filters)))
        return [RECORD]

    async def create(self, *args):
        self.calls.append(("create", *args))
        return RECORD

    async def remove(self, name, *, force):
        self.calls.append(("remove", name, force))

    async def prune(self, filters):
        self.calls.append(("prune", dict(filters)))
        return {"VolumesDeleted": [], "SpaceReclaimed": 0}


class Body:
    def __init__(self, body):
        self.body = body

    async def read_body(self, limit):
        return self.body


def call(method, path, *, params=None, query="", body=b"", version=(1, 50)):
    """The response's status and JSON, and what the service was asked."""
    service = FakeVolumes()
    route = next(each for each in volumes.ROUTES if (each.method, each.pattern) == (method, path))
    request = Request(
        method, path, params or {}, Query(query), {"content-type": "application/json"}, version, connection=Body(body)
    )
    response = asyncio.run(route.handler(SimpleNamespace(volumes=service), request))
    return response.status, json.loads(response.body) if response.body else None, service.calls


def test_create_passes_everything_on_and_answers_201():
    body = b'{"Name": "v", "DriverOpts": {"type": "tmpfs"}, "Labels": null}'
    status, answer, calls = call("POST", "/volumes/create", body=body)
    assert status == 201
    assert calls == [("create", "v", "", {"type": "tmpfs"}, None)]
    assert answer == {
        "CreatedAt": "2026-01-01T00:00:00Z", "Driver": "local", "Labels": None, "Mountpoint": "/v/_data", "Name": "v",
        "Options": None, "Scope": "local",
    }  # fmt: skip


def test_list_is_an_object_with_warnings():
    status, answer, calls = call("GET", "/volumes", query='filters={"dangling":{"true":true}}')
    assert (status, answer["Warnings"], [each["Name"] for each in answer["Volumes"]]) == (200, None, ["v"])
    assert calls == [("list", {"dangling": ["true"]})]


@pytest.mark.parametrize(("query", "force"), [("", False), ("force=1", True)])
def test_remove_answers_nothing(query, force):
    assert call("DELETE", "/volumes/{name:path}", params={"name": "v"}, query=query) == (
        204, None, [("remove", "v", force)],
    )  # fmt: skip


@pytest.mark.parametrize(("version", "filters"), [((1, 41), {"all": ["true"]}), ((1, 42), {})])
def test_prune_takes_named_volumes_for_old_clients_only(version, filters):
    _, _, calls = call("POST", "/volumes/prune", version=version)
    assert calls == [("prune", filters)]
