"""Networks as records: making, listing, removing them, and the three every engine has.

A network is a row of the store, its subnets are reserved in the address management, and its driver has made it in the
kernel; the three agree whenever a call has returned. Containers on networks are `engine.networks`.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from engine.drivers.network import Network, NetworkDriver, Subnet
from engine.errors import AlreadyExists, EngineError, Forbidden, InvalidParameter, NotFound, Unavailable
from engine.model.filters import Filters, invalid_filter
from engine.model.network import IPAM, IPAMConfig, NetworkRecord
from engine.names import find_by_prefix, new_id
from engine.networks import ipam
from engine.networks.attachments import Live, Plug
from engine.networks.dns import Resolver
from engine.networks.policies import PolicyRecord
from engine.store import Delete, Name, NameTaken, Put, Unname
from engine.timestamps import now, parse_rfc3339, parse_timestamp

if TYPE_CHECKING:
    from engine.config import Config
    from engine.events import Events
    from engine.model.container import Container
    from engine.plugins import Plugins
    from engine.store import Store
    from engine.workers import Workers

__all__ = ["KIND", "PREDEFINED", "NetworkCreate", "NetworkRecords", "for_driver"]

_log = logging.getLogger(__name__)

KIND = "network"
PREDEFINED = ("bridge", "host", "none", "default")
_BRIDGE_PREFIX = "com.docker.network.bridge."
_FILTERS = frozenset("dangling driver id label name scope type".split())
_PRUNE_FILTERS = frozenset("label label! until".split())


class NetworkCreate(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The body of ``POST /networks/create``."""

    name: str = ""
    check_duplicate: bool = False
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool | None = msgspec.field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    ipam: IPAM | None = msgspec.field(default=None, name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: dict[str, str] | None = None
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class NetworkRecords:
    """What `engine.networks.Networks` is built on; see there."""

    find: Callable[[str], Container]
    """Finds a container by id or name (`NotFound`); set by the daemon."""

    def __init__(self, *, config: Config, store: Store, events: Events, workers: Workers, plugins: Plugins) -> None:
        self._config = config
        self.sandboxes = config.state / "netns"
        self._store = store
        self._events = events
        self._workers = workers
        self._plugins = plugins
        self._ipam = ipam.Ipam(ipam.parse_pools(config.default_address_pools) or ipam.DEFAULT_POOLS)
        self._records: dict[str, NetworkRecord] = {}
        self._names: dict[str, str] = {}
        self._live: dict[str, Live] = {}
        self._drivers: dict[str, NetworkDriver] = {}
        self._resolver = Resolver(config.state / "names")
        self._watched: socket.socket | None = None
        self._policies: dict[str, PolicyRecord] = {}
        self._members: dict[str, dict[str, Plug]] = {}  # network id -> container id -> its endpoint

    # -- default networks ------------------------------------------------------------------------------------

    async def _prepare_default_bridge(self) -> None:
        """Bring the recorded default bridge in line with the configuration, which may have changed."""
        record = self._records.get(self._names.get("bridge", ""))
        if record is None:
            return
        if self._config.bridge == "none":
            await self._forget(record)
            return
        pools = self._bridge_pools()
        if pools and pools[0] != record.ipam.config[0]:
            self._ipam.remove_network(record.id)
            config = self._ipam.add_network(record.id, pools, ipv6=record.enable_ipv6)
            record = msgspec.structs.replace(record, ipam=IPAM(config=config))
        try:
            options = await self._complete(msgspec.structs.replace(record, options=self._bridge_options()))
        except EngineError:
            _log.exception("the default bridge has no driver")
            return
        await self._save(msgspec.structs.replace(record, options=options))

    async def _make_defaults(self, avoid: Sequence[ipam.Subnet]) -> None:
        for name, driver in (("bridge", "bridge"), ("host", "host"), ("none", "null")):
            if name in self._names or (name == "bridge" and self._config.bridge == "none"):
                continue
            record = NetworkRecord(name=name, id=new_id(), created=now(), driver=driver)
            try:
                if name == "bridge":
                    pools = self._ipam.add_network(record.id, self._bridge_pools(), ipv6=self._config.ipv6, avoid=avoid)
                    record = msgspec.structs.replace(
                        record,
                        ipam=IPAM(config=pools),
                        enable_ipv6=self._config.ipv6,
                        options=self._bridge_options(),
                    )
                    record = msgspec.structs.replace(record, options=await self._complete(record))
                network_driver = await self._driver(record)
                await self._workers.call(network_driver.create_network, for_driver(record))
            except (EngineError, OSError):
                self._ipam.remove_network(record.id)
                _log.exception("a default network cannot be made", extra={"network": name})
                continue
            await self._save(record)

    def _bridge_options(self) -> dict[str, str]:
        config = self._config
        options = {
            f"{_BRIDGE_PREFIX}default_bridge": "true",
            f"{_BRIDGE_PREFIX}enable_icc": str(config.icc).lower(),
            f"{_BRIDGE_PREFIX}enable_ip_masquerade": str(config.ip_masq).lower(),
        }
        if config.ip:
            options[f"{_BRIDGE_PREFIX}host_binding_ipv4"] = config.ip
        if config.bridge:
            options[f"{_BRIDGE_PREFIX}name"] = config.bridge
        if config.mtu:
            options["com.docker.network.driver.mtu"] = str(config.mtu)
        return options

    def _bridge_pools(self) -> Sequence[IPAMConfig]:
        config = self._config
        found = []
        for bip, fixed, gateway in (
            (config.bip, config.fixed_cidr, config.default_gateway),
            (config.bip6, config.fixed_cidr_v6, config.default_gateway_v6),
        ):
            if bip:
                interface = ipaddress.ip_interface(bip)
                found.append(
                    IPAMConfig(subnet=str(interface.network), gateway=gateway or str(interface.ip), ip_range=fixed)
                )
            elif fixed:
                found.append(IPAMConfig(subnet=fixed, gateway=gateway))
        return found

    async def _complete(self, record: NetworkRecord) -> dict[str, str]:
        driver = await self._driver(record)
        return dict((await self._workers.call(driver.complete, for_driver(record))).options)

    # -- records ---------------------------------------------------------------------------------------------

    def get(self, name_or_id: str) -> NetworkRecord:
        """By name, id or a unique start of an id, in that order. Raises `NotFound`."""
        if name_or_id == "default":
            name_or_id = "bridge"
        identifier = self._names.get(name_or_id) or find_by_prefix(name_or_id, self._records)
        if identifier is None:
            raise NotFound(f"network {name_or_id} not found")
        return self._records[identifier]

    def list(self, filters: Filters | None = None) -> Sequence[dict[str, Any]]:
        """Network bodies, newest first as dockerd has no order of its own."""
        filters = filters or Filters()
        filters.check(_FILTERS)
        kinds = filters.get("type", [])
        for kind in kinds:
            if kind not in ("builtin", "custom"):
                raise InvalidParameter(f"invalid filter: 'type'='{kind}'")
        dangling = filters.flag("dangling") if "dangling" in filters else None
        return [
            self._body(record, members=False)
            for record in self._records.values()
            if filters.exact("driver", record.driver)
            and filters.prefix("id", record.id)
            and filters.match("name", record.name)
            and filters.exact("scope", record.scope)
            and filters.labels(record.labels)
            and (not kinds or ("builtin" if record.name in PREDEFINED else "custom") in kinds)
            and (dangling is None or dangling == self._is_dangling(record))
        ]

    def inspect(self, ref: str, *, scope: str = "") -> dict[str, Any]:
        """The network with the running containers on it; with ``scope``, only if it is of that scope."""
        record = self.get(ref)
        if scope and record.scope != scope:
            raise NotFound(f"network {ref} not found")
        return self._body(record, members=True)

    async def create(self, request: NetworkCreate) -> tuple[str, str]:
        """Make a network; returns its id and a warning ('' for none)."""
        name = request.name
        if not name.strip():
            raise InvalidParameter("invalid name: name is empty")
        if name in PREDEFINED:
            raise Forbidden(f"operation is not permitted on predefined {name} network")
        source = (request.config_from or {}).get("Network", "")
        if source:
            request = self._from_configuration(request, source)
        if request.scope == "swarm" or request.ingress:
            raise Unavailable(
                'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node '
                "to swarm and try again."
            )
        if name in self._names:
            raise AlreadyExists(f"network with name {name} already exists")
        asked = request.ipam or IPAM()
        if asked.driver not in ("", "default"):
            raise InvalidParameter(f'plugin "{asked.driver}" not found')
        if request.config_only:
            return await self._create_configuration(request, asked), ""
        description = self._plugins.describe("network", request.driver or "bridge")
        if description.name in ("host", "null"):
            raise Forbidden(f'only one instance of "{description.name}" network is allowed')
        options = {**self._config.default_network_opts.get(description.name, {}), **(request.options or {})}
        generic_ipv6 = options.get("com.docker.network.enable_ipv6", "").lower() in ("1", "t", "true")
        record = NetworkRecord(
            name=name,
            id=new_id(),
            created=now(),
            driver=description.name,
            enable_ipv4=request.enable_ipv4 is not False,
            enable_ipv6=generic_ipv6 if request.enable_ipv6 is None else request.enable_ipv6,
            internal=request.internal,
            attachable=request.attachable,
            config_from={"Network": source},
            options=options,
            labels=request.labels or {},
            configured=[pool.subnet for pool in asked.config if pool.subnet],
        )
        if not (record.enable_ipv4 or record.enable_ipv6):
            raise InvalidParameter("IPv4 or IPv6 must be enabled")
        self._names[name] = record.id  # taken from here on
        try:
            avoid = await self._workers.call(ipam.host_routes)
            pools = self._ipam.add_network(
                record.id, asked.config, ipv4=record.enable_ipv4, ipv6=record.enable_ipv6, avoid=avoid
            )
            record = msgspec.structs.replace(record, ipam=IPAM(options=asked.options, config=pools))
            driver = await self._driver(record)
            await self._workers.call(driver.create_network, for_driver(record))
            try:
                await self._save(record)
            except BaseException:
                await self._workers.call(driver.delete_network, record.id)
                raise
        except NameTaken as taken:
            self._ipam.remove_network(record.id)
            raise AlreadyExists(f"network with name {name} already exists") from taken
        except BaseException:
            self._ipam.remove_network(record.id)
            self._records.pop(record.id, None)
            del self._names[name]
            raise
        await self._event(record, "create")
        return record.id, ""

    async def _create_configuration(self, request: NetworkCreate, asked: IPAM) -> str:
        """A network that exists on paper, for others to be made from (``--config-only``)."""
        if request.ingress or request.internal or request.attachable or request.scope:
            raise Forbidden(
                "configuration network can only contain network specific fields. Network operator fields like "
                "[ ingress | internal | attachable | scope ] are not supported."
            )
        ipam.check(asked.config, ipv6=bool(request.enable_ipv6))
        record = NetworkRecord(
            name=request.name,
            id=new_id(),
            created=now(),
            driver="null",
            enable_ipv4=request.enable_ipv4 is not False,
            enable_ipv6=bool(request.enable_ipv6),
            ipam=IPAM(options=asked.options or {}, config=asked.config),
            config_only=True,
            options=request.options or {},
            labels=request.labels or {},
        )
        await self._save(record)
        await self._event(record, "create")
        return record.id

    def _from_configuration(self, request: NetworkCreate, source: str) -> NetworkCreate:
        """``request`` with what the configuration network ``source`` says; it may say nothing of that itself."""
        record = self._records.get(self._names.get(source, ""))
        if record is None or not record.config_only:
            raise NotFound(f'configuration network "{source}" does not exist' if record is None else f"{source} is not "
                           "a configuration network")  # fmt: skip
        if request.config_only:
            raise Forbidden("a configuration network cannot depend on another configuration network")
        given = request.ipam or IPAM()
        if given.config or given.options or request.labels or request.enable_ipv6:
            raise Forbidden(
                "user-specified configurations are not supported if the network depends on a configuration network"
            )
        if request.options:
            raise Forbidden(
                "network driver options are not supported if the network depends on a configuration network"
            )
        return msgspec.structs.replace(
            request,
            ipam=record.ipam,
            enable_ipv4=record.enable_ipv4,
            enable_ipv6=record.enable_ipv6,
            options=record.options,
            labels=record.labels,
        )

    async def remove(self, ref: str) -> None:
        """Remove a network without running containers. Raises `Forbidden` for a predefined or used one."""
        record = self.get(ref)
        if record.name in PREDEFINED:
            raise Forbidden(f"{record.name} is a pre-defined network and cannot be removed")
        if self._members.get(record.id):
            raise Forbidden(f"error while removing network: network {record.name} id {record.id} has active endpoints")
        if record.config_only and self._made_from(record):
            raise Forbidden(f'configuration network "{record.name}" is in use')
        await self._remove(record)

    def _made_from(self, record: NetworkRecord) -> bool:
        return any(other.config_from.get("Network") == record.name for other in self._records.values())

    async def _remove(self, record: NetworkRecord) -> None:
        del self._records[record.id]  # from here on nobody finds it; the pools are freed once the bridge is gone
        try:
            try:
                driver = None if record.config_only else await self._driver(record)
            except EngineError:
                _log.warning("a network's driver is missing; only its record is removed", extra={"network": record.id})
            else:
                if driver is not None:
                    await self._workers.call(driver.delete_network, record.id)
        except BaseException:
            self._records[record.id] = record
            raise
        await self._forget(record)
        await self._event(record, "destroy")

    async def _forget(self, record: NetworkRecord) -> None:
        self._records.pop(record.id, None)
        self._names.pop(record.name, None)
        self._ipam.remove_network(record.id)
        await self._store.commit(Delete(KIND, record.id), Unname(KIND, record.name))

    async def prune(self, filters: Filters | None = None) -> dict[str, Any]:
        """Remove all user-defined networks without running containers; ``{"NetworksDeleted": [names]}`` or null."""
        filters = filters or Filters()
        filters.check(_PRUNE_FILTERS)
        untils = filters.get("until", [])
        if len(untils) > 1:
            raise invalid_filter("until", untils)
        until = parse_timestamp(untils[0]) if untils else None
        deleted = []
        for record in list(self._records.values()):
            if (
                self._is_dangling(record)
                and not (record.config_only and self._made_from(record))
                and filters.labels(record.labels)
                and filters.without_labels(record.labels)
                and (until is None or parse_rfc3339(record.created) < until)
            ):
                try:
                    await self._remove(record)
                except EngineError:
                    _log.warning("could not remove network", exc_info=True, extra={"network": record.id})
                else:
                    deleted.append(record.name)
        await self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return {"NetworksDeleted": deleted or None}

    def _is_dangling(self, record: NetworkRecord) -> bool:
        return record.name not in PREDEFINED and not self._members.get(record.id)

    def _body(self, record: NetworkRecord, *, members: bool) -> dict[str, Any]:
        body: dict[str, Any] = msgspec.to_builtins(record)
        del body["Configured"]
        body["Containers"] = {}
        for container_id, plug in (self._members.get(record.id, {}) if members else {}).items():
            endpoint = plug.endpoint
            body["Containers"][container_id] = {
                "Name": self._container_name(container_id),
                "EndpointID": endpoint.id,
                "MacAddress": endpoint.mac,
                "IPv4Address": str(endpoint.ipv4 or ""),
                "IPv6Address": str(endpoint.ipv6 or ""),
            }
        return body

    def _container_name(self, container_id: str) -> str:
        try:
            return self.find(container_id).name
        except NotFound:
            return self._live[container_id].container_name

    def _remember(self, record: NetworkRecord) -> None:
        self._records[record.id] = record
        self._names[record.name] = record.id

    async def _save(self, record: NetworkRecord) -> None:
        await self._store.commit(Name(KIND, record.name, record.id), Put(KIND, record.id, msgspec.json.encode(record)))
        self._remember(record)

    async def _driver(self, record: NetworkRecord) -> NetworkDriver:
        driver = self._drivers.get(record.driver)
        if driver is None:  # building one may block
            driver = self._drivers[record.driver] = await self._workers.call(self._plugins.network, record.driver)
        return driver

    async def _event(self, record: NetworkRecord, action: str, **attributes: str) -> None:
        await self._events.publish(
            "network", action, record.id, {**attributes, "name": record.name, "type": record.driver}
        )


def for_driver(record: NetworkRecord) -> Network:
    """The network as its driver sees it."""
    return Network(
        id=record.id,
        name=record.name,
        subnets=tuple(
            Subnet(
                subnet=ipaddress.ip_network(pool.subnet),
                gateway=ipaddress.ip_address(pool.gateway) if pool.gateway else None,
            )
            for pool in record.ipam.config
        ),
        internal=record.internal,
        ipv6=record.enable_ipv6,
        options=record.options,
    )
