import threading
import time
from dataclasses import replace
from uuid import uuid4

import pytest
from django.core.cache import caches

from proxyhealth.exceptions import StoreError, Superseded
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import MAX_ERROR, count_round
from proxyhealth.storage.lease import (
    RoundRequest,
    begin_round,
    end_round,
    lease_seconds,
    renewing_lease,
    take_token,
)
from proxyhealth.storage.pending import add_pending, take_pending
from proxyhealth.storage.plan import drop_plan, load_plan, save_plan
from tests.support.proxies import wait_for
from tests.support.values import a_round

HOUR = 3_600


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


@pytest.fixture
def short_lease(configure):
    configure(INTERVAL=2)
    assert lease_seconds() == 1


def test_take_ticket__goes_up_even_if_the_time_of_the_cache_steps_back(redis_client):
    ahead = 4_000_000_000_000_000
    redis_client.set(key("token"), ahead)
    assert [take_token() for _ in range(3)] == [ahead + 1, ahead + 2, ahead + 3]


def test_take_ticket__is_about_the_time():
    assert abs(take_token() / 1e6 - time.time()) < 60


def test_begin_round__one_at_a_time():
    first = begin_round()
    assert (first.outcome, first.left_over) == ("begun", False)
    second = begin_round()
    assert (second.outcome, second.token) == ("running", 0)
    end_round(first.token)
    assert begin_round().token > first.token


def test_begin_round__of_many_at_once_exactly_one_begins():
    together = threading.Barrier(16)
    begun = []

    def begin():
        together.wait(5)
        begun.append(begin_round().outcome)

    threads = [threading.Thread(target=begin) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(begun) == ["begun"] + 15 * ["running"]


def test_begin_round__waits_if_told_to():
    first = begin_round()
    timer = threading.Timer(0.3, end_round, [first.token])
    timer.start()
    assert begin_round(wait=5).outcome == "begun"
    timer.join(5)


def test_lease__of_a_round_that_died_frees_itself(short_lease):
    begin = time.monotonic()
    begin_round()
    assert begin_round(wait=5).outcome == "begun"
    assert time.monotonic() - begin > 0.5


@pytest.mark.parametrize(("interval", "seconds"), [(60, 10), (20, 10), (5, 2.5), (1, 1)])
def test_lease__of_a_round_that_died_costs_one_tick_not_two(configure, interval, seconds):
    configure(INTERVAL=interval)
    assert lease_seconds() == seconds


def test_lease__from_before_the_clock_of_the_cache_stepped_back_holds_nobody_up(redis_client):
    begin_round()
    redis_client.expire(key("lease"), HOUR)  # what is left of it after the step
    assert begin_round().outcome == "begun"


def test_kept__renews_the_lease(configure, redis_client):
    configure(INTERVAL=8)
    begun = begin_round()
    with renewing_lease(begun.token, 60) as wanted:
        assert wanted
        for _ in range(2):  # a lease is 4 s long, and what is left of it is seen to go down and up
            wait_for(lambda: redis_client.pttl(key("lease")) < 3_500, 5, "it runs out")
            wait_for(lambda: redis_client.pttl(key("lease")) > 3_500, 30, "it is renewed")
        assert begin_round().outcome == "running"


def test_kept__takes_a_lease_again_that_the_cache_has_lost(redis_client, short_lease):
    begun = begin_round()
    with renewing_lease(begun.token, 60):
        redis_client.flushall()
        wait_for(lambda: redis_client.get(key("lease")) == str(begun.token).encode())


def test_kept__survives_a_cache_that_is_away_for_a_moment(valkey, stopped, short_lease, redis_client):
    begun = begin_round()
    with renewing_lease(begun.token, 60) as lease:
        stopped()
        time.sleep(0.6)  # two renewals find it away
        valkey.start()
        wait_for(lambda: redis_client.get(key("lease")) == str(begun.token).encode())
        assert not lease.lost.is_set()


def test_kept__a_block_that_hangs_keeps_nobody_away_for_ever(short_lease):
    begun = begin_round()
    with renewing_lease(begun.token, 0.5):
        assert begin_round(wait=5).outcome == "begun"


def test_kept__does_not_shorten_a_lease_that_a_host_with_another_interval_gave(configure, redis_client):
    configure(INTERVAL=60)
    begun = begin_round()
    configure(INTERVAL=2)
    with renewing_lease(begun.token, 60):
        assert redis_client.pttl(key("lease")) > 9_000


def test_kept__does_not_take_a_lease_from_another_round(redis_client, short_lease):
    slept = begin_round()
    redis_client.delete(key("lease"))
    other = begin_round()
    with renewing_lease(slept.token, 60) as wanted:
        assert not wanted
    end_round(slept.token)
    assert redis_client.get(key("lease")) == str(other.token).encode()


def test_kept__does_not_go_on_with_a_round_that_is_closed():
    slept = begin_round()
    end_round(slept.token)
    with renewing_lease(slept.token, 60) as wanted:
        assert not wanted


def test_kept__notices_that_it_was_taken_over(redis_client, short_lease):
    begun = begin_round()
    with renewing_lease(begun.token, 60) as lease:
        redis_client.set(key("lease"), begun.token + 1)
        wait_for(lease.lost.is_set)
    assert redis_client.get(key("lease")) == str(begun.token + 1).encode()


def test_commit__by_a_holder_whose_lease_was_taken_over_is_refused(redis_client, snapshot_key):
    slept = begin_round()
    redis_client.delete(key("lease"))
    other = begin_round()
    with pytest.raises(Superseded, match="another round has begun"):
        commit([], slept.token, full_round=a_round())
    assert redis_client.get(snapshot_key) is None
    commit([], other.token, full_round=a_round())
    end_round(other.token)
    with pytest.raises(Superseded):
        commit([], slept.token, full_round=a_round())
    assert reader.read().outcomes == {"success": 1}


def test_commit__by_a_holder_whose_successor_failed_is_refused_too(redis_client, snapshot_key):
    slept = begin_round()
    redis_client.delete(key("lease"))
    end_round(begin_round().token)
    with pytest.raises(Superseded):
        commit([], slept.token, full_round=a_round())
    assert redis_client.get(snapshot_key) is None


def test_commit__tells_a_promoted_replica_of_the_tickets_that_it_missed(redis_client):
    ahead = take_token() + 3_600_000_000
    commit([], ahead, full_round=a_round())
    assert take_token() > ahead


def test_commit__whose_answer_was_lost_is_done_once(monkeypatch):
    """The client sends a script again whose connection broke before the answer came."""
    from redis import Redis

    original = Redis.evalsha

    def twice(self, script, *args):
        original(self, script, *args)
        return original(self, script, *args)

    monkeypatch.setattr(Redis, "evalsha", twice)
    commit([], 7, full_round=a_round())
    assert reader.read().outcomes == {"success": 1}
    assert (sum(reader.read().rounds.counts), reader.read().number) == (1, 1)


def test_commit__of_a_round_that_is_tried_again_after_its_answer_was_lost_is_done_once(monkeypatch):
    """The answer came too late; meanwhile somebody else has committed, too."""
    for part in (a_round(), replace(a_round(), missing=frozenset({uuid4()}))):
        begun = begin_round()
        before = reader.read_anew()
        commit([], begun.token, full_round=part)
        commit([], take_token())
        commit([], begun.token, full_round=part)
        after = reader.read_anew()
        assert sum(after.outcomes.values()) == sum(before.outcomes.values()) + 1
        assert sum(after.rounds.counts) == sum(before.rounds.counts) + (not part.missing)
        end_round(begun.token)


def test_commit__of_a_lease_that_ran_out_and_that_nobody_took_is_welcome(redis_client):
    slept = begin_round()
    redis_client.delete(key("lease"))
    commit([], slept.token, full_round=a_round())
    assert reader.read().checked_at is not None


def test_end_round__tells_who_asked_for_another_one():
    first = begin_round()
    asked = [take_token() for _ in range(10)]
    for token in asked:
        assert begin_round(RoundRequest(requested_token=token, rerun_if_busy=True)).outcome == "running"
    assert end_round(first.token) == asked[-1]
    second = begin_round(RoundRequest(requested_token=asked[-1], rerun_if_busy=True))
    commit([], second.token, full_round=a_round())
    assert end_round(second.token) == 0
    for token in asked:
        assert begin_round(RoundRequest(requested_token=token, rerun_if_busy=True)).outcome == "done"


def test_end_round__whose_answer_was_lost_tells_it_again():
    begun = begin_round()
    asked = take_token()
    begin_round(RoundRequest(requested_token=asked, rerun_if_busy=True))
    assert [end_round(begun.token) for _ in range(2)] == [asked, asked]


def test_end_round__a_request_from_before_the_round_needs_no_other():
    asked = take_token()
    begun = begin_round()
    begin_round(RoundRequest(requested_token=asked, rerun_if_busy=True))
    commit([], begun.token, full_round=a_round())
    assert end_round(begun.token) == 0


def test_begin_round__an_incomplete_one_fulfils_no_request():
    asked = take_token()
    begun = begin_round()
    part = replace(a_round(), missing=frozenset({uuid4()}))
    commit([], begun.token, full_round=part)
    end_round(begun.token)
    assert begin_round(RoundRequest(requested_token=asked)).outcome == "begun"


def test_begin_round__a_fresh_one_will_do_for_who_only_starts(redis_client):
    def begin():
        begun = begin_round(RoundRequest(requested_token=take_token(), max_age=30))
        if begun.token:
            commit([], begun.token, full_round=a_round())
            end_round(begun.token)
        return begun.outcome

    assert begin() == "begun"
    assert begin() == "done"
    redis_client.hset(key("round-stats"), "full", int((time.time() - 31) * 1_000_000))
    redis_client.delete(key("snapshot"))
    assert begin() == "begun"
    redis_client.hset(key("round-stats"), "full", int((time.time() + HOUR) * 1_000_000))
    assert begin_round(RoundRequest(max_age=30)).outcome == "begun", (
        "it is from before the clock stepped back"
    )


def test_begin_round__a_fresh_one_will_not_do_if_a_plan_is_left_over():
    begun = begin_round()
    commit([], begun.token, full_round=a_round())
    assert save_plan(begun.token, "x")
    end_round(begun.token)
    assert begin_round(RoundRequest(max_age=30)).left_over


def test_begin_round__a_request_is_not_fulfilled_by_a_round_that_failed():
    asked = take_token()
    end_round(begin_round(RoundRequest(requested_token=asked)).token)
    assert begin_round(RoundRequest(requested_token=asked)).outcome == "begun"


def test_begin_round__a_wait_asks_for_no_other_round():
    first = begin_round()
    begin_round(RoundRequest(requested_token=take_token()))
    assert end_round(first.token) == 0


def test_begin_round__ticks_come_no_closer_than_their_gap():
    def tick(gap):
        begun = begin_round(RoundRequest(min_gap=gap))
        end_round(begun.token)
        return begun.outcome

    assert tick(30) == "begun"
    assert tick(30) == "early"
    time.sleep(0.1)
    assert tick(0.09) == "begun"
    assert begin_round().outcome == "begun", "who asks is no tick"


def test_begin_round__a_tick_of_the_future_is_from_before_the_clock_stepped_back(redis_client):
    redis_client.set(key("tick"), int((time.time() + HOUR) * 1_000_000))
    assert begin_round(RoundRequest(min_gap=30)).outcome == "begun"


def test_count_round__offline_is_said_until_a_round_is_committed():
    commit([], take_token(), full_round=a_round())
    begun = begin_round()
    count_round("offline", "Prober offline: x", begun.token)
    end_round(begun.token)
    assert (reader.read().stale, reader.read().stale_reason) == (True, "Prober offline: x")
    begun = begin_round()
    commit([], begun.token, full_round=a_round())
    assert not reader.read().stale
    assert reader.read().outcomes == {"success": 2, "offline": 1}
    assert reader.read().error == "Prober offline: x"


@pytest.mark.parametrize("other", ["runs", "is over"])
def test_count_round__offline_is_not_said_of_a_round_after_it(redis_client, other):
    slept = begin_round()
    redis_client.delete(key("lease"))
    begun = begin_round()
    if other == "is over":
        commit([], begun.token, full_round=a_round())
        end_round(begun.token)
    count_round("offline", "Prober offline: x", slept.token)
    assert reader.read().offline == ""
    assert reader.read().outcomes["offline"] == 1


def test_errors__are_kept_short():
    count_round("failure", 5_000 * "x")
    assert len(reader.read().error) == MAX_ERROR
    commit([], 1, full_round=replace(a_round(), missing=frozenset({uuid4()}), error=5_000 * "y"))
    assert reader.read().error == MAX_ERROR * "y"


def test_plan__is_kept_until_its_round_is_committed(redis_client):
    first = begin_round()
    assert save_plan(first.token, "plän")
    assert redis_client.ttl(key("plan")) > 3_600
    end_round(first.token)
    second = begin_round()
    assert second.left_over
    assert load_plan() == "plän"
    commit([], first.token, full_round=a_round(), lease=second.token)
    assert load_plan() == ""


def test_plan__of_a_round_is_touched_by_no_other(redis_client):
    slept = begin_round()
    redis_client.delete(key("lease"))
    other = begin_round()
    assert save_plan(other.token, "the other's")
    assert not save_plan(slept.token, "mine")
    drop_plan(slept.token)
    assert load_plan() == "the other's"
    drop_plan(other.token)
    assert load_plan() == ""


def test_pending__many_requests_are_one_task():
    ids = [uuid4() for _ in range(3)]
    assert add_pending([str(ids[0])])
    assert not add_pending([str(ids[1]), str(ids[2])])
    assert take_pending() == set(ids)
    assert take_pending() == set()
    assert add_pending([str(ids[0])])


def test_pending__a_task_that_got_lost_is_sent_again(monkeypatch):
    monkeypatch.setattr("proxyhealth.storage.pending._CLAIM_TIMEOUT", 100)
    id = uuid4()
    assert add_pending([str(id)])
    wait_for(lambda: add_pending([str(id)]))
    assert take_pending() == {id}


def test_pending__a_task_of_the_future_is_from_before_the_clock_stepped_back(redis_client):
    add_pending([str(uuid4())])
    redis_client.expire(key("pending:sent"), HOUR)
    assert add_pending([str(uuid4())])


@pytest.mark.parametrize(
    "call",
    [
        take_token,
        begin_round,
        lambda: renewing_lease(1, 60).__enter__(),
        lambda: end_round(1),
        lambda: count_round("failure"),
        lambda: save_plan(1, ""),
        load_plan,
        lambda: drop_plan(1),
        lambda: add_pending(["x"]),
        take_pending,
        lambda: commit([], 1),
    ],
)
def test_server_down__raises_store_error(stopped, call):
    stopped()
    with pytest.raises(StoreError):
        call()
