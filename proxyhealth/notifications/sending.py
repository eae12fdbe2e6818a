"""Sending what is due: one thread per channel, so that a channel that hangs delays no other one.

A process claims a channel before it sends to it. If the process is killed, the claim expires, and the message
is sent again under the same id.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from django.db import Error as DatabaseError
from django.db import connections, transaction
from django.db.models import F, Max, Min, Q
from django.utils import timezone

from proxyhealth.conf import conf
from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.models import Channel, Delivery, Outage
from proxyhealth.models.rows import close_if_broken, using_database_of
from proxyhealth.notifications import transport
from proxyhealth.notifications.composing import (
    CLAIM_TIMEOUT,
    ClaimLost,
    hold_claim,
    is_due,
    is_resting,
    mine,
    next_message,
)
from proxyhealth.notifications.deliveries import LONGEST_PAUSE
from proxyhealth.notifications.messages import Message
from proxyhealth.texts import without_passwords
from proxyhealth.utils import aware

logger = logging.getLogger(__name__)

# In seconds:
_SHORTEST_PAUSE, _LONGEST_PAUSE = 5.0, 900.0  # between two attempts
_GIVE_UP_AFTER = 24 * 3_600
_LOOK_AGAIN = 5.0  # at a channel that is claimed

# After a clock was set forward, a message must not be given up at once.
_FEWEST_ATTEMPTS = 10

# Threads of one process. Other processes, and the next run, send what is left.
_MOST_THREADS = 50
_THREAD_NAME = "proxyhealth channel"

_DISABLED = "The channel is disabled."

# Of a message that is sent: others have it, so it is not sent again.
NOT_FOR_ALL = "not accepted for {}"


def send_due(patience: float | None = None) -> float | None:
    """Send what is due, and return the seconds until something is due again, or None if nothing is pending.

    Each channel has a thread, which goes on if it needs longer than ``patience`` seconds. Without
    ``patience``, the channels have their turn in this thread. Raise ``HistoryUnavailable``.
    """
    with using_database_of(Delivery) as alias:
        _drop_disabled(alias)
        threads = [thread for pk in _due_channels(alias) if (thread := _begin(alias, pk, patience))]
        end = time.monotonic() + (patience or 0)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return seconds_until_due()


def seconds_until_due() -> float | None:
    """Return the seconds until a pending delivery is due: 0 for now, None for never.

    Raise ``HistoryUnavailable``.
    """
    with using_database_of(Delivery) as alias:
        moments = [moment for _, moment in _moments(alias)]
    if not moments:
        return None
    return 0.0 if any(map(is_due, moments)) else (min(moments) - timezone.now()).total_seconds()


def look_again() -> None:
    """Make all deliveries due that wait, because a silence or a channel was changed.

    Raise ``HistoryUnavailable``.
    """
    with using_database_of(Delivery) as alias:
        waiting = Delivery.objects.using(alias).pending().filter(message__isnull=True)
        waiting.update(next_attempt_at=timezone.now())


def may_remind() -> bool:
    """Return True if a reminder may be due. Raise ``HistoryUnavailable``."""
    with using_database_of(Delivery) as alias:
        if not Channel.objects.using(alias).filter(enabled=True, remind_every__gt=0).exists():
            return False
        return Outage.objects.using(alias).open().filter(acknowledged_at__isnull=True).exists()


def _due_channels(alias: str) -> list[int]:
    due = [pk for pk, moment in _moments(alias) if is_due(moment)]
    if may_remind():
        reminding = Channel.objects.using(alias).filter(enabled=True, remind_every__gt=0)
        due += reminding.exclude(pk__in=due).values_list("pk", flat=True)
    return due


def _moments(alias: str) -> list[tuple[int, datetime]]:
    """Return the channels with pending deliveries, and when each has to be looked at.

    Those of a disabled channel have to be dropped.
    """
    rows: Any = Delivery.objects.using(alias).pending().order_by()
    found = rows.values_list("channel", "channel__rests_until", "channel__claimed_until").annotate(
        first=Min("next_attempt_at"), begun=Min("next_attempt_at", filter=Q(message__isnull=False))
    )
    return [(pk, _moment(*times)) for pk, *times in found]


def _moment(
    rests_until: datetime | None,
    claimed_until: datetime | None,
    first: datetime | None,
    begun: datetime | None,
) -> datetime:
    now = timezone.now()
    moment = begun or first or now
    if not begun and rests_until and is_resting(rests_until):
        moment = max(moment, rests_until)
    if claimed_until and _is_claimed(claimed_until):
        moment = max(moment, now + timedelta(seconds=_LOOK_AGAIN))
    return moment


def _is_claimed(until: datetime) -> bool:
    now = timezone.now()
    # A claim for longer is from before the clock was set back.
    return now < until <= now + timedelta(seconds=2 * CLAIM_TIMEOUT)


def _drop_disabled(alias: str) -> None:
    pending = Delivery.objects.using(alias).pending().filter(channel__enabled=False)
    if pending.exists():
        pending.update(state=Delivery.State.DROPPED, next_attempt_at=None, error=_DISABLED)


def _begin(alias: str, pk: int, patience: float | None) -> threading.Thread | None:
    """Claim a channel, and begin to send to it. Return the thread, or None."""
    if patience is not None and _count_threads() >= _MOST_THREADS:
        return None
    claim = _claim(alias, pk)
    if claim is None:
        return None
    if patience is None:
        _serve(alias, pk, claim)
        return None
    thread = threading.Thread(
        target=_serve_in_thread, args=(alias, pk, claim), name=_THREAD_NAME, daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # no more threads
        _release(alias, pk, claim)
        return None
    return thread


def _count_threads() -> int:
    return sum(thread.name == _THREAD_NAME for thread in threading.enumerate())


def _claim(alias: str, pk: int) -> UUID | None:
    now = timezone.now()
    latest = now + timedelta(seconds=2 * CLAIM_TIMEOUT)
    is_free = Q(claim__isnull=True) | Q(claimed_until__lte=now) | Q(claimed_until__gt=latest)
    free = Channel.objects.using(alias).filter(is_free, pk=pk, enabled=True)
    claim = uuid4()
    until = now + timedelta(seconds=CLAIM_TIMEOUT)
    return claim if free.update(claim=claim, claimed_until=until) else None


def _release(alias: str, pk: int, claim: UUID) -> None:
    claimed = Channel.objects.using(alias).filter(pk=pk, claim=claim)
    claimed.update(claim=None, claimed_until=None)


def _serve_in_thread(alias: str, pk: int, claim: UUID) -> None:
    try:
        _serve(alias, pk, claim)
    finally:
        connections.close_all()  # those of this thread


def _serve(alias: str, pk: int, claim: UUID) -> None:
    """Send the next message of a claimed channel, if there is one, and release the claim. Never raise."""
    try:
        channel = Channel.objects.using(alias).filter(pk=pk, claim=claim).first()
        if channel and (message := next_message(alias, channel)):
            hold_claim(alias, channel)  # to compose it may have taken long
            _send(alias, channel, message)
    except ClaimLost:
        logger.info("the claim of a channel was lost, another process serves it channel=%d", pk)
    except DatabaseError as error:
        close_if_broken(alias)
        logger.warning("a channel is served later channel=%d error=%s", pk, without_passwords(error))
    except Exception:
        logger.exception("a channel cannot be served channel=%d", pk)
    with suppress(DatabaseError):  # the claim expires
        _release(alias, pk, claim)


def _send(alias: str, channel: Channel, message: Message) -> None:
    try:
        receipt = transport.send(channel, message)
    except DeliveryFailed as failure:
        error = failure
    except Exception as unexpected:
        logger.exception("a message could not be sent, because of an error of proxyhealth")
        # Its text may have a secret.
        error = DeliveryFailed(f"an unexpected error: {type(unexpected).__name__}")
    else:
        _repeat(alias, lambda: _succeeded(alias, channel, message, receipt.refused))
        return
    _repeat(alias, lambda: _failed(alias, channel, message, error))


def _repeat(alias: str, write: Callable[[], None]) -> None:
    """Write the result of an attempt. If the database fails for a moment, the message is not sent again."""
    for attempt in range(3):
        try:
            write()
            break
        except DatabaseError:
            connection = connections[alias]
            if attempt == 2 or connection.in_atomic_block:
                raise
            connection.close()
            time.sleep(0.5)


def _deliveries(alias: str, channel: Channel, message: Message) -> Any:
    return channel.deliveries.using(alias).pending().filter(message=message.id)


def _succeeded(alias: str, channel: Channel, message: Message, refused: str) -> None:
    now = timezone.now()
    error = NOT_FOR_ALL.format(refused) if refused else ""
    # Whoever has the claim: it was sent.
    row = Channel.objects.using(alias).filter(pk=channel.pk)
    with transaction.atomic(using=alias):
        row.update(
            rests_until=now + timedelta(seconds=conf.GROUP_INTERVAL), last_success_at=now, last_error=error
        )
        count = _deliveries(alias, channel, message).update(
            state=Delivery.State.SENT,
            sent_at=now,
            attempts=F("attempts") + 1,
            next_attempt_at=None,
            error=error,
        )
        row.update(sent_count=F("sent_count") + count)
    logger.info("message sent channel=%d message=%s deliveries=%d", channel.pk, message.id, count)


def _failed(alias: str, channel: Channel, message: Message, error: DeliveryFailed) -> None:
    now, text = timezone.now(), str(error)
    age = (aware(now) - message.made_at).total_seconds()
    pause = _pause(age, error.retry_after)
    row, deliveries = mine(alias, channel), _deliveries(alias, channel, message)
    with transaction.atomic(using=alias):
        if not row.update(last_failure_at=now, last_error=text):
            raise ClaimLost
        deliveries.update(
            attempts=F("attempts") + 1, error=text, next_attempt_at=now + timedelta(seconds=pause)
        )
        attempts = deliveries.aggregate(attempts=Max("attempts"))["attempts"] or 1
        is_given_up = error.is_final or (age >= _GIVE_UP_AFTER and attempts >= _FEWEST_ATTEMPTS)
        if is_given_up:
            count = deliveries.update(state=Delivery.State.FAILED, next_attempt_at=None)
            row.update(failed_count=F("failed_count") + count)
        if error.is_final:
            # Unless somebody has corrected the target meanwhile.
            row.filter(kind=channel.kind, target=channel.target).update(enabled=False)
    logger.log(
        logging.ERROR if is_given_up else logging.WARNING,
        "message not sent, %s channel=%d message=%s attempt=%d error=%s",
        "given up" if is_given_up else f"tried again in {pause:.0f} s",
        *(channel.pk, message.id, attempts, text),
    )


def _pause(age: float, demanded: float | None) -> float:
    """Return the seconds until the next attempt of a message that is ``age`` seconds old."""
    if demanded is not None:
        return min(max(demanded, _SHORTEST_PAUSE), LONGEST_PAUSE)
    # After an hour away: at most 18 s, then the rest of the channel, and all that is left, within a minute.
    return min(max(age / 200, _SHORTEST_PAUSE), _LONGEST_PAUSE)
