"""The cni driver: runs the plugins of a CNI network configuration list (specification 1.0) for each endpoint.

What was added is written down before the container starts, so that it can be deleted by the same plugins after a crash.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import Any

from engine.drivers.network import Endpoint, Joined, Network, NetworkDriver, PublishedPort
from engine.errors import EngineError, InvalidParameter, NotSupported

__all__ = ["CniDriver"]

_BIN = "/opt/cni/bin:/usr/lib/cni"
_CONF = "/etc/cni/net.d"
_TIMEOUT = 60


class CniDriver(NetworkDriver):
    """A network is a list of plugins; an endpoint is what they add."""

    capabilities = frozenset({"sandbox"})

    def create_network(self, network: Network) -> None:
        """Check that the configuration and its plugins are there; plugins make things when a container comes."""
        for plugin in self._configuration(network)["plugins"]:
            self._program(str(plugin.get("type", "")))

    def delete_network(self, network_id: str) -> None:
        """Nothing is kept for a network."""

    def create_endpoint(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """The plugins decide when they are asked to add it."""
        return endpoint

    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """`leave` had the plugins delete it."""

    def join(self, network: Network, endpoint: Endpoint, sandbox: Path, *, interface: str) -> Joined:
        """ADD, plugin after plugin; when one fails, those before it delete again."""
        record = self._record(endpoint.id)
        if record.exists():
            result: dict[str, Any] = json.loads(record.read_text())["result"]
            return _joined(result, interface)
        configuration = self._configuration(network)
        told = {"mac": endpoint.mac, "ips": [str(a) for a in (endpoint.ipv4, endpoint.ipv6) if a is not None]}
        stage = {"configuration": configuration, "interface": interface, "told": told, "result": {}}
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        record.write_text(json.dumps(stage))
        try:
            result = {}
            for plugin in configuration["plugins"]:
                result = self._run("ADD", plugin, configuration, endpoint.id, str(sandbox), interface, told, result)
        except BaseException:
            self.leave(network.id, endpoint.id, sandbox)
            raise
        record.write_text(json.dumps({**stage, "result": result}))
        return _joined(result, interface)

    def leave(self, network_id: str, endpoint_id: str, sandbox: Path) -> None:
        """DEL, in the opposite order, as it was added."""
        record = self._record(endpoint_id)
        if not record.exists():
            return
        stage = json.loads(record.read_text())
        configuration, path = stage["configuration"], str(sandbox) if sandbox.exists() else ""
        for plugin in reversed(configuration["plugins"]):
            self._run(
                "DEL", plugin, configuration, endpoint_id, path, stage["interface"], stage["told"], stage["result"]
            )
        record.unlink()

    def restore(
        self, networks: Sequence[Network], endpoints: Sequence[tuple[Endpoint, tuple[PublishedPort, ...]]]
    ) -> None:
        """Have deleted what was added for endpoints that are no more."""
        kept = {endpoint.id for endpoint, _ in endpoints}
        for record in self._record("").parent.glob("*.json"):
            if record.stem not in kept:
                self.leave("", record.stem, Path("/nonexistent"))

    # -- configurations and plugins --------------------------------------------------------------------------

    def _record(self, endpoint_id: str) -> Path:
        return self.context.root / "endpoints" / f"{endpoint_id}.json"

    def _configuration(self, network: Network) -> dict[str, Any]:
        wanted = network.options.get("conflist", "")
        if not wanted:
            raise InvalidParameter("network driver cni needs -o conflist=NAME (of a network in the CNI configuration)")
        if wanted.startswith("/"):
            return _read(Path(wanted))
        directory = Path(str(self.context.options.get("conf-dir", _CONF)))
        for path in sorted([*directory.glob("*.conflist"), *directory.glob("*.conf")]):
            configuration = _read(path)
            if configuration.get("name") == wanted:
                return configuration
        raise InvalidParameter(f"no CNI network {wanted} in {directory}")

    def _program(self, name: str) -> str:
        path = str(self.context.options.get("bin-dir", _BIN))
        program = shutil.which(name, path=path) if name and "/" not in name else None
        if program is None:
            raise NotSupported(f"CNI plugin {name!r} not found in {path}")
        return program

    def _run(
        self,
        command: str,
        plugin: Mapping[str, Any],
        configuration: Mapping[str, Any],
        identifier: str,
        sandbox: str,
        interface: str,
        told: Mapping[str, Any],
        result: Mapping[str, Any],
    ) -> dict[str, Any]:
        """One plugin once; the result it prints."""
        capabilities = plugin.get("capabilities", {})
        runtime = {key: value for key, value in told.items() if capabilities.get(key) and value}
        request = {key: value for key, value in plugin.items() if key != "capabilities"}
        request |= {"name": configuration["name"], "cniVersion": configuration.get("cniVersion", "0.4.0")}
        if runtime:
            request["runtimeConfig"] = runtime
        if result:
            request["prevResult"] = result
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": identifier,
            "CNI_NETNS": sandbox,
            "CNI_IFNAME": interface,
            "CNI_PATH": str(self.context.options.get("bin-dir", _BIN)),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        try:
            done = subprocess.run(
                [self._program(str(plugin["type"]))],
                input=json.dumps(request).encode(),
                env=environment,
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"CNI plugin {plugin['type']} did not finish {command} in {_TIMEOUT} s") from None
        if done.returncode:
            raise EngineError(f"CNI plugin {plugin['type']} failed ({command}): {_complaint(done)}")
        decoded: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        return decoded


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidParameter(f"CNI configuration {path}: {error}") from None
    if not isinstance(found, dict) or not found.get("name"):
        raise InvalidParameter(f"CNI configuration {path}: it has no name")
    if "plugins" not in found:  # a single plugin's
        found = {"name": found["name"], "cniVersion": found.get("cniVersion", "0.4.0"), "plugins": [found]}
    return found


def _complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    try:
        error = json.loads(done.stdout)
        return " ".join(str(error[key]) for key in ("msg", "details") if error.get(key))
    except (ValueError, KeyError, TypeError):
        return done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"


def _joined(result: Mapping[str, Any], interface: str) -> Joined:
    """The first address of each family, its gateway, and the container's link."""
    addresses = [(ip_interface(each["address"]), each.get("gateway", "")) for each in result.get("ips", ())]
    four = next(((a, g) for a, g in addresses if isinstance(a, IPv4Interface)), None)
    six = next(((a, g) for a, g in addresses if isinstance(a, IPv6Interface)), None)
    macs = [each.get("mac", "") for each in result.get("interfaces", ()) if each.get("name") == interface]
    return Joined(
        interface=interface,
        mac=macs[-1] if macs else "",
        gateway_ipv4=four[1] if four else "",
        gateway_ipv6=six[1] if six else "",
        ipv4=four[0] if four else None,
        ipv6=six[0] if six else None,
    )
