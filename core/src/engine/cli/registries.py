"""``login``, ``logout`` and ``search``."""

from __future__ import annotations

import os
import sys

from engine.cli.commands import Command
from engine.cli.containers import FORMAT_HELP, ellipsis
from engine.cli.credentials import INDEX, erase, find, registry_header, server_key, store
from engine.cli.failures import Failure
from engine.cli.session import filters
from engine.cli.tables import Columns, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from engine.cli.flags import Flags
    from engine.cli.session import Session


def _server(arguments: list[str]) -> str:
    if not arguments:
        return INDEX
    name = arguments[0].removeprefix("https://").removeprefix("http://").partition("/")[0]
    return server_key(name)


def login(session: Session, flags: Flags) -> None:
    """Check credentials with the daemon and keep them."""
    server = _server(flags.arguments)
    user, password = flags["username"], flags["password"]
    if password:
        session.warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if flags["password-stdin"]:
        if password:
            raise Failure("--password and --password-stdin are mutually exclusive")
        if not user:
            raise Failure("Must provide --username with --password-stdin")
        password = sys.stdin.read().rstrip("\r\n")
    auth = {"username": user, "password": password, "serveraddress": server}
    if not user and not password:
        known = find(session, server)
        if known:
            session.out("Authenticating with existing credentials...")
            auth = known
    if not auth.get("identitytoken") and not (auth.get("username") and auth.get("password")):
        auth = _asked(auth)
    answer = session.client.post("/auth", body=auth)
    if answer.get("IdentityToken"):
        auth = {**auth, "identitytoken": answer["IdentityToken"], "password": ""}
    if store(session, server, auth):
        session.warn(
            "", f"WARNING! Your credentials are stored unencrypted in '{session.directory}/config.json'.",
            "Configure a credential helper to remove this warning. See",
            "https://docs.docker.com/go/credential-store/", "",
        )  # fmt: skip
    if answer.get("Status"):
        session.out(answer["Status"])


def _asked(auth: dict[str, str]) -> dict[str, str]:
    if not os.isatty(0):
        raise Failure("Error: Cannot perform an interactive login from a non TTY device")
    import getpass

    user = auth.get("username") or input("Username: ").strip()
    if not user:
        raise Failure("username is required")
    password = getpass.getpass("Password: ")
    if not password:
        raise Failure("password is required")
    return {**auth, "username": user, "password": password}


def logout(session: Session, flags: Flags) -> None:
    """Forget a registry's credentials."""
    server = _server(flags.arguments)
    if not erase(session, server):
        session.out(f"Not logged in to {server}")
        return
    session.out(f"Removing login credentials for {server}")


RESULTS = Columns(
    "*registry.searchContext",
    {
        "Name": ("NAME", lambda record, full: record["name"]),
        "Description": ("DESCRIPTION", lambda record, full: (lambda text: text if full else ellipsis(text, 45))(
            record.get("description", "").replace("\n", " ").replace("\r", " "))),
        "StarCount": ("STARS", lambda record, full: str(record.get("star_count", 0))),
        "IsOfficial": ("OFFICIAL", lambda record, full: "[OK]" if record.get("is_official") else ""),
    },
    "Name Description StarCount IsOfficial",
    quiet="Name",
)  # fmt: skip


def search(session: Session, flags: Flags) -> None:
    """Search a registry for images."""
    term = flags.arguments[0]
    head, slash, _ = term.partition("/")
    domain = head if slash and (set(head) & set(".:") or head == "localhost") else "docker.io"
    query = {"term": term, "limit": flags["limit"] or None, "filters": filters(flags["filter"])}
    response = session.client.request(
        "GET", "/images/search", query, headers={"X-Registry-Auth": registry_header(session, domain)}
    )
    found = sorted(response.json() or [], key=lambda result: -result.get("star_count", 0))
    show(session, RESULTS, found, flags["format"] or "table", full=flags["no-trunc"])


COMMANDS = {
    "login": Command(login, "[OPTIONS] [SERVER]", """
p password string Password or Personal Access Token (PAT)
- password-stdin bool Take the Password or Personal Access Token (PAT) from stdin
u username string Username
""", arguments=(0, 1), about="Authenticate to a registry.\nDefaults to Docker Hub if no server is specified."),
    "logout": Command(logout, "[SERVER]", arguments=(0, 1),
                      about="Log out from a registry.\nDefaults to Docker Hub if no server is specified."),
    "search": Command(search, "[OPTIONS] TERM", f"""
f filter filter Filter output based on conditions provided
- format string {FORMAT_HELP}
- limit int Max number of search results
- no-trunc bool Don't truncate output
""", arguments=(1, 1)),
}  # fmt: skip
