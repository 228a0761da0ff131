"""What is said about all networks at once: policies between containers, and why one can or cannot reach another."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.drivers.network import AddressPolicy
from engine.errors import AlreadyExists, InvalidParameter, NotFound
from engine.networks import doctor, explain
from engine.networks.explain import Side
from engine.networks.policies import KIND as POLICY
from engine.networks.policies import Member, PolicyRecord, address_policies
from engine.networks.policies import check as check_policy
from engine.networks.records import NetworkRecords
from engine.store import Delete, Put

__all__ = ["Oversight"]


class Oversight(NetworkRecords):
    """What `engine.networks.Networks` is built on, with `NetworkRecords`; see there."""

    # -- policies --------------------------------------------------------------------------------------------

    async def _load_policies(self) -> None:
        for body in self._store.load(POLICY).values():
            policy = msgspec.json.decode(body, type=PolicyRecord)
            self._policies[policy.name] = policy
        if self._policies:
            await self._enforce()

    def policies(self) -> Sequence[PolicyRecord]:
        """All network policies, by name."""
        return sorted(self._policies.values(), key=lambda policy: policy.name)

    async def create_policy(self, policy: PolicyRecord) -> None:
        """Add a policy; in force when this returns. Raises `AlreadyExists` for a name that is taken."""
        check_policy(policy)
        if policy.name in self._policies:
            raise AlreadyExists(f"network policy {policy.name} already exists")
        self._policies[policy.name] = policy
        try:
            await self._enforce()
            await self._store.commit(Put(POLICY, policy.name, msgspec.json.encode(policy)))
        except BaseException:
            del self._policies[policy.name]
            await self._enforce()
            raise

    async def remove_policy(self, name: str) -> None:
        """Remove a policy; no longer in force when this returns."""
        if self._policies.pop(name, None) is None:
            raise NotFound(f"network policy {name} not found")
        await self._store.commit(Delete(POLICY, name))
        await self._enforce()

    def _address_policies(self) -> list[AddressPolicy]:
        members = []
        for live in self._live.values():
            addresses = tuple(
                str(address.ip)
                for plug in live.plugs
                if "policy" in plug.driver.capabilities
                for address in (plug.endpoint.ipv4, plug.endpoint.ipv6)
                if address is not None
            )
            members.append(Member(labels=live.labels, addresses=addresses))
        return address_policies(self._policies.values(), members)

    async def _enforce(self) -> None:
        """Tell the drivers what the policies mean now. A container's network is ready only after this."""
        told = self._address_policies()
        for driver in list(self._drivers.values()):
            if "policy" in driver.capabilities:
                await self._workers.call(driver.set_policies, told)

    # -- explaining ------------------------------------------------------------------------------------------

    async def explain(self, source: str, target: str, port: int, protocol: str = "tcp") -> dict[str, Any]:
        """Why ``source`` (a container, or ``host``) can or cannot reach ``target`` (a container, ``host``, or an
        address), at ``port`` (0: any): ``{From, To, Port, Protocol, Reachable, Steps: [{Check, Ok, Detail, Fix}]}``."""
        one, other = self._side(source), self._side(target, outside=True)
        told = self._address_policies() if self._policies else ()
        found = await self._workers.call(explain.between, one, other, port, protocol, told)
        about = {"from": one.name, "to": other.name, "port": port, "protocol": protocol}
        return explain.report(found, **about)

    async def examine(self) -> list[dict[str, Any]]:
        """What about the host's networks deserves attention: ``[{Check, Ok, Detail, Fix}]``, what is wrong first."""
        found = await self._workers.call(doctor.examine, list(self._records.values()), list(self._live.values()))
        return explain.steps(found)

    async def explain_port(self, number: int, protocol: str = "tcp") -> dict[str, Any]:
        """Whose a port of the host is and whether it answers; as `explain`."""
        holders = [
            (self._side(live.container_id), port)
            for live in self._live.values()
            for port in live.published
            if port.host_port == number and port.protocol == protocol
        ]
        found = await self._workers.call(explain.port, number, protocol, holders)
        return explain.report(found, port=number, protocol=protocol)

    def _side(self, ref: str, *, outside: bool = False) -> Side:
        if ref == "host":
            return Side(name="the host")
        try:
            container = self.find(ref)
        except NotFound:
            try:
                address = str(ipaddress.ip_address(ref))
            except ValueError:
                raise NotFound(f"No such container: {ref}") from None
            if not outside:
                raise InvalidParameter(f"{ref}: the way is explained from a container, or from host") from None
            owner = self._owner_of(address)
            return self._side(owner) if owner else Side(name=address, address=address)
        if container.state.status not in ("running", "paused"):
            return Side(name=container.name, problem=f"is not running ({container.state.status})")
        mode = container.host_config.network_mode
        if mode.startswith("container:"):
            other = self._side(mode.partition(":")[2])
            return dataclasses.replace(other, name=container.name)
        live = self._live.get(container.id)
        return Side(name=container.name, path=live.path if live else None, live=live)

    def _owner_of(self, address: str) -> str:
        """The container that has an address."""
        for live in self._live.values():
            for plug in live.plugs:
                if address in [str(each.ip) for each in (plug.endpoint.ipv4, plug.endpoint.ipv6) if each]:
                    return live.container_id
        return ""
