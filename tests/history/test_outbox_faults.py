"""Faults between a commit and the rows of its changes. None loses a change, and none writes one twice."""

import pytest
from django.conf import settings as django_settings
from django.core.cache import caches
from django.db import connection

from proxyhealth.exceptions import StoreError
from proxyhealth.history import records
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.models import Gap, Transition, Watch
from proxyhealth.rounds.steps import commit_statuses
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.outbox import read_entries
from proxyhealth.storage.pending import claim_recheck
from proxyhealth.storage.repair import repair
from tests.settings import REDIS_PORT
from tests.support.redis_relay import RedisRelay
from tests.support.values import a_round, make_proxy, make_status, refuse_queries

pytestmark = pytest.mark.django_db

# The client itself repeats a request once. After three lost replies, the caller has repeated the commit.
TIMES = [1, 2, 3]


@pytest.fixture
def relay(settings, redis_client):
    """A relay between this process and Redis."""
    relay = RedisRelay(REDIS_PORT)
    with relay.running() as location:
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": location}}
        yield relay


@pytest.fixture
def key(redis_client):
    return caches["default"].make_key("proxyhealth:outbox")


@pytest.fixture
def full_redis(redis_client):
    """Call the value to fill Redis. The fixture makes room again."""
    yield lambda: redis_client.config_set("maxmemory", 1)
    redis_client.config_set("maxmemory", 0)


def run_round(*statuses):
    return commit_statuses(list(statuses), take_token(), full_round=a_round())


def rows():
    """Return the transitions in their order, as (name, before, after)."""
    return list(Transition.objects.order_by("pk").values_list("proxy_name", "before", "after"))


def is_in_snapshot(proxy, status):
    """Return True if the snapshot and the last transition of the proxy agree on this status."""
    last = Transition.objects.filter(proxy_uuid=proxy.id).order_by("pk").last()
    return reader.read_anew().statuses[proxy.id].status == status == last.after


@pytest.mark.parametrize("times", TIMES)
def test_commit__whose_reply_is_lost_is_recorded_once(relay, times):
    a, b, gone = (make_proxy(name) for name in ("a", "b", "gone"))
    relay.lose(b'"judgements"', times)
    run_round(make_status(a), make_status(b), make_status(gone))
    relay.lose(b'"judgements"', times)
    commit_statuses([make_status(a, Status.UNREACHABLE)], take_token(), removed=[gone.id])
    assert relay.left == 0
    record_history()
    assert rows() == [
        ("a", "unknown", "ok"),
        ("b", "unknown", "ok"),
        ("gone", "unknown", "ok"),
        ("gone", "ok", "removed"),
        ("a", "ok", "unreachable"),
    ]


@pytest.mark.parametrize("marker", [b"LRANGE", b"proxyhealth:outbox"], ids=["any", "read"])
def test_drain__whose_reply_is_lost_records_once(relay, marker):
    proxy = make_proxy()
    run_round(make_status(proxy))
    run_round(make_status(proxy, Status.UNREACHABLE))
    relay.lose(marker, 1)
    record_history()
    assert relay.left == 0
    assert rows() == [("paris", "unknown", "ok"), ("paris", "ok", "unreachable")]
    assert read_entries(9) == []


def test_drain__that_ends_before_its_removal_is_repeated(monkeypatch):
    proxy = make_proxy()
    run_round(make_status(proxy))
    with monkeypatch.context() as patch:
        patch.setattr(records, "remove_entries", lambda entries: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            record_history()
    run_round(make_status(proxy, Status.UNREACHABLE))
    record_history()
    assert rows() == [("paris", "unknown", "ok"), ("paris", "ok", "unreachable")]
    assert read_entries(9) == []


def test_drain__of_two_processes_at_once_records_once(monkeypatch):
    """The second one reads the same entries, and is done before the first one writes."""
    proxy = make_proxy()
    run_round(make_status(proxy))
    entries = read_entries(9)
    run_round(make_status(proxy, Status.UNREACHABLE))
    record_history()
    latest = Watch.objects.get()
    run_round(make_status(proxy))
    records._record("default", entries)
    assert rows() == [("paris", "unknown", "ok"), ("paris", "ok", "unreachable")]
    assert Watch.objects.get().token == latest.token, "the last round went back"
    records.remove_entries(entries)
    record_history()
    assert rows()[2:] == [("paris", "unreachable", "ok")]


def test_database_down_in_commits__changes_are_recorded():
    changed, gone, left_out = (make_proxy(name) for name in ("changed", "gone", "left-out"))
    run_round(make_status(changed), make_status(gone), make_status(left_out))
    record_history()
    with connection.execute_wrapper(refuse_queries):
        commit_statuses([make_status(changed, Status.UNREACHABLE)], take_token(), removed=[gone.id])
        run_round(make_status(changed, Status.UNHEALTHY))
    record_history()
    assert rows()[3:] == [
        ("gone", "ok", "removed"),
        ("changed", "ok", "unreachable"),
        ("changed", "unreachable", "unhealthy"),
        ("left-out", "ok", "removed"),
    ]


def test_new_proxy_while_database_is_down__is_recorded_later():
    run_round()
    proxy = make_proxy()
    with connection.execute_wrapper(refuse_queries):
        commit_statuses([make_status(proxy)], take_token())
        commit_statuses([make_status(proxy, Status.UNREACHABLE)], take_token())
    commit_statuses([make_status(proxy, Status.UNREACHABLE)], take_token())
    record_history()
    assert rows()[0][1] == "unknown"
    assert is_in_snapshot(proxy, "unreachable")


@pytest.mark.parametrize("is_empty", [True, False], ids=["empty outbox", "with entries"])
def test_full_redis__commits_all_or_nothing(full_redis, redis_client, is_empty):
    proxy = make_proxy()
    run_round(make_status(proxy))
    if is_empty:
        record_history()
    before = reader.read_anew().number, read_entries(9)
    full_redis()
    token = take_token_of(redis_client)
    with pytest.raises(StoreError, match="Redis is full"):
        commit_statuses_once([make_status(proxy, Status.UNREACHABLE)], token)
    assert (reader.read_anew().number, read_entries(9)) == before
    redis_client.config_set("maxmemory", 0)
    commit_statuses([make_status(proxy, Status.UNREACHABLE)], token)
    record_history()
    assert rows() == [("paris", "unknown", "ok"), ("paris", "ok", "unreachable")]


def take_token_of(redis_client):
    """Return a token, which a full Redis refuses to make."""
    redis_client.config_set("maxmemory", 0)
    token = take_token()
    redis_client.config_set("maxmemory", 1)
    return token


def commit_statuses_once(statuses, token):
    return commit(statuses, token, memory=DatabaseMemory())


def test_outbox_refused__nothing_is_committed(redis_client):
    """The user's list of commands is of an older version."""
    proxy = make_proxy()
    run_round(make_status(proxy))
    record_history()
    token = take_token()
    redis_client.execute_command("ACL", "SETUSER", "default", "-rpush")
    try:
        with pytest.raises(StoreError):
            commit_statuses_once([make_status(proxy, Status.UNREACHABLE)], token)
    finally:
        redis_client.execute_command("ACL", "SETUSER", "default", "+@all")
    assert reader.read_anew().statuses[proxy.id].status == "ok"
    commit_statuses([make_status(proxy, Status.UNREACHABLE)], token)
    record_history()
    assert rows()[1:] == [("paris", "ok", "unreachable")]


@pytest.mark.parametrize("fault", ["evicted", "another type"])
def test_lost_outbox__round_finds_its_changes_beside_a_gap(redis_client, key, fault):
    changed, same, gone = (make_proxy(name) for name in ("changed", "same", "gone"))
    run_round(make_status(changed), make_status(same), make_status(gone))
    record_history()
    last = Watch.objects.get()
    run_round(make_status(changed, Status.UNREACHABLE), make_status(same))
    redis_client.delete(key)
    if fault == "another type":
        redis_client.set(key, "x")
    found = take_token()
    for _ in range(2):
        repair()
        commit_statuses(
            [make_status(changed, Status.UNREACHABLE), make_status(same)], take_token(), full_round=a_round()
        )
        record_history()
    assert sorted(rows()[3:]) == [("changed", "ok", "unreachable"), ("gone", "ok", "removed")]
    (gap,) = Gap.objects.all()
    assert gap.why == Gap.Why.REDIS_LOST
    assert gap.token > found
    assert gap.microseconds == gap.token - last.token


def test_check_recorded_between_rounds__is_no_gap():
    proxy = make_proxy()
    run_round(make_status(proxy))
    commit_statuses([make_status(proxy, Status.UNREACHABLE)], take_token())
    record_history()
    run_round(make_status(proxy))
    record_history()
    assert not Gap.objects.exists()


def test_drain_during_a_loss_of_redis__known_time_never_goes_back(redis_client):
    """It has read its entries from the old Redis, and writes them after the first commit to the new one."""
    proxy = make_proxy()
    run_round(make_status(proxy))
    record_history()
    commit_statuses([make_status(proxy, Status.UNREACHABLE)], take_token())
    entries = read_entries(9)
    redis_client.flushall()
    run_round(make_status(proxy, Status.UNHEALTHY))
    records._record("default", entries)
    record_history()
    known = list(Transition.objects.order_by("pk").values_list("watched", flat=True))
    assert len(known) == 3
    assert known == sorted(known)


def test_redis_lost_after_a_check__known_time_never_goes_back(redis_client):
    """The row of the check knows more than the last round in the history."""
    proxy = make_proxy()
    run_round(make_status(proxy))
    commit_statuses([make_status(proxy, Status.UNREACHABLE)], take_token())
    record_history()
    redis_client.flushall()
    run_round(make_status(proxy))
    record_history()
    known = list(Transition.objects.order_by("pk").values_list("watched", flat=True))
    assert known == sorted(known)
    gap = Gap.objects.get()
    assert gap.start == Transition.objects.order_by("pk")[1].at
    assert (gap.why, gap.token) == (Gap.Why.REDIS_LOST, Watch.objects.get().token)


def test_claim_recheck__whose_reply_is_lost_sends_a_task(relay):
    relay.lose(b":recheck", 1)
    assert claim_recheck(5)
    assert relay.left == 0
    assert not claim_recheck(5)
