"""The uptime of proxies: the time in which they were ``ok``, as a part of the time that is known.

The known time is that of the clock of ``Transition.watched``, which stands still while nobody watched. The
transitions of a proxy form a chain: each begins with the status with which the one before it ended. So if the
status at the beginning of a window is known, sums over the transitions in the window are enough: whatever
becomes ``ok`` is so until the end, less the time from which it no longer is.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import neg, sub
from typing import NamedTuple, Self, TypeAlias, TypeVar
from uuid import UUID

from django.db.models import F, Min, Model, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce

from proxyhealth.conf import conf
from proxyhealth.models import Gap, Transition, Watch, WorkspaceProxy
from proxyhealth.snapshot import Snapshot
from proxyhealth.statuses import Status
from proxyhealth.utils import FrozenMapping

M = TypeVar("M", bound=Model)

_SECOND = 1_000_000  # in the unit of tokens
_DAY = 86_400 * _SECOND
_MAX_VALUES = 500

WINDOWS: Mapping[str, int] = FrozenMapping({"24h": 1, "7d": 7, "30d": 30, "90d": 90})
"""The windows of time until now, by name: their lengths in days."""


class Uptime(NamedTuple):
    """The seconds in which a proxy was ``ok``, of those in which its status is known.

    A status is known if it is ``ok``, ``unhealthy`` or ``unreachable``, and the snapshot was fresh.
    """

    up: float
    known: float

    @property
    def ratio(self) -> float | None:
        """The part of the known time, from 0 to 1, or None if nothing is known."""
        return self.up / self.known if self.known else None


Uptimes = Mapping[str, Uptime]

NOTHING: Uptimes = FrozenMapping(dict.fromkeys(WINDOWS, Uptime(0.0, 0.0)))
"""The uptime of a proxy of which nothing is known, in each window."""


def uptimes(snapshot: Snapshot, ids: Iterable[UUID] | None = None) -> Mapping[UUID, Uptimes]:
    """Return the uptime of each proxy in each of the ``WINDOWS``.

    ``ids`` are by default those of all rows of the proxies, also of deleted ones. Of ``snapshot``, only its
    times count: the statuses are those of the history.
    """
    proxies = WorkspaceProxy.objects.primary().order_by()
    ids = set(proxies.values_list("pk", flat=True) if ids is None else ids)
    found = dict.fromkeys(ids, NOTHING)
    clock = _Clock.read(snapshot)
    if clock is None:
        return FrozenMapping(found)
    period = clock.period()
    up = _changes("ok_change", period, ids)
    known = _changes("known_change", period, ids)
    # A proxy that is only in ``up`` was always known, and one that is only in ``known`` was never ``ok``.
    for id, changes in up.items():
        if id in found:
            found[id] = period.uptimes(changes, known.get(id))
    for id, changes in known.items():
        if id in found and id not in up:
            found[id] = period.uptimes(_NEVER, changes)
    unchanged = ids - up.keys() - known.keys()
    kinds = {Status.OK.value: period.uptimes(_ALWAYS, None)}
    kinds[Status.UNHEALTHY] = kinds[Status.UNREACHABLE] = period.uptimes(_NEVER, None)
    for id, status in _first_statuses(period, unchanged):
        if id in unchanged:
            found[id] = kinds.get(status or "", NOTHING)
    return FrozenMapping(found)


def uptime_of(proxy_id: UUID, snapshot: Snapshot) -> Mapping[str, float | None]:
    """Return the ratio of the uptime of a proxy in each of the ``WINDOWS``, or None if nothing is known."""
    windows = uptimes(snapshot, [proxy_id])[proxy_id]
    return FrozenMapping({name: uptime.ratio for name, uptime in windows.items()})


def total(parts: Iterable[Uptimes]) -> Uptimes:
    """Return the sums of these uptimes in each of the ``WINDOWS``."""
    parts = list(parts)
    return FrozenMapping(
        {
            name: Uptime(sum(part[name].up for part in parts), sum(part[name].known for part in parts))
            for name in WINDOWS
        }
    )


class _Clock(NamedTuple):
    """The known time at each moment, in the microseconds of tokens.

    The last full round in the history has ``token``. Of the time from then until ``now``, the first ``fresh``
    microseconds are known. Before it, all is known but the ``gaps``: pairs of beginning and end.
    """

    token: int
    watched: int
    now: int
    fresh: int
    gaps: list[tuple[int, int]]

    @classmethod
    def read(cls, snapshot: Snapshot) -> Self | None:
        """Return the clock of the history, or None if it has not begun."""
        database = Transition.objects.primary().db
        watch = Watch.objects.using(database).filter(pk=1).first()
        if watch is None:
            return None
        elapsed = _elapsed(watch, snapshot)
        fresh = 0 if snapshot.offline or snapshot.fault else min(elapsed, int(conf.STALE_AFTER * _SECOND))
        now = watch.token + elapsed
        # Durations, because local times of a database without time zones have no exact differences.
        gaps = (
            Gap.objects.using(database)
            .filter(token__gt=now - max(WINDOWS.values()) * _DAY, token__lte=watch.token)
            .order_by()
            .values_list("token", "microseconds")
        )
        return cls(watch.token, watch.watched, now, fresh, [(end - length, end) for end, length in gaps])

    def period(self) -> "_Period":
        kept = [min(days, conf.HISTORY_DAYS) for days in WINDOWS.values()]  # older rows may be deleted
        begins = [self.watched_at(self.now - int(days * _DAY)) for days in kept]
        end = self.watched_at(self.now)
        return _Period(begins, end, [end - begin for begin in begins])

    def watched_at(self, moment: int) -> int:
        if moment >= self.token:
            return self.watched + min(moment - self.token, self.fresh)
        missed = sum(end - max(begin, moment) for begin, end in self.gaps if end > moment)
        return self.watched - (self.token - moment - missed)


def _elapsed(watch: Watch, snapshot: Snapshot) -> int:
    """Return the microseconds since the last full round in the history.

    The snapshot may have a later round, or an earlier one. Both have their known times, so that no clock of
    this machine is needed, except without a snapshot.
    """
    age = snapshot.age
    if snapshot.watched is None or age is None:
        return max(0, time.time_ns() // 1000 - watch.token)
    return max(0, snapshot.watched + round(age * _SECOND) - watch.watched)


# The changes of a proxy in the windows, to some statuses (1) and from them (-1): a number that has the same
# remainder by 4 as the first change, the sum of the changes, and for each window the sum of those in it, each
# multiplied by the known time until then.
Changes: TypeAlias = Sequence[int]

_ALWAYS: Changes = (-1, 0, *[0] * len(WINDOWS))
_NEVER: Changes = (1, 0, *[0] * len(WINDOWS))


class _Period(NamedTuple):
    """The known time at the beginning of each window, at the end of all of them, and in between."""

    begins: list[int]
    end: int
    lengths: list[int]

    @property
    def begin(self) -> int:
        return min(self.begins)

    def uptimes(self, up: Changes, known: Changes | None) -> Uptimes:
        """Return the uptime of a proxy with these changes to ``ok``, and to the statuses that are known."""
        knowns = self.lengths if known is None else list(map(min, self._times(known), self.lengths))
        ups = map(min, self._times(up), knowns)
        return dict(zip(WINDOWS, map(_in_seconds, ups, knowns), strict=True))

    def _times(self, changes: Changes) -> list[int]:
        first, total, *sums = changes
        is_now = total + (first % 4 == 3)
        times = list(map(sub, self.lengths, sums) if is_now else map(neg, sums))
        # Rows that do not fit, for example after Redis has lost its data, must not give negative times.
        return times if min(times) >= 0 else [max(part, 0) for part in times]


def _in_seconds(up: int, known: int) -> Uptime:
    return Uptime(up / _SECOND, known / _SECOND)


def _changes(field: str, period: _Period, ids: Collection[UUID]) -> dict[UUID, Changes]:
    """Return the changes of each proxy that has any."""
    rows = Transition.objects.primary().filter(
        **{f"{field}__isnull": False}, watched__gt=period.begin, watched__lte=period.end
    )
    groups = _only(ids, rows, "proxy_uuid").order_by().values("proxy_uuid")
    times = {
        f"time_{number}": Sum((F("watched") - begin) * F(field), filter=Q(watched__gt=begin), default=0)
        for number, begin in enumerate(period.begins)
    }
    sums = groups.annotate(first=Min(F("token") * 4 + F(field)), total=Sum(field), **times)
    return {id: changes for id, *changes in sums.values_list("proxy_uuid", "first", "total", *times)}


def _first_statuses(period: _Period, ids: Collection[UUID]) -> Iterable[tuple[UUID, str | None]]:
    """Yield each of these proxies, and perhaps others, with its status at the beginning of the period.

    A status of that time stays as it is, even if a transition is recorded just now.
    """
    rows = Transition.objects.filter(proxy_uuid=OuterRef("pk"))
    earlier = rows.filter(watched__lte=period.begin).order_by("-token").values("after")[:1]
    # Without an earlier one, because the proxy is new, or because that was pruned.
    later = (
        rows.filter(watched__gt=period.begin, watched__lte=period.end).order_by("token").values("before")[:1]
    )
    proxies = _only(ids, WorkspaceProxy.objects.primary(), "pk").order_by()
    return proxies.values_list("pk", Coalesce(Subquery(earlier), Subquery(later))) if ids else ()


def _only(ids: Collection[UUID], rows: QuerySet[M], field: str) -> QuerySet[M]:
    """Return the rows of these proxies, or all: databases limit the number of values in a query."""
    return rows.filter(**{f"{field}__in": ids}) if len(ids) <= _MAX_VALUES else rows
