"""The document in the cache: JSON with the snapshot, and what merging into it needs.

It is laid out in lines::

    {"format": 3, "commit": …, …,
    "judgements": {"name": […], "ticket": […], "checked_at": […], "status": […], …},
    "proxies": [
    {"id": …, "name": …, …},
    …
    ]}

Every list has the proxies in the same order. Judgements are in columns, because one object for each takes
twice the time to parse. JSON has no newline within a string, so each proxy is one line, and a reader parses
only the lines that are new to it.

During an upgrade, two versions share the document. Fields that this version does not know stay where they are
until a merge replaces the object that has them. Missing fields get a default. Essential are the format, the
commit and the ticket of the head, the id and the name of a proxy, and the columns name, ticket and status.
"""

from __future__ import annotations

import json
import logging
import math
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.exceptions import OutdatedRound
from proxyhealth.snapshot import JUDGEMENT, Proxy, ProxyStatus, RoundHistogram, Snapshot, convert, finite
from proxyhealth.utils import FrozenMapping, parse_rfc3339, rfc3339

logger = logging.getLogger(__name__)

FORMAT = 3
# A document begins with what names its commit, so that a few bytes tell whether it is a new one.
HEAD = re.compile(rb'\{"format": (\d+), "commit": "([0-9a-f]{32})"')
HEAD_BYTES = 80

_JUDGEMENTS = b',\n"judgements": '
_PROXIES = b',\n"proxies": [\n'
_SEPARATOR = b",\n"
_END = b"\n]}"
_LINE = b'{"id": "'
_ID = slice(len(_LINE), len(_LINE) + 36)  # its place in a line, so that a merge need not parse it

# The types in the columns that this version knows. Only the essential ones never hold null.
_TYPES = {"name": str, "ticket": int, "checked_at": str} | {
    name: kind for name, (kind, _) in JUDGEMENT.items()
}
_ESSENTIAL = {"name", "ticket", "status"}

_encoder = json.JSONEncoder(ensure_ascii=False)

# What comes of reading a document that was damaged.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)

# How long a removal is remembered, in tokens (microseconds): longer than any round can take. And until there
# has been a full round since, because a clock that is set forward makes an hour of a moment.
_REMOVED_FOR = 3_600 * 1_000_000


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


def _first_head() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "commit": "",
        "number": 0,
        "committed_at": None,
        "ticket": 0,  # of the last full round
        "checked_at": None,
        "duration": None,
        "stale_at": None,
        "rounds": RoundHistogram().to_json(),
        "removed": {},
    }


@dataclass
class Document:
    """What is merged into: the values that it begins with; and by id, in the order of the proxies' names, the
    judgements, and the lines with the proxies' own values."""

    head: dict[str, Any] = field(default_factory=_first_head)
    judgements: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, bytes] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether a full round has been committed to it."""
        return self.head["checked_at"] is not None


def merged(
    value: bytes | None,
    statuses: Sequence[ProxyStatus],
    token: int,
    removed: Iterable[UUID],
    full_round: Round | None,
) -> tuple[Document, list[Change]]:
    """The document that comes out of ``value`` and what was found since, and what changed by it.

    A value that cannot be read is replaced. Raises ``OutdatedRound``.
    """
    removed = list(removed)
    if value is not None:
        try:
            document = _load(value)
            return document, _merge(document, statuses, token, removed, full_round)
        except _DAMAGE as error:
            # Left as it is, it would make every round fail.
            logger.error("the snapshot in the cache is replaced, because it cannot be read: %r", error)
    document = Document()
    return document, _merge(document, statuses, token, removed, full_round)


def dump(document: Document) -> bytes:
    rows = document.judgements.values()
    names = dict.fromkeys(chain.from_iterable(rows))
    return b"".join(
        (
            _encode(document.head).removesuffix(b"}"),
            _JUDGEMENTS,
            _encode({name: [row.get(name) for row in rows] for name in names}),
            _PROXIES,
            _SEPARATOR.join(document.lines.values()),
            _END,
        )
    )


def _encode(value: Any) -> bytes:
    # A lone surrogate in one row is no reason to lose all of them.
    return _encoder.encode(value).encode("utf-8", "replace")


def _load(value: bytes) -> Document:
    """The document to be merged into; what it raises for what is no document of ours is in ``_DAMAGE``."""
    head, columns, rest = _parts(value)
    lines = _split(rest)
    if not all(line.startswith(_LINE) for line in lines):
        raise ValueError("a line of it is no proxy")
    ids = [line[_ID].decode() for line in lines]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Document(head, dict(zip(ids, rows, strict=True)), dict(zip(ids, lines, strict=True)))


def _parts(value: bytes) -> tuple[dict[str, Any], dict[str, list[Any]], bytes]:
    """Return the head of a document, its columns, and its proxies' lines. Raises as :func:`_load` does."""
    begin = HEAD.match(value)
    if not begin or int(begin[1]) != FORMAT:
        raise ValueError("it has another format")
    middle = value.find(_JUDGEMENTS)
    end = value.find(_PROXIES, middle)
    if middle < 0 or end < 0 or not value.endswith(_END):
        raise ValueError("it is truncated")
    lines = value[end + len(_PROXIES) : -len(_END)]
    head = _first_head() | {"ticket": None} | json.loads(value[:middle] + b"}")
    if not (isinstance(head["ticket"], int) and isinstance(head["number"], int)):
        raise ValueError("its ticket or its number is not an integer")
    columns = json.loads(value[middle + len(_JUDGEMENTS) : end])
    _check_columns(columns)
    if lines and _ESSENTIAL - columns.keys():
        raise ValueError("an essential column is missing")
    return head, columns, lines


def _check_columns(columns: dict[str, list[Any]]) -> None:
    """Raise ``ValueError`` for values that nothing else would notice, but that would spoil a scrape."""
    if not all(isinstance(column, list) for column in columns.values()):
        raise ValueError("a column is not a list")
    if len(set(map(len, columns.values()))) > 1:
        raise ValueError("its columns differ in length")
    for name, kind in _TYPES.items():
        allowed = {kind} if name in _ESSENTIAL else {kind, NoneType}
        if not allowed.issuperset(map(type, columns.get(name, ()))):
            raise ValueError(f"the column {name} has a value of another type")
    # One sum costs less than a look at each latency.
    if not math.isfinite(sum(filter(None, columns.get("latency", ())))):
        raise ValueError("a latency is not finite")


def _split(lines: bytes) -> list[bytes]:
    return lines.split(_SEPARATOR) if lines else []


def _merge(
    document: Document,
    statuses: Sequence[ProxyStatus],
    token: int,
    removed: Iterable[UUID],
    full_round: Round | None,
) -> list[Change]:
    """Bring ``document`` up to date, in place."""
    head = document.head
    if full_round and head["ticket"] > token:
        raise OutdatedRound
    last_full: int = head["ticket"]
    old = document.judgements
    lines = document.lines
    gone: dict[str, int] = head["removed"]
    new = dict(old)
    changes = []

    def newest(id: str) -> bool:
        known = old[id]["ticket"] if id in old else 0
        return token > max(known, gone.get(id, 0))

    as_text = lru_cache(maxsize=1)(rfc3339)  # all statuses of a round have the same time
    found = {str(status.proxy.id): status for status in statuses}
    for id, status in found.items():
        if newest(id):
            new[id] = {
                "name": status.proxy.name,
                "ticket": token,
                "checked_at": status.checked_at and as_text(status.checked_at),
                **status.judgement(),
            }
            lines[id] = _encode(status.proxy.to_json())
            gone.pop(id, None)
            before = old[id]["status"] if id in old else ""
            if before != status.status:
                changes.append(Change(id, status.proxy.name, before, status))

    def take_out(id: str) -> None:
        if data := new.pop(id, None):
            changes.append(Change(id, data["name"], data["status"], None))
        # A slower round that still saw the proxy must not bring it back.
        gone[id] = token

    for id in map(str, removed):
        if newest(id):
            take_out(id)
    if full_round:
        there = found.keys() | {str(id) for id in full_round.missing}
        for id in [id for id, data in new.items() if id not in there and data["ticket"] < token]:
            take_out(id)
    if full_round and not full_round.missing:
        rounds = RoundHistogram.from_json(head["rounds"]).observe(full_round.duration)
        stale_at = full_round.checked_at + timedelta(seconds=conf.STALE_AFTER)
        head.update(
            rounds=rounds.to_json(),
            ticket=token,
            checked_at=rfc3339(full_round.checked_at),
            duration=full_round.duration,
            stale_at=rfc3339(stale_at),
        )
    document.judgements = dict(sorted(new.items(), key=lambda item: item[1]["name"].lower()))
    document.lines = {id: lines[id] for id in document.judgements}
    head["removed"] = {id: t for id, t in gone.items() if t > min(last_full, token - _REMOVED_FOR)}
    head["commit"] = uuid.uuid4().hex
    head["number"] += 1
    head["committed_at"] = rfc3339(datetime.now(UTC))
    return changes


class PreviousLines(NamedTuple):
    """The proxies of a document, and the lines that they were made of."""

    lines: bytes = b""
    proxies: Sequence[Proxy] = ()


class Decoded(NamedTuple):
    """A snapshot, the token of its last full round, and the proxies for the next."""

    snapshot: Snapshot
    token: int
    known: PreviousLines


def decode(value: bytes, known: PreviousLines) -> Decoded:
    """What is in ``value``, with the proxies that are ``known`` where they are the same.

    Raises ``ValueError``.
    """
    try:
        return _decode(value, known)
    except ValueError:
        raise
    except _DAMAGE as error:
        raise ValueError(f"it is damaged: {error!r}") from error


def _decode(value: bytes, known: PreviousLines) -> Decoded:
    head, columns, lines = _parts(value)
    proxies = known.proxies if lines == known.lines else _proxies(lines, known)
    if columns.get("name", []) != [proxy.name for proxy in proxies]:
        raise ValueError("its judgements are on other proxies than its lines")
    checked_at = convert(columns.get("checked_at", [None] * len(proxies)), parse_rfc3339)
    statuses = dict(
        zip(
            [proxy.id for proxy in proxies],
            ProxyStatus.from_columns(proxies, checked_at, columns),
            strict=True,
        )
    )
    snapshot = Snapshot(
        statuses=FrozenMapping(statuses),
        checked_at=parse_rfc3339(head["checked_at"]),
        duration=None if head["duration"] is None else finite(head["duration"]),
        number=head["number"],
        stale_at=parse_rfc3339(head["stale_at"]),
        rounds=RoundHistogram.from_json(head["rounds"]),
        committed_at=parse_rfc3339(head["committed_at"]),
    )
    return Decoded(snapshot, head["ticket"], PreviousLines(lines, proxies))


def _proxies(lines: bytes, known: PreviousLines) -> list[Proxy]:
    by_line = dict(zip(_split(known.lines), known.proxies, strict=True))
    wanted = _split(lines)
    new = [line for line in wanted if line not in by_line]
    made = map(Proxy.from_json, json.loads(b"[%s]" % b",".join(new)))
    by_line.update(zip(new, made, strict=True))
    return [by_line[line] for line in wanted]
