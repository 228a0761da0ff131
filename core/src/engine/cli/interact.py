"""What attach, start -a, run and exec share: the terminal's state, signals passed on, and the pump."""

from __future__ import annotations

import contextlib
import os
import signal

from engine.cli import terminal
from engine.cli.client import segment
from engine.cli.failures import ApiFailure, Failure
from engine.cli.streams import Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from engine.cli.session import Session

PASSED_ON = ("HUP INT QUIT ABRT USR1 USR2 ALRM TERM STKFLT CONT TSTP TTIN TTOU VTALRM PROF IO PWR").split()


def check_input_terminal(attach: bool, tty: bool) -> None:
    """Docker's complaint about ``-it`` without a terminal."""
    if attach and tty and not os.isatty(0):
        raise Failure("the input device is not a TTY")


@contextlib.contextmanager
def signals_passed_on(session: Session, container: str) -> Iterator[None]:
    """While in this context, signals go to the container instead of ending the client."""

    def forward(number: int, frame: object) -> None:
        name = signal.Signals(number).name.removeprefix("SIG")
        with contextlib.suppress(Failure):
            fresh_client(session).post(f"/containers/{segment(container)}/kill", {"signal": name})

    previous = {}
    for name in PASSED_ON:
        number = getattr(signal, f"SIG{name}", None)
        if number is not None:
            previous[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def fresh_client(session: Session) -> Any:
    """A client that shares no connection with one that may be in use (signal handlers, threads)."""
    from engine.cli.client import Client

    client = Client(session.client.host)
    client.prefix, client.headers, client._tls = session.client.prefix, session.client.headers, session.client._tls
    return client


@contextlib.contextmanager
def resized(session: Session, path: str) -> Iterator[None]:
    """Give a container or exec (``path``) the terminal's size, now and whenever it changes."""
    client = fresh_client(session)

    def resize(number: int = 0, frame: object = None) -> None:
        height, width = terminal.size()
        if height and width:
            with contextlib.suppress(ApiFailure):
                client.post(f"{path}/resize", {"h": height, "w": width})

    previous = signal.signal(signal.SIGWINCH, resize)
    try:
        resize()
        yield
    finally:
        signal.signal(signal.SIGWINCH, previous)


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
