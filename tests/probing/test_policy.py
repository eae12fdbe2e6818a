"""Tests of the address policy: redirects that lead further in, cloud metadata, and IPv4 inside IPv6."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxyhealth.checks import check_deployment
from proxyhealth.conf import LINK_LOCAL_NETWORKS, METADATA_NETWORKS, conf
from proxyhealth.probing.policy import AddressPolicy
from proxyhealth.probing.probe import is_reachable
from tests.probing.asking import BLOCKED, OK, PROTOCOL, Configure, ask, verdict
from tests.support import servers
from tests.support.servers import Script, Server, redirect, report, response, send

PUBLIC, OTHER_PUBLIC = "11.0.0.1", "12.0.0.1"

Host = Callable[..., Server]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``host(address, script)`` starts a server of this machine to which connections to ``address`` lead."""
    machines: dict[tuple[str, int], tuple[str, int]] = {}
    connect = socket.socket.connect

    def translate(sock: socket.socket, address: Any) -> None:
        connect(sock, machines.get(address[:2], address))

    monkeypatch.setattr(socket.socket, "connect", translate)
    with ExitStack() as stack:

        def start(address: str, script: Script, **options: Any) -> Server:
            server = stack.enter_context(Server(script, **options))
            machines[address, server.port] = (server.host, server.port)
            server.host = address
            return server

        yield start


def blocked(source: str, target: str, name: str) -> str:
    return (
        f"address not allowed: redirected from a {source} to a {target} network, {name}; "
        "if that is intended, change the proxy's URL to the target, or name the network in ADDRESS_ALLOW"
    )


# Redirects.


@pytest.mark.parametrize(
    ("source", "target", "labels"),
    [
        (PUBLIC, "127.0.0.1", ("public", "loopback")),
        (PUBLIC, "0.0.0.0", ("public", "loopback")),
        (PUBLIC, "10.0.0.1", ("public", "private")),
        (PUBLIC, "100.64.0.1", ("public", "private")),
        (PUBLIC, "198.18.0.1", ("public", "special-purpose")),
        ("198.18.0.1", "192.168.0.1", ("special-purpose", "private")),
        ("10.0.0.1", "169.254.0.1", ("private", "link-local or metadata")),
        ("10.0.0.1", "127.0.0.1", ("private", "loopback")),
    ],
)
def test_redirect__further_in_is_blocked(
    source: str, target: str, labels: tuple[str, str], host: Host, configure: Configure
) -> None:
    configure(ADDRESS_DENY=[])
    inner = host(target, send(response("secret", status="500 Oops")))
    outer = host(source, send(redirect(f"{inner.url}/api/delete?all")))
    result = ask(outer)
    assert verdict(result) == BLOCKED
    assert result.report.errors == (blocked(*labels, target),)
    assert result.latency is None
    assert (outer.connections, inner.connections) == (1, 0)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (PUBLIC, OTHER_PUBLIC),
        ("10.0.0.1", "10.0.0.2"),
        ("10.0.0.1", "192.168.0.1"),
        ("10.0.0.1", PUBLIC),
        ("198.18.0.1", "198.18.0.2"),
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "10.0.0.1"),
    ],
)
def test_redirect__along_or_outward_is_followed(source: str, target: str, host: Host) -> None:
    there = host(target, send(report()))
    assert verdict(ask(host(source, send(redirect(there.url))))) == OK


def test_redirect__to_the_own_https_in_a_private_network(
    host: Host, ca: trustme.CA, ca_file: Path, configure: Configure
) -> None:
    configure(CA_BUNDLE=ca_file)
    secure = host("10.0.0.1", send(report()), tls=servers.server_context(ca, "10.0.0.1"))
    assert verdict(ask(host("10.0.0.1", send(redirect(f"{secure.url}/healthz-report"))))) == OK


@pytest.mark.parametrize(
    "chain",
    [
        (PUBLIC, OTHER_PUBLIC, "10.0.0.1"),
        ("10.0.0.1", PUBLIC, "10.0.0.1"),  # an outsider chose the last address
        ("127.0.0.1", "10.0.0.1", "127.0.0.1"),
    ],
)
def test_redirect__the_outermost_hop_counts(chain: tuple[str, str, str], host: Host) -> None:
    inner = host(chain[2], send(report()))
    middle = host(chain[1], send(redirect(inner.url)))
    assert verdict(ask(host(chain[0], send(redirect(middle.url))))) == BLOCKED
    assert (middle.connections, inner.connections) == (1, 0)


def test_redirect__to_a_name_counts_by_its_addresses(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = host("127.0.0.1", send(report()))
    there = host(OTHER_PUBLIC, send(report()))
    outer = host(PUBLIC, send(redirect("http://paris.example/x")))
    addresses = ("127.0.0.1", inner.port), ("127.0.0.2", 1)
    monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
    result = ask(outer)
    assert verdict(result) == BLOCKED
    name = "paris.example (127.0.0.1, 127.0.0.2)"
    assert result.report.errors == (blocked("public", "loopback", name),)
    monkeypatch.setattr(
        socket, "getaddrinfo", servers.resolver(*addresses, (OTHER_PUBLIC, there.port), addresses[1])
    )
    assert verdict(ask(outer)) == OK
    assert inner.connections == 0


def test_redirect__the_address_that_was_connected_to_counts(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = host("127.0.0.1", send(report()))
    outer = host(PUBLIC, send(redirect(inner.url)))
    with servers.refusing() as port:
        # Of the first name, the loopback address refuses the connection.
        addresses = ("127.0.0.1", port), (PUBLIC, outer.port)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        assert verdict(ask("http://paris.example")) == BLOCKED
    assert inner.connections == 0


def test_redirect__to_the_same_name_with_another_address(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = host("10.0.0.1", send(report()))
    outer = host(PUBLIC, send(redirect("/again")))
    answers = [(PUBLIC, outer.port), ("10.0.0.1", inner.port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: servers.resolver(answers.pop(0))(*args[:2]))
    assert verdict(ask("http://paris.example")) == BLOCKED
    assert answers == []
    assert inner.connections == 0


@pytest.mark.parametrize(
    ("allow", "expected"),
    [
        ([PUBLIC, "127.0.0.0/8"], OK),
        ([PUBLIC, "127.0.0.1"], OK),
        ([PUBLIC, "::ffff:127.0.0.1"], OK),
        (["0.0.0.0/0", "127.0.0.1"], OK),
        (["0.0.0.0/0"], BLOCKED),  # it names no network
        (["11.0.0.0/8", "112.0.0.0/4"], BLOCKED),
        ([PUBLIC], BLOCKED),
        ([PUBLIC, "127.0.0.2"], BLOCKED),
    ],
)
def test_redirect__further_in_needs_the_network_in_address_allow(
    allow: list[str], expected: Any, host: Host, configure: Configure
) -> None:
    configure(ADDRESS_ALLOW=allow)
    inner = host("127.0.0.1", send(report()))
    assert verdict(ask(host(PUBLIC, send(redirect(inner.url))))) == expected
    assert inner.connections == (expected == OK)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("①②⑦.0.0.1 127。0。0。1 localhost [::ffff:7f00:1] [::127.0.0.1] [::]", BLOCKED),
        ("127.1 0x7f.1 0177.0.0.1 2130706433 127.0.0.1. 127.0.0.0x1 %31%32%37.0.0.1 [::1%25lo]", PROTOCOL),
    ],
    ids=["addresses", "no addresses"],
)
def test_redirect__other_forms_of_loopback_are_refused(targets: str, expected: Any, host: Host) -> None:
    for target in targets.split():
        location = f"http://{target}:1/".encode().decode("latin-1")
        assert verdict(ask(host(PUBLIC, send(redirect(location))))) == expected, target


def test_canary__redirects_are_not_followed(host: Host) -> None:
    inner = host("127.0.0.1", send(report()))
    assert is_reachable(host(PUBLIC, send(redirect(inner.url))).url)
    assert inner.connections == 0


# Rings. Each address is further in than those of the lines before it.

RINGS = [
    "11.0.0.1 2600::1 64:ff9b::b00:1 ::ffff:11.0.0.1 2002:b00:1::1",
    (
        "192.0.2.1 198.19.0.1 203.0.113.1 240.0.0.1 255.255.255.255 224.0.0.1 192.88.99.1 100::1 2001:db8::1 "
        "3fff::1 5f00::1 ff02::1 4000::1 2001:2::1"
    ),
    (
        "10.0.0.1 172.31.0.1 192.168.0.1 100.127.0.1 192.0.0.8 fc00::1 fd12::1 fec0::1 ::ffff:10.0.0.1 "
        "64:ff9b::a00:1"
    ),
    (
        "169.254.0.1 169.254.169.254 fe80::1 fe80::1%1 168.63.129.16 100.100.100.200 192.0.0.192 "
        "fd00:ec2::254 fd20:ce::254 64:ff9b::a9fe:a9fe"
    ),
    "127.0.0.1 127.1.2.3 0.0.0.0 ::1 :: ::ffff:127.0.0.1 ::7f00:1 ::ffff:0:7f00:1",
]


def test_rings__of_every_special_network() -> None:
    for ring, sources in enumerate(RINGS):
        for source in sources.split():
            policy = AddressPolicy().after(ipaddress.ip_address(source))
            for place, targets in enumerate(RINGS):
                for target in targets.split():
                    assert policy.permits(ipaddress.ip_address(target)) is (place <= ring), (source, target)


@pytest.mark.parametrize(
    "address",
    [
        "2002:a00:1::1",
        "2001:0:a00:1::1",
        "2001:0:b00:1:0:0:f5ff:fffe",
        "2600::5efe:a00:1",
        "2600::200:5efe:a00:1",
    ],
)
def test_rings__tunnels_count_as_both_of_their_ends(address: str) -> None:
    """A tunnel through a private network is further in as a target, but not as the source of a redirect."""
    tunnel = ipaddress.ip_address(address)
    private = ipaddress.ip_address("10.0.0.1")
    assert AddressPolicy().after(private).permits(tunnel)
    assert not AddressPolicy().after(ipaddress.ip_address(PUBLIC)).permits(tunnel)
    assert not AddressPolicy().after(tunnel).permits(private)


# Cloud metadata.


@pytest.mark.parametrize(
    "network", ["169.254.169.254", "169.254.170.2", "fe80::a9fe:a9fe", *METADATA_NETWORKS]
)
def test_metadata__denied_by_default(network: str) -> None:
    address = ipaddress.ip_network(network)[0]
    assert verdict(ask(f"http://[{address}]" if address.version == 6 else f"http://{address}")) == BLOCKED
    if isinstance(address, ipaddress.IPv4Address):
        for form in (f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}", f"::ffff:0:{address}"):
            assert not AddressPolicy(conf.ADDRESS_DENY).permits(ipaddress.ip_address(form))


def test_metadata__large_networks_do_not_allow_it() -> None:
    everything = ["0.0.0.0/0", "::/0", "fd00::/8"]
    for address in (
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "::ffff:168.63.129.16",
    ):
        assert not permits(address, allow=everything)
        assert permits(
            address,
            allow=[*everything, "169.254.0.0/16", "100.100.100.200", "168.63.129.16", "fd00:ec2::/32"],
        )
    assert permits("127.0.0.1", allow=everything)


def test_metadata__a_list_without_it_is_reported_in_a_deployment(configure: Configure) -> None:
    def reported() -> list[str]:
        return [message.msg for message in check_deployment() if message.id == "proxyhealth.W005"]

    assert reported() == []
    configure(ADDRESS_DENY=["10.0.0.0/8", "169.254.0.0/16", "fe80::/10", "fd00::/8", "160.0.0.0/3"])
    assert reported() == [
        (
            "Probes may connect to metadata services of clouds: "
            "ADDRESS_DENY omits 100.100.100.200/32, 192.0.0.192/32."
        )
    ]
    configure(ADDRESS_DENY=[*LINK_LOCAL_NETWORKS, *METADATA_NETWORKS])
    assert reported() == []
    configure(ADDRESS_DENY=[], ADDRESS_ALLOW=["10.0.0.0/8"])
    assert reported() == []


# IPv4 inside IPv6.

SAME_MACHINE = [
    "::ffff:10.0.0.1",  # mapped
    "::10.0.0.1",  # compatible
    "::ffff:0:10.0.0.1",  # translated
    "64:ff9b::10.0.0.1",  # NAT64
    "64:ff9b:1::10.0.0.1",  # NAT64 of the network itself, with a prefix of 96, 56, and 48 bits
    "64:ff9b:1:a:0:1::",
    "64:ff9b:1:a00:0:100::",
]
TUNNELS = [
    "2002:a00:1::bad",  # 6to4
    "2001:0:a00:1::f4ff:fffe",  # Teredo: the server
    "2001:0:b00:1::f5ff:fffe",  # Teredo: the client
    "2600::5efe:10.0.0.1",  # ISATAP
    "2600::200:5efe:10.0.0.1",
]


def permits(address: str, **networks: list[str]) -> bool:
    policy = AddressPolicy(
        **{name: tuple(map(ipaddress.ip_network, texts)) for name, texts in networks.items()}
    )
    return policy.permits(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", [*SAME_MACHINE, *TUNNELS, "fe80::5efe:10.0.0.1", "64:ff9b:1:0:a:0:100:0"])
def test_embedded__denied_as_ipv4_and_as_ipv6(address: str) -> None:
    assert not permits(address, deny=["10.0.0.1"])
    assert not permits(address, deny=[address])
    assert permits(address, deny=["10.0.0.2", "127.0.0.0/8"])


@pytest.mark.parametrize("address", SAME_MACHINE)
def test_embedded__the_same_machine_is_allowed_as_ipv4(address: str) -> None:
    assert permits(address, allow=["10.0.0.1"])
    assert not permits(address, allow=["10.0.0.2"])
    assert not permits(address, allow=["::/0"])  # nowhere else: that is not IPv6


@pytest.mark.parametrize("address", TUNNELS)
def test_embedded__a_tunnel_needs_both_ends_allowed(address: str) -> None:
    assert not permits(address, allow=["10.0.0.0/8", "11.0.0.1"])
    assert not permits(address, allow=["::/0", "11.0.0.1"])
    assert permits(address, allow=["::/0", "10.0.0.0/8", "11.0.0.1", "127.0.0.1"])


@pytest.mark.parametrize("network", ["::ffff:10.0.0.0/104", "::ffff:0:10.0.0.0/104", "64:ff9b::10.0.0.0/104"])
def test_embedded__networks_count_as_ipv4(network: str, configure: Configure) -> None:
    configure(ADDRESS_DENY=[network, "::1"])
    assert list(map(str, conf.ADDRESS_DENY)) == ["10.0.0.0/8", "::1/128"]


def test_embedded__unspecified_addresses_are_loopback() -> None:
    for address in ("0.0.0.0", "::ffff:0.0.0.0"):
        assert permits(address, allow=["127.0.0.1"])
        assert not permits(address, allow=["::1"])
    assert permits("::", allow=["::1"])
    assert not permits("::", allow=["127.0.0.1"])
