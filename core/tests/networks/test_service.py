"""Networks and the containers on them, with drivers that only remember."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine.config import Config
from engine.containers.start import with_attachment
from engine.drivers import DriverContext, DriverDescription
from engine.errors import AlreadyExists, Conflict, EngineError, Forbidden, InvalidParameter, NotFound
from engine.events import Events
from engine.model.container import Config as ContainerConfig
from engine.model.container import Container, ContainerState, HostConfig, PortBinding
from engine.model.filters import Filters
from engine.model.network import IPAM, EndpointIPAMConfig, EndpointSettings, IPAMConfig
from engine.names import new_id
from engine.networks import NetworkCreate, Networks, links
from engine.store import Store
from engine.testing.fakes import FakeNetworks
from engine.workers import Workers


class Bare(FakeNetworks):
    """Neither sandbox nor ports: the host's and the null driver."""

    capabilities = frozenset()


class FakePlugins:
    def __init__(self, root: Path) -> None:
        self.drivers = {
            name: kind(DriverContext(name=name, instance="0" * 8, root=root, state=root))
            for name, kind in (("bridge", FakeNetworks), ("host", Bare), ("null", Bare))
        }

    def network(self, name: str) -> FakeNetworks:
        self.describe("network", name)
        return self.drivers[name]

    def describe(self, kind: str, name: str) -> DriverDescription:
        if name not in self.drivers:
            raise NotFound(f'plugin "{name}" not found')
        return DriverDescription(name=name, loader="", summary="")


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.plugins = FakePlugins(root)
        self.containers: dict[str, Container] = {}
        self.events: list[tuple[str, str]] = []

    @asynccontextmanager
    async def daemon(self, **config: Any) -> AsyncIterator[Networks]:
        store, workers = Store(self.root / "db"), Workers()
        events = Events(store)
        publish = events.publish

        async def note(type: str, action: str, actor: str, attributes: Any, **rest: Any) -> None:
            self.events.append((action, attributes.get("name", "")))
            await publish(type, action, actor, attributes, **rest)

        events.publish = note  # type: ignore[method-assign]
        networks = Networks(
            config=Config(exec_root=str(self.root / "run"), data_root=str(self.root), **config),
            store=store,
            events=events,
            workers=workers,
            plugins=self.plugins,  # type: ignore[arg-type]
        )
        networks.find = self.find
        try:
            await networks.start([c for c in self.containers.values() if c.state.status == "running"])
            yield networks
        finally:
            await workers.close()
            await store.close()

    def find(self, ref: str) -> Container:
        for container in self.containers.values():
            if ref in (container.id, container.name):
                return container
        raise NotFound(f"No such container: {ref}")

    def container(self, networks: Networks, name: str = "c1", mode: str = "bridge", **host: Any) -> Container:
        config = ContainerConfig(hostname="box", **host.pop("config", {}))
        requested = host.pop("requested", {})
        host_config = HostConfig(network_mode=mode, **host)
        container = Container(
            id=new_id(), name=name, created="", image_id="", chain_id=None, platform="", runtime="", store="",
            log_driver="", path="", args=[], config=config, host_config=host_config,
            networks=networks.validate(host_config, config, requested),
        )  # fmt: skip
        self.containers[container.id] = container
        return container

    async def start(self, networks: Networks, container: Container) -> Container:
        attachment = await networks.attach(container)
        running = msgspec.structs.replace(
            with_attachment(container, attachment), state=ContainerState(status="running")
        )
        self.containers[container.id] = running
        return running


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type]


def settings(**values: Any) -> EndpointSettings:
    return EndpointSettings(**values)


def subnet(text: str, **values: Any) -> IPAM:
    return IPAM(config=[IPAMConfig(subnet=text, **values)])


def test_the_three_networks_of_every_engine_keep_their_ids(world: World) -> None:
    async def body() -> None:
        async with world.daemon(bip="10.9.0.1/24") as networks:
            first = {record["Name"]: record["Id"] for record in networks.list()}
            assert networks.inspect("bridge")["IPAM"]["Config"] == [{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}]
        async with world.daemon(bip="10.8.0.1/24") as networks:
            assert {record["Name"]: record["Id"] for record in networks.list()} == first
            assert networks.inspect("bridge")["IPAM"]["Config"] == [{"Subnet": "10.8.0.0/24", "Gateway": "10.8.0.1"}]
        assert sorted(first) == ["bridge", "host", "none"]

    run(body)


def test_a_network_is_created_found_and_removed(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            identifier, _ = await networks.create(NetworkCreate(name="n", ipam=subnet("10.1.0.0/16")))
            assert networks.get("n").id == networks.get(identifier[:12]).id == identifier
            assert identifier in world.plugins.drivers["bridge"].networks
            await networks.remove("n")
            assert identifier not in world.plugins.drivers["bridge"].networks
            with pytest.raises(NotFound, match="network n not found"):
                networks.get("n")
            await networks.create(NetworkCreate(name="n", ipam=subnet("10.1.0.0/16")))
        assert world.events[-3:] == [("create", "n"), ("destroy", "n"), ("create", "n")]

    run(body)


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (NetworkCreate(name="bridge"), Forbidden, "operation is not permitted on predefined bridge network"),
        (NetworkCreate(name="n", driver="nosuch"), NotFound, 'plugin "nosuch" not found'),
        (NetworkCreate(name="n", driver="host"), Forbidden, 'only one instance of "host" network is allowed'),
        (NetworkCreate(name=" "), InvalidParameter, "name is empty"),
        (NetworkCreate(name="taken"), AlreadyExists, "network with name taken already exists"),
        (NetworkCreate(name="n", ipam=subnet("10.1.2.0/24")), Forbidden, "Pool overlaps with other one"),
        (NetworkCreate(name="n", ipam=subnet("10.1.2.3/24")), InvalidParameter, "it should be 10.1.2.0/24"),
    ],
)
def test_a_network_that_cannot_be_leaves_nothing_behind(
    world: World, request_: NetworkCreate, error: type[EngineError], text: str
) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            await networks.create(NetworkCreate(name="taken", ipam=subnet("10.1.0.0/16")))
            before = networks.list()
            with pytest.raises(error, match=text):
                await networks.create(request_)
            assert networks.list() == before

    run(body)


def test_a_failing_driver_leaves_neither_name_nor_pool(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            bridge = world.plugins.drivers["bridge"]
            works = bridge.create_network

            def fails(network: object) -> None:
                raise Conflict("no")

            bridge.create_network = fails  # type: ignore[method-assign]
            with pytest.raises(Conflict):
                await networks.create(NetworkCreate(name="n", ipam=subnet("10.1.0.0/16")))
            bridge.create_network = works  # type: ignore[method-assign]
            await networks.create(NetworkCreate(name="n", ipam=subnet("10.1.0.0/16")))

    run(body)


def test_predefined_and_used_networks_cannot_be_removed(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            await networks.create(NetworkCreate(name="n"))
            container = await world.start(networks, world.container(networks, mode="n"))
            with pytest.raises(Forbidden, match="bridge is a pre-defined network and cannot be removed"):
                await networks.remove("bridge")
            with pytest.raises(Forbidden, match=r"error while removing network: network n id .* has active endpoints"):
                await networks.remove("n")
            assert (await networks.prune())["NetworksDeleted"] is None
            await networks.detach(container)
            assert (await networks.prune())["NetworksDeleted"] == ["n"]

    run(body)


def test_lists_are_filtered(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            await networks.create(NetworkCreate(name="n", labels={"a": "1"}))

            def names(**filters: list[str]) -> list[str]:
                return sorted(body["Name"] for body in networks.list(Filters(filters)))

            assert names(type=["custom"]) == names(label=["a=1"]) == names(dangling=["true"]) == ["n"]
            assert names(driver=["host", "null"]) == ["host", "none"]
            assert names(name=["^n$"]) == ["n"]
            assert names(dangling=["false"]) == ["bridge", "host", "none"]
            for bad in ({"nope": ["1"]}, {"type": ["x"]}, {"dangling": ["maybe"]}):
                with pytest.raises(InvalidParameter, match="invalid filter"):
                    networks.list(Filters(bad))

    run(body)


def test_a_container_gets_an_address_shows_in_inspect_and_gives_it_back(world: World) -> None:
    async def body() -> None:
        async with world.daemon(bip="10.9.0.1/30") as networks:
            container = await world.start(networks, world.container(networks))
            got = container.networks["bridge"]
            assert (got.ip_address, got.ip_prefix_len) == ("10.9.0.2", 30)
            shown = networks.inspect("bridge")["Containers"]
            assert shown[container.id]["Name"] == "c1"
            assert shown[container.id]["IPv4Address"] == "10.9.0.2/30"
            second = world.container(networks, "c2")
            with pytest.raises(Conflict, match="no available IPv4 addresses"):
                await networks.attach(second)
            await networks.detach(container)
            await networks.detach(container)
            assert networks.inspect("bridge")["Containers"] == {}
            await world.start(networks, second)
        assert world.events.count(("connect", "bridge")) == 2
        assert world.events.count(("disconnect", "bridge")) == 1

    run(body)


def test_a_port_conflict_names_the_endpoint_and_undoes_everything(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            ports = {"80/tcp": [PortBinding(host_port="8080")]}
            first = await world.start(networks, world.container(networks, port_bindings=ports))
            second = world.container(networks, "c2", port_bindings=ports)
            with pytest.raises(
                EngineError,
                match=r"driver failed programming external connectivity on endpoint c2 \([0-9a-f]{64}\): "
                r"Bind for 0.0.0.0:8080 failed: port is already allocated",
            ):
                await networks.attach(second)
            bridge = world.plugins.drivers["bridge"]
            assert list(bridge.endpoints) == [first.networks["bridge"].endpoint_id] == list(bridge.ports)
            assert list(networks.inspect("bridge")["Containers"]) == [first.id]

    run(body)


def test_after_a_restart_running_containers_keep_addresses_and_ports(world: World) -> None:
    async def body() -> None:
        async with world.daemon(bip="10.9.0.1/29") as networks:
            container = await world.start(networks, world.container(networks))
        async with world.daemon(bip="10.9.0.1/29") as networks:
            assert list(networks.inspect("bridge")["Containers"]) == [container.id]
            other = await world.start(networks, world.container(networks, "c2"))
            assert other.networks["bridge"].ip_address == "10.9.0.3"
            await networks.detach(container)
            assert container.networks["bridge"].endpoint_id not in world.plugins.drivers["bridge"].endpoints

    run(body)


def test_a_missing_network_is_an_error_at_start_only(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            container = world.container(networks, mode="nosuch")
            with pytest.raises(NotFound, match="network nosuch not found"):
                await networks.attach(container)

    run(body)


def test_networks_asked_for_replace_that_of_the_mode(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            identifier, _ = await networks.create(NetworkCreate(name="n"))
            for mode, requested, names in (
                ("bridge", {}, ["bridge"]),
                ("bridge", {identifier: settings()}, ["n"]),
                ("n", {"n": settings(), "bridge": settings()}, ["n", "bridge"]),
                (identifier[:12], {}, ["n"]),
            ):
                assert list(world.container(networks, mode=mode, requested=requested).networks) == names
            for mode, other in (("host", "n"), ("none", "n"), ("bridge", "host")):
                with pytest.raises(InvalidParameter):
                    world.container(networks, mode=mode, requested={other: settings(), "bridge": settings()})

    run(body)


def test_static_addresses_are_kept_and_checked(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            await networks.create(NetworkCreate(name="n", ipam=subnet("10.1.0.0/24")))

            def ask(mode: str, **values: Any) -> Container:
                return world.container(networks, mode=mode, requested={mode: settings(**values)})

            fixed = EndpointIPAMConfig(ipv4_address="10.1.0.77")
            container = await world.start(networks, ask("n", ipam_config=fixed, mac_address="92:d0:c6:0a:29:33"))
            assert container.networks["n"].ip_address == "10.1.0.77"
            assert container.networks["n"].mac_address == "92:d0:c6:0a:29:33"
            with pytest.raises(AlreadyExists, match="Address already in use"):
                await networks.attach(ask("n", ipam_config=fixed))
            with pytest.raises(InvalidParameter, match="user specified IP address is supported on user defined"):
                ask("bridge", ipam_config=fixed)
            with pytest.raises(InvalidParameter, match="network-scoped alias is supported only for containers in user"):
                ask("bridge", aliases=["x"])
            with pytest.raises(InvalidParameter, match="no configured subnet or ip-range contain the IP address"):
                ask("n", ipam_config=EndpointIPAMConfig(ipv4_address="10.2.0.1"))
            with pytest.raises(InvalidParameter, match="invalid IPv4 address: zz"):
                ask("n", ipam_config=EndpointIPAMConfig(ipv4_address="zz"))
            with pytest.raises(InvalidParameter, match="invalid MAC address"):
                ask("n", mac_address="nonsense")

    run(body)


def test_the_gateway_comes_first_by_priority_then_name(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            for name in ("a", "b", "c"):
                await networks.create(NetworkCreate(name=name, internal=name == "a"))
            requested = {"a": settings(), "b": settings(), "c": settings(gw_priority=1)}
            container = await world.start(networks, world.container(networks, mode="a", requested=requested))
            assert list(container.networks) == ["c", "b", "a"]

    run(body)


def test_live_connect_and_disconnect_move_published_ports(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            await networks.create(NetworkCreate(name="n"))
            ports = {"80/tcp": [PortBinding(host_port="8080")]}
            container = await world.start(networks, world.container(networks, port_bindings=ports))
            got = await networks.connect("n", container, settings(aliases=["web"]))
            assert got.ip_address
            assert got.dns_names == ["c1", "web", container.id[:12], "box"]
            with pytest.raises(Forbidden, match="endpoint with name c1 already exists in network n"):
                await networks.connect("n", container, settings())
            bridge = world.plugins.drivers["bridge"]
            assert list(bridge.ports) == [container.networks["bridge"].endpoint_id]
            await networks.disconnect("bridge", container, force=False)
            assert list(bridge.endpoints) == [got.endpoint_id]
            with pytest.raises(EngineError, match="is not connected to network host"):
                await networks.disconnect("host", container, force=False)

    run(body)


def test_a_shared_sandbox_is_the_others(world: World) -> None:
    async def body() -> None:
        async with world.daemon() as networks:
            stopped = world.container(networks)
            sharing = world.container(networks, "c2", mode=f"container:{stopped.id}")
            with pytest.raises(Conflict, match="cannot join network of a non running container"):
                await networks.attach(sharing)
            running = await world.start(networks, stopped)
            attachment = await networks.attach(sharing)
            assert attachment.sandbox_key == (running.sandbox_key or None)
            assert (attachment.sandbox_id, attachment.networks, attachment.ports) == ("", {}, {})
            theirs = networks.attachment(running)
            assert theirs is not None
            assert networks.files(sharing, attachment) == networks.files(running, theirs)
            await networks.detach(sharing)
            assert list(networks.inspect("bridge")["Containers"]) == [running.id]

    run(body)


def test_extra_hosts_and_links_are_in_the_hosts_file(world: World) -> None:
    async def body() -> None:
        async with world.daemon(bip="10.9.0.1/24") as networks:
            await world.start(networks, world.container(networks, "db"))
            container = world.container(
                networks, links=["db:store"], extra_hosts=["gate:host-gateway", "six:[fd00::1]"]
            )
            attachment = await networks.attach(container)
            text = networks.files(container, attachment)["hosts"].decode()
            assert "10.9.0.1\tgate\nfd00::1\tsix\n10.9.0.2\tstore box db\n10.9.0.3\tbox\n" in text
            dead = world.container(networks, "c2", links=["nobody:x"])
            assert "x" not in networks.files(dead, SimpleNamespace(networks={}))["hosts"].decode().split()  # type: ignore[arg-type]
            assert networks.link_environment(container) == ["STORE_NAME=/c1/store"]

    run(body)


def test_links_tell_ports_and_variables_by_the_alias() -> None:
    assert links.parse("/db:/web/my-store") == ("db", "my-store")
    assert links.parse("db") == ("db", "db")
    with pytest.raises(InvalidParameter, match="bad format for links: a:b:c"):
        links.parse("a:b:c")
    assert links.legacy(HostConfig(network_mode="bridge", links=["db:x"])) == [("db", "x")]
    assert links.legacy(HostConfig(network_mode="mine", links=["db:x"])) == []
    config = SimpleNamespace(exposed_ports={"90/udp": {}, "443/tcp": {}, "80/tcp": {}}, env=["A=1", "PATH=/bin"])
    lines = links.environment("web", "my-store", SimpleNamespace(config=config), "10.0.0.2")  # type: ignore[arg-type]
    assert lines[:2] == ["MY_STORE_PORT=tcp://10.0.0.2:80", "MY_STORE_PORT_80_TCP=tcp://10.0.0.2:80"]
    assert "MY_STORE_PORT_90_UDP_PROTO=udp" in lines
    assert lines[-2:] == ["MY_STORE_NAME=/web/my-store", "MY_STORE_ENV_A=1"]
