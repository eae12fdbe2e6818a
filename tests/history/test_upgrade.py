"""Workers of an earlier version, which has no history, beside workers of this one."""

from __future__ import annotations

import pytest
from django.db import connection

from proxyhealth.exceptions import StoreError
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.models import Gap, Transition, Watch
from proxyhealth.statuses import Status
from proxyhealth.storage.client import open_cache
from proxyhealth.storage.commit import commit
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.merge import Round
from tests.storage.documents import changed_json
from tests.support.values import make_proxy, make_status

pytestmark = pytest.mark.django_db

MINUTE = 60_000_000  # in tokens
HOUR = 60 * MINUTE


@pytest.fixture
def start(redis_client):
    return take_token() + 10 * 24 * HOUR


def full_round(token, *statuses):
    """Commit a round of this version."""
    commit(list(statuses), token, full_round=Round(moment(token), 0.1), memory=DatabaseMemory())


def earlier_round(token, status):
    """Commit a round of an earlier version: it does not know the columns, and keeps the head."""

    def change(whole):
        whole |= {"ticket": token}
        columns = whole["judgements"]
        for name in {"since", "raw"} & columns.keys():
            del columns[name]
        columns |= {"status": [status], "ticket": [token]}

    with open_cache() as cache:
        key = cache.key("snapshot")
        cache.client.set(key, changed_json(change)(cache.client.get(key)))
        cache.client.set(cache.key("token"), token)


def rows():
    record_history()
    return list(Transition.objects.order_by("pk").values_list("before", "after"))


def test_upgrade__known_status_begins_the_history(start):
    paris = make_status(make_proxy())
    full_round(start, paris)
    with open_cache() as cache:
        cache.client.delete(cache.key("outbox"))
    earlier_round(start + MINUTE, "ok")
    with open_cache() as cache:
        cache.client.delete(cache.key("outbox"))
    full_round(start + 2 * MINUTE, paris)
    full_round(start + 3 * MINUTE, paris)
    assert rows() == [("unknown", "ok")]
    assert not Gap.objects.exists()


def test_upgrade__change_by_an_earlier_version_gets_its_row(start):
    paris = make_proxy()
    full_round(start, make_status(paris))
    assert rows() == [("unknown", "ok")]
    earlier_round(start + MINUTE, "unreachable")
    full_round(start + 2 * MINUTE, make_status(paris, Status.UNREACHABLE))
    assert rows() == [("unknown", "ok"), ("ok", "unreachable")]


def test_upgrade__change_that_waits_in_the_outbox_is_not_forgotten(start):
    """A worker of an earlier version has discarded the task that records it."""
    paris = make_proxy()
    full_round(start, make_status(paris))
    record_history()
    full_round(start + MINUTE, make_status(paris, Status.UNREACHABLE))
    earlier_round(start + 2 * MINUTE, "ok")
    with open_cache() as cache:
        cache.client.rpush(cache.key("outbox"), "not an entry")
    full_round(start + 3 * MINUTE, make_status(paris))
    assert rows() == [("unknown", "ok"), ("ok", "unreachable"), ("unreachable", "ok")]


@pytest.mark.sqlite  # PostgreSQL refuses all queries of the transaction after the failed one
def test_upgrade__worker_before_the_migration(start, caplog):
    paris = make_status(make_proxy())
    tables = [model._meta.db_table for model in (Transition, Gap, Watch)]
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_later")
        full_round(start, paris)
        record_history()
        for table in tables:
            cursor.execute(f"ALTER TABLE {table}_later RENAME TO {table}")
    assert "changes are recorded later: the history cannot be used in the database" in caplog.text
    full_round(start + MINUTE, paris)
    assert rows() == [("unknown", "ok")]


def test_upgrade__rounds_of_an_earlier_version_are_no_gap(start):
    paris = make_status(make_proxy())
    full_round(start, paris)
    for minutes in range(1, 11):
        earlier_round(start + minutes * MINUTE, "ok")
    full_round(start + 11 * MINUTE, paris)
    record_history()
    assert not Gap.objects.exists()


def test_upgrade__a_day_of_an_earlier_version_is_a_gap(start):
    """Nobody has recorded what changed."""
    paris = make_status(make_proxy())
    full_round(start, paris)
    earlier_round(start + 24 * HOUR, "ok")
    full_round(start + 24 * HOUR + MINUTE, paris)
    record_history()
    (gap,) = Gap.objects.all()
    assert (gap.start, gap.end) == (moment(start + 3 * MINUTE), moment(start + 24 * HOUR + MINUTE))


def test_upgrade__user_without_the_new_permissions_loses_no_change(start, redis_client, settings):
    """Rounds fail until the user has them. Then the change is recorded."""
    paris = make_proxy()
    full_round(start, make_status(paris))
    rule = ["on", ">password", "~*", "+@all", "-rpush"]
    redis_client.execute_command("ACL", "SETUSER", "earlier", "reset", *rule)
    address = redis_client.connection_pool.connection_kwargs
    url = f"redis://earlier:password@{address['host']}:{address['port']}/{address.get('db') or 0}"
    default = settings.CACHES["default"]
    try:
        settings.CACHES = {"default": {**default, "LOCATION": url}}
        with pytest.raises(StoreError, match="permissions"):
            full_round(start + MINUTE, make_status(paris, Status.UNREACHABLE))
    finally:
        with open_cache() as cache:
            cache.client.connection_pool.disconnect()
        settings.CACHES = {"default": default}
        redis_client.execute_command("ACL", "DELUSER", "earlier")
    full_round(start + 2 * MINUTE, make_status(paris, Status.UNREACHABLE))
    assert rows() == [("unknown", "ok"), ("ok", "unreachable")]
