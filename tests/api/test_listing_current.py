"""The listing of a process: what it shares between requests and threads, and what it keeps."""

import json
import threading
from datetime import timedelta

import pytest
from django.db import connection

from proxyhealth import health
from proxyhealth.api import inventory, listing
from proxyhealth.api.query import EVERYTHING, Selection
from proxyhealth.models import WorkspaceProxy
from proxyhealth.report import HealthReport
from proxyhealth.rounds.dispatch import request_check
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.proxies import wait_for
from tests.support.values import NOW, a_round, make_status

pytestmark = pytest.mark.django_db


def commit_all(status=Status.OK):
    """Commit a round in which all proxies of the database have this status."""
    statuses = [ProxyStatus(p, "host", status, checked_at=NOW) for p in inventory.read(now=True).proxies]
    commit(statuses, take_token(), full_round=a_round())


def test_current__is_the_same_until_something_changes(paris):
    before = listing.current()
    assert listing.current() is before
    bytes_before = before.select("proxies", EVERYTHING)
    assert listing.current().select("proxies", EVERYTHING) is bytes_before
    commit_all()
    after = listing.current()
    assert after is not before
    assert after.select("proxies", EVERYTHING) is not bytes_before
    assert before.select("proxies", EVERYTHING) is bytes_before, "the previous listing stays whole"


def test_current__keeps_the_same_bytes_compressed(paris):
    before = listing.current().select("regions", EVERYTHING)
    assert before.gzipped
    health.force_update()
    assert listing.current().select("regions", EVERYTHING) is before


def test_current__compresses_what_was_compressed_before(paris, monkeypatch):
    for i in range(10):
        WorkspaceProxy.objects.create(name=f"p{i}")
    assert listing.current().select("proxies", EVERYTHING).gzipped
    commit_all()
    made = listing.current().select("proxies", EVERYTHING)
    monkeypatch.setattr("gzip.compress", None)
    assert made.gzipped, "it was made with the listing"


@pytest.fixture
def current_while_made(monkeypatch):
    """Return what ``listing.current()`` returns to the thread that makes it, and to another one meanwhile."""

    def run(seconds=0.0):
        started, proceed = threading.Event(), threading.Event()
        entries = listing._Entries
        results = []

        def make_slowly(*args):
            started.set()
            assert proceed.wait(5)
            return entries(*args)

        def other():
            started.wait(5)
            if seconds:
                threading.Timer(seconds, proceed.set).start()
            results.append(listing.current())
            proceed.set()

        monkeypatch.setattr(listing, "_Entries", make_slowly)
        # Threads have connections of their own, which see nothing of this test's transaction.
        rows = inventory.read()
        monkeypatch.setattr(inventory, "read", lambda epoch=0, now=False: rows)
        thread = threading.Thread(target=other)
        thread.start()
        first = listing.current()
        thread.join(5)
        return first, *results

    return run


def test_current__does_not_make_what_nobody_requested(paris):
    listing.current().select("proxies", EVERYTHING)
    commit_all()
    assert list(listing.current()._full) == ["proxies"]
    commit_all()
    assert list(listing.current()._full) == []


def test_current__gets_the_previous_one_while_it_is_made(paris, configure, current_while_made):
    configure(READ_INTERVAL=60)
    before = listing.current()
    commit_all(status=Status.UNREACHABLE)
    reader.read_anew()
    first, other = current_while_made()
    assert other is before
    assert first is not before


def test_current__waits_if_the_previous_one_is_overdue(paris, current_while_made):
    before = listing.current()
    commit_all(status=Status.UNREACHABLE)
    first, other = current_while_made(seconds=0.2)
    assert other is first is not before


def test_current__an_overtaken_thread_does_not_go_back(paris, monkeypatch):
    """After a thread has read the parts, another thread reads newer ones, and makes its listing first."""
    read = listing.Parts.read
    newer = []

    def overtaken(now=False):
        parts = read(now)
        monkeypatch.setattr(listing.Parts, "read", read)
        commit_all(status=Status.UNREACHABLE)
        newer.append(listing.current())
        return parts

    for now in (False, True):
        listing.current()
        commit_all()
        monkeypatch.setattr(listing.Parts, "read", overtaken)
        assert listing.current(now=now) is newer[-1]


def test_current__a_hanging_query_blocks_no_other_thread(paris):
    """The database hangs while one request looks for a new proxy. The others see what rounds commit."""
    assert listing.current().find("paris").status == Status.UNHEALTHY
    started, proceed = threading.Event(), threading.Event()
    results = []

    def hang(execute, *args):
        started.set()
        assert proceed.wait(10)
        return execute(*args)

    def other():
        started.wait(5)
        status = make_status(health.snapshot().statuses[paris.pk].proxy, Status.UNREACHABLE)
        commit([status], take_token(), full_round=a_round())
        results.append(listing.current())
        proceed.set()
        connection.connection.close()  # Django does not close that of a database in memory

    thread = threading.Thread(target=other)
    thread.start()
    with connection.execute_wrapper(hang):
        listing.current(now=True)
    thread.join(5)
    assert results[0].find("paris").status == Status.UNREACHABLE
    assert results[0].stale
    assert not listing.current().stale


def test_current__many_threads_see_whole_snapshots_in_order(monkeypatch):
    WorkspaceProxy.objects.create(name="paris")
    rows = inventory.read()
    monkeypatch.setattr(inventory, "read", lambda epoch=0, now=False: rows)
    listing.current()
    over = threading.Event()
    faults = []

    def poll():
        last = 0
        while not over.wait(0.001):
            body = json.loads(listing.current().select("proxies", EVERYTHING).body)
            number = body["snapshot"]["number"]
            errors = body["regions"][0]["status"]["report"]["errors"]
            if number < last or (number and errors != [str(number)]):
                faults.append((last, number, errors))
            last = number

    readers = [threading.Thread(target=poll) for _ in range(8)]
    for thread in readers:
        thread.start()
    for number in range(1, 101):
        report = HealthReport((str(number),))
        status = make_status(rows.proxies[0], Status.UNHEALTHY, report=report)
        commit([status], take_token())
    wait_for(lambda: listing.current().parts.snapshot.number == 100)
    over.set()
    for thread in readers:
        thread.join(5)
    assert faults == []


def test_select__keeps_a_limited_number_of_filtered_lists(paris, monkeypatch):
    current = listing.current()
    wanted = Selection(text="par")
    assert current.select("proxies", wanted) is current.select("proxies", Selection(text="par"))
    assert current.select("regions", wanted) is not current.select("proxies", wanted)
    for number in range(1_000):
        current.select("proxies", Selection(text=f"par{number}"))
    assert len(current._filtered) <= 64
    monkeypatch.setattr(listing, "_MAX_KEPT_BYTES", 1_000)
    for number in range(5):
        assert current.select("proxies", Selection(text="par", limit=number + 1)).body
    assert sum(len(part.body) for part in set(current._filtered.values())) <= 1_000


def test_select__any_cursor_of_a_page_is_the_same(paris):
    WorkspaceProxy.objects.create(name="rome")
    current = listing.current()
    pages = [current.select("regions", Selection(after=f"parma{n}", limit=9)) for n in range(100)]
    assert set(pages) == {pages[0]}
    assert len(current._filtered) == 1
    assert b"rome" in pages[0].body
    assert b"paris" in current.select("regions", Selection(after="", limit=9)).body


def test_select__equal_results_are_compressed_once(paris, monkeypatch):
    current = listing.current()
    everything = current.select("regions", EVERYTHING)
    for text in ("p", "pa", "http"):
        assert current.select("regions", Selection(text=text)) is everything
    pages = {current.select("regions", Selection(limit=limit)) for limit in range(1, 9)}
    assert len(pages) == 1
    monkeypatch.setattr(listing, "_MAX_KEPT_BYTES", len(everything.body) + len(pages.pop().body))
    current.select("regions", Selection(text="par", limit=9))
    assert len(current._filtered) > 9, "equal lists count once"


def test_select__keeps_the_lists_in_use(paris):
    current = listing.current()
    used = current.select("regions", Selection(text="par", limit=2))
    for number in range(1_000):
        current.select("regions", Selection(text=f"not {number}"))
        assert current.select("regions", Selection(text="par", limit=2)) is used


def test_select__a_list_above_the_limit_is_not_kept(paris, monkeypatch):
    current = listing.current()
    small, large = Selection(text="par", limit=1), Selection(text="par")
    kept = current.select("regions", small)
    size = len(kept.body)
    monkeypatch.setattr(listing, "_MAX_KEPT_BYTES", size)
    assert len(current.select("proxies", large).body) > size
    assert current.select("regions", small) is kept, "it made no room for what does not fit"
    assert len(current._filtered) == 1


@pytest.mark.parametrize("change", ["clock behind", "update()"])
def test_current__shows_a_save_that_times_do_not_show(redis_client, change):
    """Of another process. No worker runs, so no check follows."""
    one = WorkspaceProxy.objects.create(name="one")
    WorkspaceProxy.objects.create(name="other")
    assert listing.current().find("one")
    values = {} if change == "update()" else {"updated_at": one.updated_at - timedelta(hours=1)}
    WorkspaceProxy.objects.filter(pk=one.pk).update(name="renamed", **values)
    assert not listing.current().find("renamed")
    request_check([one.pk]).result(30)  # the receiver of the other process
    wait_for(lambda: listing.current().find("renamed"), 1)
