"""The uptime of proxies: the time in which they were ``ok``, as a part of the time that is known.

The known time is that of the clock of ``Transition.watched``, which stands still while nobody watched. The
transitions of a proxy form a chain: each begins with the status with which the one before it ended. So if the
status at the beginning of a window is known, sums over the transitions in the window are enough: whatever
becomes ``ok`` is so until the end, less the time from which it no longer is.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import neg, sub
from typing import Any, NamedTuple, Self, TypeAlias
from uuid import UUID

from django.db.models import BigIntegerField, F, OuterRef, Q, Subquery, Sum, TextField
from django.db.models.functions import Coalesce, JSONArray

from proxyhealth.conf import conf
from proxyhealth.models import Gap, Transition, Watch, WorkspaceProxy
from proxyhealth.snapshot import Snapshot
from proxyhealth.statuses import Status
from proxyhealth.utils import FrozenMapping

SECOND = 1_000_000  # in the unit of tokens
DAY = 86_400 * SECOND
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


class Uptimes(Mapping[str, Uptime]):
    """The uptime in each of the ``WINDOWS``. It has microseconds, and makes an ``Uptime`` when it is read."""

    __slots__ = ("known", "up")

    def __init__(self, up: Sequence[int], known: Sequence[int]) -> None:
        self.up = up
        self.known = known

    def __getitem__(self, name: str) -> Uptime:
        index = _INDEX[name]
        return Uptime(self.up[index] / SECOND, self.known[index] / SECOND)

    def __iter__(self) -> Iterator[str]:
        return iter(WINDOWS)

    def __len__(self) -> int:
        return len(WINDOWS)

    def __repr__(self) -> str:
        return repr(dict(self))


_INDEX = {name: index for index, name in enumerate(WINDOWS)}
_ZEROS = [0] * len(WINDOWS)

NOTHING = Uptimes(_ZEROS, _ZEROS)
"""The uptime of a proxy of which nothing is known, in each window."""


def uptimes(snapshot: Snapshot, ids: Iterable[UUID] | None = None) -> Mapping[UUID, Uptimes]:
    """Return the uptime of each proxy in each of the ``WINDOWS``.

    ``ids`` are by default those of all rows of the proxies, also of deleted ones. Of ``snapshot``, only its
    times count: the statuses are those of the history.
    """
    clock = Clock.read(snapshot)
    if clock is None:
        rows = WorkspaceProxy.objects.primary().order_by()
        return FrozenMapping(
            dict.fromkeys(rows.values_list("pk", flat=True) if ids is None else ids, NOTHING)
        )
    period = clock.period()
    found, unchanged = {}, []
    for id, up, known in _read(_sums_of_all(period) if ids is None else _sums_of_some(period, list(ids))):
        if up or known:
            found[id] = period.uptimes(up, known)
        else:
            found[id] = NOTHING
            unchanged.append(id)
    kinds = {Status.OK.value: Uptimes(period.lengths, period.lengths)}
    kinds[Status.UNHEALTHY] = kinds[Status.UNREACHABLE] = Uptimes(_ZEROS, period.lengths)
    for id, status in first_statuses(period.begin, period.end, unchanged):
        found[id] = kinds.get(status or "", NOTHING)
    return FrozenMapping(found)


def uptime_of(proxy_id: UUID, snapshot: Snapshot) -> Mapping[str, float | None]:
    """Return the ratio of the uptime of a proxy in each of the ``WINDOWS``, or None if nothing is known."""
    windows = uptimes(snapshot, [proxy_id])[proxy_id]
    return FrozenMapping({name: uptime.ratio for name, uptime in windows.items()})


def total(parts: Iterable[Uptimes]) -> Uptimes:
    """Return the sums of these uptimes in each of the ``WINDOWS``."""
    parts = [NOTHING, *parts]
    columns = (
        zip(*times, strict=True) for times in ([part.up for part in parts], [part.known for part in parts])
    )
    return Uptimes(*(list(map(sum, column)) for column in columns))


class Clock(NamedTuple):
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
        fresh = 0 if snapshot.offline or snapshot.fault else min(elapsed, int(conf.STALE_AFTER * SECOND))
        now = watch.token + elapsed
        # A day more than the windows, because 90 days of a strip may have an hour more.
        # Durations, because local times of a database without time zones have no exact differences.
        gaps = (
            Gap.objects.using(database)
            .filter(token__gt=now - (max(WINDOWS.values()) + 1) * DAY, token__lte=watch.token)
            .order_by()
            .values_list("token", "microseconds")
        )
        return cls(watch.token, watch.watched, now, fresh, [(end - length, end) for end, length in gaps])

    def period(self) -> "_Period":
        kept = [min(days, conf.HISTORY_DAYS) for days in WINDOWS.values()]  # older rows may be deleted
        begins = [self.watched_at(self.now - int(days * DAY)) for days in kept]
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
    return max(0, snapshot.watched + round(age * SECOND) - watch.watched)


# For each window the sum of the changes of a proxy in it, to some statuses (1) and from them (-1), each times
# the known time from the beginning of the window until then. Without changes, it has no sums.
Sums: TypeAlias = Sequence[int]


class _Period(NamedTuple):
    """The known time at the beginning of each window, at the end of all of them, and in between."""

    begins: list[int]
    end: int
    lengths: list[int]

    @property
    def begin(self) -> int:
        return min(self.begins)

    def uptimes(self, up: Sums, known: Sums) -> Uptimes:
        """Return the uptime of a proxy with these changes to ``ok``, and to the statuses that are known.

        Only one of them may be empty. A proxy that is ``ok`` at times was always known if that never changed.
        One whose being ``ok`` never changed was never ``ok`` if there are times in which it is not known.
        """
        knowns = list(map(min, self._times(known), self.lengths)) if known else self.lengths
        # Rows that do not fit, for example after another program has deleted some, must not give more.
        return Uptimes(list(map(min, self._times(up), knowns)) if up else _ZEROS, knowns)

    def _times(self, sums: Sums) -> list[int]:
        # 1 and -1 take turns. So the sum of the longest window is positive if the last one is 1.
        is_now = sums[-1] > 0
        times = list(map(sub, self.lengths, sums) if is_now else map(neg, sums))
        return times if min(times) >= 0 else [max(part, 0) for part in times]


# The sums of a proxy for ``ok``, and for the statuses that are known, as JSON. None without changes.
_FIELDS = "ok_change", "known_change"
Row: TypeAlias = tuple[UUID, str | None, str | None]


def _sums(field: str, period: _Period) -> Any:
    """Return a query for the ``sums`` of each ``proxy_uuid`` that has changes."""
    rows = Transition.objects.primary().filter(
        **{f"{field}__isnull": False}, watched__gt=period.begin, watched__lte=period.end
    )
    parts = [(begin, Q(watched__gt=begin) if begin > period.begin else None) for begin in period.begins]
    sums = [
        Sum((F("watched") - begin) * F(field), filter=filter, default=0, output_field=BigIntegerField())
        for begin, filter in parts
    ]
    # As one text, which is faster to read than four numbers with a conversion each.
    return rows.order_by().values("proxy_uuid").annotate(sums=JSONArray(*sums, output_field=TextField()))


def _sums_of_all(period: _Period) -> Iterable[Row]:
    # By the index for each proxy. A database that groups rows may read all of them instead.
    of_proxy = (
        Subquery(_sums(field, period).filter(proxy_uuid=OuterRef("pk")).values("sums")) for field in _FIELDS
    )
    return WorkspaceProxy.objects.primary().order_by().values_list("pk", *of_proxy)


def _sums_of_some(period: _Period, ids: Sequence[UUID]) -> Iterable[Row]:
    for batch in batches(ids):
        groups = (_sums(field, period).filter(proxy_uuid__in=batch) for field in _FIELDS)
        up, known = (dict(group.values_list("proxy_uuid", "sums")) for group in groups)
        for id in batch:
            yield id, up.get(id), known.get(id)


def _read(rows: Iterable[Row]) -> Iterator[tuple[UUID, Sums, Sums]]:
    """Yield each proxy with its sums, which are empty if nothing changed, or all changed back at once."""
    ids, *columns = list(zip(*rows, strict=True)) or [()] * 3
    up, known = (json.loads(f"[{','.join(text or 'null' for text in column)}]") for column in columns)
    for id, ups, knowns in zip(ids, up, known, strict=True):
        yield id, ups if ups and ups[-1] else (), knowns if knowns and knowns[-1] else ()


def first_statuses(begin: int, end: int, ids: Sequence[UUID]) -> Iterator[tuple[UUID, str | None]]:
    """Yield each of these proxies that has a row with its status at the beginning of a known time.

    A status of that time stays as it is, even if a transition is recorded just now.
    """
    rows = Transition.objects.filter(proxy_uuid=OuterRef("pk"))
    earlier = rows.filter(watched__lte=begin).order_by("-token").values("after")[:1]
    # Without an earlier one, because the proxy is new, or because that was pruned.
    later = rows.filter(watched__gt=begin, watched__lte=end).order_by("token").values("before")[:1]
    status = Coalesce(Subquery(earlier), Subquery(later))
    for batch in batches(ids):
        proxies = WorkspaceProxy.objects.primary().filter(pk__in=batch).order_by()
        yield from proxies.values_list("pk", status)


def batches(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    """Yield the ids in parts: databases limit the number of values in a query."""
    return (ids[start : start + _MAX_VALUES] for start in range(0, len(ids), _MAX_VALUES))
