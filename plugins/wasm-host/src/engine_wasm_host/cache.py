"""The ahead-of-time cache: each module compiled once for an engine version and this processor, kept between boots.

    <root>/<sha256 of the module>/<version>-<settings>-<cpu>.cwasm    machine code, root only
                                 /<version>-<settings>-<cpu>.json     what it is, with the digest of the code
    <root>/seen/<inode>-<size>-<mtime>-<ctime>                        the sha256 of a module file seen before

wasmtime trusts machine code blindly, so it never comes from an image: only from our own compiler child. Code is checked
against its digest when this daemon first uses it and whenever the file has changed since; what does not match is
compiled again. Code nobody used for long is given up when the cache is larger than 4 GiB; running containers keep what
they have mapped. Files are complete before they have their name, so a crash leaves nothing half-made that is used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import InvalidParameter, NotSupported

__all__ = ["AotCache", "Compiled", "search_path"]

log = logging.getLogger(__name__)

_SETTINGS = "e1"  # engine_wasm_host.wasmtime_engine.SETTINGS, which cannot be imported here: it imports wasmtime
_COMPILE_TIMEOUT = 900.0
_SETTLED_NS = 2_000_000_000  # a file changed since could change again without its times telling
_CHUNK = 1 << 20
_LARGEST = 4 << 30  # bytes of machine code kept; what was used longest ago goes first


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    imports: list[str]
    exports: list[str]
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A module ready to run. ``kind`` is ``module`` or ``component``; imports of a module are ``namespace.name``."""

    digest: str
    code: Path
    kind: str
    imports: tuple[str, ...]
    exports: tuple[str, ...]


def search_path() -> tuple[Path, ...]:
    """Where launcher and compiler find wasmtime and this package. `NotSupported` when wasmtime is not installed."""
    places = []
    for name in ("wasmtime", "engine_wasm_host"):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            raise NotSupported(f"WebAssembly needs the Python package {name}; install it: pip install {name}")
        places.append(Path(spec.origin).parent.parent)
    return tuple(dict.fromkeys(places))


class AotCache:
    """The cache below ``root``. Methods block for as long as a compilation takes; one module is compiled once, however
    many ask for it."""

    def __init__(self, root: Path, limit: int = _LARGEST) -> None:
        self._root = root
        self._limit = limit
        self._seen = root / "seen"
        self._seen.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._checked: dict[Path, tuple[int, ...]] = {}
        self._known: dict[str, Compiled] = {}
        self._name = f"{self.version}-{_SETTINGS}-{_cpu()}"

    @property
    def version(self) -> str:
        """wasmtime's."""
        try:
            return importlib.metadata.version("wasmtime")
        except importlib.metadata.PackageNotFoundError:
            raise NotSupported(
                "WebAssembly needs the Python package wasmtime; install it: pip install wasmtime"
            ) from None

    def compiled(self, fd: int) -> Compiled:
        """The module open at ``fd``, compiled now or earlier. `InvalidParameter` says what is wrong with a module."""
        digest = self._digest(fd)
        with self._lock:
            lock = self._locks.setdefault(digest, threading.Lock())
        with lock:
            found = self._load(digest)
            if found is None:
                self._compile(digest, fd)
                found = self._load(digest)
            if found is None:
                raise InvalidParameter(f"the compiled module {digest} does not survive being written to {self._root}")
            return found

    def _digest(self, fd: int) -> str:
        status = os.fstat(fd)
        mark = self._seen / f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"
        try:
            known = mark.read_text()
            if len(known) == 64:
                return known
        except FileNotFoundError:
            pass
        digest = hashlib.sha256()
        offset = 0
        while block := os.pread(fd, _CHUNK, offset):
            digest.update(block)
            offset += len(block)
        if time.time_ns() - status.st_ctime_ns > _SETTLED_NS:
            _replace(mark, digest.hexdigest().encode())
        return digest.hexdigest()

    def _load(self, digest: str) -> Compiled | None:
        directory = self._root / digest
        code = directory / f"{self._name}.cwasm"
        try:
            status = code.stat()
            identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if self._checked.get(code) == identity:
                os.utime(directory / f"{self._name}.json")
                return self._known[digest]
            described = msgspec.json.decode((directory / f"{self._name}.json").read_bytes(), type=_Description)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            described = None
        if described is None or _sha256(code) != described.digest:
            log.warning("compiled module is damaged; compiling again", extra={"wasm": digest})
            shutil.rmtree(directory, ignore_errors=True)
            return None
        self._checked[code] = identity
        self._known[digest] = Compiled(
            digest=digest,
            code=code,
            kind=described.kind,
            imports=tuple(described.imports),
            exports=tuple(described.exports),
        )
        return self._known[digest]

    def _make_room(self, keep: str) -> None:
        entries = []
        for code in self._root.glob("*/*.cwasm"):
            try:
                used = code.with_name(code.name.removesuffix(".cwasm") + ".json").stat().st_mtime_ns
                entries.append((used, code.parent, code.stat().st_size))
            except FileNotFoundError:
                continue
        total = sum(size for _, _, size in entries)
        for _, directory, size in sorted(entries):
            if total <= self._limit:
                return
            if directory.name != keep:
                shutil.rmtree(directory, ignore_errors=True)
                total -= size

    def _compile(self, digest: str, fd: int) -> None:
        directory = self._root / digest
        directory.mkdir(mode=0o700, exist_ok=True)
        os.lseek(fd, 0, os.SEEK_SET)
        started = time.monotonic()
        fresh = directory / f"{self._name}.{os.getpid()}.new"
        try:
            with open(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as code:
                done = subprocess.run(
                    [
                        getattr(sys, "_base_executable", None) or sys.executable,
                        *("-I", "-S", str(Path(__file__).with_name("compiler.py"))),
                        ":".join(str(path) for path in search_path()),
                    ],
                    stdin=fd,
                    stdout=code,
                    stderr=subprocess.PIPE,
                    timeout=_COMPILE_TIMEOUT,
                    env={"LANG": "C.UTF-8"},
                    cwd="/",
                )
                if done.returncode != 0:
                    raise InvalidParameter(_refusal(done.returncode, done.stderr.decode(errors="replace")))
                os.fsync(code.fileno())
            described = msgspec.json.decode(done.stderr, type=_Description)
            described = msgspec.structs.replace(described, digest=_sha256(fresh))
            _replace(directory / f"{self._name}.json", msgspec.json.encode(described), durable=True)
            fresh.rename(directory / f"{self._name}.cwasm")
        except subprocess.TimeoutExpired:
            raise InvalidParameter(f"the module takes longer than {_COMPILE_TIMEOUT:.0f} s to compile") from None
        finally:
            fresh.unlink(missing_ok=True)
        self._make_room(keep=digest)
        log.info("compiled a module", extra={"wasm": digest, "seconds": round(time.monotonic() - started, 2)})


def _refusal(status: int, text: str) -> str:
    if status == 1 and "Traceback" not in text:
        return "not a valid WebAssembly module: " + " ".join(text.split())
    if status < 0:
        return f"compiling the module took more memory or time than the compiler has (signal {-status})"
    return f"the compiler failed with {status}: {text.strip()[-500:]}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    fresh.rename(path)


def _cpu() -> str:
    """The processor's features, since code for one may not run on another (a data directory that moves)."""
    features = ""
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith(("flags", "Features")):
                features = line
                break
    return hashlib.sha256(f"{os.uname().machine}{features}".encode()).hexdigest()[:12]
