"""hosts and resolv.conf as containers see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.networks.files import hosts, resolv_conf


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


def render(etc: Path, text: str, **settings: object) -> str:
    etc.write_text(text)
    return resolv_conf(etc=etc, systemd=etc.with_name("upstream"), **settings)  # type: ignore[arg-type]


def test_hosts_has_local_names_extra_entries_and_the_container_itself() -> None:
    text = hosts(hostname="web", domainname="example.org", addresses=["172.17.0.2"], extra=[("10.0.0.1", "db store")])
    assert text.splitlines()[0] == "127.0.0.1\tlocalhost"
    assert text.endswith("ff02::2\tip6-allrouters\n10.0.0.1\tdb store\n172.17.0.2\tweb.example.org web\n")


def test_with_the_hosts_network_its_file_is_the_base() -> None:
    text = hosts(hostname="h", domainname="", addresses=[], extra=[("1.1.1.1", "one")], origin="127.0.0.1 me")
    assert text == "127.0.0.1 me\n1.1.1.1\tone\n"


def test_the_hosts_servers_are_kept_without_those_on_loopback(etc: Path) -> None:
    text = "# comment\nnameserver 127.0.0.1\nnameserver 9.9.9.9\nnameserver ::1\nsearch a b\noptions ndots:2\n"
    assert render(etc, text) == "nameserver 9.9.9.9\nsearch a b\noptions ndots:2\n"


def test_without_any_usable_server_docker_falls_back_to_googles(etc: Path) -> None:
    assert render(etc, "nameserver 127.0.0.1\n") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


@pytest.mark.parametrize(
    ("ipv6", "kept"), [(False, "nameserver 9.9.9.9\n"), (True, "nameserver 2620:fe::fe\nnameserver 9.9.9.9\n")]
)
def test_ipv6_servers_need_ipv6_in_the_container(etc: Path, ipv6: bool, kept: str) -> None:
    assert render(etc, "nameserver 2620:fe::fe\nnameserver 9.9.9.9\n", ipv6=ipv6) == kept


def test_systemds_stub_is_replaced_by_the_servers_behind_it(etc: Path) -> None:
    etc.with_name("upstream").write_text("nameserver 10.0.0.53\nsearch lan\n")
    assert render(etc, "nameserver 127.0.0.53\noptions edns0\n") == "nameserver 10.0.0.53\nsearch lan\n"


def test_each_dns_option_replaces_its_own_part_only(etc: Path) -> None:
    text = "nameserver 9.9.9.9\nsearch lan\noptions ndots:2\n"
    assert render(etc, text, servers=["1.2.3.4"]) == "nameserver 1.2.3.4\nsearch lan\noptions ndots:2\n"
    assert render(etc, text, search=["."]) == "nameserver 9.9.9.9\noptions ndots:2\n"
    assert render(etc, text, options=["timeout:1"]) == "nameserver 9.9.9.9\nsearch lan\noptions timeout:1\n"


def test_the_hosts_network_shows_the_hosts_file_as_it_is(etc: Path) -> None:
    text = "# mine\nnameserver 127.0.0.53\n"
    assert render(etc, text, host_network=True) == text
