"""The active proxies of the database, as this process last read them."""

from __future__ import annotations

import logging
import operator
import os
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from django.db import Error as DatabaseError
from django.db import router
from django.db.models import Count, Max, Q

from proxyhealth.conf import conf
from proxyhealth.models import WorkspaceProxy, WorkspaceProxyQuerySet
from proxyhealth.snapshot import Proxy

logger = logging.getLogger(__name__)

# Seconds for which a database that failed is left alone.
_RETRY_INTERVAL = 2.0

# Seconds that the others wait for the one who asks it, when what they have is old.
_TIMEOUT = 1.0


@dataclass(frozen=True, eq=False)
class Inventory:
    """``proxies`` by their names without regard to case, ``changed_at`` of the last row that was saved.

    ``fault`` says why this is only the last copy that a process has, when it could not get a newer one.
    """

    proxies: tuple[Proxy, ...]
    changed_at: datetime | None
    fault: str = ""

    def same_as(self, other: Inventory) -> bool:
        """Whether it says the same, with the same objects."""
        return (
            (self.changed_at, self.fault) == (other.changed_at, other.fault)
            and len(self.proxies) == len(other.proxies)
            and all(map(operator.is_, self.proxies, other.proxies))
        )


class _Fingerprint(NamedTuple):
    """What one small query tells of all rows. Saves and deletions make another one of it; not all of them do:
    neither one that leaves ``updated_at`` as it is, nor one in a transaction that was committed late, or by a
    clock that is behind, when another row has a later ``updated_at`` already."""

    active: int
    changed_at: datetime | None


def read(epoch: object = None, *, now: bool = False) -> Inventory:
    """The active proxies, at most ``READ_INTERVAL`` seconds old, or as they are ``now``.

    In between there is no query, and after it a small one that tells whether anything was saved. All rows
    are read only if there was, or if ``epoch``, which tells one snapshot from another, is another one than
    last time, or if an ``INTERVAL`` has gone by: that brings what leaves no trace, as ``queryset.update()``,
    too. With the database out of reach, or silent, it is the last copy of this process, with the ``fault``
    that says why; without one the error of the database is raised.
    """
    return _reader.read(epoch, now)


def expire() -> None:
    """Something was saved in this process: what it reads next is not older than that."""
    _reader.expire()


def forget() -> None:
    """Drop this process's copy: after a fork, and between tests."""
    global _reader
    _reader = _Reader()


class _Reader:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._roster: Inventory | None = None
        self._mark: _Fingerprint | None = None
        self._epoch: object = None
        self._read_at = float("-inf")  # when all rows were read
        self._ask_at = float("-inf")
        self._saved = self._seen = object()  # another one with each save of this process
        self._asking_since: float | None = None  # by the clock, of who has the lock
        self._late: Inventory | None = None
        self._error: DatabaseError | None = None  # of who asked last without a copy
        self._failed_at = float("-inf")

    def read(self, epoch: object, now: bool) -> Inventory:
        roster = self._roster
        if roster is None:
            begin = time.monotonic()
            with self._lock:
                # Who waits while another one asks shares its error, or they would ask one after the other.
                if self._error and self._failed_at >= begin:
                    raise type(self._error)(*self._error.args) from self._error
                return self._refreshed(epoch, now)
        if not now and not self._is_due(epoch):
            return roster
        # While one thread asks, the others have what is there; if that is old, they wait, for a while.
        if self._lock.acquire(timeout=self._patience() if now or self._is_old() else 0):
            try:
                return self._refreshed(epoch, now)
            finally:
                self._lock.release()
        roster = self._roster or roster
        return self._overdue(roster) if now or self._is_old() else roster

    def expire(self) -> None:
        self._saved = object()

    def _is_due(self, epoch: object) -> bool:
        return epoch != self._epoch or self._saved is not self._seen or time.monotonic() >= self._ask_at

    def _is_old(self) -> bool:
        """Whether it should have been asked for long ago: nobody was here, or who asks gets no answer."""
        return self._saved is not self._seen or time.monotonic() >= self._ask_at + conf.READ_INTERVAL

    def _patience(self) -> float:
        """Seconds that are left for who asks; all of them together wait for one answer only so long."""
        now = time.monotonic()
        return max(0.0, (self._asking_since or now) + _TIMEOUT - now)

    def _overdue(self, roster: Inventory) -> Inventory:
        """``roster``, with the fault that it has while the database says nothing."""
        if roster.fault:
            return roster
        late = self._late
        if late is None or late.proxies is not roster.proxies:
            logger.warning("the database does not answer the question for the proxies")
            late = self._late = replace(roster, fault=_FAULT.format("it does not answer"))
        return late

    def _refreshed(self, epoch: object, now: bool) -> Inventory:
        roster = self._roster
        if roster and not now and not self._is_due(epoch):
            return roster
        pause = conf.READ_INTERVAL
        begin = self._asking_since = time.monotonic()
        saved = self._saved
        try:
            mark = _take_fingerprint()
            known = mark == self._mark and epoch == self._epoch and saved is self._seen
            if roster is None or not known or begin >= self._read_at + conf.INTERVAL:
                # Marked before they are read: what is saved in between is seen next time.
                roster = _renewed(roster, mark)
                self._mark, self._read_at = mark, begin
            elif roster.fault:
                roster = replace(roster, fault="")
            if self._late or (self._roster and self._roster.fault):
                logger.info("the proxies can be read from the database again")
        except DatabaseError as error:
            if roster is None:
                self._error, self._failed_at = error, time.monotonic()
                raise
            if not roster.fault:
                logger.exception("the proxies cannot be read from the database")
            roster = replace(roster, fault=_FAULT.format(error))
            pause = _RETRY_INTERVAL
            self._mark = None  # a new snapshot may have come in the meantime
        finally:
            self._asking_since = None
        self._roster, self._epoch, self._seen, self._late = roster, epoch, saved, None
        self._ask_at = time.monotonic() + pause
        return roster


def _renewed(before: Inventory | None, mark: _Fingerprint) -> Inventory:
    """The rows; those that are as they were as the same objects, and so the whole if all of them are."""
    known = {proxy.id: proxy for proxy in before.proxies} if before else {}
    rows = [
        same if (same := known.get(proxy.id)) == proxy else proxy for proxy in _rows().active().as_proxies()
    ]
    # Not every database sorts as Python does, and the pages of a list are cut in this order.
    rows.sort(key=lambda proxy: proxy.name.lower())
    roster = Inventory(tuple(rows), mark.changed_at)
    return before if before and before.same_as(roster) else roster


_FAULT = "The database cannot be read ({}); these are the proxies that were read last."


def _take_fingerprint() -> _Fingerprint:
    return _Fingerprint(
        **_rows().aggregate(active=Count("pk", filter=Q(deleted=False)), changed_at=Max("updated_at"))
    )


def _rows() -> WorkspaceProxyQuerySet:
    # Where rounds read them, too: a replica may not know yet what has just been saved.
    return WorkspaceProxy.objects.using(router.db_for_write(WorkspaceProxy))


_reader = _Reader()

# A thread of the parent may hold the lock, and in the child nobody would ever release it.
os.register_at_fork(after_in_child=forget)
