"""The uptime of proxies: the time in which they were ``ok``, as a part of the time that is known.

The known time is that of the clock of ``Transition.watched``, which stands still while nobody watched. The
transitions of a proxy form a chain: each begins with the status with which the one before it ended. So if the
status at the beginning of a window is known, sums over the transitions in the window are enough: whatever
becomes ``ok`` is so until the end, less the time from which it no longer is.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, Self, TypeVar
from uuid import UUID

from django.db.models import F, Min, Model, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce

from proxyhealth.conf import conf
from proxyhealth.models import KNOWN_STATUSES, Gap, Transition, Watch, WorkspaceProxy
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
    changed = up.keys() | known.keys()
    # A proxy whose known status never changed was known all the time, and one that never became ``ok`` or
    # ceased to be so, but is in ``known``, was not.
    found |= {id: period.uptimes(up.get(id, _NEVER), known.get(id, _ALWAYS)) for id in ids & changed}
    unchanged: dict[str | None, Uptimes] = {
        status: period.uptimes(_Changes(status == Status.OK), _ALWAYS) for status in KNOWN_STATUSES
    }
    for id, status in _first_statuses(period, ids - changed):
        if id in ids and id not in changed:
            found[id] = unchanged.get(status, NOTHING)
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
        begins = (self.watched_at(self.now - days * _DAY) for days in WINDOWS.values())
        return _Period(tuple(begins), self.watched_at(self.now))

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


class _Changes(NamedTuple):
    """The changes of a proxy in the windows, to some statuses (1) and from them (-1).

    The proxy ``was`` in these statuses at the beginning of the longest window. ``total`` is the sum of the
    changes. ``times`` has for each window the sum of the changes in it, each multiplied by the known time
    until then.
    """

    was: bool
    total: int = 0
    times: tuple[int, ...] = (0,) * len(WINDOWS)


_NEVER, _ALWAYS = _Changes(was=False), _Changes(was=True)


class _Period(NamedTuple):
    """The known time at the beginning of each window, and at the end of all of them."""

    begins: tuple[int, ...]
    end: int

    @property
    def begin(self) -> int:
        return min(self.begins)

    def uptimes(self, up: _Changes, known: _Changes) -> Uptimes:
        pairs = zip(WINDOWS, self._times(up), self._times(known), strict=True)
        return {name: Uptime(min(up, known) / _SECOND, known / _SECOND) for name, up, known in pairs}

    def _times(self, changes: _Changes) -> Iterator[int]:
        is_now = changes.was + changes.total
        for begin, change in zip(self.begins, changes.times, strict=True):
            length = self.end - begin
            # Rows that do not fit, for example after Redis has lost its data, never make a part above 1.
            yield min(max(length * is_now - change, 0), length)


def _changes(field: str, period: _Period, ids: Collection[UUID]) -> dict[UUID, _Changes]:
    """Return the changes of each proxy that has any."""
    rows = Transition.objects.primary().filter(
        **{f"{field}__isnull": False}, watched__gt=period.begin, watched__lte=period.end
    )
    groups = _only(ids, rows, "proxy_uuid").order_by().values("proxy_uuid")
    times = {
        f"time_{number}": Sum((F("watched") - begin) * F(field), filter=Q(watched__gt=begin), default=0)
        for number, begin in enumerate(period.begins)
    }
    # The first change, as the remainder of a division: 1 or -1.
    sums = groups.annotate(first=Min(F("token") * 4 + F(field)), total=Sum(field), **times)
    columns = sums.values_list("proxy_uuid", "first", "total", *times)
    return {id: _Changes(first % 4 == 3, total, tuple(times)) for id, first, total, *times in columns}


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
