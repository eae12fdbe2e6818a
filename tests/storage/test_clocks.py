"""What is old is told by the clock of Redis and by the reader's monotonic one, never by a clock on a wall."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.document import Round
from proxyhealth.storage.lease import take_token
from tests.support.proxies import wait_for
from tests.support.values import make_proxy, make_status


def assert_fresh(begin, seconds):
    """Not stale, or only because the machine has taken so many seconds since then itself."""
    assert not reader.read().stale or time.monotonic() - begin >= seconds


HOURS = [timedelta(hours=-1), timedelta(0), timedelta(hours=1)]


@pytest.mark.parametrize("off", HOURS)
def test_stale__whatever_the_clock_of_the_worker_says(configure, off):
    configure(STALE_AFTER=0.5)
    begin = time.monotonic()
    commit([], take_token(), full_round=Round(datetime.now(UTC) + off, 0.1))
    assert_fresh(begin, 0.5)
    wait_for(lambda: reader.read().stale, 2)
    assert "No round has ended since" in reader.read().stale_reason


def test_stale__a_fresh_process_knows_the_age_of_what_it_finds(configure):
    configure(STALE_AFTER=0.5)
    commit([], take_token(), full_round=Round(datetime.now(UTC), 0.1))
    time.sleep(0.6)
    reader.forget()
    assert reader.read().stale


def test_stale__a_check_of_a_few_makes_nothing_fresher(configure):
    configure(STALE_AFTER=0.6)
    commit([], take_token(), full_round=Round(datetime.now(UTC), 0.1))
    end = time.monotonic() + 1
    while time.monotonic() < end:
        commit([make_status(make_proxy())], take_token())
        reader.read()
    assert reader.read().stale


def test_stale__the_clock_of_the_cache_was_set_back(configure, redis_client, snapshot_key):
    """The token is from the future then, but it grows no younger."""
    configure(STALE_AFTER=0.5)
    ahead = int((time.time() + 3_600) * 1_000_000)
    begin = time.monotonic()
    commit([], ahead, full_round=Round(datetime.now(UTC), 0.1))
    assert json.loads(redis_client.get(snapshot_key))["ticket"] == ahead
    assert_fresh(begin, 0.5)
    time.sleep(0.6)
    commit([make_status(make_proxy())], ahead + 1)
    assert reader.read().stale


def test_stale__turns_fresh_with_the_next_round(configure):
    configure(STALE_AFTER=0.3)
    for _ in range(3):
        begin = time.monotonic()
        commit([], take_token(), full_round=Round(datetime.now(UTC), 0.1))
        assert_fresh(begin, 0.3)
        wait_for(lambda: reader.read().stale, 2)


def test_stale__a_machine_that_slept_looks_at_the_clock_of_the_cache(configure, monkeypatch):
    """The monotonic clock stands still meanwhile."""
    configure(STALE_AFTER=0.5)
    begin = time.monotonic()
    commit([], take_token(), full_round=Round(datetime.now(UTC), 0.1))
    asleep = time.monotonic()
    assert_fresh(begin, 0.5)
    time.sleep(0.6)
    monkeypatch.setattr(time, "monotonic", lambda: asleep + 0.01)
    configure(STALE_AFTER=0.5, READ_INTERVAL=0)
    assert reader.read_anew().fresh_until < asleep


def test_removed__does_not_come_back_when_the_clock_is_set_forward():
    proxy = make_proxy()
    slow = take_token()
    commit([], take_token(), removed=[proxy.id])
    ahead = take_token() + 2 * 3_600_000_000
    commit([], ahead, full_round=Round(datetime.now(UTC), 0.1))
    commit([make_status(proxy)], slow)
    assert proxy.id not in reader.read().statuses
