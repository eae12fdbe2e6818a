"""Reading rows of a database that may fail, or that other programs have written."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from django.db import DataError, connections, models, router
from django.db import Error as DatabaseError

from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.texts import without_passwords

T = TypeVar("T")


@contextmanager
def using_database_of(model: type[models.Model]) -> Iterator[str]:
    """Yield the alias of the database that has the rows of ``model``.

    Raise ``HistoryUnavailable`` if the database fails.
    """
    alias = router.db_for_write(model)
    try:
        yield alias
    except DatabaseError as error:
        # Otherwise a worker would keep a connection that a restart of the database has closed.
        close_if_broken(alias)
        raise HistoryUnavailable(
            f"the history cannot be used in the database: {without_passwords(error)}"
        ) from error


class TimedRead(Generic[T]):
    """A read in a thread. A database that hangs keeps this one thread, and its callers for a moment."""

    def __init__(self, read: Callable[[], T], name: str) -> None:
        self._read = read
        self._name = name
        self._lock = threading.Lock()
        self._running: Future[T] | None = None
        self._begun_at = 0.0

    def result(self, timeout: float) -> T:
        """Return the result of the read that is running, or of a new one.

        Wait until it has taken ``timeout`` seconds. Raise its error, or ``TimeoutError``, or ``RuntimeError``
        if no thread can start.
        """
        with self._lock:
            if self._running is None or self._running.done():
                future: Future[T] = Future()
                threading.Thread(target=self._run, args=[future], name=self._name, daemon=True).start()
                self._running, self._begun_at = future, time.monotonic()
            running, end = self._running, self._begun_at + timeout
        return running.result(max(0.0, end - time.monotonic()))

    def _run(self, future: Future[T]) -> None:
        try:
            result = self._read()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            connections.close_all()  # those of this thread


def close_if_broken(alias: str) -> None:
    """Close the connection to a database after an error that broke it, so that the next query opens another.

    Leave it open in a transaction, which its owner has to end: Django would close a connection that works.
    """
    if not connections[alias].in_atomic_block:
        connections[alias].close_if_unusable_or_obsolete()


def is_of_a_row(error: Exception) -> bool:
    """Return True if a value in the database caused ``error``, not the connection.

    Raw SQL and other programs can write such values: into SQLite everything, into PostgreSQL ``infinity``.
    """
    kinds = (ValueError, TypeError, AttributeError, OverflowError, DataError)
    return isinstance(error, kinds) or "decode to UTF-8" in str(error)


def read_rows(rows: Any, parse: Callable[[Any], list[T]]) -> tuple[list[T], list[Exception]]:
    """Return the parsed rows, and the errors of those that cannot be read."""
    try:
        return parse(rows), []
    except Exception as error:
        if not is_of_a_row(error):
            raise
    errors: list[Exception] = []
    rows = rows.order_by(*rows.query.order_by, "pk")  # so that no slice has a row of another one
    return list(_readable_rows(rows, parse, 0, rows.count(), errors)), errors


def _readable_rows(
    rows: Any, parse: Callable[[Any], list[T]], begin: int, end: int, errors: list[Exception]
) -> Iterator[T]:
    # Halves that can be read need one query, so that a few bad rows among many cost few queries.
    try:
        yield from parse(rows[begin:end])
    except Exception as error:
        if not is_of_a_row(error):
            raise
        if end - begin <= 1:
            errors.append(error)
            return
        middle = (begin + end) // 2
        yield from _readable_rows(rows, parse, begin, middle, errors)
        yield from _readable_rows(rows, parse, middle, end, errors)
