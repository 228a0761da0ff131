"""Content store: immutable blobs named by their digest, in the form of an OCI image layout.

A blob appears under ``blobs/sha256/<hex>`` only when all its bytes are on disk and hash to its name: it is written
to ``ingest/``, synced, renamed and the directory synced. Whatever a crash leaves is either an unfinished download
that a later one continues, or a file the next start sweeps. Who brings many blobs at once may leave the syncing to one
`Content.sync` before the record that needs them; such blobs are not trusted any more after a reboot (`rebooted`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from engine import kernel, names
from engine.errors import InvalidParameter, NotFound, TooLarge
from engine.model.image import Descriptor

__all__ = ["Content", "Leases", "Writer"]

KEEP_PARTIAL_SECONDS = 24 * 3600
_CHUNK = 1 << 20
_COMPLETE = 1 << 63
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Leases:
    """What must survive garbage collection although no record names it yet.

    Keys touched after the oldest open lease began are held: nobody has to say under which lease something was added.
    """

    def __init__(self) -> None:
        self._clock = itertools.count()
        self._open: set[int] = set()
        self._touched: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold everything touched from now until the end of the ``with`` block."""
        with self._lock:
            began = next(self._clock)
            self._open.add(began)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(began)
                oldest = min(self._open, default=None)
                self._touched = {} if oldest is None else {key: at for key, at in self._touched.items() if at > oldest}

    def touch(self, key: str) -> None:
        """Note a use; without an open lease this holds nothing."""
        with self._lock:
            if self._open:
                self._touched[key] = next(self._clock)

    def held(self, key: str) -> bool:
        """Whether an open lease protects ``key``."""
        with self._lock:
            return key in self._touched


class Content:
    """Blobs by digest. All methods block on the disk; all may be called from any thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.leases = Leases()
        self._blobs = root / "blobs" / "sha256"
        self._ingest = root / "ingest"
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._unsynced = True  # what an earlier process left may not be on disk
        self.rebooted = False
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ingest.mkdir(exist_ok=True, mode=0o700)
        layout = root / "oci-layout"
        if not layout.exists():
            layout.write_bytes(_LAYOUT)
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        marker = root / "boot-id"
        if not marker.exists() or marker.read_bytes() != boot:
            self.rebooted = True
            marker.write_bytes(boot)
        self._sweep()

    def _sweep(self) -> None:
        """Drop what cannot be continued: nameless ingests, and downloads nobody came back for within a day."""
        horizon = time.time() - (0 if self.rebooted else KEEP_PARTIAL_SECONDS)
        for entry in os.scandir(self._ingest):
            if not names.is_id(entry.name) or entry.stat().st_mtime < horizon:
                os.unlink(entry)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Content added or touched until the end of the block is safe from `collect`."""
        with self.leases.open():
            yield

    def has(self, digest: str) -> bool:
        """Whether the blob is here; it is then held for the open leases."""
        self.leases.touch(digest)  # first: from here on `collect` spares it
        with self._lock:
            return self._file(digest).exists()

    def path(self, digest: str) -> Path:
        """The blob's file, never to be written to. Raises `NotFound`."""
        self.leases.touch(digest)
        file = self._file(digest)
        if not file.exists():
            raise NotFound(f"content {digest}: not found")
        return file

    def size(self, digest: str) -> int:
        """Bytes of the blob. Raises `NotFound`."""
        return self.path(digest).stat().st_size

    def read(self, digest: str, limit: int = 4 << 20) -> bytes:
        """The blob in memory; `TooLarge` when it is over ``limit`` bytes."""
        file = self.path(digest)
        size = file.stat().st_size
        if size > limit:
            raise TooLarge(f"content {digest} is {size} bytes, more than the limit of {limit}")
        return file.read_bytes()

    def put(self, data: bytes, media_type: str, *, durable: bool = True) -> Descriptor:
        """Store ``data``; returns its descriptor. ``durable`` as in `Writer.commit`."""
        digest = names.sha256(data)
        if not self.has(digest):
            with self.writer(digest, len(data)) as writer:
                writer.restart()
                writer.write(data)
                writer.commit(durable=durable)
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def writer(self, expected_digest: str | None = None, expected_size: int | None = None) -> Writer:
        """Start writing a blob, or go on with a partial download of ``expected_digest`` (see `Writer.offset`).

        When someone else is writing the same digest the new writer works on a file of its own.
        """
        if expected_digest is not None:
            self._file(expected_digest)
        with self._lock:
            resumable = expected_digest is not None and expected_digest not in self._busy
            if resumable:
                assert expected_digest is not None
                self._busy.add(expected_digest)
        name = _hex(expected_digest) if resumable and expected_digest else f"tmp-{names.new_id()}"
        try:
            return Writer(self, self._ingest / name, expected_digest, expected_size, keyed=resumable)
        except BaseException:
            if resumable and expected_digest:
                self._release(expected_digest)
            raise

    def sync(self) -> None:
        """Make durable what was committed without being so."""
        if self._unsynced:
            self._unsynced = False
            directory = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY)
            try:
                kernel.syncfs(directory)
            except BaseException:
                self._unsynced = True
                raise
            finally:
                os.close(directory)

    def delete(self, digest: str) -> None:
        """Remove a blob; one that is not here is fine."""
        self._file(digest).unlink(missing_ok=True)

    def blobs(self) -> Iterator[tuple[str, os.stat_result]]:
        """All blobs with what stat says about them."""
        for entry in os.scandir(self._blobs):
            try:
                yield f"sha256:{entry.name}", entry.stat()
            except FileNotFoundError:
                continue

    def collect(self, keep: set[str], *, older_than: float = 0.0) -> int:
        """Delete the blobs that are neither in ``keep`` nor held by a lease, if older than so many seconds.

        Returns the bytes given back.
        """
        freed = 0
        horizon = time.time() - older_than
        for digest, status in list(self.blobs()):
            if digest in keep or status.st_mtime > horizon:
                continue
            with self._lock:
                if not self.leases.held(digest):
                    self.delete(digest)
                    freed += status.st_size
        return freed

    def _file(self, digest: str) -> Path:
        return self._blobs / _hex(digest)

    def _publish(self, temporary: Path, digest: str, durable: bool) -> None:
        self.leases.touch(digest)
        os.rename(temporary, self._file(digest))
        if not durable:
            self._unsynced = True
            return
        directory = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _release(self, digest: str) -> None:
        with self._lock:
            self._busy.discard(digest)


class Writer:
    """One blob on its way in; a context manager that aborts unless the block committed or suspended it.

    ``offset`` is how many bytes are there already: write from that byte on, or `restart`. Not thread-safe.
    """

    def __init__(self, content: Content, file: Path, digest: str | None, size: int | None, *, keyed: bool) -> None:
        self._content = content
        self._path = file
        self._digest = digest
        self._size = size
        self._keyed = keyed
        self._hash = hashlib.sha256()
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._follower = -1
        self.offset = 0
        while chunk := os.read(self._fd, _CHUNK):
            self._hash.update(chunk)
            self.offset += len(chunk)
        if size is not None and self.offset > size:
            self.restart()

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises `InvalidParameter` as soon as there is more than was promised."""
        if self._size is not None and self.offset + len(data) > self._size:
            self.abort()
            raise InvalidParameter(f"content is longer than the {self._size} bytes it should have ({self._digest})")
        self._hash.update(data)
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            view = view[written:]
            self.offset += written
        if self._follower >= 0:
            self._tell(self.offset)

    def head(self, count: int) -> bytes:
        """The first bytes of what is there."""
        return os.pread(self._fd, count, 0)

    def follow(self) -> tuple[int, int]:
        """Two descriptors, the caller's to close, for one who reads the blob while it is written: the file from its
        beginning, and one that tells how much there is (`engine.drivers.store.LayerSource.growing`)."""
        growing, follower = os.pipe2(os.O_CLOEXEC)
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(growing)
            os.close(follower)
            raise
        self.unfollow()
        self._follower = follower
        if self.offset:
            self._tell(self.offset)
        return file, growing

    def _tell(self, size: int) -> None:
        try:
            os.write(self._follower, size.to_bytes(8, "little"))
        except BrokenPipeError:  # they lost interest
            self.unfollow()

    def unfollow(self) -> None:
        """Tell who follows that the rest will not come."""
        if self._follower >= 0:
            os.close(self._follower)
            self._follower = -1

    def commit(self, *, durable: bool = True) -> str:
        """Verify, make durable, publish. Raises `InvalidParameter` and leaves nothing on a wrong size or digest.

        With ``durable=False`` the caller promises a `Content.sync` before anything relies on the blob after a crash.
        """
        digest = "sha256:" + self._hash.hexdigest()
        if self._size is not None and self.offset != self._size:
            self.abort()
            raise InvalidParameter(f"unexpected commit size {self.offset}, expected {self._size}")
        if self._digest is not None and digest != self._digest:
            self.abort()
            raise InvalidParameter(f"unexpected commit digest {digest}, expected {self._digest}")
        if durable:
            os.fsync(self._fd)
        self._content._publish(self._path, digest, durable)
        if self._follower >= 0:
            self._tell(self.offset | _COMPLETE)
        self._close()
        return digest

    def restart(self) -> None:
        """Forget what was written. Who follows is told that the rest will not come."""
        self.unfollow()
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.offset = 0

    def suspend(self) -> None:
        """Stop, keeping what is there for a later writer of the same digest; without a digest this is `abort`."""
        if not self._keyed:
            self.abort()
        self._close()

    def abort(self) -> None:
        """Stop and keep nothing."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        self.unfollow()
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self._keyed and self._digest:
            self._content._release(self._digest)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _hex(digest: str) -> str:
    if not names.is_sha256(digest):
        raise InvalidParameter(f"unsupported or invalid digest {digest!r}: sha256 is the one this engine stores")
    return digest.removeprefix("sha256:")
