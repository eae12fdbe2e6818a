"""Deleting the rows of the history that are too old, in small steps, so that no round waits for a lock."""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from proxyhealth.conf import conf
from proxyhealth.history.uptime import WINDOWS
from proxyhealth.models import Alarm, Delivery, Gap, Outage, Transition, Watch
from proxyhealth.models.rows import using_database_of
from proxyhealth.storage.confirmation import moment

logger = logging.getLogger(__name__)

# The longest window of the uptime, which needs its gaps. Without their transitions, it begins later.
UPTIME_DAYS = max(WINDOWS.values())

_DAY = 86_400 * 1_000_000  # in the unit of tokens

# Rows of one statement, which is a transaction of its own.
_BATCH = 500


@dataclass
class Pruned:
    """The result: the number of deleted rows, and True if nothing is left to delete.

    ``before`` is the time before which rows are too old, or None without a history.
    """

    before: datetime | None
    transitions: int = 0
    outages: int = 0
    gaps: int = 0
    complete: bool = True


def prune(seconds: float | None = None, *, dry_run: bool = False) -> Pruned:
    """Delete what is older than ``HISTORY_DAYS``, for at most about ``seconds``.

    The deliveries of a transition are deleted with it. Keep the last transition of each proxy that is not
    removed, because it says what its status is; those whose signal is due; and those that a channel has to be
    told, or was told in an outage that is still open. With ``dry_run``, only count. Raise
    ``HistoryUnavailable``.
    """
    end = float("inf") if seconds is None else time.monotonic() + seconds
    with using_database_of(Transition) as alias:
        return _prune(alias, end, dry_run)


def _prune(alias: str, end: float, dry_run: bool) -> Pruned:
    # Not the clock of this machine: if that is wrong, it must not delete everything.
    last_round = Watch.objects.using(alias).order_by("pk").first()
    if last_round is None:
        return Pruned(None)
    before = last_round.token - int(conf.HISTORY_DAYS * _DAY)
    transitions, outages = _old_transitions(alias, before), _old_outages(alias, before)
    first_gap = last_round.token - int(max(conf.HISTORY_DAYS, UPTIME_DAYS) * _DAY)
    gaps = Gap.objects.using(alias).filter(token__lt=first_gap)
    last = Transition.objects.using(alias).last_of_each().filter(token__lt=before)
    kept = set(last.exclude(after=Transition.REMOVED).values_list("pk", flat=True))
    pruned = Pruned(moment(before))
    if dry_run:
        pruned.transitions = transitions.count() - transitions.filter(pk__in=kept).count()
        pruned.outages, pruned.gaps = outages.count(), gaps.count()
        return pruned
    pruned.transitions, pruned.complete = _delete(transitions, kept, end)
    if pruned.complete:
        pruned.outages, pruned.complete = _delete(outages, (), end)
    if pruned.complete:
        pruned.gaps, pruned.complete = _delete(gaps, (), end)
    _old_alarms(alias, before).delete()  # they are few
    if pruned.transitions or pruned.outages or pruned.gaps:
        numbers = pruned.transitions, pruned.gaps, pruned.outages
        logger.info("history pruned transitions=%d gaps=%d outages=%d", *numbers)
    return pruned


def _old_transitions(alias: str, before: int) -> QuerySet[Transition]:
    # Signals are tried for a day. One that has been due for longer has no receiver any more.
    long_ago = timezone.now() - timedelta(days=2)
    is_done = Q(signal_due_at__isnull=True) | Q(signal_due_at__lt=long_ago)
    # The end of an outage is told to those who were told of its begin.
    needed = Q(state=Delivery.State.PENDING) | Q(outage__isnull=False, outage__ended_at__isnull=True)
    deliveries = Delivery.objects.using(alias).filter(needed, transition=OuterRef("pk"))
    return Transition.objects.using(alias).filter(is_done, ~Exists(deliveries), token__lt=before)


def _old_outages(alias: str, before: int) -> QuerySet[Outage]:
    pending = Delivery.objects.using(alias).pending().filter(outage=OuterRef("pk"))
    return Outage.objects.using(alias).filter(~Exists(pending), token__lt=before, end_token__lt=before)


def _old_alarms(alias: str, before: int) -> QuerySet[Alarm]:
    time = moment(before)
    return Alarm.objects.using(alias).filter(
        ended_at__lt=time if settings.USE_TZ else timezone.make_naive(time)
    )


def _delete(rows: QuerySet[Any], kept: Collection[int], end: float) -> tuple[int, bool]:
    """Delete all but the ``kept`` rows. Return their number, and False if the time was over before."""
    deleted, token, pk = 0, 0, 0
    while (start := time.monotonic()) < end:
        # By the index on the token. Kept rows are read once, and not again for each batch.
        following = rows.filter(token__gte=token).exclude(token=token, pk__lte=pk).order_by("token", "pk")
        batch = list(following.values_list("token", "pk")[:_BATCH])
        if not batch:
            return deleted, True
        token, pk = batch[-1]
        _, counts = rows.filter(pk__in=[pk for _, pk in batch if pk not in kept]).delete()
        deleted += counts.get(rows.model._meta.label, 0)  # without the deliveries
        # SQLite gives its lock to whoever asks at the right moment. Leave it to others half of the time.
        time.sleep(time.monotonic() - start)
    return deleted, False
