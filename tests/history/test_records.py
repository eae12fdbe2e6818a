"""The way of a change from the commit through the outbox into the history."""

import json
import logging

import pytest
from django.db import connection

from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.models import Gap, Transition, Watch, WorkspaceProxy
from proxyhealth.signals import status_changed
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.merge import Round
from proxyhealth.storage.outbox import read_entries
from tests.support.values import make_proxy, make_status, refuse_queries

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]

MINUTE = 60_000_000  # in tokens


@pytest.fixture
def start(redis_client):
    """A token, from which tests count the times of later ones."""
    return take_token() + 10 * 24 * 60 * MINUTE


def a_commit(token, *statuses, full=True, removed=()):
    """Commit as rounds and checks do."""
    options = {"full_round": Round(moment(token), 0.1)} if full else {"removed": removed}
    return commit(list(statuses), token, memory=DatabaseMemory(), **options)


def up(proxy):
    return make_status(proxy)


def down(proxy):
    return make_status(proxy, Status.UNREACHABLE, reason=Reason.CONNECT)


def rows():
    return list(Transition.objects.order_by("pk").values_list("proxy_name", "before", "after"))


def test_record__writes_a_row_per_change_and_empties_the_outbox(start):
    paris = WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com").as_proxy()
    a_commit(start, up(paris))
    a_commit(start + MINUTE, down(paris))
    record_history()
    assert rows() == [("paris", "unknown", "ok"), ("paris", "ok", "unreachable")]
    assert read_entries(9) == []
    row = Transition.objects.latest("pk")
    assert (row.proxy_id, row.proxy_uuid, row.token, row.at) == (
        paris.id,
        paris.id,
        start + MINUTE,
        moment(start + MINUTE),
    )
    assert (row.watched, row.reason, row.report) == (MINUTE, "connect", {})
    assert row.signal_due_at is None


def test_record__logs_each_change_on_a_line_of_its_own(start, caplog):
    caplog.set_level(logging.INFO, logger="proxyhealth")
    paris = make_proxy("a\nround end")
    a_commit(start, up(paris))
    a_commit(start + MINUTE, down(paris))
    record_history()
    assert [record.getMessage() for record in caplog.records if record.name.endswith("records")] == [
        f'status change proxy={paris.id} name="a round end" from=unknown to=ok reason=none error=""',
        f'status change proxy={paris.id} name="a round end" from=ok to=unreachable reason=connect error=""',
    ]


def test_record__repeated_entries_write_no_second_row(start, redis_client):
    paris = make_proxy()
    for index, status in enumerate([up(paris), down(paris), up(paris)]):
        a_commit(start + index * MINUTE, status)
    entries = read_entries(99)
    record_history()
    with reader.open_cache() as cache:
        cache.client.rpush(cache.key("outbox"), *entries)
    record_history()
    assert [after for _, _, after in rows()] == ["ok", "unreachable", "ok"]


def test_record__an_entry_that_is_none_is_logged_and_dropped(start, caplog):
    paris = make_proxy()
    a_commit(start, up(paris))
    with reader.open_cache() as cache:
        cache.client.lpush(cache.key("outbox"), b"[]", b'{"kind": "change"}', b"\xff", b'{"kind": "other"}')
    record_history()
    assert rows() == [("paris", "unknown", "ok")]
    assert read_entries(9) == []
    assert sum("cannot be recorded" in record.getMessage() for record in caplog.records) == 4


@pytest.mark.parametrize(
    "change",
    [{"token": None}, {"after": None}, {"token": "x"}, {"token": 2**70}, {"at": -(2**62)}, {"watched": None}],
    ids=str,
)
def test_record__a_bad_value_costs_only_its_entry(start, redis_client, caplog, change):
    """An entry that cannot be a row must not block those behind it."""
    a_commit(start, up(make_proxy()))
    (entry,) = (json.loads(entry) for entry in read_entries(9) if b"change" in entry)
    missing = {key: value for key, value in entry.items() if key not in change}
    with reader.open_cache() as cache:
        cache.client.lpush(cache.key("outbox"), json.dumps({**entry, **change}), json.dumps(missing))
    record_history()
    assert rows() == [("paris", "unknown", "ok")]
    assert read_entries(9) == []
    assert sum("cannot be recorded" in record.getMessage() for record in caplog.records) == 2


def test_record__a_database_that_is_down_keeps_the_entries(start):
    a_commit(start, up(make_proxy()))
    with (
        connection.execute_wrapper(refuse_queries),
        pytest.raises(HistoryUnavailable, match="database is down"),
    ):
        record_history()
    assert len(read_entries(9)) == 2
    record_history()
    assert rows() == [("paris", "unknown", "ok")]


def test_record__a_deleted_row_leaves_its_history(start):
    row = WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com")
    proxy = row.as_proxy()
    a_commit(start, up(proxy))
    record_history()
    row.delete()
    a_commit(start + MINUTE, removed=[proxy.id], full=False)
    record_history()
    assert rows() == [("paris", "unknown", "ok"), ("paris", "ok", "removed")]
    assert set(Transition.objects.values_list("proxy_id", flat=True)) == {None}


def test_record__a_lost_entry_leaves_a_chain(start, redis_client):
    paris = make_proxy()
    a_commit(start, up(paris))
    record_history()
    a_commit(start + MINUTE, down(paris))
    with reader.open_cache() as cache:
        cache.client.delete(cache.key("outbox"))
    a_commit(start + 2 * MINUTE, make_status(paris, Status.UNHEALTHY))
    record_history()
    assert rows() == [("paris", "unknown", "ok"), ("paris", "ok", "unhealthy")]


def test_recall__an_evicted_outbox_is_found_by_the_next_round(start, redis_client):
    steady, changed, deleted = (make_proxy(name) for name in ("steady", "changed", "deleted"))
    a_commit(start, up(steady), up(changed), up(deleted))
    record_history()
    a_commit(start + MINUTE, up(steady), down(changed))
    with reader.open_cache() as cache:
        cache.client.delete(cache.key("outbox"))
    a_commit(start + 2 * MINUTE, up(steady), down(changed))
    record_history()
    assert sorted(rows()[3:]) == [("changed", "ok", "unreachable"), ("deleted", "ok", "removed")]
    assert [(gap.why, gap.microseconds) for gap in Gap.objects.all()] == [("redis_lost", 2 * MINUTE)]
    a_commit(start + 3 * MINUTE, up(steady), down(changed))
    record_history()
    assert len(rows()) == 5
    assert Gap.objects.count() == 1


def test_recall__a_removal_while_the_database_is_down_is_recorded(start):
    paris = make_proxy()
    a_commit(start, up(paris))
    record_history()
    with connection.execute_wrapper(refuse_queries):
        a_commit(start + MINUTE, removed=[paris.id], full=False)
    record_history()
    assert rows() == [("paris", "unknown", "ok"), ("paris", "ok", "removed")]


def test_record__marks_rows_for_the_signal_only_with_receivers(start):
    def receive(**kwargs):
        """Do nothing: a worker sends the signal."""

    status_changed.connect(receive)
    try:
        a_commit(start, up(make_proxy()))
        record_history()
    finally:
        status_changed.disconnect(receive)
    assert Transition.objects.get().signal_due_at is not None


# Statuses that the cache does not have


def test_recall__an_emptied_cache_keeps_since_and_finds_the_lost_change(start, redis_client):
    steady, changed, deleted = (make_proxy(name) for name in ("steady", "changed", "deleted"))
    a_commit(start, up(steady), up(changed), up(deleted))
    record_history()
    redis_client.flushdb()
    reader.forget()
    a_commit(start + 5 * MINUTE, up(steady), down(changed))
    record_history()
    assert rows()[3:] == [("changed", "ok", "unreachable"), ("deleted", "ok", "removed")]
    gap = Gap.objects.get()
    assert (gap.why, gap.token, gap.microseconds) == ("redis_lost", start + 5 * MINUTE, 5 * MINUTE)
    statuses = {status.proxy.name: status for status in reader.read().statuses.values()}
    assert statuses["steady"].since == moment(start)
    assert statuses["changed"].since == moment(start + 5 * MINUTE)
    assert Watch.objects.get().watched == 0


def test_recall__a_check_before_the_first_round_keeps_since(start, redis_client):
    paris = make_proxy()
    a_commit(start, up(paris))
    record_history()
    redis_client.flushdb()
    reader.forget()
    a_commit(start + MINUTE, up(paris), full=False)
    a_commit(start + 2 * MINUTE, up(paris))
    record_history()
    assert len(rows()) == 1
    assert Gap.objects.get().microseconds == 2 * MINUTE
    (status,) = reader.read().statuses.values()
    assert status.since == moment(start)


def test_recall__the_known_time_never_goes_back(start, redis_client):
    paris = make_proxy()
    a_commit(start, up(paris))
    a_commit(start + MINUTE // 2, down(paris), full=False)
    record_history()
    redis_client.flushdb()
    reader.forget()
    a_commit(start + 2 * MINUTE, up(paris))
    record_history()
    watched = list(Transition.objects.order_by("pk").values_list("watched", flat=True))
    assert watched == [0, MINUTE // 2, MINUTE // 2]
    assert Gap.objects.get().microseconds == MINUTE * 3 // 2


def test_recall__a_failover_that_loses_only_a_check(start, redis_client):
    paris, oslo = make_proxy("paris"), make_proxy("oslo")
    a_commit(start, up(paris))
    record_history()
    with reader.open_cache() as cache:
        saved = cache.client.dump(cache.key("snapshot"))
        a_commit(start + MINUTE // 2, up(oslo), full=False)
        record_history()
        cache.client.restore(cache.key("snapshot"), 0, saved, replace=True)
    a_commit(start + MINUTE, up(paris))
    record_history()
    assert rows()[1:] == [("oslo", "unknown", "ok"), ("oslo", "ok", "removed")]


def test_recall__a_change_between_two_rounds_is_no_gap(start):
    paris = make_proxy()
    a_commit(start, up(paris))
    record_history()
    a_commit(start + MINUTE // 2, down(paris), full=False)
    record_history()
    a_commit(start + MINUTE, up(paris))
    record_history()
    assert Gap.objects.count() == 0


def test_recall__thresholds_hold_after_an_emptied_cache(start, redis_client, settings):
    settings.PROXYHEALTH = {**settings.PROXYHEALTH, "FAILURE_THRESHOLD": 2}
    paris = make_proxy()
    a_commit(start, up(paris))
    record_history()
    redis_client.flushdb()
    reader.forget()
    result = a_commit(start + MINUTE, down(paris))
    assert result.waiting == 1
    (status,) = reader.read().statuses.values()
    assert (status.status, status.last.status) == ("ok", "unreachable")
    assert status.proxy_host == down(paris).proxy_host


def test_recall__a_document_of_an_older_version_begins_the_history(start):
    """Its rows have no ``since``. No change is made up for them, and none that is real is lost."""
    steady, changed = make_proxy("steady"), make_proxy("changed")
    a_commit(start, up(steady), up(changed))
    with reader.open_cache() as cache:
        value = cache.client.get(cache.key("snapshot"))
        cache.client.set(
            cache.key("snapshot"), value.replace(b'"since"', b'"other"').replace(b"watched", b"other")
        )
        cache.client.delete(cache.key("outbox"))
    a_commit(start + MINUTE, up(steady), down(changed))
    record_history()
    assert rows() == [("steady", "unknown", "ok"), ("changed", "unknown", "unreachable")]
    assert Gap.objects.count() == 0


def test_recall__a_database_that_is_down_delays_the_history(start):
    paris = make_proxy()
    with connection.execute_wrapper(refuse_queries):
        a_commit(start, up(paris))
        a_commit(start + MINUTE, down(paris))
    assert read_entries(9) == []
    (status,) = reader.read().statuses.values()
    assert (status.status, status.since) == ("unreachable", None)
    a_commit(start + 2 * MINUTE, down(paris))
    record_history()
    assert rows() == [("paris", "unknown", "unreachable")]


# The known clock


def test_gap__begins_when_the_snapshot_turned_stale(start, settings):
    settings.PROXYHEALTH = {**settings.PROXYHEALTH, "STALE_AFTER": 180}
    paris = make_proxy()
    a_commit(start, up(paris))
    a_commit(start + 3 * MINUTE, up(paris))
    a_commit(start + 13 * MINUTE, up(paris))
    record_history()
    gap = Gap.objects.get()
    assert (gap.start, gap.end, gap.why) == (
        moment(start + 6 * MINUTE),
        moment(start + 13 * MINUTE),
        "no_rounds",
    )
    assert Watch.objects.get().watched == 6 * MINUTE
    assert reader.read().watched == 6 * MINUTE


def test_gap__begins_when_the_prober_went_offline(start, settings):
    settings.PROXYHEALTH = {**settings.PROXYHEALTH, "STALE_AFTER": 180}
    paris = make_proxy()
    a_commit(start, up(paris))
    with reader.open_cache() as cache:
        cache.client.hset(cache.key("round-stats"), "offline_since", start + MINUTE)
    a_commit(start + 2 * MINUTE, up(paris))
    a_commit(start + 3 * MINUTE, up(paris))
    record_history()
    gap = Gap.objects.get()
    assert (gap.start, gap.end, gap.why) == (moment(start + MINUTE), moment(start + 2 * MINUTE), "offline")
    assert Watch.objects.get().watched == 2 * MINUTE


def test_gap__a_change_within_it_has_the_known_time_before_it(start, settings):
    settings.PROXYHEALTH = {**settings.PROXYHEALTH, "STALE_AFTER": 60}
    paris = make_proxy()
    a_commit(start, up(paris))
    a_commit(start + 10 * MINUTE, down(paris), full=False)
    a_commit(start + 20 * MINUTE, down(paris))
    record_history()
    assert list(Transition.objects.order_by("pk").values_list("watched", flat=True)) == [0, MINUTE]
    assert Watch.objects.get().watched == MINUTE
