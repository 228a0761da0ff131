"""``stats``: resource usage, once or redrawn twice a second."""

from __future__ import annotations

import os
import sys
import time
from _thread import allocate_lock, start_new_thread

from engine.cli.client import segment
from engine.cli.commands import Command
from engine.cli.containers import FORMAT_HELP
from engine.cli.failures import Failure
from engine.cli.tables import Columns, show, wanted_format
from engine.cli.units import binary_size, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine.cli.flags import Flags
    from engine.cli.session import Session

UNKNOWN = "--"


def figures(sample: dict[str, Any]) -> dict[str, Any]:
    """What the table shows, computed from one sample of the API."""
    cpu, before = sample.get("cpu_stats") or {}, sample.get("precpu_stats") or {}
    used = (cpu.get("cpu_usage") or {}).get("total_usage", 0) - (before.get("cpu_usage") or {}).get("total_usage", 0)
    system = cpu.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    count = cpu.get("online_cpus") or len((cpu.get("cpu_usage") or {}).get("percpu_usage") or [])
    memory = sample.get("memory_stats") or {}
    usage, limit, details = memory.get("usage", 0), memory.get("limit", 0), memory.get("stats") or {}
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    usage -= cache if cache < usage else 0
    networks = (sample.get("networks") or {}).values()
    blocks = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
    return {
        "CPU": used / system * count * 100 if system > 0 and used > 0 else 0.0,
        "Memory": usage,
        "Limit": limit,
        "Received": sum(network.get("rx_bytes", 0) for network in networks),
        "Sent": sum(network.get("tx_bytes", 0) for network in networks),
        "Read": sum(block["value"] for block in blocks if block["op"][:1] in ("r", "R")),
        "Written": sum(block["value"] for block in blocks if block["op"][:1] in ("w", "W")),
        "PIDs": (sample.get("pids_stats") or {}).get("current", 0),
        "Name": sample.get("name", ""),
        "ID": sample.get("id", ""),
    }


def _known(record: dict[str, Any], text: str, unknown: str = UNKNOWN) -> str:
    return unknown if record.get("CPU") is None else text


def _percent(record: dict[str, Any]) -> str:
    return f"{record['Memory'] / record['Limit'] * 100 if record['Limit'] else 0:.2f}%"


STATS = Columns(
    "*container.statsContext",
    {
        "Container": ("CONTAINER", lambda record, full: record["Container"]),
        "Name": ("NAME", lambda record, full: record["Name"].removeprefix("/") or UNKNOWN),
        "ID": ("CONTAINER ID", lambda record, full: record["ID"] if full else record["ID"][:12]),
        "CPUPerc": ("CPU %", lambda record, full: UNKNOWN if record["CPU"] is None else f"{record['CPU']:.2f}%"),
        "MemUsage": ("MEM USAGE / LIMIT", lambda record, full: _known(
            record, f"{binary_size(record['Memory'])} / {binary_size(record['Limit'])}", "-- / --")),
        "MemPerc": ("MEM %", lambda record, full: _known(record, _percent(record))),
        "NetIO": ("NET I/O", lambda record, full: _known(
            record, f"{human_size(record['Received'], 3)} / {human_size(record['Sent'], 3)}")),
        "BlockIO": ("BLOCK I/O", lambda record, full: _known(
            record, f"{human_size(record['Read'], 3)} / {human_size(record['Written'], 3)}")),
        "PIDs": ("PIDS", lambda record, full: _known(record, str(record["PIDs"]))),
    },
    "ID Name CPUPerc MemUsage MemPerc NetIO BlockIO PIDs",
)  # fmt: skip
NOTHING = {**figures({}), "CPU": None}


class Collector:
    """Follows the statistics of several containers at once, each in a thread of its own."""

    def __init__(self, session: Session, *, once: bool) -> None:
        self._session = session
        self._once = once
        self._lock = allocate_lock()
        self._records: dict[str, dict[str, Any]] = {}
        self._pending: set[str] = set()
        self.failures: list[str] = []

    def follow(self, name: str) -> None:
        """Begin with a container."""
        with self._lock:
            if name in self._records:
                return
            self._records[name] = {**NOTHING, "Container": name}
            self._pending.add(name)
        start_new_thread(self._run, (name,))

    def forget(self, name: str) -> None:
        """No longer show a container."""
        with self._lock:
            self._records.pop(name, None)

    def _run(self, name: str) -> None:
        client = self._session.client.twin()
        try:
            query = {"stream": not self._once}
            response = client.request("GET", f"/containers/{segment(name)}/stats", query)
            for sample in response.messages():
                with self._lock:
                    if name not in self._records:
                        break
                    self._records[name] = {**figures(sample), "Container": name}
                    self._pending.discard(name)
        except (Failure, OSError, ValueError) as error:
            with self._lock:
                self.failures.append(str(error))
                self._records.pop(name, None)
        finally:
            client.close()
            with self._lock:
                self._pending.discard(name)

    @property
    def ready(self) -> bool:
        """Whether every container has been heard of."""
        with self._lock:
            return not self._pending

    def records(self) -> list[dict[str, Any]]:
        """The newest figures."""
        with self._lock:
            return list(self._records.values())


def stats(session: Session, flags: Flags) -> None:
    """Show resource usage."""
    template = wanted_format(session, flags["format"], "statsFormat")
    once = flags["no-stream"]
    collector = Collector(session, once=once)

    def refresh() -> None:
        listed = {item["Id"][:12] for item in session.client.get("/containers/json", {"all": flags["all"] or None})}
        for record in collector.records():
            if record["Container"] not in listed:
                collector.forget(record["Container"])
        for name in sorted(listed):
            collector.follow(name)

    if flags.arguments:
        for name in flags.arguments:
            collector.follow(name)
    else:
        refresh()
    started = time.monotonic()
    while not collector.ready and time.monotonic() - started < 5:
        time.sleep(0.02)
    if collector.failures:
        raise Failure("\n".join(collector.failures))
    screen = os.isatty(1) and not once
    while True:
        if screen:
            sys.stdout.write("\033[H\033[2J")
        show(session, STATS, collector.records(), template, full=flags["no-trunc"])
        sys.stdout.flush()
        if once:
            return
        time.sleep(0.5)
        if not flags.arguments:
            refresh()
        elif not collector.records():
            return


COMMANDS = {
    "stats": Command(stats, "[OPTIONS] [CONTAINER...]", f"""
a all bool Show all containers (default shows just running)
- format string {FORMAT_HELP}
- no-stream bool Disable streaming stats and only pull the first result
- no-trunc bool Do not truncate output
""", arguments=(0, None)),
}  # fmt: skip
