"""Layers that are unpacked while they still arrive, before it is known which image's they are.

Whoever writes a layer into the content store may `Preparing.begin` with it; a confined child then follows the file as
it grows. When the image is known, `Preparing.take` gives the unpacked layer to be committed. Nothing depends on it: a
store that cannot, a layer that came out wrong or too many at once only mean that the blob is unpacked later.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.content import Writer
from engine.drivers.store import ImageStoreDriver, LayerSource, PreparedLayer
from engine.errors import EngineError, InvalidParameter
from engine.layers import detect_compression

__all__ = ["Preparation", "Preparing", "looks_like_layer"]

log = logging.getLogger(__name__)


def looks_like_layer(head: bytes) -> bool:
    """Whether a blob that begins so (512 bytes or more) may be a layer: a tar, or something compressed."""
    return detect_compression(head) != "none" or head[257:262] == b"ustar"


class Preparation:
    """One layer on its way. Taken once, by whoever commits it; else `close` throws it away."""

    def __init__(self, driver: ImageStoreDriver, source: LayerSource, done: Callable[[], None]) -> None:
        self._driver = driver
        self._source = source
        self._done = done
        self._result: PreparedLayer | None = None
        self._taken = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="prepare layer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._driver.prepare_layer(self._source)
        except (EngineError, OSError) as error:  # told when the blob is unpacked the long way
            log.info("a layer was not prepared", extra={"reason": str(error)})
        finally:
            for fd in (self._source.fd, self._source.growing):
                if fd is not None:
                    os.close(fd)
            self._done()

    def take(self) -> PreparedLayer | None:
        """Wait for the layer; None when it did not come to be, or was taken before. To be committed or discarded."""
        with self._lock:
            if self._taken:
                return None
            self._taken = True
        self._thread.join()
        return self._result

    def close(self) -> None:
        """Throw the layer away unless it was taken. Waits for the child, which sees the end of its input."""
        if (prepared := self.take()) is not None:
            self._driver.discard_prepared(prepared)


class Preparing:
    """The preparations of a daemon by the digest of their blob; at most ``limit`` run at once. Thread-safe."""

    def __init__(self, driver: ImageStoreDriver, limit: int) -> None:
        self._driver = driver if "prepare" in driver.capabilities else None
        self._room = threading.BoundedSemaphore(limit)
        self._known: dict[str, Preparation] = {}

    @contextmanager
    def begin(self, writer: Writer, head: bytes) -> Iterator[Callable[[str], None]]:
        """Follow ``writer``, whose content begins with ``head``, in the block; call what it gives with the digest when
        it is known. What nobody named until the end of the block is thrown away."""
        if self._driver is None or not looks_like_layer(head) or not self._room.acquire(blocking=False):
            yield lambda digest: None
            return
        try:
            file, growing = writer.follow()
        except BaseException:
            self._room.release()
            raise
        source = LayerSource(fd=file, growing=growing, compression=detect_compression(head))
        preparation = Preparation(self._driver, source, self._room.release)
        named: list[str] = []

        def name(digest: str) -> None:
            old, self._known[digest] = self._known.get(digest), preparation
            named.append(digest)
            if old is not None:
                old.close()

        try:
            yield name
        finally:
            if not named:
                writer.unfollow()
                preparation.close()

    def take(self, digest: str, diff_id: str) -> PreparedLayer | None:
        """The layer unpacked from the blob ``digest``, waiting for it; None when there is none.

        Raises `InvalidParameter` when its content is not ``diff_id``.
        """
        preparation = self._known.pop(digest, None)
        prepared = preparation.take() if preparation is not None else None
        if prepared is not None and prepared.diff_id != diff_id:
            assert self._driver is not None, "something was prepared"
            self._driver.discard_prepared(prepared)
            raise InvalidParameter(
                f"layer content does not match its diff id: expected {diff_id}, got {prepared.diff_id}"
            )
        return prepared

    def drop(self, digest: str) -> None:
        """Throw away what was unpacked from ``digest`` and not taken."""
        preparation = self._known.pop(digest, None)
        if preparation is not None:
            preparation.close()
