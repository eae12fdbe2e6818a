"""Rows that raw SQL has filled with values that cannot be read. They must not hide the others."""

from __future__ import annotations

import pytest
from django.db import OperationalError, connection
from django.test import Client

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from tests.support.api import LIST, REGIONS

pytestmark = pytest.mark.django_db

OF_SQLITE = [
    "id = 'not-a-uuid'",
    "id = x'00ff'",
    "created_at = 'rubbish'",
    "updated_at = '9999-13-45 00:00:00'",
    "name = x'6162'",
    "url = x'ff'",
    "version = CAST(x'ff' AS TEXT)",
]
OF_POSTGRESQL = ["created_at = 'infinity'", "updated_at = '-infinity'", "created_at = '10000-01-01'"]
HEALTH = "/admin/proxyhealth/workspaceproxy/health/"


def spoil(row, change):
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE proxyhealth_workspaceproxy SET {change} WHERE id = %s", [row.pk.hex])


@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param(change, marks=pytest.mark.sqlite) for change in OF_SQLITE),
        *(pytest.param(change, marks=pytest.mark.postgresql) for change in OF_POSTGRESQL),
    ],
)
def test_unreadable_row__is_omitted_and_logged(admin_client, caplog, configure, serve, change):
    configure(PUBLIC_REGIONS=True)
    good = {WorkspaceProxy.objects.create(name=name, url=serve().url).pk for name in ("a", "c", "d")}
    spoil(WorkspaceProxy.objects.create(name="b", url=serve().url), change)
    assert set(health.force_update().statuses) == good
    assert "a row of the proxies cannot be read, correct or delete it: " in caplog.text
    for client, path in [(Client(), REGIONS), (admin_client, LIST)]:
        regions = client.get(path).json()["regions"]
        assert {region["name"]: region["healthy"] for region in regions} == dict.fromkeys("acd", True)
    assert [status.proxy.name for status in admin_client.get(HEALTH).context["page"]] == ["a", "c", "d"]
    assert Client().get("/metrics").status_code == 200


@pytest.mark.parametrize("moment", ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"])
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Chicago"])
def test_first_and_last_moment__without_time_zones(admin_client, settings, request, moment, zone):
    settings.USE_TZ, settings.TIME_ZONE = False, zone
    spoil(request.getfixturevalue("paris"), f"created_at = '{moment}', updated_at = '{moment}'")
    health.force_update()
    (region,) = admin_client.get(LIST).json()["regions"]
    assert region["updated_at"][:4] == moment[:4]
    assert admin_client.get(HEALTH).status_code == 200


def test_as_proxies__raises_errors_of_the_database(paris):
    def refuse(*args):
        raise OperationalError("the database is down")

    with connection.execute_wrapper(refuse), pytest.raises(OperationalError):
        WorkspaceProxy.objects.active().as_proxies()
