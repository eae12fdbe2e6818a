"""A history in virtual time, and the uptime that a naive reading of it gives.

All times are microseconds before now, so that ``24 * HOUR`` is the beginning of the window of 24 hours.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

from django.conf import settings
from django.utils.timezone import make_naive

from proxyhealth.history.uptime import WINDOWS
from proxyhealth.models import Gap, Transition, Watch, WorkspaceProxy
from proxyhealth.snapshot import Snapshot

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3_600 * SECOND, 86_400 * SECOND

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KNOWN = {"ok", "unhealthy", "unreachable"}


@dataclass(frozen=True)
class SnapshotAt(Snapshot):
    """A snapshot whose age does not depend on a real clock."""

    age: float | None = None


def to_time(token: int) -> datetime:
    return _EPOCH + timedelta(microseconds=token)


def to_row_time(token: int) -> datetime:
    return to_time(token) if settings.USE_TZ else make_naive(to_time(token))


@dataclass
class Timeline:
    """Rounds since ``begin``, the last of them ``round``, but none in the ``gaps``."""

    now: int = 1_795_737_600 * SECOND + 123_457  # the token of now
    begin: int = 100 * DAY
    round: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    changes: list[tuple[int, UUID, str]] = field(default_factory=list)

    def proxy(self, *changes: tuple[int, str], name: str = "") -> UUID:
        """Add a proxy with these statuses, each with the time at which it begins."""
        id = uuid4()
        WorkspaceProxy.objects.bulk_create([WorkspaceProxy(id=id, name=name or f"p{id.hex}")])
        self.changes += [(at, id, status) for at, status in changes]
        return id

    @property
    def end(self) -> int:
        """The time until which the statuses are known: the snapshot of a round is fresh for three minutes."""
        return max(0, self.round - 3 * MINUTE)

    def watched(self, at: int) -> int:
        """Return the known time until ``at``."""
        missed = sum(max(0, begin - max(end, at)) for begin, end in self.gaps)
        return self.begin - at - missed

    def store(self) -> None:
        """Write the rows, as the drain of the outbox does."""
        last: dict[UUID, str] = {}
        rows: list[Transition] = []
        for at, id, after in sorted(self.changes, key=lambda change: -change[0]):
            values = {"token": self.now - at, "at": to_row_time(self.now - at), "watched": self.watched(at)}
            before = last.get(id, "unknown")
            rows.append(Transition(proxy_id=id, proxy_uuid=id, before=before, after=after, **values))
            last[id] = after
        Transition.objects.bulk_create(rows)
        for begin, end in self.gaps:
            times = {"start": to_row_time(self.now - begin), "end": to_row_time(self.now - end)}
            Gap.objects.create(**times, why="no_rounds", token=self.now - end, microseconds=begin - end)
        Watch.objects.create(pk=1, token=self.now - self.round, watched=self.watched(self.round))

    def snapshot(self, **values: object) -> Snapshot:
        """Return the snapshot of the last round."""
        watched = self.watched(self.round)
        snapshot = SnapshotAt(
            checked_at=to_time(self.now - self.round), watched=watched, age=self.round / SECOND
        )
        return replace(snapshot, **values)

    def naive_seconds(self, id: UUID, begin: int, end: int = 0) -> tuple[float, float]:
        """Return the seconds up and known from ``begin`` to ``end``, looking at each time between events."""
        changes = sorted(
            (change for change in self.changes if change[1] == id), key=lambda change: -change[0]
        )
        edges = {begin, end, self.end, self.begin, *sum(self.gaps, ()), *(at for at, _, _ in changes)}
        up = known = 0
        for start, stop in pairwise(sorted(edges, reverse=True)):
            status = ([None] + [status for at, _, status in changes if at >= start])[-1]
            is_gap = any(gap[0] >= start and stop >= gap[1] for gap in self.gaps)
            is_within = begin >= start and stop >= end
            if is_within and status in _KNOWN and not is_gap and stop >= self.end:
                known += start - stop
                up += (start - stop) * (status == "ok")
        return up / SECOND, known / SECOND

    def naive_uptime(self, id: UUID) -> dict[str, tuple[float, float]]:
        """Return the seconds up and known in each window."""
        return {name: self.naive_seconds(id, days * DAY) for name, days in WINDOWS.items()}

    def ago(self, time: datetime) -> int:
        return self.now - (time - _EPOCH) // timedelta(microseconds=1)
