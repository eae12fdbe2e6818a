"""Composing the next message of a channel, and writing down what it contains before it is sent."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from proxyhealth.display import name_of
from proxyhealth.models import Alarm, Channel, Delivery, Outage, Transition, WorkspaceProxy
from proxyhealth.notifications.deliveries import LONGEST_PAUSE, batches
from proxyhealth.notifications.messages import AlarmChange, Change, Event, Message
from proxyhealth.notifications.planning import FLAP_TIME, Plan, plan
from proxyhealth.report import HealthReport
from proxyhealth.selectors import Selector
from proxyhealth.snapshot import NO_LABELS, Proxy, labels_of
from proxyhealth.utils import aware

CLAIM_TIMEOUT = 30  # seconds: a message takes 10 s at most

# Deliveries of one message. A message of more would be too large for mail servers, and for people.
_LARGEST = 5_000


class ClaimLost(Exception):
    """Another process has claimed the channel, or it was disabled or deleted."""


def next_message(alias: str, channel: Channel) -> Message | None:
    """Return the message that the claimed channel must be sent now, or None.

    One whose first attempt failed, or was cut off, comes before all newer ones. Raise ``ClaimLost``.
    """
    pending = channel.deliveries.using(alias).pending()
    begun = pending.filter(message__isnull=False).order_by("message_at", "message")
    id, due_at = begun.values_list("message", "next_attempt_at").first() or (None, None)
    if id is None:
        id = _begin_message(alias, channel)
    elif due_at and not is_due(due_at):
        return None
    return _message(alias, channel, id) if id else None


def is_due(moment: datetime) -> bool:
    """Return True if ``moment`` has come, or is so late that the clock was set back."""
    now = timezone.now()
    return not now < moment <= now + timedelta(seconds=LONGEST_PAUSE + 60)


def _begin_message(alias: str, channel: Channel) -> UUID | None:
    """Decide on all pending deliveries, write the decision, and return the id of the new message."""
    if channel.rests_until and is_resting(channel.rests_until):
        return None
    if channel.remind_every:
        _make_reminders(alias, channel)
    decision = plan(alias, channel)
    id = uuid4() if decision.tell else None
    with transaction.atomic(using=alias):
        hold_claim(alias, channel)  # first: it locks the channel, and on SQLite the database
        _write(alias, channel, decision, id)
    return id


def hold_claim(alias: str, channel: Channel) -> None:
    """Let the claim of this process last for ``CLAIM_TIMEOUT`` from now. Raise ``ClaimLost``."""
    if not mine(alias, channel).update(claimed_until=timezone.now() + timedelta(seconds=CLAIM_TIMEOUT)):
        raise ClaimLost


def mine(alias: str, channel: Channel) -> Any:
    """Return the row of the channel, if it is enabled, and if its claim is the one that this process made."""
    return Channel.objects.using(alias).filter(pk=channel.pk, claim=channel.claim, enabled=True)


def is_resting(rests_until: datetime) -> bool:
    """Return True if a channel that rests until then rests now. The clock may have been set back."""
    return not is_due(rests_until)


def _write(alias: str, channel: Channel, decision: Plan, id: UUID | None) -> None:
    now = timezone.now()
    pending = channel.deliveries.using(alias).pending().filter(message__isnull=True)
    for why, pks in decision.drop.items():
        for batch in batches(pks):
            pending.filter(pk__in=batch).update(state=Delivery.State.DROPPED, next_attempt_at=None, error=why)
    told = sorted(decision.tell)[:_LARGEST]
    for batch in batches(told):
        if pending.filter(pk__in=batch).update(message=id, message_at=now, next_attempt_at=now) < len(batch):
            raise ClaimLost  # somebody else has decided on them, or deleted them
    for flaps in {decision.tell[pk] for pk in told} - {0}:
        for batch in batches([pk for pk in told if decision.tell[pk] == flaps]):
            channel.deliveries.using(alias).filter(pk__in=batch).update(flaps=flaps)
    if len(told) == len(decision.tell) and decision.look_at:
        latest = now + timedelta(seconds=LONGEST_PAUSE)
        pending.filter(next_attempt_at__lte=now).update(next_attempt_at=min(decision.look_at, latest))


def _make_reminders(alias: str, channel: Channel) -> None:
    """Make a reminder of each open outage that the channel was told of, and not for ``remind_every``."""
    now = timezone.now()
    rows: Any = (
        channel.deliveries.using(alias)
        .order_by()
        .filter(outage__in=Outage.objects.using(alias).open().filter(acknowledged_at__isnull=True))
    )
    waiting = set(rows.pending().values_list("outage_id", flat=True))
    told = rows.filter(state=Delivery.State.SENT).values("outage_id")
    told = told.annotate(last=Max("sent_at"), number=Max("number"), transition=Max("transition_id"))
    latest = now - timedelta(seconds=channel.remind_every)
    due = told.filter(last__lte=latest).values_list("outage_id", "transition", "number")
    Delivery.objects.using(alias).bulk_create(
        [
            Delivery(
                channel=channel,
                transition_id=transition,
                outage_id=outage,
                number=number + 1,
                created_at=now,
                next_attempt_at=now,
            )
            for outage, transition, number in due
            if outage not in waiting
        ],
        ignore_conflicts=True,
        batch_size=500,
    )


def _message(alias: str, channel: Channel, id: UUID) -> Message | None:
    """Return the message with this id, or None if its deliveries were deleted meanwhile."""
    pending = channel.deliveries.using(alias).pending().filter(message=id)
    found = pending.select_related("transition", "outage", "alarm").order_by()
    deliveries = sorted(found, key=attrgetter("pk"))
    if not deliveries:
        return None
    rows = [(each, each.transition) for each in deliveries if each.transition]
    proxies = _proxies_of({row.proxy_uuid for _, row in rows})
    changes = [_change(each, row, proxies.get(row.proxy_uuid)) for each, row in rows]
    alarms = [_alarm_change(each.alarm, each.number) for each in deliveries if each.alarm]
    bad, total = _counts(alias, channel)
    return Message(
        id=id,
        event=_event(changes, alarms),
        channel=channel.name,
        made_at=aware(deliveries[0].message_at or timezone.now()),
        changes=changes,
        alarms=alarms,
        bad=bad,
        total=total,
    )


def _event(changes: Sequence[Change], alarms: Sequence[AlarmChange]) -> Event:
    if not changes:
        return Event.PROBER
    if alarms or len(changes) > 1:
        return Event.DIGEST
    return Event.REMINDER if changes[0].number else Event.STATUS_CHANGED


def _proxies_of(ids: Collection[UUID]) -> dict[UUID, Proxy]:
    rows = WorkspaceProxy.objects.primary()
    parts = [rows.filter(pk__in=batch).as_proxies() for batch in batches(list(ids))]
    return {proxy.id: proxy for part in parts for proxy in part}


def _change(delivery: Delivery, row: Transition, proxy: Proxy | None) -> Change:
    outage = delivery.outage
    end = delivery.message_at if delivery.number else row.at
    since = outage.began_at if outage else None
    return Change(
        transition=row.pk,
        proxy_id=row.proxy_uuid,
        proxy_name=row.proxy_name,
        display_name=name_of(proxy) if proxy else row.proxy_name,
        before=row.before,
        after=row.after,
        at=aware(row.at),
        since=aware(since) if since else None,
        outage_seconds=(end - since).total_seconds() if since and end else None,
        outage=outage.pk if outage else None,
        reason=row.reason,
        report=_report(row.report),
        number=delivery.number,
        flaps=delivery.flaps or 0,
        flap_seconds=FLAP_TIME.total_seconds(),
        labels=proxy.labels if proxy else NO_LABELS,
    )


def _report(report: Any) -> HealthReport:
    # Other programs may have written anything.
    lists = [report.get(key) if isinstance(report, dict) else None for key in ("errors", "warnings")]
    errors, warnings = ([text for text in texts or () if isinstance(text, str)] for texts in lists)
    return HealthReport.stored(errors, warnings)


def _alarm_change(alarm: Alarm, number: int) -> AlarmChange:
    ended_at = aware(alarm.ended_at) if number and alarm.ended_at else None
    return AlarmChange(alarm.pk, alarm.kind, alarm.detail, aware(alarm.began_at), ended_at)


def _counts(alias: str, channel: Channel) -> tuple[int, int]:
    """Return the number of proxies of the channel that are in an outage now, and of all of them."""
    selector = Selector.parse(channel.proxies)
    active = WorkspaceProxy.objects.primary().active()
    broken = Outage.objects.using(alias).open().order_by()
    if selector.is_empty:
        return broken.count(), active.count()
    chosen = {
        pk
        for pk, name, labels in active.values_list("pk", "name", "labels")
        if selector.matches(name, labels_of(labels))
    }
    return len(chosen.intersection(broken.values_list("proxy_uuid", flat=True))), len(chosen)
