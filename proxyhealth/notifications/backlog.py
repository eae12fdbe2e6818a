"""The numbers of the channels for the metrics, as the database has them."""

import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from django.db import Error as DatabaseError
from django.db import connections, router
from django.db.models import Count, Min, OuterRef, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from proxyhealth import isolation
from proxyhealth.conf import conf
from proxyhealth.models import Channel, Delivery
from proxyhealth.utils import PerProcess

_TIMEOUT = 1.0  # seconds to wait for the database: a scrape must not hang with it


class Backlog(NamedTuple):
    """The deliveries of one channel: the numbers of those that are pending, sent, and given up.

    ``due_since`` is the time since which one of the pending could have been accepted. It is in the future if
    all of them wait.
    """

    channel: str
    pending: int
    due_since: datetime | None
    sent: int
    failed: int

    @property
    def overdue(self) -> float:
        """The seconds since which a delivery is due, or 0."""
        since = self.due_since
        return max(0.0, (timezone.now() - since).total_seconds()) if since else 0.0


def _query(alias: str) -> list[Backlog]:
    rows = Delivery.objects.using(alias).pending().filter(channel=OuterRef("pk")).order_by()
    pending: Any = rows.values("channel")
    since = pending.annotate(value=Min(Coalesce("message_at", "next_attempt_at")))
    numbers = Channel.objects.using(alias).values_list(
        "name",
        Coalesce(Subquery(pending.annotate(value=Count("pk")).values("value")), 0),
        Subquery(since.values("value")),
        "sent_count",
        "failed_count",
    )
    return [Backlog(*row) for row in numbers]


class _Copy:
    """The numbers as this process last read them. A database that hangs keeps one thread."""

    def __init__(self) -> None:
        self._rows: Sequence[Backlog] = ()
        self._begun_at = -math.inf
        self._done = threading.Event()
        self._done.set()

    def read(self, alias: str) -> Sequence[Backlog]:
        now = time.monotonic()
        if self._done.is_set() and now - self._begun_at >= conf.READ_INTERVAL:
            self._begun_at = now
            self._done.clear()
            try:
                threading.Thread(
                    target=self._refresh, args=[alias], name="proxyhealth backlog", daemon=True
                ).start()
            except RuntimeError:  # no more threads
                self._done.set()
        return self._rows if self._done.wait(max(0.0, self._begun_at + _TIMEOUT - now)) else ()

    def _refresh(self, alias: str) -> None:
        try:
            self._rows = _query(alias)
        except Exception:
            self._rows = ()  # other metrics and logs tell of the database
        finally:
            connections.close_all()  # those of this thread
            self._done.set()


_copy = PerProcess(_Copy)

# Drops this process's copy.
forget = _copy.reset


def read() -> Sequence[Backlog]:
    """Return the numbers of each channel, with one query per ``READ_INTERVAL``.

    Return nothing if the database fails or hangs, and in a test that is isolated.
    """
    if isolation.is_isolated():
        return ()
    alias = router.db_for_write(Delivery)
    if connections[alias].in_atomic_block:
        with suppress(DatabaseError):
            return _query(alias)  # only this thread sees the rows of its transaction
        return ()
    return _copy.value.read(alias)
