"""The outages: each begins and ends with a transition, exactly once."""

from __future__ import annotations

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction

from proxyhealth import health, tasks
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.models import Outage, Transition, WorkspaceProxy
from proxyhealth.notifications import deliveries
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.client import open_cache
from proxyhealth.storage.commit import commit
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.merge import Round
from proxyhealth.storage.outbox import change_entry, read_entries
from tests.support.values import NOW, make_proxy, make_status

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]

MINUTE = 60_000_000  # in tokens


@pytest.fixture
def start(redis_client):
    """A token, from which tests count the times of later ones."""
    return take_token() + 10 * 24 * 60 * MINUTE


@pytest.fixture
def told(monkeypatch):
    """The statuses that channels are told, each with the token of its outage."""
    calls = []
    make = deliveries.make

    def note(alias, rows, outages):
        assert all(row.pk for row in rows)
        calls.extend(
            (row.proxy_name, row.after, outage and outage.token)
            for row, outage in zip(rows, outages, strict=True)
        )
        return make(alias, rows, outages)

    monkeypatch.setattr(deliveries, "make", note)
    return calls


def a_round(token, *statuses, removed=()):
    options = {"removed": removed} if removed else {"full_round": Round(moment(token), 0.1)}
    commit(list(statuses), token, memory=DatabaseMemory(), **options)


def up(proxy):
    return make_status(proxy)


def down(proxy, reason=Reason.CONNECT):
    return make_status(proxy, Status.UNREACHABLE, reason=reason)


def ill(proxy):
    return make_status(proxy, Status.UNHEALTHY, reason=Reason.STATUS_CODE)


def push(*changes):
    """Append changes of a proxy to the outbox, each with its number of minutes as the token."""
    with open_cache() as cache:
        cache.client.rpush(cache.key("outbox"), *(change_entry(*change) for change in changes))


def a_change(proxy, minute, before, after):
    token = minute * MINUTE
    return str(proxy.id), proxy.name, before, after, token, token, token, {}


def outages():
    """Return each outage as (name, status, begin, end), with the times in minutes."""
    rows = Outage.objects.order_by("token", "pk")
    return [
        (row.proxy_name, row.status, row.token // MINUTE, row.end_token and row.end_token // MINUTE)
        for row in rows
    ]


def test_outage__begins_and_ends_with_a_transition(start):
    paris = WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com").as_proxy()
    a_round(start, up(paris))
    record_history()
    assert not Outage.objects.exists()
    a_round(start + MINUTE, down(paris))
    record_history()
    outage = Outage.objects.get()
    assert (outage.proxy_id, outage.proxy_uuid, outage.proxy_name) == (paris.id, paris.id, "paris")
    assert (outage.status, outage.reason, outage.began_at) == (
        "unreachable",
        "connect",
        moment(start + MINUTE),
    )
    assert (outage.ended_at, outage.end_token, str(outage)) == (None, None, "paris: unreachable")
    assert list(Outage.objects.open()) == [outage]
    a_round(start + 3 * MINUTE, up(paris))
    record_history()
    outage.refresh_from_db()
    assert (outage.ended_at, outage.end_token) == (moment(start + 3 * MINUTE), start + 3 * MINUTE)
    assert not Outage.objects.open().exists()


def test_outage__another_bad_status_continues_it(start):
    paris = make_proxy()
    for minute, status in enumerate([up(paris), down(paris), ill(paris), down(paris, Reason.TIMEOUT)]):
        a_round(start + minute * MINUTE, status)
        record_history()
    outage = Outage.objects.get()
    assert (outage.token, outage.status, outage.reason) == (start + MINUTE, "unreachable", "timeout")
    assert outage.ended_at is None


@pytest.mark.parametrize("after", ["unregistered", "removed", "sleepy"])
def test_outage__ends_with_each_other_status(after):
    paris = make_proxy()
    push(a_change(paris, 1, "ok", "unreachable"), a_change(paris, 2, "unreachable", after))
    record_history()
    assert outages() == [("paris", "unreachable", 1, 2)]


def test_outage__ends_with_the_removal_of_its_proxy(start):
    paris, oslo = make_proxy(), make_proxy("oslo")
    a_round(start, down(paris), down(oslo))
    a_round(start + MINUTE, removed=[str(paris.id)])
    record_history()
    assert Outage.objects.open().get().proxy_name == "oslo"
    assert Outage.objects.get(proxy_name="paris").end_token == start + MINUTE


def test_outages__several_of_a_proxy_in_one_batch(told):
    """As after a database that was down for hours."""
    paris, oslo = make_proxy(), make_proxy("oslo")
    push(
        a_change(paris, 1, "unknown", "ok"),
        a_change(paris, 2, "ok", "unreachable"),
        a_change(oslo, 2, "unknown", "unhealthy"),
        a_change(paris, 3, "unreachable", "unhealthy"),
        a_change(paris, 4, "unhealthy", "ok"),
        a_change(paris, 5, "ok", "unhealthy"),
        a_change(oslo, 6, "unhealthy", "ok"),
        a_change(paris, 7, "unhealthy", "ok"),
        a_change(paris, 8, "ok", "unreachable"),
    )
    record_history()
    assert outages() == [
        ("paris", "unhealthy", 2, 4),
        ("oslo", "unhealthy", 2, 6),
        ("paris", "unhealthy", 5, 7),
        ("paris", "unreachable", 8, None),
    ]
    of_paris = [(after, token and token // MINUTE) for name, after, token in told if name == "paris"]
    assert of_paris == [
        ("ok", None),
        ("unreachable", 2),
        ("unhealthy", 2),
        ("ok", 2),
        ("unhealthy", 5),
        ("ok", 5),
        ("unreachable", 8),
    ]


def test_outages__repeated_entries_change_nothing(told):
    paris = make_proxy()
    push(a_change(paris, 1, "ok", "unreachable"), a_change(paris, 2, "unreachable", "ok"))
    entries = read_entries(9)
    record_history()
    push(a_change(paris, 3, "ok", "unhealthy"))
    record_history()
    with open_cache() as cache:
        cache.client.rpush(cache.key("outbox"), *entries)
    record_history()
    assert outages() == [("paris", "unreachable", 1, 2), ("paris", "unhealthy", 3, None)]
    assert len(told) == 3


def test_outage__of_a_status_older_than_the_history_is_told_nobody(told):
    """As at the first round after an upgrade from a version without a history."""
    paris = make_proxy()
    push(a_change(paris, 1, "unreachable", "unreachable"), a_change(paris, 2, "unreachable", "ok"))
    record_history()
    assert outages() == [("paris", "unreachable", 1, 2)]
    assert told == [("paris", "ok", MINUTE)]


# Workers of an earlier version write transitions without outages until the last of them is replaced.


def recorded_before(*changes):
    """Record changes as an earlier version does."""
    before = list(Outage.objects.all())
    push(*changes)
    record_history()
    Outage.objects.all().delete()
    Outage.objects.bulk_create(before)


@pytest.mark.parametrize("after", ["ok", "unreachable"])
def test_outage__whose_begin_an_earlier_version_recorded(after):
    paris = make_proxy()
    statuses = ["ok", "unreachable", "unhealthy"]
    recorded_before(*(a_change(paris, minute, "unknown", each) for minute, each in enumerate(statuses, 1)))
    assert outages() == []
    push(a_change(paris, 4, "unhealthy", after))
    record_history()
    expected = ("unhealthy", 2, 4) if after == "ok" else ("unreachable", 2, None)
    assert outages() == [("paris", *expected)]
    assert Outage.objects.get().began_at == moment(2 * MINUTE)


@pytest.mark.parametrize("after", ["unregistered", "unhealthy"])
def test_outage__whose_end_an_earlier_version_recorded(after):
    paris = make_proxy()
    push(a_change(paris, 1, "unknown", "unreachable"))
    record_history()
    recorded_before(a_change(paris, 2, "unreachable", "ok"))
    assert outages() == [("paris", "unreachable", 1, None)]
    push(a_change(paris, 3, "ok", after))
    record_history()
    assert outages() == [("paris", "unreachable", 1, 2), ("paris", "unhealthy", 3, None)][: len(outages())]
    assert len(outages()) == (2 if after == "unhealthy" else 1)


def test_repair__of_what_an_earlier_version_recorded():
    """No new change need come: the daily pruning repairs it."""
    paris, oslo, lima = make_proxy(), make_proxy("oslo"), make_proxy("lima")
    push(a_change(paris, 1, "ok", "unreachable"), a_change(lima, 1, "ok", "unreachable"))
    record_history()
    recorded_before(
        a_change(paris, 2, "unreachable", "ok"),
        a_change(paris, 3, "ok", "unregistered"),
        a_change(oslo, 4, "ok", "unhealthy"),
        a_change(oslo, 5, "unhealthy", "unreachable"),
    )
    for _ in range(2):
        tasks.prune_history.run()
        assert outages() == [
            ("paris", "unreachable", 1, 2),
            ("lima", "unreachable", 1, None),
            ("oslo", "unreachable", 4, None),
        ]


def test_outages__the_database_permits_one_open_per_proxy():
    values = {"proxy_uuid": make_proxy().id, "proxy_name": "paris", "status": "unhealthy", "began_at": NOW}
    Outage.objects.create(token=1, **values)
    for token in (1, 2):
        with pytest.raises(IntegrityError), transaction.atomic():
            Outage.objects.create(token=token, **values)
    Outage.objects.update(ended_at=NOW, end_token=2)
    Outage.objects.create(token=2, **values)


def test_outages__fixed_number_of_queries(django_assert_max_num_queries):
    fleet = [make_proxy(f"p{number}") for number in range(400)]
    push(*(a_change(proxy, 1, "ok", "unreachable") for proxy in fleet))
    record_history()
    push(*(a_change(proxy, 2, "unreachable", "ok") for proxy in fleet))
    with django_assert_max_num_queries(40):  # SQLite has few parameters in a query
        record_history()
    assert Outage.objects.filter(end_token=2 * MINUTE).count() == 400


def test_outage__is_lost_with_its_transition_only(start):
    """The transaction has both, or none of them."""
    paris = make_proxy()
    a_round(start, down(paris))

    def refuse(execute, sql, *args):
        if sql.startswith("INSERT") and Outage._meta.db_table in sql:
            raise IntegrityError("no room")
        return execute(sql, *args)

    with connection.execute_wrapper(refuse), pytest.raises(Exception, match="no room"):
        record_history()
    assert not Transition.objects.exists()
    record_history()
    assert Outage.objects.get().token == Transition.objects.get().token == start


def test_outage__stays_when_the_row_of_its_proxy_is_deleted():
    row = WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com")
    push(a_change(row.as_proxy(), 1, "ok", "unreachable"))
    record_history()
    row.delete()
    outage = Outage.objects.get()
    assert (outage.proxy_id, outage.proxy_name) == (None, "paris")
    assert outage.ended_at is None


# Acknowledgements


@pytest.fixture
def outage():
    push(a_change(make_proxy(), 1, "ok", "unreachable"))
    record_history()
    return Outage.objects.get()


def of(outage):
    outage.refresh_from_db()
    by = outage.acknowledged_by and outage.acknowledged_by.username
    return bool(outage.acknowledged_at), by, outage.acknowledged_name, outage.note


def test_acknowledge__by_a_user_by_a_name_and_by_nobody(outage):
    ana = User.objects.create_user("ana")
    assert health.acknowledge(outage, ana, "the switch")
    assert of(outage) == (True, "ana", "ana", "the switch")
    ana.delete()
    assert of(outage) == (True, None, "ana", "the switch")
    assert health.acknowledge(outage.pk, "chat bot" * 30)
    assert of(outage) == (True, None, ("chat bot" * 30)[:150], "the switch")
    assert health.unacknowledge(outage.pk)
    assert of(outage) == (False, None, "", "the switch")
    assert health.acknowledge(outage, note="x" * 3_000)
    assert of(outage) == (True, None, "", "x" * 2_000)


def test_acknowledge__an_outage_that_has_ended_is_refused(outage):
    paris = make_proxy(id=outage.proxy_uuid)
    assert health.acknowledge(outage, "ana", "the switch")
    push(a_change(paris, 2, "unreachable", "ok"))
    record_history()
    assert not health.acknowledge(outage, "bob")
    assert not health.unacknowledge(outage)
    assert of(outage) == (True, None, "ana", "the switch")  # as history
    assert not health.acknowledge(10**9)


def test_acknowledge__another_bad_status_keeps_it(outage):
    health.acknowledge(outage, "ana")
    push(a_change(make_proxy(id=outage.proxy_uuid), 2, "unreachable", "unhealthy"))
    record_history()
    assert of(outage) == (True, None, "ana", "")
    assert outage.status == "unhealthy"


def test_acknowledge__while_a_change_is_recorded(outage):
    """Neither overwrites the other."""
    push(a_change(make_proxy(id=outage.proxy_uuid), 2, "unreachable", "unhealthy"))

    def acknowledge(execute, sql, *args):
        if sql.startswith("INSERT") and Outage._meta.db_table in sql:
            health.acknowledge(outage, "ana")
        return execute(sql, *args)

    with connection.execute_wrapper(acknowledge):
        record_history()
    assert of(outage) == (True, None, "ana", "")
    assert outage.status == "unhealthy"


def test_acknowledge__async(outage):
    assert async_to_sync(health.aacknowledge)(outage, "ana", "soon")
    assert of(outage) == (True, None, "ana", "soon")
    assert async_to_sync(health.aunacknowledge)(outage.pk)
    assert of(outage) == (False, None, "", "soon")


def test_outages__of_a_proxy(outage):
    push(a_change(make_proxy("oslo"), 2, "ok", "unreachable"))
    record_history()
    assert [row.proxy_name for row in health.outages()] == ["oslo", "paris"]
    assert list(health.outages(outage.proxy_uuid)) == [outage]
    row = WorkspaceProxy.objects.create(name="lima")
    assert not health.outages(row).exists()
