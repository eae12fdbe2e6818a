"""The silences: the times in which chosen proxies tell nobody."""

import logging
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Self
from uuid import UUID
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.db import connections, router
from django.utils import timezone

from proxyhealth import isolation
from proxyhealth.conf import conf
from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.models import Silence
from proxyhealth.models.rows import TimedRead, read_rows, using_database_of
from proxyhealth.selectors import Selector
from proxyhealth.shared_copy import SharedCopy
from proxyhealth.snapshot import Proxy
from proxyhealth.utils import PerProcess, aware

logger = logging.getLogger(__name__)

# A silence that has just ended still counts for the changes before its end.
_KEPT = timedelta(days=1)
_DAY = timedelta(days=1)
_MIDNIGHT = time()
# Unions of different silences that are remembered for one moment.
_MAX_UNIONS = 1_000

# In seconds:
_RETRY_INTERVAL = 2.0  # pause in reads after the database failed
_TIMEOUT = 1.0  # wait for the database


@dataclass(frozen=True)
class Window:
    """A time without a pause in which a silence is in force: from ``start`` until before ``stop``, in UTC."""

    start: datetime
    stop: datetime


@dataclass(frozen=True)
class Times:
    """The times and the proxies of one silence."""

    pk: int
    selector: Selector
    starts: datetime
    ends: datetime
    weekdays: frozenset[int]
    begin: time
    end: time
    zone: ZoneInfo

    def __hash__(self) -> int:
        return hash((self.pk, self.starts))

    @classmethod
    def of(cls, row: Silence) -> Self:
        """Return the times of a row. Raise ``ValidationError`` if it is not valid."""
        row.clean_fields(exclude=["id", "reason", "created_at", "created_by"])
        row.clean()
        return cls(
            row.pk,
            Selector.parse(row.proxies),
            aware(row.starts).astimezone(UTC),
            aware(row.ends).astimezone(UTC),
            frozenset(row.weekdays),
            row.begin or _MIDNIGHT,
            row.end or _MIDNIGHT,
            ZoneInfo(row.time_zone if row.weekdays else "UTC"),
        )

    def window(self, moment: datetime) -> Window | None:
        """Return the window that has ``moment``, else the next one, or None after the last."""
        return next(self._windows(moment), None)

    def stop(self, moment: datetime) -> datetime | None:
        """Return the end of the last window that has ``moment``, or None."""
        if not self.starts <= moment < self.ends:
            return None
        stops = [window.stop for window in self._windows(moment, moment) if window.start <= moment]
        return max(stops, default=None)

    def _windows(self, after: datetime, until: datetime | None = None) -> Iterator[Window]:
        """Yield the windows that end after ``after``, in order, and begin until ``until``."""
        if not self.weekdays:
            if after < self.ends:
                yield Window(self.starts, self.ends)
            return
        last = min(until or self.ends, self.ends).astimezone(self.zone).date() + _DAY
        # A window may last 25 hours.
        day = max(after, self.starts).astimezone(self.zone).date() - 2 * _DAY
        while day <= last:
            if day.weekday() in self.weekdays:
                window = self._window_of(day)
                if max(after, window.start) < window.stop:
                    yield window
            day += _DAY

    def _window_of(self, day: date) -> Window:
        begin = datetime.combine(day, self.begin)
        end = datetime.combine(day if self.begin < self.end else day + _DAY, self.end)
        start, stop = _first(begin, self.zone), _last(end, self.zone)
        if stop <= start and end - begin < _DAY:
            stop = start + (end - begin)  # the clocks skip all of it, and the work is done after that
        return Window(max(self.starts, start), min(self.ends, stop))


def _first(local: datetime, zone: ZoneInfo) -> datetime:
    """Return when the clocks of ``zone`` first show ``local`` or, if they skip it, when they skip it."""
    earlier, later = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if earlier <= later:
        return earlier
    # The clocks go forward at the first second at which they are not before ``local``.
    seconds = range(int((earlier - later).total_seconds()))

    def shown(second: int) -> datetime:
        return (later + timedelta(seconds=second)).astimezone(zone).replace(tzinfo=None)

    return later + timedelta(seconds=bisect_left(seconds, local, key=shown))


def _last(local: datetime, zone: ZoneInfo) -> datetime:
    """Return when the clocks of ``zone`` last show ``local``.

    If they skip it, return when they would show it without the change: a work of an hour takes an hour.
    """
    return max(local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))


class Silences:
    """The silences that are in force, that are coming, or that ended in the last day."""

    def __init__(self, rows: Iterable[Times] = ()) -> None:
        self._all = tuple(rows)
        self._in_force: tuple[datetime | None, Sequence[Times], Selector | None] = (None, (), None)
        self._unions: dict[tuple[datetime, tuple[Times, ...]], datetime] = {}

    @classmethod
    def read(cls, alias: str | None = None) -> Self:
        """Read the silences with one query. Log and ignore rows that are not valid."""
        rows = Silence.objects.using(alias).filter(ends__gt=timezone.now() - _KEPT)
        valid, errors = read_rows(rows.order_by("pk"), _valid)
        for error in errors:
            _log_once(f"a silence cannot be read, correct or delete it: {error!r}")
        return cls(valid)

    def until(self, name: str, labels: Mapping[str, str], now: datetime) -> datetime | None:
        """Return the time until which the proxy is silenced, or None if it is not silenced at ``now``.

        Silences that overlap, or that follow each other without a pause, count as one.
        """
        now = aware(now)
        selector = self._at(now)[2]
        if selector is None or not selector.matches(name, labels):
            return None
        chosen = tuple(times for times in self._all if times.selector.matches(name, labels))
        end = self._unions.get((now, chosen))
        if end is None:
            if len(self._unions) >= _MAX_UNIONS:
                self._unions.clear()
            end = self._unions[now, chosen] = _end_of_union(chosen, now)
        return end

    def of(self, proxies: Iterable[Proxy], now: datetime) -> dict[UUID, datetime]:
        """Return by id the time until which each silenced proxy of these is silenced."""
        if not self.in_force(now):
            return {}
        ends = ((proxy.id, self.until(proxy.name, proxy.labels, now)) for proxy in proxies)
        return {id: end for id, end in ends if end}

    def same_as(self, other: Self) -> bool:
        return self._all == other._all

    def basis(self, now: datetime) -> Hashable:
        """Return what the results for ``now`` depend on: while it is equal, they are equal."""
        return self._all, tuple((times, times.stop(now)) for times in self.in_force(now))

    def in_force(self, now: datetime) -> Sequence[Times]:
        """Return the silences that are in force at ``now``."""
        return self._at(now)[1]

    def _at(self, now: datetime) -> tuple[datetime | None, Sequence[Times], Selector | None]:
        """Return the silences that are in force at ``now``, and a selector of their proxies."""
        result = self._in_force
        if result[0] != now:
            in_force = tuple(times for times in self._all if times.stop(now))
            selector = Selector.union(times.selector for times in in_force) if in_force else None
            self._in_force = result = (now, in_force, selector)  # one assignment: threads share this object
        return result


def _end_of_union(chosen: Sequence[Times], now: datetime) -> datetime:
    end = now
    while stops := [stop for times in chosen if (stop := times.stop(end))]:
        end = max(stops)
    return end


def _valid(rows: Iterable[Silence]) -> list[Times]:
    valid = []
    for row in rows:
        try:
            valid.append(Times.of(row))
        except ValidationError as error:
            faults = " ".join(error.messages)
            _log_once(f"the silence with the id {row.pk} is ignored, correct or delete it: {faults}")
    return valid


def current() -> Silences:
    """Return the silences as this process has read them, at most ``READ_INTERVAL`` ago.

    If the database fails, return those that were read last, or none: then nobody is silenced.
    """
    copy = _copy.value
    if isolation.is_isolated():
        copy.expire()  # tests undo their changes
    silences = copy.fresh()
    return silences or copy.get(_refresh, grace=conf.READ_INTERVAL, timeout=_TIMEOUT)


def _refresh(previous: Silences | None) -> tuple[Silences, float]:
    try:
        with using_database_of(Silence) as alias:
            silences = Silences.read(alias)
    except HistoryUnavailable as error:
        _log_once(f"the silences cannot be read, those that were read last count: {error}")
        return previous or Silences(), _RETRY_INTERVAL
    # Callers keep what they have made of the same object.
    return previous if previous and previous.same_as(silences) else silences, conf.READ_INTERVAL


def current_in_time() -> Silences:
    """Return what :func:`current` returns, but wait a second at most for the database."""
    silences = _copy.value.fresh()
    if silences is not None:
        return silences
    if connections[router.db_for_write(Silence)].in_atomic_block:
        return current()  # as in a TestCase: only this thread sees its rows
    try:
        return _in_time.value.result(_TIMEOUT)
    except TimeoutError:
        _log_once("the silences cannot be read, the database does not respond")
    except RuntimeError:
        _log_once("the silences cannot be read, no thread can start")
    return _copy.value.value or Silences()


_copy = PerProcess[SharedCopy[Silences]](SharedCopy)
_in_time = PerProcess(lambda: TimedRead(current, "proxyhealth silences"))


def forget() -> None:
    """Drop this process's copy, for tests."""
    _copy.reset()
    _log_once.cache_clear()


@lru_cache(maxsize=1_000)
def _log_once(message: str) -> None:
    # Each process reads the silences every few seconds.
    logger.error(message)
