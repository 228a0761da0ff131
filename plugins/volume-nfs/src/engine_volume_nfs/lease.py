"""One writer at a time, on whatever host: a file in the volume says who that is and until when.

The file ``.engine-lease`` names the holder; its time, by the server's clock, is when it was last renewed. Whoever
takes, renews or gives back a lease holds a lock of the server (NFSv4) on ``.engine-lease.lock`` for that moment. A
holder that is heard of no more for the length of the lease has lost it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from engine.errors import Conflict

__all__ = ["FILES", "Holder", "release", "renew", "take"]

_LEASE, _LOCK = ".engine-lease", ".engine-lease.lock"
FILES = (_LEASE, _LOCK)


class Holder(msgspec.Struct, frozen=True):
    """A container on an engine on a host; ``seconds`` is how long the lease lasts after each renewal."""

    host: str
    instance: str
    consumer: str
    seconds: int


def take(directory: Path, holder: Holder) -> None:
    """Get the lease or renew it; `Conflict` naming who has it."""
    with _locked(directory) as now:
        present = _read(directory)
        if present is not None:
            other, renewed = present
            same = (other.instance, other.consumer) == (holder.instance, holder.consumer)
            if not same and now - renewed < other.seconds:
                raise Conflict(
                    f"the volume has a single writer (access=single-writer): container {other.consumer[:12]} on host "
                    f"{other.host} has it, and was last heard of {max(0, int(now - renewed))} s ago; "
                    f"it loses it after {other.seconds} s of silence"
                )
        _write(directory, holder)


def renew(directory: Path, holder: Holder) -> bool:
    """Whether ``holder`` still has the lease; then it has it for longer."""
    with _locked(directory):
        present = _read(directory)
        if present is None or present[0] != holder:
            return False
        os.utime(directory / _LEASE)
        return True


def release(directory: Path, holder: Holder) -> None:
    """Give it back; nothing happens when it is somebody else's by now."""
    with _locked(directory):
        present = _read(directory)
        if present is not None and (present[0].instance, present[0].consumer) == (holder.instance, holder.consumer):
            (directory / _LEASE).unlink()


@contextmanager
def _locked(directory: Path) -> Iterator[float]:
    """Alone among all hosts; gives the server's time."""
    fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.utime(fd)
        yield os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def _read(directory: Path) -> tuple[Holder, float] | None:
    """The holder and when it renewed; None without one. What nobody can read was never a lease."""
    try:
        fd = os.open(directory / _LEASE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(os.read(fd, 4096), type=Holder), os.fstat(fd).st_mtime
        return None
    finally:
        os.close(fd)


def _write(directory: Path, holder: Holder) -> None:
    fresh = directory / f"{_LEASE}.{holder.instance}"
    fresh.write_bytes(msgspec.json.encode(holder))
    os.utime(fresh)
    fresh.rename(directory / _LEASE)
