"""What a test suite with Testcontainers does; run by `test_testcontainers` with the image as its argument.

Prints what it saw and leaves without cleaning up, as a suite that was killed: that is the reaper's work.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

SERVE = "mkdir /w; echo hello > /w/index.html; echo ready; exec httpd -f -p 80 -h /w"


def main(image: str) -> None:
    """Two containers on a network of their own: one serves, the other and the host ask it."""
    network = Network().create()
    server = (
        DockerContainer(image)
        .with_command(["sh", "-c", SERVE])
        .with_exposed_ports(80)
        .with_network(network)
        .with_network_aliases("web")
        .with_env("GREETING", "hi")
        .with_volume_mapping(os.getcwd(), "/host", "ro")
        .waiting_for(LogMessageWaitStrategy("ready"))
        .start()
    )
    client = DockerContainer(image).with_network(network).with_command("sleep 99").start()
    port = server.get_exposed_port(80)
    seen = {
        "page": urllib.request.urlopen(f"http://{server.get_container_host_ip()}:{port}/", timeout=10).read().decode(),
        "env": server.exec(["sh", "-c", "echo $GREETING"]).output.decode(),
        "mounted": server.exec(["sh", "-c", "touch /host/x 2>&1; ls /host"]).output.decode(),
        "inside": client.exec(["wget", "-qO-", "http://web/index.html"]).output.decode(),
        "logs": server.get_logs()[0].decode(),
        "containers": [server.get_wrapped_container().id, client.get_wrapped_container().id],
        "network": network.id,
    }
    print(json.dumps(seen), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
