"""WebAssembly containers, with both command line clients: the same commands, lists and errors as for Linux ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Client, Daemon, wait_for

from engine_wasm_host.testing import compile_c

HERE = Path(__file__).parent
BOX = HERE.parent / "plugins/runtime-wasm/tests/box.c"
CACHE = Path("/var/cache/engine-tests")
WASM = ("--runtime", "io.containerd.wasmtime.v1", "--platform", "wasi/wasm")
SPIN = ("--runtime=io.containerd.spin.v2", "--platform=wasi/wasm")
MANIFEST = """
spin_manifest_version = 2
[application]
name = "demo"
[variables]
colour = { required = true }
[[trigger.http]]
route = "/cgi/..."
component = "cgi"
executor = { type = "wagi" }
[component.cgi]
source = "cgi.wasm"
environment = { COLOUR = "{{ colour }}" }
files = ["site/*.txt"]
"""
CALLER = """
spin_manifest_version = 2
[application]
name = "caller"
[[trigger.http]]
route = "/..."
component = "web"
[component.web]
source = "app.wasm"
allowed_outbound_hosts = ["http://linux:8080"]
key_value_stores = ["default"]
"""


def pack(directory: Path, tag: str, files: dict[str, bytes], config: dict[str, object], system: str = "wasi") -> Path:
    """A docker-archive with an image ``FROM scratch``."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    diff_id = "sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()
    about = {
        "architecture": "wasm",
        "os": system,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    body = json.dumps(about).encode()
    name = hashlib.sha256(body).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
    path = directory / f"{hashlib.sha256(tag.encode()).hexdigest()[:12]}.tar"
    with tarfile.open(path, "w") as archive:
        for entry, data in ((name, body), ("layer.tar", layer.getvalue()), ("manifest.json", manifest)):
            info = tarfile.TarInfo(entry)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def wasm(daemon: Daemon, target: str, scratch: Path) -> Callable[..., None]:
    """Loads images; the first is ``box``: a userland in one module."""
    if target != "engine":
        pytest.skip("dockerd runs no WebAssembly")
    client = Client("docker", daemon, scratch)

    def load(tag: str, files: dict[str, bytes], config: dict[str, object] | None = None, system: str = "wasi") -> None:
        client("load", "-i", str(pack(scratch, tag, files, config or {}, system)))

    box = compile_c(BOX)
    load("box:latest", {"box.wasm": box, "etc/motd": b"welcome\n"}, {"Entrypoint": ["/box.wasm"]}, "wasip1")
    load("bare:latest", {"box.wasm": box})
    return load


def fetch(url: str, data: bytes | None = None) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, data, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def address(cli: Client, name: str) -> str:
    return next(iter(cli.inspect(name)["NetworkSettings"]["Networks"].values()))["IPAddress"]


def test_arguments_environment_input_and_exit_codes(cli: Client, wasm: object) -> None:
    assert cli("run", "--rm", *WASM, "box", "args", "a", "b").out == "args\na\nb\n"
    assert "A=b\n" in cli("run", "--rm", "--runtime=wasm", "-e", "A=b", "box", "env").out
    assert cli("run", "--rm", "-i", "box", "cat", input="piped").out == "piped"
    assert cli("run", "--rm", "box", "err", "complaint").err == "complaint\n"
    assert [cli("run", "--rm", "box", "exit", str(code), check=False).code for code in (0, 7, 126, 255, 300)] == [
        0,
        7,
        126,
        255,
        44,
    ]


@pytest.mark.parametrize("platform", ["wasi/wasm", "wasi/wasm32"])
def test_the_platform_of_the_image_is_enough(cli: Client, wasm: object, platform: str) -> None:
    assert cli("run", "--rm", "--platform", platform, "box", "echo", "hi").out == "hi\n"
    assert cli("run", "--rm", "box", "echo", "hi").out == "hi\n"
    assert "box" in cli("run", "--rm", *WASM, "bare", "/").out
    assert cli("run", "--rm", "bare").out == "box\n"


def test_unknown_shims_are_refused_by_name(cli: Client, wasm: object) -> None:
    for shim in ("slight", "wasmedge", "wws", "lunatic", "wasmer"):
        result = cli("run", "--rm", f"--runtime=io.containerd.{shim}.v1", "box", check=False)
        assert result.code == 125
        assert f"io.containerd.{shim}.v1" in result.err
        assert "wasmtime" in result.err
    runtimes = json.loads(cli("info", "--format", "{{json .Runtimes}}").out)
    assert {"wasmtime", "spin"} <= set(runtimes)


def test_crun_annotations_choose_webassembly(docker: Client, wasm: object) -> None:
    result = docker("run", "--rm", "--annotation", "run.oci.handler=wasm", "box", "echo", "x")
    assert result.out == "x\n"


def test_a_trap_says_why_it_ended(cli: Client, wasm: object, name: str) -> None:
    assert cli("run", "--name", name, "box", "trap", check=False).code == 134
    assert "unreachable" in cli("logs", name).err
    assert "unreachable" in cli.inspect(name)["State"]["Error"]


def test_files_and_volumes_are_granted_and_nothing_else(cli: Client, wasm: object, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    (tmp_path / "link").symlink_to("/etc/passwd")

    def box(*arguments: str) -> str:
        return cli("run", "--rm", *arguments, check=False).out

    assert box("box", "cat", "/etc/motd") == "welcome\n"
    assert box("-v", f"{tmp_path}:/m", "box", "cat", "/m/file") == "from the host"
    assert "root:" not in box("-v", f"{tmp_path}:/m", "box", "cat", "/m/link")
    assert "root:" not in box("box", "cat", "/../../../../etc/passwd")
    assert cli("run", "--rm", "-v", f"{tmp_path}:/m:ro", "box", "write", "/m/new", check=False).code == 1
    assert not (tmp_path / "new").exists()
    assert cli("run", "--rm", "-v", f"{tmp_path}:/m", "box", "write", "/m/new", "data").code == 0
    assert (tmp_path / "new").read_text() == "data"
    assert cli("run", "--rm", "--read-only", "box", "write", "/new", check=False).code == 1
    assert "proc" not in [line for line in box("box", "ls", "/proc").split() if line.isdigit()]


def test_the_process_is_walled_in(cli: Client, wasm: object, name: str) -> None:
    cli("run", "-d", "--name", name, "box", "sleep", "300")
    pid = cli.inspect(name)["State"]["Pid"]
    status = Path(f"/proc/{pid}/status").read_text()

    for kind in ("pid", "net", "mnt", "ipc", "uts"):
        assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    assert "/engine-" in Path(f"/proc/{pid}/cgroup").read_text()


def test_memory_is_limited_so_that_the_guest_sees_it(cli: Client, wasm: object) -> None:
    result = cli("run", "--rm", "-m", "64m", "box", "alloc", "100", check=False)
    assert result.code == 3
    assert 20 <= int(result.out.split()[0]) <= 60


def test_a_guest_that_loops_for_ever_is_stopped_and_killed(cli: Client, wasm: object, name: str) -> None:
    cli("run", "-d", "--name", name, "box", "loop")
    wait_for(lambda: "looping" in cli("logs", name).out, "its first words")
    started = time.monotonic()
    cli("stop", "-t", "5", name)
    assert time.monotonic() - started < 4
    assert cli.inspect(name)["State"]["ExitCode"] == 143
    cli("start", name)
    cli("kill", name)
    wait_for(lambda: cli.inspect(name)["State"]["ExitCode"] == 137, "its end")


def test_it_is_listed_and_managed_like_any_container(cli: Client, wasm: object, name: str) -> None:
    cli("run", "-d", "--name", name, "box", "sleep", "300")
    cli("run", "-d", "--name", f"{name}-l", "bb", "sleep", "300")

    listed = cli("ps", "--format", "{{.Names}}").out.split()
    assert {name, f"{name}-l"} <= set(listed)
    assert name in cli("stats", "--no-stream", "--format", "{{.Name}}", name).out
    assert "sleep" in cli("top", name).out
    refused = cli("exec", name, "sh", check=False)
    assert refused.code != 0
    assert "exec is not supported" in refused.out + refused.err
    cli("pause", name)
    assert cli.inspect(name)["State"]["Paused"] is True
    cli("unpause", name)
    cli("restart", "-t", "1", name)
    assert cli.inspect(name)["State"]["Running"] is True
    cli("rm", "-f", name, f"{name}-l")


def test_restart_policies_and_terminals(cli: Client, wasm: object, name: str) -> None:
    cli("run", "-d", "--name", name, "--restart", "on-failure:2", "box", "exit", "3")
    wait_for(lambda: cli.inspect(name)["RestartCount"] == 2 and not cli.inspect(name)["State"]["Running"], "restarts")
    assert cli("run", "--rm", "-t", "box", "tty").out == "/dev/tty\r\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF and so on", "Linux program"),
        (b"\0asm\1\0\0\0garbage", "not a valid WebAssembly module"),
        (b"just text", "does not begin with"),
        # (module (import "env" "alert" (func)) (func (export "_start")))
        (
            b"\0asm\1\0\0\0\1\4\1\x60\0\0\2\x0d\1\3env\5alert\0\0\3\2\1\0\7\n\1\6_start\0\1\n\4\1\2\0\x0b",
            "imports nobody provides: env.alert",
        ),
    ],
)
def test_what_cannot_run_is_refused_at_start(
    cli: Client, wasm: Callable[..., None], content: bytes, words: str
) -> None:
    wasm("bad:latest", {"bad.wasm": content}, {"Entrypoint": ["/bad.wasm"]})
    result = cli("run", "--rm", "bad", check=False)
    assert result.code in (125, 126, 128)
    assert words in result.err


def test_containers_survive_their_daemon(own_daemon: Callable[..., Daemon], scratch: Path, wasm: object) -> None:
    daemon = own_daemon(image=False)
    client = Client("docker", daemon, scratch)
    client("load", "-i", str(pack(scratch, "box:latest", {"box.wasm": compile_c(BOX)}, {"Entrypoint": ["/box.wasm"]})))
    client("run", "-d", "--name", "on", "box", "sleep", "300")
    pid = client.inspect("on")["State"]["Pid"]
    daemon.stop(9)
    daemon.start()
    assert client.inspect("on")["State"]["Pid"] == pid
    client("stop", "-t", "1", "on")
    assert client.inspect("on")["State"]["ExitCode"] == 143


def test_an_image_of_a_registry_is_the_same_on_both_sides(cli: Client, wasm: object, registry: str) -> None:
    reference = f"{registry}/box:{cli.program}"
    cli("tag", "box", reference)
    pushed = cli("push", reference).out
    digest = pushed[pushed.index("sha256:") :].split()[0]
    cli("rmi", reference)
    assert digest in cli("pull", "--platform", "wasi/wasm", reference).out
    assert cli("run", "--rm", *WASM, reference, "echo", "back").out == "back\n"


def test_a_spin_application_answers_at_its_port(cli: Client, wasm: Callable[..., None], name: str) -> None:
    files = {"spin.toml": MANIFEST.encode(), "cgi.wasm": compile_c(HERE / "wasm/cgi.c"), "site/page.txt": b"a page\n"}
    wasm("spinapp:latest", files)
    missing = cli("run", "--rm", *SPIN, "spinapp", "/", check=False)
    assert "requires the variable colour" in missing.err
    port = 5560 + (cli.program == "docker")
    cli("run", "-d", "--name", name, *SPIN, "-e", "COLOUR=blue", "-p", f"{port}:80", "spinapp", "/")
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: fetch(f"{url}/.well-known/spin/health")[0] == 200, "the application")

    assert fetch(f"{url}/cgi/a/b?q=1", b"hello") == (200, "POST /a/b?q=1 blue [hello]\na page\n")
    assert fetch(f"{url}/nosuch")[0] == 404
    assert "asked for /a/b" in cli("logs", name).err
    inside = cli("run", "--rm", "bb", "wget", "-qO-", f"http://{address(cli, name)}/cgi/x")
    assert "GET /x?" in inside.out
    cli("stop", "-t", "2", name)
    assert cli.inspect(name)["State"]["ExitCode"] == 143


@pytest.fixture
def component(daemon: Daemon) -> Iterator[bytes]:
    """A wasi:http component in Python, 37 MB; made once with spin-sdk and componentize-py, its code kept."""
    kept, code = CACHE / "spin-python.wasm", CACHE / "wasm-aot"
    if not kept.exists():
        CACHE.mkdir(exist_ok=True)
        tools = CACHE / "componentize"
        subprocess.run(["python3", "-m", "venv", str(tools)], check=True)
        done = subprocess.run([tools / "bin/pip", "install", "-q", "spin-sdk==3.4.1", "componentize-py==0.17.2"])
        if done.returncode:
            pytest.skip("needs spin-sdk and componentize-py")
        wit = next(tools.glob("lib/*/site-packages/spin_sdk/wit"))
        subprocess.run(
            [tools / "bin/componentize-py", "-d", wit, "-w", "spin-http", "componentize", "app", "-o", kept],
            cwd=HERE / "wasm",
            env={**os.environ, "PATH": f"{tools}/bin:{os.environ['PATH']}", "VIRTUAL_ENV": str(tools)},
            check=True,
        )
    mine = daemon.directory / "data/plugins/runtime/wasm-aot"
    if code.is_dir():
        shutil.copytree(code, mine, dirs_exist_ok=True)
    yield kept.read_bytes()
    digest = hashlib.sha256(kept.read_bytes()).hexdigest()
    if (mine / digest).is_dir():
        shutil.copytree(mine / digest, code / digest, dirs_exist_ok=True)


@pytest.mark.timeout(300)
def test_a_component_serves_http_beside_linux_containers(
    docker: Client, wasm: Callable[..., None], component: bytes, name: str
) -> None:
    wasm("web:latest", {"app.wasm": component}, {"Entrypoint": ["/app.wasm"]})
    docker("network", "create", f"{name[:20]}-n")
    try:
        docker("run", "-d", "--name", name, "--network", f"{name[:20]}-n", "-p", "5570:8080", "web", timeout=240)
        wait_for(lambda: fetch("http://127.0.0.1:5570/")[0] == 200, "the component")

        assert fetch("http://127.0.0.1:5570/path?x=1", b"body")[1] == "Hello from /path?x=1 body"
        assert fetch("http://127.0.0.1:5570/boom")[0] == 500
        assert "ValueError: boom" in docker("logs", name).err
        by_name = docker("run", "--rm", "--network", f"{name[:20]}-n", "bb", "wget", "-qO-", f"http://{name}:8080/n")
        assert by_name.out.startswith("Hello from /n")
        for _ in range(20):
            assert fetch("http://127.0.0.1:5570/again")[0] == 200

        wasm("caller:latest", {"app.wasm": component, "spin.toml": CALLER.encode()})
        serve = "mkdir /w; echo from linux >/w/index.html; httpd -f -p 8080 -h /w"
        docker("run", "-d", "--name", f"{name[:20]}-l", "--network", f"{name[:20]}-n", "--network-alias", "linux",
               "bb", "sh", "-c", serve)  # fmt: skip
        docker("run", "-d", "--name", f"{name[:20]}-c", "--network", f"{name[:20]}-n", *SPIN, "-p", "5571:80",
               "caller", "/")  # fmt: skip
        assert fetch("http://127.0.0.1:5571/out?http://linux:8080/") == (200, "status 200 from linux\n")
        assert "HttpRequestDenied" in fetch("http://127.0.0.1:5571/out?http://elsewhere/")[1]
        counted = [fetch("http://127.0.0.1:5571/kv")[1] for _ in range(2)]
        docker("restart", "-t", "1", f"{name[:20]}-c")
        assert [*counted, fetch("http://127.0.0.1:5571/kv")[1]] == ["1", "2", "3"]
    finally:
        docker("rm", "-f", name, f"{name[:20]}-l", f"{name[:20]}-c", check=False)
        docker("network", "rm", f"{name[:20]}-n", check=False)
