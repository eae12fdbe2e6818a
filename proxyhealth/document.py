"""The document that the cache holds: JSON, made of a snapshot and of what merging needs."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.report import FrozenMapping, ProxyStatus, RoundHistogram, Snapshot, moment, rfc3339

logger = logging.getLogger(__name__)

FORMAT = 1
# A document begins with what names its commit, so that a few bytes tell whether it is a new one.
HEAD = re.compile(rb'\{"format": (\d+), "commit": "([0-9a-f]{32})"')
HEAD_BYTES = 80

# How long a removal is remembered, in tickets (microseconds): longer than any round can take. And until there
# has been a full round since, because a clock that is set forward makes an hour of a moment.
_REMOVED_FOR = 3_600 * 1_000_000


class Outdated(Exception):
    """A later round is in the document than the one that is to be merged into it."""


class Change(NamedTuple):
    """A proxy whose status is another one now; ``before`` is empty for a new one, ``after`` None for one
    that was taken out."""

    proxy: str
    name: str
    before: str
    after: ProxyStatus | None


@dataclass(frozen=True)
class Round:
    """A round of all proxies, for the snapshot to carry: when it began reading, and its seconds.

    ``missing`` are the proxies for which it has no answer, because a part of it was lost, as ``error``
    says: they keep their last status, and the round is no full one.
    """

    checked_at: datetime
    duration: float
    missing: frozenset[UUID] = frozenset()
    error: str = ""

    @property
    def outcome(self) -> str:
        return "incomplete" if self.missing else "success"


def merged(
    value: bytes | None,
    statuses: Sequence[ProxyStatus],
    ticket: int,
    removed: Iterable[UUID],
    full_round: Round | None,
) -> tuple[dict[str, Any], list[Change]]:
    """The document that comes out of ``value`` and what was found since, and what changed by it.

    A value that cannot be read is replaced. Raises ``Outdated``.
    """
    removed = list(removed)
    if value is not None:
        try:
            document = _load(value)
            return document, _merge(document, statuses, ticket, removed, full_round)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # Left as it is, it would make every round fail.
            logger.error("the snapshot in the cache is replaced, because it cannot be read: %r", error)
    document = empty_document()
    return document, _merge(document, statuses, ticket, removed, full_round)


def empty_document() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "commit": "",
        "number": 0,
        "ticket": 0,  # of the last full round
        "checked_at": None,
        "duration": None,
        "stale_at": None,
        "rounds": {"counts": RoundHistogram().counts, "sum": 0.0},
        "removed": {},
        "statuses": {},
    }


def _load(value: bytes) -> dict[str, Any]:
    """Raises ``ValueError`` for what is no document of ours."""
    head = HEAD.match(value)
    if head and int(head[1]) == FORMAT:
        document: dict[str, Any] = json.loads(value)
        if empty_document().keys() <= document.keys() and isinstance(document["ticket"], int):
            return document
    raise ValueError("it is of another format")


def dump(document: Mapping[str, Any]) -> bytes:
    # A lone surrogate in one row is no reason to lose all of them.
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")


def _merge(
    document: dict[str, Any],
    statuses: Sequence[ProxyStatus],
    ticket: int,
    removed: Iterable[UUID],
    full_round: Round | None,
) -> list[Change]:
    """Bring ``document`` up to date, in place."""
    if full_round and document["ticket"] > ticket:
        raise Outdated
    last_full: int = document["ticket"]
    old: dict[str, Any] = document["statuses"]
    gone: dict[str, int] = document["removed"]
    new = dict(old)
    changes = []

    def newest(id: str) -> bool:
        known = old[id]["ticket"] if id in old else 0
        return ticket > max(known, gone.get(id, 0))

    for status in statuses:
        id = str(status.proxy.id)
        if newest(id):
            new[id] = {**status.to_json(), "ticket": ticket}
            gone.pop(id, None)
            before = old[id]["status"] if id in old else ""
            if before != status.status:
                changes.append(Change(id, status.proxy.name, before, status))

    def take_out(id: str) -> None:
        if data := new.pop(id, None):
            changes.append(Change(id, data["proxy"]["name"], data["status"], None))
        # A slower round that still saw the proxy must not bring it back.
        gone[id] = ticket

    for id in map(str, removed):
        if newest(id):
            take_out(id)
    if full_round:
        found = {str(status.proxy.id) for status in statuses} | {str(id) for id in full_round.missing}
        for id in [id for id, s in new.items() if id not in found and s["ticket"] < ticket]:
            take_out(id)
    if full_round and not full_round.missing:
        rounds = RoundHistogram(tuple(document["rounds"]["counts"]), document["rounds"]["sum"])
        rounds = rounds.observe(full_round.duration)
        stale_at = full_round.checked_at + timedelta(seconds=conf.STALE_AFTER)
        document.update(
            rounds={"counts": rounds.counts, "sum": rounds.sum},
            ticket=ticket,
            checked_at=rfc3339(full_round.checked_at),
            duration=full_round.duration,
            stale_at=rfc3339(stale_at),
        )
    document["statuses"] = dict(sorted(new.items(), key=lambda item: item[1]["proxy"]["name"].lower()))
    document["removed"] = {id: t for id, t in gone.items() if t > min(last_full, ticket - _REMOVED_FOR)}
    document["commit"] = uuid.uuid4().hex
    document["number"] += 1
    return changes


class Decoded(NamedTuple):
    """A snapshot, the commit it is of, and the ticket of its last full round."""

    snapshot: Snapshot
    commit: bytes
    ticket: int


def decode(value: bytes) -> Decoded:
    """What is in ``value``; raises ``ValueError``."""
    document = _load(value)
    statuses = [ProxyStatus.from_json(data) for data in document["statuses"].values()]
    snapshot = Snapshot(
        statuses=FrozenMapping({status.proxy.id: status for status in statuses}),
        checked_at=moment(document["checked_at"]),
        duration=document["duration"],
        number=document["number"],
        stale_at=moment(document["stale_at"]),
        rounds=RoundHistogram(tuple(document["rounds"]["counts"]), document["rounds"]["sum"]),
    )
    return Decoded(snapshot, document["commit"].encode(), document["ticket"])
