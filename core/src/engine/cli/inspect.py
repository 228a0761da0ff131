"""``inspect`` for every kind of object, as JSON or through a template."""

from __future__ import annotations

import json

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.containers import INSPECT_FORMAT_HELP
from engine.cli.failures import ApiFailure, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

    Getter = Callable[[str], Any]

PATHS = {
    "container": "/containers/{}/json", "image": "/images/{}/json", "network": "/networks/{}", "volume": "/volumes/{}",
    "service": "/services/{}", "task": "/tasks/{}", "node": "/nodes/{}", "plugin": "/plugins/{}/json",
    "secret": "/secrets/{}", "config": "/configs/{}",
}  # fmt: skip
CLUSTER = ("service", "task", "node", "secret", "config")


def show_objects(session: Session, names: Iterable[str], template: str, get: Getter, *, escape: bool = False) -> None:
    """Fetch each object and print them all; objects that were found are printed even when others were not."""
    render = _renderer(template)
    found, failures = [], []
    for name in names:
        try:
            found.append(get(name))
        except ApiFailure as failure:
            failures.append(str(failure))
        except Failure as failure:
            failures.append(str(failure))
            break
    if render is not None:
        for value in found:
            session.out(render(value))
    else:
        compact = {"separators": (",", ":")} if template else {"indent": 4}
        text = json.dumps(found, ensure_ascii=False, **compact)
        if escape:
            from engine.cli.template_values import escape_html

            text = escape_html(text)
        session.out(text)
    if failures:
        if render is not None and not found:
            session.out("")
        raise Failure("\n".join(failures))


def _renderer(template: str) -> Callable[[Any], str] | None:
    """The template to apply to each object; None for JSON."""
    if template in ("", "json"):
        return None
    from engine.cli.templates import Template, TemplateError

    try:
        parsed = Template(template)
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}", 64) from None

    def render(value: Any) -> str:
        try:
            return parsed.render(value)
        except TemplateError as error:
            print()
            raise Failure(f"template parsing error: {error}") from None

    return render


def _getter(session: Session, kind: str, *, size: bool = False, query: dict[str, Any] | None = None) -> Getter:
    def get(name: str) -> Any:
        extra = {"size": True} if size and kind == "container" else {}
        return session.client.get(PATHS[kind].format(segment(name)), {**(query or {}), **extra})

    return get


def _security(session: Session) -> Getter:
    def get(name: str) -> Any:
        return session.client.get(f"/engine/containers/{segment(name)}/security")

    return get


def inspect(session: Session, flags: Flags) -> None:
    """Inspect objects of any kind, or of the kind named by --type."""
    if flags["security"]:
        show_objects(session, flags.arguments, flags["format"], _security(session))
        return
    kind = flags["type"]
    if flags.changed("type") and not kind:
        raise Failure('type is empty: must be one of "config", "container", "image", "network", "node", "plugin", '
                      '"secret", "service", "task", "volume"')  # fmt: skip
    if kind and kind not in PATHS:
        raise Failure(f'unknown type: "{kind}": must be one of "config", "container", "image", "network", "node", '
                      '"plugin", "secret", "service", "task", "volume"')  # fmt: skip

    if flags["at"]:
        if kind not in ("", "container"):
            raise Failure("--at is about containers")
        show_objects(session, flags.arguments, flags["format"], _past(session, flags["at"]))
        return

    def get(name: str) -> Any:
        for candidate in [kind] if kind else PATHS:
            try:
                return _getter(session, candidate, size=flags["size"])(name)
            except ApiFailure as failure:
                gone = failure.status == 404 or (candidate in CLUSTER and failure.status in (501, 503))
                if kind or not gone:
                    raise
        raise Failure(f"Error: No such object: {name}")

    show_objects(session, flags.arguments, flags["format"], get)


def _past(session: Session, moment: str) -> Getter:
    """Containers as they were at ``moment``."""
    from engine.cli.history import at
    from engine.cli.units import timestamp

    try:
        when = timestamp(moment)
    except ValueError as error:
        raise Failure(f'invalid value for "at": {error}') from None

    def get(name: str) -> Any:
        found = at(session.client, name, when)
        if found is None:
            raise Failure(f"Error: No such container at {moment}: {name}")
        return found

    return get


def _of(kind: str) -> Callable[[Session, Flags], None]:
    def run(session: Session, flags: Flags) -> None:
        query: dict[str, Any] = {}
        if kind == "container" and flags["at"]:
            show_objects(session, flags.arguments, flags["format"], _past(session, flags["at"]))
            return
        if kind == "network" and flags["verbose"]:
            query["verbose"] = True
        if kind == "image" and flags["platform"]:
            from engine.cli.transfer import _platform

            query["platform"] = _platform(flags["platform"])
        show_objects(session, flags.arguments, flags["format"],
                     _getter(session, kind, size=bool(flags.get("size")), query=query))  # fmt: skip

    return run


_AT = "- at string Show the state at this time in the past (timestamp, or a duration such as 2h)"
_FORMAT = f"f format string {INSPECT_FORMAT_HELP}"

COMMANDS = {
    "inspect": Command(inspect, "[OPTIONS] NAME|ID [NAME|ID...]", f"""
{_AT}
{_FORMAT}
- security bool Show what confines a running container
s size bool Display total file sizes if the type is container
- type string Only inspect objects of the given type
""", arguments=(1, None)),
    "container inspect": Command(_of("container"), "[OPTIONS] CONTAINER [CONTAINER...]",
                                 f"{_AT}\n{_FORMAT}\ns size bool Display total file sizes", arguments=(1, None)),
    "image inspect": Command(_of("image"), "[OPTIONS] IMAGE [IMAGE...]",
                             f"{_FORMAT}\n- platform string Inspect a specific platform of the multi-platform image",
                             arguments=(1, None)),
    "network inspect": Command(_of("network"), "[OPTIONS] NETWORK [NETWORK...]",
                               f"{_FORMAT}\nv verbose bool Verbose output for diagnostics", arguments=(1, None)),
    "volume inspect": Command(_of("volume"), "[OPTIONS] VOLUME [VOLUME...]", _FORMAT, arguments=(1, None)),
}  # fmt: skip
