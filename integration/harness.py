"""What the integration tests share: daemons, command line clients, a small image, and patience."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


@dataclass
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@dataclass
class Daemon:
    """A daemon under test, with everything it owns below one directory."""

    target: str
    directory: Path
    arguments: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "api.sock"

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    def command(self) -> list[str]:
        program = str(BIN / "engined") if self.target == "engine" else shutil.which("dockerd") or "dockerd"
        return [
            program,
            "--data-root",
            str(self.directory / "data"),
            "--exec-root",
            str(self.directory / "run"),
            "--pidfile",
            str(self.directory / "pid"),
            "-H",
            self.host,
            "--config-file",
            str(self.directory / "daemon.json"),
            *self.arguments,
        ]

    def start(self) -> Daemon:
        config = self.directory / "daemon.json"
        if not config.exists():
            config.write_text("{}")
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"daemon ended with {self.process.returncode}:\n{self.log()}")
            if self._answers():
                return self
            time.sleep(0.02)
        raise AssertionError(f"daemon did not answer:\n{self.log()}")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.settimeout(5)
                probe.connect(str(self.socket))
                probe.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
                return b" 200 " in probe.recv(4096)
            except OSError:
                return False

    def stop(self, signal_number: int = 15, patience: float = 30) -> None:
        if self.process is not None:
            self.process.send_signal(signal_number)
            self.process.wait(patience)
            self.process = None
        host_network = self.directory / "run/netns/default"
        if self.target == "dockerd" and host_network.exists():  # which dockerd leaves mounted
            subprocess.run(["umount", str(host_network)], stderr=subprocess.DEVNULL)

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-8000:]


class Client:
    """A command line client: the docker CLI or ours."""

    def __init__(self, program: str, daemon: Daemon, home: Path) -> None:
        self.program, self.daemon, self.home = program, daemon, home

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DOCKER_", "ENGINE_"))}
        return {**kept, "DOCKER_HOST": self.daemon.host, "DOCKER_CONFIG": str(self.home), "HOME": str(self.home)}

    def argv(self, *args: str) -> list[str]:
        return [shutil.which("docker") or "docker" if self.program == "docker" else str(BIN / "engine"), *args]

    def __call__(self, *args: str, input: str | bytes | None = None, check: bool = True, timeout: float = 90) -> Result:
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            self.argv(*args),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            env=self.environment,
            timeout=timeout,
        )
        result = Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        if check:
            assert result.code == 0, f"{args}: {result}"
        return result

    def popen(self, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv(*args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self("inspect", name).out)[0])


def make_busybox(directory: Path) -> Path:
    busybox = shutil.which("busybox")
    assert busybox, "needs busybox-static"
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    layer = directory / "bb-layer.tar"
    with tarfile.open(layer, "w") as archive:
        for name in ("bin", "etc", "tmp", "root", "var", "var/www", "usr", "usr/bin"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(info)
        archive.add(busybox, "bin/busybox", filter=lambda info: _owned(info, 0o755))
        for applet in applets:
            if applet != "busybox":
                info = tarfile.TarInfo(f"bin/{applet}")
                info.type, info.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(info)
        for name, text in (
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"),
            ("etc/group", "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"),
        ):
            path = directory / "file"
            path.write_text(text)
            archive.add(path, name, filter=lambda info: _owned(info, 0o644))
    diff_id = "sha256:" + hashlib.sha256(layer.read_bytes()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "busybox-static"}],
    }
    body = json.dumps(config).encode()
    name = hashlib.sha256(body).hexdigest() + ".json"
    (directory / name).write_bytes(body)
    (directory / "manifest.json").write_text(
        json.dumps([{"Config": name, "RepoTags": ["bb:latest"], "Layers": ["layer.tar"]}])
    )
    path = directory / "bb.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(directory / name, name)
        archive.add(layer, "layer.tar")
        archive.add(directory / "manifest.json", "manifest.json")
    return path


def _owned(info: tarfile.TarInfo, mode: int) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mode, info.mtime = mode, 1_767_225_600
    return info


def debian_rootfs() -> Path | None:
    """A tar of a Debian root file system with nginx, made with mmdebstrap once and kept; None without mmdebstrap."""
    kept = Path("/var/cache/engine-tests/debian.tar")
    program = shutil.which("mmdebstrap")
    if not kept.exists():
        if program is None:
            return None
        kept.parent.mkdir(parents=True, exist_ok=True)
        suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
        packages = "nginx-light,python3-minimal,perl,git,curl"
        fresh = kept.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [program, "--quiet", "--variant=minbase", "--format=tar", f"--include={packages}", suite, str(fresh)],
            check=True,
        )
        fresh.rename(kept)
    return kept


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(condition: Callable[[], object], what: str, patience: float = 20) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience} s for {what}"
        time.sleep(0.02)
