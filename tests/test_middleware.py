import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from csp.constants import NONCE
from django.conf import settings as django_settings
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path

from proxyhealth import health, middleware
from proxyhealth.middleware import HEADERS, LARGE, ProxyHostsMiddleware, sources_of, with_sources
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import take_token
from tests.support.values import a_round, make_proxy, make_status

ENFORCED, REPORT_ONLY = HEADERS
OURS = "https://paris.example.com wss://paris.example.com"


@pytest.fixture(autouse=True)
def nothing_made(monkeypatch):
    monkeypatch.setattr(middleware, "_sources", middleware._Sources())


@pytest.fixture
def paris():
    commit_statuses("paris")


def commit_statuses(*names):
    statuses = [make_status(make_proxy(name)) for name in names]
    commit(statuses, take_token(), full_round=a_round())


def a_status(host, url=None):
    proxy = replace(make_proxy(), url=f"https://{host}" if url is None else url)
    return replace(make_status(proxy), proxy_host=host)


def answer(response):
    """``response`` as it leaves the middleware."""
    return ProxyHostsMiddleware(lambda request: response)(RequestFactory().get("/"))


def amended(policy, name=ENFORCED):
    return answer(HttpResponse(headers={name: policy}))[name]


# Policies


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
        # No connections so far.
        ("connect-src 'none'", "connect-src O"),
        ("connect-src  'NONE' ; img-src *", "connect-src O; img-src *"),
        ("connect-src", "connect-src O"),
        ("connect-src; img-src *", "connect-src O; img-src *"),
        ("connect-src 'none' https://a.example", "connect-src 'none' https://a.example O"),
        # What counts for connections without a connect-src.
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
        # Other things that look like it.
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
        # Others' sources are theirs.
        (
            "default-src 'self' 'nonce-A+/='; img-src 'sha256-xyz='",
            "default-src 'self' 'nonce-A+/='; connect-src 'self' 'nonce-A+/=' O; img-src 'sha256-xyz='",
        ),
        ("connect-src 'self' é; img-src é", "connect-src 'self' é O; img-src é"),
    ],
)
@pytest.mark.parametrize("name", HEADERS)
def test_policy(paris, name, policy, expected):
    assert amended(policy, name) == (policy if expected is None else expected.replace("O", OURS))


def test_policy__takes_no_more_time_for_a_strange_one():
    for policy in (";" * 100_000, "; " * 100_000, " " * 100_000, ";connect-src" * 10_000, "," * 10_000):
        assert with_sources(policy, OURS)


def test_headers__each_has_its_own_policy(paris):
    response = answer(
        HttpResponse(headers={ENFORCED: "default-src 'self'", REPORT_ONLY: "connect-src 'none'"})
    )
    assert response[ENFORCED] == f"default-src 'self'; connect-src 'self' {OURS}"
    assert response[REPORT_ONLY] == f"connect-src {OURS}"


def test_headers__none_is_added(paris):
    assert dict(answer(HttpResponse("x")).headers) == dict(HttpResponse("x").headers)


def test_headers__without_one_the_snapshot_is_not_read(paris, redis_client):
    redis_client.config_resetstat()
    answer(HttpResponse("x"))
    assert "cmdstat_getrange" not in redis_client.info("commandstats")


def test_headers__a_nonce_is_that_of_its_request(paris):
    for nonce in ("one", "two"):
        assert amended(f"default-src 'nonce-{nonce}'") == (
            f"default-src 'nonce-{nonce}'; connect-src 'nonce-{nonce}' {OURS}"
        )


def test_response__streaming(paris):
    response = answer(StreamingHttpResponse(iter([b"a", b"b"]), headers={ENFORCED: "connect-src 'self'"}))
    assert response[ENFORCED] == f"connect-src 'self' {OURS}"
    assert response.getvalue() == b"ab"


# Which proxies


def test_proxies__none_known_leaves_the_header():
    assert amended("default-src 'none'") == "default-src 'none'"
    assert amended("connect-src 'none'") == "connect-src 'none'"


@pytest.mark.django_db
def test_proxies__all_that_are_registered_healthy_or_not(serve):
    good, bad = serve(), serve(report={"errors": ["x"]})
    WorkspaceProxy.objects.create(name="a-good", url=good.url)
    WorkspaceProxy.objects.create(name="b-bad", url=bad.url.replace("http://", "HTTP://"))
    WorkspaceProxy.objects.create(name="c-same", url=good.url)
    WorkspaceProxy.objects.create(name="d-dead", url="https://127.0.0.1:1")
    WorkspaceProxy.objects.create(name="e-none")
    WorkspaceProxy.objects.create(name="f-unusable", url="http://[::1")
    health.force_update()
    plain = [
        f"{scheme}://{host}" for host in (good.host, bad.host) for scheme in ("https", "wss", "http", "ws")
    ]
    expected = [*plain, "https://127.0.0.1:1", "wss://127.0.0.1:1"]
    assert amended("connect-src 'self'").split() == ["connect-src", "'self'", *expected]


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
def test_sources_of__schemes(url, schemes):
    status = a_status("a.example", url)
    assert sources_of([status]) == [f"{scheme}://a.example" for scheme in schemes.split()]


def test_sources_of__a_host_under_two_schemes_has_both():
    statuses = [a_status("a.example"), a_status("a.example", "http://a.example"), a_status("a.example")]
    assert sources_of(statuses) == [
        "https://a.example",
        "wss://a.example",
        "http://a.example",
        "ws://a.example",
    ]


@pytest.mark.parametrize(
    "host", ["a", "a.example", "A.Example:8443", "xn--bcher-kva.example", "a.example.:1", "127.0.0.1:65535"]
)
def test_sources_of__hosts(host):
    assert sources_of([a_status(host)]) == [f"https://{host}", f"wss://{host}"]


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
def test_sources_of__what_csp_cannot_express_is_left_out(host):
    assert sources_of([a_status(host, "https://a.example"), a_status("b.example")]) == [
        "https://b.example",
        "wss://b.example",
    ]


def test_proxies__a_hostile_snapshot_injects_nothing():
    hostile = [a_status(host) for host in ("a.example; script-src *", "a.example, default-src *", "'self'")]
    commit(hostile, take_token(), full_round=a_round())
    assert health.proxy_hosts()
    assert amended("connect-src 'none'") == "connect-src 'none'"


# The snapshot


def test_snapshot__a_new_one_changes_the_header(paris):
    assert amended("connect-src 'self'") == f"connect-src 'self' {OURS}"
    commit_statuses("oslo")
    assert (
        amended("connect-src 'self'") == "connect-src 'self' https://oslo.example.com wss://oslo.example.com"
    )


def test_snapshot__the_sources_are_made_once(paris, monkeypatch):
    made = []
    monkeypatch.setattr(middleware, "sources_of", lambda statuses: made.append(1) or sources_of(statuses))
    for _ in range(10):
        amended("connect-src 'self'")
    count_round("failure", "gone")  # another snapshot with the same statuses
    assert health.snapshot().error == "gone"
    amended("connect-src 'self'")
    assert made == [1]


def test_snapshot__many_threads_at_once_make_the_sources_once(paris, monkeypatch):
    made, together, statuses = [], threading.Barrier(8), health.health_status()

    def read():
        together.wait(5)
        return statuses

    def make(statuses):
        made.append(1)
        time.sleep(0.1)  # the others are there by now, or find them made
        return sources_of(statuses)

    monkeypatch.setattr(middleware.health, "health_status", read)
    monkeypatch.setattr(middleware, "sources_of", make)
    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(amended, ["connect-src 'self'"] * 8))
    assert headers == [f"connect-src 'self' {OURS}"] * 8
    assert made == [1]


def test_snapshot__redis_down_has_the_last_proxies(paris, stopped):
    before = amended("connect-src 'self'")
    stopped()
    assert amended("connect-src 'self'") == before
    assert health.snapshot().stale


def test_snapshot__redis_down_and_none_known_leaves_the_header(stopped):
    stopped()
    assert amended("connect-src 'self'") == "connect-src 'self'"


def test_warning__once_when_the_sources_are_large(caplog):
    names = [f"proxy-{i:03}" for i in range(100)]
    with caplog.at_level(logging.WARNING, "proxyhealth.middleware"):
        commit_statuses("paris")
        amended("connect-src 'self'")
        assert caplog.records == []
        for _ in range(2):  # the next round finds the same ones
            commit_statuses(*names)
            for _ in range(5):
                added = len(amended("connect-src 'self'")) - len("connect-src 'self' ")
        assert added > LARGE
        (record,) = caplog.records
        assert record.getMessage().startswith(f"the 100 proxies take {added:,} bytes")
        commit_statuses(*names, "paris")
        amended("connect-src 'self'")
        assert len(caplog.records) == 2


# In a project


def view(request):
    return HttpResponse("x", headers={ENFORCED: "default-src 'self'"})


async def async_view(request):
    return view(request)


def csp_view(request):
    return HttpResponse(f"<script nonce={request.csp_nonce}>")


urlpatterns = [
    path("sync", view),
    path("async", async_view),
    path("csp", csp_view),
]


@pytest.fixture
def host(settings, paris):
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["proxyhealth.middleware.ProxyHostsMiddleware", *django_settings.MIDDLEWARE]


@pytest.mark.parametrize("where", ["sync", "async"])
def test_project__sync(host, where):
    assert Client().get(f"/{where}")[ENFORCED] == f"default-src 'self'; connect-src 'self' {OURS}"


@pytest.mark.parametrize("where", ["sync", "async"])
def test_project__async(host, where):
    async def get():
        return await AsyncClient().get(f"/{where}")

    assert asyncio.run(get())[ENFORCED] == f"default-src 'self'; connect-src 'self' {OURS}"


def test_middleware__async_reads_the_snapshot_outside_of_the_loop(paris, monkeypatch):
    """A read may wait for Redis, and the loop must not."""
    loops = []

    def read():
        try:
            loops.append(asyncio.get_running_loop())
        except RuntimeError:
            loops.append(None)
        return health.snapshot().statuses

    monkeypatch.setattr(middleware.health, "health_status", read)

    async def get():
        return await ProxyHostsMiddleware(async_view)(RequestFactory().get("/"))

    assert OURS in asyncio.run(get())[ENFORCED]
    assert loops == [None]


def test_django_csp__header_with_its_nonce(host, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "csp.middleware.CSPMiddleware"]
    settings.CONTENT_SECURITY_POLICY = {
        "DIRECTIVES": {"default-src": ["'none'"], "script-src": ["'self'", NONCE]}
    }
    settings.CONTENT_SECURITY_POLICY_REPORT_ONLY = {"DIRECTIVES": {"default-src": ["'self'"]}}
    response = Client().get("/csp")
    nonce = response.content.decode().removeprefix("<script nonce=").removesuffix(">")
    assert nonce
    expected = ["default-src 'none'", f"connect-src {OURS}", f"script-src 'self' 'nonce-{nonce}'"]
    assert sorted(response[ENFORCED].split("; ")) == sorted(expected)  # django-csp orders them at random
    assert response[REPORT_ONLY] == f"default-src 'self'; connect-src 'self' {OURS}"
