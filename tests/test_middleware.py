import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync
from csp.constants import NONCE
from django.conf import settings as django_settings
from django.contrib.auth.models import AnonymousUser, User
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.utils.functional import SimpleLazyObject

from proxyhealth import health, middleware
from proxyhealth.middleware import LARGE, ProxyHostsMiddleware, sources_of
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import take_token
from tests.support.csp import (
    ENFORCED,
    OURS,
    REPORT_ONLY,
    USER,
    apply_middleware,
    extended_policy,
    status_of_host,
)
from tests.support.values import a_round, make_proxy, make_status


@pytest.fixture(autouse=True)
def no_sources():
    middleware._sources.reset()


@pytest.fixture
def paris():
    commit_statuses("paris")


def commit_statuses(*names):
    statuses = [make_status(make_proxy(name)) for name in names]
    commit(statuses, take_token(), full_round=a_round())


# Headers


def test_headers__each_has_its_own_policy(paris):
    response = apply_middleware(
        HttpResponse(headers={ENFORCED: "default-src 'self'", REPORT_ONLY: "connect-src 'none'"})
    )
    assert response[ENFORCED] == f"default-src 'self'; connect-src 'self' {OURS}"
    assert response[REPORT_ONLY] == f"connect-src {OURS}"


def test_headers__none_is_added(paris):
    assert dict(apply_middleware(HttpResponse("x")).headers) == dict(HttpResponse("x").headers)


def test_headers__without_a_policy_no_snapshot_is_read(paris, redis_client):
    redis_client.config_resetstat()
    apply_middleware(HttpResponse("x"))
    assert "cmdstat_getrange" not in redis_client.info("commandstats")


def test_headers__nonce_of_each_request_is_kept(paris):
    for nonce in ("one", "two"):
        assert extended_policy(f"default-src 'nonce-{nonce}'") == (
            f"default-src 'nonce-{nonce}'; connect-src 'nonce-{nonce}' {OURS}"
        )


def test_headers__of_a_streaming_response(paris):
    response = apply_middleware(
        StreamingHttpResponse(iter([b"a", b"b"]), headers={ENFORCED: "connect-src 'self'"})
    )
    assert response[ENFORCED] == f"connect-src 'self' {OURS}"
    assert response.getvalue() == b"ab"


# The proxies


def test_proxies__empty_snapshot_leaves_the_header():
    assert extended_policy("default-src 'none'") == "default-src 'none'"
    assert extended_policy("connect-src 'none'") == "connect-src 'none'"


@pytest.mark.django_db
def test_proxies__healthy_and_unhealthy_ones(serve):
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
    assert extended_policy("connect-src 'self'").split() == ["connect-src", "'self'", *expected]


def test_proxies__hostile_hosts_inject_nothing():
    hostile = [
        status_of_host(host) for host in ("a.example; script-src *", "a.example, default-src *", "'self'")
    ]
    commit(hostile, take_token(), full_round=a_round())
    assert health.proxy_hosts()
    assert extended_policy("connect-src 'none'") == "connect-src 'none'"


# The snapshot


def test_snapshot__change_updates_the_header(paris):
    assert extended_policy("connect-src 'self'") == f"connect-src 'self' {OURS}"
    commit_statuses("oslo")
    assert (
        extended_policy("connect-src 'self'")
        == "connect-src 'self' https://oslo.example.com wss://oslo.example.com"
    )


def test_snapshot__sources_are_built_once(paris, monkeypatch):
    calls = []
    monkeypatch.setattr(middleware, "sources_of", lambda statuses: calls.append(1) or sources_of(statuses))
    for _ in range(10):
        extended_policy("connect-src 'self'")
    count_round("failure", "gone")  # a new snapshot with the same statuses
    assert health.snapshot().error == "gone"
    extended_policy("connect-src 'self'")
    assert calls == [1]


def test_snapshot__threads_build_the_sources_once(paris, monkeypatch):
    calls, together, statuses = [], threading.Barrier(8), health.health_status()

    def read():
        together.wait(5)
        return statuses

    def build(statuses):
        calls.append(1)
        time.sleep(0.1)  # the other threads wait for the lock by now
        return sources_of(statuses)

    monkeypatch.setattr(middleware.health, "health_status", read)
    monkeypatch.setattr(middleware, "sources_of", build)
    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(extended_policy, ["connect-src 'self'"] * 8))
    assert headers == [f"connect-src 'self' {OURS}"] * 8
    assert calls == [1]


def test_snapshot__redis_down_keeps_the_last_proxies(paris, stopped):
    before = extended_policy("connect-src 'self'")
    stopped()
    assert extended_policy("connect-src 'self'") == before
    assert health.snapshot().stale


def test_snapshot__redis_down_before_the_first_read(stopped):
    stopped()
    assert extended_policy("connect-src 'self'") == "connect-src 'self'"


def test_warning__once_for_large_sources(caplog):
    names = [f"proxy-{i:03}" for i in range(100)]
    with caplog.at_level(logging.WARNING, "proxyhealth.middleware"):
        commit_statuses("paris")
        extended_policy("connect-src 'self'")
        assert caplog.records == []
        for _ in range(2):  # the second round changes nothing
            commit_statuses(*names)
            for _ in range(5):
                added = len(extended_policy("connect-src 'self'")) - len("connect-src 'self' ")
        assert added > LARGE
        (record,) = caplog.records
        assert f"bytes={added} proxies=100:" in record.getMessage()
        commit_statuses(*names, "paris")
        extended_policy("connect-src 'self'")
        assert len(caplog.records) == 2


# The users


def page_of(user=None, policy="connect-src 'self'", **headers):
    """Return a page as the middleware changes it for a request of ``user``."""
    request = RequestFactory().get("/", headers=headers)
    if user is not None:
        request.user = user
    page = HttpResponse(headers={ENFORCED: policy, "Cache-Control": "public, max-age=60"})
    return ProxyHostsMiddleware(lambda request: page)(request)


def by_token(request):
    return USER if request.headers.get("Authorization") == "Bearer 1" else None


def refused(request):
    raise PermissionDenied


def fails(*args):
    raise OperationalError("the database is down")


REQUESTS = {  # its user and token, the settings, and if its page has the proxies
    "without middleware": (None, "", {}, False),
    "anonymous": (AnonymousUser(), "", {}, False),
    "inactive": (User(is_active=False), "", {}, False),
    "database down": (SimpleLazyObject(fails), "", {}, False),
    "user": (User(), "", {}, True),
    "token": (None, "Bearer 1", {"AUTHENTICATE": "by_token"}, True),
    "session in place of a token": (User(), "", {"AUTHENTICATE": "by_token"}, False),
    "refused": (User(), "", {"AUTHENTICATE": "refused"}, False),
    "hook fails": (User(), "", {"AUTHENTICATE": "fails"}, False),
    "public regions": (None, "", {"PUBLIC_REGIONS": True}, True),
    "public policy": (None, "", {"PUBLIC_CSP": True, "AUTHENTICATE": "fails"}, True),
}


@pytest.mark.parametrize(("user", "token", "options", "is_shown"), REQUESTS.values(), ids=REQUESTS)
def test_users__only_those_of_the_regions(paris, configure, user, token, options, is_shown):
    if name := options.get("AUTHENTICATE"):
        options = {**options, "AUTHENTICATE": f"{__name__}.{name}"}
    configure(**options)
    page = page_of(user, Authorization=token)
    assert page[ENFORCED] == (f"connect-src 'self' {OURS}" if is_shown else "connect-src 'self'")
    is_public = any(name.startswith("PUBLIC") for name in options)
    assert page.get("Vary") == (None if is_public else "Authorization, Cookie")
    assert ("private" in page["Cache-Control"]) == (is_shown and not is_public)


def test_users__not_loaded_unless_the_header_changes(paris):
    for policy in ("img-src 'self'", "script-src 'none'"):
        page = page_of(SimpleLazyObject(lambda: pytest.fail("the user is loaded")), policy)
        assert page[ENFORCED] == policy
        assert "Vary" not in page.headers


@pytest.mark.django_db
@pytest.mark.parametrize("where", ["sync", "async"])
def test_users__sessions_and_shared_caches(settings, paris, where):
    settings.ROOT_URLCONF = __name__
    settings.CACHES = {**settings.CACHES, "pages": {"BACKEND": f"{LocMemCache.__module__}.LocMemCache"}}
    settings.CACHE_MIDDLEWARE_ALIAS = "pages"
    settings.MIDDLEWARE = [
        "django.middleware.cache.UpdateCacheMiddleware",
        "proxyhealth.middleware.ProxyHostsMiddleware",
        *django_settings.MIDDLEWARE,
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
    user = User.objects.create_user("maria")
    browser, stranger = AsyncClient(), AsyncClient()
    browser.force_login(user)

    @async_to_sync  # unlike asyncio.run(), it queries the database in this thread, with its transaction
    async def get(client):
        return await client.get(f"/{where}")

    for _ in range(2):
        assert OURS in get(browser)[ENFORCED]
        assert OURS not in get(stranger)[ENFORCED]
    user.delete()
    assert OURS not in get(browser)[ENFORCED]


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
def host(settings, paris, configure):
    configure(PUBLIC_CSP=True)
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


def test_django_csp__policy_with_a_nonce(host, settings):
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
