"""A project under uvicorn: its event loop goes on, whatever a request waits for."""

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core import signing
from django.core.asgi import get_asgi_application
from django.core.cache import caches
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import include, path

from proxyhealth import health, middleware
from proxyhealth.access import Authenticated
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage import reader
from tests.settings import REDIS_PORT
from tests.support.api import LIST, REGIONS
from tests.support.asgi import serving
from tests.support.csp import ENFORCED
from tests.support.proxies import wait_for
from tests.support.redis_relay import RedisRelay

pytestmark = pytest.mark.django_db(transaction=True)


async def ping(request):
    return HttpResponse("pong")


async def page(request):
    async def chunks():
        for chunk in ("a", "b"):
            await asyncio.sleep(0)
            yield chunk

    return StreamingHttpResponse(chunks(), headers={ENFORCED: "default-src 'self'"})


async def update(request):
    try:
        return HttpResponse((await health.aforce_update()).number)
    except asyncio.CancelledError:
        cancelled.append(request.path)
        raise


urlpatterns = [
    path("ping", ping),
    path("page", page),
    path("update", update),
    path("", include("proxyhealth.urls")),
]

cancelled = []
loops = []


class Robot:
    is_authenticated = is_active = True

    async def ahas_perm(self, permission):
        await asyncio.sleep(0)
        return permission == "proxyhealth.view_workspaceproxy"


async def authenticate(request):
    await asyncio.sleep(0)
    loops.append(asyncio.get_running_loop())
    return Authenticated(Robot(), csrf_exempt=True) if request.headers.get("Authorization") else None


@pytest.fixture
def relay(settings):
    relay = RedisRelay(REDIS_PORT)
    with relay.running() as url:
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": url}}
        yield relay


@pytest.fixture
def host(settings, relay, paris):
    """The address of the project."""
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["proxyhealth.middleware.ProxyHostsMiddleware", *django_settings.MIDDLEWARE]
    middleware._sources.reset()
    for remembered in (cancelled, loops):
        remembered.clear()
    with serving(get_asgi_application()) as address:
        yield address


DOCUMENT = Path(__file__).parent.parent / "docs" / "async.md"


def example(name):
    """Return the names of the module ``name`` in the document."""
    (code,) = re.findall(rf"```python\n# {name}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = {"__name__": name}
    exec(code, names)
    return names


def get(host, path, **headers):
    return requests.get(f"http://{host}{path}", headers=headers, timeout=10)


def assert_responds(host):
    assert get(host, "/ping").text == "pong"


@pytest.mark.parametrize("path", ["/page", REGIONS])
def test_redis__hangs_and_other_requests_go_on(host, relay, configure, path):
    configure(PUBLIC_REGIONS=True)
    reader.forget()  # with a copy, only one request would wait
    relay.delivers.clear()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(get, host, path) for _ in range(4)]
        wait_for(lambda: reader._reader.value._refresh_lock.locked(), 5)
        for _ in range(3):
            assert_responds(host)
        assert not any(future.done() for future in waiting)
        relay.delivers.set()
        responses = [future.result() for future in waiting]
    assert [response.status_code for response in responses] == [200] * 4
    if path == "/page":
        (paris,) = health.proxy_hosts()
        assert all(paris in response.headers[ENFORCED] for response in responses)
        assert [response.text for response in responses] == ["ab"] * 4


@contextmanager
def client_that_goes(host, path):
    hostname, port = host.split(":")
    with socket.create_connection((hostname, int(port))) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield


def test_redis__hangs_and_a_client_goes(host, relay, configure):
    configure(PUBLIC_REGIONS=True)
    reader.forget()
    relay.delivers.clear()
    with client_that_goes(host, REGIONS):
        wait_for(lambda: reader._reader.value._refresh_lock.locked(), 5)
    for _ in range(3):
        assert_responds(host)
    relay.delivers.set()
    assert get(host, REGIONS).status_code == 200


def test_force_update__goes_on_without_its_client(host, serve, redis_client):
    WorkspaceProxy.objects.create(name="slow", url=serve(delay=0.5).url)
    lease = caches["default"].make_key("proxyhealth:lease")
    with client_that_goes(host, "/update"):
        wait_for(lambda: redis_client.exists(lease), 5)
    wait_for(lambda: cancelled, 5)
    assert_responds(host)
    assert redis_client.exists(lease)
    wait_for(lambda: not redis_client.exists(lease), 5)
    assert health.snapshot().outcomes == {"success": 2}  # and that of the fixture
    assert len(health.proxy_hosts()) == 2


def test_authenticate__coroutine_runs_in_the_loop_of_the_server(host, configure):
    configure(AUTHENTICATE=f"{__name__}.authenticate")
    assert get(host, LIST).status_code == 401
    assert get(host, LIST, Authorization="Bearer 1").status_code == 200
    check = requests.post(
        f"http://{host}{LIST}/paris/check", headers={"Authorization": "Bearer 1"}, timeout=10
    )
    assert check.status_code == 403
    assert check.json()["detail"] == "The user needs the permission proxyhealth.change_workspaceproxy."
    assert len(loops) == 3
    assert len(set(loops)) == 1


def test_document__views_of_the_example_work(host, settings, sent, tmp_path):
    (tmp_path / "page.html").write_text("{% load proxyhealth %}{% proxy_badge 'paris' %} {{ user }}")
    settings.TEMPLATES = [{**django_settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    views = example("host/views.py")
    names = ("hosts", "statuses", "check", "update", "page")
    settings.ROOT_URLCONF = tuple(path(name, views[name]) for name in names)
    number = health.snapshot().number
    assert get(host, "/hosts").json() == {"hosts": [], "stale": False}
    assert get(host, "/statuses").json() == {"paris": "unhealthy"}
    assert get(host, "/check?name=paris").status_code == 202
    assert len(sent[-1]) == 1
    assert get(host, "/update").json() == {"number": number + 1}
    assert "unhealthy" in (text := get(host, "/page").text)
    assert "AnonymousUser" in text


def test_document__authenticate_of_the_example_works(host, configure, monkeypatch):
    monkeypatch.setattr(f"{__name__}.authenticate", example("host/api.py")["authenticate"])
    configure(AUTHENTICATE=f"{__name__}.authenticate")
    user = User.objects.create_superuser("robot")
    for id, status in ((user.pk, 200), (0, 401)):
        token = signing.dumps(id, salt="host.api")
        assert get(host, LIST, Authorization=f"Bearer {token}").status_code == status
        assert Client().get(LIST, headers={"Authorization": f"Bearer {token}"}).status_code == status
    assert get(host, LIST, Authorization="Bearer forged").status_code == 401
