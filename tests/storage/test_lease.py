"""Fencing tokens, and the lease of the round."""

import threading
import time
from dataclasses import replace
from uuid import uuid4

import pytest
from django.core.cache import caches

from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import (
    RoundRequest,
    begin_round,
    end_round,
    lease_seconds,
    renewing_lease,
    take_token,
)
from proxyhealth.storage.plan import save_plan
from tests.support.proxies import wait_for
from tests.support.values import a_round

HOUR = 3_600


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


@pytest.fixture
def short_lease(configure):
    configure(INTERVAL=2)
    assert lease_seconds() == 1


def test_take_token__goes_up_even_if_the_clock_steps_back(redis_client):
    ahead = 4_000_000_000_000_000
    redis_client.set(key("token"), ahead)
    assert [take_token() for _ in range(3)] == [ahead + 1, ahead + 2, ahead + 3]


def test_take_token__is_about_the_time():
    assert abs(take_token() / 1e6 - time.time()) < 60


def test_begin_round__one_at_a_time():
    first = begin_round()
    assert (first.outcome, first.left_over) == ("begun", False)
    second = begin_round()
    assert (second.outcome, second.token) == ("running", 0)
    end_round(first.token)
    assert begin_round().token > first.token


def test_begin_round__one_of_many_concurrent_calls_begins():
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


def test_lease__from_before_a_clock_step_blocks_no_round(redis_client):
    begin_round()
    redis_client.expire(key("lease"), HOUR)  # what is left of it after the step
    assert begin_round().outcome == "begun"


def test_renewing_lease__renews_the_lease(configure, redis_client):
    configure(INTERVAL=8)
    begun = begin_round()
    with renewing_lease(begun.token, 60) as wanted:
        assert wanted
        for _ in range(2):  # a lease is 4 s long, and what is left of it is seen to go down and up
            wait_for(lambda: redis_client.pttl(key("lease")) < 3_500, 5, "it runs out")
            wait_for(lambda: redis_client.pttl(key("lease")) > 3_500, 30, "it is renewed")
        assert begin_round().outcome == "running"


def test_renewing_lease__takes_a_lost_lease_again(redis_client, short_lease):
    begun = begin_round()
    with renewing_lease(begun.token, 60):
        redis_client.flushall()
        wait_for(lambda: redis_client.get(key("lease")) == str(begun.token).encode())


def test_renewing_lease__survives_a_short_outage_of_the_cache(valkey, stopped, short_lease, redis_client):
    begun = begin_round()
    with renewing_lease(begun.token, 60) as lease:
        stopped()
        time.sleep(0.6)  # two renewals find it away
        valkey.start()
        wait_for(lambda: redis_client.get(key("lease")) == str(begun.token).encode())
        assert not lease.lost.is_set()


def test_renewing_lease__ends_for_a_block_that_hangs(short_lease):
    begun = begin_round()
    with renewing_lease(begun.token, 0.5):
        assert begin_round(wait=5).outcome == "begun"


def test_renewing_lease__does_not_shorten_a_longer_lease(configure, redis_client):
    configure(INTERVAL=60)
    begun = begin_round()
    configure(INTERVAL=2)
    with renewing_lease(begun.token, 60):
        assert redis_client.pttl(key("lease")) > 9_000


def test_renewing_lease__takes_no_lease_from_another_round(redis_client, short_lease):
    slept = begin_round()
    redis_client.delete(key("lease"))
    other = begin_round()
    with renewing_lease(slept.token, 60) as wanted:
        assert not wanted
    end_round(slept.token)
    assert redis_client.get(key("lease")) == str(other.token).encode()


def test_renewing_lease__refuses_a_closed_round():
    slept = begin_round()
    end_round(slept.token)
    with renewing_lease(slept.token, 60) as wanted:
        assert not wanted


def test_renewing_lease__notices_a_takeover(redis_client, short_lease):
    begun = begin_round()
    with renewing_lease(begun.token, 60) as lease:
        redis_client.set(key("lease"), begun.token + 1)
        wait_for(lease.lost.is_set)
    assert redis_client.get(key("lease")) == str(begun.token + 1).encode()


def test_end_round__returns_the_last_request_for_a_round():
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


def test_end_round__returns_the_same_if_called_again():
    begun = begin_round()
    asked = take_token()
    begin_round(RoundRequest(requested_token=asked, rerun_if_busy=True))
    assert [end_round(begun.token) for _ in range(2)] == [asked, asked]


def test_end_round__ignores_requests_from_before_the_round():
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


def test_begin_round__a_recent_round_fulfils_max_age(redis_client):
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


def test_begin_round__a_recent_round_with_a_plan_left_over():
    begun = begin_round()
    commit([], begun.token, full_round=a_round())
    assert save_plan(begun.token, "x")
    end_round(begun.token)
    assert begin_round(RoundRequest(max_age=30)).left_over


def test_begin_round__a_failed_round_fulfils_no_request():
    asked = take_token()
    end_round(begin_round(RoundRequest(requested_token=asked)).token)
    assert begin_round(RoundRequest(requested_token=asked)).outcome == "begun"


def test_begin_round__a_request_alone_causes_no_rerun():
    first = begin_round()
    begin_round(RoundRequest(requested_token=take_token()))
    assert end_round(first.token) == 0


def test_begin_round__ticks_keep_their_gap():
    def tick(gap):
        begun = begin_round(RoundRequest(min_gap=gap))
        end_round(begun.token)
        return begun.outcome

    assert tick(30) == "begun"
    assert tick(30) == "early"
    time.sleep(0.1)
    assert tick(0.09) == "begun"
    assert begin_round().outcome == "begun", "who asks is no tick"


def test_begin_round__a_tick_of_the_future_is_ignored(redis_client):
    redis_client.set(key("tick"), int((time.time() + HOUR) * 1_000_000))
    assert begin_round(RoundRequest(min_gap=30)).outcome == "begun"
