"""Network policies: who may open connections to whom, by the labels of containers.

A policy allows or denies connections from containers that have some labels to containers that have some others, at some
ports or at all. What an allowing policy allows no denying one forbids; what no policy is about is as without policies
(containers of one network reach each other). A policy becomes pairs of addresses, which drivers hold in one set each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from engine.drivers.network import AddressPolicy
from engine.errors import InvalidParameter

__all__ = ["KIND", "Member", "PolicyRecord", "address_policies", "check", "denied_by"]

KIND = "network-policy"


class PolicyRecord(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A policy as it is stored and shown. Empty labels select every container; no ports mean all."""

    name: str
    action: str = "deny"
    source: dict[str, str] = msgspec.field(default_factory=dict, name="From")
    target: dict[str, str] = msgspec.field(default_factory=dict, name="To")
    ports: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A running container: its labels, and its addresses on networks whose driver enforces policies."""

    labels: Mapping[str, str]
    addresses: tuple[str, ...]


def check(policy: PolicyRecord) -> None:
    """Raise `InvalidParameter` for a policy that cannot be."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", policy.name):
        raise InvalidParameter(f"invalid policy name {policy.name!r}: 1 to 63 letters, digits, '-', '_' and '.'")
    if policy.action not in ("allow", "deny"):
        raise InvalidParameter(f'invalid action "{policy.action}": allow or deny')
    if not policy.source and not policy.target:
        raise InvalidParameter("a policy needs labels: --from, --to or both")
    for text in policy.ports:
        _port(text)


def _port(text: str) -> tuple[str, int]:
    number, _, protocol = text.partition("/")
    protocol = protocol or "tcp"
    if protocol not in ("tcp", "udp", "sctp") or not number.isascii() or not number.isdigit():
        raise InvalidParameter(f'invalid port specification: "{text}"')
    if not 0 < int(number) <= 65535:
        raise InvalidParameter(f'invalid port specification: "{text}"')
    return protocol, int(number)


def _selects(labels: Mapping[str, str], member: Mapping[str, str]) -> bool:
    """A label with an empty value asks only that there be one of that name."""
    return all(key in member and value in ("", member[key]) for key, value in labels.items())


def address_policies(policies: Iterable[PolicyRecord], members: Sequence[Member]) -> list[AddressPolicy]:
    """What drivers are told: allowing policies first. Sources are left open where every container is one."""
    found = []
    for policy in sorted(policies, key=lambda each: (each.action != "allow", each.name)):
        targets = [a for m in members if _selects(policy.target, m.labels) for a in m.addresses]
        sources = [a for m in members if _selects(policy.source, m.labels) for a in m.addresses]
        pairs = [
            (source, target)
            for target in targets
            for source in (sources if policy.source else [""])
            if source != target and (not source or (":" in source) == (":" in target))
        ]
        ports = tuple(_port(text) for text in policy.ports)
        found.append(AddressPolicy(name=policy.name, allow=policy.action == "allow", pairs=tuple(pairs), ports=ports))
    return found


def denied_by(
    policies: Sequence[AddressPolicy], source: str, target: str, port: int, protocol: str
) -> AddressPolicy | None:
    """The policy that forbids a connection, if one does."""
    for policy in policies:
        about = (source, target) in policy.pairs or ("", target) in policy.pairs
        if about and (not policy.ports or (protocol, port) in policy.ports):
            return None if policy.allow else policy
    return None
