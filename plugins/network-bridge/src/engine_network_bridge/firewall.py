"""The engine's nftables table as state: what should be in it, and keeping the kernel's in step.

A change is sent as element additions or deletions in one transaction. Should the kernel's table differ from what this
thinks, the change fails and the whole table is put in place again, also atomically; when somebody flushes the rule set,
that is noticed (`watch`) and repaired at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from engine.drivers.network import AddressPolicy
from engine_network_bridge import rules
from engine_network_bridge.nftables import Nftables, NftablesError
from engine_network_bridge.watch import TableWatch, count_rules

__all__ = ["Firewall"]

_log = logging.getLogger(__name__)


class Firewall:
    """The table ``name``; ``guard()`` says whether foreign forwarding stays blocked (see `rules.table`)."""

    def __init__(self, name: str, *, guard: Callable[[], bool]) -> None:
        self._name = name
        self._guard = guard
        self._lock = threading.Lock()
        self._nftables: Nftables | None = None
        self._installed = False
        self._rules = 0
        self._policies: list[AddressPolicy] = []
        self._watch: TableWatch | None = None
        self._networks: dict[str, list[rules.Element]] = {}
        self._ports: dict[str, list[rules.Element]] = {}

    def set_network(self, network_id: str, elements: Sequence[rules.Element]) -> None:
        """Make the network's elements be these."""
        self._set(self._networks, network_id, elements)

    def remove_network(self, network_id: str) -> None:
        """Remove the network's elements."""
        self._set(self._networks, network_id, ())

    def set_ports(self, endpoint_id: str, elements: Sequence[rules.Element]) -> None:
        """Make the endpoint's published ports be these."""
        self._set(self._ports, endpoint_id, elements)

    def remove_ports(self, endpoint_id: str) -> None:
        """Remove the endpoint's published ports."""
        self._set(self._ports, endpoint_id, ())

    def set_policies(self, policies: Sequence[AddressPolicy]) -> None:
        """Make these be the policies: the whole table in one transaction, when anything changes."""
        with self._lock:
            if list(policies) == self._policies:
                return
            before, self._policies = self._policies, list(policies)
            try:
                self._put()
            except NftablesError:
                self._policies = before
                raise

    def restore(self, networks: Mapping[str, list[rules.Element]], ports: Mapping[str, list[rules.Element]]) -> None:
        """Make the table hold exactly these, in one transaction; connections under way go on."""
        with self._lock:
            self._networks, self._ports = dict(networks), dict(ports)
            self._put()

    def rebuild(self) -> None:
        """Put the whole table in place again."""
        with self._lock:
            self._put()

    def repair(self) -> bool:
        """Put the table in place again if rules are missing; whether they were."""
        with self._lock:
            if not self._installed or count_rules(self._name) == self._rules:
                return False
            self._put()
        _log.warning("somebody removed the engine's firewall rules; they are back", extra={"table": self._name})
        return True

    def missing(self, elements: Sequence[rules.Element]) -> list[rules.Element]:
        """Those of ``elements`` the kernel's table does not have."""
        with self._lock:
            return [element for element in elements if not self._has(element)]

    def ports(self, endpoint_id: str) -> Sequence[rules.Element]:
        """What `set_ports` was told for the endpoint."""
        with self._lock:
            return self._ports.get(endpoint_id, ())

    def _has(self, element: rules.Element) -> bool:
        try:
            self._run(f"get element inet {self._name} {element.set} {{ {element.key} }}")
        except NftablesError:
            return False
        return True

    def drops_forwarding(self, family: str) -> bool:
        """Whether the chain ``filter FORWARD`` that iptables-nft keeps for ``ip`` or ``ip6`` drops by default."""
        with self._lock:
            try:
                return "policy drop" in self._run(f"list chain {family} filter FORWARD")
            except NftablesError:
                return False  # no such chain

    def close(self) -> None:
        """Free libnftables' context; the table stays."""
        watch, self._watch = self._watch, None
        if watch is not None:  # before the lock: its thread may be waiting for that
            watch.close()
        with self._lock:
            if self._nftables is not None:
                self._nftables.close()
                self._nftables = None

    def _set(self, group: dict[str, list[rules.Element]], key: str, elements: Sequence[rules.Element]) -> None:
        with self._lock:
            before = group.get(key, [])
            gone = [element for element in before if element not in elements]
            new = [element for element in elements if element not in before]
            if elements:
                group[key] = list(elements)
            else:
                group.pop(key, None)
            if not gone and not new:
                return
            command = rules.delete(self._name, gone) + rules.add(self._name, new)
            try:
                if self._installed:
                    self._run(command)
                else:
                    self._put()
            except NftablesError as error:
                _log.warning("the nftables table is not as it was left; putting it back: %s", error)
                try:
                    self._put()
                except NftablesError:
                    if before:
                        group[key] = before
                    else:
                        group.pop(key, None)
                    raise

    def _put(self) -> None:
        elements = {e for group in (self._networks, self._ports) for listed in group.values() for e in listed}
        self._run(rules.table(self._name, elements, guard=self._guard(), policies=self._policies))
        self._installed = True
        self._rules = count_rules(self._name)
        if self._watch is None:
            self._watch = TableWatch(self._name, self.repair)

    def _run(self, command: str) -> str:
        if self._nftables is None:
            self._nftables = Nftables()
        return self._nftables.run(command)
