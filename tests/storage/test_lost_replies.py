"""Commits that Redis executes, but whose replies are lost."""

import contextlib

import pytest
from django.conf import settings as django_settings

from proxyhealth.exceptions import StoreError
from proxyhealth.rounds.steps import commit_statuses
from proxyhealth.statuses import Status
from proxyhealth.storage import commit as module
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_missed, count_round
from proxyhealth.storage.lease import begin_round, end_round, take_token
from proxyhealth.storage.merge import Results
from proxyhealth.storage.outbox import read_entries, remove_entries
from proxyhealth.storage.pending import SendTask, add_pending
from tests.settings import REDIS_PORT
from tests.support.redis_relay import RedisRelay
from tests.support.values import a_round, changes, make_proxy, make_status

MARKER = b'"judgements"'

# The client itself repeats a request once. After three lost replies, the caller has repeated the commit.
TIMES = [1, 2, 3]


@pytest.fixture
def relay(settings, redis_client, db):
    """A relay between this process and Redis."""
    relay = RedisRelay(REDIS_PORT)
    with relay.running() as location:
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": location}}
        yield relay


@pytest.mark.parametrize("times", TIMES)
def test_check__whose_reply_is_lost_keeps_its_changes(relay, times):
    changed, same, gone = (make_proxy(name) for name in ("changed", "same", "gone"))
    commit([make_status(proxy) for proxy in (changed, same, gone)], take_token(), full_round=a_round())
    remove_entries(read_entries(9))
    relay.lose(MARKER, times)
    statuses = [make_status(changed, Status.UNREACHABLE), make_status(same)]
    result = commit_statuses(statuses, take_token(), removed=[gone.id])
    assert relay.left == 0
    assert changes() == [("gone", "ok", "removed"), ("changed", "ok", "unreachable")]
    assert result.outbox == 2
    assert {s.proxy.name: s.status for s in reader.read().statuses.values()} == {
        "changed": "unreachable",
        "same": "ok",
    }


@pytest.mark.parametrize("times", TIMES)
def test_round__whose_reply_is_lost_keeps_its_changes(relay, times):
    changed, gone = make_proxy("changed"), make_proxy("gone")
    commit([make_status(proxy) for proxy in (changed, gone)], take_token(), full_round=a_round())
    remove_entries(read_entries(9))
    relay.lose(MARKER, times)
    statuses = [make_status(changed, Status.UNREACHABLE)]
    result = commit_statuses(statuses, take_token(), full_round=a_round())
    assert relay.left == 0
    assert changes() == [("changed", "ok", "unreachable"), ("gone", "ok", "removed")]
    assert result.outbox == 3  # with the round
    assert reader.read().outcomes == {"success": 2}
    assert sum(reader.read().rounds.counts) == 2


def test_check__that_was_not_written_has_no_changes(redis_client, monkeypatch):
    """Another process found the same change first, so the repetition makes none."""
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    first, second = take_token(), take_token()
    merged, others = module.merged, []

    def merge_slowly(value, **options):
        result = merged(value, **options)
        if not others:
            others.append(first)
            document, *_ = merged(value, Results([make_status(proxy, Status.UNREACHABLE)], first))
            with module.open_cache() as cache:
                cache.client.set(cache.key("snapshot"), module.dump(document))
        return result

    monkeypatch.setattr(module, "merged", merge_slowly)
    remove_entries(read_entries(9))
    commit([make_status(proxy, Status.UNREACHABLE)], second)
    assert changes() == []


@pytest.mark.parametrize("times", TIMES)
def test_count_round__whose_reply_is_lost_counts_once(relay, times):
    relay.lose(b"the database is gone", times)
    with contextlib.suppress(StoreError):
        count_round("failure", "the database is gone")
    count_missed()
    assert relay.left == 0
    assert reader.read().outcomes == {"failure": 1}


def test_begin_round__whose_reply_is_lost_has_begun(relay):
    """Otherwise the lease would block the next rounds, and no process would run this one."""
    relay.lose(b":rerun", 1)
    begun = begin_round()
    assert relay.left == 0
    assert begun.outcome == "begun"
    assert begin_round().outcome == "running"
    end_round(begun.token)
    assert begin_round().token > begun.token


def test_add_pending__whose_reply_is_lost_sends_a_task(relay):
    relay.lose(b":pending:sent", 1)
    assert add_pending(["x"]) is SendTask.YES
    assert relay.left == 0
    assert add_pending(["x"]) is SendTask.NO
