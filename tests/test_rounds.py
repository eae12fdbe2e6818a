import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.db import OperationalError, connection

from proxyhealth import rounds
from proxyhealth.models import WorkspaceProxy
from proxyhealth.report import Reason, Status
from proxyhealth.rounds import RoundFailed
from tests.values import make_proxy

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def with_url(url, name="paris"):
    return replace(make_proxy(name), url=url)


def test_probe_all__none():
    assert rounds.probe_all([], NOW) == []


def test_probe_all__keeps_the_order_and_the_moment(serve):
    proxies = [with_url(serve(delay=delay).url, f"p{delay}") for delay in (0.3, 0, 0.1)]
    statuses = rounds.probe_all(proxies, NOW)
    assert [status.proxy for status in statuses] == proxies
    assert {status.checked_at for status in statuses} == {NOW}
    assert {status.status for status in statuses} == {Status.OK}


def test_probe_all__runs_together(serve):
    server = serve(delay=0.4)
    begin = time.monotonic()
    statuses = rounds.probe_all([with_url(server.url) for _ in range(20)], NOW)
    assert {status.status for status in statuses} == {Status.OK}
    assert time.monotonic() - begin < 20 * 0.4 / 4


def test_probe_all__never_more_at_once_than_concurrency(serve, configure, monkeypatch):
    configure(CONCURRENCY=3, TIMEOUT=5)
    lock, now, most = threading.Lock(), 0, 0
    server = serve(delay=0.05)
    original = rounds.probe

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

    monkeypatch.setattr(rounds, "probe", counting)
    statuses = rounds.probe_all([with_url(server.url) for _ in range(12)], NOW)
    assert len(statuses) == 12
    assert most == 3


def test_probe_all__a_bad_url_spoils_only_its_own_proxy(serve):
    proxies = [with_url(serve().url), with_url("http://[::1"), with_url(serve().url), with_url("")]
    statuses = rounds.probe_all(proxies, NOW)
    assert [status.status for status in statuses] == [
        Status.OK,
        Status.UNHEALTHY,
        Status.OK,
        Status.UNREGISTERED,
    ]
    assert statuses[1].reason is Reason.INVALID_URL


def test_probe_all__a_probe_that_is_stuck_holds_nobody_up(serve, configure, monkeypatch):
    configure(TIMEOUT=0.2)
    release = threading.Event()
    original = rounds.probe

    def stuck(proxy, checked_at):
        if proxy.name == "stuck":
            release.wait(20)
        return original(proxy, checked_at)

    monkeypatch.setattr(rounds, "probe", stuck)
    begin = time.monotonic()
    good, bad = rounds.probe_all([with_url(serve().url), with_url("http://127.0.0.1:1", "stuck")], NOW)
    assert time.monotonic() - begin < rounds.time_limit(2) + 0.5
    release.set()
    assert good.status is Status.OK
    assert (bad.status, bad.reason) == (Status.UNREACHABLE, Reason.TIMEOUT)
    assert bad.proxy_host == "127.0.0.1:1"
    assert bad.report.errors == ("request to proxy failed: no judgement before the end of the round",)


def test_probe_all__no_threads_to_be_had(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RoundFailed, match="no thread can be started: can't start new thread"):
        rounds.probe_all([with_url("http://127.0.0.1:1")], NOW)


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
    assert {status.status for status in rounds.probe_all(proxies, NOW)} == {Status.OK}


def test_time_limit__is_a_turn_of_timeouts_for_each_concurrency(configure):
    configure(TIMEOUT=5, CONCURRENCY=100)
    assert rounds.time_limit(100) == 11
    assert rounds.time_limit(101) == 16


@pytest.mark.django_db
def test_read_proxies__the_active_ones_in_one_query(django_assert_num_queries):
    for name in ("b", "a"):
        WorkspaceProxy.objects.create(name=name)
    WorkspaceProxy.objects.create(name="gone", deleted=True)
    with django_assert_num_queries(1):
        assert [proxy.name for proxy in rounds.read_proxies()] == ["a", "b"]


@pytest.mark.django_db
def test_read_proxies__some():
    one = WorkspaceProxy.objects.create(name="one", url="https://one.example.com", version="v1")
    WorkspaceProxy.objects.create(name="other")
    (found,) = rounds.read_proxies([one.pk, uuid4()])
    assert found == rounds.value_of(one)


@pytest.mark.django_db
def test_read_proxies__database_down():
    def refuse(*args):
        raise OperationalError("server closed the connection unexpectedly")

    with (
        connection.execute_wrapper(refuse),
        pytest.raises(RoundFailed, match="cannot be read from the database: server closed"),
    ):
        rounds.read_proxies()
