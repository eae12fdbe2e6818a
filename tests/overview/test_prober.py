"""The parts of the prober: their states, also while the parts that they depend on hang."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings as django_settings
from django.core.cache import caches
from django.utils import timezone

from project.celery import app
from proxyhealth import health
from proxyhealth.models import Alarm, Channel, WorkspaceProxy
from proxyhealth.notifications import culprit as culprits
from proxyhealth.notifications import heartbeats
from proxyhealth.overview import prober
from proxyhealth.overview.prober import State
from proxyhealth.readiness import parts as readiness
from proxyhealth.rounds import broker
from proxyhealth.rounds.runner import run_round
from proxyhealth.storage import presence, rounds_log
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import RoundRequest, begin_round, take_token
from proxyhealth.storage.presence import GONE_AFTER
from tests.support.machine import at_most
from tests.support.ports import free_port
from tests.support.servers import Server

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def generous_limit(monkeypatch):
    """A busy machine must not fail a test that is not about time."""
    monkeypatch.setattr(readiness, "LIMIT", 10)


def states(found=None):
    return {part.name: part.state.value for part in (found or prober.examine()).parts}


def part(name):
    prober.forget()
    return next(part for part in prober.parts() if part.name == name)


def run_everything(serve):
    """Run a round as a worker does that beat has asked for it."""
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    presence.note_worker("a", {"name": "celery@a", "takes": ["celery"], "connected": True})
    presence.note_beat("b", {"host": "b", "pid": 7, "interval": 60})
    presence.note_tick(60)
    health.force_update()


def test_parts__all_work(redis_client, serve, sent):
    run_everything(serve)
    found = prober.examine()
    assert states(found) == {
        "redis": "ok",
        "database": "ok",
        "workers": "ok",
        "beat": "ok",
        "queue": "ok",
        "rounds": "ok",
        "network": "off",
        "snapshot": "ok",
        "channels": "off",
        "heartbeats": "off",
    }
    assert found.state is State.WARNING
    assert found.verdict.startswith("It is not us, unless the network of the workers has failed.")


def test_verdict__follows_the_worst_part(redis_client, serve, sent, configure):
    configure(CANARY_URLS=["https://canary.example.com"])
    run_everything(serve)
    found = prober.examine()
    assert (found.state, found.verdict[:33]) == (State.OK, "It is not us: every part works. A")

    def with_state(name, state):
        parts = [replace(part, state=state) if part.name == name else part for part in found.parts]
        return replace(found, parts=parts)

    for name, state, whole, text in (
        ("channels", State.FAILED, State.WARNING, "It is not us, but people may not be told: Channels."),
        ("queue", State.WARNING, State.WARNING, "Nothing has failed here, but look at this: Queue."),
        ("beat", State.UNKNOWN, State.UNKNOWN, "wrong with us, but this is not known: Celery beat."),
        ("beat", State.FAILED, State.FAILED, "It is us: Celery beat."),
    ):
        changed = with_state(name, state)
        assert changed.state is whole
        assert text in changed.verdict


def test_parts__new_deployment_knows_little(redis_client):
    found = prober.examine()
    assert found.state is State.UNKNOWN
    assert {name for name, state in states(found).items() if state == "unknown"} == {
        "workers",
        "beat",
        "rounds",
        "snapshot",
    }
    assert found.verdict.startswith("Nothing is known to be wrong with us, but")


def test_parts__redis_down(stopped, serve, monkeypatch):
    monkeypatch.setattr(broker, "_TIMEOUT", 0.25)
    run_everything(serve)
    stopped()
    Alarm.objects.create(kind="redis", began_at=timezone.now() - timedelta(minutes=5))
    prober.forget()
    found = prober.examine()
    assert states(found) == {
        "redis": "failed",
        "database": "ok",
        "workers": "unknown",
        "beat": "unknown",
        "queue": "failed",  # the tests have the broker there, too
        "rounds": "unknown",
        "network": "off",
        "snapshot": "failed",
        "channels": "off",
        "heartbeats": "off",
    }
    redis = next(part for part in found.parts if part.name == "redis")
    assert "refused" in redis.text
    assert (datetime.now(UTC) - redis.since).total_seconds() > 290, "the alarm knows since when"
    assert found.verdict == "It is us: Redis, Queue, Snapshot."


@pytest.fixture
def silent(settings, monkeypatch):
    """A server in place of Redis that accepts connections and says nothing."""

    def say_nothing(sock):
        while sock.recv(1 << 16):
            pass

    with Server(say_nothing, read=False) as server:
        address = f"redis://127.0.0.1:{server.port}/0"
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": address}}
        monkeypatch.setitem(app.conf, "broker_url", address)
        monkeypatch.setitem(app.conf, "broker_read_url", None)
        monkeypatch.setitem(app.conf, "broker_write_url", None)
        yield server
        broker._query.reset()  # a query that still waits for the server


def test_parts__redis_hangs(silent, monkeypatch):
    monkeypatch.setattr(readiness, "LIMIT", 0.5)
    monkeypatch.setattr(broker, "_TIMEOUT", 0.25)
    with at_most(1.2, "the page promises 1.5 s"):
        found = prober.examine()
    assert states(found)["redis"] == "failed"
    assert states(found)["queue"] == "failed"
    assert states(found)["database"] == "ok"
    assert {states(found)[name] for name in ("workers", "beat", "rounds", "snapshot")} == {"unknown"}
    assert "within 0.5 s" in found.parts[0].text


def test_parts__database_down(redis_client, serve, monkeypatch, django_db_blocker, settings):
    run_everything(serve)

    def fail():
        raise OSError("the database is down")

    monkeypatch.setattr(
        prober, "_examination", readiness.Examination({**prober.FUNCTIONS, "database": fail}, is_logged=False)
    )
    with django_db_blocker.block():
        found = prober.examine()
    assert (states(found)["database"], states(found)["channels"]) == ("failed", "unknown")
    assert states(found)["workers"] == "ok"
    assert "the database is down" in found.parts[1].text
    assert found.parts[1].since


def test_queue__that_nobody_empties(redis_client, configure):
    configure(INTERVAL=0.01)
    presence.note_tick(0.01)
    key = app.amqp.default_queue.name
    redis_client.rpush(key, *range(4))
    assert part("queue").state is State.WARNING
    assert part("queue").text == "4 tasks wait for a worker."
    stamp, _, text = redis_client.hget(_presence(), "tick").partition(b" ")
    redis_client.hset(_presence(), "tick", b"%d %s" % (int(stamp) - 60_000_000, text))
    found = part("queue")
    assert found.state is State.FAILED
    assert found.text.startswith("4 tasks wait for a worker. No tick has been taken since ")


def _presence():
    return caches["default"].make_key("proxyhealth:presence")


def test_queue__of_a_broker_that_is_away(redis_client, monkeypatch):
    monkeypatch.setattr(broker, "_TIMEOUT", 0.25)
    monkeypatch.setitem(app.conf, "broker_url", f"redis://127.0.0.1:{free_port()}/0")
    found = part("queue")
    assert found.state is State.FAILED
    assert found.text.startswith("The broker does not respond: ")
    assert (part("redis").state, found.since is None) == (State.OK, False)
    broker._query.reset()  # a query that still tries


def test_queue__of_another_broker_is_not_known(redis_client, monkeypatch):
    monkeypatch.setitem(app.conf, "broker_url", "memory://")
    assert part("queue").text == "Only a broker on Redis shows how many tasks wait."


def test_parts__redis_was_away(redis_client, configure, monkeypatch):
    """Nobody could give a sign meanwhile: an old one does not say that nobody runs."""
    configure(INTERVAL=60)
    presence.note_worker("a", {"name": "celery@a"})
    presence.note_tick(60)
    for field in ("worker:a", "tick"):
        stamp, _, text = redis_client.hget(_presence(), field).partition(b" ")
        redis_client.hset(_presence(), field, b"%d %s" % (int(stamp) - 600_000_000, text))
    assert (part("workers").state, part("beat").state) == (State.FAILED, State.FAILED)
    culprits.note_outage()
    assert (part("workers").state, part("beat").state) == (State.UNKNOWN, State.UNKNOWN)
    culprits._copy.value.failed_at -= GONE_AFTER
    assert (part("workers").state, part("beat").state) == (State.FAILED, State.UNKNOWN)


def test_workers__of_an_earlier_version_give_no_signs(redis_client, serve, sent):
    """After a return to it, rounds go on, so it would be wrong that no worker runs."""
    presence.note_worker("a", {"name": "celery@a", "stopped": True})
    assert part("workers").state is State.FAILED
    stamp, _, text = redis_client.hget(_presence(), "worker:a").partition(b" ")
    redis_client.hset(_presence(), "worker:a", b"%d %s" % (int(stamp) - 60_000_000, text))
    health.force_update()
    assert part("workers").state is State.UNKNOWN


def test_beat__second_one(redis_client):
    presence.note_beat("a", {"host": "a", "pid": 1, "uptime": 100})
    presence.note_beat("b", {"host": "b", "pid": 2, "uptime": 0})
    assert part("beat").state is State.OK, "the first one may have ended before the second one began"
    presence.note_beat("a", {"host": "a", "pid": 1, "uptime": 101})
    presence.note_beat("b", {"host": "b", "pid": 2, "uptime": 50})
    found = part("beat")
    assert (found.state, sorted(found.facts)) == (State.WARNING, ["a (1)", "b (2)"])


def test_rounds__fail_since_the_first_of_them(redis_client):
    rounds_log.add("success", take_token(), seconds=1.0)
    first = take_token()
    rounds_log.add("failure", first, error="the database is gone")
    rounds_log.add("skipped", error="running")
    rounds_log.add("offline", take_token(), error="Prober offline: x")
    rounds_log.add(rounds_log.RUNNING, begin_round().token)
    found = part("rounds")
    assert found.state is State.FAILED
    assert found.text.endswith(" failed: Prober offline: x")
    assert round(found.since.timestamp() * 1e6) == first


def test_rounds__killed(redis_client):
    rounds_log.add(rounds_log.RUNNING, take_token())
    assert "was killed" in part("rounds").text


def test_rounds__every_outcome_is_logged(redis_client, serve, monkeypatch):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    run_round()
    run_round(RoundRequest(min_gap=60))
    run_round(RoundRequest(min_gap=60))
    monkeypatch.setattr("proxyhealth.rounds.runner.steps.read_proxies", lambda: 1 / 0)
    with pytest.raises(Exception, match="division"):
        run_round()
    outcomes = [(entry.outcome, entry.error[:9], entry.proxies) for entry in rounds_log.read()]
    assert outcomes == [
        ("failure", "an error ", None),
        ("skipped", "early", None),
        ("success", "", 1),
        ("success", "", 1),
    ]


def test_network__cut_off(redis_client, configure):
    configure(CANARY_URLS=["https://canary.example.com"])
    token = begin_round().token
    rounds_log.add("offline", token, error="Prober offline: x")
    count_round("offline", "Prober offline: x", token)
    found = part("network")
    assert (found.state, found.text) == (State.FAILED, "Prober offline: x")
    assert round(found.since.timestamp() * 1e6) == token


def test_channels__failing_and_disabled(redis_client):
    now = timezone.now()
    common = {"kind": "email", "target": "a@example.com", "listens_since": now}
    Channel.objects.create(name="good", last_success_at=now, **common)
    Channel.objects.create(name="off", enabled=False, **common)
    found = part("channels")
    assert (found.state, found.text) == (State.OK, "1 channel is enabled.")
    assert found.facts == ["1 channel is disabled."]
    Channel.objects.create(name="bad", last_failure_at=now, last_error="<secret>", **common)
    found = part("channels")
    assert (found.state, found.text, found.since) == (State.FAILED, "1 channel fails.", now)


def test_heartbeats__last_result(redis_client, configure):
    url = "https://ping.example.com/secret"
    configure(HEARTBEAT_URLS=[url])
    assert part("heartbeats").state is State.UNKNOWN
    presence.note_heartbeat(heartbeats.id_of(url), "status 500")
    found = part("heartbeats")
    assert (found.state, found.facts) == (State.FAILED, ["ping.example.com: status 500"])
    assert found.since
    presence.note_heartbeat(heartbeats.id_of(url), "")
    assert part("heartbeats").state is State.OK


def test_snapshot__stale(redis_client, serve, configure):
    configure(INTERVAL=0.01, STALE_AFTER=0.02)
    run_everything(serve)
    found = part("snapshot")
    assert found.state is State.FAILED
    assert found.text.startswith("It is stale: the last full round began at ")
    assert found.since == health.snapshot().stale_at


def test_why_stale__names_the_culprit(redis_client):
    presence.note_worker("a", {"name": "celery@a", "stopped": True})
    snapshot = replace(health.snapshot(), checked_at=datetime(2026, 1, 1, tzinfo=UTC))
    stale = replace(snapshot, stale_at=datetime(2026, 1, 2, tzinfo=UTC))
    text = prober.why_stale(stale)
    assert text.startswith("No round has ended since the one of 2026-01-01 00:00:00 UTC. No Celery worker ")
    assert prober.why_stale(replace(stale, checked_at=None)).startswith("No round has ended yet. No Celery")
    assert prober.why_stale(replace(stale, refusal="OOM")).endswith("Rounds cannot be stored: OOM")


def test_why_stale__asks_if_nothing_is_known(redis_client):
    assert prober.why_stale(health.snapshot()) == health.snapshot().stale_reason
