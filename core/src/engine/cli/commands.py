"""The table of commands, and the way from a command line to the function that does it.

A command lives in the module its row names, in that module's ``COMMANDS`` under its key. Only the module of the
command that is run gets imported; the list of commands in the help needs none.
"""

from __future__ import annotations

import os
import sys

from engine.cli.failures import Failure
from engine.cli.flags import FlagError, declare, parse
from engine.cli.session import GLOBAL_FLAGS, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.cli.flags import Flags

# path | module | key in its COMMANDS | description. A path ending in * is listed among the common commands.
_TABLE = """
run* | run | run | Create and run a new container from an image
exec* | attach | exec | Execute a command in a running container
ps* | containers | ps | List containers
pull* | transfer | pull | Download an image from a registry
push* | transfer | push | Upload an image to a registry
images* | images | images | List images
login* | registries | login | Authenticate to a registry
logout* | registries | logout | Log out from a registry
search* | registries | search | Search a registry for images
version* | system | version | Show the engine's version information
info* | system | info | Display system-wide information
attach | attach | attach | Attach local standard input, output, and error streams to a running container
commit | transfer | commit | Create a new image from a container's changes
cp | copy | cp | Copy files/folders between a container and the local filesystem
create | run | create | Create a new container
debug | debug | debug | Get a shell with tools into a container or an image
diff | containers | diff | Inspect changes to files or directories on a container's filesystem
doctor | doctor | doctor | Say what about this host deserves attention
events | events | events | Get real time events from the server
explain | explain | explain | Say what isolates and limits a container and why it ended, or why it cannot reach another
export | transfer | export | Export a container's filesystem as a tar archive
history | images | history | Show the history of an image
import | transfer | import | Import the contents from a tarball to create a filesystem image
inspect | inspect | inspect | Return low-level information on objects of any kind
kill | lifecycle | kill | Kill one or more running containers
load | transfer | load | Load an image from a tar archive or STDIN
logs | logs | logs | Fetch the logs of a container
pause | lifecycle | pause | Pause all processes within one or more containers
port | containers | port | List port mappings or a specific mapping for the container
rename | lifecycle | rename | Rename a container
restart | lifecycle | restart | Restart one or more containers
rm | lifecycle | rm | Remove one or more containers
rmi | images | rmi | Remove one or more images
save | transfer | save | Save one or more images to a tar archive (streamed to STDOUT by default)
start | attach | start | Start one or more stopped containers
stats | stats | stats | Display a live stream of container(s) resource usage statistics
stop | lifecycle | stop | Stop one or more running containers
tag | images | tag | Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
top | containers | top | Display the running processes of a container
unpause | lifecycle | unpause | Unpause all processes within one or more containers
update | lifecycle | update | Update configuration of one or more containers
wait | lifecycle | wait | Block until one or more containers stop, then print their exit codes
cert ca | cert | cert ca | Create the CA of this host's certificates
cert client | cert | cert client | Create a certificate for a client
cert ls | cert | cert ls | List certificates and when they end
cert server | cert | cert server | Create a certificate for a server
container attach | attach | attach | Attach local standard input, output, and error streams to a running container
container commit | transfer | commit | Create a new image from a container's changes
container cp | copy | cp | Copy files/folders between a container and the local filesystem
container create | run | create | Create a new container
container diff | containers | diff | Inspect changes to files or directories on a container's filesystem
container exec | attach | exec | Execute a command in a running container
container export | transfer | export | Export a container's filesystem as a tar archive
container inspect | inspect | container inspect | Display detailed information on one or more containers
container kill | lifecycle | kill | Kill one or more running containers
container logs | logs | logs | Fetch the logs of a container
container ls | containers | ps | List containers
container pause | lifecycle | pause | Pause all processes within one or more containers
container port | containers | port | List port mappings or a specific mapping for the container
container prune | prune | container prune | Remove all stopped containers
container rename | lifecycle | rename | Rename a container
container restart | lifecycle | restart | Restart one or more containers
container rm | lifecycle | rm | Remove one or more containers
container run | run | run | Create and run a new container from an image
container start | attach | start | Start one or more stopped containers
container stats | stats | stats | Display a live stream of container(s) resource usage statistics
container stop | lifecycle | stop | Stop one or more running containers
container top | containers | top | Display the running processes of a container
container unpause | lifecycle | unpause | Unpause all processes within one or more containers
container update | lifecycle | update | Update configuration of one or more containers
container wait | lifecycle | wait | Block until one or more containers stop, then print their exit codes
context create | contexts | context create | Create a context
context inspect | contexts | context inspect | Display detailed information on one or more contexts
context ls | contexts | context ls | List contexts
context rm | contexts | context rm | Remove one or more contexts
context show | contexts | context show | Print the name of the current context
context use | contexts | context use | Set the current docker context
image history | images | history | Show the history of an image
image import | transfer | import | Import the contents from a tarball to create a filesystem image
image inspect | inspect | image inspect | Display detailed information on one or more images
image load | transfer | load | Load an image from a tar archive or STDIN
image ls | images | images | List images
image prune | prune | image prune | Remove unused images
image pull | transfer | pull | Download an image from a registry
image push | transfer | push | Upload an image to a registry
image rm | images | rmi | Remove one or more images
image save | transfer | save | Save one or more images to a tar archive (streamed to STDOUT by default)
image tag | images | tag | Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
network connect | networks | network connect | Connect a container to a network
network create | networks | network create | Create a network
network disconnect | networks | network disconnect | Disconnect a container from a network
network inspect | inspect | network inspect | Display detailed information on one or more networks
network ls | networks | network ls | List networks
network policy | networks | network policy | Allow or deny connections between containers
network prune | prune | network prune | Remove all unused networks
network rm | networks | network rm | Remove one or more networks
plugin ls | plugins | plugin ls | List plugins
policy test | policy | policy test | Check policy files and run their tests
system df | usage | system df | Show docker disk usage
registry serve | registry | registry serve | Serve a registry from a directory
system dial-stdio | system | system dial-stdio | Proxy the stdio stream to the daemon connection
system events | events | events | Get real time events from the server
system info | system | info | Display system-wide information
system prune | prune | system prune | Remove unused data
volume clone | volumes | volume clone | Copy a volume
volume create | volumes | volume create | Create a volume
volume export | volumes | volume export | Export a volume's files as a tar archive
volume import | volumes | volume import | Fill a volume from a tar archive
volume inspect | inspect | volume inspect | Display detailed information on one or more volumes
volume ls | volumes | volume ls | List volumes
volume prune | prune | volume prune | Remove unused local volumes
volume rm | volumes | volume rm | Remove one or more volumes
volume snapshot | volumes | volume snapshot | Copy a volume as it is now
"""
GROUPS = {
    "cert": "Manage certificates of the API",
    "container": "Manage containers",
    "context": "Manage contexts",
    "image": "Manage images",
    "network": "Manage networks",
    "plugin": "Manage plugins",
    "policy": "Manage policies",
    "registry": "Serve a registry",
    "system": "Manage the engine",
    "volume": "Manage volumes",
}
ALIASES = {
    "container list": "container ls",
    "container ps": "container ls",
    "container remove": "container rm",
    "context list": "context ls",
    "context remove": "context rm",
    "image list": "image ls",
    "image remove": "image rm",
    "network list": "network ls",
    "network remove": "network rm",
    "plugin list": "plugin ls",
    "volume list": "volume ls",
    "volume remove": "volume rm",
}


class Command:
    """One command: its flags, how many arguments it takes, and the function that does the work.

    ``arguments`` is the least and the greatest number of arguments (None: any); ``usage`` what follows the name in
    the usage line. ``interspersed`` off: the first argument ends the flags (run, create, exec, top).
    """

    __slots__ = ("about", "arguments", "flags", "interspersed", "run", "usage")

    def __init__(self, run: Callable[[Session, Flags], int | None], usage: str, flags: str = "", *,
                 arguments: tuple[int, int | None] = (0, 0), interspersed: bool = True, about: str = "",
                 ) -> None:  # fmt: skip
        self.run = run
        self.usage = usage
        self.flags = flags
        self.arguments = arguments
        self.interspersed = interspersed
        self.about = about


class Row:
    """One line of the table."""

    __slots__ = ("about", "common", "key", "module", "path")

    def __init__(self, line: str) -> None:
        path, self.module, self.key, self.about = (field.strip() for field in line.split("|", 3))
        self.common = path.endswith("*")
        self.path = path.removesuffix("*")

    def load(self) -> Command:
        """Import the command's module."""
        module = __import__(f"engine.cli.{self.module}", fromlist=["COMMANDS"])
        command: Command = module.COMMANDS[self.key]
        return command


def rows() -> list[Row]:
    """All commands, in the order of the help."""
    return [Row(line) for line in _TABLE.splitlines() if line]


def find(path: str) -> Row | None:
    """The command of a path such as ``ps`` or ``container ls``."""
    path = ALIASES.get(path, path)
    start = _TABLE.find(f"\n{path} | ")
    if start < 0:
        start = _TABLE.find(f"\n{path}* | ")
    if start < 0:
        return None
    return Row(_TABLE[start + 1 : _TABLE.index("\n", start + 1)])


def dispatch(words: list[str], environ: Mapping[str, str] | None = None) -> int:
    """Parse a command line and run its command. Raises `Failure`; returns the exit code."""
    environ = os.environ if environ is None else environ
    try:
        top = parse(declare(GLOBAL_FLAGS), words, interspersed=False)
    except FlagError as error:
        raise FlagError(f"{error}\n\nUsage:  engine [OPTIONS] COMMAND [ARG...]\n\n"
                        "Run 'engine --help' for more information") from None  # fmt: skip
    session = Session(top, environ)
    try:
        return _dispatch(session, top.arguments)
    finally:
        session.close()


def _dispatch(session: Session, words: list[str]) -> int:
    top = session.flags
    if top["version"]:
        from engine import __version__

        session.out(f"Engine version {__version__}")
        return 0
    if words and words[0] == "help" and not top["help"]:
        return _help(session, words[1:], explicit=True)
    if not words or top["help"]:
        return _help(session, words)
    name, words = words[0], words[1:]
    if name in GROUPS:
        if not words or words[0] in ("--help", "-h"):
            return _help(session, [name])
        if words[0][0] == "-":
            raise FlagError(f"unknown flag: {words[0]}\n\nUsage:  engine {name} COMMAND\n\n"
                            f"Run 'engine {name} --help' for more information")  # fmt: skip
        row = find(f"{name} {words[0]}")
        if row is None:
            raise Failure(f"engine: unknown command: engine {name} {words[0]}\n\n"
                          f"Usage:  engine {name}\n\nRun 'engine {name} --help' for more information")  # fmt: skip
        name, words = f"{name} {words[0]}", words[1:]
    else:
        row = find(name)
        if row is None:
            raise Failure(f"engine: unknown command: engine {name}\n\nRun 'engine --help' for more information")
    return run(session, row, name, words)


def run(session: Session, row: Row, name: str, words: list[str]) -> int:
    """Run the command of ``row``, called ``name`` by the user, with its part of the command line."""
    command = row.load()
    declared = declare(command.flags)
    short_help = not any(flag.short == "h" for flag in declared)
    declared += declare(f"{'h' if short_help else '-'} !help bool Print usage")
    usage = f"Usage:  engine {name} {command.usage}".rstrip().split("\n")[0]
    advice = f"Run 'engine {name} --help' for more information"
    try:
        flags = parse(declared, words, interspersed=command.interspersed)
        if flags["help"]:
            from engine.cli.help import command_help

            session.out(command_help(row, name, command, declared))
            return 0
        _check_arguments(name, command, len(flags.arguments), usage)
        return command.run(session, flags) or 0
    except FlagError as error:
        raise FlagError(f"{error}\n\n{usage}\n\n{advice}") from None


def _check_arguments(name: str, command: Command, count: int, usage: str) -> None:
    least, most = command.arguments
    if count >= least and (most is None or count <= most):
        return
    plural = "" if (most if most is not None and not least else least) == 1 else "s"
    if most == 0:
        problem = "accepts no arguments"
    elif most is None:
        problem = f"requires at least {least} argument{plural}"
    elif least == most:
        problem = f"requires {least} argument{plural}"
    elif least:
        problem = f"requires at least {least} and at most {most} arguments"
    else:
        problem = f"requires at most {most} argument{plural}"
    verb = "See" if most is None else "Run"
    raise Failure(f"engine: 'engine {name}' {problem}\n\n{usage}\n\n{verb} 'engine {name} --help' for more information")


def _help(session: Session, words: list[str], *, explicit: bool = False) -> int:
    from engine.cli import help as texts

    name = " ".join(words)
    if not words:
        session.out(texts.overview(session.directory))
        return 0
    if name in GROUPS:
        session.out(texts.group_help(name))
        return 0
    row = find(name)
    if row is None:
        raise Failure(
            f"unknown help topic: {name}"
            if explicit
            else f"engine: unknown command: engine {name}\n\nRun 'engine --help' for more information"
        )
    command = row.load()
    session.out(texts.command_help(row, name, command, declare(command.flags)))
    sys.stdout.flush()
    return 0
