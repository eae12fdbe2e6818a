"""Shards that processes claim: one that only waits takes more, and a killed one blocks nobody."""

import json
import os
import threading

import pytest
from django.core.cache import caches

from proxyhealth.models import WorkspaceProxy
from proxyhealth.probing import pool
from proxyhealth.rounds import runner, sharing
from proxyhealth.rounds.shards import Plan
from proxyhealth.storage import plan as storage
from proxyhealth.storage import reader
from proxyhealth.storage.lease import begin_round, end_round
from tests.support.proxies import wait_for

pytestmark = pytest.mark.django_db

OTHER = "worker@other/1"


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def plan(configure, monkeypatch, server):
    """The plan of a shared round of six proxies in three shards, before its first shard is probed."""
    configure(SHARD_SIZE=2)
    monkeypatch.setattr(pool, "_CLAIM_PAUSE", 0.01)
    monkeypatch.setattr(sharing, "chord", lambda shards: lambda end: None)
    for i in range(6):
        WorkspaceProxy.objects.create(name=f"p{i}", url=server.url)
    return share()


def share():
    assert runner.run_round(share=True) == "shared"
    return Plan.load(storage.load_plan())


def run(plan, index):
    return sharing.run_shard(plan.token, index, plan.checked_at, plan.shards[index])


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


def in_thread(function, *args):
    """Run ``function`` in a thread. Return a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()

    def result():
        thread.join(10)
        return results[0]

    return result


def test_run_shard__waiting_process_takes_all_shards(plan, server):
    server.gate.clear()
    first = in_thread(run, plan, 0)
    wait_for(lambda: server.requests == 6, 5, "the process that waits takes the other shards")
    second = in_thread(run, plan, 1)  # this process gets the task of a shard that is taken
    server.gate.set()
    parts = [first(), second(), run(plan, 2)]
    assert [part["shard"] for part in parts] == [0, 1, 2]
    sharing.finish_shared_round(plan.token, parts)
    assert reader.read().outcomes == {"success": 1}
    assert [status.status for status in reader.read().statuses.values()] == 6 * ["ok"]
    assert server.requests == 6


def test_run_shard__taken_shard_probes_another(plan, server):
    assert storage.claim_shard(plan.token, 0, OTHER, anew=True) == (0, "")
    mine = in_thread(run, plan, 0)
    wait_for(lambda: storage.load_part(plan.token, 1), 5, "the process takes another shard")
    storage.store_part(plan.token, 0, json.dumps({"shard": 0, "found": [1, 2]}))
    assert mine() == {"shard": 0, "found": [1, 2]}


def test_run_shard__shards_of_killed_process_are_free(plan, server, monkeypatch):
    """The process that replaces it has its slot."""
    monkeypatch.setattr(pool, "_CLAIM_PAUSE", 60)  # otherwise a slow probe makes it take the last shard
    slot = sharing._slot()
    for index in (1, 2):
        storage.claim_shard(plan.token, index, slot, anew=index == 1)
    storage.store_part(plan.token, 2, json.dumps({"shard": 2, "found": []}))
    assert len(run(plan, 1)["found"]) == 2
    assert run(plan, 2)["found"] == [], "it was finished before the kill"


def test_run_shard__workers_with_one_name_have_own_slots(monkeypatch):
    """Two workers on a host have the same name by default. Each has a process of its own."""
    monkeypatch.setattr(sharing, "current_process_index", lambda: 1)
    slots = {sharing._slot()}
    monkeypatch.setattr(os, "getppid", lambda: 1)
    slots.add(sharing._slot())
    monkeypatch.setattr(sharing, "current_process_index", lambda: None)
    slots |= {sharing._slot(), in_thread(sharing._slot)()}
    assert len(slots) == 4


def test_store_part__lost_replaces_no_found(plan):
    for part, found in (("lost", False), ("found", True), ("lost", False)):
        storage.store_part(plan.token, 0, part, found=found)
    assert storage.load_part(plan.token, 0) == "found"


def test_store_part__last_found_one(plan):
    def store(index, *, found=True):
        return storage.store_part(plan.token, index, "{}", found=found)

    assert [store(0), store(1), store(2, found=False)] == [False, False, False]
    assert store(2)
    assert not store(2), "only one process commits the round"
    assert not storage.store_part(plan.token - 1, 2, "{}")


def test_run_shard__killed_worker_is_not_waited_for(plan, redis_client):
    for index in range(3):
        storage.claim_shard(plan.token, index, OTHER, anew=False)
    mine = in_thread(run, plan, 0)
    redis_client.delete(key("lease"))  # it ran out, because nobody renewed it
    assert mine() == {"shard": 0, "lost": "the round is over"}


def test_run_shard__waits_without_the_lease(plan, redis_client):
    """Otherwise the round of a killed worker would never end."""
    for index in range(3):
        storage.claim_shard(plan.token, index, OTHER, anew=False)
    redis_client.pexpire(key("lease"), 300)
    assert run(plan, 1)["lost"] == "the round is over"


def test_run_shard__failure_gives_up_all_its_shards(plan, monkeypatch):
    def fail(first, claim, *args):
        assert claim()[0] == 1
        raise OSError("out of memory")

    monkeypatch.setattr(pool, "probe_shards", fail)
    part = run(plan, 0)
    assert "out of memory" in part["lost"]
    assert json.loads(storage.load_part(plan.token, 1)) == {**part, "shard": 1}


def test_run_shard__cache_fails_while_it_waits(plan, monkeypatch, server):
    """The tasks of the other shards still run them."""
    original = sharing.claim_shard

    def fail(*args, anew):
        if anew:
            return original(*args, anew=anew)
        raise sharing.StoreError("down")

    monkeypatch.setattr(sharing, "claim_shard", fail)
    monkeypatch.setattr(sharing, "store_part", lambda *args, found: fail(anew=False))
    server.delay = 0.1
    assert len(run(plan, 0)["found"]) == 2
    assert server.requests == 2


def test_run_shard__plan_of_earlier_version(plan, redis_client, server):
    """Its plan has no texts of shards, so each process probes the shard of its own task."""
    fields = [field for field in redis_client.hkeys(key("plan")) if field not in (b"ticket", b"plan")]
    redis_client.hdel(key("plan"), *fields)
    server.delay = 0.1
    parts = [run(plan, index) for index in range(3)]
    assert server.requests == 6
    sharing.finish_shared_round(plan.token, parts)
    assert reader.read().outcomes == {"success": 1}


def test_finish__stored_part_replaces_lost_one(plan):
    parts = [run(plan, index) for index in range(3)]
    parts[1] = {"shard": 1, "lost": "the round is over"}
    sharing.finish_shared_round(plan.token, parts)
    assert reader.read().outcomes == {"success": 1}


def test_left_over__has_the_finished_shards_of_a_killed_process(plan, monkeypatch, redis_client):
    monkeypatch.setattr(pool, "_CLAIM_PAUSE", 60)  # otherwise a slow probe makes it take the other shards
    run(plan, 1)  # its task was killed before it returned
    redis_client.delete(key("lease"))
    runner.run_round()
    assert reader.read().outcomes == {"incomplete": 1, "success": 1}


def test_share__by_the_processes_of_the_last_round(plan, configure):
    configure(SHARD_SIZE=5)
    for slot in ("a/1", "a/2", "b/1"):
        storage.claim_shard(plan.token, 0, slot, anew=True)
    end_round(plan.token)
    assert sorted(map(len, share().shards)) == [1, 1, 1, 3], "one for a process that is not known yet"
    assert storage.count_slots() == 0, "a process that is gone is forgotten"


def test_claim__closed_or_other_round_has_no_shards(plan):
    assert storage.claim_shard(plan.token + 1, 0, OTHER, anew=True) is None
    end_round(plan.token)
    assert storage.claim_shard(plan.token, 0, OTHER, anew=True) is None
    begin_round()
    assert storage.load_part(plan.token, 0) is None
