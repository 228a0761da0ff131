"""Packets with descriptors, as launcher and monitors receive them.

Launcher and monitors use ``_socket``, the C half of ``socket``, all they need: the other half takes 8 ms to import.
"""

from __future__ import annotations

import _socket


def receive(sock: _socket.socket, size: int, descriptors: int) -> tuple[bytes, list[int], bool]:
    """One packet, the descriptors that came with it, and whether there were more than ``descriptors``.

    Descriptors are closed on exec. (`socket.recv_fds` takes flags but, before Python 3.12, ignores them, so a
    descriptor it received would leak into the container.)
    """
    packet, ancillary, flags, _ = sock.recvmsg(size, _socket.CMSG_LEN(4 * descriptors), _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds.extend(memoryview(data)[: len(data) // 4 * 4].cast("i"))
    return packet, fds, bool(flags & _socket.MSG_CTRUNC)
