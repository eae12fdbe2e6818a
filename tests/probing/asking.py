"""Helpers of the tests of the probe: probing with limits, and names of expected results."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import idna
from django.core.exceptions import ImproperlyConfigured

from proxyhealth.conf import conf
from proxyhealth.probing.probe import probe
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status
from tests.support.machine import at_most, stood_still
from tests.support.servers import Server, chunked, flood

Configure = Callable[..., None]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
MOMENT = datetime(2024, 2, 29, tzinfo=UTC)

DOWN = "request to proxy failed: "
BAD = "failed to decode health report: "
HINT = "A page that is not JSON usually means that the URL is not that of a workspace proxy"
WAITING = "while waiting for 127.0.0.1 to answer"

OK = (Status.OK, Reason.NONE)
BAD_URL = (Status.UNHEALTHY, Reason.INVALID_URL)
BLOCKED = (Status.UNHEALTHY, Reason.BLOCKED)
DNS = (Status.UNREACHABLE, Reason.DNS)
CONNECT = (Status.UNREACHABLE, Reason.CONNECT)
TLS = (Status.UNREACHABLE, Reason.TLS)
SILENT = (Status.UNREACHABLE, Reason.TIMEOUT)
PROTOCOL = (Status.UNREACHABLE, Reason.PROTOCOL)
STATUS_CODE = (Status.UNHEALTHY, Reason.STATUS_CODE)
LATE = (Status.UNHEALTHY, Reason.TIMEOUT)
TRUNCATED = (Status.UNHEALTHY, Reason.TRUNCATED)
TOO_LARGE = (Status.UNHEALTHY, Reason.TOO_LARGE)
NOT_JSON = (Status.UNHEALTHY, Reason.NOT_JSON)
BAD_REPORT = (Status.UNHEALTHY, Reason.BAD_REPORT)
ERRORS = (Status.UNHEALTHY, Reason.REPORT_ERRORS)
INTERNAL = (Status.UNHEALTHY, Reason.INTERNAL)

# The first host name outside ASCII loads large tables, which are not the memory of its probe.
idna.encode("é", uts46=True)


def proxy_at(url: str) -> Proxy:
    return Proxy(
        id=UUID(int=1),
        name="paris",
        display_name="Paris",
        icon="",
        url=url,
        wildcard_hostname="",
        version="",
        deleted=False,
        created_at=MOMENT,
        updated_at=MOMENT,
    )


def ask(target: Server | str) -> ProxyStatus:
    """Probe ``target``. Fail if it takes longer than ``TIMEOUT`` + 0.5 s or more than 1 MB."""
    proxy = proxy_at(target if isinstance(target, str) else target.url)
    try:
        bound = conf.TIMEOUT + 0.5
    except ImproperlyConfigured:
        bound = 0.5
    with at_most(bound):
        if tracemalloc.is_tracing():
            return probe(proxy)
        tracemalloc.start()
        try:
            result = probe(proxy)
            _, held = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # The traceback of an own bug reads whole source files, once.
    assert held < 1_000_000 or result.reason is Reason.INTERNAL
    return result


def ask_in_time(target: Server | str) -> ProxyStatus:
    """Probe as :func:`ask` a server that must send something in time.

    If the machine stood still meanwhile, it may be too late. Then probe again.
    """
    for _ in range(20):
        before = stood_still()
        result = ask(target)
        if stood_still() == before:
            return result
    raise AssertionError("the machine stood still in each attempt")


def verdict(result: ProxyStatus) -> tuple[Status, Reason]:
    return result.status, result.reason


def not_json(fault: str, content_type: str = "application/json", begins: bytes = b"") -> str:
    beginning = begins.strip().decode(errors="replace")
    fault += f", it begins with {beginning!r}" if beginning else ""
    return f"{BAD}{fault}; its content type is {content_type}. {HINT}"


def led_to(url: str) -> str:
    return f"redirected to {url}; change the proxy's URL, its users may not be redirected"


# Bodies without end, sent as fast as possible.
FLOODS = {
    "body": flood(b"x" * 65536, start=HEAD + b"\r\n"),
    "body of declared length": flood(b"x" * 65536, start=HEAD + b"Content-Length: 99999999999\r\n\r\n"),
    "chunks": flood(b"1000\r\n" + b"x" * 4096 + b"\r\n", start=chunked(end=b"")),
    "tiny chunks": flood(b"2\r\nxy\r\n" * 1000, start=chunked(end=b"")),
    "huge chunk": flood(b"x" * 65536, start=chunked(end=b"ffffffffffff\r\n")),
    "trailers": flood(b"X: y\r\n" * 1000, start=chunked(b"{}", end=b"0\r\n")),
}
