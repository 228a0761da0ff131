"""What a registry keeps, in files: blobs by digest, and small files that say which repository has what.

    blobs/sha256/<hex>                              verified, never changed
    uploads/<id>                                    on their way in
    repositories/<name>/_blobs/<hex>                this repository has the blob
    repositories/<name>/_manifests/<hex>            ... the manifest; the file holds its media type
    repositories/<name>/_tags/<tag>                 the file holds the digest
    repositories/<name>/_referrers/<hex>/<hex>      descriptor of a manifest whose subject is the first

Everything appears by rename, so a crash leaves whole things or nothing. All methods may be called from any thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import Conflict, InvalidParameter, NotFound, TooLarge
from engine.names import is_sha256, sha256

__all__ = ["MANIFEST_LIMIT", "Storage"]

MANIFEST_LIMIT = 4 << 20
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_UPLOAD = re.compile(r"[0-9a-f]{32}")
_CHUNK = 1 << 20
_KEEP_UPLOAD_SECONDS = 24 * 3600.0
_KEEP_BLOB_SECONDS = 3600.0
_DEFAULT_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Storage:
    """One registry's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("blobs/sha256", "uploads", "repositories"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self.collect()

    # -- names ------------------------------------------------------------------------------------------------

    def repository(self, name: str) -> Path:
        """The folder of a repository. Raises `InvalidParameter` for a name that cannot be one."""
        if len(name) > 255 or not _NAME.fullmatch(name):
            raise InvalidParameter(f"invalid repository name {name!r}")
        return self.root / "repositories" / name

    def repositories(self) -> list[str]:
        """All repositories that hold something, sorted."""
        base = self.root / "repositories"
        return sorted(
            {str(Path(folder).relative_to(base)) for folder, below, _ in os.walk(base) if "_manifests" in below}
        )

    def _known(self, name: str) -> Path:
        folder = self.repository(name)
        if not (folder / "_manifests").is_dir() and not (folder / "_blobs").is_dir():
            raise NotFound(f"repository name not known to registry: {name}")
        return folder

    # -- blobs ------------------------------------------------------------------------------------------------

    def blob(self, name: str, digest: str) -> Path:
        """The file of a blob the repository has. Raises `NotFound`."""
        file = self.root / "blobs" / "sha256" / _hex(digest)
        if not (self.repository(name) / "_blobs" / _hex(digest)).exists() or not file.exists():
            raise NotFound(f"blob unknown to registry: {digest}")
        return file

    def delete_blob(self, name: str, digest: str) -> None:
        """Take the blob out of the repository."""
        self.blob(name, digest)
        (self.repository(name) / "_blobs" / _hex(digest)).unlink(missing_ok=True)

    def mount(self, name: str, digest: str, source: str) -> bool:
        """Let ``name`` have a blob of ``source`` too; False when that has none."""
        try:
            self.blob(source, digest)
        except (NotFound, InvalidParameter):
            return False
        _touch(self.repository(name) / "_blobs" / _hex(digest))
        return True

    # -- uploads ----------------------------------------------------------------------------------------------

    def begin(self) -> str:
        """Start an upload; its id."""
        identifier = secrets.token_hex(16)
        (self.root / "uploads" / identifier).touch()
        return identifier

    def offset(self, upload: str) -> int:
        """How much of an upload is here. Raises `NotFound`."""
        return self._upload(upload).stat().st_size

    def append(self, upload: str, read: Callable[[int], bytes], start: int | None = None) -> int:
        """Add what ``read`` gives; the size then. `Conflict` when ``start`` is not where the upload stands."""
        with self._upload(upload).open("ab") as file:
            if start is not None and start != file.tell():
                raise Conflict(f"the upload stands at {file.tell()}, not at {start}")
            while chunk := read(_CHUNK):
                file.write(chunk)
            return file.tell()

    def finish(self, name: str, upload: str, digest: str) -> None:
        """Verify an upload and make it a blob of the repository. `InvalidParameter` for another digest."""
        path = self._upload(upload)
        target = self.root / "blobs" / "sha256" / _hex(digest)
        found = hashlib.sha256()
        with path.open("rb+") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
            if found.hexdigest() != _hex(digest):
                path.unlink()
                raise InvalidParameter(f"provided digest did not match uploaded content: {digest}")
            os.fsync(file.fileno())
        os.rename(path, target)
        _touch(self.repository(name) / "_blobs" / _hex(digest))

    def cancel(self, upload: str) -> None:
        """Throw an upload away. Raises `NotFound`."""
        self._upload(upload).unlink()

    def _upload(self, upload: str) -> Path:
        path = self.root / "uploads" / upload
        if not _UPLOAD.fullmatch(upload) or not path.exists():
            raise NotFound("blob upload unknown to registry")
        return path

    # -- manifests --------------------------------------------------------------------------------------------

    def manifest(self, name: str, reference: str) -> tuple[str, str, bytes]:
        """Digest, media type and bytes of what a tag or digest names. Raises `NotFound`."""
        folder = self.repository(name)
        try:
            digest = reference if ":" in reference else (folder / "_tags" / _tag(reference)).read_text()
            media_type = (folder / "_manifests" / _hex(digest)).read_text()
            return digest, media_type, (self.root / "blobs" / "sha256" / _hex(digest)).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"manifest unknown: {name}:{reference}") from None

    def put_manifest(self, name: str, reference: str, media_type: str, data: bytes) -> tuple[str, str]:
        """Keep a manifest whose blobs are here; its digest, and its subject's ('' without one).

        Raises `TooLarge`, `InvalidParameter` for no manifest or another digest, `NotFound` for blobs it lacks.
        """
        if len(data) > MANIFEST_LIMIT:
            raise TooLarge(f"manifest of {len(data)} bytes is over the limit of {MANIFEST_LIMIT}")
        folder = self.repository(name)
        document = _document(data)
        media_type = media_type or str(document.get("mediaType") or _DEFAULT_TYPE)
        if document.get("mediaType") not in (None, media_type):
            raise InvalidParameter(f"manifest says it is {document['mediaType']}, the request {media_type}")
        digest = sha256(data)
        if ":" in reference and reference != digest:
            raise InvalidParameter(f"provided digest did not match uploaded content: {reference}")
        for child in _descriptors(document):
            self._check_child(folder, child)
        _write(self.root / "blobs" / "sha256" / _hex(digest), data)
        _touch(folder / "_blobs" / _hex(digest))
        _write(folder / "_manifests" / _hex(digest), media_type.encode())
        subject = document.get("subject")
        subject_digest = str(subject.get("digest")) if isinstance(subject, dict) else ""
        if subject_digest:
            entry = _referrer(document, media_type, digest, len(data))
            _write(folder / "_referrers" / _hex(subject_digest) / _hex(digest), json.dumps(entry).encode())
        if ":" not in reference:
            _write(folder / "_tags" / _tag(reference), digest.encode())
        return digest, subject_digest

    def _check_child(self, folder: Path, child: Mapping[str, Any]) -> None:
        digest = _hex(str(child.get("digest")))
        if child.get("urls"):
            return  # foreign layers live elsewhere
        if not (folder / "_blobs" / digest).exists() or not (self.root / "blobs" / "sha256" / digest).exists():
            raise NotFound(f"manifest blob unknown: sha256:{digest}")

    def delete_manifest(self, name: str, reference: str) -> None:
        """Delete a tag, or a manifest with all its tags."""
        digest, _, data = self.manifest(name, reference)
        folder = self.repository(name)
        if ":" not in reference:
            (folder / "_tags" / _tag(reference)).unlink()
            return
        for tag in self._tags(folder):
            if (folder / "_tags" / tag).read_text() == digest:
                (folder / "_tags" / tag).unlink()
        subject = _document(data).get("subject")
        if isinstance(subject, dict):
            (folder / "_referrers" / _hex(str(subject.get("digest"))) / _hex(digest)).unlink(missing_ok=True)
        (folder / "_manifests" / _hex(digest)).unlink()

    def tags(self, name: str) -> list[str]:
        """All tags, sorted. Raises `NotFound` for a repository nobody pushed to."""
        return self._tags(self._known(name))

    def _tags(self, folder: Path) -> list[str]:
        try:
            return sorted(os.listdir(folder / "_tags"))
        except FileNotFoundError:
            return []

    def referrers(self, name: str, digest: str) -> list[dict[str, Any]]:
        """Descriptors of the manifests whose subject is ``digest``; there need be no such manifest."""
        folder = self.repository(name) / "_referrers" / _hex(digest)
        try:
            return [json.loads((folder / entry).read_text()) for entry in sorted(os.listdir(folder))]
        except FileNotFoundError:
            return []

    # -- garbage ----------------------------------------------------------------------------------------------

    def collect(self) -> int:
        """Delete uploads nobody went on with and blobs no manifest needs; the bytes given back.

        Blobs of the last hour stay: their manifest may be on its way.
        """
        now = time.time()
        freed = 0
        for entry in list(os.scandir(self.root / "uploads")):
            if entry.stat().st_mtime < now - _KEEP_UPLOAD_SECONDS:
                freed += entry.stat().st_size
                os.unlink(entry)
        needed = {digest for name in self.repositories() for digest in self._needed(name)}
        for entry in list(os.scandir(self.root / "blobs" / "sha256")):
            if entry.name not in needed and entry.stat().st_mtime < now - _KEEP_BLOB_SECONDS:
                freed += entry.stat().st_size
                os.unlink(entry)
        return freed

    def _needed(self, name: str) -> Iterator[str]:
        for digest in os.listdir(self.repository(name) / "_manifests"):
            yield digest
            file = self.root / "blobs" / "sha256" / digest
            if file.exists():
                for child in _descriptors(_document(file.read_bytes())):
                    yield _hex(str(child.get("digest")))


def _hex(digest: str) -> str:
    if not is_sha256(digest):
        raise InvalidParameter(f"invalid or unsupported digest {digest!r}")
    return digest.removeprefix("sha256:")


def _tag(tag: str) -> str:
    if not _TAG.fullmatch(tag):
        raise InvalidParameter(f"invalid tag {tag!r}")
    return tag


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise InvalidParameter(f"manifest invalid: {error}") from None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise InvalidParameter("manifest invalid: only schema version 2 is supported")
    return document


def _descriptors(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Everything a manifest or index consists of (its subject is no part of it)."""
    for item in (document.get("config"), *(document.get("layers") or ()), *(document.get("manifests") or ())):
        if isinstance(item, dict):
            yield item


def _referrer(document: Mapping[str, Any], media_type: str, digest: str, size: int) -> dict[str, Any]:
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    return {
        "mediaType": media_type,
        "digest": digest,
        "size": size,
        **({"artifactType": kind} if kind else {}),
        **({"annotations": document["annotations"]} if document.get("annotations") else {}),
    }


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
