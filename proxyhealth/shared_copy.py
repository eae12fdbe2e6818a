"""A value that the threads of a process share. One thread refreshes it; the others read on meanwhile."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")

# The grace of readers that wait for a refresh by another thread, instead of taking the previous value.
NO_GRACE = -math.inf


class SharedCalls(Generic[T]):
    """Calls in one thread, for coroutines. Those that wait for the same call to begin share its result.

    The thread is none of the event loop's: those may all be busy, or wait for this call.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name)
        self._lock = threading.Lock()
        self._next: Future[T] | None = None  # of the call that has not begun

    async def run(self, function: Callable[[], T], timeout: float | None = None) -> T:
        """Return the result of a call that begins after this one. Raise its error, or ``TimeoutError``.

        The call goes on if this coroutine is cancelled, because others may wait for it.
        """
        return await asyncio.wait_for(asyncio.wrap_future(self._join(function)), timeout)

    def _join(self, function: Callable[[], T]) -> Future[T]:
        with self._lock:
            if self._next is None:
                future: Future[T] = Future()
                future.set_running_or_notify_cancel()  # from now on, it cannot be cancelled
                self._executor.submit(self._call, future, function)
                self._next = future
            return self._next

    def _call(self, future: Future[T], function: Callable[[], T]) -> None:
        with self._lock:
            self._next = None
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)


class SharedCopy(Generic[T]):
    """A value that is fresh for some seconds and then refreshed by its next reader (stale-while-revalidate).

    If a refresh takes too long, readers get ``mark_late(value)``, which is called once per value.
    """

    def __init__(self, value: T | None = None, mark_late: Callable[[T], T] = lambda value: value) -> None:
        self.value = value
        self.due_at = -math.inf  # by the monotonic clock; until then, the value is fresh
        self.is_late = False  # True once a reader got the value marked late
        self._mark_late = mark_late
        self._late: tuple[T, T] | None = None  # the value, and the same marked late
        self._expiry = self._seen_expiry = object()
        self._refreshing_since: float | None = None
        self._error: Exception | None = None
        self._failed_at = -math.inf
        self._refresh_lock = threading.Lock()
        self._state_lock = threading.Lock()  # never held for long
        self._calls: SharedCalls[T] = SharedCalls("proxyhealth reader")

    @property
    def expired(self) -> bool:
        """True if ``expire()`` was called after the last completed refresh began."""
        return self._seen_expiry is not self._expiry

    def expire(self) -> None:
        """Make the value overdue, and also the value that a running refresh will return."""
        with self._state_lock:
            self._expiry, self.due_at = object(), -math.inf

    def fresh(self) -> T | None:
        """Return the value, or None if it is due."""
        return self.value if time.monotonic() < self.due_at else None

    def get(
        self,
        refresh: Callable[[T | None], tuple[T, float]],
        *,
        is_current: Callable[[T], bool] = lambda value: True,
        grace: float = NO_GRACE,
        timeout: float = threading.TIMEOUT_MAX,
    ) -> T:
        """Return the value if it is fresh and ``is_current``. Otherwise, refresh it.

        ``refresh(previous)`` returns the next value, and the seconds for which it is fresh. Raise its errors.
        While another thread refreshes, return the previous value at once, until ``grace`` seconds after it
        was due. From then on, wait until the refresh has taken ``timeout`` seconds, and then return the
        previous value marked late. Without a previous value, wait for the refresh to end.
        """
        begin = time.monotonic()
        value = self.fresh()
        if value is not None and is_current(value):
            return value
        previous = self.value
        wait = self._time_left(timeout) if self._is_overdue(grace) else 0.0
        if previous is None:
            self._refresh_lock.acquire()
        elif not self._refresh_lock.acquire(timeout=wait):
            newest = self.value or previous
            return self._marked_late(newest) if self._is_overdue(grace) else newest
        try:
            value = self.fresh()
            if value is not None and is_current(value):
                return value
            # A reader that waited gets the same error. Otherwise, all waiting readers would retry in turn.
            if self._error and self._failed_at >= begin:
                raise type(self._error)(*self._error.args) from self._error
            return self._refresh(refresh)
        finally:
            self._refresh_lock.release()

    async def aget(
        self,
        refresh: Callable[[T | None], tuple[T, float]],
        *,
        grace: float = NO_GRACE,
        timeout: float = threading.TIMEOUT_MAX,
    ) -> T:
        """Return the value as :meth:`get` does. A thread refreshes it, so that the event loop goes on.

        The coroutine that needs a refresh waits for ``timeout`` seconds, too.
        """
        value = self.fresh()
        if value is not None:
            return value
        previous = self.value
        if previous is not None and self._refresh_lock.locked() and not self._is_overdue(grace):
            return previous
        get = partial(self.get, refresh, grace=grace, timeout=timeout)
        try:
            return await self._calls.run(get, self._time_left(timeout))
        except TimeoutError:
            if previous is None:
                raise
            return self._marked_late(self.value or previous)

    def _is_overdue(self, grace: float) -> bool:
        return time.monotonic() >= self.due_at + grace

    def _time_left(self, timeout: float) -> float:
        # All readers share one timeout, which begins with the refresh.
        begin = self._refreshing_since
        return timeout if begin is None else max(0.0, timeout - (time.monotonic() - begin))

    def _marked_late(self, value: T) -> T:
        with self._state_lock:
            if self._late is None or self._late[0] is not value:
                self._late, self.is_late = (value, self._mark_late(value)), True
            return self._late[1]

    def _refresh(self, refresh: Callable[[T | None], tuple[T, float]]) -> T:
        expiry = self._expiry
        self._refreshing_since = time.monotonic()
        try:
            value, seconds = refresh(self.value)
        except Exception as error:
            self._error, self._failed_at = error, time.monotonic()
            raise
        finally:
            self._refreshing_since = None
        self.value, self._late, self.is_late, self._error = value, None, False, None
        with self._state_lock:
            self._seen_expiry = expiry
            if not self.expired:
                self.due_at = time.monotonic() + seconds
        return value
