"""Two real databases behind a router: a primary, and a replica that lags behind it."""

from __future__ import annotations

import pytest
from django.db import OperationalError, connections
from django.test import Client

from proxyhealth import health
from proxyhealth.api import inventory
from proxyhealth.models import WorkspaceProxy
from tests.support.api import LIST, REGIONS
from tests.support.databases import database_with_table
from tests.support.proxies import wait_for

pytestmark = pytest.mark.django_db(transaction=True)

ADMIN = "/admin/proxyhealth/workspaceproxy/"
HEALTH = f"{ADMIN}health/"


class Router:
    """The proxies are in a primary, with a replica for reads. All other tables are in ``default``."""

    def db_for_read(self, model, **hints):
        return "replica" if model is WorkspaceProxy else None

    def db_for_write(self, model, **hints):
        return "primary" if model is WorkspaceProxy else None

    def allow_relation(self, *objects, **hints):
        return True


@pytest.fixture
def databases(settings, tmp_path, sent):
    with database_with_table("primary", tmp_path), database_with_table("replica", tmp_path):
        settings.DATABASE_ROUTERS = [Router()]
        yield


@pytest.fixture
def fleet(databases, serve):
    """Three proxies. The replica has only the first of them, with an older name."""
    rows = [WorkspaceProxy.objects.create(name=name, url=serve().url) for name in ("a", "b", "c")]
    WorkspaceProxy.objects.using("replica").create(id=rows[0].pk, name="old", url=rows[0].url)
    assert WorkspaceProxy.objects.count() == 1, "the project's own queries follow its router"
    health.request_check([]).result(30)
    return rows


def names_on(page):
    return [status.proxy.name for status in page.context["page"]]


def test_reads__all_use_the_primary(admin_client, fleet):
    health.force_update()
    assert sorted(health.snapshot().by_name) == ["a", "b", "c"]
    for path in (LIST, REGIONS):
        assert [proxy["name"] for proxy in admin_client.get(path).json()["regions"]] == ["a", "b", "c"]
    assert names_on(admin_client.get(HEALTH)) == ["a", "b", "c"]
    rows = admin_client.get(ADMIN).context["cl"].result_list
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert [proxy.name for proxy in inventory.read(now=True).proxies] == ["a", "b", "c"]
    assert admin_client.get(f"{ADMIN}?q=c").context["cl"].result_count == 1
    for page in ("change", "delete", "history"):
        assert admin_client.get(f"{ADMIN}{fleet[2].pk}/{page}/").status_code == 200


def test_reads__replica_is_never_queried(admin_client, fleet):
    def refuse(*args):
        raise OperationalError("the replica is down")

    health.force_update()
    with connections["replica"].execute_wrapper(refuse):
        health.force_update()
        for path in (LIST, f"{LIST}/b", REGIONS, ADMIN, HEALTH, f"{ADMIN}{fleet[0].pk}/change/"):
            assert admin_client.get(path).status_code == 200
        change = {"name": "b", "url": fleet[1].url, "version": "v2"}
        assert admin_client.post(f"{ADMIN}{fleet[1].pk}/change/", change).status_code == 302
        assert admin_client.post(f"{ADMIN}add/", {"name": "d"}).status_code == 302
        assert admin_client.post(f"{ADMIN}{fleet[2].pk}/delete/", {"post": "yes"}).status_code == 302
    assert WorkspaceProxy.objects.using("primary").active().count() == 3


def test_check_now__of_a_row_that_only_the_primary_has(admin_client, fleet, sent):
    sent.clear()
    admin_client.post(ADMIN, {"action": "check_now", "_selected_action": [fleet[2].pk]})
    wait_for(lambda: sent == [{str(fleet[2].pk)}])


def delete_all(client, fleet):
    data = {"action": "delete_selected", "_selected_action": [row.pk for row in fleet], "post": "yes"}
    return client.post(ADMIN, data)


def test_delete_selected__sends_one_task(admin_client, fleet, sent):
    sent.clear()
    assert delete_all(admin_client, fleet).status_code == 302
    assert not WorkspaceProxy.objects.using("primary").active().exists()
    wait_for(lambda: sent == [{str(row.pk) for row in fleet}])


def test_delete_selected__deletes_all_or_none(admin_client, fleet, sent):
    with connections["primary"].cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON proxyhealth_workspaceproxy WHEN NEW.name = 'b' "
            "BEGIN SELECT RAISE(ABORT, 'b is locked'); END"
        )
    sent.clear()
    with pytest.raises(Exception, match="b is locked"):
        delete_all(admin_client, fleet)
    assert WorkspaceProxy.objects.using("primary").active().count() == 3
    health.request_check([]).result(30)
    assert sent == []


def test_primary__ignores_the_replica_of_the_router(databases):
    assert WorkspaceProxy.objects.all().db == "replica"
    assert WorkspaceProxy.objects.primary().db == "primary"
    assert WorkspaceProxy.objects.active().primary().db == "primary"


def test_admin__anonymous_is_sent_to_its_login(databases):
    assert Client().get(HEALTH)["Location"].startswith("/admin/login/")
