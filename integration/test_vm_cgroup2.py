"""cgroup v2 with runc and crun: the VM laboratory runs `vm/cgroup2.sh`, whose lines are the checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.vm
@pytest.mark.timeout(900)
def test_limits_and_states_hold_on_cgroup_v2() -> None:
    vmlab = os.environ.get("VMLAB", "")
    if not vmlab:
        pytest.skip("set VMLAB to the vmlab program")
    shares = [word for path in (str(HERE.parent), sys.base_prefix) for word in ("--share", path)]
    done = subprocess.run(
        [vmlab, "run", "--cpus", "1", *shares, "--", "sh", "integration/vm/cgroup2.sh"],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok   crun: an OOM kill is 137 and told" in done.stdout
