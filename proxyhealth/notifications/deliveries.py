"""Making the deliveries of new transitions, in the transaction that writes these."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from django.utils import timezone

from proxyhealth.models import Channel, Delivery, Outage, Transition, WorkspaceProxy
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.selectors import Selector
from proxyhealth.snapshot import labels_of
from proxyhealth.statuses import Status
from proxyhealth.utils import aware

T = TypeVar("T")

BATCH = 500  # rows or ids in one query: SQLite has a limit

# Seconds, the longest time until anybody looks at a pending delivery again. One that is due later than this
# is from before the clock was set back.
LONGEST_PAUSE = 3_600.0

# The first statuses of a new proxy, if there is nothing to repair.
_FIRST = {(Status.UNKNOWN.value, after.value) for after in (Status.OK, Status.UNREGISTERED)}


def make(alias: str, rows: Sequence[Transition], outages: Sequence[Outage | None]) -> int:
    """Make the pending deliveries of these transitions, for each channel that tells them.

    ``outages`` has the outage of each row, or None. Rows whose status is older than the history must not be
    among them. Call it in the transaction that wrote the rows. Return the number of deliveries.
    """
    channels = list(Channel.objects.using(alias).filter(enabled=True)) if rows else []
    if not channels:
        return 0
    made = list(_deliveries(alias, channels, rows, outages))
    # Another process may record the same rows.
    Delivery.objects.using(alias).bulk_create(made, ignore_conflicts=True, batch_size=BATCH)
    return len(made)


def _deliveries(
    alias: str, channels: Sequence[Channel], rows: Sequence[Transition], outages: Sequence[Outage | None]
) -> Iterator[Delivery]:
    labels = read_labels({row.proxy_uuid for row in rows})
    last = _last_told(alias, {outage.pk for outage in outages if outage})
    now = timezone.now()
    for row, outage in zip(rows, outages, strict=True):
        if (row.before, row.after) in _FIRST:
            continue
        for channel in channels:
            key = (channel.pk, outage.pk if outage else None)
            # A channel that was told of an outage is told of its end, and of a change of its status, also if
            # it is no longer told of that proxy otherwise.
            told = outage is not None and last.get(key) in BAD_STATUSES
            is_new = row.after in channel.statuses and _is_heard(channel, row, labels.get(row.proxy_uuid, {}))
            if told or is_new:
                last[key] = row.after
                yield Delivery(
                    channel=channel,
                    transition=row,
                    outage=outage,
                    created_at=now,
                    next_attempt_at=_first_look(channel, row),
                )


def _is_heard(channel: Channel, row: Transition, labels: Mapping[str, str]) -> bool:
    is_new = aware(row.at) >= aware(channel.listens_since)
    return is_new and Selector.parse(channel.proxies).matches(row.proxy_name, labels)


def _first_look(channel: Channel, row: Transition) -> datetime:
    now = timezone.now()
    if row.after not in BAD_STATUSES or row.before in BAD_STATUSES:
        return now
    pause = timedelta(seconds=min(channel.delay, LONGEST_PAUSE))
    return min(max(now, row.at + pause), now + pause)


def _last_told(alias: str, outages: Collection[int]) -> dict[tuple[int, int | None], str]:
    """Return the status that each channel was, or will be, told last of each outage."""
    told: dict[tuple[int, int | None], str] = {}
    for batch in batches(list(outages)):
        rows = Delivery.objects.using(alias).filter(outage__in=batch, number=0)
        rows = rows.exclude(state=Delivery.State.DROPPED).order_by("pk")
        for channel, outage, after in rows.values_list("channel_id", "outage_id", "transition__after"):
            told[channel, outage] = after
    return told


def read_labels(ids: Collection[UUID]) -> dict[UUID, Mapping[str, str]]:
    """Return the labels of these proxies. Those whose row is gone have none."""
    # Not by a join: a router may have put the tables into two databases.
    rows = WorkspaceProxy.objects.primary()
    parts = [rows.filter(pk__in=batch).values_list("pk", "labels") for batch in batches(list(ids))]
    return {pk: labels_of(labels) for part in parts for pk, labels in part}


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the items in parts of ``BATCH``."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
