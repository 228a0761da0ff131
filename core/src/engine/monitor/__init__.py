"""Launcher and monitors: the processes that hold containers and outlive the daemon.

    engined --socketpair--> launcher --double fork--> monitor --child--> the container's process
       '------------------ control socket (one a monitor) -----'

`client` is the daemon's side and the only module the daemon imports. Everything else runs in the launcher
(``python -I -S launcher.py``) and in the monitors forked from it: stdlib only, few imports, no threads.

Control protocol (on SOCK_SEQPACKET sockets, one JSON object a packet). A monitor greets every connection with
``{"event": "hello", "monitor", "state", "pid", "exit"}``. Requests are ``{"id", "op", ...}`` with ``op`` one of
``start``, ``kill``, ``resize`` and ``attach`` (which carries the client's socket, and early input in a memfd); each is
answered with ``{"id", ...}`` or ``{"id", "error", "kind"}``. Told unasked: ``{"event": "started", "pid"}``,
``{"event": "oom"}``, ``{"event": "exit", ...}`` and ``{"event": "ended", "attachment", "how"}``.
What a monitor does not understand it refuses; nothing a client sends ends it.

Files in a monitor's directory: ``monitor.sock`` (while it can be talked to), ``process.json`` (who runs: process ids
and start time), ``exit.json`` (how it ended, durable before anyone is told), ``monitor.err`` (when a monitor failed).
"""
