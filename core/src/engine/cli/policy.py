"""Policies: trying one out before a daemon enforces it."""

from __future__ import annotations

import subprocess
import sys

from engine.cli.commands import Command
from engine.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from engine.cli.flags import Flags
    from engine.cli.session import Session

_MODULE = "engine_security_policy"


def test(session: Session, flags: Flags) -> int:
    """Check policy files and run the tests they contain, by the plugin's own code."""
    from importlib.util import find_spec

    if find_spec(_MODULE) is None:
        raise Failure("policies are enforced by the plugin engine-security-policy, which is not installed")
    return subprocess.run([sys.executable, "-I", "-m", _MODULE, "test", *flags.arguments]).returncode


COMMANDS = {
    "policy test": Command(test, "FILE [FILE...]", arguments=(1, None)),
}
