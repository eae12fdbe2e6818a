import threading
import time
from uuid import uuid4

import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection

from proxyhealth.health import (
    RoundFailed,
    force_update,
    health_status,
    proxy_hosts,
    snapshot,
    status_of,
    statuses_of,
)
from proxyhealth.models import WorkspaceProxy
from proxyhealth.statuses import Status
from proxyhealth.storage.lease import begin_round, end_round
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def test_health_status__before_first_round_is_empty():
    assert health_status() == {}
    assert proxy_hosts() == []
    assert snapshot().stale


def test_health_status__maps_ids_to_statuses(serve):
    server = serve(report={"warnings": ["old version"]})
    paris = WorkspaceProxy.objects.create(name="paris", display_name="Paris", url=server.url, version="v1")
    begin = time.monotonic()
    force_update()
    took = time.monotonic() - begin
    status = health_status()[paris.pk]
    assert status.status is Status.OK
    assert status.proxy.display_name == "Paris"
    assert status.proxy.version == "v1"
    assert status.proxy_host == server.host
    assert status.report.warnings == ("old version",)
    assert status.report.errors == ()
    assert 0 < status.latency < took
    assert status.checked_at == snapshot().checked_at


def test_health_status__is_read_only():
    with pytest.raises(TypeError):
        health_status()[uuid4()] = None


def test_health_status__keeps_values_of_last_check(serve):
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    force_update()
    WorkspaceProxy.objects.update(display_name="renamed")
    assert health_status()[paris.pk].proxy.display_name == ""


def test_reads__make_no_query(serve, django_assert_num_queries):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    force_update()
    with django_assert_num_queries(0):
        health_status()
        proxy_hosts()
        snapshot()


def test_reads__invalid_setting_is_improperly_configured(configure):
    configure(READ_INTERVAL="soon")
    for read in (health_status, proxy_hosts, snapshot):
        with pytest.raises(ImproperlyConfigured, match="READ_INTERVAL"):
            read()


def test_proxy_hosts__all_and_healthy_only(serve):
    good, bad = serve(), serve(report={"errors": ["x"]})
    WorkspaceProxy.objects.create(name="a-good", url=good.url + "/")
    WorkspaceProxy.objects.create(name="b-bad", url=bad.url)
    WorkspaceProxy.objects.create(name="c-same", url=good.url)
    WorkspaceProxy.objects.create(name="d-none")
    WorkspaceProxy.objects.create(name="e-unusable", url="http://[::1")
    force_update()
    WorkspaceProxy.objects.create(name="f-new", url="https://unprobed.example.com")
    assert proxy_hosts() == [good.host, bad.host]
    assert proxy_hosts(healthy_only=True) == [good.host]


@pytest.mark.parametrize("healthy_only", [False, True])
def test_proxy_hosts__is_read_only(serve, configure, healthy_only):
    server = serve()
    WorkspaceProxy.objects.create(name="paris", url=server.url)
    force_update()
    configure(READ_INTERVAL=60)
    hosts = proxy_hosts(healthy_only=healthy_only)
    with pytest.raises(TypeError, match="make a copy"):
        hosts.clear()
    own = list(hosts)
    own.clear()
    assert proxy_hosts(healthy_only=healthy_only) == [server.host]


def test_proxy_hosts__is_shared_by_callers(serve, configure):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    force_update()
    configure(READ_INTERVAL=60)
    assert proxy_hosts() is proxy_hosts()
    assert proxy_hosts(healthy_only=True) is proxy_hosts(healthy_only=True)


def test_force_update__returns_new_snapshot(serve, configure):
    configure(READ_INTERVAL=60)
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    assert health_status() == {}
    result = force_update()
    assert list(result.statuses) == [paris.pk]
    assert (result.number, result.stale) == (1, False)
    assert result.duration > 0
    assert health_status() == result.statuses


def test_force_update__database_down_keeps_snapshot(serve, redis_client):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    force_update()
    key = caches["default"].make_key("proxyhealth:snapshot")
    before = redis_client.get(key)

    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed, match="database is down"):
        force_update()
    assert redis_client.get(key) == before
    assert snapshot().outcomes == {"success": 1, "failure": 1}


def test_force_update__waits_for_running_round(serve):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    begun = begin_round()
    end = threading.Timer(0.3, end_round, [begun.token])
    end.start()
    assert len(force_update().statuses) == 1
    assert end.finished.is_set()
    end.join(5)


def test_force_update__gives_up_on_endless_round(monkeypatch):
    monkeypatch.setattr("proxyhealth.health.steps.lease_limit", lambda count: 0.2)
    begin_round()
    with pytest.raises(RoundFailed, match="another round is still running"):
        force_update()


def test_force_update__callers_share_a_later_round(monkeypatch):
    """Ten callers that wait for a round to end need one more round, not ten."""
    monkeypatch.setattr("proxyhealth.rounds.runner.take_token", lambda: 1)
    force_update()
    assert force_update().number == 1


def test_force_update__cache_down_raises(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match="the cache cannot be used"):
        force_update()


def test_statuses_of__joins_rows_and_statuses_in_one_query(serve, django_assert_num_queries):
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    force_update()
    WorkspaceProxy.objects.filter(pk=paris.pk).update(display_name="Paris!")
    WorkspaceProxy.objects.create(name="new", url="http://127.0.0.1:1")
    with django_assert_num_queries(1):
        new, checked = statuses_of(WorkspaceProxy.objects.active())
    assert (new.proxy.name, new.status, new.checked_at) == ("new", Status.UNKNOWN, None)
    assert (checked.proxy.display_name, checked.status) == ("Paris!", Status.OK)


def test_statuses_of__database_down_raises():
    with connection.execute_wrapper(refuse_queries), pytest.raises(OperationalError):
        statuses_of(WorkspaceProxy.objects.active())


def test_status_of__new_url_is_unknown(serve):
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    force_update()
    assert status_of(paris).status is Status.OK
    paris.url = "https://elsewhere.example.com"
    assert status_of(paris).status is Status.UNKNOWN
