"""How a command fails: the text for standard error and the exit code, nothing else."""

from __future__ import annotations

from engine.errors import EngineError


class Failure(EngineError):
    """Ends the command: ``str(failure)`` goes to standard error (nothing when empty), `exit_code` to the shell."""

    def __init__(self, text: str = "", exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class ApiFailure(Failure):
    """The daemon answered with an error; `status` is the HTTP status, `reason` its message."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"Error response from daemon: {reason}")
        self.status = status
        self.reason = reason


class Unreachable(Failure):
    """No daemon answers at the address in use."""
