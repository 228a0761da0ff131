"""What this kernel lacks, proved in the VM laboratory: each script boots a VM, runs its checks there and exits 0.

``tox -e vm``. The laboratory is named by VMLAB or found beside the checkout; where it cannot boot, the tests say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LABORATORY = Path(os.environ.get("VMLAB") or ROOT.parent / "shared" / "vmlab" / "vmlab")


@pytest.mark.vm
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("script", "options", "proof"),
    [
        ("cgroup2", (), "ok   crun: an OOM kill is 137 and told"),
        ("apparmor", (), ""),
        ("networks", (), ""),
        ("nfs", (), ""),
        ("quota", ("--kernel", "qemu"), ""),
    ],
)
def test_the_checks_of_a_script_hold_in_a_vm(script: str, options: tuple[str, ...], proof: str) -> None:
    if not LABORATORY.is_file():
        pytest.skip(f"no VM laboratory at {LABORATORY}")
    environment = {"VMLAB_UML": str(LABORATORY.parent / "uml"), **os.environ}
    shares = [word for path in (str(ROOT), sys.base_prefix) for word in ("--share", path)]
    command = [
        str(LABORATORY),
        "run",
        "--cpus",
        "1",
        "--timeout",
        "1200",
        *options,
        *shares,
        "--",
        "sh",
        f"integration/vm/{script}.sh",
    ]

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1400)

    if done.returncode == 125:
        pytest.skip(f"the VM cannot boot here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert proof in done.stdout
