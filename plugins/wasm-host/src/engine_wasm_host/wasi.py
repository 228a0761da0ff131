"""WASI 0.2 for components that serve: io, clocks, random, cli and filesystem as Python functions.

Everything is synchronous: a read waits, so a pollable is ready unless it is a timer. Files are opened below preopened
directories with openat2 and RESOLVE_BENEATH, every path of every operation, so neither ``..`` nor a link leads out.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any

from engine import kernel
from engine_wasm_host.linking import Trap
from engine_wasm_host.values import Err, Ok

__all__ = ["CLOSED", "Descriptor", "Exit", "InputStream", "OutputStream", "Pollable", "Timer", "tables"]

CLOSED = Err(("closed", None))
_CHUNK = 1 << 16
_LARGEST = 1 << 20
_ERRNO = {
    1: "not-permitted", 2: "no-entry", 5: "io", 9: "bad-descriptor", 11: "would-block", 12: "insufficient-memory",
    13: "access", 16: "busy", 17: "exist", 18: "not-permitted", 20: "not-directory", 21: "is-directory", 22: "invalid",
    26: "text-file-busy", 27: "file-too-large", 28: "insufficient-space", 29: "invalid-seek", 30: "read-only",
    31: "too-many-links", 32: "pipe", 36: "name-too-long", 39: "not-empty", 40: "loop", 95: "unsupported", 122: "quota",
}  # fmt: skip


class Exit(Exception):
    """The guest ended itself."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the guest exited with {code}")
        self.code = code


class Pollable:
    """Always ready."""

    def ready_in(self) -> float:
        """Seconds until it is ready."""
        return 0.0


class Timer(Pollable):
    """Ready at a time of the monotonic clock, in nanoseconds."""

    def __init__(self, at: int) -> None:
        self._at = at

    def ready_in(self) -> float:
        return max(0.0, (self._at - time.monotonic_ns()) / 1e9)


class InputStream:
    """Bytes in: ``read`` returns at least one byte, or none at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read


class OutputStream:
    """Bytes out: ``write`` takes all it is given."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write


def _read(call: Any, stream: InputStream, length: int) -> Any:
    try:
        data = stream.read(min(length, _LARGEST)) if length else b""
    except OSError as error:
        return Err(("last-operation-failed", error))
    return CLOSED if length and not data else Ok(data)


def _skip(call: Any, stream: InputStream, length: int) -> Any:
    outcome = _read(call, stream, length)
    return Ok(len(outcome.value)) if isinstance(outcome, Ok) else outcome


def _write(call: Any, stream: OutputStream, data: bytes) -> Any:
    try:
        stream.write(data)
    except OSError as error:
        return Err(("last-operation-failed", error))
    return Ok()


def _splice(call: Any, stream: OutputStream, source: InputStream, length: int) -> Any:
    outcome = _read(call, source, min(length, _CHUNK))
    if isinstance(outcome, Err):
        return outcome
    written = _write(call, stream, outcome.value)
    return Ok(len(outcome.value)) if isinstance(written, Ok) else written


def _poll(call: Any, items: Sequence[Pollable]) -> list[int]:
    if not items:
        raise Trap("poll of nothing never returns")
    while True:
        waits = [item.ready_in() for item in items]
        ready = [index for index, wait in enumerate(waits) if wait <= 0]
        if ready:
            return ready
        time.sleep(min(waits))


def _block(call: Any, item: Pollable) -> None:
    time.sleep(item.ready_in())


def _zeroes(call: Any, stream: OutputStream, length: int) -> Any:
    return _write(call, stream, bytes(min(length, _LARGEST)))


_READY = Pollable()
_STREAMS = {
    "[method]input-stream.read": _read,
    "[method]input-stream.blocking-read": _read,
    "[method]input-stream.skip": _skip,
    "[method]input-stream.blocking-skip": _skip,
    "[method]input-stream.subscribe": lambda call, stream: _READY,
    "[method]output-stream.check-write": lambda call, stream: Ok(_CHUNK),
    "[method]output-stream.write": _write,
    "[method]output-stream.blocking-write-and-flush": _write,
    "[method]output-stream.flush": lambda call, stream: Ok(),
    "[method]output-stream.blocking-flush": lambda call, stream: Ok(),
    "[method]output-stream.subscribe": lambda call, stream: _READY,
    "[method]output-stream.write-zeroes": _zeroes,
    "[method]output-stream.blocking-write-zeroes-and-flush": _zeroes,
    "[method]output-stream.splice": _splice,
    "[method]output-stream.blocking-splice": _splice,
}


def _wall_clock(call: Any) -> tuple[int, int]:
    now = time.time_ns()
    return now // 10**9, now % 10**9


_CLOCKS: dict[str, dict[str, Any]] = {
    "wasi:clocks/monotonic-clock": {
        "now": lambda call: time.monotonic_ns(),
        "resolution": lambda call: 1,
        "subscribe-instant": lambda call, at: Timer(at),
        "subscribe-duration": lambda call, duration: Timer(time.monotonic_ns() + duration),
    },
    "wasi:clocks/wall-clock": {"now": _wall_clock, "resolution": lambda call: (0, 1)},
}


def _number() -> int:
    return int.from_bytes(os.urandom(8), "little")


_RANDOM: dict[str, dict[str, Any]] = {
    "wasi:random/random": {
        "get-random-bytes": lambda call, length: os.urandom(min(length, _LARGEST)),
        "get-random-u64": lambda call: _number(),
    },
    "wasi:random/insecure": {
        "get-insecure-random-bytes": lambda call, length: os.urandom(min(length, _LARGEST)),
        "get-insecure-random-u64": lambda call: _number(),
    },
    "wasi:random/insecure-seed": {"insecure-seed": lambda call: (_number(), _number())},
}


def _exit(call: Any, status: Ok | Err) -> None:
    raise Exit(0 if isinstance(status, Ok) else 1)


def _exit_with_code(call: Any, code: int) -> None:
    raise Exit(code)


def _cli(arguments: Sequence[str], environment: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    def stream(fd: int) -> Callable[[Any], OutputStream]:
        return lambda call: OutputStream(lambda data: _write_all(fd, data))

    terminals = ("stdin", "stdout", "stderr")
    return {
        "wasi:cli/environment": {
            "get-environment": lambda call: list(environment),
            "get-arguments": lambda call: list(arguments),
            "initial-cwd": lambda call: "/",
        },
        "wasi:cli/exit": {"exit": _exit, "exit-with-code": _exit_with_code},
        "wasi:cli/stdin": {"get-stdin": lambda call: InputStream(lambda length: b"")},
        "wasi:cli/stdout": {"get-stdout": stream(1)},
        "wasi:cli/stderr": {"get-stderr": stream(2)},
        **{f"wasi:cli/terminal-{name}": {f"get-terminal-{name}": lambda call: None} for name in terminals},
    }


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# -- files ------------------------------------------------------------------------------------------------------


class Descriptor:
    """An open file or directory."""

    def __init__(self, fd: int, *, read: bool, write: bool) -> None:
        self.fd = fd
        self.readable = read
        self.writable = write

    def close(self) -> None:
        """Also called when the guest drops it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _code(error: OSError) -> Err:
    return Err(_ERRNO.get(error.errno or 5, "io"))


def _file(function: Callable[..., Any]) -> Callable[..., Any]:
    """A file function whose OSErrors are results."""

    def guarded(call: Any, *arguments: Any) -> Any:
        try:
            return Ok(function(*arguments))
        except OSError as error:
            return _code(error)

    return guarded


def _beneath(directory: Descriptor, path: str, flags: int, mode: int = 0) -> int:
    if path.startswith("/"):
        raise PermissionError(1, "absolute path")
    return kernel.openat2(directory.fd, path or ".", flags, mode, kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_MAGICLINKS)


class _Parent:
    """The directory a path's last part is in, opened beneath; for operations on names."""

    def __init__(self, directory: Descriptor, path: str, *, change: bool = True) -> None:
        if change and not directory.writable:
            raise OSError(errno.EROFS, "read-only")
        above, _, self.name = path.rstrip("/").rpartition("/")
        if self.name in ("", ".", ".."):
            raise PermissionError(1, "no name")
        if path.startswith("/"):
            raise PermissionError(1, "absolute path")
        self.fd = _beneath(directory, above or ".", os.O_PATH | os.O_DIRECTORY)

    def __enter__(self) -> _Parent:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.fd)


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISREG, "regular-file"), (stat.S_ISDIR, "directory"), (stat.S_ISLNK, "symbolic-link"),
        (stat.S_ISCHR, "character-device"), (stat.S_ISBLK, "block-device"), (stat.S_ISFIFO, "fifo"),
        (stat.S_ISSOCK, "socket"),
    ):  # fmt: skip
        if test(mode):
            return name
    return "unknown"


def _stat(found: os.stat_result) -> tuple[Any, ...]:
    times = (divmod(ns, 10**9) for ns in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns))
    return (_kind(found.st_mode), found.st_nlink, found.st_size, *times)


def _stat_at(directory: Descriptor, flags: frozenset[str], path: str) -> os.stat_result:
    follow = 0 if "symlink-follow" in flags else os.O_NOFOLLOW
    fd = _beneath(directory, path, os.O_PATH | follow)
    try:
        return os.stat(fd)
    finally:
        os.close(fd)


def _open_at(
    directory: Descriptor, path_flags: frozenset[str], path: str, open_flags: frozenset[str], flags: frozenset[str]
) -> Descriptor:
    read, write = "read" in flags, "write" in flags
    if not directory.writable and (write or open_flags & {"create", "truncate"}):
        raise OSError(errno.EROFS, "read-only")
    wanted = os.O_RDWR if read and write else os.O_WRONLY if write else os.O_RDONLY
    wanted |= os.O_NONBLOCK  # a fifo must not stop the host
    for name, bit in (
        ("create", os.O_CREAT), ("exclusive", os.O_EXCL), ("truncate", os.O_TRUNC), ("directory", os.O_DIRECTORY),
    ):  # fmt: skip
        if name in open_flags:
            wanted |= bit
    if "symlink-follow" not in path_flags:
        wanted |= os.O_NOFOLLOW
    mode = 0o666 if "create" in open_flags else 0
    return Descriptor(
        _beneath(directory, path, wanted, mode),
        read=read,
        write=write or ("mutate-directory" in flags and directory.writable),
    )


def _list(directory: Descriptor) -> list[tuple[str, str]]:
    fd = _beneath(directory, ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            return [(_kind(entry.stat(follow_symlinks=False).st_mode), entry.name) for entry in entries]
    finally:
        os.close(fd)


def _entry(call: Any, entries: list[tuple[str, str]]) -> Any:
    return Ok(entries.pop(0) if entries else None)


def _reader(file: Descriptor, offset: int) -> InputStream:
    place = [offset]

    def read(length: int) -> bytes:
        data = os.pread(file.fd, length, place[0])
        place[0] += len(data)
        return data

    return InputStream(read)


def _writer(file: Descriptor, offset: int) -> OutputStream:
    place = [offset]

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(file.fd, view, place[0])
            place[0] += done
            view = view[done:]

    return OutputStream(write)


def _at(operation: Callable[..., Any]) -> Callable[..., Any]:
    def run(directory: Descriptor, path: str) -> None:
        with _Parent(directory, path) as parent:
            operation(parent.name, dir_fd=parent.fd)

    return _file(run)


def _rename(old: Descriptor, old_path: str, new: Descriptor, new_path: str) -> None:
    with _Parent(old, old_path) as source, _Parent(new, new_path) as target:
        os.rename(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd)


def _link(old: Descriptor, flags: frozenset[str], old_path: str, new: Descriptor, new_path: str) -> None:
    with _Parent(old, old_path) as source, _Parent(new, new_path) as target:
        os.link(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)


def _symlink(directory: Descriptor, target: str, path: str) -> None:
    if target.startswith("/"):
        raise PermissionError(1, "absolute target")
    with _Parent(directory, path) as parent:
        os.symlink(target, parent.name, dir_fd=parent.fd)


def _readlink(directory: Descriptor, path: str) -> str:
    with _Parent(directory, path, change=False) as parent:
        return os.readlink(parent.name, dir_fd=parent.fd)


def _read_at(file: Descriptor, length: int, offset: int) -> tuple[bytes, bool]:
    data = os.pread(file.fd, min(length, _LARGEST), offset)
    return data, len(data) < length


def _hash(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, (found.st_mtime_ns ^ found.st_size) & ((1 << 64) - 1)


def _flags(file: Descriptor) -> frozenset[str]:
    chosen = (("read", file.readable), ("write", file.writable), ("mutate-directory", file.writable))
    return frozenset(name for name, given in chosen if given)


def _size(file: Descriptor) -> int:
    return os.fstat(file.fd).st_size


_FILES = {
    "[method]descriptor.read-via-stream": _file(_reader),
    "[method]descriptor.write-via-stream": _file(_writer),
    "[method]descriptor.append-via-stream": _file(lambda file: _writer(file, _size(file))),
    "[method]descriptor.advise": _file(lambda file, offset, length, advice: None),
    "[method]descriptor.sync-data": _file(lambda file: os.fdatasync(file.fd)),
    "[method]descriptor.sync": _file(lambda file: os.fsync(file.fd)),
    "[method]descriptor.get-flags": _file(_flags),
    "[method]descriptor.get-type": _file(lambda file: _kind(os.fstat(file.fd).st_mode)),
    "[method]descriptor.set-size": _file(lambda file, size: os.ftruncate(file.fd, size)),
    "[method]descriptor.read": _file(_read_at),
    "[method]descriptor.write": _file(lambda file, data, offset: os.pwrite(file.fd, data, offset)),
    "[method]descriptor.read-directory": _file(_list),
    "[method]descriptor.create-directory-at": _at(os.mkdir),
    "[method]descriptor.remove-directory-at": _at(os.rmdir),
    "[method]descriptor.unlink-file-at": _at(os.unlink),
    "[method]descriptor.stat": _file(lambda file: _stat(os.fstat(file.fd))),
    "[method]descriptor.stat-at": _file(lambda file, flags, path: _stat(_stat_at(file, flags, path))),
    "[method]descriptor.open-at": _file(_open_at),
    "[method]descriptor.readlink-at": _file(_readlink),
    "[method]descriptor.rename-at": _file(_rename),
    "[method]descriptor.link-at": _file(_link),
    "[method]descriptor.symlink-at": _file(_symlink),
    "[method]descriptor.is-same-object": lambda call, one, other: os.path.sameopenfile(one.fd, other.fd),
    "[method]descriptor.metadata-hash": _file(lambda file: _hash(os.fstat(file.fd))),
    "[method]descriptor.metadata-hash-at": _file(lambda file, flags, path: _hash(_stat_at(file, flags, path))),
    "[method]directory-entry-stream.read-directory-entry": _entry,
    "filesystem-error-code": lambda call, error: _ERRNO.get(error.errno or 0) if isinstance(error, OSError) else None,
}


def tables(
    arguments: Sequence[str],
    environment: Sequence[tuple[str, str]],
    preopens: Sequence[tuple[str, str, bool]],
) -> dict[str, dict[str, Any]]:
    """The whole of it. ``preopens`` are directory, path in the guest, and whether it may be changed."""

    def directories(call: Any) -> list[tuple[Descriptor, str]]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return [(Descriptor(os.open(path, flags), read=True, write=write), name) for path, name, write in preopens]

    return {
        "wasi:io/poll": {
            "[method]pollable.ready": lambda call, item: item.ready_in() <= 0,
            "[method]pollable.block": _block,
            "poll": _poll,
        },
        "wasi:io/error": {"[method]error.to-debug-string": lambda call, error: str(error)},
        "wasi:io/streams": _STREAMS,
        "wasi:filesystem/types": _FILES,
        "wasi:filesystem/preopens": {"get-directories": directories},
        **_CLOCKS,
        **_RANDOM,
        **_cli(arguments, environment),
    }
