"""Measure us against the dockerd of this machine: the same work, interleaved in one run, as medians and ratios.

    python integration/bench/run.py [--rounds N] [--only NAME,...] [--write]

Each daemon lives in a network namespace and a cpuacct cgroup of its own; CPU time counts every process a daemon starts,
containers included. ``--write`` puts the table into ``integration/bench/RESULTS.md``, above the notes. Wall times on a
busy machine mean little by themselves; the ratio of medians measured side by side is what we look at.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import BIN, debian_rootfs, make_busybox

CPUACCT = Path("/sys/fs/cgroup/cpuacct")
# what the issue allows: ours / dockerd, or an absolute in the unit of the row
BARS = {
    "run_none": 0.30,
    "run_bridge": 0.25,
    "cpu_run": 0.27,
    "run_port": 0.20,
    "run_ports50": 0.10,
    "run_named": None,
    "network_cycle": 0.30,
    "volume_cycle": 0.80,
    "run_volume": None,
    "run_cli": 0.35,
    "exec_true": 0.45,
    "start50": 0.30,
    "ping": 1.0,
    "inspect": 1.0,
    "list100": 0.6,
    "memory_container": None,
    "memory_idle": None,
    "cold_start": None,
    "load_rootfs": 0.5,
    "import_rootfs": 0.5,
    "pull_rootfs": 0.5,
    "engine_ps_cpu": None,
}
NOTES = "## Notes\n"
ABSOLUTE = {"memory_container": "0.8 MB", "memory_idle": "45 MB", "cold_start": "250 ms", "engine_ps_cpu": "40 ms"}


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(self._path)


@dataclass
class Peer:
    """One daemon under measurement."""

    kind: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    local: threading.local = field(default_factory=threading.local)

    @property
    def socket(self) -> str:
        """Path of the API socket."""
        return str(self.directory / "api.sock")

    @property
    def cgroup(self) -> Path:
        """Where CPU time is counted."""
        return CPUACCT / f"engine-bench-{self.kind}-{os.getpid()}"

    def start(self) -> float:
        """Start the daemon; milliseconds to its first answer."""
        self.directory.mkdir(exist_ok=True)
        (self.directory / "daemon.json").write_text("{}")
        self.cgroup.mkdir(exist_ok=True)
        program = str(BIN / "engined") if self.kind == "engine" else "dockerd"
        command = [program, "--data-root", str(self.directory / "data"), "--exec-root", str(self.directory / "run")]
        command += ["--pidfile", str(self.directory / "pid"), "-H", f"unix://{self.socket}"]
        command += ["--config-file", str(self.directory / "daemon.json"), "--cgroup-parent", f"/{self.cgroup.name}"]
        script = f'echo $$ > {self.cgroup}/cgroup.procs; ip link set lo up; exec "$@"'
        netns = str(self.directory / "netns")
        if not os.path.exists(netns):
            Path(netns).touch()
            subprocess.run(["unshare", f"--net={netns}", "true"], check=True)
        with open(self.directory / "log", "ab") as log:
            begun = time.perf_counter()
            self.process = subprocess.Popen(
                ["nsenter", f"--net={netns}", "sh", "-c", script, "sh", *command], stdout=log, stderr=log
            )
        while True:
            try:
                status, _ = self.call("GET", "/_ping")
                if status == 200:
                    return (time.perf_counter() - begun) * 1000
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit((self.directory / "log").read_text()[-3000:]) from None
                time.sleep(0.002)

    def stop(self) -> None:
        """End it politely."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None
        self.local = threading.local()

    def call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """One request on this thread's kept-alive connection."""
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = UnixConnection(self.socket)
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            self.local.connection = None
            raise

    def create(self, **host: object) -> str:
        """A container of ``true``."""
        status, body = self.call(
            "POST", "/v1.41/containers/create", {"Image": "bb", "Cmd": ["true"], "HostConfig": host}
        )
        assert status == 201, body
        return str(json.loads(body)["Id"])

    def run(self, **host: object) -> None:
        """create, start, wait, remove."""
        identifier = self.create(**host)
        status, body = self.call("POST", f"/v1.41/containers/{identifier}/start")
        assert status == 204, body
        status, body = self.call("POST", f"/v1.41/containers/{identifier}/wait")
        assert json.loads(body)["StatusCode"] == 0, body
        status, body = self.call("DELETE", f"/v1.41/containers/{identifier}")
        assert status == 204, body

    def sleeper(self) -> str:
        """A running container."""
        body = {"Image": "bb", "Cmd": ["sleep", "100000"], "HostConfig": {"NetworkMode": "none"}}
        identifier = str(json.loads(self.call("POST", "/v1.41/containers/create", body)[1])["Id"])
        status, answer = self.call("POST", f"/v1.41/containers/{identifier}/start")
        assert status == 204, answer
        return identifier

    def remove(self, identifiers: list[str]) -> None:
        """Force."""
        for identifier in identifiers:
            self.call("DELETE", f"/v1.41/containers/{identifier}?force=1")

    def cpu_ms(self) -> float:
        """CPU time used so far by the daemon, its helpers and its containers."""
        return int((self.cgroup / "cpuacct.usage").read_text()) / 1e6

    def pss(self) -> float:
        """Megabytes of proportional memory of the daemon and its helpers, without the containers."""
        total = 0
        for pid in (self.cgroup / "cgroup.procs").read_text().split():
            try:
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
            except OSError:
                continue
        return total / 1000


def timed(function: Callable[[], object]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    function()
    return (time.perf_counter() - begun) * 1000


def exec_true(peer: Peer, container: str) -> None:
    """Create and start an exec, and read its stream to the end."""
    body = {"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}
    status, answer = peer.call("POST", f"/v1.41/containers/{container}/exec", body)
    assert status == 201, answer
    identifier = json.loads(answer)["Id"]
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(peer.socket)
        raw.sendall(
            f"POST /v1.41/exec/{identifier}/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}".encode()
        )
        while raw.recv(65536):
            pass


def cli(peer: Peer, *args: str) -> None:
    """The docker CLI."""
    environment = {**os.environ, "DOCKER_HOST": f"unix://{peer.socket}"}
    subprocess.run(["docker", *args], env=environment, check=True, stdout=subprocess.DEVNULL)


def start50(peer: Peer) -> float:
    """Milliseconds for fifty containers created and started from eight threads."""
    made: list[str] = []

    def work(count: int) -> None:
        for _ in range(count):
            made.append(peer.sleeper())

    threads = [threading.Thread(target=work, args=(number,)) for number in (7, 7, 6, 6, 6, 6, 6, 6)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = (time.perf_counter() - begun) * 1000
    assert len(made) == 50
    peer.remove(made)
    return spent


def networks(peers: list[Peer], take: Callable[..., None], rounds: int) -> None:
    """Runs with published ports, a run on a network with names, a network made and removed."""
    one = {"80/tcp": [{"HostPort": "8080"}]}
    fifty = {f"{number}/tcp": [{"HostPort": str(20000 + number)}] for number in range(1, 51)}
    take("run_port", rounds, lambda peer: timed(lambda: peer.run(PortBindings=one)))
    take("run_ports50", max(3, rounds // 4), lambda peer: timed(lambda: peer.run(PortBindings=fifty)))

    def cycle(peer: Peer) -> None:
        status, body = peer.call("POST", "/v1.41/networks/create", {"Name": "cycle"})
        assert status == 201, body
        status, body = peer.call("DELETE", "/v1.41/networks/cycle")
        assert status == 204, body

    take("network_cycle", rounds, lambda peer: timed(lambda: cycle(peer)))
    for peer in peers:
        peer.call("POST", "/v1.41/networks/create", {"Name": "named"})
    take("run_named", rounds, lambda peer: timed(lambda: peer.run(NetworkMode="named")))
    for peer in peers:
        peer.call("DELETE", "/v1.41/networks/named")


def volumes(peers: list[Peer], take: Callable[..., None], rounds: int) -> None:
    """Making and removing a volume; a run with a named volume, network none."""

    def cycle(peer: Peer) -> None:
        status, body = peer.call("POST", "/v1.41/volumes/create", {"Name": "cycle"})
        assert status == 201, body
        status, body = peer.call("DELETE", "/v1.41/volumes/cycle")
        assert status == 204, body

    take("volume_cycle", rounds, lambda peer: timed(lambda: cycle(peer)))
    take("run_volume", rounds, lambda peer: timed(lambda: peer.run(NetworkMode="none", Binds=["kept:/data"])))
    for peer in peers:
        peer.call("DELETE", "/v1.41/volumes/kept")


def measure(peers: list[Peer], rounds: int, only: set[str], scratch: Path) -> dict[str, dict[str, list[float]]]:
    """Samples by workload and daemon, taken in turns."""
    samples: dict[str, dict[str, list[float]]] = {}

    def take(name: str, count: int, function: Callable[[Peer], float | None]) -> None:
        if only and name not in only:
            return
        sys.stderr.write(f"{name} ")
        sys.stderr.flush()
        for _ in range(count):
            for peer in peers:
                value = function(peer)
                if value is not None:
                    samples.setdefault(name, {}).setdefault(peer.kind, []).append(value)

    for peer in peers:
        for _ in range(3):
            peer.run(NetworkMode="none")
            peer.run()
    take("run_none", rounds, lambda peer: timed(lambda: peer.run(NetworkMode="none")))
    take("run_bridge", rounds, lambda peer: timed(peer.run))
    volumes(peers, take, rounds)

    networks(peers, take, rounds)

    def cpu(peer: Peer) -> float:
        before = peer.cpu_ms()
        for _ in range(5):
            peer.run()
        time.sleep(0.3)
        return (peer.cpu_ms() - before) / 5

    take("cpu_run", max(3, rounds // 4), cpu)
    take("run_cli", rounds, lambda peer: timed(lambda: cli(peer, "run", "--rm", "bb", "true")))
    sleepers = {peer.kind: peer.sleeper() for peer in peers}
    take("exec_true", rounds, lambda peer: timed(lambda: exec_true(peer, sleepers[peer.kind])))
    take("ping", 200, lambda peer: timed(lambda: peer.call("GET", "/_ping")))
    path = "/v1.41/containers/{}/json"
    take("inspect", 100, lambda peer: timed(lambda: peer.call("GET", path.format(sleepers[peer.kind]))))
    for peer in peers:
        peer.remove([sleepers[peer.kind]])
    take("start50", max(2, rounds // 10), start50)

    crowd: dict[str, list[str]] = {}

    def fill(peer: Peer) -> float:
        before = peer.pss()
        crowd[peer.kind] = [peer.sleeper() for _ in range(100)]
        time.sleep(1)
        return (peer.pss() - before) / 100

    take("memory_container", 1, fill)
    take("list100", 30, lambda peer: timed(lambda: peer.call("GET", "/v1.41/containers/json")))
    for peer in peers:
        peer.remove(crowd.get(peer.kind, []))

    archive = debian_rootfs() if not only or only & {"load_rootfs", "import_rootfs", "pull_rootfs"} else None
    if archive is not None:
        rootfs(peers, take, archive, scratch)

    def restart(peer: Peer) -> float:
        peer.stop()
        return peer.start()

    take("cold_start", 5, restart)

    def idle(peer: Peer) -> float:
        time.sleep(1)
        return peer.pss()

    take("memory_idle", 1, idle)

    def engine_ps(peer: Peer) -> float | None:
        if peer.kind != "engine":
            return None
        environment = {**os.environ, "DOCKER_HOST": f"unix://{peer.socket}"}
        before = os.times()
        for _ in range(10):
            subprocess.run([str(BIN / "engine"), "ps"], env=environment, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return (after.children_user + after.children_system - before.children_user - before.children_system) * 100

    take("engine_ps_cpu", 3, engine_ps)
    sys.stderr.write("\n")
    return samples


def rootfs(peers: list[Peer], take: Callable[..., None], archive: Path, scratch: Path) -> None:
    """import, load and pull of a Debian root file system; the image is removed between rounds."""

    def upload(peer: Peer, path: str, file: Path) -> bytes:
        with open(file, "rb") as source:
            connection = UnixConnection(peer.socket)
            headers = {"Content-Type": "application/x-tar", "Transfer-Encoding": "chunked"}
            connection.request("POST", path, source, headers, encode_chunked=True)
            answer = connection.getresponse().read()
            connection.close()
        assert b"errorDetail" not in answer, answer[-500:]
        return answer

    def import_(peer: Peer) -> float:
        spent = timed(lambda: upload(peer, "/v1.41/images/create?fromSrc=-&repo=debian&tag=imported", archive))
        peer.call("DELETE", "/v1.41/images/debian:imported?force=1")
        return spent

    take("import_rootfs", 3, import_)
    saved = scratch / "saved.tar"
    upload(peers[0], "/v1.41/images/create?fromSrc=-&repo=debian&tag=saved", archive)
    with open(saved, "wb") as target:
        connection = UnixConnection(peers[0].socket)
        connection.request("GET", "/v1.41/images/debian:saved/get")
        shutil.copyfileobj(connection.getresponse(), target)
        connection.close()
    peers[0].call("DELETE", "/v1.41/images/debian:saved?force=1")

    def load(peer: Peer) -> float:
        spent = timed(lambda: upload(peer, "/v1.41/images/load", saved))
        peer.call("DELETE", "/v1.41/images/debian:saved?force=1")
        return spent

    take("load_rootfs", 3, load)
    program = shutil.which("docker-registry")
    if program and shutil.which("skopeo"):
        pull(peers, take, saved, scratch, program)
    saved.unlink()


def pull(peers: list[Peer], take: Callable[..., None], saved: Path, scratch: Path, program: str) -> None:
    """Each daemon has its own loopback, so each gets a registry of its own over one shared directory."""
    config = scratch / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {scratch / 'registry'}}}}}\nhttp: {{addr: '127.0.0.1:5000'}}\n"
    )
    registries = [
        subprocess.Popen(
            ["nsenter", f"--net={peer.directory}/netns", program, "serve", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for peer in peers
    ]
    time.sleep(1)
    try:
        subprocess.run(
            [
                *("nsenter", f"--net={peers[0].directory}/netns", "skopeo", "--insecure-policy", "copy", "-q"),
                *("--dest-tls-verify=false", f"docker-archive:{saved}", "docker://127.0.0.1:5000/debian:x"),
            ],
            check=True,
        )

        def work(peer: Peer) -> float:
            path = "/v1.41/images/create?fromImage=127.0.0.1:5000/debian&tag=x"
            answers: list[bytes] = []
            spent = timed(lambda: answers.append(peer.call("POST", path)[1]))
            assert b"errorDetail" not in answers[0], answers[0][-500:]
            peer.call("DELETE", "/v1.41/images/127.0.0.1:5000/debian:x?force=1")
            return spent

        take("pull_rootfs", 3, work)
    finally:
        for registry in registries:
            registry.terminate()
            registry.wait(10)


def table(samples: dict[str, dict[str, list[float]]]) -> str:
    """Markdown."""
    lines = ["| work | engine | dockerd | ratio | bar |", "|---|---|---|---|---|"]
    for name, by_kind in samples.items():
        unit = "MB" if name.startswith("memory") else "ms"
        medians = {kind: statistics.median(values) for kind, values in by_kind.items()}
        ours, theirs = medians.get("engine"), medians.get("dockerd")
        ratio = f"{ours / theirs:.2f}" if ours is not None and theirs else "-"
        bar = ABSOLUTE.get(name) or BARS.get(name) or "-"
        shown = [f"{value:.2f} {unit}" if value is not None else "-" for value in (ours, theirs)]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} | {ratio} | {bar} |")
    return "\n".join(lines)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="engine,dockerd")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed engine has its bytecode; do not measure the compiler
    with tempfile.TemporaryDirectory(prefix="eb-") as name:
        scratch = Path(name)
        peers = [Peer(kind, scratch / kind) for kind in options.peers.split(",")]
        try:
            archive = make_busybox(scratch)
            for peer in peers:
                peer.start()
                cli(peer, "load", "-q", "-i", str(archive))
            only = set(filter(None, options.only.split(",")))
            text = table(measure(peers, options.rounds, only, scratch))
            sys.stdout.write(text + "\n")
            if options.write:
                write(text)
        finally:
            for peer in peers:
                clean(peer)
    return 0


def write(text: str) -> None:
    """Put the table into RESULTS.md; rows not measured now stay, and so does all below the notes' heading."""
    path = Path(__file__).with_name("RESULTS.md")
    before, _, notes = path.read_text().partition(NOTES) if path.exists() else ("", "", "\n")
    rows = {line.split("|")[1]: line for line in (before + text).splitlines() if line.startswith("|")}
    text = "\n".join(rows.values())
    head = "# Measured\n\n`python integration/bench/run.py --write`, medians, both daemons in one interleaved run.\n"
    load = f"Load of the machine ({os.cpu_count()} processors) at the end: {os.getloadavg()[0]:.1f}.\n\n"
    path.write_text(f"{head}{load}{text}\n\n{NOTES}{notes}")


def clean(peer: Peer) -> None:
    """Leave nothing: containers, daemon, namespace, cgroups."""
    if peer.process is not None and peer.process.poll() is None:
        listed = json.loads(peer.call("GET", "/v1.41/containers/json?all=1")[1])
        peer.remove([entry["Id"] for entry in listed])
        peer.stop()
    netns = str(peer.directory / "netns")
    subprocess.run(["umount", netns], check=False, stderr=subprocess.DEVNULL)
    time.sleep(0.2)
    for base in Path("/sys/fs/cgroup").glob(f"*/{peer.cgroup.name}"):
        for path in sorted(base.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
        base.rmdir()


if __name__ == "__main__":
    sys.exit(main())
