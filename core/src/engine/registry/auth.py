"""Credentials for registries: the API's X-Registry-Auth, WWW-Authenticate challenges, and Bearer tokens.

Tokens follow the distribution project's token specification: anonymous or Basic GET, or an OAuth2 POST with a
refresh ("identity") token. Nothing here is ever logged, and reprs hide what is secret.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

import msgspec

from engine.errors import InvalidParameter
from engine.registry.errors import RegistryError, from_response

__all__ = ["ANONYMOUS", "Challenge", "RegistryAuth", "TokenAnswer", "Tokens", "decode_auth", "parse_challenges"]

CLIENT_ID = "docker"
_MINIMUM_LIFETIME = 60.0


class RegistryAuth(msgspec.Struct, frozen=True, kw_only=True):
    """A user's credentials for one registry, as the docker CLI sends them; all empty means anonymous."""

    username: str = ""
    password: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    def __repr__(self) -> str:
        return f"RegistryAuth(username={self.username!r}, serveraddress={self.serveraddress!r}, ...)"

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header, '' without a user name."""
        if not self.username:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


ANONYMOUS = RegistryAuth()


def decode_auth(text: str | None) -> RegistryAuth:
    """Read an ``X-Registry-Auth`` header: base64url (or plain base64, padded or not) of JSON.

    Anything that cannot be read counts as anonymous, as in dockerd: old clients send all sorts of things.
    """
    try:
        raw = base64.urlsafe_b64decode(_padded((text or "").strip().replace("+", "-").replace("/", "_")))
        found = msgspec.json.decode(raw)
    except (binascii.Error, ValueError):
        return ANONYMOUS
    return auth_from_mapping(found) if isinstance(found, dict) else ANONYMOUS


def auth_from_mapping(found: Mapping[str, object]) -> RegistryAuth:
    """Credentials from an AuthConfig object; case of keys does not matter, ``auth`` is base64 of ``user:password``."""
    values = {key.lower(): value for key, value in found.items() if isinstance(value, str)}
    username, password = values.get("username", ""), values.get("password", "")
    if not username and values.get("auth"):
        try:
            pair = base64.b64decode(_padded(values["auth"])).decode("utf-8").rstrip("\0")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidParameter("invalid auth in registry credentials: not base64 of user:password") from error
        username, _, password = pair.partition(":")
    return RegistryAuth(
        username=username,
        password=password,
        serveraddress=values.get("serveraddress", ""),
        identitytoken=values.get("identitytoken", ""),
        registrytoken=values.get("registrytoken", ""),
    )


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 4)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme of a ``WWW-Authenticate`` header; ``scheme`` and the names of ``parameters`` are lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PARAMETER = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s",]+)\s*""")


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` headers; what cannot be read gives none (RFC 9110, 11.6.1)."""
    challenges: list[Challenge] = []
    for header in headers:
        position = 0
        while position < len(header):
            scheme = _TOKEN.match(header, position)
            if not scheme:
                position += 1
                continue
            position, parameters = scheme.end(), {}
            while parameter := _PARAMETER.match(header, position):
                value = parameter[2]
                if value.startswith('"'):
                    value = re.sub(r"\\(.)", r"\1", value[1:-1])
                parameters[parameter[1].lower()] = value
                position = parameter.end()
                if position < len(header) and header[position] == ",":
                    position += 1
                else:
                    break
            challenges.append(Challenge(scheme[0].lower(), parameters))
    return challenges


class TokenAnswer(msgspec.Struct):
    """What a token server answers."""

    token: str = ""
    access_token: str = ""
    refresh_token: str = ""
    expires_in: float = 0.0


# (method, url, headers, body) -> (status, body)
Fetch = Callable[[str, str, Mapping[str, str], bytes | None], tuple[int, bytes]]


class Tokens:
    """Bearer tokens by (realm, service, scope, credentials) until they expire. Safe for use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, str, str, RegistryAuth], tuple[str, float]] = {}

    def get(self, challenge: Challenge, scope: str, auth: RegistryAuth, fetch: Fetch) -> str:
        """A token that is still valid, from the cache or the token server."""
        key = self._key(challenge, scope, auth)
        with self._lock:
            known = self._tokens.get(key)
        if known and known[1] > self._clock():
            return known[0]
        asked = self._clock()
        answer = request_token(challenge, scope, auth, fetch)
        token = answer.token or answer.access_token
        if not token:
            raise RegistryError("authorization server did not include a token in the response")
        lifetime = max(answer.expires_in, _MINIMUM_LIFETIME)
        with self._lock:
            now = self._clock()
            self._tokens = {held: value for held, value in self._tokens.items() if value[1] > now}
            self._tokens[key] = (token, asked + lifetime * 0.9)
        return token

    def forget(self, challenge: Challenge, scope: str, auth: RegistryAuth) -> bool:
        """Drop a token the registry did not accept; whether there was one."""
        with self._lock:
            return self._tokens.pop(self._key(challenge, scope, auth), None) is not None

    @staticmethod
    def _key(challenge: Challenge, scope: str, auth: RegistryAuth) -> tuple[str, str, str, RegistryAuth]:
        return challenge.parameters.get("realm", ""), challenge.parameters.get("service", ""), scope, auth


def request_token(
    challenge: Challenge, scope: str, auth: RegistryAuth, fetch: Fetch, *, offline: bool = False
) -> TokenAnswer:
    """Ask the realm of ``challenge`` for a token; ``offline`` also asks for a refresh token (``docker login``)."""
    realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
    parts = urlsplit(realm)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RegistryError("no realm specified for token auth challenge")
    if auth.identitytoken:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": CLIENT_ID,
            "scope": scope,
            "refresh_token": auth.identitytoken,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, body = fetch("POST", realm, headers, urlencode(form).encode("ascii"))
    else:
        query = {"service": service} if service else {}
        if scope:
            query["scope"] = scope
        if offline:
            query |= {"offline_token": "true", "client_id": CLIENT_ID}
        if auth.username:
            query["account"] = auth.username
        url = realm + ("&" if parts.query else "?") + urlencode(query) if query else realm
        status, body = fetch("GET", url, {"Authorization": auth.basic} if auth.basic else {}, None)
    if status != 200:
        raise from_response(status, body)
    try:
        return msgspec.json.decode(body, type=TokenAnswer)
    except msgspec.DecodeError as error:
        raise RegistryError("unable to decode token response: invalid JSON") from error
