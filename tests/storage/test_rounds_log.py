"""The log of the last rounds."""

import json

import pytest
from django.core.cache import caches

from proxyhealth.storage import rounds_log
from proxyhealth.storage.lease import begin_round, end_round, take_token
from proxyhealth.storage.rounds_log import KILLED, MAX_ROUNDS, RUNNING


def key(name="rounds-log"):
    return caches["default"].make_key(f"proxyhealth:{name}")


def outcomes():
    return [entry.outcome for entry in rounds_log.read()]


def test_round__is_one_entry(redis_client):
    token = begin_round().token
    rounds_log.add(RUNNING, token)
    (entry,) = rounds_log.read()
    assert (entry.outcome, entry.seconds) == (RUNNING, None)
    rounds_log.add("success", token, seconds=1.5, proxies=7)
    (entry,) = rounds_log.read()
    assert (entry.outcome, entry.seconds, entry.proxies, entry.missing) == ("success", 1.5, 7, 0)
    assert (round(entry.at.timestamp() * 1e6), entry.token) == (token, token)
    assert entry.host
    assert entry.pid


def test_round__without_an_end_was_killed(redis_client):
    """A process that gets SIGKILL can log nothing."""
    killed = begin_round().token
    rounds_log.add(RUNNING, killed)
    redis_client.delete(key("lease"))
    assert outcomes() == [KILLED]
    rounds_log.add(RUNNING, begin_round().token)
    assert outcomes() == [RUNNING, KILLED]


def test_round__failed_has_its_duration(redis_client):
    token = begin_round().token
    rounds_log.add(RUNNING, token)
    rounds_log.add("failure", token, error="the database is gone")
    end_round(token)
    (entry,) = rounds_log.read()
    assert (entry.outcome, entry.error) == ("failure", "the database is gone")
    assert 0 <= entry.seconds < 10


def test_log__is_bounded(redis_client):
    for _ in range(MAX_ROUNDS + 5):
        token = take_token()
        rounds_log.add(RUNNING, token)
        rounds_log.add("failure", token, error=5_000 * "x")
    assert len(rounds_log.read()) == MAX_ROUNDS
    assert redis_client.llen(key()) == 2 * MAX_ROUNDS
    assert redis_client.memory_usage(key()) < 150_000
    assert redis_client.ttl(key()) > 0


def test_log__keeps_each_skipped_tick(redis_client):
    for _ in range(3):
        rounds_log.add("skipped", error="running")
    assert [(entry.outcome, entry.error) for entry in rounds_log.read()] == 3 * [("skipped", "running")]


DAMAGED = {
    "no time": b"{}",
    "no JSON": b"1795816507688045 {",
    "no object": b"1795816507688045 7",
    "no UTF-8": b"1795816507688045 \xff",
    "other types": b'1795816507688045 {"outcome": 7, "token": "x", "seconds": [], "pid": true}',
    "infinity": b'1795816507688045 {"outcome": "success", "seconds": 1e999, "token": 1e300}',
    "far future": b'99999999999999999999999999 {"outcome": "success"}',
    "nested": b"1795816507688045 " + 100_000 * b"[",
    "empty": b"",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_read__omits_damaged_entries(redis_client, line):
    rounds_log.add("success", take_token(), seconds=1.0)
    redis_client.rpush(key(), line)
    redis_client.set(key("lease"), b"\xff")
    rounds_log.add("success", take_token(), seconds=2.0)
    entries = rounds_log.read()
    assert {1.0, 2.0} <= {entry.seconds for entry in entries}
    assert len(entries) <= 3


def test_read__entry_of_a_newer_version(redis_client):
    entry = {"outcome": "postponed", "token": take_token(), "host": "a", "phases": [1]}
    redis_client.rpush(key(), f"{take_token()} {json.dumps(entry)}")
    assert outcomes() == ["postponed"]


def test_add__without_redis_is_silent(stopped):
    stopped()
    rounds_log.add("success", 1, seconds=1.0)


def test_add__replaces_a_key_of_another_type(redis_client):
    redis_client.set(key(), "x")
    assert rounds_log.read() == []
    rounds_log.add("success", take_token(), seconds=1.0)
    assert outcomes() == ["success"]
