"""What registries answer when they refuse, in the words of docker's distribution client.

Messages are built from the registry's answer and the URL asked for; credentials are never part of either.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from engine.errors import EngineError, NotFound

__all__ = ["Cancelled", "RegistryError", "from_response", "not_found"]

_DEFAULT_MESSAGES = {
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "NAME_UNKNOWN": "repository name not known to registry",
    "BLOB_UNKNOWN": "blob unknown to registry",
    "TOOMANYREQUESTS": "too many requests",
    "UNSUPPORTED": "The operation is unsupported.",
    "UNKNOWN": "unknown error",
}


class RegistryError(EngineError):
    """A registry cannot be reached or refused; dockerd answers 500 for these, whatever the registry's own status.

    ``code`` is the distribution error code (``MANIFEST_UNKNOWN``; '' for transport trouble), ``status`` the
    registry's HTTP status (0 when there was no answer), ``broken`` whether a connection that was there failed, so
    that trying again may help.
    """

    grpc_code = "UNAVAILABLE"

    def __init__(self, message: str, *, code: str = "", status: int = 0, broken: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.broken = broken


class Cancelled(EngineError):
    """The client went away; whatever was being transferred is abandoned."""

    def __init__(self) -> None:
        super().__init__("context canceled")


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""
    detail: Any = None


class _Body(msgspec.Struct):
    errors: list[_Error] = []
    details: str = ""


def from_response(status: int, body: bytes, *, insufficient_scope: bool = False) -> RegistryError:
    """The error a registry's (or token server's) answer with an error status stands for."""
    if insufficient_scope:
        return _coded("DENIED", "", status)
    if not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return RegistryError(f"received unexpected HTTP status: {describe_status(status)}", status=status)
    try:
        parsed = msgspec.json.decode(body, type=_Body)
    except msgspec.DecodeError:
        if status == HTTPStatus.UNAUTHORIZED and not body.strip():
            return _coded("UNAUTHORIZED", "", status)
        shown = body[:200].decode("utf-8", "replace")
        return RegistryError(f'error parsing HTTP {status} response body: invalid JSON: "{shown}"', status=status)
    if parsed.details:
        code = {401: "UNAUTHORIZED", 429: "TOOMANYREQUESTS"}.get(status, "UNKNOWN")
        return _coded(code, parsed.details, status)
    if parsed.errors:
        return _coded(parsed.errors[0].code or "UNKNOWN", parsed.errors[0].message, status)
    fallback = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}.get(status)
    if fallback:
        return _coded(fallback, "", status)
    return RegistryError(
        f"error parsing HTTP {status} response body: no error details found in HTTP response body", status=status
    )


def _coded(code: str, message: str, status: int) -> RegistryError:
    text = message or _DEFAULT_MESSAGES.get(code, code.lower())
    return RegistryError(f"{code.lower().replace('_', ' ')}: {text}", code=code, status=status)


def not_found(error: RegistryError, name: str, reference: str) -> NotFound | None:
    """What dockerd makes of a registry's refusal of a pull; None for errors that are shown as they are."""
    if error.code == "DENIED":
        return NotFound(
            f"pull access denied for {name}, repository does not exist or may require 'docker login': {error}"
        )
    if error.code == "MANIFEST_UNKNOWN":
        return NotFound(f"manifest for {reference} not found: {error}")
    if error.code == "NAME_UNKNOWN":
        return NotFound(f"repository {name} not found: {error}")
    return None


def describe_status(status: int) -> str:
    """``500 Internal Server Error``."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
