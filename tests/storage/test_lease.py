import threading
import time
from dataclasses import replace
from uuid import uuid4

import pytest
from django.core.cache import caches

from proxyhealth.storage import lease as coordination
from proxyhealth.storage import reader as store
from proxyhealth.storage.client import StoreError
from tests.support.proxies import wait_for
from tests.support.values import a_round

HOUR = 3_600


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


@pytest.fixture
def short_lease(configure):
    configure(INTERVAL=2)
    assert coordination.lease_seconds() == 1


def test_take_ticket__goes_up_even_if_the_time_of_the_cache_steps_back(redis_client):
    ahead = 4_000_000_000_000_000
    redis_client.set(key("ticket"), ahead)
    assert [coordination.take_ticket() for _ in range(3)] == [ahead + 1, ahead + 2, ahead + 3]


def test_take_ticket__is_about_the_time():
    assert abs(coordination.take_ticket() / 1e6 - time.time()) < 60


def test_begin_round__one_at_a_time():
    first = coordination.begin_round()
    assert (first.why, first.left_over) == ("begun", False)
    second = coordination.begin_round()
    assert (second.why, second.ticket) == ("running", 0)
    coordination.end_round(first.ticket)
    assert coordination.begin_round().ticket > first.ticket


def test_begin_round__of_many_at_once_exactly_one_begins():
    together = threading.Barrier(16)
    begun = []

    def begin():
        together.wait(5)
        begun.append(coordination.begin_round().why)

    threads = [threading.Thread(target=begin) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(begun) == ["begun"] + 15 * ["running"]


def test_begin_round__waits_if_told_to():
    first = coordination.begin_round()
    timer = threading.Timer(0.3, coordination.end_round, [first.ticket])
    timer.start()
    assert coordination.begin_round(wait=5).why == "begun"
    timer.join(5)


def test_lease__of_a_round_that_died_frees_itself(short_lease):
    begin = time.monotonic()
    coordination.begin_round()
    assert coordination.begin_round(wait=5).why == "begun"
    assert time.monotonic() - begin > 0.5


@pytest.mark.parametrize(("interval", "seconds"), [(60, 10), (20, 10), (5, 2.5), (1, 1)])
def test_lease__of_a_round_that_died_costs_one_tick_not_two(configure, interval, seconds):
    configure(INTERVAL=interval)
    assert coordination.lease_seconds() == seconds


def test_lease__from_before_the_clock_of_the_cache_stepped_back_holds_nobody_up(redis_client):
    coordination.begin_round()
    redis_client.expire(key("round"), HOUR)  # what is left of it after the step
    assert coordination.begin_round().why == "begun"


def test_kept__renews_the_lease(configure, redis_client):
    configure(INTERVAL=8)
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket, 60) as wanted:
        assert wanted
        for _ in range(2):  # a lease is 4 s long, and what is left of it is seen to go down and up
            wait_for(lambda: redis_client.pttl(key("round")) < 3_500, 5, "it runs out")
            wait_for(lambda: redis_client.pttl(key("round")) > 3_500, 30, "it is renewed")
        assert coordination.begin_round().why == "running"


def test_kept__takes_a_lease_again_that_the_cache_has_lost(redis_client, short_lease):
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket, 60):
        redis_client.flushall()
        wait_for(lambda: redis_client.get(key("round")) == str(begun.ticket).encode())


def test_kept__survives_a_cache_that_is_away_for_a_moment(valkey, stopped, short_lease, redis_client):
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket, 60) as lease:
        stopped()
        time.sleep(0.6)  # two renewals find it away
        valkey.start()
        wait_for(lambda: redis_client.get(key("round")) == str(begun.ticket).encode())
        assert not lease.lost.is_set()


def test_kept__a_block_that_hangs_keeps_nobody_away_for_ever(short_lease):
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket, 0.5):
        assert coordination.begin_round(wait=5).why == "begun"


def test_kept__does_not_shorten_a_lease_that_a_host_with_another_interval_gave(configure, redis_client):
    configure(INTERVAL=60)
    begun = coordination.begin_round()
    configure(INTERVAL=2)
    with coordination.kept(begun.ticket, 60):
        assert redis_client.pttl(key("round")) > 9_000


def test_kept__does_not_take_a_lease_from_another_round(redis_client, short_lease):
    slept = coordination.begin_round()
    redis_client.delete(key("round"))
    other = coordination.begin_round()
    with coordination.kept(slept.ticket, 60) as wanted:
        assert not wanted
    coordination.end_round(slept.ticket)
    assert redis_client.get(key("round")) == str(other.ticket).encode()


def test_kept__does_not_go_on_with_a_round_that_is_closed():
    slept = coordination.begin_round()
    coordination.end_round(slept.ticket)
    with coordination.kept(slept.ticket, 60) as wanted:
        assert not wanted


def test_kept__notices_that_it_was_taken_over(redis_client, short_lease):
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket, 60) as lease:
        redis_client.set(key("round"), begun.ticket + 1)
        wait_for(lease.lost.is_set)
    assert redis_client.get(key("round")) == str(begun.ticket + 1).encode()


def test_commit__by_a_holder_whose_lease_was_taken_over_is_refused(redis_client, snapshot_key):
    slept = coordination.begin_round()
    redis_client.delete(key("round"))
    other = coordination.begin_round()
    with pytest.raises(store.Superseded, match="another round has begun"):
        store.commit([], slept.ticket, full_round=a_round())
    assert redis_client.get(snapshot_key) is None
    store.commit([], other.ticket, full_round=a_round())
    coordination.end_round(other.ticket)
    with pytest.raises(store.Superseded):
        store.commit([], slept.ticket, full_round=a_round())
    assert store.read().outcomes == {"success": 1}


def test_commit__by_a_holder_whose_successor_failed_is_refused_too(redis_client, snapshot_key):
    slept = coordination.begin_round()
    redis_client.delete(key("round"))
    coordination.end_round(coordination.begin_round().ticket)
    with pytest.raises(store.Superseded):
        store.commit([], slept.ticket, full_round=a_round())
    assert redis_client.get(snapshot_key) is None


def test_commit__tells_a_promoted_replica_of_the_tickets_that_it_missed(redis_client):
    ahead = coordination.take_ticket() + 3_600_000_000
    store.commit([], ahead, full_round=a_round())
    assert coordination.take_ticket() > ahead


def test_commit__whose_answer_was_lost_is_done_once(monkeypatch):
    """The client sends a script again whose connection broke before the answer came."""
    from redis import Redis

    original = Redis.eval

    def twice(self, script, *args):
        original(self, script, *args)
        return original(self, script, *args)

    monkeypatch.setattr(Redis, "eval", twice)
    store.commit([], 7, full_round=a_round())
    assert store.read().outcomes == {"success": 1}
    assert (sum(store.read().rounds.counts), store.read().number) == (1, 1)


def test_commit__of_a_round_that_is_tried_again_after_its_answer_was_lost_is_done_once(monkeypatch):
    """The answer came too late; meanwhile somebody else has committed, too."""
    for part in (a_round(), replace(a_round(), missing=frozenset({uuid4()}))):
        begun = coordination.begin_round()
        before = store.read_anew()
        store.commit([], begun.ticket, full_round=part)
        store.commit([], coordination.take_ticket())
        store.commit([], begun.ticket, full_round=part)
        after = store.read_anew()
        assert sum(after.outcomes.values()) == sum(before.outcomes.values()) + 1
        assert sum(after.rounds.counts) == sum(before.rounds.counts) + (not part.missing)
        coordination.end_round(begun.ticket)


def test_commit__of_a_lease_that_ran_out_and_that_nobody_took_is_welcome(redis_client):
    slept = coordination.begin_round()
    redis_client.delete(key("round"))
    store.commit([], slept.ticket, full_round=a_round())
    assert store.read().checked_at is not None


def test_end_round__tells_who_asked_for_another_one():
    first = coordination.begin_round()
    asked = [coordination.take_ticket() for _ in range(10)]
    for ticket in asked:
        assert coordination.begin_round(asked=ticket, follow=True).why == "running"
    assert coordination.end_round(first.ticket) == asked[-1]
    second = coordination.begin_round(asked=asked[-1], follow=True)
    store.commit([], second.ticket, full_round=a_round())
    assert coordination.end_round(second.ticket) == 0
    for ticket in asked:
        assert coordination.begin_round(asked=ticket, follow=True).why == "done"


def test_end_round__whose_answer_was_lost_tells_it_again():
    begun = coordination.begin_round()
    asked = coordination.take_ticket()
    coordination.begin_round(asked=asked, follow=True)
    assert [coordination.end_round(begun.ticket) for _ in range(2)] == [asked, asked]


def test_end_round__a_request_from_before_the_round_needs_no_other():
    asked = coordination.take_ticket()
    begun = coordination.begin_round()
    coordination.begin_round(asked=asked, follow=True)
    store.commit([], begun.ticket, full_round=a_round())
    assert coordination.end_round(begun.ticket) == 0


def test_begin_round__an_incomplete_one_fulfils_no_request():
    asked = coordination.take_ticket()
    begun = coordination.begin_round()
    part = replace(a_round(), missing=frozenset({uuid4()}))
    store.commit([], begun.ticket, full_round=part)
    coordination.end_round(begun.ticket)
    assert coordination.begin_round(asked=asked).why == "begun"


def test_begin_round__a_fresh_one_will_do_for_who_only_starts(redis_client):
    def begin():
        begun = coordination.begin_round(asked=coordination.take_ticket(), fresh=30)
        if begun.ticket:
            store.commit([], begun.ticket, full_round=a_round())
            coordination.end_round(begun.ticket)
        return begun.why

    assert begin() == "begun"
    assert begin() == "done"
    redis_client.hset(key("rounds"), "full", int((time.time() - 31) * 1_000_000))
    redis_client.delete(key("snapshot"))
    assert begin() == "begun"
    redis_client.hset(key("rounds"), "full", int((time.time() + HOUR) * 1_000_000))
    assert coordination.begin_round(fresh=30).why == "begun", "it is from before the clock stepped back"


def test_begin_round__a_fresh_one_will_not_do_if_a_plan_is_left_over():
    begun = coordination.begin_round()
    store.commit([], begun.ticket, full_round=a_round())
    assert coordination.save_plan(begun.ticket, "x")
    coordination.end_round(begun.ticket)
    assert coordination.begin_round(fresh=30).left_over


def test_begin_round__a_request_is_not_fulfilled_by_a_round_that_failed():
    asked = coordination.take_ticket()
    coordination.end_round(coordination.begin_round(asked=asked).ticket)
    assert coordination.begin_round(asked=asked).why == "begun"


def test_begin_round__a_wait_asks_for_no_other_round():
    first = coordination.begin_round()
    coordination.begin_round(asked=coordination.take_ticket())
    assert coordination.end_round(first.ticket) == 0


def test_begin_round__ticks_come_no_closer_than_their_gap():
    def tick(gap):
        begun = coordination.begin_round(gap=gap)
        coordination.end_round(begun.ticket)
        return begun.why

    assert tick(30) == "begun"
    assert tick(30) == "early"
    time.sleep(0.1)
    assert tick(0.09) == "begun"
    assert coordination.begin_round().why == "begun", "who asks is no tick"


def test_begin_round__a_tick_of_the_future_is_from_before_the_clock_stepped_back(redis_client):
    redis_client.set(key("tick"), int((time.time() + HOUR) * 1_000_000))
    assert coordination.begin_round(gap=30).why == "begun"


def test_count_round__offline_is_said_until_a_round_is_committed():
    store.commit([], coordination.take_ticket(), full_round=a_round())
    begun = coordination.begin_round()
    coordination.count_round("offline", "Prober offline: x", begun.ticket)
    coordination.end_round(begun.ticket)
    assert (store.read().stale, store.read().stale_reason) == (True, "Prober offline: x")
    begun = coordination.begin_round()
    store.commit([], begun.ticket, full_round=a_round())
    assert not store.read().stale
    assert store.read().outcomes == {"success": 2, "offline": 1}
    assert store.read().error == "Prober offline: x"


@pytest.mark.parametrize("other", ["runs", "is over"])
def test_count_round__offline_is_not_said_of_a_round_after_it(redis_client, other):
    slept = coordination.begin_round()
    redis_client.delete(key("round"))
    begun = coordination.begin_round()
    if other == "is over":
        store.commit([], begun.ticket, full_round=a_round())
        coordination.end_round(begun.ticket)
    coordination.count_round("offline", "Prober offline: x", slept.ticket)
    assert store.read().offline == ""
    assert store.read().outcomes["offline"] == 1


def test_errors__are_kept_short():
    coordination.count_round("failure", 5_000 * "x")
    assert len(store.read().error) == coordination.MAX_ERROR
    store.commit([], 1, full_round=replace(a_round(), missing=frozenset({uuid4()}), error=5_000 * "y"))
    assert store.read().error == coordination.MAX_ERROR * "y"


def test_plan__is_kept_until_its_round_is_committed(redis_client):
    first = coordination.begin_round()
    assert coordination.save_plan(first.ticket, "plän")
    assert redis_client.ttl(key("plan")) > 3_600
    coordination.end_round(first.ticket)
    second = coordination.begin_round()
    assert second.left_over
    assert coordination.load_plan() == "plän"
    store.commit([], first.ticket, full_round=a_round(), lease=second.ticket)
    assert coordination.load_plan() == ""


def test_plan__of_a_round_is_touched_by_no_other(redis_client):
    slept = coordination.begin_round()
    redis_client.delete(key("round"))
    other = coordination.begin_round()
    assert coordination.save_plan(other.ticket, "the other's")
    assert not coordination.save_plan(slept.ticket, "mine")
    coordination.drop_plan(slept.ticket)
    assert coordination.load_plan() == "the other's"
    coordination.drop_plan(other.ticket)
    assert coordination.load_plan() == ""


def test_pending__many_requests_are_one_task():
    ids = [uuid4() for _ in range(3)]
    assert coordination.add_pending([str(ids[0])])
    assert not coordination.add_pending([str(ids[1]), str(ids[2])])
    assert coordination.take_pending() == set(ids)
    assert coordination.take_pending() == set()
    assert coordination.add_pending([str(ids[0])])


def test_pending__a_task_that_got_lost_is_sent_again(monkeypatch):
    monkeypatch.setattr(coordination, "_SENT_FOR", 100)
    id = uuid4()
    assert coordination.add_pending([str(id)])
    wait_for(lambda: coordination.add_pending([str(id)]))
    assert coordination.take_pending() == {id}


def test_pending__a_task_of_the_future_is_from_before_the_clock_stepped_back(redis_client):
    coordination.add_pending([str(uuid4())])
    redis_client.expire(key("pending:sent"), HOUR)
    assert coordination.add_pending([str(uuid4())])


@pytest.mark.parametrize(
    "call",
    [
        coordination.take_ticket,
        coordination.begin_round,
        lambda: coordination.kept(1, 60).__enter__(),
        lambda: coordination.end_round(1),
        lambda: coordination.count_round("failure"),
        lambda: coordination.save_plan(1, ""),
        coordination.load_plan,
        lambda: coordination.drop_plan(1),
        lambda: coordination.add_pending(["x"]),
        coordination.take_pending,
        lambda: store.commit([], 1),
    ],
)
def test_server_down__raises_store_error(stopped, call):
    stopped()
    with pytest.raises(StoreError):
        call()
