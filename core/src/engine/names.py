"""Ids, names and image references: how users and the engine refer to things.

The reference grammar is that of the OCI distribution project (github.com/distribution/reference), with Docker's
defaults: no registry means ``docker.io``, one path component there means ``library/``, no tag means ``latest``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.errors import InvalidParameter, NotFound

__all__ = [
    "ID_LENGTH",
    "Reference",
    "find_by_prefix",
    "is_id",
    "new_id",
    "parse_reference",
    "short_id",
    "valid_name",
]

ID_LENGTH = 64
DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")

_domain_component = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_domain = rf"(?:{_domain_component}(?:\.{_domain_component})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
_path_component = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_DOMAIN = re.compile(_domain)
_PATH = re.compile(rf"{_path_component}(?:/{_path_component})*")
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_NAME = 255


def new_id() -> str:
    """A fresh object id: 64 hex digits whose first 12 are not all decimal (they serve as host names)."""
    while True:
        candidate = os.urandom(32).hex()
        if not candidate[:12].isdigit():
            return candidate


def short_id(identifier: str) -> str:
    """The 12 digits users see; a ``sha256:`` prefix is dropped."""
    return identifier.removeprefix("sha256:")[:12]


def is_id(text: str) -> bool:
    """Whether ``text`` is a complete id (64 lower-case hex digits)."""
    return _ID.fullmatch(text) is not None


def valid_name(text: str) -> bool:
    """Docker's rule for container, network and volume names: ``[a-zA-Z0-9][a-zA-Z0-9_.-]+``."""
    return _NAME.fullmatch(text) is not None


def find_by_prefix(prefix: str, ids: Iterable[str]) -> str | None:
    """The one id that starts with ``prefix``; None if none does.

    Raises `NotFound` in dockerd's words when several do.
    """
    found = [identifier for identifier in ids if identifier.startswith(prefix)] if prefix else []
    if len(found) > 1:
        raise NotFound(f"multiple IDs found with provided prefix: {prefix}")
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised image reference: ``docker.io/library/nginx:latest``, ``localhost:5000/a/b@sha256:...``."""

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository, in full."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """Registry and repository as Docker shows them: ``nginx``, ``user/app``, ``localhost:5000/a/b``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        return self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path

    @property
    def familiar(self) -> str:
        """The whole reference as Docker shows it."""
        return self.familiar_name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.name + self._suffix()

    def with_default_tag(self) -> Reference:
        """With ``latest`` when there is neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def with_digest(self, digest: str) -> Reference:
        """The same repository at ``digest``, without a tag."""
        return replace(self, tag=None, digest=digest)


def is_sha256(text: str) -> bool:
    """Whether ``text`` is a complete ``sha256:`` digest."""
    return _SHA256.fullmatch(text) is not None


def sha256(data: bytes) -> str:
    """The digest of ``data`` as ``sha256:<64 hex digits>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_reference(text: str) -> Reference:
    """Parse what a user typed; a missing tag stays missing (see `Reference.with_default_tag`).

    Raises `InvalidParameter` in the words of the distribution grammar.
    """
    if _ID.fullmatch(text):
        raise InvalidParameter(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    rest, digest = text, None
    if "@" in rest:
        rest, _, digest = rest.partition("@")
        if not _DIGEST.fullmatch(digest):
            raise InvalidParameter("invalid reference format")
        if digest.startswith("sha256:") and not is_sha256(digest):
            raise InvalidParameter(
                "invalid checksum digest length" if len(digest) != 71 else "invalid reference format"
            )
    tag = None
    if ":" in rest.rsplit("/", 1)[-1]:
        rest, _, tag = rest.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise InvalidParameter("invalid reference format")
    domain, path = _split_domain(rest)
    if path.lower() != path and _PATH.fullmatch(path.lower()):
        raise InvalidParameter(f"invalid reference format: repository name ({path}) must be lowercase")
    if not _PATH.fullmatch(path) or not _DOMAIN.fullmatch(domain):
        raise InvalidParameter("invalid reference format")
    if len(path) > _MAX_NAME:
        raise InvalidParameter(f"repository name must not be more than {_MAX_NAME} characters")
    return Reference(domain, path, tag, digest)


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not (set(first) & set(".:") or first == "localhost" or first.lower() != first):
        domain, path = DEFAULT_DOMAIN, name
    else:
        domain, path = first, rest
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return domain, path
