"""The recent probes in the cache."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.conf import settings as django_settings
from django.core.cache import caches

from proxyhealth.exceptions import StoreError
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import probes
from proxyhealth.storage.probes import RecentProbe, add_probes, read_probes
from tests.settings import REDIS_PORT
from tests.support.redis_relay import RedisRelay
from tests.support.values import make_proxy, make_status

BAD = {"status": Status.UNREACHABLE, "reason": Reason.TIMEOUT}
HOUR = timedelta(hours=1)
PARIS = make_proxy()
# The middle of the last whole hour, so that all times of a test are in the same hash.
THEN = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - HOUR


def at(seconds, proxy=PARIS, status=Status.OK, **values):
    """Return the result of a probe so many seconds after ``THEN``."""
    return replace(make_status(proxy, status), **{"checked_at": THEN + timedelta(seconds=seconds), **values})


def seconds(proxy=PARIS):
    return [(probe.at - THEN).total_seconds() for probe in read_probes([proxy.id])[proxy.id]]


def key(moment=THEN):
    return caches["default"].make_key(f"proxyhealth:recent:{int(moment.timestamp()) // 3_600}")


def test_probes__are_read_as_they_were_stored():
    oslo = make_proxy("oslo")
    add_probes([at(0, latency=0.0424), at(0, oslo, **BAD, latency=None)])
    add_probes([at(60, latency=99.0), at(60, oslo, Status.UNREGISTERED)])
    assert read_probes([PARIS.id, oslo.id, uuid := uuid4()]) == {
        PARIS.id: [
            RecentProbe(THEN, Status.OK, Reason.NONE, 0.042),
            RecentProbe(THEN + timedelta(minutes=1), Status.OK, Reason.NONE, 65.534),
        ],
        oslo.id: [
            RecentProbe(THEN, Status.UNREACHABLE, Reason.TIMEOUT, None),
            RecentProbe(THEN + timedelta(minutes=1), Status.UNREGISTERED, Reason.NONE, None),
        ],
        uuid: [],
    }
    assert read_probes([]) == {}


def test_probes__of_an_unconfirmed_result_are_the_last_one():
    raw = at(60, **BAD)
    add_probes([at(0, raw=raw), at(0, make_proxy("oslo"), checked_at=None)])
    assert [(probe.at, probe.status) for probe in read_probes([PARIS.id])[PARIS.id]] == [
        (raw.checked_at, "unreachable")
    ]


def test_codes__stay_the_same_in_later_versions():
    """Samples outlive an upgrade. Append new values, and never change the place of one."""
    assert [*probes._STATUSES] == ["unknown", "ok", "unhealthy", "unreachable", "unregistered"]
    assert " ".join(probes._REASONS[1:]) == (
        "invalid_url blocked dns connect tls timeout protocol status_code truncated too_large not_json "
        "bad_report report_errors internal"
    )
    assert ({*Status}, {*Reason}) == ({*probes._STATUSES}, {*probes._REASONS})
    assert len(probes._STATUSES) <= 8
    assert len(probes._REASONS) <= 32


def test_codes__of_a_newer_version_are_unknown(redis_client):
    values = [(0, 32 * 3 + 31), (60, 32 * 7 + 6)]
    redis_client.hset(key(), PARIS.id.bytes, b"".join(probes._SAMPLE.pack(*each, 0xFFFF) for each in values))
    assert [each[1:] for each in read_probes([PARIS.id])[PARIS.id]] == [
        (Status.UNREACHABLE, Reason.NONE, None),
        (Status.UNKNOWN, Reason.TIMEOUT, None),
    ]


def test_period__is_24_hours(redis_client):
    now = datetime.now(UTC)
    ages = [timedelta(hours=23, minutes=59), timedelta(hours=24, minutes=1), 12 * HOUR, timedelta(0)]
    for age in ages:
        add_probes([at(0, checked_at=now - age)])
    found = [round((now - probe.at) / HOUR, 1) for probe in read_probes([PARIS.id])[PARIS.id]]
    assert found == [24.0, 12.0, 0.0]
    assert 86_400 < redis_client.ttl(key(now)) <= 87_000


def test_hours__of_one_round_are_two_hashes(redis_client):
    end = THEN + timedelta(minutes=29, seconds=59)
    oslo = make_proxy("oslo")
    add_probes([at(29 * 60 + 59), at(30 * 60, oslo)])
    assert (redis_client.hlen(key(end)), redis_client.hlen(key(end + timedelta(seconds=1)))) == (1, 1)
    assert [*map(seconds, (PARIS, oslo))] == [[1_799], [1_800]]


def test_round__of_many_proxies_is_stored_in_parts(redis_client):
    fleet = [make_proxy(f"p{number}") for number in range(1_001)]
    before = redis_client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    add_probes([at(0, proxy) for proxy in fleet])
    # One loads the script. A thread of an earlier test may still run another one.
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] - before < 10
    assert redis_client.hlen(key()) == 1_001
    assert all(read_probes([proxy.id for proxy in fleet]).values())


@pytest.mark.parametrize("times", [1, 2])
def test_reply__that_is_lost_repeats_nothing(settings, redis_client, times):
    relay = RedisRelay(REDIS_PORT)
    oslo = make_proxy("oslo")
    with relay.running() as location:
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": location}}
        statuses = [at(0), at(0, oslo, **BAD)]
        relay.lose(b":recent:", times)
        try:
            add_probes(statuses)
        except StoreError:
            add_probes(statuses)
        assert relay.left == 0
        assert seconds() == seconds(oslo) == [0]


def test_samples__in_the_wrong_order_or_twice_are_sorted():
    for second in (60, 0, 60):
        add_probes([at(second)])
    assert seconds() == [0, 60]


def test_samples__within_5_seconds_are_one_of_each_result():
    for second in range(11):
        add_probes([at(second)])
    assert seconds() == [0, 5, 10]
    add_probes([at(11, **BAD)])
    add_probes([at(12)])
    assert seconds() == [0, 5, 10, 11, 12]


@pytest.mark.parametrize(("step", "flaps", "expected"), [(60, False, 60), (15, False, 102), (5, True, 372)])
def test_hour__has_a_limit_however_often_a_proxy_is_probed(step, flaps, expected):
    oslo = make_proxy("oslo")
    for second in range(-1_800, 1_800, step):
        add_probes([at(second, oslo, **(BAD if flaps and second % (2 * step) else {}))])
    found = seconds(oslo)
    assert abs(len(found) - expected) <= 1
    assert found[-1] >= 1_740, "the end of the hour is not cut off"


@pytest.mark.parametrize("value", [b"", b"rubbish", b"\xff" * 10, b"\xff" * 10_001, b"1" * 10_000])
def test_damaged_value__is_ignored_and_replaced(redis_client, value):
    redis_client.hset(key(), PARIS.id.bytes, value)
    assert seconds() == []
    add_probes([at(0)])
    assert seconds() == [0]


def test_damaged_key__is_ignored_and_replaced(redis_client, caplog):
    redis_client.set(key(), "x")
    add_probes([at(3_600)])
    assert seconds() == [3_600]
    add_probes([at(0)])
    assert seconds() == [0, 3_600]
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("cache repaired: removed 'recent:")
    assert line.endswith("because it has the type string")


def test_clock__of_a_worker_that_is_ahead():
    now = datetime.now(UTC)
    add_probes([at(0, checked_at=now + timedelta(minutes=50))])
    assert len(read_probes([PARIS.id])[PARIS.id]) == 1


def test_cache_down__raises_store_error(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(StoreError):
        add_probes([at(0)])
    with pytest.raises(StoreError):
        read_probes([PARIS.id])


def test_cache_full__raises_store_error(redis_client):
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreError, match="Redis is full"):
            add_probes([at(0)])
    finally:
        redis_client.config_set("maxmemory", 0)
