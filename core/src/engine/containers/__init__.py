"""Containers: the whole lifecycle, and the processes run in them.

`service` is what the API calls. `create` checks and merges what a client asks for, `start` brings a container to life
step by step with its undo, `restart` decides whether it comes back, `reconcile` compares records with what really runs
when the daemon starts. `execs` are further processes, `attach` and `logs` the streams, `views` what clients are shown,
`files` copying in and out, `commit` images made of containers, `stats` measurements. `records` holds it all together.
"""

from engine.containers.execs import Execs
from engine.containers.service import Containers

__all__ = ["Containers", "Execs"]
