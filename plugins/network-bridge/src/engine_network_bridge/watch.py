"""Noticing that somebody else changed our nftables table: ``nft flush ruleset`` takes everybody's.

The kernel tells every change of a rule set to a netlink group. Here a thread listens for removals in one table and
calls back, once for what belongs together; whether something is missing is for the callee to find out (`count_rules`).
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

__all__ = ["TableWatch", "count_rules"]

_log = logging.getLogger(__name__)

_NETFILTER, _NFTABLES_GROUP, _SUBSYSTEM = 12, 7, 10 << 8
_ADD_MEMBERSHIP, _SOL_NETLINK = 1, 270
_NEWRULE, _GETRULE = _SUBSYSTEM | 6, _SUBSYSTEM | 7
_REMOVALS = frozenset(_SUBSYSTEM | kind for kind in (2, 5, 8, 11))  # table, chain, rule, set
_INET = 1
_SETTLE = 0.05  # seconds in which what one command does has all been told
_PAUSE = 1.0  # after a call back: somebody who keeps flushing gets an answer each second


def count_rules(table: str) -> int:
    """How many rules the inet table has; 0 when it is not there. One dump, without libnftables' cache."""
    name = table.encode() + b"\0"
    body = struct.pack("=BBH", _INET, 0, 0) + struct.pack("=HH", 4 + len(name), 1) + name + b"\0" * (-len(name) % 4)
    found = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as sock:
        sock.settimeout(10)
        sock.send(struct.pack("=IHHII", 16 + len(body), _GETRULE, 0x301, 1, 0) + body)
        while True:
            for kind, text in _messages(sock.recv(1 << 17)):
                if kind == _NEWRULE and _table(text) == table:
                    found += 1
                elif kind in (2, 3):  # error, or the end
                    return found


class TableWatch:
    """Calls ``changed`` from a thread of its own after somebody removed something from ``table``."""

    def __init__(self, table: str, changed: Callable[[], object]) -> None:
        self._table = table
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_GROUP)
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="firewall-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        os.close(self._stop_writer)
        self._thread.join()
        os.close(self._stop_reader)
        self._socket.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        stop = select.poll()
        stop.register(self._stop_reader, select.POLLIN)
        poll.register(self._stop_reader, select.POLLIN)
        while True:
            if any(fd == self._stop_reader for fd, _ in poll.poll()):
                return
            if not self._concerned():
                continue
            if stop.poll(_SETTLE * 1000):
                return
            self._concerned()
            try:
                self._changed()
            except Exception:
                _log.exception("the firewall cannot be repaired")
            if stop.poll(_PAUSE * 1000):
                return

    def _concerned(self) -> bool:
        """Read what there is; whether any of it was a removal from the table (or too much came to be told)."""
        found = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: events were lost
                return True
            found = found or any(kind in _REMOVALS and _table(text) == self._table for kind, text in _messages(data))


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 16:
            return
        yield kind, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _table(body: bytes) -> str:
    """The table's name: the first attribute of every message about tables, chains, sets and rules."""
    if len(body) < 8 or body[0] != _INET:
        return ""
    length, kind = struct.unpack_from("=HH", body, 4)
    return body[8 : 4 + length].rstrip(b"\0").decode(errors="replace") if kind == 1 else ""
