"""``registry serve``: hands over to the registry plugin, which has the options and the help."""

from __future__ import annotations

import os
import sys

from engine.cli.commands import Command
from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from engine.cli.flags import Flags
    from engine.cli.session import Session

_OPTIONS = ("addr", "root", "tls-cert", "tls-key")


def serve(session: Session, flags: Flags) -> None:
    """Become the registry."""
    from importlib.util import find_spec

    if find_spec("engine_registry") is None:
        raise Failure("the registry is not installed: install the package engine-registry")
    options = [part for name in _OPTIONS if flags[name] for part in (f"--{name}", flags[name])]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-I", "-m", "engine_registry", *options])  # noqa: S606 - ourselves


COMMANDS = {
    "registry serve": Command(serve, "[OPTIONS]", """
- addr string Address to listen on (default "127.0.0.1:5000")
- root string Directory to keep images in (default "/var/lib/engine-registry")
- tls-cert string Certificate to speak TLS with
- tls-key string Key of the certificate
"""),
}  # fmt: skip
