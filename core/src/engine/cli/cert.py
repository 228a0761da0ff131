"""Certificates for a daemon that is reached by TCP: a CA, one for the server, one for each client."""

from __future__ import annotations

import os

from engine.cli.commands import Command
from engine.cli.failures import Failure
from engine.cli.tables import aligned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from engine.cli.flags import Flags
    from engine.cli.session import Session

DIRECTORY = "/etc/engine/tls"
KINDS = ("ca.pem", "cert.pem")


def _certificates() -> ModuleType:
    """The part that needs the package cryptography, which no other command does."""
    try:
        from importlib import import_module

        return import_module("engine.certificates")
    except ModuleNotFoundError as error:
        raise Failure(f"engine cert needs the Python package {error.name}: pip install engine-core[cert]") from None


def _days(flags: Flags) -> dict[str, int]:
    return {"days": flags["days"]} if flags.changed("days") else {}


def authority(session: Session, flags: Flags) -> None:
    """Make a CA."""
    from pathlib import Path

    _certificates().make_ca(Path(flags["dir"]), **_days(flags))
    session.out(f"{flags['dir']}/ca.pem")


def server(session: Session, flags: Flags) -> None:
    """Make a server's certificate, and say how to use it."""
    from pathlib import Path

    directory = flags["out"] or flags["dir"]
    _certificates().make_server(Path(directory), flags.arguments, ca=Path(flags["dir"]), **_days(flags))
    session.out(f"{directory}/cert.pem")
    files = (
        ""
        if directory == DIRECTORY
        else "".join(
            f" --tls{option} {directory}/{name}.pem"
            for option, name in (("cacert", "ca"), ("cert", "cert"), ("key", "key"))
        )
    )
    session.warn(f"Start the daemon with: engined --tlsverify{files} -H tcp://0.0.0.0:2376 -H unix:///run/engine.sock")


def client(session: Session, flags: Flags) -> None:
    """Make a client's certificate, and say how to use it."""
    from pathlib import Path

    name = flags.arguments[0]
    directory = os.path.abspath(flags["out"] or name)
    _certificates().make_client(Path(directory), name, ca=Path(flags["dir"]), **_days(flags))
    session.out(f"{directory}/cert.pem")
    session.warn(f"Use it with: DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH={directory} DOCKER_HOST=tcp://HOST:2376")


def ls(session: Session, flags: Flags) -> None:
    """List the certificates of a directory and when they end."""
    from pathlib import Path

    certificates = _certificates()
    rows = [("FILE", "KIND", "NAME", "ISSUER", "NOT AFTER")]
    for directory in flags.arguments or [flags["dir"]]:
        paths = [f"{directory}/{name}" for name in KINDS if os.path.exists(f"{directory}/{name}")]
        if not paths:
            raise Failure(f"no certificates in {directory}")
        for path in paths:
            found = certificates.describe(Path(path))
            names = ",".join(found.names) or found.name
            rows.append((path, found.kind, names, found.issuer, f"{found.not_after:%Y-%m-%d %H:%M:%S} UTC"))
    session.out(*aligned(rows))


_DIR = f"- dir string={DIRECTORY} Directory of the CA (default {DIRECTORY})"
_OUT = "o out string Directory to write to"
_DAYS = "- days int Days until it ends"

COMMANDS = {
    "cert ca": Command(authority, "[OPTIONS]", f"{_DIR}\n{_DAYS}"),
    "cert server": Command(server, "[OPTIONS] HOST [HOST...]", f"{_DIR}\n{_OUT}\n{_DAYS}", arguments=(1, None)),
    "cert client": Command(client, "[OPTIONS] NAME", f"{_DIR}\n{_OUT}\n{_DAYS}", arguments=(1, 1)),
    "cert ls": Command(ls, "[OPTIONS] [DIRECTORY...]", _DIR, arguments=(0, None)),
}  # fmt: skip
