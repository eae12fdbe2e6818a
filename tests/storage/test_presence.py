"""The last signs of life of workers, beat, ticks, and heartbeats."""

import pytest
from django.core.cache import caches

from proxyhealth.storage import presence
from proxyhealth.storage.presence import GONE_AFTER


def key():
    return caches["default"].make_key("proxyhealth:presence")


def age(redis_client, field, seconds):
    """Make a sign older."""
    stamp, _, text = redis_client.hget(key(), field).partition(b" ")
    redis_client.hset(key(), field, b"%d %s" % (int(stamp) - 1_000_000 * seconds, text))


def test_worker__runs_until_its_last_sign_is_old(redis_client):
    presence.note_worker("a", {"name": "celery@a"})
    assert [sign.text("name") for sign in presence.read().running] == ["celery@a"]
    age(redis_client, "worker:a", GONE_AFTER + 1)
    signs = presence.read()
    assert signs.running == []
    assert [sign.text("name") for sign in signs.workers] == ["celery@a"], "it is shown as last seen"


def test_worker__stopped_does_not_run(redis_client):
    presence.note_worker("a", {"name": "celery@a"})
    presence.note_worker("a", {"name": "celery@a", "stopped": True})
    signs = presence.read()
    assert (signs.running, len(signs.workers)) == ([], 1)


def test_tick__makes_old_processes_forgotten(redis_client):
    """Pods have a new name each, and a killed one cannot say that it ends."""
    for number in range(100):
        presence.note_worker(str(number), {})
        age(redis_client, f"worker:{number}", 1_000 + 60 * number)
    presence.note_beat("old", {})
    age(redis_client, "beat:old", 1_000)
    presence.note_tick(60)
    signs = presence.read()
    (last,) = signs.workers
    assert 1_000 <= last.age < 1_060, "the last one is a fact about an outage"
    assert len(signs.beats) == 1
    presence.note_worker("new", {})
    presence.note_tick(60)
    assert len(presence.read().workers) == 1


def test_failures__since_the_first_of_them(redis_client):
    presence.note_heartbeat("a", "status 500")
    first = presence.read().heartbeats["a"].since
    presence.note_heartbeat("a", "status 502")
    sign = presence.read().heartbeats["a"]
    assert (sign.since, sign.text("error")) == (first, "status 502")
    assert sign.at > first
    presence.note_heartbeat("a", "")
    sign = presence.read().heartbeats["a"]
    assert (sign.since, sign.text("error")) == (None, "")


DAMAGED = {
    "no time": b"{}",
    "no JSON": b"1795816507688045 {",
    "no object": b"1795816507688045 [1]",
    "no UTF-8": b"1795816507688045 \xff",
    "far future": b"99999999999999999999999999 {}",
    "nested": b"1795816507688045 " + 100_000 * b"[",
    "empty": b"",
}


@pytest.mark.parametrize("value", DAMAGED.values(), ids=DAMAGED)
def test_read__omits_damaged_values(redis_client, value):
    presence.note_worker("good", {"name": "celery@good"})
    for field in ("worker:bad", "beat:bad", "tick", "heartbeat:bad", "begun", "since:worker:good", "\udcff"):
        redis_client.hset(key(), field.encode(errors="surrogateescape"), value)
    signs = presence.read()
    assert [sign.text("name") for sign in signs.running] == ["celery@good"]
    presence.note_tick(60)
    presence.note_beat("b", {})
    assert len(presence.read().beats) >= 1


def test_sign__values_of_another_type(redis_client):
    """A newer version, or another program, may write what this version does not expect."""
    presence.note_worker("a", {"name": 7, "pid": "x", "concurrency": True, "tasks": {}, "takes": "celery"})
    sign = presence.read().running[0]
    assert (sign.text("name"), sign.count("pid"), sign.count("concurrency")) == ("", 0, 0)
    assert (sign.items("tasks"), sign.items("takes")) == ([], [])


def test_worker__after_the_clock_of_redis_was_set_back(redis_client):
    """The sign of a killed worker is in the future, and must not look new until then."""
    presence.note_worker("killed", {})
    for field in ("worker:killed", "begun"):
        stamp, _, text = redis_client.hget(key(), field).partition(b" ")
        redis_client.hset(key(), field, b"%d %s" % (int(stamp) + 3_600_000_000, text))
    assert presence.read().running == []
    presence.note_worker("new", {})
    signs = presence.read()
    assert (len(signs.running), signs.begun.age < 60) == (1, True)


@pytest.mark.parametrize("kind", ["string", "list"])
def test_note__replaces_a_key_of_another_type(redis_client, kind):
    redis_client.set(key(), "x") if kind == "string" else redis_client.rpush(key(), "x")
    assert presence.read() == presence.Presence([], [], None, {}, None)
    presence.note_worker("a", {})
    assert len(presence.read().running) == 1
    assert 0 < redis_client.ttl(key()) <= presence.LIFETIME


def test_note__costs_one_script(redis_client):
    presence.note_worker("a", {})
    redis_client.config_resetstat()
    presence.note_worker("a", {"tasks": [["x", 1]]})
    stats = redis_client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): stats[name]["calls"] for name in stats if "config" not in name}
    assert calls == dict.fromkeys(["evalsha", "type", "time", "hset", "hget", "expire"], 1)
