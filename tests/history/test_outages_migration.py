"""The migration opens an outage for each proxy that is down when the app is upgraded."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import connection

from proxyhealth.models import Outage, Transition, WorkspaceProxy
from proxyhealth.storage.confirmation import moment
from tests.support.transitions import explained_queries, make_history
from tests.support.values import NOW

pytestmark = pytest.mark.django_db

MINUTE = 60_000_000  # in tokens


def migrate():
    migration = import_module("proxyhealth.migrations.0003_notifications")
    migration.open_outages(apps, SimpleNamespace(connection=connection))


def a_history(name, *statuses, proxy=None):
    """Store the changes of a proxy to these statuses, one per minute."""
    id = proxy.pk if proxy else uuid4()
    for minute, (before, after) in enumerate(zip(("unknown", *statuses), statuses, strict=False), 1):
        token = minute * MINUTE
        Transition.objects.create(
            proxy=proxy,
            proxy_uuid=id,
            proxy_name=name,
            before=before,
            after=after,
            reason=f"{after}-reason",
            at=moment(token),
            token=token,
            watched=token,
        )


def test_migration__opens_outages_of_proxies_that_are_down():
    paris = WorkspaceProxy.objects.create(name="paris")
    a_history("paris", "ok", "unhealthy", "ok", "unreachable", "unhealthy", proxy=paris)
    a_history("oslo", "unreachable", "unhealthy", "unreachable")  # since its first status
    a_history("lima", "unreachable", "ok")
    a_history("rome", "ok", "unreachable", "unregistered")
    a_history("bern", "unhealthy", "removed")
    migrate()
    assert list(Outage.objects.order_by("proxy_name").values()) == [
        {
            "id": outage.pk,
            "proxy_id": proxy,
            "proxy_uuid": outage.proxy_uuid,
            "proxy_name": name,
            "status": status,
            "reason": f"{status}-reason",
            "began_at": moment(minute * MINUTE),
            "ended_at": None,
            "token": minute * MINUTE,
            "end_token": None,
            "acknowledged_at": None,
            "acknowledged_by_id": None,
            "acknowledged_name": "",
            "note": "",
        }
        for outage, (name, proxy, status, minute) in zip(
            Outage.objects.order_by("proxy_name"),
            [("oslo", None, "unreachable", 1), ("paris", paris.pk, "unhealthy", 4)],
            strict=True,
        )
    ]


def test_migration__reads_an_index():
    rows = WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"proxy-{index}") for index in range(20))
    make_history(rows, 400, end=NOW)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # A small table is read faster without an index.
            cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("ANALYZE")
    with explained_queries() as plans:
        migrate()
    assert len(plans) == 1
    assert not plans[0].scans_all_transitions, plans[0].text
    down = Transition.objects.last_of_each().filter(after__in=["unhealthy", "unreachable"])
    assert Outage.objects.count() == down.count() > 0
