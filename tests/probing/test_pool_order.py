"""The order of probes and the time limit: no server, no thread."""

from dataclasses import replace

from proxyhealth.probing import pool
from proxyhealth.statuses import Reason, Status
from tests.support.values import make_proxy, make_status


def by_id(*statuses):
    return {status.proxy.id: status for status in statuses}


SLOW_FIRST = {
    "silent": {"status": Status.UNREACHABLE, "reason": Reason.TIMEOUT},
    "half": {"status": Status.UNHEALTHY, "reason": Reason.TIMEOUT, "latency": 0.9},
    "refused": {"status": Status.UNREACHABLE, "reason": Reason.CONNECT},
    "slow": {"latency": 0.05},
    "quick": {"latency": 0.002},
}


def test_slow_first__sorts_by_the_previous_latency():
    statuses = [make_status(make_proxy(name), **values) for name, values in SLOW_FIRST.items()]
    new, unregistered = make_proxy("new"), replace(make_proxy("unregistered"), url="")
    proxies = [unregistered, new, *[status.proxy for status in reversed(statuses)]]
    ordered = pool.slow_first(proxies, by_id(*statuses))
    assert {proxy.name for proxy in ordered[:2]} == {"silent", "half"}
    assert [proxy.name for proxy in ordered[2:]] == ["refused", "slow", "quick", "new", "unregistered"]


def test_slow_first__ignores_the_latency_at_another_url():
    status = make_status(make_proxy("moved"), **SLOW_FIRST["silent"])
    moved = replace(status.proxy, url="http://elsewhere.example.com")
    quick = make_status(make_proxy("quick"), latency=0.1)
    assert pool.slow_first([moved, quick.proxy], by_id(status, quick)) == [quick.proxy, moved]


def test_time_limit__grows_with_each_concurrency(configure):
    configure(TIMEOUT=5, CONCURRENCY=100)
    assert pool.time_limit(100) == 11
    assert pool.time_limit(101) == 16
