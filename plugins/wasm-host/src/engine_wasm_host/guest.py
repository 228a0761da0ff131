"""The source the launcher preloads and the monitors call (`engine.drivers.runtime.Launch.guest`).

The container's process has two threads that matter: the first waits for signals, since as process 1 of its namespace it
gets only those it asks for and Python sees none while a guest computes; the other runs the guest.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from engine_wasm_host import command, sandbox, serving

# Their default is to do nothing.
_IGNORED = frozenset((signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT))
# These belong to the instruction that caused them, and wasmtime makes traps of them.
_OWN = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS))

_plans: dict[str, dict[str, Any]] = {}


def plan_of(bundle: str) -> dict[str, Any]:
    """The plan the driver wrote."""
    if bundle not in _plans:
        with open(bundle + "/wasm.json", "rb") as file:
            _plans[bundle] = json.load(file)
    return _plans[bundle]


def prepare(bundle: str) -> None:
    """In the monitor: the fork that follows makes the first process of the container's pid namespace."""
    sandbox.share_processes(plan_of(bundle)["namespaces"])


def main(bundle: str, report: int) -> int:
    """Be the container's process."""
    plan = plan_of(bundle)
    return run(plan, report, serving.load if plan["kind"] == "http" else command.load)


def run(plan: dict[str, Any], report: int, load: Callable[[dict[str, Any]], command.Loaded]) -> int:
    """Enclose this process, then run what ``load`` returned; never returns once the guest runs.

    ``load`` sees the host's files; what it returns is called inside the container and still with privileges, so that
    it can bind any port, and returns what runs without them.
    """
    try:
        sandbox.join_cgroups(plan["cgroups"])
        loaded = load(plan)
        sandbox.enclose(plan)
        guest = loaded()
        sandbox.renounce(plan)
    except Exception as error:
        os.write(report, str(error).encode()[:4000])
        return 1
    _be_process_one(guest, report)


def _be_process_one(guest: Callable[[], int], report: int) -> NoReturn:
    signals = signal.valid_signals() - _OWN - {signal.SIGKILL, signal.SIGSTOP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_run_guest, args=(guest, report), daemon=True).start()
    while True:
        number = signal.sigwait(signals)
        if number not in _IGNORED:
            os._exit(128 + number)


def _run_guest(guest: Callable[[], int], report: int) -> None:
    code = command.TRAPPED
    try:
        os.write(report, b"\0")
        code = guest()
    except BaseException as error:  # whatever a guest provokes ends its container, with a reason
        text = f"{error}".strip() or type(error).__name__
        os.write(2, f"engine: {text}\n".encode())
        os.write(report, text.splitlines()[-1].strip().encode())  # the cause; the backtrace is in the log
    finally:
        os._exit(code)
