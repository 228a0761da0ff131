"""JSON, and packets with descriptors, as launcher and monitors use them.

Every page a monitor's forks have in memory is paid for by each container. So launcher and monitors use the C halves of
``socket``, ``json``, ``signal`` and ``collections``, which are all they need; the other halves bring in ``re`` and
``enum``, and half of what the process would hold.
"""

from __future__ import annotations

import _socket
from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _AsJson:
    """What the scanner asks of its decoder: plain values."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


_scan = make_scanner(_AsJson)  # type: ignore[arg-type]
_encode = make_encoder(None, repr, encode_basestring_ascii, None, ": ", ", ", False, False, False)


def encode(value: Any) -> bytes:
    """``value`` as JSON."""
    return "".join(_encode(value, 0)).encode()


def decode(text: bytes) -> Any:
    """The value of a JSON text without space around it; `ValueError` when it is none."""
    characters = text.decode()
    try:
        value, end = _scan(characters, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(characters):
        raise ValueError("more than one JSON value")
    return value


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
