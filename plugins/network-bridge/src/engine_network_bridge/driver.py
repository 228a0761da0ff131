"""The bridge driver: links, addresses and rules of bridge networks.

Everything it makes in the kernel says whose it is - a link's alias is ``engine-<instance> <kind> <id>``, the nftables
table is ``engine-<instance>`` - so that `restore` can remove what should not be there and never touches the rest.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, ip_interface
from pathlib import Path

from engine import kernel, netlink
from engine.drivers import DriverContext
from engine.drivers.network import AddressPolicy, Endpoint, Finding, Joined, Network, NetworkDriver, PublishedPort
from engine.errors import Conflict, EngineError, NotFound, NotSupported
from engine.netlink import Netlink
from engine_network_bridge import foreign, rules
from engine_network_bridge.firewall import Firewall
from engine_network_bridge.options import BRIDGE_NAME, DEFAULT_BRIDGE, BridgeOptions, parse
from engine_network_bridge.ports import HostPorts, PortHolder

__all__ = ["BridgeDriver"]

_log = logging.getLogger(__name__)

_DEFAULT_LINK = "docker0"
_LINGER = 1.0  # how long the kernel may take to remove the veth of a namespace that went away, in seconds
_PREFIX = "com.docker.network.bridge."


@dataclass(frozen=True, slots=True)
class _Bridge:
    network: Network
    options: BridgeOptions
    index: int


class BridgeDriver(NetworkDriver):
    """Containers of a network share a Linux bridge; the world outside is reached through NAT and published ports."""

    capabilities = frozenset({"sandbox", "publish", "policy"})

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._owner = f"engine-{context.instance}"
        self._proxy = _enabled(context, "userland-proxy")
        self._forwarding = _enabled(context, "ip-forward")
        self._netlink = Netlink()
        self._firewall = Firewall(self._owner, guard=self._guard().exists)
        self._holder = PortHolder(context.state)
        self._ports = HostPorts(self._holder)
        self._bridges: dict[str, _Bridge] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._reaper = _Reaper(self._netlink)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of sockets and threads; everything in the kernel, and the port holder, stay."""
        self._reaper.close()
        self._holder.disconnect()
        self._firewall.close()
        self._netlink.close()

    # -- networks -------------------------------------------------------------------------------------------

    def complete(self, network: Network) -> Network:
        """Choose the default bridge's link: ``docker0`` unless somebody else has one, else a name of this instance."""
        if network.options.get(DEFAULT_BRIDGE) != "true":
            return network
        options = {
            f"{_PREFIX}enable_icc": "true",
            f"{_PREFIX}enable_ip_masquerade": "true",
            f"{_PREFIX}host_binding_ipv4": "0.0.0.0",  # noqa: S104 - Docker's default, shown by inspect
            "com.docker.network.driver.mtu": "1500",
            **network.options,
        }
        name = options.get(BRIDGE_NAME, "")
        if name in ("", _DEFAULT_LINK, f"br-{self.context.instance}"):
            link = self._netlink.link(_DEFAULT_LINK)
            ours = link is None or link.alias.startswith(f"{self._owner} ")
            options[BRIDGE_NAME] = _DEFAULT_LINK if ours else f"br-{self.context.instance}"
        return replace(network, options=options)

    def create_network(self, network: Network) -> None:
        """Make the bridge with its addresses, and the network's rules."""
        options = parse(network)
        self._check_name(network, options)
        bridge = _Bridge(network, options, self._ensure_bridge(network, options))
        with self._lock:
            self._bridges[network.id] = bridge
        try:
            self._enable_forwarding(network)
            self._firewall.set_network(network.id, rules.network_elements(network, options))
            foreign.accept(self._owner, options.bridge, self._firewall.drops_forwarding)
        except BaseException:
            self.delete_network(network.id)
            raise

    def delete_network(self, network_id: str) -> None:
        """Remove the rules, and the bridge if this driver made it."""
        with self._lock:
            bridge = self._bridges.pop(network_id, None)
        self._firewall.remove_network(network_id)
        if bridge is None:
            return
        foreign.withdraw(self._owner, bridge.options.bridge, self._firewall.drops_forwarding)
        link = self._netlink.link(bridge.options.bridge)
        if link is not None and link.alias == self._alias("network", network_id):
            self._delete(link)

    def _check_name(self, network: Network, options: BridgeOptions) -> None:
        with self._lock:
            for other in self._bridges.values():
                if other.options.bridge == options.bridge and other.network.id != network.id:
                    raise Conflict(
                        f"cannot create network {network.id} ({options.bridge}): conflicts with network "
                        f"{other.network.id} ({other.options.bridge}): networks have same bridge name"
                    )

    def _ensure_bridge(self, network: Network, options: BridgeOptions) -> int:
        link = self._netlink.link(options.bridge)
        alias = self._alias("network", network.id)
        if link is not None and link.alias != alias:
            if link.alias.startswith(f"{self._owner} "):  # left over from a network of ours that is gone
                self._netlink.request(netlink.delete_link(link.index))
                link = None
            elif not options.named or link.kind != "bridge":
                raise Conflict(f"link {options.bridge} exists already and is not a bridge of this network")
        if link is None:
            mac = "02:42:" + secrets.token_bytes(4).hex(":")
            self._netlink.request(
                netlink.add_bridge(options.bridge, mac=mac, mtu=options.mtu), netlink.set_alias(options.bridge, alias)
            )
            link = self._netlink.link(options.bridge)
            if link is None:
                raise EngineError(f"bridge {options.bridge} vanished while it was made")
            _sysctl(f"net/ipv6/conf/{options.bridge}/accept_ra", "0")
        addresses = [
            ip_interface(f"{pool.gateway}/{pool.subnet.prefixlen}")
            for pool in network.subnets
            if pool.gateway is not None and not options.inhibit_address
        ]
        self._netlink.request(
            *(netlink.add_address(link.index, address) for address in addresses), netlink.set_up(link.index)
        )
        _sysctl(f"net/ipv4/conf/{options.bridge}/route_localnet", "1")
        return link.index

    def _enable_forwarding(self, network: Network) -> None:
        if network.internal or not self._forwarding:
            return
        switch = Path("/proc/sys/net/ipv4/ip_forward")
        if switch.read_text().strip() == "0":
            _log.warning("turning on IP forwarding; packets between other interfaces stay blocked")
            self._guard().touch()
            self._firewall.rebuild()
            switch.write_text("1")
        if network.ipv6:
            for scope in ("default", "all"):
                _sysctl(f"net/ipv6/conf/{scope}/forwarding", "1")

    def _guard(self) -> Path:
        return self.context.state / "forwarding-was-off"

    # -- endpoints ------------------------------------------------------------------------------------------

    def create_endpoint(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Choose the MAC address: Docker's 02:42 and the IPv4 address, so that a reused address is a reused MAC."""
        if not endpoint.mac:
            tail = endpoint.ipv4.ip.packed if endpoint.ipv4 is not None else secrets.token_bytes(4)
            endpoint = replace(endpoint, mac="02:42:" + tail.hex(":"))
        with self._lock:
            self._endpoints[endpoint.id] = endpoint
        return endpoint

    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """Forget it."""
        with self._lock:
            self._endpoints.pop(endpoint_id, None)

    def join(self, network: Network, endpoint: Endpoint, sandbox: Path, *, interface: str) -> Joined:
        """Make a veth pair with one end in the bridge and the other, configured, in the sandbox."""
        bridge = self._bridge(network.id)
        options = bridge.options
        name = self._veth(endpoint.id)
        gateways: dict[int, netlink.Address] = {
            pool.subnet.version: pool.gateway
            for pool in network.subnets
            if pool.gateway is not None and not network.internal and not options.inhibit_address
        }
        try:
            namespace = os.open(sandbox, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"sandbox {sandbox} does not exist") from None
        try:
            made, labelled = self._netlink.try_request(
                netlink.add_veth(
                    name,
                    master=bridge.index,
                    peer=interface,
                    peer_mac=endpoint.mac,
                    peer_namespace=namespace,
                    mtu=options.mtu,
                ),
                netlink.set_bridge_port(
                    name, self._alias("endpoint", endpoint.id), hairpin=True, isolated=not options.icc
                ),
            )
        finally:
            os.close(namespace)
        if made is not None and made.errno != errno.EEXIST:
            raise EngineError(f"failed to add interface {interface} to the sandbox: {made.strerror}") from made
        try:
            if labelled is not None:
                raise labelled
            kernel.in_namespace(sandbox, lambda: _configure(interface, endpoint, gateways))
        except OSError as error:
            self.leave(network.id, endpoint.id, sandbox)
            raise EngineError(f"failed to set up interface {interface} in the sandbox: {error}") from error
        return Joined(
            interface=interface,
            mac=endpoint.mac,
            gateway_ipv4=str(gateways.get(4, "")) if endpoint.ipv4 is not None else "",
            gateway_ipv6=str(gateways.get(6, "")) if endpoint.ipv6 is not None else "",
        )

    def leave(self, network_id: str, endpoint_id: str, sandbox: Path) -> None:
        """Remove the veth. With the sandbox gone the kernel does it, and is only checked on a little later."""
        name = self._veth(endpoint_id)
        if not sandbox.exists():
            self._reaper.check_later(name)
            return
        link = self._netlink.link(name)
        if link is not None:
            self._delete(link)

    # -- ports ----------------------------------------------------------------------------------------------

    def publish(
        self, network: Network, endpoint: Endpoint, ports: Sequence[PublishedPort]
    ) -> tuple[PublishedPort, ...]:
        """Reserve the host ports, then map them to the container's."""
        options = self._bridge(network.id).options
        self.unpublish(network.id, endpoint.id)
        address4, address6 = _addresses(endpoint)
        wanted = [(port, self._host_addresses(port, options)) for port in ports]
        targets = {version: text for version, text in ((4, address4), (6, address6)) if text}
        published = self._ports.publish(endpoint.id, wanted, targets, proxy=self._proxy)
        try:
            self._firewall.set_ports(endpoint.id, rules.port_elements(published, address4, address6, options=options))
        except BaseException:
            self._ports.unpublish(endpoint.id)
            raise
        return published

    def unpublish(self, network_id: str, endpoint_id: str) -> None:
        """Remove the mappings, then let the host ports go."""
        self._firewall.remove_ports(endpoint_id)
        self._ports.unpublish(endpoint_id)

    def _host_addresses(self, port: PublishedPort, options: BridgeOptions) -> list[str]:
        if port.host_ip:
            return [port.host_ip]
        if options.binding is not None:
            return [str(options.binding)]
        both = ["0.0.0.0", "::"]  # noqa: S104 - publishing on all addresses is Docker's default
        return both if Path("/proc/net/if_inet6").exists() else both[:1]

    # -- restart --------------------------------------------------------------------------------------------

    def restore(
        self, networks: Sequence[Network], endpoints: Sequence[tuple[Endpoint, tuple[PublishedPort, ...]]]
    ) -> None:
        """Bring bridges, rules and held ports to what should be; running containers notice nothing."""
        expected = {self._alias("network", network.id) for network in networks}
        expected |= {self._alias("endpoint", endpoint.id) for endpoint, _ in endpoints}
        stale = [
            link
            for link in self._netlink.links()
            if link.alias.startswith(f"{self._owner} ") and link.alias not in expected
        ]
        for link in stale:
            _log.info("removing a left-over link", extra={"link": link.name, "alias": link.alias})
            self._delete(link)
        elements: dict[str, list[rules.Element]] = {}
        for network in networks:
            try:
                options = parse(network)
                bridge = _Bridge(network, options, self._ensure_bridge(network, options))
                self._enable_forwarding(network)
                foreign.accept(self._owner, options.bridge, self._firewall.drops_forwarding)
            except (EngineError, OSError):
                _log.exception("a network cannot be restored", extra={"network": network.id})
                continue
            self._bridges[network.id] = bridge
            elements[network.id] = rules.network_elements(network, options)
        published: dict[str, list[rules.Element]] = {}
        held: dict[str, tuple[Sequence[PublishedPort], dict[int, str]]] = {}
        for endpoint, ports in endpoints:
            if endpoint.network_id not in self._bridges:
                continue
            self._endpoints[endpoint.id] = endpoint
            self._reattach(endpoint)
            if ports:
                options = self._bridges[endpoint.network_id].options
                address4, address6 = _addresses(endpoint)
                published[endpoint.id] = rules.port_elements(ports, address4, address6, options=options)
                held[endpoint.id] = (ports, {v: text for v, text in ((4, address4), (6, address6)) if text})
        self._firewall.restore(elements, published)
        for endpoint_id, index, number in self._ports.restore(held, proxy=self._proxy):
            _log.warning(
                "a published port is taken by another process",
                extra={"endpoint": endpoint_id, "port": held[endpoint_id][0][index], "error": os.strerror(number)},
            )

    def set_policies(self, policies: Sequence[AddressPolicy]) -> None:
        """Put the policies' sets and rules into the table; packets within one bridge are shown to it (br_netfilter)."""
        if policies:
            for name in ("iptables", "ip6tables"):
                switch = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
                if not switch.exists():
                    raise NotSupported("network policies need br_netfilter in the kernel: modprobe br_netfilter")
                if switch.read_text().strip() != "1":
                    switch.write_text("1")
        self._firewall.set_policies(policies)

    # -- looking --------------------------------------------------------------------------------------------

    def diagnose(self, network: Network, endpoint: Endpoint) -> Sequence[Finding]:
        """The bridge, the endpoint's port in it, and the firewall's part."""
        options = self._bridge(network.id).options
        found = [self._look_at_bridge(network, options.bridge), self._look_at_port(endpoint, options)]
        wanted = [*rules.network_elements(network, options), *self._firewall.ports(endpoint.id)]
        missing = self._firewall.missing(wanted)
        if missing:
            text = f"the firewall lacks {', '.join(f'{each.set} {each.key}' for each in missing[:3])}"
            found.append(Finding("firewall", False, text, "restart the engine"))
        else:
            found.append(
                Finding("firewall", True, f"nftables table {self._owner} has the network's {len(wanted)} entries")
            )
        if not options.icc:
            text = f"{network.name} forbids its containers to talk to each other ({_PREFIX}enable_icc=false)"
            found.append(Finding("policy", False, text, "publish a port, or use another network"))
        if not network.internal and Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "0":
            found.append(
                Finding("forwarding", False, "the host does not forward packets", "sysctl net.ipv4.ip_forward=1")
            )
        if foreign.drops(self._owner, options.bridge, self._firewall.drops_forwarding):
            text = f"iptables FORWARD drops by default and has no accept for {options.bridge}"
            found.append(Finding("foreign", False, text, f"iptables -I DOCKER-USER -i {options.bridge} -j ACCEPT"))
        return found

    def _look_at_bridge(self, network: Network, name: str) -> Finding:
        link = self._netlink.link(name)
        if link is None:
            return Finding("bridge", False, f"bridge {name} of {network.name} is gone", "restart the engine")
        if not link.up:
            return Finding("bridge", False, f"bridge {name} of {network.name} is down", f"ip link set {name} up")
        return Finding("bridge", True, f"bridge {name} of {network.name} is up")

    def _look_at_port(self, endpoint: Endpoint, options: BridgeOptions) -> Finding:
        name = self._veth(endpoint.id)
        link, bridge = self._netlink.link(name), self._netlink.link(options.bridge)
        if link is None:
            return Finding("link", False, f"the container's link {name} is gone", "restart the container")
        if bridge is None or link.master != bridge.index:
            return Finding("link", False, f"{name} is not in bridge {options.bridge}", "restart the engine")
        if not link.up:
            return Finding("link", False, f"{name} is down", f"ip link set {name} up")
        return Finding("link", True, f"{name} ({endpoint.mac}) is in bridge {options.bridge} and up")

    def _reattach(self, endpoint: Endpoint) -> None:
        """Put a running container's veth back into its bridge, should the bridge have been deleted meanwhile."""
        link = self._netlink.link(self._veth(endpoint.id))
        bridge = self._bridges[endpoint.network_id]
        if link is not None and link.master != bridge.index:
            self._netlink.request(
                netlink.set_master(link.index, bridge.index),
                netlink.set_bridge_port(link.name, link.alias, hairpin=True, isolated=not bridge.options.icc),
            )

    def _delete(self, link: netlink.Link) -> None:
        try:
            self._netlink.request(netlink.delete_link(link.index))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    # -- names ----------------------------------------------------------------------------------------------

    def _bridge(self, network_id: str) -> _Bridge:
        with self._lock:
            bridge = self._bridges.get(network_id)
        if bridge is None:
            raise NotFound(f"network {network_id} not found")
        return bridge

    def _alias(self, kind: str, identifier: str) -> str:
        return f"{self._owner} {kind} {identifier}"

    @staticmethod
    def _veth(endpoint_id: str) -> str:
        return f"veth{hashlib.sha256(endpoint_id.encode()).hexdigest()[:11]}"


class _Reaper:
    """Checks, a little later and once, that the kernel has removed the links of namespaces that went away.

    It has not when something else still holds the namespace (a container that shares it, a debugger); then the
    address would live on in the bridge, so the link is deleted here.
    """

    def __init__(self, netlink_: Netlink) -> None:
        self._netlink = netlink_
        self._condition = threading.Condition()
        self._due: list[tuple[float, str]] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def check_later(self, name: str) -> None:
        with self._condition:
            self._due.append((time.monotonic() + _LINGER, name))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="veth-reaper", daemon=True)
                self._thread.start()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._due and not self._closed and (wait := self._due[0][0] - time.monotonic()) > 0:
                    self._condition.wait(wait)
                if not self._due or self._closed:
                    self._thread = None
                    return
                _, name = self._due.pop(0)
            try:
                link = self._netlink.link(name)
                if link is not None:
                    self._netlink.request(netlink.delete_link(link.index))
            except OSError as error:
                if error.errno != errno.ENODEV:
                    _log.warning("a left-over link stays", extra={"link": name, "error": str(error)})


def _configure(interface: str, endpoint: Endpoint, gateways: Mapping[int, netlink.Address]) -> None:
    """Inside the sandbox: addresses, up, default routes where there is none yet."""
    with Netlink() as inside:
        link = inside.link(interface)
        if link is None:
            raise OSError(errno.ENODEV, f"no interface {interface}")
        if endpoint.ipv6 is None:
            _sysctl(f"net/ipv6/conf/{interface}/disable_ipv6", "1")
        addresses = [address for address in (endpoint.ipv4, endpoint.ipv6) if address is not None]
        inside.request(*(netlink.add_address(link.index, a) for a in addresses), netlink.set_up(link.index))
        routes = [gateways[address.version] for address in addresses if address.version in gateways]
        if routes:
            for error in inside.try_request(*(netlink.add_default_route(link.index, gateway) for gateway in routes)):
                if error is not None and error.errno != errno.EEXIST:
                    raise error


def _enabled(context: DriverContext, option: str) -> bool:
    return str(context.options.get(option, True)).lower() not in ("false", "0")


def _addresses(endpoint: Endpoint) -> tuple[str, str]:
    return (
        str(endpoint.ipv4.ip) if isinstance(endpoint.ipv4, IPv4Interface) else "",
        str(endpoint.ipv6.ip) if endpoint.ipv6 is not None else "",
    )


def _sysctl(name: str, value: str) -> None:
    """Set one where it exists (a kernel without IPv6 has no net/ipv6), in the calling thread's network namespace."""
    try:
        Path("/proc/sys", name).write_text(value)
    except FileNotFoundError:
        pass
