"""Layers: tar streams and directory trees, shared by the image stores and the archives.

    compression   gzip, zstd, bzip2, xz as iterators
    tar           reading and writing tar headers (ustar, PAX, GNU)
    extract   applying a layer tar to a directory, never leaving it
    child     the confined process that does so with untrusted input
    unpack    the daemon's side of it
    pack      a directory tree as a layer tar
    tree      removing and copying trees by descriptor

This package itself holds the arithmetic of chain ids and the recognition of compressed streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine import names

__all__ = ["chain_id", "chain_ids", "detect_compression"]

_MAGIC = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
)


def chain_id(parent: str | None, diff_id: str) -> str:
    """The chain id of a layer over ``parent`` (OCI image-spec, "Layer ChainID")."""
    return diff_id if parent is None else names.sha256(f"{parent} {diff_id}".encode())


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id at each layer, lowest first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(chain_id(chain[-1] if chain else None, diff_id))
    return chain


def detect_compression(head: bytes) -> str:
    """``gzip``, ``zstd``, ``bzip2``, ``xz`` or ``none``, by the first bytes of a stream."""
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"  # a skippable frame first, as estargz-like tools write
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "none")
