"""The active proxies of the database, as this process last read them."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from django.db import Error as DatabaseError
from django.db.models import Count, Max, Q

from proxyhealth.conf import conf
from proxyhealth.models import WorkspaceProxy
from proxyhealth.report import Proxy
from proxyhealth.rounds import values_of

logger = logging.getLogger(__name__)

# Seconds for which a database that failed is left alone.
_RETRY_INTERVAL = 2.0


@dataclass(frozen=True, eq=False)
class Roster:
    """``proxies`` by their names without regard to case, ``changed_at`` of the last row that was saved.

    ``fault`` says why this is only the last copy that a process has, when it could not get a newer one.
    """

    proxies: tuple[Proxy, ...]
    changed_at: datetime | None
    fault: str = ""


class _Mark(NamedTuple):
    """What one small query tells of all rows. Every save and every deletion makes another one of it."""

    active: int
    changed_at: datetime | None


def read(*, now: bool = False) -> Roster:
    """The active proxies, at most ``READ_INTERVAL`` seconds old, or as they are ``now``.

    In between there is no query, and after it a small one that tells whether anything was saved. What
    ``queryset.update()`` changes is seen an ``INTERVAL`` later at the latest. With the database out of
    reach it is the last copy of this process, with the ``fault`` that says why; without one the error of
    the database is raised.
    """
    return _reader.read(now)


def forget() -> None:
    """Drop this process's copy: after a fork, and between tests."""
    global _reader
    _reader = _Reader()


class _Reader:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._roster: Roster | None = None
        self._mark: _Mark | None = None
        self._ask_at = float("-inf")
        self._renew_at = float("-inf")

    def read(self, now: bool) -> Roster:
        # While one thread asks, the others have what is there; if nothing is, they wait.
        roster = self._roster
        if roster is None or now:
            with self._lock:
                return self._refreshed(now)
        if time.monotonic() >= self._ask_at and self._lock.acquire(blocking=False):
            try:
                return self._refreshed()
            finally:
                self._lock.release()
        return roster

    def _refreshed(self, now: bool = False) -> Roster:
        roster = self._roster
        if roster and not now and time.monotonic() < self._ask_at:
            return roster
        pause = conf.READ_INTERVAL
        try:
            mark = _take_mark()
            if roster is None or mark != self._mark or time.monotonic() >= self._renew_at:
                # Marked before they are read: what is saved in between is seen next time.
                roster = Roster(self._read_rows(), mark.changed_at)
                self._mark = mark
                self._renew_at = time.monotonic() + conf.INTERVAL
            elif roster.fault:
                logger.info("the proxies can be read from the database again")
                roster = replace(roster, fault="")
        except DatabaseError as error:
            if roster is None:
                raise
            if not roster.fault:
                logger.exception("the proxies cannot be read from the database")
            roster = replace(roster, fault=_FAULT.format(error))
            pause = _RETRY_INTERVAL
        self._roster = roster
        self._ask_at = time.monotonic() + pause
        return roster

    def _read_rows(self) -> tuple[Proxy, ...]:
        """The rows; those that are as they were, as the same objects."""
        known = {proxy.id: proxy for proxy in self._roster.proxies} if self._roster else {}
        rows = [
            before if (before := known.get(proxy.id)) == proxy else proxy
            for proxy in values_of(WorkspaceProxy.objects.active())
        ]
        # Not every database sorts as Python does, and the pages of a list are cut in this order.
        return tuple(sorted(rows, key=lambda proxy: proxy.name.lower()))


_FAULT = "The database cannot be read ({}); these are the proxies that were read last."


def _take_mark() -> _Mark:
    return _Mark(
        **WorkspaceProxy.objects.aggregate(
            active=Count("pk", filter=Q(deleted=False)), changed_at=Max("updated_at")
        )
    )


_reader = _Reader()

# A thread of the parent may hold the lock, and in the child nobody would ever release it.
os.register_at_fork(after_in_child=forget)
