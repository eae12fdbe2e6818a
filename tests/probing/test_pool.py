import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.db import OperationalError, connection

from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.probing import pool
from proxyhealth.rounds.shards import split
from proxyhealth.rounds.steps import read_proxies
from proxyhealth.statuses import Reason, Status
from tests.support.machine import at_most
from tests.support.values import make_proxy, make_status

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def with_url(url, name="paris"):
    return replace(make_proxy(name), url=url)


def test_probe_all__none():
    assert pool.probe_all([], NOW) == []


def test_probe_all__keeps_the_order_and_the_moment(serve):
    proxies = [with_url(serve(delay=delay).url, f"p{delay}") for delay in (0.3, 0, 0.1)]
    statuses = pool.probe_all(proxies, NOW)
    assert [status.proxy for status in statuses] == proxies
    assert {status.checked_at for status in statuses} == {NOW}
    assert {status.status for status in statuses} == {Status.OK}


def test_probe_all__runs_together(serve):
    server = serve(delay=0.4)
    with at_most(20 * 0.4 / 4):
        statuses = pool.probe_all([with_url(server.url) for _ in range(20)], NOW)
    assert {status.status for status in statuses} == {Status.OK}


def test_probe_all__never_more_at_once_than_concurrency(serve, configure, monkeypatch):
    configure(CONCURRENCY=3, TIMEOUT=5)
    lock, now, most = threading.Lock(), 0, 0
    server = serve(delay=0.05)
    original = pool.probe

    def counting(proxy, checked_at):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return original(proxy, checked_at)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(pool, "probe", counting)
    statuses = pool.probe_all([with_url(server.url) for _ in range(12)], NOW)
    assert len(statuses) == 12
    assert most == 3


def test_probe_all__a_bad_url_spoils_only_its_own_proxy(serve):
    proxies = [with_url(serve().url), with_url("http://[::1"), with_url(serve().url), with_url("")]
    statuses = pool.probe_all(proxies, NOW)
    assert [status.status for status in statuses] == [
        Status.OK,
        Status.UNHEALTHY,
        Status.OK,
        Status.UNREGISTERED,
    ]
    assert statuses[1].reason is Reason.INVALID_URL


def test_probe_all__a_probe_that_is_stuck_holds_nobody_up(serve, monkeypatch):
    monkeypatch.setattr(pool, "time_limit", lambda count: 2)
    release = threading.Event()
    original = pool.probe

    def stuck(proxy, checked_at):
        if proxy.name == "stuck":
            release.wait(60)
        return original(proxy, checked_at)

    monkeypatch.setattr(pool, "probe", stuck)
    with at_most(2.5):
        good, bad = pool.probe_all([with_url(serve().url), with_url("http://127.0.0.1:1", "stuck")], NOW)
    release.set()
    assert good.status is Status.OK
    assert (bad.status, bad.reason) == (Status.UNREACHABLE, Reason.TIMEOUT)
    assert bad.proxy_host == "127.0.0.1:1"
    assert bad.report.errors == ("request to proxy failed: no result before the end of the round",)


def test_probe_all__no_threads_to_be_had(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RoundFailed, match="no thread can be started: can't start new thread"):
        pool.probe_all([with_url("http://127.0.0.1:1")], NOW)


def test_probe_all__few_threads_to_be_had(monkeypatch, serve):
    start = threading.Thread.start
    started = []

    def grudging(self):
        if self.name == "probe":
            if started:
                raise RuntimeError("can't start new thread")
            started.append(self)
        start(self)

    proxies = [with_url(serve().url) for _ in range(5)]
    monkeypatch.setattr(threading.Thread, "start", grudging)
    assert {status.status for status in pool.probe_all(proxies, NOW)} == {Status.OK}


def test_probe_batches__who_answers_comes_before_who_does_not(serve):
    quick, slow = serve(), serve()
    slow.gate.clear()
    proxies = [with_url(slow.url, "slow"), with_url(quick.url, "a"), with_url(quick.url, "b")]
    batches = pool.probe_batches(proxies, NOW, batch_idle=0.1)
    first = next(batches)
    if len(first) == 1:  # a machine that is busy may have had a lull between the two
        first += next(batches)
    assert sorted(status.proxy.name for status in first) == ["a", "b"]
    slow.gate.set()
    (second,) = batches
    assert [status.proxy.name for status in second] == ["slow"]


def test_probe_batches__none_is_one_empty_batch():
    assert list(pool.probe_batches([], NOW, batch_idle=0.1)) == [[]]


def test_probe_all__nobody_is_asked_after_the_end_of_the_round(serve, configure, monkeypatch):
    configure(CONCURRENCY=1)
    monkeypatch.setattr(pool, "time_limit", lambda count: 0.3)
    server = serve(delay=0.2)
    pool.probe_all([with_url(server.url, f"p{i}") for i in range(20)], NOW)
    asked = server.requests
    time.sleep(0.6)  # what is under way may end
    assert server.requests <= asked + 1 < 5


def test_probe_batches__become_rarer(serve):
    proxies = [with_url(serve(delay=0.1 * i).url, f"p{i}") for i in range(1, 12)]
    begin = time.monotonic()
    batches = list(pool.probe_batches(proxies, NOW, batch_idle=0.02))
    assert sum(map(len, batches)) == 11
    # All but the last ended with a lull, each of them twice as long as the one before.
    lulls = sum(0.02 * 2**n for n in range(len(batches) - 1))
    assert lulls <= time.monotonic() - begin
    assert len(batches) > 1


def known_of(*statuses):
    return {status.proxy.id: status for status in statuses}


SLOW_FIRST = {
    "silent": {"status": Status.UNREACHABLE, "reason": Reason.TIMEOUT},
    "half": {"status": Status.UNHEALTHY, "reason": Reason.TIMEOUT, "latency": 0.9},
    "refused": {"status": Status.UNREACHABLE, "reason": Reason.CONNECT},
    "slow": {"latency": 0.05},
    "quick": {"latency": 0.002},
}


def test_slow_first__by_how_long_they_took_last_time():
    statuses = [make_status(make_proxy(name), **values) for name, values in SLOW_FIRST.items()]
    new, unregistered = make_proxy("new"), replace(make_proxy("unregistered"), url="")
    proxies = [unregistered, new, *[status.proxy for status in reversed(statuses)]]
    ordered = pool.slow_first(proxies, known_of(*statuses))
    assert {proxy.name for proxy in ordered[:2]} == {"silent", "half"}
    assert [proxy.name for proxy in ordered[2:]] == ["refused", "slow", "quick", "new", "unregistered"]


def test_slow_first__what_was_slow_at_another_url_is_not_known_to_be():
    status = make_status(make_proxy("moved"), **SLOW_FIRST["silent"])
    moved = replace(status.proxy, url="http://elsewhere.example.com")
    quick = make_status(make_proxy("quick"), latency=0.1)
    assert pool.slow_first([moved, quick.proxy], known_of(status, quick)) == [quick.proxy, moved]


def test_probe_all__the_silent_start_first(serve, configure, monkeypatch):
    """With room for two at once, who starts last decides how long it takes."""
    configure(CONCURRENCY=2, TIMEOUT=2)
    silent, server = serve(), serve(delay=0.1)
    silent.gate.clear()
    proxies = [with_url(server.url, f"p{i}") for i in range(8)] + [with_url(silent.url, "silent")]
    first = pool.probe_all(proxies, NOW)
    begun, original = [], pool.probe
    monkeypatch.setattr(
        pool, "probe", lambda proxy, moment: begun.append(proxy.name) or original(proxy, moment)
    )
    second = pool.probe_all(proxies, NOW, known_of(*first))
    assert "silent" in begun[:2]
    assert [s.status for s in second] == [s.status for s in first] == 8 * ["ok"] + ["unreachable"]


def test_split__into_shards_of_at_most_shard_size(configure):
    configure(SHARD_SIZE=3)
    proxies = [make_proxy(f"p{i}") for i in range(8)]
    shards = split(proxies, {})
    assert [len(shard) for shard in shards] == [3, 3, 2]
    assert {proxy.id for shard in shards for proxy in shard} == {proxy.id for proxy in proxies}


def test_split__the_silent_go_into_the_first_ones_as_many_as_a_process_bears_at_once(configure):
    configure(SHARD_SIZE=100, CONCURRENCY=4, TIMEOUT=5)
    silent = [make_status(make_proxy(f"s{i}"), **SLOW_FIRST["silent"]) for i in range(6)]
    quick = [make_status(make_proxy(f"q{i}"), latency=0.1) for i in range(20)]
    statuses = [*quick, *silent]
    shards = split([status.proxy for status in statuses], known_of(*statuses))
    silent_in = [sum(proxy.name.startswith("s") for proxy in shard) for shard in shards]
    assert silent_in == [4, 2]
    assert [len(shard) for shard in shards] == [4, 22]


def test_require_online__without_canaries_nobody_is_asked():
    pool.require_online([make_status(make_proxy(), Status.UNREACHABLE)])


def test_require_online__a_canary_that_hangs_is_no_answer(configure, monkeypatch):
    configure(CANARY_URLS=["http://a.example.com/"], TIMEOUT=0.1)
    end = threading.Event()
    monkeypatch.setattr(pool, "is_reachable", lambda url: end.wait(60))
    with pytest.raises(ProberOffline):
        pool.require_online([make_status(make_proxy(), Status.UNREACHABLE)])
    end.set()


def test_require_online__any_http_is_an_answer(serve, configure):
    configure(CANARY_URLS=[serve(report=[1]).url], ADDRESS_DENY=["127.0.0.0/8"])
    pool.require_online([make_status(make_proxy(), Status.UNREACHABLE)])


def test_probe_batches__threads_switch_as_before_when_the_last_one_is_done(serve, monkeypatch):
    monkeypatch.setattr(pool, "_SWITCH_THRESHOLD", 0)
    before = sys.getswitchinterval()
    server = serve()
    server.gate.clear()
    slow = pool.probe_batches([with_url(serve().url), with_url(server.url)], NOW, batch_idle=0.01)
    next(slow)
    assert sys.getswitchinterval() > before
    pool.probe_all([with_url(serve().url)], NOW)
    assert sys.getswitchinterval() > before
    server.gate.set()
    assert len(list(slow)) == 1
    assert sys.getswitchinterval() == before


def test_probe_batches__threads_switch_as_before_after_who_gave_up(serve, monkeypatch):
    monkeypatch.setattr(pool, "_SWITCH_THRESHOLD", 0)
    before = sys.getswitchinterval()
    server = serve()
    server.gate.clear()
    slow = pool.probe_batches([with_url(serve().url), with_url(server.url)], NOW, batch_idle=0.01)
    next(slow)
    slow.close()
    assert sys.getswitchinterval() == before


def test_time_limit__is_a_turn_of_timeouts_for_each_concurrency(configure):
    configure(TIMEOUT=5, CONCURRENCY=100)
    assert pool.time_limit(100) == 11
    assert pool.time_limit(101) == 16


@pytest.mark.django_db
def test_read_proxies__the_active_ones_in_one_query(django_assert_num_queries):
    for name in ("b", "a"):
        WorkspaceProxy.objects.create(name=name)
    WorkspaceProxy.objects.create(name="gone", deleted=True)
    with django_assert_num_queries(1):
        assert [proxy.name for proxy in read_proxies()] == ["a", "b"]


@pytest.mark.django_db
def test_read_proxies__some():
    one = WorkspaceProxy.objects.create(name="one", url="https://one.example.com", version="v1")
    WorkspaceProxy.objects.create(name="other")
    (found,) = read_proxies([one.pk, uuid4()])
    assert found == one.as_proxy()


@pytest.mark.django_db
def test_read_proxies__database_down():
    def refuse(*args):
        raise OperationalError("server closed the connection unexpectedly")

    with (
        connection.execute_wrapper(refuse),
        pytest.raises(RoundFailed, match="cannot be read from the database: server closed"),
    ):
        read_proxies()
