"""The copy that one thread refreshes while the others read on."""

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest

from proxyhealth.shared_copy import SharedCopy
from tests.support.machine import at_most
from tests.support.proxies import wait_for


class Source:
    """A refresh that counts its calls, and blocks on demand."""

    def __init__(self, seconds=60.0):
        self.seconds = seconds
        self.calls = 0
        self.error = None
        self.started, self.proceed = threading.Event(), threading.Event()
        self.proceed.set()

    def __call__(self, previous):
        self.calls += 1
        value = self.calls  # how many calls there were when this one started
        self.started.set()
        assert self.proceed.wait(30)
        if self.error:
            raise self.error
        return [value], self.seconds


@contextmanager
def threads(count, function):
    """Run ``function`` in threads; yield the list that its results and errors go to."""
    results = []

    def run():
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    running = [threading.Thread(target=run) for _ in range(count)]
    for thread in running:
        thread.start()
    yield results
    for thread in running:
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def refreshing(copy, source, **options):
    """A block in which another thread refreshes the copy."""
    source.started.clear()
    source.proceed.clear()
    with threads(1, lambda: copy.get(source, **options)) as results:
        try:
            assert source.started.wait(30)
            yield results
        finally:
            source.proceed.set()


def watch_lock(copy, count):
    """Replace the lock of the copy; return a function that tells whether ``count`` threads came to it."""
    waiting = []
    lock = copy._refresh_lock

    class Lock:
        def acquire(self, timeout=-1):
            waiting.append(timeout)
            return lock.acquire(timeout=timeout)

        def release(self):
            lock.release()

    copy._refresh_lock = Lock()
    return lambda: len(waiting) >= count


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def copy():
    return SharedCopy(mark_late=lambda value: [*value, "late"])


def test_get__refreshes_once_while_fresh(copy, source):
    assert copy.fresh() is None
    first = copy.get(source)
    assert first == [1]
    assert copy.get(source) is copy.fresh() is copy.value is first
    assert source.calls == 1


def test_get__passes_the_previous_value(copy):
    seen = []
    for _ in range(2):
        copy.get(lambda previous: (seen.append(previous) or [len(seen)], 0.0))
    assert seen == [None, [1]]


def test_get__refreshes_when_due(copy):
    source = Source(seconds=0.05)
    copy.get(source)
    wait_for(lambda: copy.fresh() is None, 5)
    assert copy.get(source) == [2]


def test_get__refreshes_what_is_not_current(copy, source):
    first = copy.get(source)
    assert copy.get(source, is_current=lambda value: value is first) is first
    assert copy.get(source, is_current=lambda value: value is not first) == [2]


def test_get__begins_with_an_initial_value(source):
    copy = SharedCopy(["initial"])
    assert copy.value == ["initial"]
    assert copy.fresh() is None, "it is due"
    assert copy.get(source) == [1]


def test_get__without_a_value_waits_for_the_refresh(copy, source):
    with refreshing(copy, source) as first:
        arrived = watch_lock(copy, 4)
        with threads(4, lambda: copy.get(source, grace=60, timeout=0)) as others:
            wait_for(arrived, 30)
            assert others == []
            source.proceed.set()
    assert first == [[1]]
    assert others == [[1]] * 4
    assert source.calls == 1


def test_get__in_its_grace_returns_the_previous_value(copy):
    source = Source(seconds=0)
    first = copy.get(source)
    with refreshing(copy, source), at_most(5):
        assert copy.get(source, grace=60) is first
    assert copy.value == [2]


def test_get__waits_for_the_refresh_when_overdue(copy):
    source = Source(seconds=0)
    copy.get(source)
    source.seconds = 60
    with refreshing(copy, source) as first:
        arrived = watch_lock(copy, 4)
        with threads(4, lambda: copy.get(source)) as others:
            wait_for(arrived, 30)
            source.proceed.set()
    assert first == [[2]]
    assert others == [[2]] * 4
    assert source.calls == 2, "the others did not refresh it again"


def test_get__of_what_is_not_current_waits_without_grace(copy, source):
    first = copy.get(source)
    with refreshing(copy, source, is_current=lambda value: False):
        arrived = watch_lock(copy, 1)
        with threads(1, lambda: copy.get(source, is_current=lambda value: value is not first)) as others:
            wait_for(arrived, 30)
            source.proceed.set()
    assert others == [[2]]
    assert source.calls == 2


def test_get__after_the_timeout_returns_the_value_marked_late(copy):
    source = Source(seconds=0)
    first = copy.get(source)
    with refreshing(copy, source), at_most(5):
        late = copy.get(source, timeout=0.1)
        assert late == [1, "late"]
        assert copy.get(source, timeout=0.1) is late, "it was made once"
        assert copy.get(source, grace=60) is first, "not late for a reader with more grace"
        assert copy.is_late
    assert not copy.is_late
    with refreshing(copy, source):
        assert copy.get(source, timeout=0) == [2, "late"]


def test_get__the_timeout_counts_from_the_start_of_the_refresh(copy):
    source = Source(seconds=0)
    copy.get(source)
    with refreshing(copy, source):
        copy.get(source, timeout=0.5)
        with at_most(0.4, "readers spend one timeout together"):
            for _ in range(10):
                assert copy.get(source, timeout=0.5) == [1, "late"]


def test_get__in_vain_returns_a_value_that_came_meanwhile(copy, source):
    """A refresh ended while the reader waited, and the next one began."""
    copy.get(source)
    copy.due_at = time.monotonic()
    with copy._refresh_lock:
        arrived = watch_lock(copy, 1)
        with threads(1, lambda: copy.get(source, timeout=0.2, grace=0)) as results:
            wait_for(arrived, 30)
            copy.value = ["newer"]
            copy.due_at += 60
    assert results == [["newer"]]


def test_get__a_reader_that_waited_shares_the_error(copy, source):
    """Otherwise, each would wait for its own turn, and for those of all before it."""
    source.error = OSError(5, "gone")
    with refreshing(copy, source) as first:
        arrived = watch_lock(copy, 4)
        with threads(4, lambda: copy.get(source)) as others:
            wait_for(arrived, 30)
            source.proceed.set()
    assert [(type(error), error.args) for error in first + others] == [(OSError, (5, "gone"))] * 5
    assert source.calls == 1
    with pytest.raises(OSError, match="gone"):
        copy.get(source)
    assert source.calls == 2, "a later reader tries again"
    source.error = None
    assert copy.get(source) == [3]


def test_get__an_error_leaves_the_value_as_it_was(copy):
    source = Source(seconds=0)
    first = copy.get(source)
    source.error = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        copy.get(source)
    assert copy.value is first
    source.error = None
    assert copy.get(source) == [3], "the lock was released"


def test_expire__makes_the_value_overdue(copy, source):
    copy.get(source)
    assert not copy.expired
    copy.expire()
    assert copy.expired
    assert copy.fresh() is None
    with refreshing(copy, source):
        assert copy.get(source, grace=60, timeout=0) == [1, "late"]
    assert not copy.expired
    assert copy.get(source) == [2]


def test_expire__during_a_refresh_has_it_refreshed_again(copy, source):
    with refreshing(copy, source):
        copy.expire()
    assert copy.expired
    assert copy.get(source) == [2]
    assert copy.get(source) == [2]


def test_due_at__can_be_moved(copy, source):
    copy.get(source)
    copy.due_at = time.monotonic()
    assert copy.fresh() is None
    copy.due_at += 60
    assert copy.get(source) == [1]


def test_get__no_thread_gets_an_older_value_than_before(copy):
    source = Source(seconds=0)
    end = time.monotonic() + 0.5

    def read():
        last, faults = 0, 0
        while time.monotonic() < end:
            (value, *_) = copy.get(source, grace=0.01, timeout=30)
            faults += value < last
            last = value
        return faults

    with threads(8, read) as results:
        pass
    assert results == [0] * 8
    assert copy.value == [source.calls]


def test_aget__without_a_value_waits_for_the_timeout():
    copy = SharedCopy()
    free = threading.Event()

    def refresh(previous):
        free.wait(10)
        return "value", 60

    with pytest.raises(TimeoutError):
        asyncio.run(copy.aget(refresh, timeout=0.01))
    free.set()
    assert asyncio.run(copy.aget(refresh)) == "value"


def test_aget__raises_the_error_of_the_refresh():
    copy = SharedCopy("old")

    def refresh(previous):
        raise ValueError(previous)

    with pytest.raises(ValueError, match="old"):
        asyncio.run(copy.aget(refresh))
