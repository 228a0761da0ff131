"""A CNI network from the user's chair: Debian's plugins connect containers, and what they say is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Client


def test_plugins_connect_containers_and_their_answer_is_shown(
    docker: Client, name: str, tmp_path: Path, target: str
) -> None:
    if target != "engine" or not Path("/usr/lib/cni/bridge").exists():
        pytest.skip("needs this engine and the package containernetworking-plugins")
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": [[{"subnet": "10.67.0.0/24"}]]}
    plugin = {"type": "bridge", "bridge": "cni-it0", "isGateway": True, "ipam": ipam}
    path = tmp_path / "lab.conflist"
    path.write_text(json.dumps({"cniVersion": "0.4.0", "name": "lab", "plugins": [plugin]}))
    docker("network", "create", "-d", "cni", "-o", f"conflist={path}", "cni-lab")
    try:
        docker("run", "-d", "--name", name, "--network", "cni-lab", "bb", "sleep", "300")
        shown = docker.inspect(name)["NetworkSettings"]["Networks"]["cni-lab"]
        assert shown["IPAddress"].startswith("10.67.0.")
        assert shown["IPAddress"] in docker("exec", name, "ip", "-4", "addr", "show", "eth0").out
        assert docker("run", "--rm", "--network", "cni-lab", "bb", "ping", "-c", "1", "-W", "5", name).code == 0
        docker("rm", "-f", name)
        leases = [each.name for each in (tmp_path / "leases" / "lab").iterdir() if each.name[0].isdigit()]
        assert leases == []
    finally:
        docker("rm", "-f", name, check=False)
        docker("network", "rm", "cni-lab")
