"""Host ports: which are free, and the process that holds them (`proxy.py`), seen from the driver.

The driver's own map answers "is it ours already"; the holder's bind answers "is it somebody else's". Both are asked
before a rule exists, so a port is never half published.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from engine.drivers.network import PublishedPort
from engine.errors import Conflict, EngineError, Unavailable

__all__ = ["Binding", "HostPorts", "PortHolder"]

_log = logging.getLogger(__name__)

_RANGE = (32768, 60999)
_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound
_TIMEOUT = 20.0

Binding = tuple[str, str, int, str, int]  # protocol, host address, host port, container address, container port


class BindFailed(Exception):
    """The holder could not bind number ``index`` of the ports it was given."""

    def __init__(self, index: int, number: int) -> None:
        super().__init__(os.strerror(number))
        self.index, self.number = index, number


class PortHolder:
    """The connection to the holder process: started when first needed, found again after a restart of the engine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._child = 0
        self._desired: dict[str, list[Binding]] = {}

    def open(self, endpoint: str, bindings: Sequence[Binding]) -> None:
        """Hold and serve ``bindings``, all or none; raises `BindFailed`."""
        with self._lock:
            answer = self._ask({"op": "open", "id": endpoint, "ports": bindings})
            if answer["error"]:
                raise BindFailed(answer["index"], answer["error"])
            self._desired[endpoint] = list(bindings)

    def close(self, endpoint: str) -> None:
        """Let the endpoint's ports go."""
        with self._lock:
            if self._desired.pop(endpoint, None) is not None:
                self._ask({"op": "close", "id": endpoint})

    def restore(self, desired: Mapping[str, list[Binding]]) -> list[tuple[str, int, int]]:
        """Make the holder hold exactly ``desired``; returns what could not be bound: endpoint, index, errno."""
        with self._lock:
            self._desired = dict(desired)
            if self._socket is None and not desired and not self._connect():
                return []  # no holder, and nothing to hold
            failed = self._ask({"op": "sync", "endpoints": self._desired})["failed"]
            return [(endpoint, index, number) for endpoint, index, number in failed]

    def disconnect(self) -> None:
        """Close the connection; the holder goes on by itself as long as it has ports."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        if self._socket is not None:
            try:
                return self._exchange(request)
            except (OSError, EOFError):
                self._drop()
        for attempt in range(3):  # one found alive may be about to end, for want of ports
            if not self._connect():
                self._start()
            try:
                self._exchange({"op": "sync", "endpoints": self._desired})  # one that died took its ports along
                return self._exchange(request)
            except (OSError, EOFError) as error:
                _log.info("the port holder went away", extra={"attempt": attempt, "error": str(error)})
                self._drop()
        raise Unavailable("the process that holds published ports does not answer")

    def _exchange(self, request: Mapping[str, object]) -> dict[str, Any]:
        assert self._socket is not None
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError("it ended")
            answer += data
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._reap()

    def _reap(self) -> None:
        """Bury the holder this engine started, if it has ended."""
        if self._child:
            try:
                ended, _ = os.waitpid(self._child, os.WNOHANG)
            except ChildProcessError:
                ended = self._child
            if ended:
                self._child = 0

    def _path(self, directory: int) -> str:
        return f"/proc/self/fd/{directory}/ports.sock"  # keeps below the 108 bytes of a unix socket's path

    def _connect(self) -> bool:
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(_TIMEOUT)
            sock.connect(self._path(directory))
        except OSError:
            sock.close()
            return False
        finally:
            os.close(directory)
        self._socket = sock
        return True

    def _start(self) -> None:
        self._reap()
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
                (self._directory / "ports.sock").unlink(missing_ok=True)
                listener.bind(self._path(directory))
                (self._directory / "ports.sock").chmod(0o600)
                listener.listen(4)
                program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("proxy.py"))]
                self._child = os.posix_spawn(
                    sys.executable,
                    program,
                    {},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, listener.fileno(), 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                    ],
                    setsid=True,
                )
        finally:
            os.close(directory)
        if not self._connect():
            raise Unavailable("the process that holds published ports did not start")


class HostPorts:
    """Allocation of host ports among this engine's endpoints, and the holder behind it."""

    def __init__(self, holder: PortHolder) -> None:
        self._holder = holder
        self._lock = threading.Lock()
        self._taken: dict[tuple[int, str, int], dict[str, str]] = {}  # version, protocol, port -> address -> endpoint
        self._of: dict[str, list[tuple[int, str, int, str]]] = {}
        self._cursor = 0

    def publish(
        self,
        endpoint: str,
        ports: Sequence[tuple[PublishedPort, Sequence[str]]],
        targets: Mapping[int, str],
        *,
        proxy: bool,
    ) -> tuple[PublishedPort, ...]:
        """Reserve every port on each of its host addresses, choosing where a choice is left; all or nothing.

        ``targets`` is the container's address by IP version, for the proxy. Raises `Conflict`.
        """
        with self._lock:
            choices = [self._candidates(port, addresses) for port, addresses in ports]
            chosen: list[int] = []
            try:
                for index in range(len(ports)):
                    chosen.append(self._next(endpoint, ports[index], choices[index]))
                while True:
                    resolved = [
                        replace(port, host_ip=address, host_port=number, host_port_end=0)
                        for (port, addresses), number in zip(ports, chosen, strict=True)
                        for address in addresses
                    ]
                    owners = [i for i, (_, addresses) in enumerate(ports) for _ in addresses]
                    try:
                        self._holder.open(endpoint, [_binding(port, targets, proxy) for port in resolved])
                        return tuple(resolved)
                    except BindFailed as failure:
                        index = owners[failure.index]
                        port = ports[index][0]
                        if failure.number != errno.EADDRINUSE or not (port.host_port == 0 or port.host_port_end):
                            raise _bind_error(resolved[failure.index], failure.number) from failure
                        self._release(endpoint, ports[index], chosen[index])
                        chosen[index] = self._next(endpoint, ports[index], choices[index])
            except BaseException:
                self._forget(endpoint)
                raise

    def unpublish(self, endpoint: str) -> None:
        """Give the endpoint's ports back; nothing happens when it has none."""
        with self._lock:
            if self._forget(endpoint):
                self._holder.close(endpoint)

    def restore(
        self, endpoints: Mapping[str, tuple[Sequence[PublishedPort], Mapping[int, str]]], *, proxy: bool
    ) -> list[tuple[str, int, int]]:
        """Take over the ports of running containers (host ports are known); returns those the holder could not bind."""
        with self._lock:
            self._taken.clear()
            self._of.clear()
            for endpoint, (ports, _) in endpoints.items():
                for port in ports:
                    self._take(endpoint, port.protocol, port.host_ip, port.host_port)
            return self._holder.restore(
                {
                    endpoint: [_binding(port, targets, proxy) for port in ports]
                    for endpoint, (ports, targets) in endpoints.items()
                }
            )

    def _candidates(self, port: PublishedPort, addresses: Sequence[str]) -> Iterator[int]:
        if port.host_port and port.host_port_end > port.host_port:
            return iter(range(port.host_port, port.host_port_end + 1))
        if port.host_port:
            return iter((port.host_port,))
        return self._ephemeral()

    def _ephemeral(self) -> Iterator[int]:
        first, last = _local_port_range()
        size = last - first + 1
        for _ in range(size):
            number = first + self._cursor % size
            self._cursor += 1
            yield number

    def _next(self, endpoint: str, wanted: tuple[PublishedPort, Sequence[str]], candidates: Iterator[int]) -> int:
        port, addresses = wanted
        for number in candidates:
            clash = next((a for a in addresses if self._clashes(port.protocol, a, number)), None)
            if clash is None:
                for address in addresses:
                    self._take(endpoint, port.protocol, address, number)
                return number
            if port.host_port and not port.host_port_end:
                raise Conflict(f"Bind for {_show(clash, number)} failed: port is already allocated")
        if port.host_port:
            raise Conflict(f"Bind for {_show(addresses[0], port.host_port)} failed: port is already allocated")
        raise Conflict("all ports are allocated")

    def _clashes(self, protocol: str, address: str, number: int) -> bool:
        host = ip_address(address)
        taken = self._taken.get((host.version, protocol, number))
        return bool(taken) and (host.is_unspecified or any(a in (address, *_ANY) for a in taken or ()))

    def _take(self, endpoint: str, protocol: str, address: str, number: int) -> None:
        version = 6 if ":" in address else 4
        self._taken.setdefault((version, protocol, number), {})[address] = endpoint
        self._of.setdefault(endpoint, []).append((version, protocol, number, address))

    def _release(self, endpoint: str, wanted: tuple[PublishedPort, Sequence[str]], number: int) -> None:
        port, addresses = wanted
        for address in addresses:
            key = (6 if ":" in address else 4, port.protocol, number)
            self._of[endpoint].remove((*key, address))
            self._drop(key, address)

    def _forget(self, endpoint: str) -> bool:
        held = self._of.pop(endpoint, None)
        for version, protocol, number, address in held or ():
            self._drop((version, protocol, number), address)
        return held is not None

    def _drop(self, key: tuple[int, str, int], address: str) -> None:
        taken = self._taken.get(key, {})
        taken.pop(address, None)
        if not taken:
            self._taken.pop(key, None)


def _binding(port: PublishedPort, targets: Mapping[int, str], proxy: bool) -> Binding:
    version = 6 if ":" in port.host_ip else 4
    target = (targets.get(version) or next(iter(targets.values()), "")) if proxy else ""
    return port.protocol, port.host_ip, port.host_port, target, port.container_port


def _show(address: str, number: int) -> str:
    return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"


def _bind_error(port: PublishedPort, number: int) -> EngineError:
    text = f"failed to bind port {_show(port.host_ip, port.host_port)}/{port.protocol}: {os.strerror(number).lower()}"
    return Conflict(text) if number == errno.EADDRINUSE else EngineError(text)


def _local_port_range() -> tuple[int, int]:
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return _RANGE
    return first, last
