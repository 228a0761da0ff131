"""Network policies: whom labels select, which pairs of addresses that makes, and who wins."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.networks.policies import Member, PolicyRecord, address_policies, check, denied_by

MEMBERS = [
    Member(labels={"role": "web"}, addresses=("10.0.0.2",)),
    Member(labels={"role": "api"}, addresses=("10.0.0.3", "fd00::3")),
    Member(labels={"role": "db", "tier": "1"}, addresses=("10.0.0.4", "fd00::4")),
]


def test_labels_select_and_pairs_keep_to_one_ip_version() -> None:
    (policy,) = address_policies([PolicyRecord(name="p", source={"role": "api"}, target={"tier": ""})], MEMBERS)

    assert set(policy.pairs) == {("10.0.0.3", "10.0.0.4"), ("fd00::3", "fd00::4")}


def test_no_source_is_anybody_and_stays_one_pair_a_target() -> None:
    (policy,) = address_policies([PolicyRecord(name="p", target={"role": "db"})], MEMBERS)

    assert set(policy.pairs) == {("", "10.0.0.4"), ("", "fd00::4")}


def test_what_one_policy_allows_no_other_denies() -> None:
    told = address_policies(
        [
            PolicyRecord(name="all", target={"role": "db"}),
            PolicyRecord(name="api", action="allow", source={"role": "api"}, target={"role": "db"}, ports=["5432"]),
        ],
        MEMBERS,
    )

    assert denied_by(told, "10.0.0.3", "10.0.0.4", 5432, "tcp") is None
    for source, port in (("10.0.0.3", 22), ("10.0.0.2", 5432)):
        denied = denied_by(told, source, "10.0.0.4", port, "tcp")
        assert denied is not None
        assert denied.name == "all"
    assert denied_by(told, "10.0.0.4", "10.0.0.2", 80, "tcp") is None


@pytest.mark.parametrize(
    "policy",
    [
        PolicyRecord(name="", target={"a": ""}),
        PolicyRecord(name="x y", target={"a": ""}),
        PolicyRecord(name='x" drop', target={"a": ""}),
        PolicyRecord(name="x"),
        PolicyRecord(name="x", action="maybe", target={"a": ""}),
        PolicyRecord(name="x", target={"a": ""}, ports=["0"]),
        PolicyRecord(name="x", target={"a": ""}, ports=["80/icmp"]),
    ],
)
def test_policies_that_cannot_be_are_refused(policy: PolicyRecord) -> None:
    with pytest.raises(InvalidParameter):
        check(policy)
