"""docker-py, unmodified."""

from __future__ import annotations

import io
import socket
import tarfile
from collections.abc import Iterator

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from harness import Daemon

# docker-py leaves sockets of hijacked and streamed answers to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning"
)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[docker.DockerClient]:
    made = docker.DockerClient(base_url=daemon.host, version="auto", timeout=60)
    yield made
    made.close()


def test_version_info_and_ping(client: docker.DockerClient) -> None:
    assert client.ping()
    assert client.version()["Os"] == "linux"
    info = client.info()
    assert info["OSType"] == "linux"
    assert info["Images"] >= 1


def test_run_returns_output_and_raises_with_the_exit_code(client: docker.DockerClient) -> None:
    assert client.containers.run("bb", "echo hi", remove=True) == b"hi\n"
    with pytest.raises(ContainerError) as caught:
        client.containers.run("bb", "sh -c 'exit 5'", remove=True)
    assert caught.value.exit_status == 5
    with pytest.raises(ImageNotFound):
        client.images.get("nosuchimage:zz")
    with pytest.raises(NotFound):
        client.containers.get("nosuchcontainer")


def test_a_detached_container_from_start_to_removal(client: docker.DockerClient) -> None:
    container = client.containers.run("bb", "sh -c 'echo one; echo two >&2; sleep 100'", detach=True, labels={"a": "b"})
    try:
        container.reload()
        assert container.status == "running"
        code, output = container.exec_run("sh -c 'echo inside; exit 3'")
        assert (code, output) == (3, b"inside\n")
        out, err = container.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True).output
        assert (out, err) == (b"o\n", b"e\n")
        assert [c.id for c in client.containers.list(filters={"label": "a=b"})] == [container.id]
        container.stop(timeout=0)
        assert container.wait()["StatusCode"] == 137
        assert container.logs(stdout=True, stderr=False) == b"one\n"
        assert container.logs(stdout=False, stderr=True) == b"two\n"
        container.start()
        container.restart(timeout=0)
        container.rename("renamed-by-docker-py")
        assert client.containers.get("renamed-by-docker-py").id == container.id
    finally:
        container.remove(force=True, v=True)


def test_attach_carries_both_directions(client: docker.DockerClient) -> None:
    container = client.containers.create("bb", "cat", stdin_open=True)
    try:
        stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        container.start()
        raw: socket.socket = stream._sock
        raw.sendall(b"there and back\n")
        raw.shutdown(socket.SHUT_WR)
        raw.settimeout(10)
        data = b""
        while len(data) < 23:
            data += raw.recv(100)
        assert data[8:] == b"there and back\n"
        stream.close()
    finally:
        container.remove(force=True)


def test_logs_stream_as_they_come(client: docker.DockerClient) -> None:
    container = client.containers.run("bb", "sh -c 'for i in 1 2 3; do echo $i; sleep 0.1; done'", detach=True)
    try:
        assert b"".join(container.logs(stream=True, follow=True)) == b"1\n2\n3\n"
    finally:
        container.remove(force=True)


def test_events_arrive_in_order(client: docker.DockerClient) -> None:
    events = client.events(decode=True, filters={"type": "container"})
    client.containers.run("bb", "true", remove=True, name="eventful")
    seen = []
    for event in events:
        if event["Actor"]["Attributes"].get("name") == "eventful":
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                break
    events.close()
    assert [action for action in seen if action in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]


def test_mounts_ports_and_limits_are_shown_as_asked(client: docker.DockerClient) -> None:
    container = client.containers.create(
        "bb",
        "sleep 1",
        ports={"80/tcp": ("127.0.0.1", 8400), "53/udp": None},
        mounts=[docker.types.Mount("/data", "volume-by-docker-py", type="volume")],
        mem_limit="64m",
        nano_cpus=500_000_000,
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 2},
        environment={"A": "b"},
    )
    try:
        container.start()
        container.reload()
        host = container.attrs["HostConfig"]
        assert (host["Memory"], host["NanoCpus"], host["RestartPolicy"]["Name"]) == (
            67108864,
            500_000_000,
            "on-failure",
        )
        assert container.ports["80/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "8400"}]
        assert container.attrs["Mounts"][0]["Name"] == "volume-by-docker-py"
        assert "A=b" in container.attrs["Config"]["Env"]
    finally:
        container.remove(force=True)
        client.volumes.get("volume-by-docker-py").remove()


def test_files_can_be_copied_in_and_out(client: docker.DockerClient) -> None:
    container = client.containers.create("bb", "cat /tmp/greeting")
    try:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo("greeting")
            info.size = 5
            archive.addfile(info, io.BytesIO(b"hello"))
        assert container.put_archive("/tmp", buffer.getvalue())
        stream, status = container.get_archive("/tmp/greeting")
        assert status["name"] == "greeting"
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            member = archive.extractfile("greeting")
            assert member is not None
            assert member.read() == b"hello"
        container.start()
        container.wait()
        assert container.logs() == b"hello"
    finally:
        container.remove(force=True)


def test_networks_and_volumes_through_the_models(client: docker.DockerClient) -> None:
    network = client.networks.create("by-docker-py", driver="bridge", labels={"x": "y"})
    container = client.containers.run("bb", "sleep 100", detach=True)
    try:
        network.connect(container, aliases=["also"])
        network.reload()
        assert [member.id for member in network.containers] == [container.id]
        network.disconnect(container)
        volume = client.volumes.create("v-by-docker-py", labels={"x": "y"})
        assert volume.attrs["Driver"] == "local"
        volume.remove()
    finally:
        container.remove(force=True)
        network.remove()


def test_errors_carry_status_and_explanation(client: docker.DockerClient) -> None:
    with pytest.raises(APIError) as caught:
        client.containers.create("bb", "true", restart_policy={"Name": "bad"})
    assert caught.value.status_code == 400
    assert "invalid restart policy" in caught.value.explanation
    with pytest.raises(APIError) as caught:
        client.api.create_container("bb", "true", name="bad name!")
    assert caught.value.status_code == 400


def test_images_are_listed_tagged_and_removed(client: docker.DockerClient) -> None:
    image = client.images.get("bb")
    assert image.tag("by-docker-py", "v1")
    assert "by-docker-py:v1" in [tag for found in client.images.list() for tag in found.tags]
    client.images.remove("by-docker-py:v1")
    assert b"".join(image.save()).startswith(b"")
