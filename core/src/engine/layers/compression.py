"""Compressed streams: gzip (isal where it is built), zstd, bzip2, xz, read in bounded steps whatever they expand to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from engine.errors import InvalidParameter

__all__ = ["CHUNK", "Decompressor", "Read", "decompressor", "gzip_stream"]

CHUNK = 1 << 20
_ZSTD_WINDOW = 128 << 20
_ZSTD_INPUT = 8 << 10  # taken at once: the output of a hostile stream stays under 300 MB
_GZIP_LEVEL = 2  # of isal: eight times faster than zlib's 6 for a tenth more bytes

Read: TypeAlias = Callable[[int], bytes]
"""Up to so many bytes; empty at the end."""
Decompressor: TypeAlias = Callable[[Read], Iterator[bytes]]


def decompressor(compression: str) -> Decompressor:
    """How to read a stream of that compression; imports what it needs now (the caller may be about to chroot)."""
    if compression == "none":
        return _plain
    if compression == "gzip":
        inflate: Any = zlib
        try:
            from isal import isal_zlib as inflate
        except ImportError:  # not built for every architecture
            pass
        return lambda read: _gunzip(read, inflate)
    if compression == "zstd":
        import zstandard

        return lambda read: _unzstd(read, zstandard)
    if compression in ("bzip2", "xz"):
        import bz2
        import lzma

        return lambda read: _stdlib(read, bz2.BZ2Decompressor if compression == "bzip2" else lzma.LZMADecompressor)
    raise InvalidParameter(f"unknown compression {compression!r}")


def _plain(read: Read) -> Iterator[bytes]:
    while chunk := read(CHUNK):
        yield chunk


def _gunzip(read: Read, inflate: Any) -> Iterator[bytes]:
    stream = None
    data = b""
    pending = False  # output may be waiting although all input was taken
    while True:
        if not data and not pending and not (data := read(CHUNK >> 2)):
            break
        if stream is None:
            stream = inflate.decompressobj(31)
        try:
            chunk = stream.decompress(data, CHUNK)
        except (zlib.error, inflate.error) as error:
            raise InvalidParameter(f"gzip: {error}") from error
        if chunk:
            yield chunk
        data = stream.unconsumed_tail
        pending = len(chunk) == CHUNK
        if stream.eof:  # members may follow each other, and zeros the last
            data = stream.unused_data.lstrip(b"\0")
            stream = None
            pending = False
    if stream is not None:
        raise InvalidParameter("gzip: unexpected EOF: the stream is truncated")


def _unzstd(read: Read, zstandard: Any) -> Iterator[bytes]:
    options = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    stream = None
    ready: list[bytes] = []
    size = 0
    while data := read(CHUNK):
        for at in range(0, len(data), _ZSTD_INPUT):
            part = data[at : at + _ZSTD_INPUT]
            while part:
                if stream is None:
                    stream = options.decompressobj()
                try:
                    chunk = stream.decompress(part)
                except zstandard.ZstdError as error:
                    raise InvalidParameter(f"zstd: {error}") from error
                part = b""
                if stream.eof:
                    part = stream.unused_data
                    stream = None
                ready.append(chunk)
                size += len(chunk)
            if size >= CHUNK:
                yield b"".join(ready)
                ready, size = [], 0
    yield b"".join(ready)
    if stream is not None:
        raise InvalidParameter("zstd: unexpected EOF: the stream is truncated")


def _stdlib(read: Read, factory: Any) -> Iterator[bytes]:
    decompressor = factory()
    data = b""
    while True:
        if decompressor.eof:
            data = decompressor.unused_data or read(CHUNK)
            if not data.strip(b"\0"):
                return
            decompressor = factory()
        elif decompressor.needs_input:
            data = read(CHUNK)
            if not data:
                raise InvalidParameter("unexpected EOF: the compressed stream is truncated")
        try:
            chunk = decompressor.decompress(data, CHUNK)
        except (OSError, ValueError, EOFError) as error:
            raise InvalidParameter(f"invalid compressed data: {error}") from error
        except Exception as error:  # lzma.LZMAError has no other base
            raise InvalidParameter(f"invalid compressed data: {error}") from error
        data = b""
        if chunk:
            yield chunk


def gzip_stream(read: Read) -> Iterator[bytes]:
    """Compress; equal input gives equal output (no name, no time in the header)."""
    compress: Any = zlib
    level = 6
    try:
        from isal import isal_zlib as compress

        level = _GZIP_LEVEL
    except ImportError:  # not built for every architecture
        pass
    stream = compress.compressobj(level, wbits=31)
    while data := read(CHUNK):
        if chunk := stream.compress(data):
            yield chunk
    yield stream.flush()
