from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError

from proxyhealth.validators import ProxyURL, parse_proxy_url, validate_proxy_name, validate_proxy_url

PORT = "its port must be a number from 1 to 65535"
SCHEME = "it must begin with http:// or https://"
USER = "it must not contain a user name or a password"
QUERY = "it must not contain a query (?) or a fragment (#)"
SPACE = "it contains a space, a control character or a backslash"
HOST = "it has no host"
PATH = "its path contains a character that must be percent-encoded"
UNREADABLE = "its host cannot be read"

GOOD = {
    "http://example.com": ProxyURL("http", "example.com", 80, "example.com", ""),
    "https://example.com": ProxyURL("https", "example.com", 443, "example.com", ""),
    "http://example.com/": ProxyURL("http", "example.com", 80, "example.com", "/"),
    "HTTPS://Example.COM/": ProxyURL("https", "example.com", 443, "example.com", "/"),
    "http://example.com:80": ProxyURL("http", "example.com", 80, "example.com:80", ""),
    "http://example.com:8080/": ProxyURL("http", "example.com", 8080, "example.com:8080", "/"),
    "http://example.com:1": ProxyURL("http", "example.com", 1, "example.com:1", ""),
    "http://example.com:65535": ProxyURL("http", "example.com", 65535, "example.com:65535", ""),
    "http://example.com.": ProxyURL("http", "example.com.", 80, "example.com.", ""),
    "http://localhost:3000": ProxyURL("http", "localhost", 3000, "localhost:3000", ""),
    "http://under_score.example": ProxyURL("http", "under_score.example", 80, "under_score.example", ""),
    "http://1.example": ProxyURL("http", "1.example", 80, "1.example", ""),
    "http://127.0.0.1:8000": ProxyURL("http", "127.0.0.1", 8000, "127.0.0.1:8000", ""),
    "http://[::1]": ProxyURL("http", "::1", 80, "[::1]", ""),
    "https://[::1]:8443/": ProxyURL("https", "::1", 8443, "[::1]:8443", "/"),
    "http://[2001:DB8:0:0::1]:80": ProxyURL("http", "2001:db8::1", 80, "[2001:db8::1]:80", ""),
    "http://[::ffff:10.0.0.1]": ProxyURL("http", "::ffff:10.0.0.1", 80, "[::ffff:10.0.0.1]", ""),
    "http://bücher.example": ProxyURL("http", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", ""),
    "http://BÜCHER.example:81": ProxyURL("http", "xn--bcher-kva.example", 81, "xn--bcher-kva.example:81", ""),
    "http://straße.example": ProxyURL("http", "xn--strae-oqa.example", 80, "xn--strae-oqa.example", ""),
    "http://例え。テスト": ProxyURL("http", "xn--r8jz45g.xn--zckzah", 80, "xn--r8jz45g.xn--zckzah", ""),
    "http://１２７.0.0.1": ProxyURL("http", "127.0.0.1", 80, "127.0.0.1", ""),
    f"http://{'a' * 63}.example": ProxyURL("http", f"{'a' * 63}.example", 80, f"{'a' * 63}.example", ""),
}

BAD = {
    "": SCHEME,
    "example.com": SCHEME,
    "//example.com": SCHEME,
    "ftp://example.com": SCHEME,
    "file:///etc/passwd": SCHEME,
    "javascript:alert(1)": SCHEME,
    "httpx://example.com": SCHEME,
    "unix:///run/x.sock": SCHEME,
    "http:": HOST,
    "http://": HOST,
    "http:///": HOST,
    "http:///path": HOST,
    "http:/example.com": HOST,
    "http:example.com": HOST,
    "http://:80": HOST,
    "http://?": QUERY,
    "http://example.com?": QUERY,
    "http://example.com/?a=b": QUERY,
    "http://example.com#": QUERY,
    "http://example.com/#top": QUERY,
    "http://user@example.com": USER,
    "http://user:secret@example.com": USER,
    "http://@example.com": USER,
    "http://:@example.com": USER,
    "http://user:secret@exa℀mple.com": UNREADABLE,
    "http://[::1": UNREADABLE,
    "http://::1]": UNREADABLE,
    "http://[[::1]]": UNREADABLE,
    "http://[::1]x": UNREADABLE,
    "http://[::1]x:80": UNREADABLE,
    "http://example.com[::1]": UNREADABLE,
    "http://[::1][::2]": UNREADABLE,
    "http://[]": UNREADABLE,
    "http://[example.com]": UNREADABLE,
    "http://[1.2.3.4]": UNREADABLE,
    "http://[v1.a]": "'v1.a' is not an IPv6 address",
    "http://::1": HOST,
    "http://[::1]:": PORT,
    "http://[::1]:0": PORT,
    "http://[::1]:65536": PORT,
    "http://example.com:": PORT,
    "http://example.com:/": PORT,
    "http://example.com:0": PORT,
    "http://example.com:65536": PORT,
    "http://example.com:-1": PORT,
    "http://example.com:+80": PORT,
    "http://example.com:http": PORT,
    "http://example.com:80:80": PORT,
    "http://example.com:8_0": PORT,
    "http://example.com:٨٠": PORT,
    f"http://example.com:{'9' * 1500}": PORT,
    f"http://example.com/{'x' * 10_000}": "it is longer than 2,000 characters",
    f"http://{'x' * 10_000}": "it is longer than 2,000 characters",
    "http://e" + "\u0301\u0327" * 5_000 + ".example": "it is longer than 2,000 characters",
    " http://example.com": SPACE,
    "http://example.com ": SPACE,
    "http://exa mple.com": SPACE,
    "http://example.com\n": SPACE,
    "ht\ntp://example.com": SPACE,
    "http://exam\tple.com": SPACE,
    "http://example.com\x00": SPACE,
    "http://example.com\x7f": SPACE,
    "http://example.com\x85": SPACE,
    "http://example.com\u2028": SPACE,
    "http://example.com\u00a0": SPACE,
    "http://example.com\\": SPACE,
    "http:\\\\example.com": SPACE,
    "http://example.com\u200b": SPACE,
    "http://example.com/\u202e": SPACE,
    "http://example.com/é": PATH,
    'http://example.com/"><script>': PATH,
    "http://example.com/{x}": PATH,
    "http://127.1": "'127.1' is not an IPv4 address",
    "http://2130706433": "'2130706433' is not an IPv4 address",
    "http://0x7f000001": "'0x7f000001' is not an IPv4 address",
    "http://0x7f.0.0.0x1": "'0x7f.0.0.0x1' is not an IPv4 address",
    "http://0177.0.0.1": "'0177.0.0.1' is not an IPv4 address",
    "http://127.0.0.256": "'127.0.0.256' is not an IPv4 address",
    "http://127.0.0.1.": "'127.0.0.1.' is not an IPv4 address",
    "http://1.2.3.4.5": "'1.2.3.4.5' is not an IPv4 address",
    "http://[fe80::1%25eth0]": "'fe80::1%25eth0' is not an IPv6 address",
    "http://[::1%lo]": "'::1%lo' is not an IPv6 address",
    "http://.": "'.' is not a host name",
    "http://..": "'..' is not a host name",
    "http://.example.com": "'.example.com' is not a host name",
    "http://example..com": "'example..com' is not a host name",
    "http://-example.com": "'-example.com' is not a host name",
    "http://example-.com": "'example-.com' is not a host name",
    "http://ex%61mple.com": "'ex%61mple.com' is not a host name",
    "http://*.example.com": "'*.example.com' is not a host name",
    "http://exa,mple.com": "'exa,mple.com' is not a host name",
    f"http://{'a' * 64}.com": f"'{'a' * 63}…' is not a host name",
    f"http://{'a.' * 130}com": f"'{('a.' * 130)[:63]}…' is not a host name",
}


@pytest.mark.parametrize(("url", "expected"), GOOD.items())
def test_parse_proxy_url__parts_of_good_urls(url: str, expected: ProxyURL) -> None:
    assert parse_proxy_url(url) == expected


@pytest.mark.parametrize("url", GOOD)
def test_parse_proxy_url__netloc_round_trip(url: str) -> None:
    parsed = parse_proxy_url(url)
    assert parse_proxy_url(f"{parsed.scheme}://{parsed.netloc}{parsed.path}") == parsed


@pytest.mark.parametrize(("url", "message"), BAD.items())
def test_parse_proxy_url__names_the_fault(url: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the whole message is compared
        parse_proxy_url(url)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "url", ["http://☃\u200d.example", "http://a\u0301\u0301\u200c.example", "http://xn--ü.x"]
)
def test_parse_proxy_url__invalid_internationalised_name(url: str) -> None:
    with pytest.raises(ValueError, match=r"^'[^']+' is not an internationalised name: ."):
        parse_proxy_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@example.com",
        "http://hunter2@example.com:80:80",
        "http://user:hunter2@exa℀mple.com",
        "http://user:hunter2@[::1",
        "http://example.com/?token=hunter2",
    ],
)
def test_parse_proxy_url__messages_never_have_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match=r"^it") as caught:
        parse_proxy_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://example.com", "http://example.com"),
        ("http://example.com/", "http://example.com"),
        ("http://example.com//", "http://example.com/"),
        ("http://example.com/a/b", "http://example.com/a/b"),
        ("http://example.com/a/b/", "http://example.com/a/b"),
        ("HTTP://EXAMPLE.com:80/", "http://example.com:80"),
        ("https://[::0001]:444/", "https://[::1]:444"),
    ],
)
def test_proxy_url_base__omits_one_trailing_slash(url: str, base: str) -> None:
    assert parse_proxy_url(url).base == base


@pytest.mark.parametrize("url", GOOD)
def test_validate_proxy_url__accepts_good_urls(url: str) -> None:
    validate_proxy_url(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        *BAD.items(),
        ("http://example.com/path", "it must not contain a path"),
        ("http://example.com//", "it must not contain a path"),
        ("http://example.com/healthz-report", "it must not contain a path"),
    ],
)
def test_validate_proxy_url__names_the_fault(url: str, why: str) -> None:
    with pytest.raises(ValidationError) as caught:
        validate_proxy_url(url)
    assert caught.value.messages == [f"This URL cannot be used: {why}."]
    assert caught.value.code == "invalid_url"


@pytest.mark.parametrize("name", ["primary", "Primary", "PRIMARY"])
def test_validate_proxy_name__refuses_primary(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        validate_proxy_name(name)
    assert caught.value.messages == [f"The name “{name}” is reserved for the control plane itself."]
    assert caught.value.code == "reserved_name"


@pytest.mark.parametrize("name", ["primary-2", "my-primary", "paris", "p", "PRIM"])
def test_validate_proxy_name__accepts_other_names(name: str) -> None:
    validate_proxy_name(name)
