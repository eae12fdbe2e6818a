"""Staleness: it depends on the clock of Redis and on the reader's monotonic clock, on no wall clock."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.merge import Round
from tests.support.proxies import wait_for
from tests.support.values import make_proxy, make_status


def assert_fresh(begin, seconds):
    """Fail if the snapshot is stale, unless the machine itself took so many ``seconds`` since ``begin``."""
    assert not reader.read().stale or time.monotonic() - begin >= seconds


HOURS = [timedelta(hours=-1), timedelta(0), timedelta(hours=1)]


@pytest.mark.parametrize("off", HOURS)
def test_stale__ignores_the_clock_of_the_worker(configure, off):
    configure(STALE_AFTER=0.5)
    begin = time.monotonic()
    commit([], take_token(), full_round=Round(datetime.now(UTC) + off, 0.1))
    assert_fresh(begin, 0.5)
    wait_for(lambda: reader.read().stale, 2)
    assert "No round has ended since" in reader.read().stale_reason


def test_stale__a_new_process_knows_the_age(configure):
    configure(STALE_AFTER=0.5)
    commit([], take_token(), full_round=Round(datetime.now(UTC), 0.1))
    time.sleep(0.6)
    reader.forget()
    assert reader.read().stale


def test_stale__a_check_of_a_few_proxies_refreshes_nothing(configure):
    configure(STALE_AFTER=0.6)
    commit([], take_token(), full_round=Round(datetime.now(UTC), 0.1))
    end = time.monotonic() + 1
    while time.monotonic() < end:
        commit([make_status(make_proxy())], take_token())
        reader.read()
    assert reader.read().stale


def test_stale__after_the_cache_clock_was_set_back(configure, redis_client, snapshot_key):
    """The token is then from the future. The snapshot turns stale even so."""
    configure(STALE_AFTER=0.5)
    ahead = int((time.time() + 3_600) * 1_000_000)
    begin = time.monotonic()
    commit([], ahead, full_round=Round(datetime.now(UTC), 0.1))
    assert json.loads(redis_client.get(snapshot_key))["ticket"] == ahead
    assert_fresh(begin, 0.5)
    time.sleep(0.6)
    commit([make_status(make_proxy())], ahead + 1)
    assert reader.read().stale


def test_stale__ends_with_the_next_round(configure):
    configure(STALE_AFTER=0.3)
    for _ in range(3):
        begin = time.monotonic()
        commit([], take_token(), full_round=Round(datetime.now(UTC), 0.1))
        assert_fresh(begin, 0.3)
        wait_for(lambda: reader.read().stale, 2)


def test_stale__after_the_machine_slept(configure, monkeypatch):
    """The monotonic clock stands still meanwhile, the clock of the cache does not."""
    configure(STALE_AFTER=0.5)
    begin = time.monotonic()
    commit([], take_token(), full_round=Round(datetime.now(UTC), 0.1))
    asleep = time.monotonic()
    assert_fresh(begin, 0.5)
    time.sleep(0.6)
    monkeypatch.setattr(time, "monotonic", lambda: asleep + 0.01)
    configure(STALE_AFTER=0.5, READ_INTERVAL=0)
    assert reader.read_anew().fresh_until < asleep


def test_removed__stays_when_the_clock_is_set_forward():
    proxy = make_proxy()
    slow = take_token()
    commit([], take_token(), removed=[proxy.id])
    ahead = take_token() + 2 * 3_600_000_000
    commit([], ahead, full_round=Round(datetime.now(UTC), 0.1))
    commit([make_status(proxy)], slow)
    assert proxy.id not in reader.read().statuses
