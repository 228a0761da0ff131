"""``logs``."""

from __future__ import annotations

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from engine.cli.flags import Flags
    from engine.cli.session import Session


def logs(session: Session, flags: Flags) -> None:
    """Print a container's output."""
    from engine.cli.streams import write_all, write_frames
    from engine.cli.units import timestamp

    name = flags.arguments[0]
    client = session.client
    query = {
        "stdout": True, "stderr": True, "tail": flags["tail"], "follow": flags["follow"] or None,
        "timestamps": flags["timestamps"] or None, "details": flags["details"] or None,
    }  # fmt: skip
    for bound in ("since", "until"):
        try:
            query[bound] = timestamp(flags[bound])
        except ValueError as error:
            raise Failure(f'invalid value for "{bound}": {error}') from None
    response = client.request("GET", f"/containers/{segment(name)}/logs", query)
    content = response.headers.get("content-type", "")
    if content == "application/vnd.docker.multiplexed-stream":
        raw = False
    elif content == "application/vnd.docker.raw-stream" and response.headers.get("api-version", "") >= "1.42":
        raw = True
    else:
        raw = client.get(f"/containers/{segment(name)}/json")["Config"]["Tty"]
    if raw:
        for piece in response:
            write_all(1, piece)
    else:
        write_frames(response, 1, 2)


COMMANDS = {
    "logs": Command(logs, "[OPTIONS] CONTAINER", """
- details bool Show extra details provided to logs
f follow bool Follow log output
- since string Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
n tail string=all Number of lines to show from the end of the logs (default "all")
t timestamps bool Show timestamps
- until string Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
""", arguments=(1, 1)),
}  # fmt: skip
