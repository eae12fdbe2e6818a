"""docs/your-project.md, executed step by step in a project with a Celery app, a cache, users, and routes."""

from __future__ import annotations

import json

import pytest

from tests.deployment import shop
from tests.deployment.conftest import OLDEST
from tests.deployment.documents import DOCS, ROOT, UV_INSTALL, Reader
from tests.deployment.web import Web
from tests.support.ports import free_port
from tests.support.proxies import WorkspaceProxyServer, wait_for

STEPS, _, REMOVAL = (DOCS / "your-project.md").read_text().partition("## Removal")
PAIR = OLDEST

HEALTH_PAGE = "/admin/proxyhealth/workspaceproxy/health/"
LIST = "/proxyhealth/api/v2/workspaceproxies"

# What the steps may change, and only by additions.
MERGED = {"CACHES", "CELERY_BEAT_SCHEDULE", "CELERY_TASK_ROUTES", "INSTALLED_APPS"}
STATE = """
import json
from importlib.metadata import distributions
from django.conf import settings
names = [name for name in dir(settings._wrapped) if name.isupper()]
values = {name: getattr(settings, name, None) for name in names}
print(json.dumps([{package.name: package.version for package in distributions()}, values], default=repr))
"""


@pytest.fixture(scope="module")
def project(pair, redis_url, tmp_path_factory):
    """Follow the document in the shop, and start its processes. Return the reader, and what was before."""
    python, django = pair
    reader = Reader(
        tmp_path_factory.mktemp("shop"),
        {"/path/to/the/checkout": str(ROOT), '"INTERVAL": 60': '"INTERVAL": 2'},
        SHOP_REDIS_URL=redis_url,
        PROXYHEALTH_REDIS_URL=f"{redis_url}/2",
        PROXYHEALTH_METRICS_TOKEN="secret",
    )
    reader.enter(f"{python} -m venv --without-pip venv")
    reader.enter(". venv/bin/activate")
    reader.enter(f"{UV_INSTALL} 'django=={django}.*' 'celery[redis]' pip")
    shop.create(reader)
    before = state(reader)
    try:
        reader.follow(STEPS)
        # "Restart the web servers and beat": the commands of the shop, unchanged.
        port = free_port()
        reader.enter("celery -A host worker --queues celery,accounts --pool threads --hostname shop@%h")
        reader.enter("celery -A host beat --loglevel INFO")
        reader.enter(f"python manage.py runserver --noreload {port}")
        yield reader, Web(port), before
    finally:
        reader.stop()


def state(reader):
    """Return the versions of all packages, and all settings."""
    return json.loads(reader.shell(STATE))


def test_your_project__versions_and_settings_stay(project):
    reader, _, (versions, settings) = project
    new_versions, new_settings = state(reader)
    assert versions.items() <= new_versions.items()
    assert "django-prometheus" not in new_versions
    for name in settings.keys() - MERGED:
        assert new_settings[name] == settings[name], name
    for name in MERGED - {"INSTALLED_APPS"}:
        assert settings[name].items() < new_settings[name].items()
    assert new_settings["INSTALLED_APPS"] == [*settings["INSTALLED_APPS"], "proxyhealth"]
    assert new_settings.keys() - settings.keys() == {"PROXYHEALTH"}
    reader.enter("python manage.py makemigrations --check --dry-run")


def test_your_project__cache_tasks_users_and_routes_work(project):
    _, web, _ = project
    web.sign_in("ada@example.com")
    paths = {
        "/": "the shop",
        "/metrics": "metrics of the shop",
        "/api/v2/regions": "regions of the shop",
        "/any/path": "page /any/path",
    }
    assert {path: web.get(path).text for path in paths} == paths
    reader = project[0]
    assert reader.shell("from django.core.cache import cache\nprint(cache.get('kept'))") == "from before"
    ticks = int(web.get("/ticks").text or 0)
    wait_for(lambda: int(web.get("/ticks").text) > ticks + 1, 20, "the periodic task of the shop runs")


def test_your_project__ends_with_a_status_on_the_health_page(project):
    reader, web, _ = project
    web.sign_in("ada@example.com")
    with WorkspaceProxyServer(report={"warnings": ["hello from afar"]}) as server:
        reader.shell(
            "from proxyhealth.models import WorkspaceProxy\n"
            f"WorkspaceProxy.objects.create(name='paris', url='{server.url}')"
        )
        wait_for(lambda: "hello from afar" in web.get(HEALTH_PAGE).text, 20, "the page shows the report")
        body = web.get(LIST).json()
        assert [(proxy["name"], proxy["status"]["status"]) for proxy in body["regions"]] == [("paris", "ok")]
        number = body["snapshot"]["number"]
        wait_for(lambda: web.get(LIST).json()["snapshot"]["number"] > number + 1, 20, "beat requests rounds")
        assert "Sending due task proxyhealth-round" in reader.log.read_text()
        assert web.get("/proxyhealth/metrics").status_code == 401
        metrics = web.get("/proxyhealth/metrics", headers={"Authorization": "Bearer secret"}).text
        assert 'proxyhealth_proxies{status="ok"} 1.0' in metrics


def test_your_project__metrics_without_the_variable_are_closed(project):
    reader, _, _ = project
    code = (
        "from django.conf import settings\n"
        "from django.test import Client\n"
        "settings.ALLOWED_HOSTS = ['*']\n"
        "print(Client().get('/proxyhealth/metrics', headers={'Authorization': 'Bearer '}).status_code)"
    )
    path = reader.folder / "metrics.py"
    path.write_text(code)
    shell = f"PROXYHEALTH_METRICS_TOKEN= python manage.py shell -v0 < {path}"
    assert reader.enter(shell).strip() == "401"


def test_your_project__removal_leaves_the_tables_of_the_project(project):
    """Run last: it removes the table."""
    reader, _, _ = project
    reader.stop()
    reader.follow('/path/to/the/checkout"INTERVAL": 60' + REMOVAL)
    code = "from django.db import connection\nprint(*connection.introspection.table_names())"
    tables = reader.shell(code).split()
    assert "accounts_person" in tables
    assert not [table for table in tables if table.startswith("proxyhealth")]
