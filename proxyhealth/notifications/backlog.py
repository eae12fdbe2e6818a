"""The numbers of the channels for the metrics, as the database has them."""

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
from proxyhealth.models.rows import TimedRead
from proxyhealth.shared_copy import SharedCopy
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


def _refresh(previous: Sequence[Backlog] | None) -> tuple[Sequence[Backlog], float]:
    rows: Sequence[Backlog] = ()
    with suppress(Exception):  # a row that other programs have spoiled, or the database: no scrape must fail
        rows = _query(router.db_for_write(Delivery))
    return rows, conf.READ_INTERVAL


_copy = PerProcess[SharedCopy[Sequence[Backlog]]](SharedCopy)
_in_time = PerProcess(lambda: TimedRead(lambda: _copy.value.get(_refresh), "proxyhealth backlog"))

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
    rows = _copy.value.fresh()
    if rows is None:
        with suppress(TimeoutError, RuntimeError):  # the database hangs, or no thread can start
            rows = _in_time.value.result(_TIMEOUT)
    return rows or ()
