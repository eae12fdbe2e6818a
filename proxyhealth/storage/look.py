"""What the cache has at one moment: the document and all that is counted, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from proxyhealth.report import FrozenMapping, moment
from proxyhealth.storage.client import Cache
from proxyhealth.storage.document import HEAD_BYTES
from proxyhealth.storage.lease import MAX_LEASE


class TaskRuns(NamedTuple):
    """The runs of a Celery task, by how they ended, and how long they took together."""

    success: int = 0
    failure: int = 0
    microseconds: int = 0


class Look(NamedTuple):
    """As the cache gave it; ``now`` is the time by its clock (Unix)."""

    document: bytes = b""  # empty if there is none
    rounds: Mapping[bytes, bytes] = FrozenMapping()
    runs: Mapping[bytes, bytes] = FrozenMapping()
    lease: int = 0  # milliseconds that it has left, if it is above 0
    now: float = 0.0

    @property
    def head(self) -> bytes:
        """How the document begins, which names its commit."""
        return self.document[: HEAD_BYTES + 1]

    @property
    def round_in_progress(self) -> bool:
        # One with more life left than is ever given is from before a clock stepped back.
        return 0 < self.lease <= MAX_LEASE * 1000

    @property
    def tasks(self) -> Mapping[str, TaskRuns]:
        """The runs of each task, by its name."""
        found: dict[str, TaskRuns] = {}
        for key, count in _counts(self.runs).items():
            name, _, what = key.partition(":")
            if what in TaskRuns._fields:
                found[name] = found.get(name, TaskRuns())._replace(**{what: count})
        return FrozenMapping(found)

    @property
    def snapshot_values(self) -> dict[str, Any]:
        """What a snapshot has of the rounds besides the document."""
        counts = _counts(self.rounds).items()
        return {
            "outcomes": FrozenMapping(
                {key.removeprefix("count:"): count for key, count in counts if key.startswith("count:")}
            ),
            "error": self.rounds.get(b"error", b"").decode(errors="replace"),
            "offline": self.rounds.get(b"offline", b"").decode(errors="replace"),
            "error_at": _moment(self.rounds.get(b"error_at")),
        }


def look(cache: Cache, whole: bool) -> Look:
    """All that a reader wants to know; of the document the whole, or how it begins.

    So nobody has the statuses of one commit with the counts of another.
    """
    pipe = cache.client.pipeline(transaction=True)
    if whole:
        pipe.get(cache.key("snapshot"))
    else:
        pipe.getrange(cache.key("snapshot"), 0, HEAD_BYTES)
    pipe.hgetall(cache.key("rounds"))
    pipe.pttl(cache.key("round"))
    pipe.time()
    pipe.hgetall(cache.key("tasks"))
    *answers, runs = pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, RedisError):
            raise answer
    document, rounds, lease, (seconds, microseconds) = answers
    if isinstance(runs, RedisError):
        runs = {}  # what a task has done is no reason to know nothing of the proxies
    return Look(document or b"", rounds, runs, lease, seconds + microseconds / 1e6)


def _counts(data: Mapping[bytes, bytes]) -> dict[str, int]:
    """Those of the fields that are numbers which Redis can count; a newer version may have others."""
    counts = {}
    for key, value in data.items():
        with suppress(ValueError):
            count = int(value)
            if abs(count) < 1 << 63:
                counts[key.decode()] = count
    return counts


def _moment(value: bytes | None) -> datetime | None:
    with suppress(ValueError):
        return moment(value.decode()) if value else None
    return None
