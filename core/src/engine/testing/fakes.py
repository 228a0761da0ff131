"""Drivers without a kernel: small, honest and in memory; the conformance kit holds them to the same promises.

Use them where a service is tested and not the driver: ``FakeVolumes(driver_context("fake"))``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engine.drivers import DriverContext
from engine.drivers.log import LogCursor, LogDriver, LogEntry, LogQuery, LogTarget, LogWriter
from engine.drivers.network import Endpoint, Joined, Network, NetworkDriver, PublishedPort
from engine.drivers.volume import Volume, VolumeDriver
from engine.errors import Conflict, InvalidParameter, NotFound

__all__ = ["FakeLogs", "FakeNetworks", "FakeVolumes"]


class FakeVolumes(VolumeDriver):
    """Plain directories; nothing is mounted. ``mounts`` shows who uses what."""

    capabilities = frozenset({"usage"})

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._volumes: dict[str, Volume] = {}
        self.mounts: set[tuple[str, str]] = set()

    def create(self, name: str, options: Mapping[str, str]) -> Volume:
        """A directory below the driver's root."""
        if options:
            raise InvalidParameter(f"invalid option: {next(iter(options))!r}")
        if name not in self._volumes:
            path = self.context.root / name
            path.mkdir()
            self._volumes[name] = Volume(name=name, mountpoint=path, created="2026-01-01T00:00:00Z")
        return self._volumes[name]

    def remove(self, name: str) -> None:
        """With its files."""
        volume = self._volumes.pop(name, None)
        if volume is not None:
            for path in sorted(volume.mountpoint.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            volume.mountpoint.rmdir()

    def get(self, name: str) -> Volume:
        """From memory."""
        if name not in self._volumes:
            raise NotFound(f"get {name}: no such volume")
        return self._volumes[name]

    def list(self) -> Sequence[Volume]:
        """All."""
        return [*self._volumes.values()]

    def mount(self, name: str, consumer: str) -> Path:
        """Remembered in ``mounts``."""
        path = self.get(name).mountpoint
        self.mounts.add((name, consumer))
        return path

    def unmount(self, name: str, consumer: str) -> None:
        """Forgotten."""
        self.mounts.discard((name, consumer))

    def usage(self, name: str) -> int:
        """Sum of the files' sizes."""
        return sum(path.stat().st_size for path in self.get(name).mountpoint.rglob("*") if path.is_file())


class FakeNetworks(NetworkDriver):
    """Records what should exist; ``joined`` and ``ports`` show it."""

    capabilities = frozenset({"publish"})

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self.networks: dict[str, Network] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.joined: dict[str, Path] = {}
        self.ports: dict[str, tuple[PublishedPort, ...]] = {}

    def create_network(self, network: Network) -> None:
        """Remember it."""
        self.networks[network.id] = network

    def delete_network(self, network_id: str) -> None:
        """Forget it."""
        self.networks.pop(network_id, None)

    def create_endpoint(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Remember it."""
        self.endpoints[endpoint.id] = endpoint
        return endpoint

    def delete_endpoint(self, network_id: str, endpoint_id: str) -> None:
        """Forget it."""
        self.endpoints.pop(endpoint_id, None)

    def join(self, network: Network, endpoint: Endpoint, sandbox: Path, *, interface: str) -> Joined:
        """Remember where."""
        self.joined[endpoint.id] = sandbox
        return Joined(interface=interface, mac=endpoint.mac or "02:00:00:00:00:01")

    def leave(self, network_id: str, endpoint_id: str, sandbox: Path) -> None:
        """Forget where."""
        self.joined.pop(endpoint_id, None)

    def publish(
        self, network: Network, endpoint: Endpoint, ports: Sequence[PublishedPort]
    ) -> tuple[PublishedPort, ...]:
        """Host ports from 49153 on where the caller leaves the choice."""
        taken = {(p.host_port, p.protocol) for owner, held in self.ports.items() if owner != endpoint.id for p in held}
        chosen: list[PublishedPort] = []
        for port in ports:
            number = port.host_port
            if not number:
                number = next(n for n in range(49153, 65536) if (n, port.protocol) not in taken)
            elif (number, port.protocol) in taken:
                raise Conflict(f"Bind for {port.host_ip or '0.0.0.0'}:{number} failed: port is already allocated")
            taken.add((number, port.protocol))
            chosen.append(
                PublishedPort(
                    container_port=port.container_port,
                    protocol=port.protocol,
                    host_ip=port.host_ip,
                    host_port=number,
                )
            )
        self.ports[endpoint.id] = tuple(chosen)
        return tuple(chosen)

    def unpublish(self, network_id: str, endpoint_id: str) -> None:
        """Free them."""
        self.ports.pop(endpoint_id, None)

    def restore(
        self, networks: Sequence[Network], endpoints: Sequence[tuple[Endpoint, tuple[PublishedPort, ...]]]
    ) -> None:
        """Exactly what is given exists afterwards."""
        self.networks = {network.id: network for network in networks}
        self.endpoints = {endpoint.id: endpoint for endpoint, _ in endpoints}
        self.ports = {endpoint.id: ports for endpoint, ports in endpoints}


class FakeLogs(LogDriver):
    """One text file: ``stream time data`` in hex lines; the writer is a file next to it, as for real drivers."""

    capabilities = frozenset({"read"})
    _WRITER = """
class Log:
    def __init__(self, path):
        self._file, self._rest = open(path, "a"), {1: b"", 2: b""}

    def write(self, stream, data, now_ns):
        *lines, self._rest[stream] = (self._rest[stream] + bytes(data)).split(b"\\n")
        for line in lines:
            kept = line + b"\\n"
            self._file.write(f"{stream} {now_ns} {kept.hex()}\\n")
        self._file.flush()

    def sync(self):
        for stream, rest in self._rest.items():
            if rest:
                self._file.write(f"{stream} 0 {rest.hex()}\\n")
        self._rest = {1: b"", 2: b""}
        self._file.flush()

    def close(self):
        self.sync()
        self._file.close()


def open_log(options):
    return Log(options["path"])
"""

    def validate(self, options: Mapping[str, str]) -> None:
        """There are no options."""
        for key in options:
            raise InvalidParameter(f"unknown log opt '{key}' for {self.context.name} log driver")

    def writer(self, target: LogTarget) -> LogWriter:
        """The class above, as a source file below the driver's state directory."""
        source = self.context.state / "fake_writer.py"
        source.write_text(self._WRITER)
        return LogWriter(source=source, options={"path": str(target.directory / "fake.log")})

    def read(self, target: LogTarget, query: LogQuery) -> Iterator[LogEntry]:
        """Parse the file."""
        path = target.directory / "fake.log"
        found: list[LogEntry] = []
        for line in path.read_text().splitlines() if path.exists() else []:
            stream, time_ns, data = line.split()
            found.append(LogEntry(int(stream), int(time_ns), bytes.fromhex(data)))
        until = query.until_ns if query.until_ns is not None else 1 << 63
        found = [e for e in found if e.stream in query.streams and query.since_ns <= e.time_ns <= until]
        return iter(found if query.tail is None else found[len(found) - min(query.tail, len(found)) :])

    def follow(self, target: LogTarget, query: LogQuery) -> LogCursor:
        """Counts what it has told."""
        return _FakeCursor(self, target, query)

    def delete(self, target: LogTarget) -> None:
        """The file."""
        (target.directory / "fake.log").unlink(missing_ok=True)


class _FakeCursor(LogCursor):
    def __init__(self, driver: FakeLogs, target: LogTarget, query: LogQuery) -> None:
        self._driver, self._target = driver, target
        total = len(list(driver.read(target, LogQuery())))
        self._told = total - (total if query.tail is None else min(query.tail, total))

    def advance(self) -> list[LogEntry]:
        found = list(self._driver.read(self._target, LogQuery()))[self._told :]
        self._told += len(found)
        return found

    def close(self) -> None:
        return None
