"""The decision on the pending deliveries of one channel: told now, not needed, or looked at again later."""

import enum
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple, Self
from uuid import UUID

from django.conf import settings
from django.db.models import Max
from django.utils import timezone

from proxyhealth.conf import conf
from proxyhealth.models import Channel, Delivery, Transition
from proxyhealth.notifications.deliveries import batches, read_labels
from proxyhealth.notifications.silences import Silences
from proxyhealth.utils import aware

# A proxy that crosses between good and bad so often in so much time is flapping, until it was calm for long.
FLAPS = 6
FLAP_TIME = timedelta(minutes=30)
CALM_TIME = timedelta(minutes=10)

TOO_SHORT = "The outage was shorter than the delay of the channel."
SILENCED = "The outage began and ended in a silence."
FLAPPING = "The proxy was flapping. A later change was told."
OVER = "The outage has ended, or is acknowledged."

# The states of a delivery after which its reader may know of it.
_TOLD = (Delivery.State.SENT, Delivery.State.FAILED)


class Row(NamedTuple):
    """A pending delivery of a transition that is in no message yet, with what counts for the decision."""

    pk: int
    number: int
    outage: int | None
    proxy: UUID
    name: str
    at: datetime
    began_at: datetime | None
    ended_at: datetime | None
    acknowledged_at: datetime | None


_COLUMNS = (
    *("pk", "number", "outage_id", "transition__proxy_uuid", "transition__proxy_name", "transition__at"),
    *("outage__began_at", "outage__ended_at", "outage__acknowledged_at"),
)


class Why(enum.Enum):
    """The reason for which a delivery waits."""

    SILENCED = enum.auto()
    DELAY = enum.auto()  # of the channel
    FLAPPING = enum.auto()


class Wait(NamedTuple):
    """A delivery waits ``until`` then, if nothing happens before."""

    why: Why
    until: datetime


@dataclass
class Plan:
    """The decision: the keys of deliveries to tell, with their number of flaps, and to drop, by reason.

    ``waits`` has those that wait, and why. ``look_at`` is the time at which something that waits may have to
    be told, or None if nothing waits.
    """

    tell: dict[int, int] = field(default_factory=dict)
    drop: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    waits: dict[int, Wait] = field(default_factory=dict)
    look_at: datetime | None = None

    def wait(self, rows: Iterable[Row], why: Why, until: datetime, look_at: datetime | None = None) -> None:
        """Let these rows wait ``until`` then. Look again at that time, or at ``look_at``."""
        self.waits.update((row.pk, Wait(why, until)) for row in rows)
        look_at = look_at or until
        self.look_at = look_at if self.look_at is None else min(self.look_at, look_at)


def plan(alias: str, channel: Channel, proxy: UUID | None = None) -> Plan:
    """Return what to do with the pending deliveries of a channel that has no message on its way.

    With ``proxy``, return only what concerns that proxy.
    """
    # Sorted and divided here: for that, SQLite would read all deliveries of the channel.
    pending = channel.deliveries.using(alias).pending().filter(message__isnull=True).order_by()
    if proxy:
        pending = pending.filter(transition__proxy_uuid=proxy)
    found = sorted(pending.values_list(*_COLUMNS))
    rows = [Row(*values) for values in found if values[_COLUMNS.index("transition__proxy_uuid")]]
    planner = _Planner.read(alias, channel, rows)
    proxies: dict[UUID, list[Row]] = defaultdict(list)
    for row in rows:
        proxies[row.proxy].append(row)
    for same in proxies.values():
        planner.decide(same)
    # Neither silences nor delays apply to alarms.
    alarms = {pk for pk, *_ in found}.difference(row.pk for row in rows)
    planner.plan.tell.update(dict.fromkeys(alarms, 0))
    return planner.plan


@dataclass
class _Planner:
    """The decisions for one channel, after a fixed number of queries for all of its rows.

    ``told`` has the outages that the channel was told of, ``crossings`` the times at which each proxy
    crossed between good and bad, and ``flapping_at`` the time of its last change that was told as flapping.
    """

    channel: Channel
    silences: Silences
    labels: Mapping[UUID, Mapping[str, str]]
    told: Collection[int]
    crossings: Mapping[UUID, Sequence[datetime]]
    flapping_at: Mapping[UUID, datetime]
    now: datetime
    plan: Plan = field(default_factory=Plan)

    @classmethod
    def read(cls, alias: str, channel: Channel, rows: Sequence[Row]) -> Self:
        proxies = {row.proxy for row in rows}
        return cls(
            channel,
            Silences.read(alias),
            read_labels(proxies),
            _told(alias, channel, {row.outage for row in rows if row.outage}),
            _crossings(alias, proxies, rows),
            _flapping_at(alias, channel),
            timezone.now(),
        )

    def decide(self, rows: Sequence[Row]) -> None:
        """Decide on the rows of one proxy, in their order."""
        kept = [row for row in rows if self._is_kept(row)]
        until = self._silenced_until(rows[0], self.now)
        if until and kept:
            # A silence may be deleted, or changed, at any time.
            soon = self.now + timedelta(seconds=conf.INTERVAL)
            self.plan.wait(kept, Why.SILENCED, until, min(until, soon))
            return
        ready = [row for row in kept if not self._is_early(row)]
        if ready:
            self._tell(ready)

    def _silenced_until(self, row: Row, moment: datetime) -> datetime | None:
        """Return the end of the silence that the proxy of this row has at ``moment``, or None."""
        until = self.silences.until(row.name, self.labels.get(row.proxy, {}), aware(moment))
        return until if until is None or settings.USE_TZ else timezone.make_naive(until)

    def _is_kept(self, row: Row) -> bool:
        """Return True if this row has to be told, now or later. Otherwise, drop it."""
        why = self._needless(row)
        if why:
            self.plan.drop[why].append(row.pk)
        return not why

    def _needless(self, row: Row) -> str:
        if row.number:
            return OVER if row.ended_at or row.acknowledged_at else ""
        if not (row.began_at and row.ended_at) or row.outage in self.told:
            return ""
        if row.ended_at - row.began_at < timedelta(seconds=self.channel.delay):
            return TOO_SHORT
        until = self._silenced_until(row, row.began_at)
        return SILENCED if until and row.ended_at <= until else ""

    def _is_early(self, row: Row) -> bool:
        if row.ended_at or row.began_at is None or row.outage in self.told:
            return False
        due_at = row.began_at + timedelta(seconds=self.channel.delay)
        if due_at > self.now:
            self.plan.wait([row], Why.DELAY, due_at)
        return due_at > self.now

    def _tell(self, rows: Sequence[Row]) -> None:
        """Tell these rows of a proxy, unless it is flapping: then only that, and later the last one."""
        flapping_at = self.flapping_at.get(rows[0].proxy)
        if flapping_at:
            episode = _until_calm([flapping_at, *(row.at for row in rows)], self.now) - 1
            if episode < 0:
                self.plan.wait(rows, Why.FLAPPING, max(flapping_at, rows[-1].at) + CALM_TIME)
                return
            self._tell_last(rows[:episode])
            rows = rows[episode:]
        crossings = self.crossings.get(rows[0].proxy, ()) if rows else ()
        flaps = max((_count(crossings, row.at) for row in rows if not row.number), default=0)
        if flaps >= FLAPS:
            self._tell_last(rows, flaps)
        else:
            self.plan.tell.update((row.pk, 0) for row in rows)

    def _tell_last(self, rows: Sequence[Row], flaps: int = 0) -> None:
        self.plan.drop[FLAPPING].extend(row.pk for row in rows[:-1])
        self.plan.tell.update((row.pk, flaps) for row in rows[-1:])


def _until_calm(times: Sequence[datetime], now: datetime) -> int:
    """Return the number of ``times`` before the first calm, or 0 if there was none yet."""
    for number, (earlier, later) in enumerate(pairwise([*times, now]), 1):
        if later - earlier >= CALM_TIME:
            return number
    return 0


def _count(times: Iterable[datetime], at: datetime) -> int:
    return sum(at - FLAP_TIME < time <= at for time in times)


def _told(alias: str, channel: Channel, outages: Collection[int]) -> set[int]:
    # Only by the outages: SQLite would read all deliveries of the channel, or of a state.
    rows = Delivery.objects.using(alias).order_by().values_list("outage_id", "channel_id", "state")
    parts = [rows.filter(outage__in=batch) for batch in batches(list(outages))]
    return {id for part in parts for id, pk, state in part if id and pk == channel.pk and state in _TOLD}


def _crossings(alias: str, proxies: Collection[UUID], rows: Sequence[Row]) -> Mapping[UUID, list[datetime]]:
    found: dict[UUID, list[datetime]] = defaultdict(list)
    first = min((row.at for row in rows), default=None)
    if first is None:
        return found
    token = int((aware(first) - FLAP_TIME).timestamp() * 1_000_000)
    transitions = Transition.objects.using(alias).filter(token__gte=token, ok_change__isnull=False)
    for batch in batches(list(proxies)):
        part = transitions.filter(proxy_uuid__in=batch).order_by("token")
        for proxy, at in part.values_list("proxy_uuid", "at"):
            found[proxy].append(at)
    return found


def _flapping_at(alias: str, channel: Channel) -> dict[UUID, datetime]:
    rows: Any = channel.deliveries.using(alias).filter(flaps__isnull=False, state__in=_TOLD).order_by()
    last = rows.values("transition__proxy_uuid").annotate(last=Max("transition__at"))
    return dict(last.values_list("transition__proxy_uuid", "last"))
