"""The alarms about the prober itself. The database decides which of all processes begins or ends one."""

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone

from proxyhealth.models import Alarm, Channel, Delivery, Watch
from proxyhealth.models.rows import using_database_of
from proxyhealth.texts import clean

logger = logging.getLogger(__name__)

_MAX_DETAIL = 1_000  # characters

# A fault that comes and goes must not tell people all day: after so many alarms in the last hour, the next
# one has to last for so many seconds before it is told.
_MAX_ALARMS = 3
_HOUR = timedelta(hours=1)
_LASTING = 600.0


def begin(kind: str, detail: str, seconds: float) -> bool:
    """Begin an alarm whose fault has lasted for ``seconds``, and make a delivery for each enabled channel.

    Return False if an alarm is open, also of another kind: nothing can be believed, and people know. Return
    False, too, if there were many in the last hour. Raise ``HistoryUnavailable``.
    """
    with using_database_of(Alarm) as alias:
        now = timezone.now()
        alarms = Alarm.objects.using(alias)
        if alarms.filter(ended_at=None).exists():
            return False
        if seconds < _LASTING and alarms.filter(began_at__gte=now - _HOUR).count() >= _MAX_ALARMS:
            return False
        alarm = Alarm(kind=kind, detail=clean(detail, _MAX_DETAIL), began_at=now - timedelta(seconds=seconds))
        try:
            with transaction.atomic(using=alias):
                alarm.save(using=alias, force_insert=True)
                _make_deliveries(alias, alarm, Channel.objects.using(alias).filter(enabled=True), 0, now)
        except IntegrityError:
            return False  # another process has begun it
    logger.error("alarm begun kind=%s seconds=%d detail=%s", kind, seconds, alarm.detail)
    return True


def end() -> None:
    """End all open alarms, and tell that to the channels that are told their begin.

    Raise ``HistoryUnavailable``.
    """
    with using_database_of(Alarm) as alias:
        for alarm in Alarm.objects.using(alias).filter(ended_at=None):
            _end(alias, alarm)


def _end(alias: str, alarm: Alarm) -> None:
    now = timezone.now()
    ended_at = max(now, alarm.began_at)  # the clock may have been set back
    with transaction.atomic(using=alias):
        if not Alarm.objects.using(alias).filter(pk=alarm.pk, ended_at=None).update(ended_at=ended_at):
            return  # another process has ended it
        told = Delivery.objects.using(alias).filter(
            alarm=alarm, number=0, state__in=[Delivery.State.PENDING, Delivery.State.SENT]
        )
        channels = Channel.objects.using(alias).filter(pk__in=told.values("channel"), enabled=True)
        _make_deliveries(alias, alarm, channels, 1, now)
    logger.info("alarm ended kind=%s seconds=%d", alarm.kind, (ended_at - alarm.began_at).total_seconds())


def _make_deliveries(
    alias: str, alarm: Alarm, channels: Iterable[Channel], number: int, now: datetime
) -> None:
    Delivery.objects.using(alias).bulk_create(
        Delivery(channel=channel, alarm=alarm, number=number, created_at=now, next_attempt_at=now)
        for channel in channels
    )


def are_untold() -> bool:
    """Return True if a delivery of an alarm is pending. Raise ``HistoryUnavailable``."""
    with using_database_of(Delivery) as alias:
        pending = Delivery.objects.using(alias).pending()
        return pending.filter(channel__enabled=True, alarm__isnull=False).exists()


def last_round() -> int | None:
    """Return the token of the last full round in the history. Raise ``HistoryUnavailable``."""
    with using_database_of(Watch) as alias:
        return Watch.objects.using(alias).values_list("token", flat=True).first()
