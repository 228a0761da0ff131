"""Getting along with iptables: where another tool made FORWARD drop by default, our bridges need an accept there too.

A verdict "accept" ends one table only; a drop in any table wins. So when an iptables (legacy or nft) FORWARD chain has
the policy DROP, each of our bridges gets two accepts in ``DOCKER-USER`` (or at the head of FORWARD), marked with our
name. Our own table still decides what those packets may do. Without iptables on the host there is nothing to do.
"""

from __future__ import annotations

import functools
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

__all__ = ["accept", "drops", "withdraw"]

_log = logging.getLogger(__name__)

_LEGACY = {"iptables-legacy": "/proc/net/ip_tables_names", "ip6tables-legacy": "/proc/net/ip6_tables_names"}
_NFT = {"iptables-nft": "ip", "ip6tables-nft": "ip6"}
_TIMEOUT = 10


def accept(owner: str, bridge: str, nft_drops: Callable[[str], bool]) -> None:
    """Let packets of ``bridge`` pass a FORWARD chain that drops by default; never raises.

    ``nft_drops(family)`` tells whether iptables-nft's chain does.
    """
    for program in [*_legacy(), *(program for program, family in _NFT.items() if nft_drops(family))]:
        rules = _run(program, "-S")
        if rules is None or "-P FORWARD DROP" not in rules.splitlines():
            continue
        chain = "DOCKER-USER" if "-N DOCKER-USER" in rules.splitlines() else "FORWARD"
        for rule in _rules(owner, bridge):
            if _run(program, "-C", chain, *rule) is None and _run(program, "-I", chain, *rule) is None:
                _log.warning(
                    "forwarding is dropped by iptables and cannot be allowed for a bridge",
                    extra={"bridge": bridge, "program": program},
                )


def withdraw(owner: str, bridge: str, nft_drops: Callable[[str], bool]) -> None:
    """Remove what `accept` added; never raises."""
    for program in [*_legacy(), *(program for program, family in _NFT.items() if nft_drops(family))]:
        rules = _run(program, "-S") or ""
        if f"--comment {owner} " not in rules:
            continue
        for chain in ("DOCKER-USER", "FORWARD"):
            for rule in _rules(owner, bridge):
                if _run(program, "-C", chain, *rule) is not None:
                    _run(program, "-D", chain, *rule)


def drops(owner: str, bridge: str, nft_drops: Callable[[str], bool]) -> bool:
    """Whether a FORWARD chain drops by default and lacks our accept; never raises."""
    for program in [*_legacy(), *(program for program, family in _NFT.items() if nft_drops(family))]:
        rules = (_run(program, "-S") or "").splitlines()
        chain = "DOCKER-USER" if "-N DOCKER-USER" in rules else "FORWARD"
        if "-P FORWARD DROP" in rules and any(_run(program, "-C", chain, *r) is None for r in _rules(owner, bridge)):
            return True
    return False


def _rules(owner: str, bridge: str) -> list[tuple[str, ...]]:
    comment = ("-m", "comment", "--comment", owner)
    return [("-i", bridge, *comment, "-j", "ACCEPT"), ("-o", bridge, *comment, "-j", "ACCEPT")]


def _legacy() -> list[str]:
    """The legacy variants that have a filter table now; asking them must not create one."""
    found = []
    for program, names in _LEGACY.items():
        try:
            active = "filter" in Path(names).read_text().split()
        except OSError:
            active = False
        if active and _which(program):
            found.append(program)
    return found


@functools.cache
def _which(program: str) -> str | None:
    return shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")


def _run(program: str, *arguments: str) -> str | None:
    """Its output; None when it failed."""
    try:
        done = subprocess.run(
            [_which(program) or program, "-w", "5", *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
