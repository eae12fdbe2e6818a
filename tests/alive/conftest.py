"""An open health page in a browser. A thread of the test serves it, and the test is the worker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from tests.alive.helpers import PATH, WATCH
from tests.support.browser import open_page
from tests.support.forwarder import Forwarder
from tests.support.ports import free_port


@pytest.fixture(scope="module", autouse=True)
def queries_beside_playwright():
    """Playwright runs an event loop in this thread, which uses the database all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield


@pytest.fixture(autouse=True)
def fresh_reads(configure):
    configure(READ_INTERVAL=0)


@pytest.fixture
def fleet(serve):
    """Three proxies that are ok, by name. Set ``report`` of one to change its status."""
    servers = {name: serve() for name in ("cairo", "oslo", "paris")}
    for name, server in servers.items():
        WorkspaceProxy.objects.create(name=name, url=server.url)
    health.force_update()
    return servers


class Site:
    """A web server that can die: connections to it are cut."""

    def __init__(self, target):
        self.target, self.port = target, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self._forwarder = Forwarder(self.target, self.port)

    def stop(self):
        self._forwarder.__exit__(None, None, None)


@pytest.fixture
def site(live_server):
    site = Site(live_server.thread.port)
    yield site
    site.stop()


@pytest.fixture
def page(browser, fleet, site):
    """The health page, whose clock stands still."""
    client = Client()
    client.force_login(User.objects.create_superuser("ada"))
    with open_page(browser) as page:
        cookies = [{"name": n, "value": c.value, "url": site.url} for n, c in client.cookies.items()]
        page.context.add_cookies(cookies)
        page.clock.install()
        page.goto(site.url + PATH)
        page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=2))
        page.evaluate(WATCH)
        yield page
