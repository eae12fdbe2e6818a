"""The confirmation of statuses: when the result of a probe becomes the status of its proxy.

Rows are the rows of the document: a judgement, ``ticket``, ``checked_at`` and ``since``. A row has ``raw``
while the last result contradicts its status: that judgement, the time ``since`` which results contradict it,
their ``count``, and the ``watched`` time at their beginning. The times in ``raw`` are in microseconds.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from proxyhealth.conf import conf
from proxyhealth.statuses import Status
from proxyhealth.utils import rfc3339

Row = dict[str, Any]

_BAD = {Status.UNHEALTHY.value, Status.UNREACHABLE.value}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(microseconds: int) -> datetime:
    """Return the time of a token or of an entry in the outbox. Raise ``OverflowError``."""
    return _EPOCH + timedelta(microseconds=microseconds)


@dataclass(frozen=True)
class Instant:
    """A time in microseconds since 1970, and the time for which rounds had watched the proxies by then."""

    at: int
    watched: int


@dataclass(frozen=True)
class Thresholds:
    """The results in a row that confirm a failure and a recovery."""

    failure: int
    recovery: int

    @classmethod
    def read(cls) -> "Thresholds":
        return cls(conf.FAILURE_THRESHOLD, conf.RECOVERY_THRESHOLD)

    def between(self, before: str, after: str) -> int:
        """Return the results that confirm this change: more than one only between ``ok`` and a failure."""
        if before == Status.OK and after in _BAD:
            return self.failure
        if before in _BAD and after == Status.OK:
            return self.recovery
        return 1


def confirm(before: Row, found: Row, now: Instant, needed: int) -> tuple[Row, Instant | None]:
    """Return the row after the result ``found``, and the beginning of its status if that has changed.

    ``before`` is the row as it was, with ``since``. A change needs ``needed`` results in a row.
    """
    if found["status"] == before["status"]:
        return {**found, "since": before["since"]}, None
    begin, count = now, 1
    if needed > 1 and (streak := _streak(before.get("raw"))):
        begin, count = streak[0], streak[1] + 1
    if count >= needed:
        return {**found, "since": rfc3339(moment(begin.at))}, begin
    raw = {key: value for key, value in found.items() if key not in ("name", "ticket")}
    raw |= {"since": begin.at, "watched": begin.watched, "count": count}
    row = {**before, "name": found["name"], "ticket": found["ticket"], "raw": raw}
    if "proxy_host" in found:  # a row from the history has none
        row["proxy_host"] = found["proxy_host"]
    return row, None


def _streak(raw: Row | None) -> tuple[Instant, int] | None:
    """Return the beginning and the length of the results that contradict a status."""
    if not raw:
        return None
    values: list[Any] = [raw.get(name) for name in ("since", "watched", "count")]
    if not all(type(value) is int and 0 <= value < 1 << 60 for value in values):
        return None  # another version wrote it
    since, watched, count = values
    return Instant(since, watched), count
