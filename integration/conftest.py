"""The integration suite: a real daemon, real images, and the clients people use.

``--target=engine`` (default) starts our `engined`; ``--target=dockerd`` starts the dockerd of this machine, so that
every expectation can be checked against the original: a test that fails there is a wrong test. The whole session
runs in a network namespace of its own, so nothing it does can reach or disturb the machine's network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Client, Daemon, connects, make_busybox, wait_for

from engine import kernel
from engine.testing.networks import link_up


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", default="engine", choices=("engine", "dockerd"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """docker-py leaves sockets to the garbage collector, which may come by in any other test."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid():
        raise pytest.UsageError("the integration suite needs root")
    kernel.unshare(kernel.CLONE_NEWNET)
    link_up("lo")


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short path, since unix socket paths are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ei-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def busybox_tar(scratch: Path) -> Path:
    """A docker-archive with one image, ``bb:latest``: static busybox and its applets."""
    return make_busybox(scratch)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--target"))


@pytest.fixture(scope="session")
def daemon(target: str, scratch: Path, busybox_tar: Path) -> Iterator[Daemon]:
    """The daemon most tests share, with the image ``bb``."""
    directory = scratch / "main"
    directory.mkdir()
    made = Daemon(target, directory).start()
    client = Client("docker", made, scratch)
    client("load", "-i", str(busybox_tar))
    yield made
    everything = client("ps", "-aq").out.split()
    if everything:
        client("rm", "-f", "-v", *everything, check=False)
    made.stop()


@pytest.fixture
def own_daemon(target: str, scratch: Path, busybox_tar: Path) -> Iterator[Callable[..., Daemon]]:
    """Daemons for tests that stop, kill or configure theirs."""
    made: list[Daemon] = []

    def start(*arguments: str, config: dict[str, object] | None = None, image: bool = True) -> Daemon:
        directory = Path(tempfile.mkdtemp(prefix="own-", dir=scratch))
        if config is not None:
            (directory / "daemon.json").write_text(json.dumps(config))
        daemon = Daemon(target, directory, list(arguments)).start()
        made.append(daemon)
        if image:
            Client("docker", daemon, scratch)("load", "-i", str(busybox_tar))
        return daemon

    yield start
    for daemon in made:
        if daemon.process is None or daemon.process.poll() is not None:
            daemon.start()
        client = Client("docker", daemon, scratch)
        names = client("ps", "-aq").out.split()
        if names:
            client("rm", "-f", "-v", *names)
        bridges = client(
            *("network", "inspect", "bridge", "-f"), '{{index .Options "com.docker.network.bridge.name"}}', check=False
        ).out.split()
        daemon.stop()
        if target == "engine":  # as dockerd, a daemon leaves its default bridge; the address pools are few
            for bridge in bridges:
                subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture(params=["docker", "engine"])
def cli(request: pytest.FixtureRequest, daemon: Daemon, home: Path, target: str) -> Client:
    """Each test runs with the docker CLI and with ours."""
    if request.param == "docker" and not shutil.which("docker"):
        pytest.skip("the docker CLI is not installed")
    return Client(str(request.param), daemon, home)


@pytest.fixture
def docker(daemon: Daemon, home: Path) -> Client:
    if not shutil.which("docker"):
        pytest.skip("the docker CLI is not installed")
    return Client("docker", daemon, home)


@pytest.fixture
def name(request: pytest.FixtureRequest, daemon: Daemon, home: Path) -> Iterator[str]:
    """A container name that tells which test it belongs to; whatever has it is removed afterwards."""
    text = "".join(c if c.isalnum() else "-" for c in request.node.name)[:60].strip("-")
    yield text
    Client("docker", daemon, home)("rm", "-f", "-v", text, check=False)


@pytest.fixture(scope="session")
def registry(scratch: Path) -> Iterator[str]:
    """Debian's docker-registry on 127.0.0.1; its ``host:port``."""
    program = shutil.which("docker-registry")
    if not program:
        pytest.skip("needs the package docker-registry")
    config = scratch / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {scratch / 'registry'}}}, delete: {{enabled: true}}}}\n"
        "http: {addr: '127.0.0.1:5000'}\n"
    )
    with open(scratch / "registry.log", "ab") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    wait_for(lambda: connects("127.0.0.1", 5000), "the registry to listen")
    yield "127.0.0.1:5000"
    process.terminate()
    process.wait(10)
