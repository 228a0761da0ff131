"""The source of a Spin container's process (`engine.drivers.runtime.Launch.guest`)."""

from __future__ import annotations

import os
import sys
from typing import Any

# The launcher knows the packages of the plan's search path; this file is found beside its own package.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from engine_runtime_spin import application
from engine_wasm_host import guest as host


def prepare(bundle: str) -> None:
    """In the monitor, before the fork."""
    host.prepare(bundle)


def main(bundle: str, report: int) -> int:
    """Be the container's process."""
    plan: dict[str, Any] = host.plan_of(bundle)
    return host.run(plan, report, application.load)
