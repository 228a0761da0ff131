"""What every command is given: configuration, the connection to the daemon, and where output goes.

Settings come from flags, then the environment, then the configuration file. ``ENGINE_X`` wins over ``DOCKER_X``.
"""

from __future__ import annotations

import os
import sys

from engine.cli.client import DEFAULT_HOST, Client
from engine.cli.failures import Failure
from engine.cli.flags import FlagError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from engine.cli.flags import Flags

GLOBAL_FLAGS = """
- config string Location of client config files (default "{config}")
c context string Name of the context to use to connect to the daemon (overrides ENGINE_HOST and DOCKER_HOST env vars \
and default context set with "engine context use")
D debug bool Enable debug mode
H host list Daemon socket to connect to (default {host})
l log-level string=info Set the logging level ("debug", "info", "warn", "error", "fatal") (default "info")
- tls bool Use TLS; implied by --tlsverify
- tlscacert string Trust certs signed only by this CA (default "{config}/ca.pem")
- tlscert string Path to TLS certificate file (default "{config}/cert.pem")
- tlskey string Path to TLS key file (default "{config}/key.pem")
- tlsverify bool Use TLS and verify the remote
v version bool Print version information and quit
h !help bool Print usage
"""


def setting(name: str, environ: Mapping[str, str]) -> str:
    """An environment setting: ``ENGINE_<name>``, else ``DOCKER_<name>``, else empty."""
    return environ.get(f"ENGINE_{name}") or environ.get(f"DOCKER_{name}") or ""


def config_directory(flag: str, environ: Mapping[str, str]) -> str:
    """Where config.json and the contexts are: ``~/.engine`` when it exists, else Docker's ``~/.docker``."""
    chosen = flag or setting("CONFIG", environ)
    if chosen:
        return chosen
    home = environ.get("HOME") or os.path.expanduser("~")
    ours = f"{home}/.engine"
    return ours if os.path.isfile(f"{ours}/config.json") else f"{home}/.docker"


class Session:
    """One run of the CLI."""

    def __init__(self, flags: Flags, environ: Mapping[str, str]) -> None:
        self.flags = flags
        self.environ = environ
        self.directory = config_directory(flags["config"], environ)
        self._config: dict[str, Any] | None = None
        self._client: Client | None = None

    @property
    def config(self) -> dict[str, Any]:
        """config.json; empty when there is none."""
        if self._config is None:
            path = f"{self.directory}/config.json"
            try:
                with open(path, "rb") as file:
                    text = file.read()
            except FileNotFoundError:
                self._config = {}
            except OSError as error:
                self._config = {}
                print(f"WARNING: Error loading config file: open {path}: {(error.strerror or '').lower()}",
                      file=sys.stderr)  # fmt: skip
            else:
                from engine.cli.jsontext import loads

                try:
                    self._config = loads(text) if text.strip() else {}
                except ValueError as error:
                    self._config = {}
                    print(f"WARNING: Error parsing config file ({path}): {error}", file=sys.stderr)
        assert self._config is not None
        return self._config

    def close(self) -> None:
        """Let go of the daemon."""
        if self._client is not None:
            self._client.close()

    def setting(self, name: str) -> str:
        """An environment setting, see `setting`."""
        return setting(name, self.environ)

    @property
    def context(self) -> str:
        """The name of the context in use; ``default`` when the address comes from elsewhere."""
        if self.flags["context"]:
            if self.flags["host"]:
                raise Failure("conflicting options: cannot specify both --host and --context")
            return str(self.flags["context"])
        if self.flags["host"] or self.environ.get("ENGINE_HOST"):
            return "default"
        if self.environ.get("ENGINE_CONTEXT"):
            return self.environ["ENGINE_CONTEXT"]
        if self.environ.get("DOCKER_HOST"):
            return "default"
        return self.environ.get("DOCKER_CONTEXT") or self.config.get("currentContext") or "default"

    @property
    def client(self) -> Client:
        """The connection to the daemon."""
        if self._client is None:
            name = self.context
            if name == "default":
                host, tls = self._default_endpoint()
            else:
                from engine.cli.contexts import endpoint

                host, tls = endpoint(self.directory, name)
            headers = dict(self.config.get("HttpHeaders") or {})
            for pair in self.setting("CUSTOM_HEADERS").split(","):
                key, equals, value = pair.partition("=")
                if equals:
                    headers[key.strip()] = value
            self._client = Client(host, version=self.setting("API_VERSION").lstrip("v"), headers=headers, tls=tls)
        return self._client

    def _default_endpoint(self) -> tuple[str, dict[str, Any] | None]:
        hosts = self.flags["host"]
        if len(hosts) > 1:
            raise Failure("Specify only one -H")
        host = hosts[0] if hosts else self.setting("HOST") or DEFAULT_HOST
        if "://" not in host:
            host = f"unix://{host}" if host.startswith("/") else f"tcp://{host}"
        verify = bool(self.setting("TLS_VERIFY"))
        if self.flags.changed("tlsverify"):
            verify = self.flags["tlsverify"]
        if not (verify or self.flags["tls"] or self.setting("TLS")):
            return host, None
        directory = self.setting("CERT_PATH") or self.directory
        paths = {
            key: self.flags[f"tls{flag}"] or f"{directory}/{file}.pem"
            for key, flag, file in (("ca", "cacert", "ca"), ("cert", "cert", "cert"), ("key", "key", "key"))
        }
        tls: dict[str, Any] = {key: path for key, path in paths.items() if os.path.exists(path)}
        return host, {**tls, "verify": verify}

    def api_version(self) -> str:
        """The newest API version the daemon speaks."""
        return self.client.request("GET", "/_ping").headers.get("api-version", "")

    def out(self, *lines: str) -> None:
        """Print lines to standard output."""
        sys.stdout.write("".join(f"{line}\n" for line in lines))

    def warn(self, *lines: str) -> None:
        """Print lines to standard error."""
        sys.stdout.flush()
        sys.stderr.write("".join(f"{line}\n" for line in lines))

    def each(self, names: Iterable[str], act: Callable[[str], object], *, echo: bool = True) -> None:
        """Do something to each named object, echo those that worked, and fail at the end with what did not."""
        failures = []
        for name in names:
            try:
                act(name)
            except Failure as failure:
                failures.append(str(failure))
            else:
                if echo:
                    self.out(name)
                    sys.stdout.flush()
        if failures:
            raise Failure("\n".join(failures))

    def confirm(self, warning: str) -> bool:
        """Ask before something is deleted; without a terminal the answer is read from standard input like docker."""
        sys.stdout.write(f"{warning} [y/N] ")
        sys.stdout.flush()
        answer = sys.stdin.readline().strip().lower()
        if answer in ("y", "yes"):
            return True
        raise Failure("", 0)


def filters(values: Iterable[str]) -> str | None:
    """``--filter key=value`` as the API wants it; None without any."""
    collected: dict[str, dict[str, bool]] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise FlagError(
                f'invalid argument "{text}" for "-f, --filter" flag: bad format of filter (expected name=value)'
            )
        collected.setdefault(key.strip().lower(), {})[value.strip()] = True
    if not collected:
        return None
    from engine.cli.jsontext import dumps

    return dumps(collected)
