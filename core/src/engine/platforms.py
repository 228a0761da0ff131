"""OCI platforms: parsing, normalising and matching ``os/architecture[/variant]``.

Normalisation follows containerd's platforms package: ``x86_64`` is ``amd64``, ``aarch64`` is ``arm64``, ``arm64/v8`` is
``arm64``, ``wasi/wasm32`` and the ``wasip1``/``wasip2`` operating systems are kept apart but all match ``wasi/wasm``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from engine.errors import InvalidParameter

__all__ = ["Platform", "host_platform", "parse_platform"]

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
    "i686": "386",
    "wasm32": "wasm",
}
_KNOWN_OS = frozenset(
    [
        *"aix android darwin dragonfly freebsd illumos ios js linux netbsd openbsd plan9 solaris windows".split(),
        "wasi",
        "wasip1",
        "wasip2",
    ]
)
_KNOWN_ARCH = frozenset(
    "386 amd64 arm arm64 loong64 mips mipsle mips64 mips64le ppc64 ppc64le riscv64 s390x sparc64 wasm".split()
)
_WASI = frozenset({"wasi", "wasip1", "wasip2"})


@dataclass(frozen=True, slots=True)
class Platform:
    """Normalised; ``str()`` is the form users type."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def is_wasm(self) -> bool:
        """Whether this is WebAssembly rather than a machine's own code."""
        return self.architecture == "wasm"

    def satisfies(self, wanted: Platform) -> bool:
        """Whether an image for this platform can serve a request for ``wanted``."""
        if self.is_wasm and wanted.is_wasm:
            return self.os == wanted.os or (self.os in _WASI and wanted.os == "wasi")
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return False
        return not wanted.variant or not self.variant or self.variant == wanted.variant


def normalise(operating_system: str, architecture: str, variant: str = "") -> Platform:
    """A platform from the fields of an image config or index entry."""
    os_name = {"macos": "darwin"}.get(operating_system.lower(), operating_system.lower())
    raw = architecture.lower()
    arch = _ARCHITECTURES.get(raw, raw)
    kind = variant.lower()
    if raw == "armhf":
        kind = "v7"
    elif raw == "armel":
        kind = "v6"
    if (arch == "arm64" and kind in ("8", "v8")) or (arch == "amd64" and kind == "v1"):
        kind = ""
    if arch == "arm" and kind.isdigit():
        kind = f"v{kind}"
    return Platform(os_name, arch, kind)


def parse_platform(text: str) -> Platform:
    """Parse ``linux/arm64/v8``, ``arm64``, ``linux``; what is left out comes from this host.

    Raises `InvalidParameter` in containerd's words.
    """
    parts = text.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InvalidParameter(f'"{text}": cannot parse platform specifier: invalid argument')
    host = host_platform()
    if len(parts) == 1:
        single = normalise(parts[0], parts[0])
        if single.os in _KNOWN_OS:
            return Platform(single.os, "wasm" if single.os in _WASI else host.architecture)
        if single.architecture in _KNOWN_ARCH:
            return Platform(host.os, single.architecture, single.variant)
        raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
    platform = normalise(parts[0], parts[1], parts[2] if len(parts) == 3 else "")
    if platform.os not in _KNOWN_OS or platform.architecture not in _KNOWN_ARCH:
        raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
    return platform


def host_platform() -> Platform:
    """The platform of this machine."""
    uname = os.uname()
    machine = uname.machine
    if machine.startswith("armv"):
        return Platform("linux", "arm", f"v{machine[4]}")
    return normalise(uname.sysname, machine)
