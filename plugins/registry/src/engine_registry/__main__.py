"""``engine registry serve``: the registry in the foreground, until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from engine_registry.server import RegistryServer
from engine_registry.storage import Storage


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="engine registry serve", description="Serve a registry from a directory")
    parser.add_argument("--addr", default="127.0.0.1:5000", help="address to listen on (default 127.0.0.1:5000)")
    parser.add_argument("--root", type=Path, default=Path("/var/lib/engine-registry"), help="where images are kept")
    parser.add_argument("--tls-cert", type=Path, help="certificate (chain) to speak TLS with")
    parser.add_argument("--tls-key", type=Path, help="its key")
    options = parser.parse_args(arguments)
    server = RegistryServer(Storage(options.root), options.addr, certificate=options.tls_cert, key=options.tls_key)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    host, port = server.server_address[:2]
    sys.stdout.write(f"Listening on {host!s}:{port}\n")
    sys.stdout.flush()
    server.serve_forever()
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
