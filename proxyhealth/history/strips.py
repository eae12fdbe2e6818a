"""Strips: for how long proxies were up and down, and how long that is not known, in cells of time.

The strip ``24h`` has 48 cells of half an hour, the last of which ends now. The strip ``90d`` has one cell per
day of the current time zone. Its last cell is today until now, and a day on which the clocks change has 23 or
25 hours. The known time is that of :mod:`proxyhealth.history.uptime`, so both agree.
"""

import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import NamedTuple, TypeAlias
from uuid import UUID

from django.db.models import TextField
from django.db.models.functions import Cast
from django.utils import timezone

from proxyhealth.conf import conf
from proxyhealth.history.uptime import DAY, SECOND, Clock, batches, first_statuses
from proxyhealth.models import Transition
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.snapshot import Snapshot
from proxyhealth.statuses import Status
from proxyhealth.storage.confirmation import moment
from proxyhealth.utils import FrozenMapping

_CELLS = {"24h": 48, "90d": 90}
_HALF_HOUR = 1_800 * SECOND
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)


class Cell(NamedTuple):
    """The seconds of ``up``, ``down`` and ``unknown`` from ``start`` to ``end``. Their sum is its length.

    A proxy is up while it is ``ok``, and down while it is ``unhealthy`` or ``unreachable``. All else is
    unknown: a gap, a stale snapshot, a proxy without a URL, and the time before its first status.
    """

    start: datetime
    end: datetime
    up: float
    down: float
    unknown: float


def strips(snapshot: Snapshot, ids: Iterable[UUID], window: str) -> Mapping[UUID, Sequence[Cell]]:
    """Return the cells of each proxy, the oldest first. ``window`` is ``24h`` or ``90d``.

    There are two queries for all proxies of a page, beside those of the clock. Of ``snapshot``, only its
    times count, as for the uptime.
    """
    ids = list(ids)
    clock = Clock.read(snapshot)
    if clock is None:
        edges = _edges(window, time.time_ns() // 1000)
        return FrozenMapping(dict.fromkeys(ids, _Grid(edges, [0] * len(edges)).of([])))
    edges = _edges(window, clock.now)
    kept = clock.now - int(conf.HISTORY_DAYS * DAY)  # older rows may be deleted
    grid = _Grid(edges, list(accumulate((clock.watched_at(max(edge, kept)) for edge in edges), max)))
    # A check may have found a change that a later round counts as before a gap.
    token = max(edges[0], kept) - int(conf.STALE_AFTER * SECOND)
    found: dict[UUID, Sequence[Cell]] = {}
    for batch in batches(ids):
        found |= _read(grid, token, batch)
    return FrozenMapping(found)


def _edges(window: str, now: int) -> list[int]:
    """Return the beginning of each cell and the end of the last one, in the microseconds of tokens."""
    count = _CELLS[window]
    if window == "24h":
        return [now - place * _HALF_HOUR for place in range(count, -1, -1)]
    zone = timezone.get_current_timezone()
    today = moment(now - 1).astimezone(zone).date()
    days = (today - timedelta(days=place) for place in range(count - 1, -1, -1))
    midnights = (datetime(day.year, day.month, day.day, tzinfo=zone) for day in days)
    return [*((midnight - _EPOCH) // _MICROSECOND for midnight in midnights), now]


# The known time from which a proxy has a status, and whether it is up (True), down (False) or neither.
_Change: TypeAlias = tuple[int, bool | None]


class _Grid:
    """The edges of the cells, as times and as known times."""

    def __init__(self, edges: Sequence[int], known: Sequence[int]) -> None:
        times = [moment(edge) for edge in edges]
        self._spans = list(zip(pairwise(times), map(_length, pairwise(edges)), strict=True))
        self._known = known

    @property
    def begin(self) -> int:
        return self._known[0]

    @property
    def end(self) -> int:
        return self._known[-1]

    def of(self, changes: Sequence[_Change]) -> Sequence[Cell]:
        """Return the cells of a proxy with these changes, the first of which is its status before all."""
        sums = {True: [0] * len(self._spans), False: [0] * len(self._spans)}
        for (begin, is_up), (end, _) in pairwise([*changes, (self.end, None)]):
            if is_up is not None:
                for place, length in self._parts(begin, end):
                    sums[is_up][place] += length
        return list(map(self._cell, range(len(self._spans)), sums[True], sums[False]))

    def _parts(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the cells in which a known time is, each with the part that is in it."""
        place = bisect_right(self._known, begin) - 1
        while begin < end:
            stop = min(end, self._known[place + 1])
            yield place, stop - begin
            begin, place = stop, place + 1

    def _cell(self, place: int, up: int, down: int) -> Cell:
        (start, end), length = self._spans[place]
        up = min(up, length)  # rows that do not fit must not give more time than there is
        down = min(down, length - up)
        return Cell(start, end, up / SECOND, down / SECOND, (length - up - down) / SECOND)


def _length(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _read(grid: _Grid, token: int, ids: Sequence[UUID]) -> dict[UUID, Sequence[Cell]]:
    rows = Transition.objects.primary().filter(
        proxy_uuid__in=ids, token__gt=token, watched__gt=grid.begin, watched__lte=grid.end
    )
    # As text, because one UUID per row would take a third of the time.
    id_text = Cast("proxy_uuid", TextField())
    columns = rows.order_by("proxy_uuid", "token").values_list(id_text, "watched", "before", "after")
    found = {UUID(id): grid.of(_changes(grid, group)) for id, group in groupby(columns, itemgetter(0))}
    unchanged = [id for id in ids if id not in found]
    first = dict(first_statuses(grid.begin, grid.end, unchanged))
    kinds = {is_up: grid.of([(grid.begin, is_up)]) for is_up in (True, False, None)}
    return found | {id: kinds[_is_up(first.get(id) or "")] for id in unchanged}


def _changes(grid: _Grid, rows: Iterable[tuple[str, int, str, str]]) -> list[_Change]:
    changes: list[_Change] = []
    for _, watched, before, after in rows:
        if not changes:
            changes.append((grid.begin, _is_up(before)))
        changes.append((max(watched, changes[-1][0]), _is_up(after)))
    return changes


def _is_up(status: str) -> bool | None:
    return True if status == Status.OK else False if status in BAD_STATUSES else None
