"""The series of statuses that are not confirmed yet, of their beginning, and of the history."""

import re

import pytest
from django.core.cache import caches

from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.outbox import count_entries
from tests.metrics.scraping import samples, scrape
from tests.support.values import a_round, make_proxy, make_status

pytestmark = pytest.mark.django_db

PARIS = make_proxy()


def series(name):
    """Return the value of a series of the proxy, or None if it is absent."""
    return samples(scrape()).get((f"proxyhealth_{name}", ("proxy_id", str(PARIS.id))))


def commit_round(status: ProxyStatus) -> float:
    token = take_token()
    commit([status], token, full_round=a_round())
    return token / 1_000_000


def test_raw_results__differ_until_the_threshold(configure):
    configure(FAILURE_THRESHOLD=2)
    begin = commit_round(make_status(PARIS, latency=0.05))
    values = [series(name) for name in ("health_check_results", "raw_results", "probe_duration_seconds")]
    assert values == [1, 1, 0.05]
    assert series("status_since_timestamp_seconds") == pytest.approx(begin, abs=1e-5)

    lost = commit_round(make_status(PARIS, Status.UNREACHABLE))
    values = [series(name) for name in ("health_check_results", "raw_results", "probe_duration_seconds")]
    assert values == [1, -2, None], "the duration is that of the last probe"
    assert series("status_since_timestamp_seconds") == pytest.approx(begin, abs=1e-5)

    commit_round(make_status(PARIS, Status.UNREACHABLE))
    assert [series(name) for name in ("health_check_results", "raw_results")] == [-2, -2]
    assert series("status_since_timestamp_seconds") == pytest.approx(lost, abs=1e-5), "the first failure"


def test_since__absent_if_it_is_not_known(redis_client, snapshot_key):
    commit_round(make_status(PARIS))
    document = redis_client.get(snapshot_key)
    redis_client.set(snapshot_key, re.sub(rb'"since": \["[^"]+"\]', b'"since": [null]', document))
    assert series("raw_results") == 1
    assert series("status_since_timestamp_seconds") is None


def test_outbox__counts_what_is_not_written():
    assert samples(scrape())["proxyhealth_history_outbox_entries",] == 0
    commit_round(make_status(PARIS))
    assert samples(scrape())["proxyhealth_history_outbox_entries",] == count_entries() > 0


def test_outbox__that_cannot_be_counted_hides_nothing(redis_client):
    commit_round(make_status(PARIS))
    key = caches["default"].make_key("proxyhealth:outbox")
    redis_client.delete(key)
    redis_client.set(key, "no list")
    text = scrape()
    assert "proxyhealth_history_outbox_entries" not in text
    assert series("health_check_results") == 1
