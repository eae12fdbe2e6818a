import threading
import time
from uuid import uuid4

import pytest
from django.core.cache import caches

from proxyhealth import coordination, store
from proxyhealth.cache import StoreError
from tests.proxies import wait_for
from tests.values import a_round

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
    coordination.begin_round()
    begin = time.monotonic()
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


def test_kept__renews_the_lease(short_lease):
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket) as wanted:
        assert wanted
        assert coordination.begin_round(wait=2).why == "running"


def test_kept__takes_a_lease_again_that_the_cache_has_lost(redis_client, short_lease):
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket):
        redis_client.flushall()
        wait_for(lambda: redis_client.get(key("round")) == str(begun.ticket).encode())


def test_kept__survives_a_cache_that_is_away_for_a_moment(valkey, stopped, short_lease):
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket):
        stopped()
        valkey.start()
        wait_for(lambda: coordination.begin_round().why == "running")


def test_kept__does_not_take_a_lease_from_another_round(redis_client, short_lease):
    slept = coordination.begin_round()
    redis_client.delete(key("round"))
    other = coordination.begin_round()
    with coordination.kept(slept.ticket) as wanted:
        assert not wanted
    coordination.end_round(slept.ticket)
    assert redis_client.get(key("round")) == str(other.ticket).encode()


def test_kept__does_not_go_on_with_a_round_that_is_closed():
    slept = coordination.begin_round()
    coordination.end_round(slept.ticket)
    with coordination.kept(slept.ticket) as wanted:
        assert not wanted


def test_kept__notices_that_it_was_taken_over(redis_client, short_lease):
    begun = coordination.begin_round()
    with coordination.kept(begun.ticket):
        redis_client.set(key("round"), begun.ticket + 1)
        wait_for(lambda: not any(thread.name == "round lease" for thread in threading.enumerate()))
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
    with pytest.raises(store.Superseded, match="a later round was committed"):
        store.commit([], slept.ticket, full_round=a_round())
    assert store.read().outcomes == {"success": 1}


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
    assert coordination.begin_round().why == "begun", "who asks is no tick"


def test_begin_round__a_tick_of_the_future_is_from_before_the_clock_stepped_back(redis_client):
    redis_client.set(key("tick"), int((time.time() + HOUR) * 1_000_000))
    assert coordination.begin_round(gap=30).why == "begun"


def test_count_round__offline_is_said_until_a_round_is_committed():
    store.commit([], coordination.take_ticket(), full_round=a_round())
    coordination.count_round("offline", "Prober offline: x")
    assert (store.read().stale, store.read().stale_reason) == (True, "Prober offline: x")
    store.commit([], coordination.take_ticket(), full_round=a_round())
    assert not store.read().stale
    assert store.read().outcomes == {"success": 2, "offline": 1}
    assert store.read().error == "Prober offline: x"


def test_plan__is_kept_until_its_round_is_committed():
    first = coordination.begin_round()
    coordination.save_plan("plän")
    coordination.end_round(first.ticket)
    second = coordination.begin_round()
    assert second.left_over
    assert coordination.load_plan() == "plän"
    store.commit([], second.ticket, full_round=a_round())
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
        lambda: coordination.kept(1).__enter__(),
        lambda: coordination.end_round(1),
        lambda: coordination.count_round("failure"),
        lambda: coordination.save_plan(""),
        coordination.load_plan,
        coordination.drop_plan,
        lambda: coordination.add_pending(["x"]),
        coordination.take_pending,
        lambda: store.commit([], 1),
    ],
)
def test_server_down__raises_store_error(stopped, call):
    stopped()
    with pytest.raises(StoreError):
        call()
