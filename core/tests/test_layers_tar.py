from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.drivers.store import Change
from engine.errors import InvalidParameter
from engine.layers import chain_id, chain_ids, detect_compression, pack, tar
from engine.layers.compression import decompressor, gzip_stream
from engine.layers.extract import Extractor
from engine.layers.tar import Entry, Stream
from engine.layers.tree import copy_tree, remove_tree, usage

ME = (os.geteuid(), os.getegid())


def stream(data: bytes, size: int = 700) -> Stream:
    return Stream(data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    source = stream(data)
    return [(entry, b"".join(source.parts(entry.stored))) for entry in tar.entries(source)]


def archive(*members: tarfile.TarInfo | tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                info, data = member, b"\0" * member.size
            else:
                info, data = tarfile.TarInfo(member[0]), member[1]
                info.size = len(data)
            info.uid, info.gid = info.uid or ME[0], info.gid or ME[1]
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **values: int) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    for key, value in values.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "outside").write_bytes(b"untouched")
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    assert (tmp_path / "outside").read_bytes() == b"untouched"
    assert sorted(os.listdir(tmp_path)) == ["outside", "root"]


def extract(root: int, data: bytes, whiteouts: str = "overlay") -> Extractor:
    extractor = Extractor(root, whiteouts)  # type: ignore[arg-type]
    extractor.extract(stream(data))
    return extractor


# -- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_give_names_links_and_contents(format: int) -> None:
    long = "/".join(["directory"] * 12) + "/file"
    data = archive(("short", b"1"), (long, b"22"), info("link", tarfile.SYMTYPE, "t" * 99), format=format)
    found = read(data)
    assert [(entry.name.decode(), body) for entry, body in found] == [("short", b"1"), (long, b"22"), ("link", b"")]
    assert found[2][0].link == b"t" * 99


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_extensions_carry_long_names_large_ids_and_old_times(format: int) -> None:
    member = info("n" * 300, tarfile.SYMTYPE, "l" * 300, uid=3_000_000_000, gid=2_097_152)
    member.mtime = -5
    entry = read(archive(member, format=format))[0][0]
    assert (entry.name, entry.link) == (b"n" * 300, b"l" * 300)
    assert (entry.uid, entry.gid, entry.mtime_ns) == (3_000_000_000, 2_097_152, -5_000_000_000)


def test_sizes_over_eight_gigabytes_are_read_from_base_256_and_pax() -> None:
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = info("big", size=0)
        member.size = 9 << 30
        header = member.tobuf(format=format)
        assert next(iter(tar.entries(stream(header)))).size == 9 << 30


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:700], "truncated"),
        (lambda data: data[:300], "truncated"),
        (lambda data: b"\xff" * 1024, "invalid tar header"),
        (lambda data: data[:10] + b"x" + data[11:], "invalid tar header"),
        (lambda data: data.replace(b"0000644", b"000064z"), "invalid tar header"),
    ],
)
def test_damaged_archives_are_refused(damage: object, message: str) -> None:
    data = archive(("file", b"x" * 1000), format=tarfile.USTAR_FORMAT)
    with pytest.raises(InvalidParameter, match=message):
        read(damage(data))  # type: ignore[operator]


def test_an_oversized_extension_is_refused_before_it_is_read() -> None:
    header = tar.header(Entry(name=b"x", kind=b"x", size=2 << 20))
    with pytest.raises(InvalidParameter, match="over the limit"):
        read(header)


@given(st.binary(max_size=2048))
def test_no_bytes_make_the_reader_fail_otherwise(data: bytes) -> None:
    try:
        read(data)
    except InvalidParameter:
        pass


@given(st.data())
def test_no_change_of_a_valid_archive_makes_the_reader_fail_otherwise(data: st.DataObject) -> None:
    valid = bytearray(archive(("a" * 120, b"x" * 600), info("l", tarfile.SYMTYPE, "b" * 200)))
    for _ in range(data.draw(st.integers(1, 4))):
        valid[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(valid))
    except InvalidParameter:
        pass


# -- writing ------------------------------------------------------------------------------------------------------


@given(
    name=st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/")),
    link=st.binary(max_size=200).filter(lambda name: b"\0" not in name),
    uid=st.integers(0, 0xFFFFFFFE),
    mtime=st.integers(-(10**18), 4 * 10**18),
    value=st.binary(max_size=100),
)
def test_what_is_written_is_read_back(name: bytes, link: bytes, uid: int, mtime: int, value: bytes) -> None:
    entry = Entry(name=name, kind=tar.SYMLINK, link=link, uid=uid, mtime_ns=mtime, xattrs={"user.x": value})
    back = next(iter(tar.entries(stream(tar.header(entry)))))
    assert back == entry


def test_python_reads_what_is_written() -> None:
    entry = Entry(name=b"d/" + "\N{SNOWMAN}".encode() * 50, size=3, uid=5_000_000, mtime_ns=1_500_000_000_250_000_000)
    data = tar.header(entry) + b"abc" + bytes(509) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        member = file.getmembers()[0]
    assert (member.name, member.size, member.uid, member.mtime) == (
        entry.name.decode(),
        3,
        5_000_000,
        1_500_000_000.25,
    )


def test_a_tree_packed_and_extracted_is_the_same_tree(root: int, tmp_path: Path) -> None:
    source = tmp_path / "root" / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "file").write_bytes(b"x" * 3000)
    os.link(source / "deep" / "er" / "file", source / "hard")
    (source / "soft").symlink_to("../../outside")
    os.mkfifo(source / "pipe")
    os.utime(source / "deep", ns=(1, 123_456_789))
    packed = tmp_path / "root" / "packed.tar"
    with packed.open("wb") as file:
        fd = os.open(source, os.O_RDONLY)
        pack.write_tree(fd, file.fileno())
        os.close(fd)
    (tmp_path / "root" / "target").mkdir()
    target = os.open(tmp_path / "root" / "target", os.O_RDONLY)
    extractor = extract(target, packed.read_bytes())
    os.close(target)
    copy = tmp_path / "root" / "target"
    assert (copy / "hard").stat().st_ino == (copy / "deep" / "er" / "file").stat().st_ino
    assert (copy / "deep" / "er" / "file").read_bytes() == b"x" * 3000
    assert os.readlink(copy / "soft") == "../../outside"
    assert (copy / "pipe").is_fifo()
    assert (copy / "deep").stat().st_mtime_ns == 123_456_789
    assert (extractor.size, extractor.inodes) == (3000 + len("../../outside"), 6)


def test_a_layer_holds_the_changes_their_directories_and_whiteouts(root: int, tmp_path: Path) -> None:
    (tmp_path / "root" / "d" / "e").mkdir(parents=True)
    (tmp_path / "root" / "d" / "e" / "new").write_bytes(b"1")
    (tmp_path / "root" / "same").write_bytes(b"2")
    output = tmp_path / "root" / "layer.tar"
    changes = [Change(path="/d", kind=0), Change(path="/d/e/new", kind=1), Change(path="/d/gone", kind=2)]
    with output.open("wb") as file:
        pack.write_layer(root, changes, file.fileno())
    assert [entry.name for entry, _ in read(output.read_bytes())] == [b"d/", b"d/e/", b"d/e/new", b"d/.wh.gone"]


# -- extracting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/../outside", ".."])
def test_names_above_the_root_are_refused(root: int, name: str) -> None:
    with pytest.raises(InvalidParameter, match="outside of the root"):
        extract(root, archive((name, b"evil")))


def test_absolute_names_are_below_the_root(root: int, tmp_path: Path) -> None:
    extract(root, archive(("/etc/file", b"x"), ("./a/../b", b"y")))
    assert (tmp_path / "root" / "etc" / "file").read_bytes() == b"x"
    assert (tmp_path / "root" / "b").read_bytes() == b"y"


@pytest.mark.parametrize("target", ["../..", "..", "/", "/tmp", "."])
def test_writing_through_a_link_stays_inside(root: int, tmp_path: Path, target: str) -> None:
    data = archive(info("link", tarfile.SYMTYPE, target), ("link/outside", b"evil"))
    try:
        extract(root, data)
    except InvalidParameter:
        return
    assert [path.read_bytes() for path in (tmp_path / "root").rglob("outside")] != [b"untouched"]


def test_a_link_in_the_way_of_a_file_is_replaced_not_followed(root: int, tmp_path: Path) -> None:
    extract(root, archive(info("file", tarfile.SYMTYPE, str(tmp_path / "outside")), ("file", b"new")))
    assert not (tmp_path / "root" / "file").is_symlink()
    assert (tmp_path / "root" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("target", ["../outside", "/../outside", "missing", "link/outside"])
def test_hard_links_to_outside_or_nowhere_are_refused(root: int, target: str) -> None:
    data = archive(info("link", tarfile.SYMTYPE, "../.."), info("hard", tarfile.LNKTYPE, target))
    with pytest.raises(InvalidParameter):
        extract(root, data)


def test_later_entries_replace_earlier_ones_of_any_kind(root: int, tmp_path: Path) -> None:
    extract(
        root,
        archive(
            info("a", tarfile.DIRTYPE, mode=0o755),
            ("a/inner", b"x"),
            ("a", b"file now"),
            ("b", b"file"),
            info("b", tarfile.DIRTYPE, mode=0o755),
            ("b/inner", b"y"),
        ),
    )
    assert (tmp_path / "root" / "a").read_bytes() == b"file now"
    assert (tmp_path / "root" / "b" / "inner").read_bytes() == b"y"


@pytest.mark.parametrize("name", [".wh..", ".wh...", "d/.wh..", "d/.wh..."])
def test_whiteouts_of_dot_and_dotdot_are_refused(root: int, name: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid whiteout"):
        extract(root, archive((name, b"")))


def test_opaque_directories_are_reported_and_applied_whiteouts_spare_their_own_layer(root: int, tmp_path: Path) -> None:
    top = tmp_path / "root"
    (top / "d").mkdir()
    (top / "d" / "old").write_bytes(b"old")
    (top / "gone").write_bytes(b"old")
    extract(root, archive(("d/new", b"new"), ("d/.wh..wh..opq", b""), (".wh.gone", b"")), "apply")
    assert sorted(path.name for path in top.rglob("*")) == ["d", "new"]
    assert extract(root, archive(("e/.wh..wh..opq", b""))).opaque == {b"e"}


@pytest.mark.parametrize("mode", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse_files_keep_their_holes(root: int, tmp_path: Path, mode: str) -> None:
    length = 1 << 20
    segments = [(0, 4), (length - 4, 4)]
    data = b"headtail"
    if mode == "gnu":
        block = bytearray(tar.header(Entry(name=b"sparse", kind=b"S", size=8, uid=ME[0], gid=ME[1])))
        block[257:265] = b"ustar  \0"
        for at, (offset, size) in enumerate(segments):
            block[386 + 24 * at : 410 + 24 * at] = b"%011o\0%011o\0" % (offset, size)
        block[483:495] = b"%011o\0" % length
        block[148:156] = b"        "
        raw = bytes(block[:148]) + b"%06o\0 " % sum(block) + bytes(block[156:])
        raw += data + bytes(504) + bytes(1024)
    else:
        flat = [str(number) for pair in segments for number in pair]
        records = {
            "0.0": [("GNU.sparse.size", str(length)), ("GNU.sparse.numblocks", "2")]
            + [
                item
                for offset, size in segments
                for item in (("GNU.sparse.offset", str(offset)), ("GNU.sparse.numbytes", str(size)))
            ],
            "0.1": [("GNU.sparse.size", str(length)), ("GNU.sparse.map", ",".join(flat))],
            "1.0": [
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "sparse"),
                ("GNU.sparse.realsize", str(length)),
            ],
        }[mode]
        text = b"".join(tar._record(key.encode(), value.encode()) for key, value in records)
        body = data
        if mode == "1.0":
            body = "\n".join(["2", *flat, ""]).encode().ljust(512, b"\0") + data
        raw = tar.header(Entry(name=b"pax", kind=b"x", size=len(text))) + text + bytes(tar.padding(len(text)))
        raw += tar.header(Entry(name=b"sparse", size=len(body), uid=ME[0], gid=ME[1]))
        raw += body + bytes(tar.padding(len(body))) + bytes(1024)
    extractor = extract(root, raw)
    file = tmp_path / "root" / "sparse"
    assert file.stat().st_size == length == extractor.size
    assert file.stat().st_blocks * 512 < length
    content = file.read_bytes()
    assert (content[:4], content[-4:], content[4:-4].strip(b"\0")) == (b"head", b"tail", b"")


# -- trees and compression ----------------------------------------------------------------------------------------


def test_removing_copes_with_trees_of_any_depth_and_never_follows_links(root: int, tmp_path: Path) -> None:
    os.mkdir("tree", dir_fd=root)
    fd = os.open("tree", os.O_RDONLY, dir_fd=root)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        os.symlink(str(tmp_path / "outside"), "link", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree("tree", root)
    remove_tree("tree", root)
    assert os.listdir(root) == []


def test_a_copy_has_links_holes_and_attributes_of_its_original(root: int, tmp_path: Path) -> None:
    top = tmp_path / "root"
    (top / "one").mkdir()
    with (top / "one" / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"middle")
    os.link(top / "one" / "sparse", top / "one" / "again")
    os.chmod(top / "one" / "sparse", 0o640)
    (top / "two").mkdir()
    source, target = os.open(top / "one", os.O_RDONLY), os.open(top / "two", os.O_RDONLY)
    copy_tree(source, target)
    copied = (top / "two" / "sparse").stat()
    assert (copied.st_nlink, copied.st_mode & 0o777, copied.st_mtime_ns) == (
        2,
        0o640,
        (top / "one" / "sparse").stat().st_mtime_ns,
    )
    assert copied.st_blocks * 512 < 1 << 20
    assert (top / "two" / "again").read_bytes() == (top / "one" / "again").read_bytes()
    assert usage(target) == (1 << 20, 1)
    os.close(source)
    os.close(target)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "bzip2", "xz", "none"])
def test_streams_are_recognised_decompressed_and_noticed_when_cut(compression: str) -> None:
    import bz2
    import lzma

    import zstandard

    plain = os.urandom(100_000) + bytes(3_000_000)
    compress = {
        "gzip": lambda data: b"".join(gzip_stream(io.BytesIO(data).read)),
        "zstd": zstandard.ZstdCompressor().compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
        "none": bytes,
    }[compression]
    data = compress(plain)
    assert detect_compression(data) == compression
    unpack = decompressor(compression)
    assert b"".join(unpack(io.BytesIO(data).read)) == plain
    if compression != "none":
        doubled = io.BytesIO(data + compress(b"more"))
        assert b"".join(unpack(doubled.read)) == plain + b"more"
        with pytest.raises(InvalidParameter):
            list(unpack(io.BytesIO(data[:-3]).read))


def test_chain_ids_follow_the_specification() -> None:
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert chain_ids([one, two]) == [one, chain_id(one, two)]
    assert chain_id(one, two) == "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"
