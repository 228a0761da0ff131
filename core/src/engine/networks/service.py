"""Networks: records, addresses and the containers on them. The kernel's work is the drivers'.

A network is a row of the store. Endpoints are not: what a container asked for and what it got is part of the
container's own record, committed by `engine.containers` with its state, and addresses, ports and members are rebuilt
from the records of running containers at start. So there is one truth, one commit a start, and nothing can leak.
In a running container's ``networks`` the first endpoint that has a way out is its gateway; the order is kept.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.drivers.network import Endpoint, Joined, NetworkDriver
from engine.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
)
from engine.model.container import Config as ContainerConfig
from engine.model.container import Container, HostConfig, PortBinding
from engine.model.network import EndpointIPAMConfig, EndpointSettings, NetworkRecord
from engine.names import new_id
from engine.networks import attachments, dns, files, ipam, links, ports, sandbox
from engine.networks.attachments import Live, Plug
from engine.networks.oversight import Oversight
from engine.networks.records import KIND, PREDEFINED, NetworkCreate, for_driver

__all__ = ["Attachment", "NetworkCreate", "Networks"]

_log = logging.getLogger(__name__)

_MAC_OPTION = "com.docker.network.endpoint.macaddress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A started container's place: ``sandbox_key`` is the path of its network namespace, None for the host's;
    ``sandbox_id`` is empty when the sandbox is another container's."""

    sandbox_key: str | None
    sandbox_id: str
    networks: Mapping[str, EndpointSettings]
    ports: Mapping[str, list[PortBinding] | None]


class Networks(Oversight):
    """The networks of this engine. One for each daemon; used on the event loop."""

    # -- start -----------------------------------------------------------------------------------------------

    async def start(self, running: Sequence[Container]) -> None:
        """Load the records, give running containers their places again, have the drivers restore the kernel's side
        and make the default networks. A network whose driver is missing or fails is logged and stays listed."""
        for body in self._store.load(KIND).values():
            self._remember(msgspec.json.decode(body, type=NetworkRecord))
        avoid = await self._workers.call(ipam.host_routes)
        for record in list(self._records.values()):
            self._reserve_pools(record)
        await self._prepare_default_bridge()
        for container in running:
            await self._readopt(container)
        keep = {live.sandbox_id for live in self._live.values()}
        for swept in await self._workers.call(sandbox.sweep, self.sandboxes, keep):
            _log.info("removed a left-over sandbox", extra={"sandbox": swept})
        await self._restore_drivers()
        for live in self._live.values():
            try:
                if names := await self._workers.call(attachments.rejoin, live):
                    _log.warning("connected again", extra={"container": live.container_id, "networks": " ".join(names)})
            except (EngineError, OSError):
                _log.exception("a container cannot be connected again", extra={"container": live.container_id})
        served = {live.sandbox_id: text for live in self._live.values() if (text := attachments.names_of(live))}
        try:
            await self._workers.call(self._resolver.restore, served)
        except EngineError:
            _log.exception("names of running containers are not resolved")
        self._watch_resolver()
        await self._make_defaults(avoid)
        await self._load_policies()

    def _reserve_pools(self, record: NetworkRecord) -> None:
        if record.config_only:
            return
        try:
            self._ipam.add_network(record.id, record.ipam.config, ipv4=False, ipv6=record.enable_ipv6)
        except EngineError:
            _log.exception("a network's addresses cannot be reserved", extra={"network": record.id})

    async def _readopt(self, container: Container) -> None:
        if not container.sandbox_id:
            return
        path = Path(container.sandbox_key) if container.sandbox_key else None
        live = self._new(container, container.sandbox_id, path)
        for name, settings in container.networks.items():
            record = self._records.get(settings.network_id)
            if record is None or not settings.endpoint_id:
                continue
            try:
                driver = await self._driver(record)
            except EngineError:
                _log.exception("a running container's network has no driver", extra={"container": container.id})
                continue
            for address in (settings.ip_address, settings.global_ipv6_address):
                if address:
                    self._ipam.claim(record.id, address)
            endpoint = _recorded_endpoint(container.id, record.id, settings)
            plug = self._plug(name, record, driver, endpoint, container, settings)
            plug.joined = None if path is None else _recorded_join(plug, settings)
            live.plugs.append(plug)
        live.plugs.sort(key=lambda plug: plug.rank)
        live.published = ports.from_record(container.ports)
        live.publisher = live.gateway if live.published else None
        self._enlist(live)

    async def _restore_drivers(self) -> None:
        endpoints = attachments.restorable(list(self._live.values()))
        by_driver: dict[str, list[NetworkRecord]] = {}
        for record in self._records.values():
            if not record.config_only:
                by_driver.setdefault(record.driver, []).append(record)
        by_driver.setdefault("bridge", [])  # what an engine left behind that lost its records
        for name, records in by_driver.items():
            try:
                driver = self._drivers[name] = await self._workers.call(self._plugins.network, name)
                await self._workers.call(
                    driver.restore,
                    [for_driver(record) for record in records],
                    [entry for record in records for entry in endpoints.get(record.id, ())],
                )
            except Exception:
                _log.exception("networks cannot be restored", extra={"driver": name})

    # -- containers: what they ask for -----------------------------------------------------------------------

    def validate(
        self, host_config: HostConfig, config: ContainerConfig, requested: Mapping[str, EndpointSettings]
    ) -> dict[str, EndpointSettings]:
        """The networks of a container to be, by name: those asked for, else that of its network mode.

        Raises `InvalidParameter` or `Conflict` for what can never work. A network that does not exist (yet) is an
        error at start only. Conflicts between the network mode and other options are `engine.containers.create`'s.
        """
        ports.check(config, host_config)
        mode = host_config.network_mode or "default"
        if mode.startswith("container:") or config.network_disabled:
            if requested and mode.startswith("container:"):
                raise InvalidParameter(
                    "conflicting options: container sharing network namespace with another container or host "
                    "cannot be connected to any other network"
                )
            return {}
        asked = {self._name_of(ref): settings for ref, settings in requested.items()}
        main = self._name_of(mode)
        if len(asked) > 1 or (asked and main not in asked):
            self._check_several({main, *asked} if main in ("host", "none") else set(asked))
        networks = asked or {main: EndpointSettings()}
        if main in networks and config.mac_address and not networks[main].mac_address:
            networks[main] = msgspec.structs.replace(networks[main], mac_address=config.mac_address)
        return {name: self._checked(name, settings) for name, settings in networks.items()}

    def _name_of(self, ref: str) -> str:
        try:
            return self.get(ref).name
        except NotFound:
            return ref

    @staticmethod
    def _check_several(names: set[str]) -> None:
        if "host" in names:
            raise InvalidParameter(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
                if len(names) > 1
                else "container cannot be disconnected from host network or connected to host network"
            )
        if "none" in names:
            raise InvalidParameter(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )

    def _checked(self, name: str, settings: EndpointSettings) -> EndpointSettings:
        """One endpoint's request, checked and with the network's id filled in."""
        asked = settings.ipam_config or EndpointIPAMConfig()
        for version, text in ((4, asked.ipv4_address), (6, asked.ipv6_address)):
            if text:
                _check_address(text, version)
        for text in asked.link_local_ips or ():
            _check_address(text, 6 if ":" in text else 4)
        if settings.mac_address:
            _check_mac(settings.mac_address)
        if name in PREDEFINED:
            if asked.ipv4_address or asked.ipv6_address or asked.link_local_ips:
                raise InvalidParameter("user specified IP address is supported on user defined networks only")
            if settings.aliases:
                raise InvalidParameter("network-scoped alias is supported only for containers in user defined networks")
        record = self._records.get(self._names.get(name, ""))
        if record is not None and name not in PREDEFINED:
            if record.config_only:
                raise InvalidParameter(f"{name} is a configuration-only network: containers cannot connect to it")
            for version, text in ((4, asked.ipv4_address), (6, asked.ipv6_address)):
                _check_pool(record, version, text)
        options = settings.driver_opts
        if settings.mac_address:
            options = {**(options or {}), _MAC_OPTION: settings.mac_address.lower().replace("-", ":")}
        return msgspec.structs.replace(
            settings, driver_opts=options, network_id=record.id if record is not None else settings.network_id
        )

    # -- containers: start and stop --------------------------------------------------------------------------

    async def attach(self, container: Container) -> Attachment:
        """Give a starting container its sandbox, addresses, interfaces and published ports, or nothing at all."""
        mode = container.host_config.network_mode
        if mode.startswith("container:"):
            return self._shared(container, mode.partition(":")[2])
        if container.id in self._live:
            await self.detach(container)
        live = await self._allocate(container)
        self._enlist(live)
        try:
            await self._workers.call(attachments.set_up, live, self._resolver)
        except BaseException:  # also a cancellation, which may come after everything was set up
            await self._workers.call(attachments.detach, live, self._resolver)
            self._release(live)
            raise
        self._watch_resolver()
        if self._policies:
            try:
                await self._enforce()
            except BaseException:
                await self.detach(container)
                raise
        for plug in live.plugs:
            await self._event(self._records[plug.network.id], "connect", container=container.id)
        attachment = self.attachment(container)
        assert attachment is not None
        return attachment

    def attachment(self, container: Container) -> Attachment | None:
        """Where a running container is now; None when it is not attached (or shares another's sandbox)."""
        live = self._live.get(container.id)
        if live is None:
            return None
        networks = {plug.name: self._settings(container, plug) for plug in live.plugs}
        published = {} if live.path is None else ports.shown(container.config, container.host_config, live.published)
        return Attachment(
            sandbox_key=str(live.path) if live.path is not None else None,
            sandbox_id=live.sandbox_id,
            networks=networks,
            ports=published,
        )

    def _shared(self, container: Container, ref: str) -> Attachment:
        other = self.find(ref)
        if other.id == container.id:
            raise InvalidParameter("cannot join own network namespace")
        if other.state.status == "restarting":
            raise Conflict(f"Container {other.id} is restarting, wait until the container is running")
        if other.state.status not in ("running", "paused"):
            raise Conflict(f"cannot join network of a non running container: {other.id}")
        return Attachment(sandbox_key=other.sandbox_key or None, sandbox_id="", networks={}, ports={})

    async def _allocate(self, container: Container) -> Live:
        """Decide everything about the container's endpoints: addresses, names, order; nothing in the kernel yet."""
        sandbox_id = new_id()
        live = self._new(container, sandbox_id, self.sandboxes / sandbox_id)
        names = {} if container.config.network_disabled else container.networks
        records = {name: self._record_for(name, settings) for name, settings in names.items()}
        drivers = {name: await self._driver(record) for name, record in records.items()}
        if any("sandbox" not in driver.capabilities for driver in drivers.values()):
            live.path = None
        try:
            for name, record in records.items():
                endpoint = self._endpoint(container, record, names[name])
                live.plugs.append(self._plug(name, record, drivers[name], endpoint, container, names[name]))
        except BaseException:
            self._free_addresses(live.plugs)
            raise
        live.plugs.sort(key=lambda plug: plug.rank)
        for number, plug in enumerate(live.plugs):
            plug.interface = f"eth{number}"
        return live

    def _record_for(self, name: str, settings: EndpointSettings) -> NetworkRecord:
        """By name first: a network removed and made again under its name is the same to its containers."""
        identifier = self._names.get(name) or settings.network_id
        if identifier not in self._records:
            raise NotFound(f"network {name} not found")
        return self._records[identifier]

    def _endpoint(self, container: Container, record: NetworkRecord, settings: EndpointSettings) -> Endpoint:
        asked = settings.ipam_config or EndpointIPAMConfig()
        ipv4 = self._ipam.allocate(record.id, 4, asked.ipv4_address) if record.enable_ipv4 else None
        try:
            ipv6 = self._ipam.allocate(record.id, 6, asked.ipv6_address) if record.enable_ipv6 else None
        except BaseException:
            if ipv4 is not None:
                self._ipam.release(record.id, str(ipv4.ip))
            raise
        options = dict(settings.driver_opts or {})
        return Endpoint(
            id=new_id(),
            network_id=record.id,
            container_id=container.id,
            ipv4=ipv4,  # type: ignore[arg-type]
            ipv6=ipv6,  # type: ignore[arg-type]
            mac=options.pop(_MAC_OPTION, ""),
            options=options,
        )

    def _new(self, container: Container, sandbox_id: str, path: Path | None) -> Live:
        host_config, config = container.host_config, self._config
        options = host_config.dns_options or config.dns_opts
        return Live(
            container_id=container.id,
            container_name=container.name,
            labels=container.config.labels or {},
            sandbox_id=sandbox_id,
            path=path,
            wanted=tuple(ports.plan(container.config, host_config)),
            servers=tuple(host_config.dns or config.dns),
            ndots=any(option.startswith("ndots:") and option != "ndots:0" for option in options),
        )

    @staticmethod
    def _plug(
        name: str,
        record: NetworkRecord,
        driver: NetworkDriver,
        endpoint: Endpoint,
        container: Container,
        settings: EndpointSettings,
    ) -> Plug:
        leads_out = "publish" in driver.capabilities or ("sandbox" in driver.capabilities and bool(record.ipam.config))
        named = name not in PREDEFINED
        return Plug(
            name=name,
            network=for_driver(record),
            driver=driver,
            endpoint=endpoint,
            routes=leads_out and not record.internal,
            priority=settings.gw_priority,
            reserved=tuple(str(each.ip) for each in (endpoint.ipv4, endpoint.ipv6) if each is not None),
            names=tuple(_dns_names(container, settings)) if named else (),
            links=_aliases(settings.links or ()) if named else {},
            link_local=_link_local(settings),
        )

    def _settings(self, container: Container, plug: Plug) -> EndpointSettings:
        """The endpoint as inspect shows it: what was asked for and what it got."""
        asked = container.networks.get(plug.name, EndpointSettings())
        endpoint, joined = plug.endpoint, plug.joined
        return msgspec.structs.replace(
            asked,
            mac_address=endpoint.mac,
            network_id=plug.network.id,
            endpoint_id=endpoint.id,
            gateway=joined.gateway_ipv4 if joined else "",
            ip_address=str(endpoint.ipv4.ip) if endpoint.ipv4 else "",
            ip_prefix_len=endpoint.ipv4.network.prefixlen if endpoint.ipv4 else 0,
            ipv6_gateway=joined.gateway_ipv6 if joined else "",
            global_ipv6_address=str(endpoint.ipv6.ip) if endpoint.ipv6 else "",
            global_ipv6_prefix_len=endpoint.ipv6.network.prefixlen if endpoint.ipv6 else 0,
            dns_names=_dns_names(container, asked) if plug.name not in PREDEFINED else None,
        )

    async def detach(self, container: Container) -> None:
        """Release all a container has; does not fail, and does nothing when it has nothing."""
        live = self._live.get(container.id)
        if live is None:
            return
        try:
            await self._workers.call(attachments.detach, live, self._resolver)
        except EngineError:
            _log.exception("a container's network is released only in part", extra={"container": container.id})
        self._release(live)
        if self._policies:
            await self._enforce()
        for plug in live.plugs:
            if (record := self._records.get(plug.network.id)) is not None:
                await self._event(record, "disconnect", container=container.id)

    def _enlist(self, live: Live) -> None:
        self._live[live.container_id] = live
        for plug in live.plugs:
            self._members.setdefault(plug.network.id, {})[live.container_id] = plug

    def _release(self, live: Live) -> None:
        if self._live.get(live.container_id) is live:
            del self._live[live.container_id]
        for plug in live.plugs:
            self._leave_members(live.container_id, plug)
        self._free_addresses(live.plugs)

    def _leave_members(self, container_id: str, plug: Plug) -> None:
        members = self._members.get(plug.network.id, {})
        if members.get(container_id) is plug:
            del members[container_id]

    def _free_addresses(self, plugs: Sequence[Plug]) -> None:
        for plug in plugs:
            for address in plug.reserved:
                self._ipam.release(plug.network.id, address)

    # -- containers: live changes ----------------------------------------------------------------------------

    async def connect(self, network: str, container: Container, settings: EndpointSettings) -> EndpointSettings:
        """Connect a container, running or not, to one more network; the caller records the settings returned
        (and, for a running one, `attachment`'s ports), and holds the container's lock."""
        record = self.get(network)
        mode = container.host_config.network_mode
        if container.state.status in ("removing", "dead"):
            raise Conflict(
                f"Container {container.id} is marked for removal and cannot be connected or disconnected to the network"
            )
        if mode.startswith("container:"):
            raise Forbidden(
                "container sharing network namespace with another container or host cannot be connected to any other "
                "network"
            )
        if mode == "host" or record.name == "host":
            raise Forbidden("container cannot be disconnected from host network or connected to host network")
        others = set(container.networks) - {record.name}
        if others and "none" in {record.name, *others}:
            raise Forbidden(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )
        settings = self._checked(record.name, settings)
        live = self._live.get(container.id)
        if live is None:
            return settings
        if container.id in self._members.get(record.id, {}):
            raise Forbidden(f"endpoint with name {container.name} already exists in network {record.name}")
        driver = await self._driver(record)
        endpoint = self._endpoint(container, record, settings)
        plug = self._plug(record.name, record, driver, endpoint, container, settings)
        self._members.setdefault(record.id, {})[container.id] = plug
        try:
            await self._workers.call(attachments.add, live, plug, self._resolver)
        except BaseException:
            self._leave_members(container.id, plug)
            self._free_addresses([plug])
            raise
        self._watch_resolver()
        if self._policies:
            await self._enforce()
        await self._event(record, "connect", container=container.id)
        return self._settings(
            msgspec.structs.replace(container, networks={**container.networks, record.name: settings}), plug
        )

    async def disconnect(self, network: str, container: Container, *, force: bool) -> None:
        """Disconnect a container; the caller drops the network from its record. ``force`` also works for a network
        that is gone."""
        try:
            record = self.get(network)
        except NotFound:
            if force and network in container.networks:
                return
            raise
        if container.host_config.network_mode == "host" and record.name == "host":
            raise Forbidden("container cannot be disconnected from host network or connected to host network")
        plug = self._members.get(record.id, {}).get(container.id)
        live = self._live.get(container.id)
        if live is None or plug is None:
            if record.name not in container.networks:
                raise EngineError(f"container {container.id} is not connected to network {record.name}")
            return
        try:
            await self._workers.call(attachments.disconnect, live, plug, self._resolver)
        finally:
            self._leave_members(container.id, plug)
            self._free_addresses([plug])
        if self._policies:
            await self._enforce()
        await self._event(record, "disconnect", container=container.id)

    # -- names -----------------------------------------------------------------------------------------------

    def named(self, container: Container) -> Container:
        """``container`` with the names that follow from its (new) own one."""
        networks = {
            name: msgspec.structs.replace(settings, dns_names=_dns_names(container, settings))
            if settings.dns_names
            else settings
            for name, settings in container.networks.items()
        }
        return msgspec.structs.replace(container, networks=networks)

    async def renamed(self, container: Container) -> None:
        """A container has another name: others find it by that one from now on."""
        live = self._live.get(container.id)
        if live is None:
            return
        live.container_name = container.name
        for plug in live.plugs:
            if plug.names:
                plug.names = tuple(_dns_names(container, container.networks.get(plug.name, EndpointSettings())))
        if (description := attachments.names_of(live)) is not None:
            await self._workers.call(self._resolver.update, {live.sandbox_id: description})

    def _watch_resolver(self) -> None:
        """Have the resolver's process started again should somebody end it."""
        if self._watched is not None:
            return
        watched = self._watched = self._resolver.watch()
        if watched is None:
            return
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(watched)
            watched.close()
            self._watched = None
            self._workers.spawn(self._revive_resolver(), name="revive the resolver")

        loop.add_reader(watched, ended)

    async def _revive_resolver(self) -> None:
        await self._workers.call(self._resolver.revive)
        self._watch_resolver()

    # -- files -----------------------------------------------------------------------------------------------

    def files_now(self, container: Container) -> dict[str, bytes] | None:
        """`files` of a running container with a network of its own, to hand to `update_files` after a change."""
        attachment = self.attachment(container)
        return None if attachment is None else self.files(container, attachment)

    async def update_files(self, container: Container, before: dict[str, bytes] | None, directory: Path) -> None:
        """Bring the files in ``directory``, mounted into the container, in line with its networks. What a user changed
        in them is kept; a resolv.conf that a user changed is left alone."""
        after = self.files_now(container)
        if before is not None and after is not None and after != before:
            await self._workers.call(_rewrite, directory, before, after)

    def files(self, container: Container, attachment: Attachment) -> dict[str, bytes]:
        """``hosts``, ``resolv.conf`` and ``hostname`` of a starting container; one that shares another's network gets
        the other's."""
        mode = container.host_config.network_mode
        if mode.startswith("container:"):
            other = self.find(mode.partition(":")[2])
            theirs = self.attachment(other)
            if theirs is not None:
                return self.files(other, theirs)
        host = mode == "host"
        host_config, config = container.host_config, self._config
        hostname = config_hostname if (config_hostname := container.config.hostname) else container.id[:12]
        if host and not container.config.hostname:
            hostname = socket.gethostname()
        addresses = [
            address
            for settings in attachment.networks.values()
            for address in (settings.ip_address, settings.global_ipv6_address)
            if address
        ]
        ipv6 = any(settings.global_ipv6_address for settings in attachment.networks.values())
        hosts = files.hosts(
            hostname=hostname,
            domainname=container.config.domainname,
            addresses=addresses,
            extra=[*self._extra_hosts(host_config, attachment), *self._links(container)],
            origin=_read_host_file("/etc/hosts") if host else None,
        )
        resolv = files.resolv_conf(
            servers=host_config.dns or config.dns,
            search=host_config.dns_search or config.dns_search,
            options=host_config.dns_options or config.dns_opts,
            ipv6=ipv6,
            host_network=host,
            resolver=dns.ADDRESS if any(name not in PREDEFINED for name in attachment.networks) else "",
        )
        return {"hosts": hosts.encode(), "resolv.conf": resolv.encode(), "hostname": f"{hostname}\n".encode()}

    def _extra_hosts(self, host_config: HostConfig, attachment: Attachment) -> list[tuple[str, str]]:
        found = []
        for entry in host_config.extra_hosts or ():
            name, _, address = entry.partition("=") if "=" in entry else entry.partition(":")
            address = address.strip("[]")
            if address == "host-gateway":
                found += [(gateway, name) for gateway in self._host_gateways(attachment)]
            else:
                found.append((address, name))
        return found

    def _host_gateways(self, attachment: Attachment) -> list[str]:
        if self._config.host_gateway_ips:
            return list(self._config.host_gateway_ips)
        default = self._records.get(self._names.get("bridge", ""))
        if default is not None:
            return [pool.gateway for pool in default.ipam.config if pool.gateway]
        return [settings.gateway for settings in attachment.networks.values() if settings.gateway][:1]

    def _links(self, container: Container) -> list[tuple[str, str]]:
        """``--link`` on the default bridge: the other's address under the alias, its host name and its name."""
        found = []
        for alias, other, address in self._linked(container):
            names = dict.fromkeys((alias, other.config.hostname, other.name))
            found.append((address, " ".join(name for name in names if name)))
        return found

    def link_environment(self, container: Container) -> list[str]:
        """The variables that tell a container about those it links to on the default bridge."""
        return [
            line
            for alias, other, address in self._linked(container)
            for line in links.environment(container.name, alias, other, address)
        ]

    def _linked(self, container: Container) -> Iterator[tuple[str, Container, str]]:
        for ref, alias in links.legacy(container.host_config):
            try:
                other = self.find(ref)
            except NotFound:
                continue  # a link goes with the container it led to
            live = self.attachment(other)
            address = live.networks["bridge"].ip_address if live and "bridge" in live.networks else ""
            if not address:
                raise Conflict(f"Cannot link to a non running container: /{other.name} AS /{container.name}/{alias}")
            yield alias, other, address


def _link_local(settings: EndpointSettings) -> tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]:
    """``--link-local-ip``: further addresses of the endpoint, in the prefixes kept for them."""
    asked = settings.ipam_config.link_local_ips if settings.ipam_config else None
    return tuple(ipaddress.ip_interface(f"{ip}/{16 if '.' in ip else 64}") for ip in asked or ())


def _recorded_endpoint(container_id: str, network_id: str, settings: EndpointSettings) -> Endpoint:
    ipv4 = f"{settings.ip_address}/{settings.ip_prefix_len}" if settings.ip_address else ""
    ipv6 = f"{settings.global_ipv6_address}/{settings.global_ipv6_prefix_len}" if settings.global_ipv6_address else ""
    return Endpoint(
        id=settings.endpoint_id,
        network_id=network_id,
        container_id=container_id,
        ipv4=ipaddress.IPv4Interface(ipv4) if ipv4 else None,
        ipv6=ipaddress.IPv6Interface(ipv6) if ipv6 else None,
        mac=settings.mac_address,
        options=settings.driver_opts or {},
    )


def _recorded_join(plug: Plug, settings: EndpointSettings) -> Joined:
    return Joined(
        interface=plug.interface,
        mac=settings.mac_address,
        gateway_ipv4=settings.gateway,
        gateway_ipv6=settings.ipv6_gateway,
    )


def _dns_names(container: Container, settings: EndpointSettings) -> list[str]:
    """The names other containers of a user-defined network find this one by."""
    names = (container.name, *(settings.aliases or ()), container.id[:12], container.config.hostname)
    return [name for name in dict.fromkeys(names) if name]


def _aliases(links: Sequence[str]) -> dict[str, str]:
    """``--link name:alias`` as alias -> name."""
    found = {}
    for link in links:
        name, _, alias = link.rpartition(":") if ":" in link else (link, "", link)
        found[alias.strip("/").split("/")[-1]] = name.strip("/").split("/")[-1]
    return found


def _rewrite(directory: Path, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """In place: the files are mounted into the container, a new file would not be seen there."""
    hosts, resolv = directory / "hosts", directory / "resolv.conf"
    if before["hosts"] != after["hosts"]:
        text = files.edited(hosts.read_text(errors="replace"), before["hosts"].decode(), after["hosts"].decode())
        hosts.write_text(text)
    if before["resolv.conf"] != after["resolv.conf"] and resolv.read_bytes() == before["resolv.conf"]:
        resolv.write_bytes(after["resolv.conf"])


def _check_address(text: str, version: int) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != version or address.is_unspecified:
        raise InvalidParameter(f"invalid IPv{version} address: {text}")


def _check_pool(record: NetworkRecord, version: int, text: str) -> None:
    """An address may be asked for in a subnet the user chose: others may be another one after the next start."""
    subnets = [subnet for each in record.configured if (subnet := ipaddress.ip_network(each)).version == version]
    if not text or any(ipaddress.ip_address(text) in subnet for subnet in subnets):
        return
    problem = (
        f"no configured subnet or ip-range contain the IP address {text}"
        if subnets
        else "user specified IP address is supported only when connecting to networks with user configured subnets"
    )
    raise InvalidParameter(f"invalid config for network {record.name}: invalid endpoint settings:\n{problem}")


def _check_mac(text: str) -> None:
    octets = text.replace("-", ":").split(":")
    if len(octets) != 6 or not all(len(o) == 2 and set(o.lower()) <= set("0123456789abcdef") for o in octets):
        raise InvalidParameter(f"invalid MAC address: {text}")


def _read_host_file(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
