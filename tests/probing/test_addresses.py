from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.probing.asking import (
    BLOCKED,
    OK,
    Configure,
    ask,
    led_to,
    verdict,
)
from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import (
    Server,
    redirect,
    report,
    send,
)

# Refused and permitted addresses.


@pytest.mark.parametrize(
    "options",
    [
        {"ADDRESS_DENY": ["127.0.0.0/8"]},
        {"ADDRESS_DENY": ["10.0.0.0/8", "127.0.0.1/32"]},
        {"ADDRESS_DENY": ["0.0.0.0/0"]},
        {"ADDRESS_ALLOW": ["10.0.0.0/8"]},
        {"ADDRESS_ALLOW": ["127.0.0.2"]},
        {"ADDRESS_ALLOW": ["::1"]},
    ],
)
def test_probe__refuses_addresses(options: dict[str, Any], configure: Configure) -> None:
    configure(**options)
    with Server(send(report())) as server:
        result = ask(server)
    assert verdict(result) == BLOCKED
    assert result.report.errors == ("address not allowed: ADDRESS_DENY or ADDRESS_ALLOW refuses 127.0.0.1",)
    assert result.latency is None
    assert server.connections == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ADDRESS_DENY": []},
        {"ADDRESS_DENY": ["127.0.0.2"]},
        {"ADDRESS_DENY": ["::/0"]},
        {"ADDRESS_ALLOW": ["127.0.0.0/8"]},
        {"ADDRESS_ALLOW": ["127.0.0.0/8"], "ADDRESS_DENY": ["127.0.0.1"]},
        {"ADDRESS_ALLOW": ["10.0.0.0/8", "127.0.0.1"]},
    ],
)
def test_probe__connects_to_permitted_addresses(options: dict[str, Any], configure: Configure) -> None:
    configure(**options)
    with Server(send(report())) as server:
        assert verdict(ask(server)) == OK


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254", "http://[fe80::1]", "http://[::ffff:169.254.169.254]"]
)
def test_probe__refuses_link_local_addresses_by_default(url: str) -> None:
    with at_most(5):
        assert verdict(ask(url)) == BLOCKED


@pytest.mark.skipif(not servers.has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("network", ["127.0.0.0/8", "::ffff:0:0/96", "::ffff:127.0.0.0/104", "::/0"])
def test_probe__refuses_ipv4_mapped_addresses(network: str, configure: Configure) -> None:
    with Server(send(report())) as server:
        url = f"http://[::ffff:127.0.0.1]:{server.port}"
        assert verdict(ask(url)) == OK
        configure(ADDRESS_DENY=[network])
        result = ask(url)
        assert server.connections == 1
    assert verdict(result) == BLOCKED


def test_probe__refuses_unspecified_addresses_as_loopback(configure: Configure) -> None:
    with Server(send(report())) as server:
        assert verdict(ask(f"http://0.0.0.0:{server.port}")) == OK
        configure(ADDRESS_DENY=["127.0.0.0/8"])
        for host in ("0.0.0.0", "[::]", "[::ffff:0.0.0.0]"):
            assert verdict(ask(f"http://{host}:{server.port}")) == BLOCKED
        assert server.connections == 1


def test_probe__refuses_a_name_with_only_refused_addresses(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ADDRESS_DENY=["127.0.0.0/8"])
    with Server(send(report())) as server:
        addresses = ("127.0.0.1", server.port), ("127.0.0.2", server.port), ("127.0.0.1", server.port)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        result = ask("http://paris.example")
        assert server.connections == 0
    assert verdict(result) == BLOCKED
    assert result.report.errors == (
        "address not allowed: ADDRESS_DENY or ADDRESS_ALLOW refuses paris.example (127.0.0.1, 127.0.0.2)",
    )


def test_probe__connects_to_the_permitted_address_of_a_name(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ADDRESS_DENY=["127.0.0.2"])
    with Server(send(report(["wrong"])), host="127.0.0.2") as denied, Server(send(report())) as server:
        addresses = ("127.0.0.2", denied.port), ("127.0.0.1", server.port)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        assert verdict(ask("http://paris.example")) == OK
        assert denied.connections == 0


def test_probe__refuses_addresses_after_redirects(configure: Configure) -> None:
    configure(ADDRESS_DENY=["127.0.0.2"])
    with Server(send(report()), host="127.0.0.2") as denied:
        with Server(send(redirect(f"{denied.url}/x"))) as server:
            result = ask(server)
        assert denied.connections == 0
    assert verdict(result) == BLOCKED
    assert result.report.errors == ("address not allowed: ADDRESS_DENY or ADDRESS_ALLOW refuses 127.0.0.2",)
    assert result.report.warnings == (led_to(f"{denied.url}/x"),)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("64:ff9b::7f00:1", "127.0.0.0/8"),  # NAT64
        ("2002:7f00:1::", "127.0.0.0/8"),  # 6to4
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("64:ff9b::a9fe:a9fe", "169.254.0.0/16"),
    ],
)
def test_probe__refuses_ipv4_addresses_embedded_in_ipv6(
    configure: Configure, address: str, network: str
) -> None:
    configure(ADDRESS_DENY=[network])
    result = ask(f"http://[{address}]:1")
    assert verdict(result) == BLOCKED


def rebinding(good: tuple[str, int], bad: tuple[str, int], looked_up: list[str]) -> servers.Resolver:
    """Return a resolver by which a name has a good address once, and then a bad one."""

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        looked_up.append(host)
        return servers.resolver(good if len(looked_up) == 1 else bad)(host, port)

    return getaddrinfo


def test_probe__refuses_a_name_that_changes_after_a_redirect(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ADDRESS_DENY=["127.0.0.2"])
    looked_up: list[str] = []
    with (
        Server(send(redirect("/again"))) as server,
        Server(send(report()), host="127.0.0.2") as inner,
    ):
        good, bad = ("127.0.0.1", server.port), ("127.0.0.2", inner.port)
        monkeypatch.setattr(socket, "getaddrinfo", rebinding(good, bad, looked_up))
        result = ask("http://paris.example")
        assert inner.connections == 0
    assert verdict(result) == BLOCKED
    assert looked_up == ["paris.example"] * 2, "each connection resolves the name once and uses the result"


def test_probe__refuses_a_name_that_changes_between_probes(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ADDRESS_DENY=["127.0.0.2"])
    with Server(send(report())) as server:
        resolver = rebinding(("127.0.0.1", server.port), ("127.0.0.2", server.port), [])
        monkeypatch.setattr(socket, "getaddrinfo", resolver)
        assert verdict(ask("http://paris.example")) == OK
        assert verdict(ask("http://paris.example")) == BLOCKED
        assert server.connections == 1
