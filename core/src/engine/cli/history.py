"""A container's state at a time in the past, from the engine's history of events (``inspect --at``)."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

ZERO = "0001-01-01T00:00:00Z"
_NO_LABELS = ("image", "name", "exitCode", "execDuration", "signal", "oldName", "execID", "height", "width")


def replay(events: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The container as its events, oldest first, tell; None when they tell of none, or of its removal."""
    view: dict[str, Any] | None = None
    for event in events:
        action = event["Action"]
        attributes = (event.get("Actor") or {}).get("Attributes") or {}
        moment = _rfc3339(event.get("timeNano") or event["time"] * 10**9)
        if view is None or action == "create":
            view = _new(event, attributes, moment if action == "create" else ZERO)
        view["Name"] = f"/{attributes.get('name', '')}"
        state = view["State"]
        name, _, detail = action.partition(": ")
        if name == "start":
            state.update(Status="running", Running=True, Paused=False, Restarting=False, OOMKilled=False,
                         ExitCode=0, StartedAt=moment)  # fmt: skip
        elif name == "die":
            state.update(Status="exited", Running=False, Paused=False, ExitCode=int(attributes.get("exitCode", 0)),
                         FinishedAt=moment)  # fmt: skip
        elif name == "pause":
            state.update(Status="paused", Paused=True, Running=True)
        elif name == "unpause":
            state.update(Status="running", Paused=False, Running=True)
        elif name == "oom":
            state["OOMKilled"] = True
        elif name == "health_status":
            state["Health"] = {"Status": detail}
        elif name == "destroy":
            view = None
    return view


def _new(event: dict[str, Any], attributes: dict[str, str], created: str) -> dict[str, Any]:
    return {
        "Id": event["Actor"]["ID"],
        "Created": created,
        "Name": "",
        "Config": {
            "Image": attributes.get("image", ""),
            "Labels": {key: value for key, value in attributes.items() if key not in _NO_LABELS},
        },
        "State": {
            "Status": "created", "Running": False, "Paused": False, "Restarting": False, "OOMKilled": False,
            "ExitCode": 0, "StartedAt": ZERO, "FinishedAt": ZERO,
        },
    }  # fmt: skip


def _rfc3339(nanoseconds: int) -> str:
    moment = time.gmtime(nanoseconds // 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{nanoseconds % 10**9:09d}Z"


def at(client: Any, name: str, moment: str) -> dict[str, Any] | None:
    """The container called ``name`` as it was at ``moment`` (seconds since the epoch, as the API writes them)."""
    import json

    from engine.cli.client import segment
    from engine.cli.failures import ApiFailure

    current: dict[str, Any] = {}
    try:
        current = client.get(f"/containers/{segment(name)}/json")
    except ApiFailure as failure:
        if failure.status != 404:
            raise
    wanted = {"type": {"container": True}, "container": {current.get("Id") or name.lstrip("/"): True}}
    query = {"since": "1", "until": moment, "filters": json.dumps(wanted)}
    events = list(client.request("GET", "/events", query).messages())
    if not current and events:  # a name may have belonged to several: the last of them is meant
        last = events[-1]["Actor"]["ID"]
        events = [event for event in events if event["Actor"]["ID"] == last]
    past = replay(events)
    if past is None or not current:
        return past
    fixed = ("Path", "Args", "Image", "Config", "HostConfig", "Platform", "Driver", "Mounts")
    return {**past, "Created": current["Created"], **{key: current[key] for key in fixed if key in current}}
