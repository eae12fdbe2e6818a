"""The plans of the queries that read the history. They need an index, or a million rows take seconds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.core.cache import caches
from django.db import connection

from proxyhealth.health import snapshot
from proxyhealth.history.pruning import prune
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.history.strips import strips
from proxyhealth.history.uptime import uptimes
from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.storage import outbox
from tests.support.api import LIST
from tests.support.transitions import explained_queries, make_history, to_token

pytestmark = pytest.mark.django_db

END = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


@pytest.fixture
def proxies():
    rows = [WorkspaceProxy(name=f"proxy-{index}") for index in range(20)]
    WorkspaceProxy.objects.bulk_create(rows)
    make_history(rows, 400, end=END)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # A small table is read faster without an index.
            cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("ANALYZE")
    return rows


def assert_indexed(call):
    with explained_queries() as plans:
        call()
    assert plans
    for plan in plans:
        assert not plan.scans_all_transitions, f"{plan.sql}\n{plan.text}"


def test_plans__notice_a_scan(proxies):
    with explained_queries() as plans:
        list(Transition.objects.order_by().filter(reason="timeout"))
    assert [plan.scans_all_transitions for plan in plans] == [True]


def test_uptime__uses_an_index(proxies):
    assert_indexed(lambda: uptimes(snapshot()))
    assert_indexed(lambda: uptimes(snapshot(), [proxies[0].pk]))


@pytest.mark.parametrize("window", ["24h", "90d"])
def test_strips__use_an_index(proxies, window):
    assert_indexed(lambda: strips(snapshot(), [row.pk for row in proxies], window))


def test_page_of_a_proxy__uses_an_index(admin_client, proxies):
    page = f"/admin/proxyhealth/workspaceproxy/{proxies[0].pk}/detail/"
    assert_indexed(lambda: admin_client.get(page))


def test_history_view__uses_an_index(admin_client, proxies):
    path = f"{LIST}/{proxies[0].pk}/history"
    assert_indexed(lambda: admin_client.get(path))
    assert_indexed(lambda: admin_client.get(path, {"before": to_token(END)}))


def test_admin_list__uses_an_index(admin_client, proxies):
    assert_indexed(lambda: admin_client.get("/admin/proxyhealth/transition/"))


def test_recall__uses_an_index(proxies):
    some = [str(proxy.pk) for proxy in proxies[:2]]
    assert_indexed(lambda: DatabaseMemory().rows(some))
    assert_indexed(lambda: DatabaseMemory().rows(None))
    assert_indexed(lambda: DatabaseMemory().latest(DatabaseMemory().watched()))


def test_record__uses_an_index(proxies, redis_client):
    change = (str(proxies[0].pk), "proxy-0", "ok", "unreachable", to_token(END), to_token(END), 1, {})
    redis_client.rpush(caches["default"].make_key("proxyhealth:outbox"), outbox.change_entry(*change))
    assert_indexed(record_history)


def test_prune__uses_an_index(proxies, configure):
    configure(HISTORY_DAYS=90)
    assert_indexed(lambda: prune(dry_run=True))
    assert_indexed(prune)
