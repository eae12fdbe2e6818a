"""The policies and the source expressions, without a server or a database."""

import pytest

from proxyhealth import middleware
from proxyhealth.middleware import HEADERS, sources_of, with_sources
from tests.support.csp import OURS, extended_policy, status_of_host


@pytest.fixture
def paris(monkeypatch):
    """A snapshot with one proxy."""
    status = status_of_host("paris.example.com")
    statuses = {status.proxy.id: status}
    monkeypatch.setattr(middleware.health, "health_status", lambda: statuses)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("connect-src 'self'", "connect-src 'self' O"),
        ("connect-src 'self';", "connect-src 'self' O;"),
        (
            "connect-src 'self' https://a.example ; img-src *",
            "connect-src 'self' https://a.example  O; img-src *",
        ),
        ("img-src *;connect-src 'self';font-src *", "img-src *;connect-src 'self' O;font-src *"),
        ("default-src 'none'; connect-src 'self'", "default-src 'none'; connect-src 'self' O"),
        ("connect-src 'self'; default-src 'none'", "connect-src 'self' O; default-src 'none'"),
        # 'none' is replaced if it is alone.
        ("connect-src 'none'", "connect-src O"),
        ("connect-src  'NONE' ; img-src *", "connect-src O; img-src *"),
        ("connect-src", "connect-src O"),
        ("connect-src; img-src *", "connect-src O; img-src *"),
        ("connect-src 'none' https://a.example", "connect-src 'none' https://a.example O"),
        # Without a connect-src, default-src counts.
        ("default-src 'self'", "default-src 'self'; connect-src 'self' O"),
        ("default-src 'self';", "default-src 'self'; connect-src 'self' O;"),
        ("default-src 'none'; img-src *", "default-src 'none'; connect-src O; img-src *"),
        ("default-src; img-src *", "default-src; connect-src O; img-src *"),
        (
            "img-src *; default-src 'self' a.b;;",
            "img-src *; default-src 'self' a.b; connect-src 'self' a.b O;;",
        ),
        # Names in any case, and white space of any kind.
        ("Connect-SRC 'self'", "Connect-SRC 'self' O"),
        ("DEFAULT-src 'self'", "DEFAULT-src 'self'; connect-src 'self' O"),
        (" ;\t; connect-src\t'self'\t;", " ;\t; connect-src\t'self'\t O;"),
        # The first of a repeated directive counts.
        ("connect-src a.b; connect-src c.d", "connect-src a.b O; connect-src c.d"),
        ("default-src a.b; default-src c.d", "default-src a.b; connect-src a.b O; default-src c.d"),
        # Other directives and values with similar names.
        ("x-connect-src a.b; connect-srcs a.b; img-src connect-src", None),
        ("connect-src-elem a.b; report-uri /default-src", None),
        ("connect-src\xa0a.b", None),
        # Nothing restricts connections.
        ("script-src 'self'; frame-ancestors 'none'", None),
        ("upgrade-insecure-requests", None),
        ("", None),
        (" ; ", None),
        # Several policies in one header.
        (
            "connect-src a.b, default-src 'self'",
            "connect-src a.b O, default-src 'self'; connect-src 'self' O",
        ),
        ("img-src *,connect-src 'none' ,", "img-src *,connect-src O,"),
        (
            "default-src 'self', connect-src a.b",
            "default-src 'self'; connect-src 'self' O, connect-src a.b O",
        ),
        # Other sources and directives stay.
        (
            "default-src 'self' 'nonce-A+/='; img-src 'sha256-xyz='",
            "default-src 'self' 'nonce-A+/='; connect-src 'self' 'nonce-A+/=' O; img-src 'sha256-xyz='",
        ),
        ("connect-src 'self' é; img-src é", "connect-src 'self' é O; img-src é"),
    ],
)
@pytest.mark.parametrize("name", HEADERS)
def test_policy__gets_the_sources(paris, name, policy, expected):
    assert extended_policy(policy, name) == (policy if expected is None else expected.replace("O", OURS))


def test_policy__hostile_text_takes_linear_time():
    for policy in (";" * 100_000, "; " * 100_000, " " * 100_000, ";connect-src" * 10_000, "," * 10_000):
        assert with_sources(policy, OURS)


@pytest.mark.parametrize(
    ("url", "schemes"),
    [
        ("https://a.example", "https wss"),
        ("http://a.example", "https wss http ws"),
        ("HTTP://a.example", "https wss http ws"),
        ("httpx://a.example", "https wss"),
        ("", "https wss"),
        (None, "https wss"),
    ],
)
def test_sources_of__schemes_of_a_url(url, schemes):
    status = status_of_host("a.example", url)
    assert sources_of([status]) == [f"{scheme}://a.example" for scheme in schemes.split()]


def test_sources_of__host_with_two_schemes():
    statuses = [
        status_of_host("a.example"),
        status_of_host("a.example", "http://a.example"),
        status_of_host("a.example"),
    ]
    assert sources_of(statuses) == [
        "https://a.example",
        "wss://a.example",
        "http://a.example",
        "ws://a.example",
    ]


@pytest.mark.parametrize(
    "host", ["a", "a.example", "A.Example:8443", "xn--bcher-kva.example", "a.example.:1", "127.0.0.1:65535"]
)
def test_sources_of__valid_hosts(host):
    assert sources_of([status_of_host(host)]) == [f"https://{host}", f"wss://{host}"]


@pytest.mark.parametrize(
    "host",
    [
        "",
        "[::1]",
        "[2001:db8::1]:8443",
        "a_b.example",
        "*",
        "*.example",
        "a.example:*",
        "a.example:",
        "a.example:123456",
        "a..example",
        ".example",
        "a.example; script-src *",
        "a.example;script-src",
        "a.example, default-src *",
        "a.example *",
        "a.example\n",
        "a.example\r\nSet-Cookie: x=y",
        "a.example\tb",
        "a.example/path",
        "user@a.example",
        "a.example'unsafe-inline'",
        "'self'",
        "bücher.example",
        "a.example:١",
        "ſ.example",
        "a\0",
        "\ud800",
        None,
        7,
        ["a.example"],
    ],
)
def test_sources_of__other_hosts_are_left_out(host):
    assert sources_of([status_of_host(host, "https://a.example"), status_of_host("b.example")]) == [
        "https://b.example",
        "wss://b.example",
    ]
