import os
import signal
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.probing import pool
from proxyhealth.statuses import Reason, Status
from tests.support.machine import at_most
from tests.support.proxies import wait_for
from tests.support.values import make_proxy, make_status

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def with_url(url, name="paris"):
    return replace(make_proxy(name), url=url)


def test_probe_all__no_proxies():
    assert pool.probe_all([], NOW) == []


def test_probe_all__keeps_the_order_and_checked_at(serve):
    proxies = [with_url(serve(delay=delay).url, f"p{delay}") for delay in (0.3, 0, 0.1)]
    statuses = pool.probe_all(proxies, NOW)
    assert [status.proxy for status in statuses] == proxies
    assert {status.checked_at for status in statuses} == {NOW}
    assert {status.status for status in statuses} == {Status.OK}


def test_probe_all__paused_process_has_no_statuses(serve, configure):
    """A container that is paused for longer than TIMEOUT would find each proxy silent."""
    configure(TIMEOUT=1)
    server = serve()
    server.gate.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn about such forks
        pid = os.fork()
    if pid == 0:
        with suppress(RoundFailed):
            pool.probe_all([with_url(server.url)], NOW)
            os._exit(1)
        os._exit(0)
    wait_for(lambda: server.requests)
    os.kill(pid, signal.SIGSTOP)
    server.gate.set()
    time.sleep(1.1)
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_probe_all__probes_run_simultaneously(serve):
    server = serve(delay=0.4)
    with at_most(20 * 0.4 / 4):
        statuses = pool.probe_all([with_url(server.url) for _ in range(20)], NOW)
    assert {status.status for status in statuses} == {Status.OK}


def test_probe_all__never_exceeds_concurrency(serve, configure, monkeypatch):
    configure(CONCURRENCY=3, TIMEOUT=5)
    lock, now, most = threading.Lock(), 0, 0
    server = serve(delay=0.05)
    original = pool.probe

    def counting(*args):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return original(*args)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(pool, "probe", counting)
    statuses = pool.probe_all([with_url(server.url) for _ in range(12)], NOW)
    assert len(statuses) == 12
    assert most == 3


def test_probe_all__bad_url_affects_only_its_proxy(serve):
    proxies = [with_url(serve().url), with_url("http://[::1"), with_url(serve().url), with_url("")]
    statuses = pool.probe_all(proxies, NOW)
    assert [status.status for status in statuses] == [
        Status.OK,
        Status.UNHEALTHY,
        Status.OK,
        Status.UNREGISTERED,
    ]
    assert statuses[1].reason is Reason.INVALID_URL


def test_probe_all__hanging_probe_is_a_timeout(serve, monkeypatch):
    monkeypatch.setattr(pool, "time_limit", lambda count: 2)
    release = threading.Event()
    original = pool.probe

    def stuck(proxy, *args):
        if proxy.name == "stuck":
            release.wait(60)
        return original(proxy, *args)

    monkeypatch.setattr(pool, "probe", stuck)
    with at_most(2.5):
        good, bad = pool.probe_all([with_url(serve().url), with_url("http://127.0.0.1:1", "stuck")], NOW)
    release.set()
    assert good.status is Status.OK
    assert (bad.status, bad.reason) == (Status.UNREACHABLE, Reason.TIMEOUT)
    assert bad.proxy_host == "127.0.0.1:1"
    assert bad.report.errors == ("request to proxy failed: no result before the end of the round",)


def test_probe_all__no_thread_starts(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RoundFailed, match="no thread can be started: can't start new thread"):
        pool.probe_all([with_url("http://127.0.0.1:1")], NOW)


def test_probe_all__only_one_thread_starts(monkeypatch, serve):
    start = threading.Thread.start
    started = []

    def start_once(self):
        if self.name == "probe":
            if started:
                raise RuntimeError("can't start new thread")
            started.append(self)
        start(self)

    proxies = [with_url(serve().url) for _ in range(5)]
    monkeypatch.setattr(threading.Thread, "start", start_once)
    assert {status.status for status in pool.probe_all(proxies, NOW)} == {Status.OK}


def test_probe_all__thread_that_does_not_start_is_tried_again(monkeypatch, serve, configure):
    """Otherwise most proxies of the round would get no probe, and count as dead."""
    configure(TIMEOUT=0.4)
    start = threading.Thread.start
    started = []

    def refuse_second(self):
        if self.name == "probe":
            started.append(self)
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
        start(self)

    silent = serve()
    silent.gate.clear()
    proxies = [*(with_url(silent.url) for _ in range(10)), with_url(serve().url)]
    monkeypatch.setattr(threading.Thread, "start", refuse_second)
    assert pool.probe_all(proxies, NOW)[-1].status is Status.OK


def test_probe_batches__fast_proxies_before_slow_ones(serve):
    quick, slow = serve(), serve()
    slow.gate.clear()
    proxies = [with_url(slow.url, "slow"), with_url(quick.url, "a"), with_url(quick.url, "b")]
    batches = pool.probe_batches(proxies, NOW, batch_idle=0.1)
    first = next(batches)
    if len(first) == 1:  # a busy machine may be idle between the two
        first += next(batches)
    assert sorted(status.proxy.name for status in first) == ["a", "b"]
    slow.gate.set()
    (second,) = batches
    assert [status.proxy.name for status in second] == ["slow"]


def test_probe_batches__no_proxies_is_one_empty_batch():
    assert list(pool.probe_batches([], NOW, batch_idle=0.1)) == [[]]


def test_probe_all__no_probe_begins_after_the_time_limit(serve, configure, monkeypatch):
    configure(CONCURRENCY=1)
    monkeypatch.setattr(pool, "time_limit", lambda count: 0.3)
    server = serve(delay=0.2)
    pool.probe_all([with_url(server.url, f"p{i}") for i in range(20)], NOW)
    requests = server.requests
    time.sleep(0.6)  # the current probe may end
    assert server.requests <= requests + 1 < 5


def test_probe_batches__idle_time_doubles(serve):
    proxies = [with_url(serve(delay=0.1 * i).url, f"p{i}") for i in range(1, 12)]
    begin = time.monotonic()
    batches = list(pool.probe_batches(proxies, NOW, batch_idle=0.02))
    assert sum(map(len, batches)) == 11
    # All batches but the last ended with an idle time, each twice as long as the one before.
    idle = sum(0.02 * 2**n for n in range(len(batches) - 1))
    assert idle <= time.monotonic() - begin
    assert len(batches) > 1


def test_probe_all__silent_proxies_start_first(serve, configure, monkeypatch):
    """With two threads, the time depends on when the silent proxy starts."""
    configure(CONCURRENCY=2, TIMEOUT=2)
    silent, server = serve(), serve(delay=0.1)
    silent.gate.clear()
    proxies = [with_url(server.url, f"p{i}") for i in range(8)] + [with_url(silent.url, "silent")]
    first = pool.probe_all(proxies, NOW)
    started, original = [], pool.probe
    monkeypatch.setattr(
        pool, "probe", lambda proxy, *args: started.append(proxy.name) or original(proxy, *args)
    )
    second = pool.probe_all(proxies, NOW, {status.proxy.id: status for status in first})
    assert "silent" in started[:2]
    assert [s.status for s in second] == [s.status for s in first] == 8 * ["ok"] + ["unreachable"]


def test_require_online__without_canaries():
    pool.require_online([make_status(make_proxy(), Status.UNREACHABLE)])


def test_require_online__hanging_canary_is_offline(configure, monkeypatch):
    configure(CANARY_URLS=["http://a.example.com/"], TIMEOUT=0.1)
    end = threading.Event()
    monkeypatch.setattr(pool, "is_reachable", lambda url: end.wait(60))
    with pytest.raises(ProberOffline):
        pool.require_online([make_status(make_proxy(), Status.UNREACHABLE)])
    end.set()


def test_require_online__any_http_response_is_online(serve, configure):
    configure(CANARY_URLS=[serve(report=[1]).url], ADDRESS_DENY=["127.0.0.0/8"])
    pool.require_online([make_status(make_proxy(), Status.UNREACHABLE)])


def test_probe_all__starts_only_the_threads_that_it_needs(serve, configure, monkeypatch):
    """Each thread takes memory."""
    configure(CONCURRENCY=512, TIMEOUT=0.3)
    started, start = [], threading.Thread.start

    def count(thread):
        if thread.name == "probe":
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", count)
    silent = serve()
    silent.gate.clear()
    statuses = pool.probe_all(
        [*(with_url("") for _ in range(300)), *(with_url(silent.url) for _ in range(20))], NOW
    )
    assert len(statuses) == 320
    assert 20 <= len(started) < 60
