"""Counters of rounds, and the errors that readers are shown."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.core.cache import caches

from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import MAX_ERROR, count_round
from proxyhealth.storage.lease import (
    begin_round,
    end_round,
    take_token,
)
from tests.support.values import a_round


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


def test_count_round__counts_and_remembers_the_last_error():
    count_round("success")
    count_round("failure", "the database is gone")
    count_round("failure", "it is still gone")
    snapshot = reader.read()
    assert dict(snapshot.outcomes) == {"success": 1, "failure": 2}
    assert snapshot.error == "it is still gone"
    assert abs((snapshot.error_at - datetime.now(UTC)).total_seconds()) < 60


def test_count_round__offline_lasts_until_the_next_commit():
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
def test_count_round__offline_is_not_set_after_a_takeover(redis_client, other):
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
