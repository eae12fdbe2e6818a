"""Messages: what is told to one channel at once, as values. Each kind of channel gives them its own form."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from proxyhealth.report import EMPTY_REPORT, HealthReport


class Event(enum.StrEnum):
    """The kind of a message, as webhooks get it."""

    STATUS_CHANGED = "status_changed"
    REMINDER = "reminder"
    DIGEST = "digest"  # more than one change, or changes and reminders
    PROBER = "prober"  # an alarm about the prober itself
    TEST = "test"


@dataclass(frozen=True)
class Change:
    """One change of the status of a proxy, or a reminder of it.

    ``since`` is the begin of the outage, for a bad status and for its end, else None. ``outage_seconds`` is
    its length until ``at`` (of a reminder: until the message was made), or None. ``number`` is 0 for a
    change, and counts reminders from 1. ``flaps`` is the number of changes in the last ``flap_seconds`` if
    the proxy is flapping, else 0. ``transition`` is the id of the row, which stays the same in repeats.
    ``labels`` are those of the proxy.
    """

    transition: int
    proxy_id: UUID
    proxy_name: str
    display_name: str
    before: str
    after: str
    at: datetime
    since: datetime | None = None
    outage_seconds: float | None = None
    outage: int | None = None
    reason: str = ""
    report: HealthReport = EMPTY_REPORT
    number: int = 0
    flaps: int = 0
    flap_seconds: float = 30 * 60
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AlarmChange:
    """The begin or the end of an alarm about the prober itself. ``ended_at`` is None for a begin."""

    alarm: int
    kind: str
    detail: str
    began_at: datetime
    ended_at: datetime | None = None


class Receipt(NamedTuple):
    """The answer of the other side that has accepted a message.

    ``refused`` names the recipients that it has not accepted the message for, with its words.
    """

    answer: str
    refused: str = ""


@dataclass(frozen=True)
class Message:
    """All that one channel is told at once. Repeats have the same ``id``, and the same contents.

    ``changes`` are in the order in which they happened. ``bad`` and ``total`` are the numbers of proxies of
    this channel that are in an outage now, and of all of its proxies.
    """

    id: UUID
    event: Event
    channel: str
    made_at: datetime
    changes: Sequence[Change] = ()
    alarms: Sequence[AlarmChange] = ()
    bad: int = 0
    total: int = 0
