"""The copy of the database's proxies that a process has."""

import threading

import pytest
from django.db import OperationalError, connection, transaction

from proxyhealth.api import inventory
from proxyhealth.models import WorkspaceProxy
from tests.support.machine import at_most
from tests.support.proxies import wait_for

pytestmark = pytest.mark.django_db


def names():
    return [proxy.name for proxy in inventory.read().proxies]


@pytest.fixture
def no_database():
    """``with no_database():`` a block in which every query fails."""

    def refuse(*args):
        raise OperationalError("gone")

    return lambda: connection.execute_wrapper(refuse)


def test_read__active_proxies_by_name_in_any_case():
    for name in ("b", "C", "a", "_x"):
        WorkspaceProxy.objects.create(name=name)
    WorkspaceProxy.objects.create(name="gone", deleted=True)
    assert names() == ["_x", "a", "b", "C"]


def test_read__sees_creations_saves_and_deletions():
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


def test_read__uses_the_database_that_is_written_to(settings):
    """A replica that is behind does not have the latest saves yet."""

    class Router:
        def db_for_read(self, model, **hints):
            return "replica"

        def db_for_write(self, model, **hints):
            return "default"

    WorkspaceProxy.objects.create(name="one")
    settings.DATABASE_ROUTERS = [Router()]
    assert names() == ["one"]


def test_read__sees_a_deletion_beside_a_creation():
    WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]
    WorkspaceProxy.objects.all().delete()
    WorkspaceProxy.objects.create(name="other")
    assert names() == ["other"]


@pytest.mark.django_db(transaction=True)
def test_read__sees_its_own_saves_at_once(configure, sent):
    configure(READ_INTERVAL=60)
    assert names() == []
    one = WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]
    with transaction.atomic():
        one.name = "renamed"
        one.save()
    assert names() == ["renamed"]
    one.delete()
    assert names() == []


@pytest.mark.django_db(transaction=True)
def test_read__sees_its_own_saves_without_updated_at(configure, sent):
    configure(READ_INTERVAL=60)
    one = WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]
    one.name = "renamed"
    one.save(update_fields=["name"])
    assert names() == ["renamed"]


def test_read__sees_saves_during_another_read(configure, read_during_read):
    configure(READ_INTERVAL=60)
    inventory.read()
    inventory.expire()
    read_during_read(inventory.expire)
    WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]


def test_read__reads_all_rows_after_an_interval(configure):
    """Without workers, no new snapshot causes it."""
    configure(INTERVAL=0.05)
    WorkspaceProxy.objects.create(name="one")
    inventory.read()
    WorkspaceProxy.objects.update(name="renamed")
    wait_for(lambda: names() == ["renamed"])


def test_read__reads_all_rows_for_a_new_epoch():
    one = WorkspaceProxy.objects.create(name="one")
    before = inventory.read(1)
    WorkspaceProxy.objects.update(name="renamed")
    assert inventory.read(1) is before
    assert [proxy.name for proxy in inventory.read(2).proxies] == ["renamed"]
    # So is a save by a machine whose clock is behind: the check that follows it makes a new snapshot.
    WorkspaceProxy.objects.create(name="other")
    inventory.read(2)
    WorkspaceProxy.objects.filter(pk=one.pk).update(name="again", updated_at=one.updated_at)
    assert [proxy.name for proxy in inventory.read(3).proxies] == ["again", "other"]


def test_read__a_new_epoch_does_not_wait_for_the_interval(configure, django_assert_num_queries):
    configure(READ_INTERVAL=60)
    inventory.read(1)
    with django_assert_num_queries(4):
        inventory.read(2)
    with django_assert_num_queries(0):
        inventory.read(2)


def test_read__a_new_epoch_with_the_same_rows():
    WorkspaceProxy.objects.create(name="one")
    assert inventory.read(2) is inventory.read(1)


def test_read__keeps_the_objects_that_did_not_change():
    one = WorkspaceProxy.objects.create(name="one")
    WorkspaceProxy.objects.create(name="other")
    before = inventory.read()
    assert inventory.read() is before
    one.version = "v2"
    one.save()
    after = inventory.read()
    assert after.proxies[0].version == "v2"
    assert after.proxies[1] is before.proxies[1]
    assert after.changed_at == one.updated_at


def test_read__queries_the_database_once_per_interval(configure, django_assert_num_queries):
    """A fingerprint, the rows if it has changed, and the two kinds of marks."""
    configure(READ_INTERVAL=60)
    WorkspaceProxy.objects.create(name="one")
    with django_assert_num_queries(4):
        inventory.read()
    with django_assert_num_queries(0):
        for _ in range(5):
            inventory.read()
    WorkspaceProxy.objects.create(name="other")
    with django_assert_num_queries(4):
        assert len(inventory.read(now=True).proxies) == 2
    with django_assert_num_queries(3):
        inventory.read(now=True)


def test_read__remembers_a_new_epoch_during_a_failure(no_database, monkeypatch):
    monkeypatch.setattr(inventory, "_RETRY_INTERVAL", 60)
    WorkspaceProxy.objects.create(name="one")
    inventory.read(1)
    WorkspaceProxy.objects.update(name="renamed")
    with no_database():
        assert inventory.read(2).fault
        with_fault = inventory.read(2)
        assert inventory.read(2) is with_fault, "no retry yet, although the epoch is another one"
    assert [proxy.name for proxy in inventory.read(2, now=True).proxies] == ["renamed"]
    assert inventory.read(2).fault == ""


def test_read__a_failure_is_logged_once_and_the_copy_served(no_database, caplog):
    WorkspaceProxy.objects.create(name="one")
    before = inventory.read()
    with no_database():
        for _ in range(3):
            assert inventory.read(now=True).proxies is before.proxies
        assert inventory.read().fault == (
            "The database cannot be read (gone). These are the proxies that were read last."
        )
    assert [r.message for r in caplog.records].count("the proxies cannot be read from the database") == 1
    assert inventory.read(now=True).fault == ""
    assert "the proxies can be read from the database again" in caplog.text


def test_read__does_not_retry_at_once_after_a_failure(no_database, django_assert_num_queries, monkeypatch):
    monkeypatch.setattr(inventory, "_RETRY_INTERVAL", 60)
    inventory.read()
    with no_database():
        inventory.read(now=True)
    with django_assert_num_queries(0):
        assert inventory.read().fault


def test_read__raises_the_error_without_a_copy(no_database):
    with no_database(), pytest.raises(OperationalError, match="gone"):
        inventory.read()
    assert names() == []


@pytest.fixture
def read_during_read():
    """``read_during_read(meanwhile)`` returns the results of ``inventory.read()``, and of ``meanwhile()``.

    The query of the read takes until ``meanwhile()`` has returned in another thread, or for some ``seconds``.
    """

    def run(meanwhile, seconds=0.0):
        started, proceed = threading.Event(), threading.Event()
        results = []

        def hang(execute, *args):
            started.set()
            assert proceed.wait(30)
            return execute(*args)

        def other():
            started.wait(30)
            if seconds:
                threading.Timer(seconds, proceed.set).start()
            results.append(meanwhile())
            proceed.set()

        # The query runs in this thread, because the test's transaction is its own.
        thread = threading.Thread(target=other)
        thread.start()
        with connection.execute_wrapper(hang):
            first = inventory.read()
        thread.join(30)
        return first, *results

    return run


def test_read__gets_the_copy_during_another_read(configure, read_during_read):
    WorkspaceProxy.objects.create(name="one")
    before = inventory.read()
    configure(READ_INTERVAL=60)  # so that the copy is not overdue
    assert read_during_read(inventory.read) == (before, before)


def test_read__waits_for_another_read_if_the_copy_is_overdue(configure, read_during_read, monkeypatch):
    """As in a process that was idle for an hour, and then gets two requests at once."""
    monkeypatch.setattr(inventory, "_TIMEOUT", 30)
    configure(READ_INTERVAL=60)
    inventory.read()
    WorkspaceProxy.objects.create(name="one")
    inventory.expire()
    first, other = read_during_read(inventory.read, seconds=0.2)
    assert other is first
    assert [proxy.name for proxy in other.proxies] == ["one"]


def test_read__a_database_that_hangs_is_a_fault(read_during_read, caplog):
    WorkspaceProxy.objects.create(name="one")
    before = inventory.read()

    def meanwhile():
        with at_most(2, "they spend one timeout together"):
            late = [inventory.read() for _ in range(10)]
            late.append(inventory.read(now=True))
        assert all(each is late[0] for each in late)
        return late[0]

    first, late = read_during_read(meanwhile)
    assert late.proxies is before.proxies
    assert late.fault.startswith("The database cannot be read (it does not respond). ")
    assert first is before
    assert inventory.read().fault == ""
    assert [record.message for record in caplog.records if record.name == "proxyhealth.api.inventory"] == [
        "the database does not respond to the query for the proxies",
        "the proxies can be read from the database again",
    ]


def test_read__after_a_rollback():
    with transaction.atomic():
        WorkspaceProxy.objects.create(name="never")
        assert names() == ["never"]
        transaction.set_rollback(True)
    assert names() == []


def test_read__all_who_wait_for_a_first_copy_share_the_error(monkeypatch):
    """If the database hangs, each would otherwise wait for its own turn, and for those of all before it."""
    queries, waiting = [], []
    copy = inventory._inventory.value
    lock = copy._refresh_lock

    class Lock:
        release = lock.release

        def acquire(self):
            waiting.append(1)
            lock.acquire()

    def fail():
        queries.append(1)
        wait_for(lambda: len(waiting) >= 5, 30, "the others wait")
        raise OperationalError("gone")

    monkeypatch.setattr(copy, "_refresh_lock", Lock())
    monkeypatch.setattr(inventory, "_take_fingerprint", fail)
    errors = []

    def read():
        try:
            inventory.read()
        except OperationalError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == ["gone"] * 5
    assert len(queries) == 1
    with pytest.raises(OperationalError):
        inventory.read()
    assert len(queries) == 2, "a later reader tries again"
