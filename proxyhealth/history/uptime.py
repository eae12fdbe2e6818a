"""The uptime of proxies: the time in which they were ``ok``, as a part of the time that is known.

The known time is measured by the clock of ``Transition.watched``, which stands still while nobody watched. A
proxy that is ``ok`` now was so for the whole window, less the time before each transition to ``ok``, plus the
time before each transition from it. So a sum over the transitions in the window is enough: each one begins
with the status with which the one before it ended. The same sum over the statuses that are known, instead of
``ok``, gives the known time of the proxy.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self
from uuid import UUID

from django.db.models import BigIntegerField, Case, F, Max, OuterRef, Q, Subquery, Sum, When

from proxyhealth.conf import conf
from proxyhealth.models import Gap, Transition, Watch, WorkspaceProxy
from proxyhealth.snapshot import Snapshot
from proxyhealth.statuses import Status
from proxyhealth.utils import FrozenMapping

_SECOND = 1_000_000  # in the unit of tokens
_DAY = 86_400 * _SECOND

WINDOWS: Mapping[str, int] = FrozenMapping({"24h": 1, "7d": 7, "30d": 30, "90d": 90})
"""The windows of time until now, by name: their lengths in days."""

_UP = (Status.OK.value,)
# A proxy without a URL is not down: nobody could probe it.
_KNOWN = (Status.OK.value, Status.UNHEALTHY.value, Status.UNREACHABLE.value)
_IS_KNOWN, _IS_UP = 1, 2  # codes of statuses in queries; 0 is a status that is not known


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

    ``ids`` are by default those of all rows of the proxies, also of deleted ones, and of all proxies with
    transitions in the windows. Of ``snapshot``, only its times count: the statuses are those of the history.
    """
    ids = None if ids is None else set(ids)
    last = _last_codes(
        ids
    )  # read first: a transition that comes later is then in the sums, with its own code
    clock = _Clock.read(snapshot)
    if clock is None:
        return FrozenMapping(dict.fromkeys(last if ids is None else ids, NOTHING))
    begins = clock.begins()
    end = clock.watched_at(clock.now)
    unchanged = {
        code: _in_windows(begins, end, code, (0,) * 2 * len(begins)) for code in (0, _IS_KNOWN, _IS_UP)
    }
    found = {id: unchanged[last.get(id, 0)] for id in (last if ids is None else ids)}
    for id, code, until, *changes in _changed_times(begins, ids):
        # A check may have recorded its change after the end of what is known from rounds.
        found[id] = _in_windows(begins, max(end, until), code % 4, changes)
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

    def begins(self) -> dict[str, int]:
        """Return the known time at the beginning of each window, or of the history if that is later."""
        kept = min(conf.HISTORY_DAYS, max(WINDOWS.values()))
        return {
            name: self.watched_at(self.now - int(min(days, kept) * _DAY)) for name, days in WINDOWS.items()
        }

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


def _code() -> Case:
    return Case(When(after__in=_UP, then=_IS_UP), When(after__in=_KNOWN, then=_IS_KNOWN), default=0)


def _last_codes(ids: Collection[UUID] | None) -> dict[UUID, int]:
    """Return the code of the last status of each proxy that has a row."""
    rows = WorkspaceProxy.objects.primary()
    last = Transition.objects.filter(proxy_uuid=OuterRef("pk")).order_by("-token").values(code=_code())[:1]
    rows = rows if ids is None else rows.filter(pk__in=ids)
    return {id: code or 0 for id, code in rows.order_by().values_list("pk", Subquery(last))}


def _changed_times(begins: Mapping[str, int], ids: Collection[UUID] | None) -> Iterable[tuple[Any, ...]]:
    """Yield a tuple for each proxy with transitions in the windows.

    It has the id, the code of the last status, the known time of the last transition, and for each window by
    how many microseconds the transitions in it change the time that is up, and the time that is known.
    """
    rows = Transition.objects.primary().filter(watched__gt=min(begins.values()))
    if ids is not None:
        rows = rows.filter(proxy_uuid__in=ids)
    sums = {
        f"{name}_{number}": Sum(_change(begin, statuses))
        for name, begin in begins.items()
        for number, statuses in enumerate((_UP, _KNOWN))
    }
    return (
        rows.order_by()
        .values("proxy_uuid")
        .annotate(last=Max(F("token") * 4 + _code()), until=Max("watched"), **sums)
        .values_list("proxy_uuid", "last", "until", *sums)
    )


def _change(begin: int, statuses: Collection[str]) -> Case:
    """Return by how much a transition changes the time in ``statuses`` after ``begin``.

    The time from ``begin`` to the transition counts for the status before it, instead of the one after it.
    """
    was, is_now = Q(before__in=statuses), Q(after__in=statuses)
    return Case(
        When(Q(watched__lte=begin), then=0),
        When(was & ~is_now, then=F("watched") - begin),
        When(is_now & ~was, then=begin - F("watched")),
        default=0,
        output_field=BigIntegerField(),
    )


def _in_windows(begins: Mapping[str, int], end: int, last: int, changes: Sequence[int]) -> Uptimes:
    """Return the uptime from each beginning to ``end``, with the code of the last status, and its changes."""
    result = {}
    for (name, begin), up, known in zip(begins.items(), changes[::2], changes[1::2], strict=True):
        length = end - begin
        known = min(max(0, known + length * (last > 0)), length)
        up = min(max(0, up + length * (last == _IS_UP)), known)
        result[name] = Uptime(up / _SECOND, known / _SECOND)
    return result
