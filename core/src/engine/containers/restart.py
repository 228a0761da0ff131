"""Restart policies: whether a container that ended starts again, and after how long.

The rules are Docker's: the wait doubles from 100 ms to a minute and starts over once the container ran for ten
seconds; ``on-failure`` looks at the exit code and its own count; a container the user stopped stays stopped. Ours is
``on-unhealthy``: as ``on-failure``, and a container whose health check fails is ended as if it had failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.model.container import RestartPolicy

__all__ = ["Decision", "RestartTracker", "restarts_at_boot"]

FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
HEALTHY_AFTER = 10.0


@dataclass(frozen=True, slots=True)
class Decision:
    """``delay`` in seconds; meaningless without ``restart``."""

    restart: bool
    delay: float = 0.0


class RestartTracker:
    """Counts one container's restarts since it was last started by hand. Pure: it is told times, it reads no clock."""

    __slots__ = ("count", "delay")

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.delay = 0.0

    def decide(
        self, policy: RestartPolicy, *, exit_code: int, stopped_by_user: bool, ran_for: float, unhealthy: bool = False
    ) -> Decision:
        """What to do after an exit; a decision to restart is counted. ``unhealthy``: we ended it because it was."""
        if ran_for >= HEALTHY_AFTER:
            self.delay = 0.0
        if stopped_by_user or not _wants_restart(policy, exit_code or int(unhealthy), self.count):
            return Decision(False)
        self.delay = min(self.delay * 2 if self.delay else FIRST_DELAY, LONGEST_DELAY)
        self.count += 1
        return Decision(True, self.delay)


def restarts_at_boot(policy: RestartPolicy, *, exit_code: int, stopped_by_user: bool, count: int) -> bool:
    """Whether a container found stopped when the engine starts is started: ``always`` even after a manual stop."""
    if policy.name != "always" and stopped_by_user:
        return False
    return _wants_restart(policy, exit_code, count)


def _wants_restart(policy: RestartPolicy, exit_code: int, count: int) -> bool:
    match policy.name:
        case "always" | "unless-stopped":
            return True
        case "on-failure" | "on-unhealthy":
            return exit_code != 0 and (policy.maximum_retry_count == 0 or count < policy.maximum_retry_count)
        case _:
            return False
