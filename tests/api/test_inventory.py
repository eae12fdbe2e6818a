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


def test_read__asks_the_database_that_is_written_to(settings):
    """Where a replica is behind, what was just saved would not be there."""

    class Router:
        def db_for_read(self, model, **hints):
            return "replica"

        def db_for_write(self, model, **hints):
            return "default"

    WorkspaceProxy.objects.create(name="one")
    settings.DATABASE_ROUTERS = [Router()]
    assert names() == ["one"]


def test_read__sees_one_that_goes_and_one_that_comes():
    WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]
    WorkspaceProxy.objects.all().delete()
    WorkspaceProxy.objects.create(name="other")
    assert names() == ["other"]


@pytest.mark.django_db(transaction=True)
def test_read__what_this_process_saved_is_there_at_once(configure, sent):
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
def test_read__what_this_process_saved_without_a_trace_is_there_at_once(configure, sent):
    configure(READ_INTERVAL=60)
    one = WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]
    one.name = "renamed"
    one.save(update_fields=["name"])
    assert names() == ["renamed"]


def test_read__what_is_saved_while_one_asks_is_asked_for_again(configure, read_while_asking):
    configure(READ_INTERVAL=60)
    inventory.read()
    inventory.expire()
    read_while_asking(inventory.expire)
    WorkspaceProxy.objects.create(name="one")
    assert names() == ["one"]


def test_read__an_interval_brings_what_leaves_no_trace(configure):
    """Without workers there is no new snapshot that would."""
    configure(INTERVAL=0.05)
    WorkspaceProxy.objects.create(name="one")
    inventory.read()
    WorkspaceProxy.objects.update(name="renamed")
    wait_for(lambda: names() == ["renamed"])


def test_read__a_new_snapshot_brings_what_leaves_no_trace():
    one = WorkspaceProxy.objects.create(name="one")
    before = inventory.read(1)
    WorkspaceProxy.objects.update(name="renamed")
    assert inventory.read(1) is before
    assert [proxy.name for proxy in inventory.read(2).proxies] == ["renamed"]
    # As does a save by a machine whose clock is behind: its own check makes a snapshot.
    WorkspaceProxy.objects.create(name="other")
    inventory.read(2)
    WorkspaceProxy.objects.filter(pk=one.pk).update(name="again", updated_at=one.updated_at)
    assert [proxy.name for proxy in inventory.read(3).proxies] == ["again", "other"]


def test_read__a_new_snapshot_does_not_wait_for_the_interval(configure, django_assert_num_queries):
    configure(READ_INTERVAL=60)
    inventory.read(1)
    with django_assert_num_queries(2):
        inventory.read(2)
    with django_assert_num_queries(0):
        inventory.read(2)


def test_read__a_new_snapshot_of_the_same_rows_leaves_them_the_same():
    WorkspaceProxy.objects.create(name="one")
    assert inventory.read(2) is inventory.read(1)


def test_read__keeps_what_did_not_change():
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


def test_read__one_query_a_read_interval(configure, django_assert_num_queries):
    configure(READ_INTERVAL=60)
    WorkspaceProxy.objects.create(name="one")
    with django_assert_num_queries(2):
        inventory.read()
    with django_assert_num_queries(0):
        for _ in range(5):
            inventory.read()
    WorkspaceProxy.objects.create(name="other")
    with django_assert_num_queries(2):
        assert len(inventory.read(now=True).proxies) == 2
    with django_assert_num_queries(1):
        inventory.read(now=True)


def test_read__without_the_database_a_new_snapshot_is_read_to_when_it_is_back(no_database, monkeypatch):
    monkeypatch.setattr(inventory, "_RETRY_INTERVAL", 60)
    WorkspaceProxy.objects.create(name="one")
    inventory.read(1)
    WorkspaceProxy.objects.update(name="renamed")
    with no_database():
        assert inventory.read(2).fault
        with_fault = inventory.read(2)
        assert inventory.read(2) is with_fault, "it is left alone, although the snapshot is a new one"
    assert [proxy.name for proxy in inventory.read(2, now=True).proxies] == ["renamed"]
    assert inventory.read(2).fault == ""


def test_read__without_the_database_is_the_last_copy_and_says_so_once(no_database, caplog, monkeypatch):
    WorkspaceProxy.objects.create(name="one")
    before = inventory.read()
    with no_database():
        for _ in range(3):
            assert inventory.read(now=True).proxies is before.proxies
        assert inventory.read().fault == (
            "The database cannot be read (gone); these are the proxies that were read last."
        )
    assert [r.message for r in caplog.records].count("the proxies cannot be read from the database") == 1
    assert inventory.read(now=True).fault == ""
    assert "the proxies can be read from the database again" in caplog.text


def test_read__without_the_database_it_is_left_alone_for_a_while(
    no_database, django_assert_num_queries, monkeypatch
):
    monkeypatch.setattr(inventory, "_RETRY_INTERVAL", 60)
    inventory.read()
    with no_database():
        inventory.read(now=True)
    with django_assert_num_queries(0):
        assert inventory.read().fault


def test_read__without_the_database_and_without_a_copy_raises(no_database):
    with no_database(), pytest.raises(OperationalError, match="gone"):
        inventory.read()
    assert names() == []


@pytest.fixture
def read_while_asking():
    """What ``inventory.read()`` is for who gets no answer until ``meanwhile()`` has run in another thread, or
    for some ``seconds``; and what that returned."""

    def run(meanwhile, seconds=0.0):
        asked, go_on = threading.Event(), threading.Event()
        found = []

        def hang(execute, *args):
            asked.set()
            assert go_on.wait(30)
            return execute(*args)

        def other():
            asked.wait(30)
            if seconds:
                threading.Timer(seconds, go_on.set).start()
            found.append(meanwhile())
            go_on.set()

        # The thread that asks is this one, because the test's transaction is its own.
        thread = threading.Thread(target=other)
        thread.start()
        with connection.execute_wrapper(hang):
            asker = inventory.read()
        thread.join(30)
        return asker, *found

    return run


def test_read__while_one_asks_the_others_have_what_is_there(configure, read_while_asking):
    WorkspaceProxy.objects.create(name="one")
    before = inventory.read()
    configure(READ_INTERVAL=60)  # of before, nobody can say that it is old
    assert read_while_asking(inventory.read) == (before, before)


def test_read__while_one_asks_the_others_wait_if_what_is_there_is_old(
    configure, read_while_asking, monkeypatch
):
    """As in a process that was idle for an hour, and then has two requests at once."""
    monkeypatch.setattr(inventory, "_TIMEOUT", 30)
    configure(READ_INTERVAL=60)
    inventory.read()
    WorkspaceProxy.objects.create(name="one")
    inventory.expire()
    asker, other = read_while_asking(inventory.read, seconds=0.2)
    assert other is asker
    assert [proxy.name for proxy in other.proxies] == ["one"]


def test_read__while_the_database_says_nothing_the_others_have_the_last_copy_and_its_fault(
    read_while_asking, caplog
):
    WorkspaceProxy.objects.create(name="one")
    before = inventory.read()

    def meanwhile():
        with at_most(2, "they wait once, together"):
            late = [inventory.read() for _ in range(10)]
            late.append(inventory.read(now=True))
        assert all(roster is late[0] for roster in late)
        return late[0]

    asker, late = read_while_asking(meanwhile)
    assert late.proxies is before.proxies
    assert late.fault.startswith("The database cannot be read (it does not answer); ")
    assert asker is before
    assert inventory.read().fault == ""
    assert [record.message for record in caplog.records if record.name == "proxyhealth.api.inventory"] == [
        "the database does not answer the question for the proxies",
        "the proxies can be read from the database again",
    ]


def test_read__in_a_transaction_that_is_rolled_back_is_put_right():
    with transaction.atomic():
        WorkspaceProxy.objects.create(name="never")
        assert names() == ["never"]
        transaction.set_rollback(True)
    assert names() == []


def test_read__who_waits_for_a_first_copy_shares_the_error_of_who_asks(monkeypatch):
    """Or with a database that says nothing, each would wait for its turn, and then as long as all before."""
    asked, waiting = [], []
    lock = inventory._reader._lock

    class Lock:
        """Counts who comes."""

        def __enter__(self):
            waiting.append(1)
            lock.acquire()

        def __exit__(self, *error):
            lock.release()

    def fail():
        asked.append(1)
        wait_for(lambda: len(waiting) >= 5, 30, "the others wait")
        raise OperationalError("it does not answer")

    monkeypatch.setattr(inventory._reader, "_lock", Lock())
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
    assert errors == ["it does not answer"] * 5
    assert len(asked) == 1
    with pytest.raises(OperationalError):
        inventory.read()
    assert len(asked) == 2, "who comes later asks again"
