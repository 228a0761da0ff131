"""A stand-in for Ryuk, the reaper of Testcontainers, which cannot be pulled here. Runs inside a container.

It speaks Ryuk's protocol: on port 8080 a client sends lines of ``label=...&...`` filters, each answered ``ACK``; when
the client has left, everything with those labels is removed through the engine's socket, and it ends. Written for
Debian's python3-minimal, which has neither json nor http.
"""

import re
import socket
import subprocess

ENGINE = ["curl", "-s", "--unix-socket", "/var/run/docker.sock"]


def call(method: str, path: str, *options: str) -> str:
    command = [*ENGINE, "-X", method, f"http://engine{path}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def remove(labels: list[str]) -> None:
    words = ",".join(f'"{label}"' for label in labels)
    only = ("-G", "--data-urlencode", f'filters={{"label":[{words}]}}')
    for found in re.findall(r'"Id":"([0-9a-f]{64})"', call("GET", "/containers/json?all=1", *only)):
        call("DELETE", f"/containers/{found}?force=1&v=1")
    for found in re.findall(r'"Id":"([0-9a-f]{64})"', call("GET", "/networks", *only)):
        call("DELETE", f"/networks/{found}")


def main() -> None:
    server = socket.create_server(("", 8080))
    print("reaper Started!", flush=True)
    client, _ = server.accept()
    wanted = []
    try:
        for line in client.makefile("r"):
            pairs = (pair.partition("=") for pair in line.strip().split("&"))
            wanted.append([value for key, _, value in pairs if key == "label"])
            client.sendall(b"ACK\n")
    except ConnectionResetError:
        pass  # it left without reading our answer
    for labels in wanted:
        remove(labels)


if __name__ == "__main__":
    main()
