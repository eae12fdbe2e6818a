"""Several shards in one process: it takes another one while its probes only wait."""

import threading
from dataclasses import replace

import pytest

from proxyhealth.exceptions import RoundFailed
from proxyhealth.probing import pool
from proxyhealth.statuses import Reason, Status
from tests.support.values import NOW, make_proxy


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch):
    monkeypatch.setattr(pool, "_CLAIM_PAUSE", 0.01)


def shard_of(server, count=3):
    return [replace(make_proxy(f"p{i}"), url=server.url) for i in range(count)]


def test_probe_shards__silent_shard_delays_no_other(serve):
    silent, fast = serve(), serve()
    silent.gate.clear()
    waiting = [(1, shard_of(fast)), (2, shard_of(fast))]
    shards = pool.probe_shards((0, shard_of(silent)), lambda: waiting.pop(0) if waiting else None, NOW)
    assert [next(shards)[0], next(shards)[0]] == [1, 2]
    silent.gate.set()
    number, statuses = next(shards)
    assert (number, {status.status for status in statuses}) == (0, {Status.OK})
    assert list(shards) == []


def test_probe_shards__statuses_in_the_order_of_the_shard(serve):
    shard = [replace(make_proxy(f"p{delay}"), url=serve(delay=delay).url) for delay in (0.1, 0)]
    ((_, statuses),) = pool.probe_shards((0, shard), lambda: None, NOW)
    assert [status.proxy for status in statuses] == shard


@pytest.mark.parametrize("count", [4, 8])
def test_probe_shards__busy_process_takes_no_other(count, serve, configure):
    """Another process may have free threads."""
    configure(CONCURRENCY=4)
    silent = serve()
    silent.gate.clear()
    claims = []
    shards = pool.probe_shards((0, shard_of(silent, count)), lambda: claims.append(silent.gate.is_set()), NOW)
    threading.Timer(0.1, silent.gate.set).start()
    assert len(list(shards)) == 1
    assert False not in claims


def test_probe_shards__all_shards_share_concurrency(serve, configure, monkeypatch):
    configure(CONCURRENCY=8)
    lock, running, most = threading.Lock(), 0, 0
    original = pool.probe

    def counting(*args):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return original(*args)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(pool, "probe", counting)
    server = serve(delay=0.05)
    waiting = [(i, shard_of(server, 6)) for i in range(1, 5)]
    shards = dict(
        pool.probe_shards((0, shard_of(server, 6)), lambda: waiting.pop() if waiting else None, NOW)
    )
    assert waiting == [], "the process waited, but took no other shard"
    assert len(shards) == 5
    assert 6 < most <= 8


def test_probe_shards__hanging_probe_is_a_timeout(serve, configure, monkeypatch):
    configure(TIMEOUT=0.05)
    monkeypatch.setattr(pool, "time_limit", lambda count: 0.2)
    monkeypatch.setattr(pool, "probe", lambda *args: threading.Event().wait(2))
    ((number, statuses),) = pool.probe_shards((7, [make_proxy()]), lambda: None, NOW)
    assert number == 7
    assert [(s.status, s.reason) for s in statuses] == [(Status.UNREACHABLE, Reason.TIMEOUT)]


def test_probe_shards__stops_with_its_round(serve):
    silent = serve()
    silent.gate.clear()
    stop = threading.Event()
    stop.set()
    with pytest.raises(RoundFailed):
        next(pool.probe_shards((0, shard_of(silent)), lambda: None, NOW, stop))
