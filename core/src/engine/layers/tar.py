"""Tar headers, read and written: ustar, PAX (with ``SCHILY.xattr`` and sparse files), GNU long names and sparse files.

The reader takes the input for hostile: every number is range-checked, extended headers are bounded, a wrong checksum
or an early end is `InvalidParameter`. It hands out names as bytes exactly as they are in the archive; judging them is
`engine.layers.extract`'s job.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.errors import InvalidParameter

__all__ = ["Entry", "Stream", "entries", "header", "padding"]

BLOCK = 512
MAX_EXTENSION = 1 << 20  # bytes of one PAX or long-name record
MAX_SPARSE = 1 << 20  # segments of one sparse file
_MAX_ID = 0xFFFFFFFE
_ZERO = bytes(BLOCK)
_TERMINATORS = b" \0"

REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


@dataclass(slots=True)
class Entry:
    """One member. ``size`` is the file's size; ``stored`` the bytes that follow in the archive (less for a sparse
    file, whose ``segments`` are (offset, length) pairs). Times are nanoseconds since the epoch."""

    name: bytes
    kind: bytes = REGULAR
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    stored: int = 0
    segments: list[tuple[int, int]] | None = None


class Stream:
    """Exact reads over an iterator of chunks. ``position`` counts the bytes handed out."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._view = memoryview(b"")
        self._at = 0
        self.position = 0

    def _fill(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._view = memoryview(chunk)
                self._at = 0
                return True
        return False

    def read(self, count: int) -> bytes:
        """``count`` bytes; fewer only at the end of the stream."""
        at = self._at
        view = self._view
        if len(view) - at >= count:
            self._at = at + count
            self.position += count
            return bytes(view[at : at + count])
        parts = []
        missing = count
        while missing:
            if self._at == len(self._view) and not self._fill():
                break
            part = self._view[self._at : self._at + missing]
            self._at += len(part)
            missing -= len(part)
            parts.append(part)
        self.position += count - missing
        return b"".join(parts)

    def parts(self, count: int) -> Iterator[memoryview]:
        """``count`` bytes without copying. Raises `InvalidParameter` when the stream ends before."""
        while count:
            if self._at == len(self._view) and not self._fill():
                raise InvalidParameter("unexpected EOF: the archive is truncated")
            part = self._view[self._at : self._at + count]
            self._at += len(part)
            self.position += len(part)
            count -= len(part)
            yield part

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes. Raises like `parts`."""
        for _ in self.parts(count):
            pass

    def rest(self) -> Iterator[memoryview]:
        """All that is left, without copying."""
        while self._at < len(self._view) or self._fill():
            part = self._view[self._at :]
            self._at += len(part)
            self.position += len(part)
            yield part

    def drain(self) -> None:
        """Read to the end (padding after an archive is part of its digest)."""
        for _ in self.rest():
            pass


def padding(size: int) -> int:
    """Bytes from ``size`` to the next block boundary."""
    return -size % BLOCK


def entries(stream: Stream) -> Iterator[Entry]:
    """The members in order. After each, the consumer takes at most ``stored`` bytes from ``stream``; what it leaves
    is skipped. Ends at the two zero blocks or at a clean end of input."""
    pax: dict[str, bytes] = {}
    sparse_pairs: list[bytes] = []
    long_name = long_link = None
    while True:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            if block:
                raise InvalidParameter("unexpected EOF: the archive is truncated")
            return
        if block == _ZERO:
            return
        _verify(block)
        kind = block[156:157]
        size = _number(block, 124, 136, "size")
        if kind in (b"x", b"X", b"g"):
            records = _pax(_extension(stream, size))
            if kind != b"g":  # global headers carry comments (git archive); Docker ignores them too
                pax = dict(records)
                sparse_pairs = [v for k, v in records if k in ("GNU.sparse.offset", "GNU.sparse.numbytes")]
            continue
        if kind == b"L":
            long_name = _extension(stream, size).split(b"\0", 1)[0]
            continue
        if kind == b"K":
            long_link = _extension(stream, size).split(b"\0", 1)[0]
            continue
        entry = _entry(block, kind, size)
        if long_name is not None:
            entry.name = long_name
        if long_link is not None:
            entry.link = long_link
        if pax:
            _apply_pax(entry, pax)
        if kind == b"S":
            _old_sparse(entry, block, stream)
        if entry.kind == REGULAR and kind != b"S" and entry.name.endswith(b"/"):
            entry.kind = DIRECTORY  # archives older than ustar; only the whole name tells
        if entry.kind != REGULAR:
            # links carry a size in some archives (hard links of pax) although no data follows
            entry.stored = entry.size = 0
        if pax and any(key.startswith("GNU.sparse.") for key in pax):
            _pax_sparse(entry, pax, sparse_pairs, stream)
        if b"\0" in entry.name or b"\0" in entry.link:
            raise InvalidParameter("invalid tar header: a name contains a NUL byte")
        pax, sparse_pairs, long_name, long_link = {}, [], None, None
        end = stream.position + entry.stored
        yield entry
        if stream.position > end:
            raise AssertionError("a consumer read beyond its entry")
        # a sparse map before the data is a whole number of blocks: the padding depends on the data alone
        stream.skip(end - stream.position + padding(entry.stored))


def _verify(block: bytes) -> None:
    field_ = block[148:156]
    expected = _octal(field_, "checksum")
    actual = sum(block) - sum(field_) + 256
    if actual != expected:
        signed = actual - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if signed != expected:
            raise InvalidParameter("archive/tar: invalid tar header")


def _octal(raw: bytes, what: str) -> int:
    digits = raw[:-1]
    if raw[-1] in _TERMINATORS and digits.isdigit() and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)  # as nearly every archive has it
    text = raw.strip(b" \0")
    cut = text.find(b"\0")
    if cut >= 0:
        text = text[:cut].rstrip(b" ")
    if not text:
        return 0
    try:
        if text[0] in b"+-_":
            raise ValueError
        return int(text, 8)
    except ValueError:
        raise InvalidParameter(f"archive/tar: invalid tar header: bad {what}") from None


def _number(block: bytes, start: int, end: int, what: str) -> int:
    first = block[start]
    if first & 0x80:  # GNU base-256, two's complement
        value = int.from_bytes(block[start:end], "big", signed=False)
        bits = 8 * (end - start)
        value = value - (1 << bits) if first & 0x40 else value & ((1 << (bits - 1)) - 1)
    else:
        value = _octal(block[start:end], what)
    if (what != "mtime" and value < 0) or abs(value) >= 1 << 63:
        raise InvalidParameter(f"archive/tar: invalid tar header: bad {what}")
    return value


def _entry(block: bytes, kind: bytes, size: int) -> Entry:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].split(b"\0", 1)[0]
        if prefix:
            name = prefix + b"/" + name
    if kind in (b"\0", b"7", b"S"):
        kind = REGULAR
    device = kind in (CHARACTER, BLOCK_DEVICE)
    return Entry(
        name=name,
        kind=kind,
        mode=_number(block, 100, 108, "mode") & 0o7777,
        uid=_id(_number(block, 108, 116, "uid")),
        gid=_id(_number(block, 116, 124, "gid")),
        size=size,
        stored=size,
        mtime_ns=_number(block, 136, 148, "mtime") * 1_000_000_000,
        link=block[157:257].split(b"\0", 1)[0],
        major=_number(block, 329, 337, "device") if device else 0,
        minor=_number(block, 337, 345, "device") if device else 0,
    )


def _id(value: int) -> int:
    if not 0 <= value <= _MAX_ID:
        raise InvalidParameter(f"archive/tar: invalid tar header: uid or gid {value} is out of range")
    return value


def _extension(stream: Stream, size: int) -> bytes:
    if size > MAX_EXTENSION:
        raise InvalidParameter(f"archive/tar: extended header of {size} bytes is over the limit of {MAX_EXTENSION}")
    data = stream.read(size)
    if len(data) < size:
        raise InvalidParameter("unexpected EOF: the archive is truncated")
    stream.skip(padding(size))
    return data


def _pax(data: bytes) -> list[tuple[str, bytes]]:
    records = []
    at = 0
    while at < len(data):
        if data[at] == 0:
            break
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise InvalidParameter("archive/tar: invalid tar header: bad PAX record")
        length = int(digits)
        record = data[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if at + length > len(data) or record[-1:] != b"\n" or not equals or not key:
            raise InvalidParameter("archive/tar: invalid tar header: bad PAX record")
        records.append((key.decode("utf-8", "surrogateescape"), value[:-1]))
        at += length
    return records


def _decimal(value: bytes, what: str) -> int:
    if not value.isdigit() or len(value) > 19 or int(value) >= 1 << 63:
        raise InvalidParameter(f"archive/tar: invalid tar header: bad PAX {what}")
    return int(value)


def _apply_pax(entry: Entry, pax: dict[str, bytes]) -> None:
    for key, value in pax.items():
        if not value and not key.startswith("SCHILY.xattr."):
            continue  # an empty value means: as in the header
        if key == "path":
            entry.name = value
        elif key == "linkpath":
            entry.link = value
        elif key == "size":
            entry.size = entry.stored = _decimal(value, key)
        elif key == "uid":
            entry.uid = _id(_decimal(value, key))
        elif key == "gid":
            entry.gid = _id(_decimal(value, key))
        elif key == "mtime":
            entry.mtime_ns = _pax_time(value)
        elif key.startswith("SCHILY.xattr."):
            entry.xattrs[key.removeprefix("SCHILY.xattr.")] = value


def _pax_time(value: bytes) -> int:
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 12 or (fraction and not fraction.isdigit()):
        raise InvalidParameter("archive/tar: invalid tar header: bad PAX mtime")
    nanoseconds = int(digits) * 1_000_000_000 + int((fraction[:9]).ljust(9, b"0"))
    return -nanoseconds if whole.startswith(b"-") else nanoseconds


# -- sparse files ---------------------------------------------------------------------------------------------


def _old_sparse(entry: Entry, block: bytes, stream: Stream) -> None:
    segments: list[tuple[int, int]] = []

    def take(raw: bytes, start: int, count: int) -> None:
        for at in range(start, start + 24 * count, 24):
            if raw[at] == 0:
                return
            segments.append((_number(raw, at, at + 12, "sparse map"), _number(raw, at + 12, at + 24, "sparse map")))

    take(block, 386, 4)
    more = block[482]
    while more:
        extension = stream.read(BLOCK)
        if len(extension) < BLOCK or len(segments) > MAX_SPARSE:
            raise InvalidParameter("archive/tar: invalid tar header: bad sparse map")
        take(extension, 0, 21)
        more = extension[504]
    _set_sparse(entry, segments, _number(block, 483, 495, "size"))


def _pax_sparse(entry: Entry, pax: dict[str, bytes], pairs: list[bytes], stream: Stream) -> None:
    if entry.kind != REGULAR:
        raise InvalidParameter("archive/tar: invalid tar header: sparse map of something that is no file")
    if name := pax.get("GNU.sparse.name"):
        entry.name = name
    if pax.get("GNU.sparse.major") == b"1" and pax.get("GNU.sparse.minor") == b"0":
        numbers, used = _sparse_map(stream, entry.stored)
        entry.stored -= used
        size = pax.get("GNU.sparse.realsize", b"")
    else:
        if "GNU.sparse.map" in pax:
            pairs = pax["GNU.sparse.map"].split(b",") if pax["GNU.sparse.map"] else []
        numbers = [_decimal(value, "sparse map") for value in pairs]
        size = pax.get("GNU.sparse.size") or pax.get("GNU.sparse.realsize", b"")
    if len(numbers) % 2 or len(numbers) > 2 * MAX_SPARSE:
        raise InvalidParameter("archive/tar: invalid tar header: bad sparse map")
    _set_sparse(entry, list(zip(numbers[::2], numbers[1::2], strict=True)), _decimal(size, "sparse size"))


def _sparse_map(stream: Stream, stored: int) -> tuple[list[int], int]:
    """The map that PAX 1.0 puts before the data: decimal lines, the first their number of pairs, in whole blocks."""
    lines: list[bytes] = []
    data = b""
    used = 0
    wanted: int | None = None
    while wanted is None or len(lines) < wanted:
        block = stream.read(BLOCK)
        used += BLOCK
        if len(block) < BLOCK or used > stored or used > 16 * MAX_SPARSE:
            raise InvalidParameter("archive/tar: invalid tar header: bad sparse map")
        *complete, data = (data + block).split(b"\n")
        lines += complete
        if wanted is None and lines:
            wanted = 1 + 2 * _decimal(lines[0], "sparse map")
    return [_decimal(line, "sparse map") for line in lines[1:wanted]], used


def _set_sparse(entry: Entry, segments: list[tuple[int, int]], size: int) -> None:
    end = total = 0
    for offset, length in segments:
        if offset < end or offset + length > size:
            raise InvalidParameter("archive/tar: invalid tar header: bad sparse map")
        end = offset + length
        total += length
    if total != entry.stored:
        raise InvalidParameter("archive/tar: invalid tar header: sparse map and size differ")
    entry.segments = segments
    entry.size = size


# -- writing --------------------------------------------------------------------------------------------------


def header(entry: Entry) -> bytes:
    """The header blocks of ``entry``, as plain ustar where that can say it and with a PAX record where not.

    The same entry always gives the same bytes.
    """
    records: list[tuple[bytes, bytes]] = []
    name, prefix = entry.name, b""
    if len(name) > 100 or not name.isascii():
        prefix, name = _split(name) if name.isascii() else (b"", name)
        if not entry.name.isascii() or len(name) > 100:
            records.append((b"path", entry.name))
            prefix, name = b"", entry.name[:100]
    link = entry.link
    if len(link) > 100 or not link.isascii():
        records.append((b"linkpath", link))
        link = link[:100]
    seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    if fraction or not 0 <= seconds < 1 << 33:
        records.append((b"mtime", _time(entry.mtime_ns)))
        seconds = min(max(seconds, 0), (1 << 33) - 1)

    def fit(value: int, digits: int, key: bytes) -> bytes:
        if value >= 8**digits:
            records.append((key, str(value).encode()))
            value = 0
        return b"%0*o\0" % (digits, value)

    fields = (
        name.ljust(100, b"\0"),
        b"%07o\0" % (entry.mode & 0o7777),
        fit(entry.uid, 7, b"uid"),
        fit(entry.gid, 7, b"gid"),
        fit(entry.size, 11, b"size"),
        b"%011o\0" % seconds,
        b"        ",
        entry.kind,
        link.ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),
        b"%07o\0" % entry.major,
        b"%07o\0" % entry.minor,
        prefix.ljust(155, b"\0"),
        bytes(12),
    )
    for key, value in sorted(entry.xattrs.items()):
        records.append((b"SCHILY.xattr." + key.encode("utf-8", "surrogateescape"), value))
    block = _seal(b"".join(fields))
    if not records:
        return block
    data = b"".join(_record(key, value) for key, value in sorted(records))
    extension = Entry(name=b"PaxHeaders.0/" + name[-80:].strip(b"/"), kind=b"x", size=len(data))
    extension.name = bytes(byte if byte < 128 else 95 for byte in extension.name)
    return header(extension) + data + bytes(padding(len(data))) + block


def _seal(block: bytes) -> bytes:
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _split(name: bytes) -> tuple[bytes, bytes]:
    """The ustar prefix and name, or an over-long name when it cannot be split."""
    if len(name) > 256:
        return b"", name
    cut = name.find(b"/", max(0, len(name) - 101))
    return (name[:cut], name[cut + 1 :]) if 0 < cut <= 155 and cut + 1 < len(name) else (b"", name)


def _time(nanoseconds: int) -> bytes:
    sign = "-" if nanoseconds < 0 else ""
    seconds, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    return f"{sign}{seconds}.{fraction:09}".rstrip("0").rstrip(".").encode()


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    length = size + len(str(size))
    if len(str(length)) != len(str(size)):
        length = size + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
