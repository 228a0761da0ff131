"""The cache, the module finder, cgroup plans, the system call filter and the files of the WASI host."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from engine.drivers.cgroups import Layout
from engine.errors import InvalidParameter, StartFailed
from engine_wasm_host import cgroups, modules, seccomp
from engine_wasm_host.cache import AotCache, Compiled

# (module (func (export "_start")))
START = b"\0asm\1\0\0\0\1\4\1\x60\0\0\3\2\1\0\7\n\1\6_start\0\0\n\4\1\2\0\x0b"


def module(path: Path, data: bytes = START) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def test_a_module_is_compiled_once_and_known_again_by_another_daemon(tmp_path: Path) -> None:
    fd = module(tmp_path / "m.wasm")
    first = AotCache(tmp_path / "aot").compiled(fd)
    made = first.code.stat().st_mtime_ns

    again = AotCache(tmp_path / "aot").compiled(fd)

    assert (first.kind, first.exports, first.digest) == ("module", ("_start",), hashlib.sha256(START).hexdigest())
    assert again == first
    assert again.code.stat().st_mtime_ns == made
    assert first.code.stat().st_mode & 0o077 == 0


def test_a_damaged_entry_is_compiled_again(tmp_path: Path) -> None:
    fd = module(tmp_path / "m.wasm")
    cache = AotCache(tmp_path / "aot")
    code = cache.compiled(fd).code
    good = code.read_bytes()
    code.write_bytes(good[:100] + bytes((good[100] ^ 1,)) + good[101:])

    assert cache.compiled(fd).code.read_bytes() == good
    (code.with_suffix(".json")).write_text("{")
    assert AotCache(tmp_path / "aot").compiled(fd).code.read_bytes() == good


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = AotCache(tmp_path / "aot", limit=1)
    first = cache.compiled(module(tmp_path / "m.wasm")).code

    second = cache.compiled(module(tmp_path / "n.wasm", START + b"\0\2\1x")).code

    assert not first.exists()
    assert second.exists()
    assert cache.compiled(module(tmp_path / "m.wasm")).code.exists()


@pytest.mark.parametrize("data", [START[:-3], b"\0asm\1\0\0\0garbage", b"\0asm\x0d\0\1\0\xff"])
def test_what_is_no_module_is_refused_with_the_compilers_words(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidParameter, match="not a valid WebAssembly module: "):
        AotCache(tmp_path / "aot").compiled(module(tmp_path / "m.wasm", data))
    assert not list((tmp_path / "aot").rglob("*.new"))


def test_the_module_is_found_as_the_container_will_see_it(tmp_path: Path) -> None:
    root, volume = tmp_path / "root", tmp_path / "volume"
    (root / "bin").mkdir(parents=True)
    volume.mkdir()
    (root / "bin/app.wasm").write_bytes(START)
    (volume / "v.wasm").write_bytes(START)
    (root / "out.wasm").symlink_to("/../../../../etc/passwd")
    mounts = [{"destination": "/data", "type": "bind", "source": str(volume)}]
    process = {"args": ["app.wasm#run"], "env": ["PATH=/bin"], "cwd": "/"}

    fd, path, function = modules.open_module(root, mounts, process)

    os.close(fd)
    assert (path, function) == ("/bin/app.wasm", "run")
    fd, path, _ = modules.open_module(root, mounts, {**process, "args": ["/data/v.wasm"]})
    os.close(fd)
    assert path == "/data/v.wasm"
    with pytest.raises(StartFailed) as caught:
        modules.open_module(root, mounts, {**process, "args": ["/out.wasm"]})
    assert caught.value.exit_code == 127


def test_the_dummy_command_means_the_only_module(tmp_path: Path) -> None:
    process = {"args": ["/"], "env": [], "cwd": "/"}
    (tmp_path / "one.wasm").write_bytes(START)

    fd, path, _ = modules.open_module(tmp_path, [], process)
    os.close(fd)
    (tmp_path / "two.wasm").write_bytes(START)

    assert path == "/one.wasm"
    with pytest.raises(StartFailed, match=r"has one\.wasm, two\.wasm: name the module"):
        modules.open_module(tmp_path, [], process)


@pytest.mark.parametrize(("head", "words"), [(b"\x7fELF", "Linux program"), (b"#!/bin/sh", "script"), (b"text", "asm")])
def test_other_files_are_refused_by_what_they_are(tmp_path: Path, head: bytes, words: str) -> None:
    with pytest.raises(StartFailed, match=words) as caught:
        modules.check_magic(module(tmp_path / "x", head), "/x")
    assert caught.value.exit_code == 126


def compiled(kind: str, imports: tuple[str, ...] = (), exports: tuple[str, ...] = ("_start",)) -> Compiled:
    return Compiled(digest="0", code=Path("/x"), kind=kind, imports=imports, exports=exports)


def test_missing_imports_and_preview_3_are_named() -> None:
    assert modules.unsupported(compiled("module", ("wasi_snapshot_preview1.fd_write",)), "_start") == ""
    assert "env.alert" in modules.unsupported(compiled("module", ("env.alert",)), "_start")
    assert "no function go" in modules.unsupported(compiled("module"), "go")
    component = compiled("component", exports=("wasi:http/handler@0.3.0",))
    assert "preview 3" in modules.unsupported(component, "_start")
    assert "wasi:http/handler@0.3.0" in modules.unsupported(component, "_start")


def test_limits_become_files_of_the_controllers_that_have_them() -> None:
    layout = Layout({"memory": "/m", "cpu": "/c", "pids": "/p", "blkio": "/b"}, "")
    resources = {"memory": {"limit": 1 << 20}, "cpu": {"quota": 5000, "period": 10000}, "pids": {"limit": -1}}

    plan = {group["path"]: group for group in cgroups.plan(layout, "/e/x", resources)}

    assert plan["/m/e/x"]["values"] == [("memory.limit_in_bytes", str(1 << 20))]
    assert plan["/c/e/x"]["values"] == [("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "5000")]
    assert plan["/p/e/x"]["values"] == [("pids.max", "max")]
    assert "/b/e/x" not in plan
    assert {group["entrance"] for group in plan.values()} == {"tasks"}
    json.dumps(list(plan.values()))


def run_filter(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """A BPF interpreter for what the filter uses: the oracle of these tests."""
    data = struct.pack("<iIQ6Q", number, architecture, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    code = [struct.unpack_from("HBBI", program, offset) for offset in range(0, len(program), 8)]
    place, value = 0, 0
    while True:
        operation, yes, no, k = code[place]
        place += 1
        if operation == 0x20:
            value = struct.unpack_from("<I", data, k)[0]
        elif operation == 0x54:
            value &= k
        elif operation == 0x06:
            return int(k)
        else:
            holds = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[operation]
            place += yes if holds else no


@pytest.mark.parametrize(
    ("number", "arguments", "allowed"),
    [
        (0, (), True), (1, (), True), (202, (), True), (307, (), True),  # read, write, futex, sendmmsg
        (59, (), False), (322, (), False), (57, (), False), (58, (), False),  # execve, execveat, fork, vfork
        (165, (), False), (272, (), False), (308, (), False), (101, (), False),  # mount, unshare, setns, ptrace
        (56, (0x3D0F00,), True), (56, (0x11,), False),  # clone: a thread, a process
        (41, (2, 1), True), (41, (10, 2), True), (41, (2, 3), False), (41, (16, 3), False), (41, (1, 1), False),
        (0x40000000, (), False),
    ],
)  # fmt: skip
def test_the_filter_allows_threads_and_tcp_and_nothing_that_starts_programs(
    number: int, arguments: tuple[int, ...], allowed: bool
) -> None:
    verdict = run_filter(seccomp.program("x86_64"), 0xC000003E, number, *arguments)
    assert (verdict == 0x7FFF0000) is allowed


def test_a_foreign_architecture_is_killed_and_clone3_is_unknown() -> None:
    assert run_filter(seccomp.program("x86_64"), 0xC00000B7, 0) == 0x80000000
    assert run_filter(seccomp.program("x86_64"), 0xC000003E, 435) == 0x00050000 | 38
    assert seccomp.program("sparc") == b""


def test_files_of_a_guest_stay_beneath_its_directory(tmp_path: Path) -> None:
    wasi = pytest.importorskip("engine_wasm_host.wasi")
    from engine_wasm_host.values import Err, Ok

    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in/file").write_text("text")
    (tmp_path / "in/up").symlink_to("../secret")
    (tmp_path / "in/absolute").symlink_to("/etc/passwd")
    files = wasi.tables([], [], [])["wasi:filesystem/types"]
    root = wasi.Descriptor(os.open(tmp_path / "in", os.O_RDONLY), read=True, write=True)
    follow, read = frozenset({"symlink-follow"}), frozenset({"read"})

    opened = files["[method]descriptor.open-at"](None, root, follow, "file", frozenset(), read)
    assert isinstance(opened, Ok)
    assert files["[method]descriptor.read"](None, opened.value, 10, 0).value == (b"text", True)
    opened.value.close()
    for path in ("../secret", "up", "absolute", "/etc/passwd"):
        for name, arguments in (
            ("open-at", (follow, path, frozenset(), read)),
            ("stat-at", (follow, path)),
            ("metadata-hash-at", (follow, path)),
        ):
            assert isinstance(files[f"[method]descriptor.{name}"](None, root, *arguments), Err), (name, path)
    for path in ("../secret", "/secret"):
        assert isinstance(files["[method]descriptor.unlink-file-at"](None, root, path), Err)
        assert isinstance(files["[method]descriptor.rename-at"](None, root, "file", root, path), Err)
        assert isinstance(files["[method]descriptor.create-directory-at"](None, root, path + "x"), Err)
        assert isinstance(files["[method]descriptor.symlink-at"](None, root, "file", path), Err)
    assert isinstance(files["[method]descriptor.symlink-at"](None, root, "/etc", "link"), Err)
    root.writable = False
    assert files["[method]descriptor.unlink-file-at"](None, root, "file") == Err("read-only")
    create = frozenset({"create"})
    assert files["[method]descriptor.open-at"](None, root, follow, "new", create, read) == Err("read-only")
    root.close()
