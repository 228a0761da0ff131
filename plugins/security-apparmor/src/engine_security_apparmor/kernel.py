"""AppArmor in this kernel: whether it is there, what is loaded, and loading our profile."""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
from functools import cached_property
from pathlib import Path

from engine.errors import EngineError

__all__ = ["DEFAULT", "AppArmor", "profile"]

log = logging.getLogger(__name__)

DEFAULT = "engine-default"
_PARSER_PLACES = "/usr/sbin:/sbin:/usr/bin:/bin"


def profile(name: str = DEFAULT, *, abi: bool = True) -> str:
    """The text of our profile. ``abi`` pins the feature set, where the parser knows it."""
    return f"""{"abi <abi/3.0>," if abi else ""}

profile {name} flags=(attach_disconnected,mediate_deleted) {{
  network,
  deny network alg,
  capability,
  file,
  umount,

  # who may signal: the host, the runtimes that carry ours, and the container itself
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send,receive) peer={name},

  # /proc: a process's own directory and the limits of shared memory stay writable
  deny /proc/* w,
  deny /proc/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  deny mount,

  # /sys: only cgroups
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,

  ptrace (trace,read,tracedby,readby) peer={name},
}}
"""


class AppArmor:
    """``root`` is where the kernel's files are (tests have their own)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._module = root / "sys/module/apparmor/parameters/enabled"
        self._profiles = root / "sys/kernel/security/apparmor/profiles"
        self._abi = root / "etc/apparmor.d/abi/3.0"
        self._lock = threading.Lock()
        self._fresh = False
        self.default = DEFAULT

    @cached_property
    def enabled(self) -> bool:
        """Whether the kernel enforces AppArmor and profiles can be loaded."""
        try:
            there = self._module.read_text().startswith("Y") and self._profiles.exists()
        except OSError:
            return False
        if there and self._parser is None:
            log.warning("the kernel has AppArmor, but apparmor_parser is missing: containers run without a profile")
        return there and self._parser is not None

    @cached_property
    def _parser(self) -> str | None:
        return shutil.which("apparmor_parser", path=_PARSER_PLACES)

    def loaded(self) -> frozenset[str]:
        """The names of the profiles in the kernel."""
        try:
            lines = self._profiles.read_text().splitlines()
        except OSError:
            return frozenset()
        return frozenset(line.rpartition(" (")[0] for line in lines)

    def load(self) -> None:
        """Have our profile in the kernel: written anew once in the daemon's life, then only if it is gone.

        Raises `EngineError` when it cannot be loaded: a container must not start without what it was promised.
        """
        with self._lock:
            if self._fresh and DEFAULT in self.loaded():
                return
            assert self._parser is not None
            text = profile(abi=self._abi.exists())
            done = subprocess.run(
                [self._parser, "-Kr"], input=text, capture_output=True, text=True, timeout=60, check=False
            )
            if done.returncode:
                raise EngineError(f"AppArmor profile {DEFAULT} cannot be loaded: {done.stderr.strip()}")
            self._fresh = True
