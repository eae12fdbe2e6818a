"""Commits of rounds: they need the lease, and count once."""

from dataclasses import replace
from uuid import uuid4

import pytest
from django.core.cache import caches

from proxyhealth.exceptions import Superseded
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import (
    begin_round,
    end_round,
    take_token,
)
from tests.support.values import a_round


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


def test_commit__is_refused_after_a_takeover_of_the_lease(redis_client, snapshot_key):
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


def test_commit__is_refused_after_the_successor_failed(redis_client, snapshot_key):
    slept = begin_round()
    redis_client.delete(key("lease"))
    end_round(begin_round().token)
    with pytest.raises(Superseded):
        commit([], slept.token, full_round=a_round())
    assert redis_client.get(snapshot_key) is None


def test_commit__gives_missed_tokens_to_a_promoted_replica(redis_client):
    ahead = take_token() + 3_600_000_000
    commit([], ahead, full_round=a_round())
    assert take_token() > ahead


def test_commit__counts_once_if_the_client_repeats_the_script(monkeypatch):
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


def test_commit__counts_once_if_the_caller_commits_again(monkeypatch):
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


def test_commit__works_with_an_expired_lease_that_is_free(redis_client):
    slept = begin_round()
    redis_client.delete(key("lease"))
    commit([], slept.token, full_round=a_round())
    assert reader.read().checked_at is not None
