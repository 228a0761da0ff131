"""What attach, start -a, run and exec share: the terminal's state, signals passed on, and the pump.

Signals come through ``_signal``: the signal module would import enum, and that shows in the time of ``run``.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from engine.cli import terminal
from engine.cli.client import segment
from engine.cli.failures import ApiFailure, Failure
from engine.cli.streams import Pump, in_background

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.session import Session

PASSED_ON = ("HUP INT QUIT ABRT USR1 USR2 ALRM TERM STKFLT CONT TSTP TTIN TTOU VTALRM PROF IO PWR").split()
RESIZE_ATTEMPTS = 10


def check_input_terminal(attach: bool, tty: bool) -> None:
    """Docker's complaint about ``-it`` without a terminal."""
    if attach and tty and not os.isatty(0):
        raise Failure("the input device is not a TTY")


def post_apart(session: Session, path: str, query: dict[str, Any]) -> None:
    """POST on a connection of its own: signal handlers and threads interrupt whatever uses the others."""
    client = session.client.twin()
    try:
        client.post(path, query)
    finally:
        client.close()


class _Handlers:
    """A context in which signals have other handlers."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    def take(self, number: int, handler: Any) -> None:
        """Handle a signal until the context ends."""
        self._previous[number] = _signal.signal(number, handler)

    def __exit__(self, *reason: object) -> None:
        for number, handler in self._previous.items():
            _signal.signal(number, _signal.SIG_DFL if handler is None else handler)


class SignalsPassedOn(_Handlers):
    """While in this context, signals go to the container instead of ending the client."""

    def __init__(self, session: Session, container: str, *, wanted: bool = True) -> None:
        super().__init__()
        self._session = session
        self._path = f"/containers/{segment(container)}/kill"
        self._names: dict[int, str] = {}
        for name in PASSED_ON if wanted else ():
            number = getattr(_signal, f"SIG{name}", None)
            if number is not None:
                self._names[number] = name

    def __enter__(self) -> SignalsPassedOn:
        for number in self._names:
            self.take(number, self._forward)
        return self

    def _forward(self, number: int, frame: object) -> None:
        try:
            post_apart(self._session, self._path, {"signal": self._names[number]})
        except Failure:  # like docker: the container may not run yet, or no longer
            return


class Resized(_Handlers):
    """While in this context a container or exec (``path``) follows the terminal's size; nothing without a terminal."""

    def __init__(self, session: Session, path: str, *, wanted: bool) -> None:
        super().__init__()
        self._session = session
        self._path = path
        self._wanted = wanted and os.isatty(1)

    def __enter__(self) -> Resized:
        if self._wanted:
            self.take(_signal.SIGWINCH, self._resize)
            if not self._resize():
                in_background(self._retry)
        return self

    def _resize(self, number: int = 0, frame: object = None) -> bool:
        height, width = terminal.size()
        if not (height and width):
            return True
        try:
            post_apart(self._session, f"{self._path}/resize", {"h": height, "w": width})
        except ApiFailure:
            return False
        return True

    def _retry(self) -> None:
        """The process may not be there yet right after a start."""
        import time

        for attempt in range(RESIZE_ATTEMPTS):
            time.sleep((attempt + 1) * 0.01)
            if self._resize():
                return


def pump(connection: Any, leftover: bytes, *, stdin: bool, stdout: bool, stderr: bool, tty: bool, keys: str) -> None:
    """Connect the user to a hijacked stream until it ends; raw terminal and detach keys when ``tty``.

    Raises `engine.cli.streams.Detached`.
    """
    flow = Pump(connection, leftover, stdin=0 if stdin else None, stdout=1 if stdout or (stderr and tty) else None,
                stderr=2 if stderr else None, terminal=tty,
                escape=terminal.detach_keys(keys) if stdin and tty else b"")  # fmt: skip
    if stdin and tty and os.isatty(0):
        with terminal.Raw(0):
            flow.run()
    else:
        flow.run()


def keys_for(session: Session, flag: str) -> str:
    """The detach keys in force; checked."""
    keys = flag or session.config.get("detachKeys") or ""
    terminal.detach_keys(keys)
    return str(keys)
