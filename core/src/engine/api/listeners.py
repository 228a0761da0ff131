"""The daemon's doors: sockets for ``unix://``, ``tcp://`` and ``fd://`` hosts, and who may come in by TCP.

Whoever may use the API is root on the host. So TCP is served with TLS and certificates for both sides; without, only
on loopback, unless the administrator says in so many words that it is wanted (``--insecure-tcp``).
"""

from __future__ import annotations

import errno
import grp
import ipaddress
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from engine.errors import AlreadyExists, EngineError, Forbidden, InvalidParameter

__all__ = ["Listener", "open_listener"]

log = logging.getLogger(__name__)

DEFAULT_TCP_PORT = 2375
DEFAULT_TLS_PORT = 2376
_NO_GROUP = 0


@dataclass(slots=True)
class Listener:
    """A bound socket. ``host_check`` refuses request heads a browser was tricked into sending (TCP only)."""

    host: str
    sock: socket.socket
    path: str = ""
    host_check: Callable[[Mapping[str, str]], None] | None = None
    tls: ssl.SSLContext | None = None
    bound: tuple[int, int] | None = None  # device and inode of the socket file

    def close(self) -> None:
        """Close, and remove the socket file if it still is ours."""
        mine = self.bound is not None and _inode(self.path) == self.bound
        self.sock.close()
        if mine:
            os.unlink(self.path)


def open_listener(
    host: str,
    *,
    group: str = "docker",
    insecure_tcp: bool = False,
    tls: ssl.SSLContext | None = None,
    passed: list[tuple[str, socket.socket]] | None = None,
) -> list[Listener]:
    """Open the sockets of one ``--host`` value; those for TCP speak ``tls`` if given. Raises `EngineError` with what
    to do."""
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = ("unix", host) if host.startswith("/") else ("tcp", host)
    match scheme:
        case "unix":
            return [_open_unix(host, rest or "/run/engine.sock", group)]
        case "tcp":
            return [_open_tcp(host, rest, tls, insecure_tcp)]
        case "fd":
            return _take_passed(host, rest, passed or [], tls, insecure_tcp)
        case _:
            raise InvalidParameter(f"invalid bind address format: {host}")


# -- unix -------------------------------------------------------------------------------------------------------


def _open_unix(host: str, path: str, group: str) -> Listener:
    if len(os.fsencode(path)) > 107:
        raise InvalidParameter(f"can't create unix socket {path}: the path is longer than 107 bytes")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        _remove_stale(path)
        mask = os.umask(0o177)  # nobody may connect before owner and mode are right
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        gid = _group_id(group)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, 0o660)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise _in_use(path) from None
        raise EngineError(f"can't create unix socket {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return Listener(host, sock, path, bound=_inode(path))


def _remove_stale(path: str) -> None:
    """Remove a socket file nobody answers on; anything else at ``path`` is an error."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise EngineError(f"can't create unix socket {path}: a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            pass  # a full backlog, a listener of another kind: somebody is there
    raise _in_use(path)


def _in_use(path: str) -> AlreadyExists:
    return AlreadyExists(
        f"can't create unix socket {path}: socket path in use by another daemon; stop it or use another --host"
    )


def _group_id(group: str) -> int | None:
    """The group's id: a number, or a name; the default ``docker`` need not exist, any other must."""
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group in ("docker", ""):
            log.warning("group does not exist: only root may use the socket", extra={"group": group})
            return _NO_GROUP
        raise InvalidParameter(f"group {group} not found") from None


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


# -- tcp --------------------------------------------------------------------------------------------------------


def _open_tcp(host: str, rest: str, tls: ssl.SSLContext | None, insecure: bool) -> Listener:
    try:
        parts = urlsplit(f"//{rest}")
        name, port = parts.hostname or "localhost", parts.port
    except ValueError:
        raise InvalidParameter(f"invalid bind address format: {host}") from None
    if parts.path not in ("", "/") or parts.username is not None:
        raise InvalidParameter(f"invalid bind address format: {host}")
    if port is None:
        port = DEFAULT_TCP_PORT if tls is None else DEFAULT_TLS_PORT
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InvalidParameter(f"listen tcp {rest}: {error.strerror}") from None
    loopback = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    _check_tls(host, tls, loopback=loopback, insecure=insecure)
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise EngineError(f"listen tcp {name}:{port}: bind: {(error.strerror or '').lower()}") from None
    return Listener(host, sock, host_check=_host_check(name, loopback=loopback and tls is None), tls=tls)


def _check_tls(host: str, tls: ssl.SSLContext | None, *, loopback: bool, insecure: bool) -> None:
    """Refuse or warn of a door without a lock: plain TCP, or TLS that asks nobody for a certificate."""
    if tls is not None and tls.verify_mode is ssl.CERT_REQUIRED:
        return
    how = "plain TCP" if tls is None else "TLS without client certificates"
    if not loopback and not insecure:
        raise Forbidden(
            f"{host}: {how} gives root on this host to whoever reaches the port. Use --tlsverify (`engine cert` makes "
            "the certificates), a unix socket or ssh (DOCKER_HOST=ssh://user@host), or accept the risk with "
            "--insecure-tcp"
        )
    log.warning("the API is open: whoever reaches this port is root on this host", extra={"address": host, "how": how})


def _host_check(name: str, *, loopback: bool) -> Callable[[Mapping[str, str]], None]:
    """Refuse what only a browser sends: an ``Origin`` that is not this server, a ``Host`` that is a foreign name.

    A page that makes its own name resolve to 127.0.0.1 (DNS rebinding) still sends that name as ``Host``; addresses
    and ``localhost`` cannot be rebound.
    """

    def check(headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        origin = headers.get("origin", "")
        if origin and origin.partition("://")[2] != host:
            raise Forbidden(f"cross-origin request from {origin} refused")
        if loopback and host and not _is_own_name(host, name):
            raise Forbidden(f"invalid Host header {host!r}: use an address or localhost")

    return check


def _is_own_name(host: str, name: str) -> bool:
    try:
        found = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if found in ("localhost", name):
        return True
    try:
        ipaddress.ip_address(found)
    except ValueError:
        return False
    return True


# -- passed by systemd ------------------------------------------------------------------------------------------


def _take_passed(
    host: str,
    rest: str,
    passed: list[tuple[str, socket.socket]],
    tls: ssl.SSLContext | None,
    insecure: bool,
) -> list[Listener]:
    if not passed:
        raise InvalidParameter("no sockets found via socket activation: make sure the service was started by systemd")
    wanted = [item for item in passed if rest in ("", "*") or rest in (item[0], str(item[1].fileno()))]
    if not wanted:
        raise InvalidParameter(f"no socket activation socket named {rest}")
    listeners = []
    for _, sock in wanted:
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            listeners.append(Listener(host, sock))
            continue
        loopback = ipaddress.ip_address(str(sock.getsockname()[0]).partition("%")[0]).is_loopback
        _check_tls(host, tls, loopback=loopback, insecure=insecure)
        check = _host_check("localhost", loopback=loopback and tls is None)
        listeners.append(Listener(host, sock, host_check=check, tls=tls))
    return listeners
