"""The middleware of the Content Security Policy in async code."""

import asyncio
import threading

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.utils.functional import SimpleLazyObject

from proxyhealth import health, middleware
from proxyhealth.middleware import ProxyHostsMiddleware
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.csp import ENFORCED, OURS, USER
from tests.support.values import a_round, make_proxy, make_status

EXTENDED = f"default-src 'self'; connect-src 'self' {OURS}"


def view(request):
    return HttpResponse("x", headers={ENFORCED: "default-src 'self'"})


async def async_view(request):
    return view(request)


async def stream(request):
    async def chunks():
        for chunk in (b"a", b"b"):
            await asyncio.sleep(0)
            yield chunk

    return StreamingHttpResponse(chunks(), headers={ENFORCED: "default-src 'self'"})


urlpatterns = [path("sync", view), path("async", async_view), path("stream", stream)]


async def by_token(request):
    await asyncio.sleep(0)
    return USER if request.headers.get("Authorization") == "Bearer 1" else None


async def broken(request):
    raise OperationalError("the database is down")


@pytest.fixture(autouse=True)
def paris():
    middleware._sources.reset()
    commit([make_status(make_proxy("paris"))], take_token(), full_round=a_round())


@pytest.fixture
def host(settings):
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["proxyhealth.middleware.ProxyHostsMiddleware", *django_settings.MIDDLEWARE]


def respond(view, user=USER):
    """Return the coroutine of a request."""
    request = RequestFactory().get("/")
    request.user = user
    return ProxyHostsMiddleware(view)(request)


@pytest.mark.parametrize("user", [USER, SimpleLazyObject(lambda: USER), None])
def test_user__loaded_one_needs_no_thread(configure, user):
    configure(READ_INTERVAL=60)
    health.snapshot()
    _ = bool(user)  # loads the lazy one, as a view does
    with pytest.raises(StopIteration) as returned:  # the coroutine has responded without suspending
        respond(async_view, user).send(None)
    assert returned.value.value[ENFORCED] == (EXTENDED if user else "default-src 'self'")


def test_user__lazy_one_is_loaded_in_a_thread():
    threads = []

    def load():
        threads.append(threading.current_thread())
        return USER

    assert asyncio.run(respond(async_view, SimpleLazyObject(load)))[ENFORCED] == EXTENDED
    assert threads != [threading.main_thread()]


def test_policy__without_one_no_snapshot_is_read(stopped):
    async def plain(request):
        return HttpResponse("x")

    stopped()
    with pytest.raises(StopIteration):
        respond(plain).send(None)


@pytest.mark.parametrize(
    ("name", "token", "is_shown"), [("by_token", 1, True), ("by_token", 2, False), ("broken", 1, False)]
)
@pytest.mark.parametrize("path", ["/sync", "/async", "/stream"])
def test_authenticate__may_be_a_coroutine(host, configure, path, name, token, is_shown):
    configure(AUTHENTICATE=f"{__name__}.{name}")
    headers = {"Authorization": f"Bearer {token}"}

    async def get():
        response = await AsyncClient().get(path, headers=headers)
        if response.streaming:
            assert [chunk async for chunk in response] == [b"a", b"b"]
        return response

    assert (asyncio.run(get())[ENFORCED] == EXTENDED) is is_shown
    if path != "/stream":
        assert (Client().get(path, headers=headers)[ENFORCED] == EXTENDED) is is_shown
