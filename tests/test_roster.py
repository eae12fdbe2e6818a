import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import OperationalError, connection, transaction

from proxyhealth import roster
from proxyhealth.models import WorkspaceProxy
from tests.proxies import wait_for

pytestmark = pytest.mark.django_db


def names():
    return [proxy.name for proxy in roster.read().proxies]


@pytest.fixture
def no_database():
    """``with no_database():`` a block in which every query fails."""

    def refuse(*args):
        raise OperationalError("gone")

    return lambda: connection.execute_wrapper(refuse)


def test_read__the_active_ones_by_name_without_regard_to_case():
    for name in ("b", "C", "a", "_x"):
        WorkspaceProxy.objects.create(name=name)
    WorkspaceProxy.objects.create(name="gone", deleted=True)
    assert names() == ["_x", "a", "b", "C"]


def test_read__sees_what_is_created_saved_and_deleted_either_way():
    one, other = (WorkspaceProxy.objects.create(name=name) for name in ("one", "other"))
    assert names() == ["one", "other"]
    other.name = "another"
    other.save()
    assert names() == ["another", "one"]
    one.deleted = True
    one.save()
    assert names() == ["another"]
    one.deleted = False
    one.save()
    other.delete()
    assert names() == ["one"]
    WorkspaceProxy.objects.update(deleted=True)
    assert names() == []


def test_read__sees_one_that_goes_and_one_that_comes():
    WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]
    WorkspaceProxy.objects.all().delete()
    WorkspaceProxy.objects.create(name="other")
    assert names() == ["other"]


def test_read__sees_a_save_by_a_clock_that_is_behind(monkeypatch):
    one, other = (WorkspaceProxy.objects.create(name=name) for name in ("one", "other"))
    WorkspaceProxy.objects.filter(pk=other.pk).update(updated_at=datetime.now(UTC) + timedelta(hours=1))
    roster.read()
    one.name = "renamed"
    one.save()  # its time is not the latest
    # The next full reading is an INTERVAL later at the latest.
    monkeypatch.setattr(roster._reader, "_renew_at", 0.0)
    assert names() == ["other", "renamed"]


def test_read__renews_after_an_interval(configure):
    configure(INTERVAL=0.2)
    WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]
    WorkspaceProxy.objects.update(name="renamed")  # leaves no trace but itself
    wait_for(lambda: names() == ["renamed"], 2)


def test_read__keeps_what_did_not_change():
    one = WorkspaceProxy.objects.create(name="one")
    WorkspaceProxy.objects.create(name="other")
    before = roster.read()
    assert roster.read() is before
    one.version = "v2"
    one.save()
    after = roster.read()
    assert after.proxies[0].version == "v2"
    assert after.proxies[1] is before.proxies[1]
    assert after.changed_at == one.updated_at


def test_read__one_query_a_read_interval(configure, django_assert_num_queries):
    configure(READ_INTERVAL=60)
    WorkspaceProxy.objects.create(name="one")
    with django_assert_num_queries(2):
        roster.read()
    with django_assert_num_queries(0):
        for _ in range(5):
            roster.read()
    WorkspaceProxy.objects.create(name="other")
    with django_assert_num_queries(2):
        assert len(roster.read(now=True).proxies) == 2
    with django_assert_num_queries(1):
        roster.read(now=True)


def test_read__without_the_database_is_the_last_copy_and_says_so_once(no_database, caplog, monkeypatch):
    WorkspaceProxy.objects.create(name="one")
    before = roster.read()
    with no_database():
        for _ in range(3):
            assert roster.read(now=True).proxies is before.proxies
        assert roster.read().fault == (
            "The database cannot be read (gone); these are the proxies that were read last."
        )
    assert [r.message for r in caplog.records].count("the proxies cannot be read from the database") == 1
    assert roster.read(now=True).fault == ""
    assert "the proxies can be read from the database again" in caplog.text


def test_read__without_the_database_it_is_left_alone_for_a_while(no_database, django_assert_num_queries):
    roster.read()
    with no_database():
        roster.read(now=True)
    with django_assert_num_queries(0):
        assert roster.read().fault


def test_read__without_the_database_and_without_a_copy_raises(no_database):
    with no_database(), pytest.raises(OperationalError, match="gone"):
        roster.read()
    assert names() == []


def test_read__while_one_asks_the_others_have_what_is_there():
    WorkspaceProxy.objects.create(name="one")
    before = roster.read()
    asked, go_on = threading.Event(), threading.Event()

    def hang(execute, *args):
        asked.set()
        assert go_on.wait(5)
        return execute(*args)

    found = []
    # The thread that asks is this one, because the test's transaction is its own.
    other = threading.Thread(target=lambda: (asked.wait(5), found.append(roster.read()), go_on.set()))
    other.start()
    with connection.execute_wrapper(hang):
        roster.read()
    other.join(5)
    assert found == [before]


def test_read__in_a_transaction_that_is_rolled_back_is_put_right():
    with transaction.atomic():
        WorkspaceProxy.objects.create(name="never")
        assert names() == ["never"]
        transaction.set_rollback(True)
    assert names() == []
