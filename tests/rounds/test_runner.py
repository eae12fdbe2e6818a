import logging
import re
import threading
import time
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.core.cache import caches
from django.db import connection

from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import dispatch, recheck, runner
from proxyhealth.rounds.recheck import run_check
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.document import Round
from proxyhealth.storage.lease import RoundRequest, begin_round, take_token
from tests.support.proxies import wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def raw_snapshot(redis_client):
    return redis_client.get(caches["default"].make_key("proxyhealth:snapshot"))


def test_run_round__a_status_for_every_active_proxy(serve):
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


def test_run_round__no_proxies_is_a_round_too():
    assert runner.run_round() == "success"
    assert not reader.read().stale


def test_run_round__an_unregistered_proxy_is_not_asked(serve):
    server = serve()
    WorkspaceProxy.objects.create(name="oslo", url="")
    runner.run_round()
    assert server.requests == 0


def test_run_round__database_down_leaves_the_snapshot_byte_for_byte(serve, redis_client, caplog):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    runner.run_round()
    before = raw_snapshot(redis_client)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed, match="the database is down"):
        runner.run_round()
    assert raw_snapshot(redis_client) == before
    assert reader.read().outcomes == {"success": 1, "failure": 1}
    assert "the database is down" in reader.read().error
    assert "round failed: the proxies cannot be read from the database" in caplog.text


def test_run_round__after_a_failure_the_next_one_runs(serve):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        runner.run_round()
    assert runner.run_round() == "success"
    assert len(reader.read().statuses) == 1


def test_run_round__does_not_overwrite_a_check_that_began_later(serve):
    server = serve()
    server.gate.clear()
    proxy = WorkspaceProxy.objects.create(name="paris", url=server.url)
    reading = take_token()  # the round began to read here, and its probe is slow
    slow = runner.read_proxies()
    proxy.url = serve(report={"errors": ["new place"]}).url
    proxy.save()
    run_check([proxy.pk])
    server.gate.set()
    statuses = runner.pool.probe_all(slow, datetime.now(UTC))
    commit(statuses, reading, full_round=Round(datetime.now(UTC), 1))
    status = reader.read().statuses[proxy.pk]
    assert (status.status, status.report.errors) == (Status.UNHEALTHY, ("new place",))


def test_run_round__is_skipped_and_counted_while_another_one_runs(caplog):
    begin_round()
    assert runner.run_round(RoundRequest(min_gap=30)) == "running"
    assert reader.read().outcomes == {"skipped": 1}
    assert "round skipped" in caplog.text


def test_run_round__cache_down(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match=r"the cache cannot be used: .*Connection refused"):
        runner.run_round()


def test_run_round__can_be_followed_in_the_log(serve, caplog):
    caplog.set_level(logging.INFO, logger="proxyhealth")
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve(report={"errors": ["a\nround end b"]}).url)
    runner.run_round()
    runner.run_round()
    messages = [
        record.getMessage() for record in caplog.records if record.name == "proxyhealth.rounds.runner"
    ]
    start, change, end, *second = messages
    assert start.startswith("round start token=")
    assert start.endswith(" proxies=1")
    assert change == (
        f"status change proxy={proxy.pk} name=paris from=none to=unhealthy reason=report_errors "
        'error="a round end b"'
    )
    assert end.startswith("round end token=")
    assert end.endswith(" proxies=1 ok=0 unhealthy=1 unreachable=0 unregistered=0")
    assert re.search(r" duration=\d+\.\d{3} ", end)
    assert len(second) == 2, "a status that stays is no change"


def test_run_check__just_these(serve):
    one = WorkspaceProxy.objects.create(name="one", url=serve().url)
    server = serve()
    WorkspaceProxy.objects.create(name="other", url=server.url)
    run_check([one.pk])
    assert list(reader.read().statuses) == [one.pk]
    assert server.requests == 0


def test_run_check__takes_out_what_is_deleted_or_gone(serve):
    soft = WorkspaceProxy.objects.create(name="soft", url=serve().url)
    hard = WorkspaceProxy.objects.create(name="hard", url=serve().url)
    runner.run_round()
    hard_id = hard.pk
    hard.delete()
    WorkspaceProxy.objects.filter(pk=soft.pk).update(deleted=True)
    run_check([soft.pk, hard_id, uuid4()])
    assert reader.read().statuses == {}


def test_run_check__database_down_leaves_the_snapshot(serve, redis_client):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    runner.run_round()
    before = raw_snapshot(redis_client)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        run_check([proxy.pk])
    assert raw_snapshot(redis_client) == before


def test_run_check__cache_down(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match="the cache cannot be used"):
        run_check([uuid4()])


def test_run_check__in_an_emptied_cache_asks_for_a_full_round(serve, sent):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    run_check([proxy.pk])
    wait_for(lambda: sent == [None])
    runner.run_round()
    run_check([proxy.pk])
    dispatch.request_check([]).result(30)
    assert sent == [None], "a snapshot that a round has been committed to needs no other"


@pytest.mark.parametrize("run", [runner.run_round, lambda: run_check([uuid4()])])
def test_run__what_nobody_expected_is_a_failure_too(run, monkeypatch, caplog):
    def fail(*args):
        raise LookupError("a bug")

    monkeypatch.setattr(runner, "read_proxies", fail)
    monkeypatch.setattr(recheck, "read_proxies", fail)
    with pytest.raises(RoundFailed, match=r"an error of proxyhealth.*a bug"):
        run()
    assert "failed unexpectedly" in caplog.text
    assert "LookupError: a bug" in caplog.text


def test_run_round__what_nobody_expected_is_counted(monkeypatch):
    monkeypatch.setattr(runner.pool, "probe_all", lambda *args: 1 / 0)
    with pytest.raises(RoundFailed):
        runner.run_round()
    assert reader.read().outcomes == {"failure": 1}
    assert "division by zero" in reader.read().error


def test_log__a_name_that_looks_like_a_log_line_is_quoted(serve, caplog):
    caplog.set_level(logging.INFO, logger="proxyhealth")
    WorkspaceProxy.objects.create(name="a\nround end", url=serve().url)
    runner.run_round()
    assert r'name="a\nround end" from=none' in caplog.text


def test_run_round__waits_for_a_cache_that_is_restarted(serve, valkey, stopped):
    server = serve()
    server.gate.clear()
    WorkspaceProxy.objects.create(name="paris", url=server.url)

    def restart():
        wait_for(lambda: server.requests)
        stopped()
        server.gate.set()
        time.sleep(0.5)  # the round is to find it away
        valkey.start()

    thread = threading.Thread(target=restart)
    thread.start()
    assert runner.run_round() == "success"
    thread.join(30)
    assert len(reader.read_anew().statuses) == 1


def test_run_round__gives_up_on_a_cache_that_stays_away(serve, stopped, monkeypatch, caplog):
    monkeypatch.setattr(runner, "_COMMIT_TIMEOUT", 0.5)
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
    assert "round waits for the cache" in caplog.text
    assert "the lease of the round could not be given back" in caplog.text


def test_run_round__whose_lease_was_taken_over_commits_nothing(serve, redis_client):
    server = serve()
    server.gate.clear()
    WorkspaceProxy.objects.create(name="paris", url=server.url)
    other = []

    def take_over():
        wait_for(lambda: server.requests)
        key = caches["default"].make_key("proxyhealth:lease")
        # As after a pause of the whole process that was longer than its lease.
        redis_client.delete(key)
        other.append(begin_round())
        server.gate.set()

    thread = threading.Thread(target=take_over)
    thread.start()
    with pytest.raises(RoundFailed, match="another round has begun while this one ran"):
        runner.run_round()
    thread.join(30)
    assert raw_snapshot(redis_client) is None
    assert begin_round().outcome == "running", "the other one has kept its lease"
    assert other[0].outcome == "begun"


def test_run_round__that_is_taken_over_stops_to_probe(serve, redis_client, configure):
    configure(INTERVAL=2, CONCURRENCY=1)
    server = serve(delay=0.3)
    for i in range(30):
        WorkspaceProxy.objects.create(name=f"p{i}", url=server.url)

    def take_over():
        wait_for(lambda: server.requests)
        key = caches["default"].make_key("proxyhealth:lease")
        redis_client.delete(key)
        begin_round()
        redis_client.expire(key, 9)  # nobody renews it

    thread = threading.Thread(target=take_over)
    thread.start()
    with pytest.raises(RoundFailed, match="another round has begun"):
        runner.run_round()
    thread.join(30)
    assert server.requests < 10


def test_run_round__of_many_is_given_the_time_that_it_needs(serve, configure, monkeypatch):
    """A first one, of which nobody knows how long it takes."""
    configure(INTERVAL=8, CONCURRENCY=1, TIMEOUT=1)
    monkeypatch.setattr(runner, "_READ_TIMEOUT", 0.1)
    monkeypatch.setattr(runner, "_COMMIT_TIMEOUT", 0.1)
    server = serve(delay=0.5)
    for i in range(10):  # together they take longer than a lease
        WorkspaceProxy.objects.create(name=f"p{i}", url=server.url)
    others = []

    def look():
        wait_for(lambda: server.requests)
        while server.requests < 10:
            others.append(begin_round().outcome)
            time.sleep(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    assert runner.run_round() == "success"
    thread.join(30)
    assert set(others) == {"running"}


def test_run_round__begins_with_who_was_silent_the_last_time(serve, configure):
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
    assert seen == [3], "no other had been asked a second time"


def test_run_round__asked_for_while_one_runs_is_followed_by_one_more(serve, sent):
    server = serve()
    server.gate.clear()
    WorkspaceProxy.objects.create(name="paris", url=server.url)
    asked = []

    def ask():
        wait_for(lambda: server.requests)
        for _ in range(10):
            asked.append(runner.run_round(RoundRequest(requested_token=take_token(), rerun_if_busy=True)))
        server.gate.set()

    sent.clear()
    thread = threading.Thread(target=ask)
    thread.start()
    runner.run_round()
    thread.join(30)
    dispatch.request_check([]).result(30)
    assert asked == 10 * ["running"]
    assert sent == [None]
    assert reader.read().outcomes == {"success": 1}, "who asks is no tick that was skipped"


# Canaries


@pytest.fixture
def dead():
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")


def test_offline__the_round_is_kept_apart(dead, configure, redis_client):
    runner.run_round()
    before = raw_snapshot(redis_client)
    configure(CANARY_URLS=["http://127.0.0.1:1/", "http://127.0.0.1:2/"])
    with pytest.raises(ProberOffline):
        runner.run_round()
    assert raw_snapshot(redis_client) == before
    snapshot = reader.read()
    assert snapshot.outcomes == {"success": 1, "offline": 1}
    assert snapshot.stale
    assert snapshot.stale_reason.startswith(
        "Prober offline: proxies seem dead, but none of CANARY_URLS answers"
    )


def test_offline__one_canary_that_answers_is_enough(dead, serve, configure):
    configure(CANARY_URLS=["http://127.0.0.1:1/", serve().url + "/x?y"])
    assert runner.run_round() == "success"
    assert not reader.read().stale


def test_offline__nobody_asks_while_all_proxies_answer(serve, configure):
    canary = serve()
    configure(CANARY_URLS=[canary.url])
    WorkspaceProxy.objects.create(name="paris", url=serve(report={"errors": ["x"]}).url)
    runner.run_round()
    assert canary.requests == 0


def test_offline__a_check_commits_only_what_answered(dead, serve, configure):
    configure(CANARY_URLS=["http://127.0.0.1:1/"])
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    with pytest.raises(RoundFailed, match="Prober offline"):
        run_check(WorkspaceProxy.objects.values_list("pk", flat=True))
    assert list(reader.read().statuses) == [paris.pk]


def test_run_check__who_answers_does_not_wait_for_who_does_not(serve):
    silent = serve()
    silent.gate.clear()
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    slow = WorkspaceProxy.objects.create(name="slow", url=silent.url)
    seen = []

    def look():
        wait_for(lambda: paris.pk in reader.read_anew().statuses)
        seen.extend(reader.read_anew().statuses)
        silent.gate.set()

    thread = threading.Thread(target=look)
    thread.start()
    run_check([paris.pk, slow.pk])
    thread.join(30)
    assert seen == [paris.pk]
    assert reader.read_anew().statuses[slow.pk].status is Status.OK
