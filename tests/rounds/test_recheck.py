import threading
from uuid import uuid4

import pytest
from django.db import connection

from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import dispatch, runner, steps
from proxyhealth.rounds.recheck import run_check
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from tests.support.proxies import wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def test_run_check__checks_only_these_ids(serve):
    one = WorkspaceProxy.objects.create(name="one", url=serve().url)
    server = serve()
    WorkspaceProxy.objects.create(name="other", url=server.url)
    run_check([one.pk])
    assert list(reader.read().statuses) == [one.pk]
    assert server.requests == 0


def test_run_check__removes_deleted_proxies(serve):
    soft = WorkspaceProxy.objects.create(name="soft", url=serve().url)
    hard = WorkspaceProxy.objects.create(name="hard", url=serve().url)
    runner.run_round()
    hard_id = hard.pk
    hard.delete()
    WorkspaceProxy.objects.filter(pk=soft.pk).update(deleted=True)
    run_check([soft.pk, hard_id, uuid4()])
    assert reader.read().statuses == {}


def test_run_check__database_down_keeps_snapshot(serve, redis_client, snapshot_key):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    runner.run_round()
    before = redis_client.get(snapshot_key)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        run_check([proxy.pk])
    assert redis_client.get(snapshot_key) == before


def test_run_check__cache_down_raises(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match="the cache cannot be used"):
        run_check([uuid4()])


def test_run_check__in_empty_cache_requests_round(serve, sent):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    run_check([proxy.pk])
    wait_for(lambda: sent == [None])
    runner.run_round()
    run_check([proxy.pk])
    dispatch.request_check([]).result(30)
    assert sent == [None], "a snapshot with a full round needs no other"


def test_run_check__offline_commits_proxies_that_responded(serve, configure):
    configure(CANARY_URLS=["http://127.0.0.1:1/"])
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    with pytest.raises(RoundFailed, match="Prober offline"):
        run_check(WorkspaceProxy.objects.values_list("pk", flat=True))
    assert list(reader.read().statuses) == [paris.pk]


def test_run_check__slow_proxy_does_not_delay_fast_one(serve):
    silent = serve()
    silent.gate.clear()
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    slow = WorkspaceProxy.objects.create(name="slow", url=silent.url)
    committed_first = []

    def wait_for_commit():
        wait_for(lambda: paris.pk in reader.read_anew().statuses)
        committed_first.extend(reader.read_anew().statuses)
        silent.gate.set()

    thread = threading.Thread(target=wait_for_commit)
    thread.start()
    run_check([paris.pk, slow.pk])
    thread.join(30)
    assert committed_first == [paris.pk]
    assert reader.read_anew().statuses[slow.pk].status is Status.OK


def test_run_check__unexpected_error_raises_round_failed(monkeypatch, caplog):
    def fail(*args):
        raise LookupError("a bug")

    monkeypatch.setattr(steps, "read_proxies", fail)
    with pytest.raises(RoundFailed, match=r"an error of proxyhealth.*a bug"):
        run_check([uuid4()])
    assert "check failed unexpectedly" in caplog.text
    assert "LookupError: a bug" in caplog.text
