from __future__ import annotations

import json
from pathlib import Path

import pytest
import trustme

from proxyhealth.statuses import Status
from tests.probing.asking import (
    CONNECT,
    DOWN,
    OK,
    PROTOCOL,
    TLS,
    Configure,
    ask,
    led_to,
    verdict,
)
from tests.support import servers
from tests.support.servers import (
    Server,
    redirect,
    report,
    response,
    send,
)

# Redirects.


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
def test_probe__follows_redirects_with_a_warning(status: str) -> None:
    with (
        Server(send(report(warnings=["own"])), host="127.0.0.2") as there,
        Server(send(redirect(f"{there.url}/report", status))) as here,
    ):
        result = ask(here)
    assert verdict(result) == OK
    assert result.report.warnings == (led_to(f"{there.url}/report"), "own")
    assert result.proxy_host == here.netloc
    assert there.paths == ["/report"]
    assert f"\r\nHost: {there.netloc}\r\n".encode() in there.requests[0]


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/x", "/x"),
        ("x", "/x"),
        ("./x/../y", "/y"),
        ("?a=b", "/healthz-report?a=b"),
        ("/x?token=hunter2", "/x?token=hunter2"),
        ("/x#top", "/x"),
        ("/a b", "/a%20b"),
        ("/\xc3\xa9", "/%C3%A9"),
        ("/\xc3\xa0", "/%C3%A0"),  # ends with a byte that is white space in Latin-1
        ("/\xc3\x85", "/%C3%85"),
        ("/%2e%2E/", None),
        ("//{netloc}/x", "/x"),
        ("http://{netloc}", "/"),
        ("HTTP://{netloc}/x", "/x"),
        ("  /x  ", "/x"),
    ],
)
def test_probe__follows_every_form_of_a_location(location: str, path: str | None) -> None:
    with Server(lambda sock: script(sock)) as server:
        script = servers.sequence(send(redirect(location.format(netloc=server.netloc))), send(report()))
        result = ask(server)
    assert verdict(result) == OK
    assert len(server.paths) == 2
    if path is not None:
        assert server.paths[1] == path
    assert "hunter2" not in repr(result.report)


def test_probe__follows_exactly_four_redirects() -> None:
    hops = [send(redirect(f"/{i}")) for i in range(1, 5)]
    with Server(servers.sequence(*hops, send(report()))) as server:
        result = ask(server)
    assert verdict(result) == OK
    assert server.paths == ["/healthz-report", *(f"/{i}" for i in range(1, 5))]
    assert result.report.warnings == (led_to(f"{server.url}/4"),)


@pytest.mark.parametrize("location", ["/healthz-report", "/other"])
def test_probe__gives_up_after_four_redirects(location: str) -> None:
    with Server(send(redirect(location))) as server:
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors == (f"{DOWN}more than 4 redirects",)
    assert result.report.warnings == (led_to(f"{server.url}{location}"),)
    assert server.connections == 5


def test_probe__follows_a_redirect_to_https(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    with (
        Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as there,
        Server(send(redirect(f"{there.url}/healthz-report"))) as here,
    ):
        result = ask(here)
    assert verdict(result) == OK
    assert result.report.warnings == (led_to(f"{there.url}/healthz-report"),)


def test_probe__verifies_certificates_after_redirects(ca: trustme.CA) -> None:
    with Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as there:
        with Server(send(redirect(there.url))) as here:
            assert verdict(ask(here)) == TLS
        assert there.requests == []


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("file:///etc/passwd", "it must begin with http:// or https://"),
        ("ftp://paris.example/", "it must begin with http:// or https://"),
        ("javascript:alert(1)", "it must begin with http:// or https://"),
        ("data:application/json,{}", "it must begin with http:// or https://"),
        ("https://", "it has no host"),
        ("https:///x", "it has no host"),
        ("http:/x", "it has no host"),
        ("HTTP:x", "it has no host"),
        ("///127.0.0.1/x", "it has no host"),
        ("//", "it has no host"),
        ("//?x", "it has no host"),
        ("//#x", "it has no host"),
        ("/x\ty", "it contains a control character or a backslash"),
        ("/x\x7f", "it contains a control character or a backslash"),
        ("/\x1b[31m", "it contains a control character or a backslash"),
        ("/\\127.0.0.1/x", "it contains a control character or a backslash"),
        ("http://[::1", "its host cannot be read"),
        ("http://me:hunter2@paris.example/", "it must not contain a user name or a password"),
        ("http://hunter2@[::1/", "its host cannot be read"),
        ("http://me:hunter2@exa\u2100mple.com/", "its host cannot be read"),
        ("http://paris.example:0/", "its port must be a number from 1 to 65535"),
        ("http://pa ris.example/", "it contains a space, a control character or a backslash"),
        ("http://2130706433/", "'2130706433' is not an IPv4 address"),
    ],
)
def test_probe__redirected_to_an_unusable_url(location: str, why: str) -> None:
    with Server(send(redirect(location.encode().decode("latin-1")))) as server:
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors == (f"{DOWN}redirected to a URL that cannot be used: {why}",)
    assert server.connections == 1


def test_probe__redirected_to_bytes_that_are_not_utf_8() -> None:
    with Server(send(redirect("/\xe9"))) as server:
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors == (f"{DOWN}redirected to a URL that cannot be used: it is not UTF-8",)


@pytest.mark.parametrize("location", ["/x?token=hunter2", "/y?token=hunter2#hunter2"])
@pytest.mark.parametrize(
    "end", [send(b"nonsense"), send(response("<html>")), send(b""), send(response(status="500 Oops"))]
)
def test_probe__never_shows_the_query_of_a_redirect(
    location: str, end: servers.Script, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(servers.sequence(send(redirect(location)), end)) as server:
        result = ask(server)
    assert result.status is not Status.OK
    assert result.report.warnings == (led_to(f"{server.url}{location[:2]}"),)
    assert "hunter2" not in repr(result) + caplog.text
    assert "hunter2" in server.paths[1]


def test_probe__redirect_warning_is_cleaned_and_shortened() -> None:
    with Server(servers.sequence(send(redirect("/\xe2\x80\xae" + "x" * 1500)), send(report()))) as server:
        warning = ask(server).report.warnings[0]
    assert warning.startswith(f"redirected to {server.url}/xxx")
    assert "x…; change the proxy's URL" in warning
    assert len(warning) < 300


def test_probe__redirect_warning_counts_towards_the_limit() -> None:
    many = response(json.dumps({"warnings": ["w"] * 100}))
    with Server(servers.sequence(send(redirect("/x")), send(many))) as server:
        warnings = ask(server).report.warnings
    assert len(warnings) == 50
    assert warnings[0] == led_to(f"{server.url}/x")
    assert warnings[-1] == "… and 52 more"


def test_probe__redirected_to_a_refusing_port() -> None:
    with servers.refusing() as port, Server(send(redirect(f"http://127.0.0.1:{port}/x"))) as server:
        result = ask(server)
    assert verdict(result) == CONNECT
    assert result.report.errors == (f"{DOWN}Connection refused while connecting to 127.0.0.1 port {port}",)
    assert result.report.warnings == (led_to(f"http://127.0.0.1:{port}/x"),)
