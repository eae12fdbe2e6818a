import logging
import re
import threading
import time
from datetime import UTC, datetime

import pytest
from django.core.cache import caches
from django.db import connection

from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.history.records import record_history
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import dispatch, runner, steps
from proxyhealth.rounds.recheck import run_check
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import RoundRequest, begin_round, take_token
from proxyhealth.storage.merge import Round
from tests.support.proxies import wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def test_run_round__checks_every_active_proxy(serve):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    WorkspaceProxy.objects.create(name="sydney", url=serve(report={"errors": ["x"]}).url)
    WorkspaceProxy.objects.create(name="oslo")
    WorkspaceProxy.objects.create(name="gone", url=serve().url, deleted=True)
    assert runner.run_round() == "success"
    snapshot = reader.read()
    assert {s.proxy.name: s.status for s in snapshot.statuses.values()} == {
        "paris": Status.OK,
        "sydney": Status.UNHEALTHY,
        "oslo": Status.UNREGISTERED,
    }
    assert {s.checked_at for s in snapshot.statuses.values()} == {snapshot.checked_at}
    assert snapshot.outcomes == {"success": 1}
    assert sum(snapshot.rounds.counts) == 1


def test_run_round__without_proxies_succeeds():
    assert runner.run_round() == "success"
    assert not reader.read().stale


def test_run_round__without_proxies_keeps_the_document(caplog):
    for _ in range(2):
        runner.run_round()
        record_history()
    assert sum(reader.read().rounds.counts) == 2
    assert "replaced" not in caplog.text


def test_run_round__unregistered_proxy_gets_no_request(serve):
    server = serve()
    WorkspaceProxy.objects.create(name="oslo", url="")
    runner.run_round()
    assert server.requests == 0


def test_run_round__database_down_keeps_snapshot(serve, redis_client, caplog, snapshot_key):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    runner.run_round()
    before = redis_client.get(snapshot_key)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed, match="the database is down"):
        runner.run_round()
    assert redis_client.get(snapshot_key) == before
    assert reader.read().outcomes == {"success": 1, "failure": 1}
    assert "the database is down" in reader.read().error
    assert "round failed: the proxies cannot be read from the database" in caplog.text


def test_run_round__after_failure_next_round_succeeds(serve):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        runner.run_round()
    assert runner.run_round() == "success"
    assert len(reader.read().statuses) == 1


def test_run_round__keeps_check_that_began_later(serve):
    server = serve()
    server.gate.clear()
    proxy = WorkspaceProxy.objects.create(name="paris", url=server.url)
    token = take_token()  # the round reads its proxies, then its probe is slow
    proxies = steps.read_proxies()
    proxy.url = serve(report={"errors": ["new place"]}).url
    proxy.save()
    run_check([proxy.pk])
    server.gate.set()
    statuses = runner.pool.probe_all(proxies, datetime.now(UTC))
    commit(statuses, token, full_round=Round(datetime.now(UTC), 1))
    status = reader.read().statuses[proxy.pk]
    assert (status.status, status.report.errors) == (Status.UNHEALTHY, ("new place",))


def test_run_round__during_another_is_skipped_and_counted(caplog):
    begin_round()
    assert runner.run_round(RoundRequest(min_gap=30)) == "running"
    assert reader.read().outcomes == {"skipped": 1}
    assert "round skipped" in caplog.text


def test_run_round__cache_down_raises(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match=r"the cache cannot be used: .*Connection refused"):
        runner.run_round()


def test_run_round__logs_start_and_end(serve, caplog):
    caplog.set_level(logging.INFO, logger="proxyhealth")
    WorkspaceProxy.objects.create(name="paris", url=serve(report={"errors": ["a\nround end b"]}).url)
    runner.run_round()
    runner.run_round()
    start, end, *second = [
        record.getMessage() for record in caplog.records if record.name.startswith("proxyhealth.rounds")
    ]
    assert start.startswith("round start token=")
    assert start.endswith(" proxies=1")
    assert end.startswith("round end token=")
    assert end.endswith(" proxies=1 ok=0 unhealthy=1 unreachable=0 unregistered=0")
    assert re.search(r" duration=\d+\.\d{3} ", end)
    assert len(second) == 2


def test_run_round__unexpected_error_raises_round_failed(monkeypatch, caplog):
    def fail(*args):
        raise LookupError("a bug")

    monkeypatch.setattr(steps, "read_proxies", fail)
    with pytest.raises(RoundFailed, match=r"an error of proxyhealth.*a bug"):
        runner.run_round()
    assert "round failed unexpectedly" in caplog.text
    assert "LookupError: a bug" in caplog.text


def test_run_round__unexpected_error_is_counted(monkeypatch):
    monkeypatch.setattr(runner.pool, "probe_all", lambda *args: 1 / 0)
    with pytest.raises(RoundFailed):
        runner.run_round()
    assert reader.read().outcomes == {"failure": 1}
    assert "division by zero" in reader.read().error


def test_run_round__waits_for_cache_that_restarts(serve, valkey, stopped):
    server = serve()
    server.gate.clear()
    WorkspaceProxy.objects.create(name="paris", url=server.url)

    def restart():
        wait_for(lambda: server.requests)
        stopped()
        server.gate.set()
        time.sleep(0.5)  # the round must find it down
        valkey.start()

    thread = threading.Thread(target=restart)
    thread.start()
    assert runner.run_round() == "success"
    thread.join(30)
    assert len(reader.read_anew().statuses) == 1


def test_run_round__gives_up_on_cache_that_stays_down(serve, stopped, monkeypatch, caplog):
    monkeypatch.setattr(steps, "COMMIT_TIMEOUT", 0.5)
    server = serve()
    server.gate.clear()
    WorkspaceProxy.objects.create(name="paris", url=server.url)

    def stop():
        wait_for(lambda: server.requests)
        stopped()
        server.gate.set()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(RoundFailed, match="the cache cannot be used"):
        runner.run_round()
    thread.join(30)
    assert "commit waits for the cache" in caplog.text
    assert "the lease of the round could not be released, it will expire" in caplog.text


def test_run_round__lost_lease_commits_nothing(serve, redis_client, snapshot_key):
    server = serve()
    server.gate.clear()
    WorkspaceProxy.objects.create(name="paris", url=server.url)
    other = []

    def take_over():
        wait_for(lambda: server.requests)
        key = caches["default"].make_key("proxyhealth:lease")
        # As if the process was paused for longer than its lease.
        redis_client.delete(key)
        other.append(begin_round())
        server.gate.set()

    thread = threading.Thread(target=take_over)
    thread.start()
    with pytest.raises(RoundFailed, match="another round has begun while this one ran"):
        runner.run_round()
    thread.join(30)
    assert redis_client.get(snapshot_key) is None
    assert begin_round().outcome == "running", "the other round keeps its lease"
    assert other[0].outcome == "begun"


def test_run_round__lost_lease_stops_probes(serve, redis_client, configure):
    configure(INTERVAL=2, CONCURRENCY=1)
    server = serve(delay=0.3)
    for i in range(30):
        WorkspaceProxy.objects.create(name=f"p{i}", url=server.url)

    def take_over():
        wait_for(lambda: server.requests)
        key = caches["default"].make_key("proxyhealth:lease")
        redis_client.delete(key)
        begin_round()
        redis_client.expire(key, 9)  # nothing renews it

    thread = threading.Thread(target=take_over)
    thread.start()
    with pytest.raises(RoundFailed, match="another round has begun"):
        runner.run_round()
    thread.join(30)
    assert server.requests < 10


def test_run_round__many_proxies_extend_lease(serve, configure, monkeypatch):
    """No earlier round shows how long this one takes."""
    configure(INTERVAL=8, CONCURRENCY=1, TIMEOUT=1)
    monkeypatch.setattr(steps, "READ_TIMEOUT", 0.1)
    monkeypatch.setattr(steps, "COMMIT_TIMEOUT", 0.1)
    server = serve(delay=0.5)
    for i in range(10):  # together they take longer than the lease
        WorkspaceProxy.objects.create(name=f"p{i}", url=server.url)
    outcomes = []

    def begin_others():
        wait_for(lambda: server.requests)
        while server.requests < 10:
            outcomes.append(begin_round().outcome)
            time.sleep(0.1)

    thread = threading.Thread(target=begin_others)
    thread.start()
    assert runner.run_round() == "success"
    thread.join(30)
    assert set(outcomes) == {"running"}


def test_run_round__begins_with_slow_proxies(serve, configure):
    configure(CONCURRENCY=1, TIMEOUT=2)
    silent, quick = serve(), serve()
    silent.gate.clear()
    for name in ("a", "b", "c"):
        WorkspaceProxy.objects.create(name=name, url=quick.url)
    WorkspaceProxy.objects.create(name="z", url=silent.url)
    runner.run_round()
    seen = []
    silent.gate.wait = lambda timeout: seen.append(quick.requests) or time.sleep(3)
    runner.run_round()
    assert seen == [3], "the silent proxy was first in the second round"


def test_run_round__requests_during_round_cause_one_more(serve, sent):
    server = serve()
    server.gate.clear()
    WorkspaceProxy.objects.create(name="paris", url=server.url)
    outcomes = []

    def request_rounds():
        wait_for(lambda: server.requests)
        for _ in range(10):
            outcomes.append(runner.run_round(RoundRequest(requested_token=take_token(), rerun_if_busy=True)))
        server.gate.set()

    sent.clear()
    thread = threading.Thread(target=request_rounds)
    thread.start()
    runner.run_round()
    thread.join(30)
    dispatch.request_check([]).result(30)
    assert outcomes == 10 * ["running"]
    assert sent == [None]
    assert reader.read().outcomes == {"success": 1}, "requests do not count as skipped ticks"


@pytest.fixture
def dead():
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")


def test_offline__round_keeps_snapshot_and_marks_it_stale(dead, configure, redis_client, snapshot_key):
    runner.run_round()
    before = redis_client.get(snapshot_key)
    configure(CANARY_URLS=["http://127.0.0.1:1/", "http://127.0.0.1:2/"])
    with pytest.raises(ProberOffline):
        runner.run_round()
    assert redis_client.get(snapshot_key) == before
    snapshot = reader.read()
    assert snapshot.outcomes == {"success": 1, "offline": 1}
    assert snapshot.stale
    assert snapshot.stale_reason.startswith(
        "Prober offline: proxies seem dead, but none of CANARY_URLS answers"
    )


def test_offline__one_canary_that_responds_is_enough(dead, serve, configure):
    configure(CANARY_URLS=["http://127.0.0.1:1/", serve().url + "/x?y"])
    assert runner.run_round() == "success"
    assert not reader.read().stale


def test_offline__canaries_get_no_request_if_proxies_respond(serve, configure):
    canary = serve()
    configure(CANARY_URLS=[canary.url])
    WorkspaceProxy.objects.create(name="paris", url=serve(report={"errors": ["x"]}).url)
    runner.run_round()
    assert canary.requests == 0
