from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.model.container import HostConfig
from engine.oci import resources
from engine.oci.host import Host

HOST = Host(cgroup_version=1, cpus=2, kernel=(6, 1))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"memory": 1}, "Minimum memory limit allowed is 6MB"),
        (
            {"memory": 64 << 20, "memory_swap": 32 << 20},
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            {"memory_swap": 32 << 20},
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        ({"memory_swappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
        (
            {"memory": 64 << 20, "memory_reservation": 128 << 20},
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        (
            {"nano_cpus": 3_000_000_000},
            "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
        ),
        (
            {"nano_cpus": 1, "cpu_quota": 1000},
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
        ),
        (
            {"cpu_period": 1},
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ),
        ({"cpu_quota": 1}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ({"cpuset_cpus": "x"}, "Invalid value x for cpuset cpus: invalid format: x"),
        ({"cpuset_cpus": "0-7"}, "Requested CPUs are not available - requested 0-7, available: 0-1"),
        ({"blkio_weight": 5}, "Range of blkio weight is from 10 to 1000"),
        ({"oom_score_adj": 2000}, "Invalid value 2000, range for oom score adj is [-1000, 1000]"),
        ({"shm_size": -1}, "SHM size can not be less than 0"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_in_dockers_words(limits, message):
    with pytest.raises(InvalidParameter) as error:
        resources.validate(HostConfig(**limits), HOST)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"memory": 64 << 20, "memory_swap": -1},
        {"memory": 6 << 20, "memory_swappiness": -1},
        {"nano_cpus": 2_000_000_000, "cpuset_cpus": "0,1", "cpuset_mems": "0"},
        {"cpu_quota": -1},
    ],
)
def test_sensible_limits_pass(limits):
    resources.validate(HostConfig(**limits), HOST)
