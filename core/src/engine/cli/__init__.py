"""The `engine` command: a client of the Engine API with the docker CLI's commands, flags and output.

Start-up time is a feature: this package imports only what the command at hand needs, the standard library's
argparse, http.client and asyncio never, and no third-party package at all. `commands` is the table of commands;
each names the module that has it, which is imported when the command is run.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from engine.cli.failures import Failure
    from engine.errors import EngineError

    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        from engine.cli.commands import dispatch

        code = dispatch(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except Failure as failure:
        code = failure.exit_code
        _flush()
        if str(failure):
            print(failure, file=sys.stderr)
    except EngineError as error:
        code = 1
        _flush()
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        _flush()
    except BrokenPipeError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 141
    return code


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
