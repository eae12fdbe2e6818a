"""Invalid contents of our keys in Redis: the next round removes them, says so, and runs."""

import json
import uuid

import pytest
from django.core.cache import caches

from proxyhealth import health
from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner
from proxyhealth.rounds.recheck import run_pending_check
from proxyhealth.storage import reader
from proxyhealth.storage.counters import count_task
from proxyhealth.storage.lease import ANY_ROUND, RoundRequest, begin_round, end_round, take_token
from proxyhealth.storage.pending import SendTask, add_pending, claim_recheck, take_pending
from proxyhealth.storage.plan import claim_shard, load_plan, save_plan
from proxyhealth.storage.presence import note_tick
from proxyhealth.storage.repair import KEYS, repair
from proxyhealth.storage.requests import add_failure
from proxyhealth.storage.sender import note_hanging, only_sender
from tests.support.machine import at_most

pytestmark = pytest.mark.django_db


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


@pytest.fixture
def fleet():
    WorkspaceProxy.objects.create(name="paris")
    WorkspaceProxy.objects.create(name="oslo")
    fill_every_key()


def fill_every_key():
    """Leave every key as a busy deployment has it."""
    health.force_update()
    begun = begin_round(RoundRequest(min_gap=0.001))
    begin_round(RoundRequest(rerun_if_busy=True))
    save_plan(begun.token, "{}", ["{}"])
    claim_shard(begun.token, 0, "host/1", anew=True)
    end_round(begun.token)
    count_task("check_all", "success", 0.5)
    add_pending([str(uuid.uuid4())])


def run_tick():
    return runner.run_round(RoundRequest(min_gap=0.001))


# Every poison is for a key of any type. Each is something that an operator, or another program, might do.
POISONS = {
    "text": lambda client, name: client.set(name, "rubbish"),
    "bytes": lambda client, name: client.set(name, b"\xff\x00\x80"),
    "1e17": lambda client, name: client.set(name, "1e17"),
    "2**63-1": lambda client, name: client.set(name, 2**63 - 1),
    "2**53-1": lambda client, name: client.set(name, 2**53 - 1),
    "Infinity": lambda client, name: client.set(name, "Infinity"),
    "list": lambda client, name: client.rpush(name, "a"),
    "set": lambda client, name: client.sadd(name, "a"),
    "hash": lambda client, name: client.hset(name, "a", "b"),
}


@pytest.mark.parametrize("name", KEYS)
def test_round__runs_whatever_a_key_holds(fleet, redis_client, name):
    for kind, poison in POISONS.items():
        redis_client.delete(key(name))
        poison(redis_client, key(name))
        with at_most(3):
            assert run_tick() == "success", kind
    assert_good(redis_client)


@pytest.mark.parametrize("name", KEYS)
def test_force_update__runs_whatever_a_key_holds(fleet, redis_client, name):
    for poison in ("1e17", "text", "list"):
        redis_client.delete(key(name))
        POISONS[poison](redis_client, key(name))
        before = reader.read_anew().checked_at
        with at_most(3):
            after = health.force_update()
        assert not after.stale
        assert before is None or after.checked_at > before
    assert_good(redis_client)


def assert_good(redis_client):
    """Another round, a check, and a shared round's plan work as if nothing had happened."""
    begun = begin_round()
    assert save_plan(begun.token, "x")
    end_round(begun.token)
    assert run_tick() == "success"
    assert load_plan() == ""
    before = reader.read_anew()
    ids = list(WorkspaceProxy.objects.values_list("pk", flat=True))
    assert add_pending(map(str, ids)) in SendTask
    run_pending_check()
    count_task("check_all", "success", 0.5)
    after = reader.read_anew()
    assert not after.stale
    assert after.number == before.number + 1, "the check was committed"
    assert all(after.statuses[id].checked_at > before.statuses[id].checked_at for id in ids)
    assert take_token() < 4e15
    assert reader.read_activity().tasks["check_all"].success >= 1
    assert after.outcomes["success"] >= 1


FIELDS = {
    "round-stats": [
        "committed",
        "closed",
        "full",
        "count:success",
        "count:failure",
        "count:skipped",
        "deployment",
    ],
    "tasks": ["check_all:success", "check_all:microseconds", "check_all:failure"],
    "plan": ["ticket", "plan"],
}
VALUES = ["rubbish", "1e17", str(2**63 - 1), "-1", "Infinity", "007", b"\xff"]


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in FIELDS for field in FIELDS[name]])
def test_round__runs_whatever_a_field_holds(fleet, redis_client, name, field):
    for value in VALUES:
        redis_client.hset(key(name), field, value)
        assert run_tick() == "success", value
    assert_good(redis_client)


@pytest.mark.parametrize("name", ["lease", "commit"])
@pytest.mark.parametrize("expire", ["persist", "expire"])
def test_round__runs_if_a_key_never_expires(fleet, redis_client, caplog, name, expire):
    """Before, a lease without a time to live meant that no round ever ran again."""
    redis_client.set(key(name), take_token(), ex=3_600)
    if expire == "persist":
        redis_client.persist(key(name))
    with at_most(3):
        assert runner.run_round(ANY_ROUND) == "success"
    assert f"cache repaired: removed '{name}'" in caplog.text
    assert_good(redis_client)


@pytest.mark.parametrize(
    ("name", "poison", "words"),
    [
        ("token", "1e17", "removed 'token', because it is not an integer"),
        ("rerun", "text", "removed 'rerun', because it is not an integer"),
        ("plan", "list", "removed 'plan', because it has the type list"),
        ("snapshot", "set", "removed 'snapshot', because it has the type set"),
    ],
)
def test_round__says_what_it_repaired(fleet, redis_client, caplog, name, poison, words):
    redis_client.delete(key(name))
    POISONS[poison](redis_client, key(name))
    run_tick()
    assert words in caplog.text
    caplog.clear()
    run_tick()
    assert "repaired" not in caplog.text


def test_round__says_which_field_it_repaired(fleet, redis_client, caplog):
    redis_client.hset(key("round-stats"), "count:success", "many")
    run_tick()
    assert "removed 'round-stats count:success', because it is not a valid number" in caplog.text


def test_round__repairs_nothing_that_is_good(fleet, redis_client, caplog):
    redis_client.hset(key("round-stats"), "colour", "red")  # of a newer version
    before = redis_client.hgetall(key("round-stats"))
    redis_client.delete(key("plan"))  # "{}" is no plan
    assert run_tick() == "success"
    assert "repaired" not in caplog.text
    assert redis_client.hgetall(key("round-stats")).keys() >= before.keys()


def test_check__an_invalid_id_spares_the_others(fleet, redis_client, caplog):
    run_tick()
    before = reader.read_anew()
    paris = WorkspaceProxy.objects.get(name="paris")
    redis_client.sadd(key("pending"), "rubbish", b"\xff", "", str(paris.pk))
    run_pending_check()
    assert reader.read_anew().statuses[paris.pk].checked_at > before.statuses[paris.pk].checked_at
    assert "removed 3 values from 'pending', because they are not ids, such as b'" in caplog.text


PLANS = {
    "rubbish": "rubbish",
    "another round's": json.dumps(
        {"ticket": 1, "checked_at": "2026-11-22T08:00:00+00:00", "shards": [], "tasks": []}
    ),
    "the future": json.dumps(
        {"ticket": 10**17, "checked_at": "2026-11-22T08:00:00+00:00", "shards": [], "tasks": []}
    ),
    "nested": "[" * 100_000,
    "tasks that are no texts": json.dumps(
        {"ticket": 1, "checked_at": "2026-11-22T08:00:00+00:00", "shards": [[]], "tasks": [[]]}
    ),
}


@pytest.mark.parametrize("text", PLANS.values(), ids=PLANS)
def test_round__drops_a_plan_that_nobody_can_commit(fleet, redis_client, text):
    """Before, every round of a small fleet failed to commit it, and counted a failure each time."""
    redis_client.hset(key("plan"), "plan", text)
    assert run_tick() == "success"
    failures = reader.read_anew().outcomes["failure"]
    assert run_tick() == "success"
    assert reader.read_anew().outcomes["failure"] == failures
    assert_good(redis_client)


def test_keys__are_all_known(fleet, redis_client):
    """A new key needs its rule."""
    begun = begin_round()
    with pytest.raises(RoundFailed), runner.steps.recording_failures(begun.token):
        raise RoundFailed("x")
    begin_round()
    with reader.open_cache() as cache:
        cache.client.set(cache.key("commit"), "x")
    claim_recheck(5)
    note_hanging("receiver")
    note_tick(60)
    add_failure(1, [], "x")
    prefix = key("").encode()
    with only_sender():
        found = {name.removeprefix(prefix).decode() for name in redis_client.scan_iter(prefix + b"*")}
    # The script that adds recent probes replaces a damaged hash itself.
    assert {name for name in found if not name.startswith("recent:")} <= {*KEYS}
    assert {*KEYS} - found <= {"rerun"}


def test_repair__many_faults_are_few_lines(redis_client, caplog):
    id = uuid.uuid4()
    redis_client.hset(key("round-stats"), mapping={f"count:{i}": "rubbish" for i in range(2_000)})
    redis_client.sadd(key("pending"), str(id), *(f"rubbish {i}" for i in range(2_000)))
    repair()
    assert take_pending() == {id}
    *lines, fields, ids = [record.getMessage() for record in caplog.records]
    assert len(lines) == 20
    assert fields == "cache repaired: removed 1980 more keys and fields"
    assert ids.startswith("cache repaired: removed 2000 values from 'pending', because they are not ids")


def test_round__rubbish_slots_make_few_shards(redis_client, configure, monkeypatch):
    configure(SHARD_SIZE=10)
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i}") for i in range(1_000))
    redis_client.sadd(key("slots"), *range(50_000))
    redis_client.expire(key("slots"), 60)
    shared = []
    monkeypatch.setattr(runner.sharing, "share_round", shared.append)
    runner.run_round(share=True)
    assert len(shared[0].shards) <= 257


def test_claim__ends_whatever_the_plan_holds(redis_client):
    """A loop without end would block Redis, and no command could stop it after a write."""
    begun = begin_round()
    save_plan(begun.token, "x", ["{}"])
    redis_client.hset(key("plan"), mapping={"shards": "1e15", "slot:0": "other"})
    with at_most(5):
        for anew in (True, False):
            assert claim_shard(begun.token, 0, "host/1", anew=anew) is None
