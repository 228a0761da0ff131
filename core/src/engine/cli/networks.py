"""``network ls``, ``create``, ``rm``, ``connect`` and ``disconnect``."""

from __future__ import annotations

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.containers import FORMAT_HELP, labels_text
from engine.cli.failures import ApiFailure, Failure
from engine.cli.run_values import pairs
from engine.cli.session import filters
from engine.cli.tables import Columns, aligned, show, wanted_format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session


def _yes(value: object) -> str:
    return "true" if value else "false"


def _created(record: dict[str, Any], full: bool) -> str:
    text = str(record.get("Created", ""))
    day, _, rest = text.partition("T")
    return f"{day} {rest.removesuffix('Z')} +0000 UTC" if rest.endswith("Z") else text


NETWORKS = Columns(
    "*network.networkContext",
    {
        "ID": ("NETWORK ID", lambda record, full: record["Id"] if full else record["Id"][:12]),
        "Name": ("NAME", lambda record, full: record["Name"]),
        "Driver": ("DRIVER", lambda record, full: record.get("Driver", "")),
        "Scope": ("SCOPE", lambda record, full: record.get("Scope", "")),
        "IPv4": ("IPV4", lambda record, full: _yes(record.get("EnableIPv4", True))),
        "IPv6": ("IPV6", lambda record, full: _yes(record.get("EnableIPv6"))),
        "Internal": ("INTERNAL", lambda record, full: _yes(record.get("Internal"))),
        "Labels": ("LABELS", lambda record, full: labels_text(record.get("Labels"))),
        "CreatedAt": ("CREATED AT", _created),
    },
    "ID Name Driver Scope",
    methods={"Label": lambda record, name: (record.get("Labels") or {}).get(name, "")},
)


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key in which ``net2`` comes before ``net10``."""
    import re

    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def ls(session: Session, flags: Flags) -> None:
    """List networks."""
    template = wanted_format(session, flags["format"], "networksFormat", quiet=flags["quiet"])
    found = session.client.get("/networks", {"filters": filters(flags["filter"])}) or []
    found.sort(key=lambda network: natural(network["Name"]))
    show(session, NETWORKS, found, template, quiet=flags["quiet"], full=flags["no-trunc"])


def _pools(flags: Flags) -> list[dict[str, Any]]:
    """The IPAM configuration: each gateway, range and auxiliary address goes to the subnet that contains it."""
    import ipaddress

    def network(text: str) -> Any:
        try:
            return ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise Failure(f"invalid CIDR address: {text}") from None

    subnets: dict[str, dict[str, Any]] = {}
    for text in flags["subnet"]:
        for other in subnets:
            if network(other).version == network(text).version and network(other).overlaps(network(text)):
                raise Failure("multiple overlapping subnet configuration is not supported")
        subnets[text] = {"Subnet": text}

    def place(text: str, inside: Any, key: str, value: Any) -> None:
        for subnet, pool in subnets.items():
            if network(subnet).version == inside.version and inside.subnet_of(network(subnet)):
                if key == "AuxiliaryAddresses":
                    pool.setdefault(key, {}).update(value)
                elif key in pool:
                    raise Failure(f"cannot configure multiple {'ranges' if key == 'IPRange' else 'gateways'} "
                                  f"({value}, {pool[key]}) on the same subnet ({subnet})")  # fmt: skip
                else:
                    pool[key] = value
                return
        what = {"IPRange": "range", "Gateway": "gateway", "AuxiliaryAddresses": "aux-address"}[key]
        raise Failure(f"no matching subnet for {what} {text}")

    for text in flags["ip-range"]:
        place(text, network(text), "IPRange", text)
    for text in flags["gateway"]:
        place(text, network(text), "Gateway", text)
    for name, text in pairs(flags["aux-address"]).items():
        place(text, network(text), "AuxiliaryAddresses", {name: text})
    return list(subnets.values())


def create(session: Session, flags: Flags) -> None:
    """Create a network and print its id."""
    body: dict[str, Any] = {
        "Name": flags.arguments[0],
        "Driver": flags["driver"],
        "Scope": flags["scope"],
        "Internal": flags["internal"],
        "Attachable": flags["attachable"],
        "Ingress": flags["ingress"],
        "ConfigOnly": flags["config-only"],
        "Options": pairs(flags["opt"]),
        "Labels": pairs(flags["label"]),
        "IPAM": {"Driver": flags["ipam-driver"], "Options": pairs(flags["ipam-opt"]), "Config": _pools(flags)},
        "CheckDuplicate": True,
    }
    if flags["config-only"]:
        body["Driver"] = flags["driver"] if flags.changed("driver") else ""
    for flag, key in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if flags.changed(flag):
            body[key] = flags[flag]
    if flags["config-from"]:
        body["ConfigFrom"] = {"Network": flags["config-from"]}
    answer = session.client.post("/networks/create", body=body)
    if answer.get("Warning"):
        session.warn(f"WARNING: {answer['Warning']}")
    session.out(answer["Id"])


def remove(session: Session, flags: Flags) -> None:
    """Remove networks."""

    def one(name: str) -> None:
        try:
            session.client.delete(f"/networks/{segment(name)}")
        except ApiFailure as failure:
            if not (flags["force"] and failure.status == 404):
                raise
            session.warn(str(failure))

    session.each(flags.arguments, one)


def connect(session: Session, flags: Flags) -> None:
    """Connect a container to a network."""
    network, container = flags.arguments
    settings: dict[str, Any] = {
        "Links": flags["link"] or None,
        "Aliases": flags["alias"] or None,
        "DriverOpts": pairs(flags["driver-opt"]),
        "GwPriority": flags["gw-priority"],
        "IPAMConfig": {"IPv4Address": flags["ip"], "IPv6Address": flags["ip6"], "LinkLocalIPs": flags["link-local-ip"]},
    }
    session.client.post(
        f"/networks/{segment(network)}/connect", body={"Container": container, "EndpointConfig": settings}
    )


def disconnect(session: Session, flags: Flags) -> None:
    """Disconnect a container from a network."""
    network, container = flags.arguments
    body = {"Container": container, "Force": flags["force"]}
    session.client.post(f"/networks/{segment(network)}/disconnect", body=body)


def policy(session: Session, flags: Flags) -> None:
    """Allow or deny connections between containers, by label."""
    verb, *names = flags.arguments
    if verb == "create" and len(names) == 1:
        if flags["allow"] == flags["deny"]:
            raise Failure("say one of --allow and --deny")
        body = {
            "Name": names[0],
            "Action": "allow" if flags["allow"] else "deny",
            "From": pairs(flags["from"]),
            "To": pairs(flags["to"]),
            "Ports": flags["port"],
        }
        session.client.post("/engine/networks/policies", body=body)
        session.out(names[0])
    elif verb == "ls" and not names:
        rows = [["NAME", "ACTION", "FROM", "TO", "PORTS"]]
        for each in session.client.get("/engine/networks/policies"):
            words = [labels_text(each[key]) or "any" for key in ("From", "To")]
            rows.append([each["Name"], each["Action"], *words, ",".join(each["Ports"]) or "all"])
        session.out("\n".join(aligned(rows)))
    elif verb == "rm" and names:
        session.each(names, lambda name: session.client.delete(f"/engine/networks/policies/{segment(name)}"))
    else:
        raise Failure("use: engine network policy create NAME | ls | rm NAME...")


COMMANDS = {
    "network policy": Command(policy, "create [OPTIONS] POLICY\nls\nrm POLICY [POLICY...]", """
- allow bool Allow these connections, whatever other policies deny
- deny bool Deny these connections
- from list Labels of the containers that connect (default: all containers)
- port list Only these ports (80, 53/udp; default: all)
- to list Labels of the containers that are connected to (default: all containers)
""", arguments=(1, None)),
    "network ls": Command(ls, "[OPTIONS]", f"""
f filter filter Provide filter values (e.g. "driver=bridge")
- format string {FORMAT_HELP}
- no-trunc bool Do not truncate the output
q quiet bool Only display network IDs
"""),
    "network create": Command(create, "[OPTIONS] NETWORK", """
- attachable bool Enable manual container attachment
- aux-address map Auxiliary IPv4 or IPv6 addresses used by Network driver (default map[])
- config-from string The network from which to copy the configuration
- config-only bool Create a configuration only network
d driver string=bridge Driver to manage the Network (default "bridge")
- gateway strings IPv4 or IPv6 Gateway for the master subnet
- ingress bool Create swarm routing-mesh network
- internal bool Restrict external access to the network
- ip-range strings Allocate container ip from a sub-range
- ipam-driver string=default IP Address Management Driver (default "default")
- ipam-opt map Set IPAM driver specific options (default map[])
- ipv4 bool=true Enable or disable IPv4 address assignment (default true)
- ipv6 bool Enable or disable IPv6 address assignment
- label list Set metadata on a network
o opt map Set driver specific options (default map[])
- scope string Control the network's scope
- subnet strings Subnet in CIDR format that represents a network segment
""", arguments=(1, 1)),
    "network rm": Command(remove, "NETWORK [NETWORK...]", "f force bool Do not error if the network does not exist",
                          arguments=(1, None)),
    "network connect": Command(connect, "[OPTIONS] NETWORK CONTAINER", """
- alias strings Add network-scoped alias for the container
- driver-opt strings driver options for the network
- gw-priority int Highest gw-priority provides the default gateway. Accepts positive and negative values.
- ip string IPv4 address (e.g., "172.30.100.104")
- ip6 string IPv6 address (e.g., "2001:db8::33")
- link list Add link to another container
- link-local-ip strings Add a link-local address for the container
""", arguments=(2, 2)),
    "network disconnect": Command(disconnect, "[OPTIONS] NETWORK CONTAINER",
                                  "f force bool Force the container to disconnect from a network", arguments=(2, 2)),
}  # fmt: skip
