"""Container logs sent away: ``syslog`` (unix sockets, UDP, TCP) and ``journald`` (systemd's native protocol)."""

from __future__ import annotations

from collections.abc import Sequence

from engine.drivers import DriverDescription
from engine.hookspecs import hookimpl

__all__ = ["engine_log_drivers"]

_COMMON = {
    "tag": "template of the program's name (default {{.ID}})",
    "mode": "blocking (default) or non-blocking: whether a slow server holds the container back",
    "max-buffer-size": "how much output waits in non-blocking mode (default 1m)",
}


@hookimpl
def engine_log_drivers() -> Sequence[DriverDescription]:
    """The two drivers of this package."""
    return (
        DriverDescription(
            name="syslog",
            loader="engine_log_remote.driver:Syslog",
            summary="Lines to a syslog server, RFC 3164 or RFC 5424",
            options={
                "syslog-address": "unix://, unixgram://, udp:// or tcp:// address (default the local syslog)",
                "syslog-facility": "name or number (default daemon)",
                "syslog-format": "rfc3164, rfc5424 or rfc5424micro (default: BSD)",
                **_COMMON,
            },
        ),
        DriverDescription(
            name="journald",
            loader="engine_log_remote.driver:Journald",
            summary="Lines to systemd's journal, with the container as fields",
            options=_COMMON,
        ),
    )
