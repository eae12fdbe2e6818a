"""The plans of the queries that read the history. They need an index, or a million rows take seconds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.db import connection

from proxyhealth.models import Transition, WorkspaceProxy
from tests.support.transitions import explained_queries, make_history

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


def test_last_of_each__uses_an_index(proxies):
    assert_indexed(lambda: list(Transition.objects.last_of_each()))
    assert_indexed(lambda: list(Transition.objects.last_of_each([proxies[0].pk, proxies[1].pk])))
