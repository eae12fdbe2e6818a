"""The JSON document that stores the snapshot in the cache: encoding, decoding and merging it.

It is laid out in lines::

    {"format": 3, "commit": …, …,
    "judgements": {"name": […], "ticket": […], "checked_at": […], "status": […], …},
    "proxies": [
    {"id": …, "name": …, …},
    …
    ]}

Every list has the proxies in the same order. A ``ticket`` is a fencing token. Judgements are in columns,
because one object per proxy takes twice the time to parse. JSON has no newline within a string, so each proxy
is one line, and a reader parses only new lines.

During an upgrade, two versions share the document. Fields that this version does not know are kept until a
merge replaces their object. Missing fields get a default, except for the essential ones: the format, commit
and ticket of the head, the id and name of a proxy, and the columns name, ticket and status. An unknown
status, reason or histogram is read as ``unknown`` or empty.
"""

import json
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.exceptions import ForeignSnapshot, Superseded, UnusableSnapshot
from proxyhealth.snapshot import JUDGEMENT, Proxy, ProxyStatus, RoundHistogram, Snapshot, convert, finite
from proxyhealth.storage.deployment import foreign_message
from proxyhealth.utils import FrozenMapping, parse_json, parse_rfc3339, rfc3339

logger = logging.getLogger(__name__)

FORMAT = 3
# A document begins with the id of its commit, so that a few bytes tell a reader whether it is new.
HEAD = re.compile(rb'\{"format": (\d+), "commit": "([0-9a-f]{32})"')
HEAD_BYTES = 80

_JUDGEMENTS = b',\n"judgements": '
_PROXIES = b',\n"proxies": [\n'
_SEPARATOR = b",\n"
_END = b"\n]}"
_LINE = b'{"id": "'
_ID = slice(len(_LINE), len(_LINE) + 36)  # the id in a line, so that a merge need not parse lines

# The types in the columns that this version knows. Only the essential ones never hold null.
_TYPES = {"name": str, "ticket": int, "checked_at": str} | {
    name: kind for name, (kind, _) in JUDGEMENT.items()
}
_ESSENTIAL = {"name", "ticket", "status"}

_encoder = json.JSONEncoder(ensure_ascii=False)

# The exceptions that reading a damaged document can raise.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)

# Age in microseconds, like that of tokens, at which a tombstone expires: longer than any round can take. None
# expires before the next full round, because a clock that is set forward would make it look old.
_TOMBSTONE_AGE = 3_600 * 1_000_000


class Change(NamedTuple):
    """A changed status. ``before`` is empty for a new proxy, ``after`` is None for a removed one."""

    proxy: str
    name: str
    before: str
    after: ProxyStatus | None


_NO_CHANGES: Mapping[str, Change] = FrozenMapping()


@dataclass(frozen=True)
class Round:
    """A round of all proxies: its start, and its duration in seconds.

    ``missing`` are the proxies without a result, because shards were lost; ``error`` is the reason. They keep
    their last status, and the round does not count as a full one.
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
        "deployment": "",
    }


@dataclass
class Document:
    """A document during a merge: its head, and by proxy id its judgements and lines, sorted by name."""

    head: dict[str, Any] = field(default_factory=_first_head)
    judgements: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, bytes] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True once a full round has been committed."""
        return self.head["checked_at"] is not None


def merged(
    value: bytes | None,
    statuses: Sequence[ProxyStatus],
    token: int,
    removed: Sequence[UUID],
    full_round: Round | None,
    *,
    last_token: int | None = None,
    earlier: Mapping[str, Change] = _NO_CHANGES,
    deployment: str = "",
    replace_foreign: bool = False,
) -> tuple[Document, list[Change]]:
    """Merge the results of one token into the document ``value``, and return it with the changes.

    ``earlier`` are the changes of an earlier attempt, whose reply may have been lost. They are returned again
    if the document has them. A document with a token above ``last_token`` is damaged.

    Raise ``ForeignSnapshot`` for the document of another deployment, or replace it with ``replace_foreign``.

    A round replaces a document that cannot be read; for a check, raise ``UnusableSnapshot``. Raise
    ``Superseded`` if a later round was committed.
    """
    results = statuses, token, removed, full_round, earlier
    if value is not None:
        try:
            document = _load(value, last_token)
            if deployment and document.head["deployment"] not in ("", deployment):
                message = foreign_message(document.head["deployment"])
                if not replace_foreign:
                    raise ForeignSnapshot(message)
                logger.error("snapshot replaced: %s", message)
                document = Document()
            return _merge(document, deployment, *results)
        except _DAMAGE as error:
            message = f"the snapshot in the cache cannot be read: {error!r}"
            if not full_round:  # the check knows a few proxies, and the document may be of a newer version
                raise UnusableSnapshot(message) from error
            # Every round would fail if the document were kept.
            logger.error("snapshot replaced: %s", message)
    return _merge(Document(), deployment, *results)


def dump(document: Document) -> bytes:
    """Return the document as JSON, laid out as the module describes."""
    rows = document.judgements.values()
    names = dict.fromkeys(chain.from_iterable(rows))
    columns = {name: [row.get(name) for row in rows] for name in names}
    head = _encode(document.head).removesuffix(b"}")
    lines = _SEPARATOR.join(document.lines.values())
    return b"".join((head, _JUDGEMENTS, _encode(columns), _PROXIES, lines, _END))


def _encode(value: Any) -> bytes:
    # A lone surrogate in one row must not make the commit of all rows fail.
    return _encoder.encode(value).encode("utf-8", "replace")


def _load(value: bytes, last_token: int | None) -> Document:
    """Parse a document for a merge. Raise one of ``_DAMAGE`` if it cannot be read."""
    head, columns, rest = _parts(value)
    newest = max([head["ticket"], *columns.get("ticket", ()), *head["removed"].values()])
    if last_token is not None and newest > last_token:
        # No later result would ever win.
        raise ValueError(f"its token {newest} was never taken")
    lines = _split(rest)
    if not all(line.startswith(_LINE) for line in lines):
        raise ValueError("one of its lines is not a proxy")
    ids = [line[_ID].decode() for line in lines]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Document(head, dict(zip(ids, rows, strict=True)), dict(zip(ids, lines, strict=True)))


def _parts(value: bytes) -> tuple[dict[str, Any], dict[str, list[Any]], bytes]:
    """Return the head of a document, its columns, and its proxies' lines. Raise as :func:`_load` does."""
    begin = HEAD.match(value)
    if not begin or int(begin[1]) != FORMAT:
        raise ValueError("it has another format")
    middle = value.find(_JUDGEMENTS)
    end = value.find(_PROXIES, middle)
    if middle < 0 or end < 0 or not value.endswith(_END):
        raise ValueError("it is truncated")
    lines = value[end + len(_PROXIES) : -len(_END)]
    head = _first_head() | {"ticket": None} | parse_json(value[:middle] + b"}")
    for name, kind in (("ticket", int), ("number", int), ("deployment", str)):
        if not isinstance(head[name], kind):
            raise ValueError(f"its {name} has another type")
    columns = parse_json(value[middle + len(_JUDGEMENTS) : end])
    _check_columns(columns)
    if lines and _ESSENTIAL - columns.keys():
        raise ValueError("an essential column is missing")
    return head, columns, lines


def _check_columns(columns: dict[str, list[Any]]) -> None:
    """Raise ``ValueError`` for invalid values, which would otherwise cause errors only in a scrape."""
    if not all(isinstance(column, list) for column in columns.values()):
        raise ValueError("a column is not a list")
    if len(set(map(len, columns.values()))) > 1:
        raise ValueError("its columns differ in length")
    for name, kind in _TYPES.items():
        allowed = {kind} if name in _ESSENTIAL else {kind, NoneType}
        column = columns.get(name, ())
        items = chain.from_iterable(filter(None, column)) if kind is list else ()
        if not (allowed.issuperset(map(type, column)) and {str}.issuperset(map(type, items))):
            raise ValueError(f"the column {name} has a value of another type")
    finite(sum(map(abs, filter(None, columns.get("latency", ())))))  # cheaper than one check per latency


def _split(lines: bytes) -> list[bytes]:
    return lines.split(_SEPARATOR) if lines else []


def _merge(
    document: Document,
    deployment: str,
    statuses: Sequence[ProxyStatus],
    token: int,
    removed: Sequence[UUID],
    full_round: Round | None,
    earlier: Mapping[str, Change],
) -> tuple[Document, list[Change]]:
    if full_round and document.head["ticket"] > token:
        raise Superseded("a later round was committed before this one")
    merge = _Merge(document, token, earlier)
    for id in removed:
        merge.remove(str(id))
    for status in statuses:
        merge.put(status)
    if full_round:
        present = {str(status.proxy.id) for status in statuses} | {str(id) for id in full_round.missing}
        for absent in dict.fromkeys((*document.judgements, *earlier)):
            if absent not in present:
                merge.remove(absent)
        if not full_round.missing:
            merge.record(full_round)
    document.head["deployment"] = deployment or document.head["deployment"]
    merge.finish()
    return document, merge.changes


class _Merge:
    """The merge of the results of one token into a document, in place.

    Per proxy, the higher token wins. A removed proxy leaves a tombstone with the token of its removal, which
    keeps it out for an hour, because a slower check may have read the proxy before.
    """

    def __init__(self, document: Document, token: int, earlier: Mapping[str, Change]) -> None:
        self.document = document
        self.token = token
        self.earlier = earlier
        self.changes: list[Change] = []
        head = document.head
        oldest = min(head["ticket"], token - _TOMBSTONE_AGE)
        self.tombstones: dict[str, int] = {
            id: token for id, token in head["removed"].items() if token > oldest
        }
        self._rfc3339 = lru_cache(maxsize=1)(rfc3339)  # all statuses of a round have the same time

    def put(self, status: ProxyStatus) -> None:
        id = str(status.proxy.id)
        if not self._wins(id):
            return
        judgements = self.document.judgements
        before = judgements[id]["status"] if id in judgements else ""
        if before != status.status:
            self.changes.append(Change(id, status.proxy.name, before, status))
        judgements[id] = {
            "name": status.proxy.name,
            "ticket": self.token,
            "checked_at": status.checked_at and self._rfc3339(status.checked_at),
            **status.judgement(),
        }
        self.document.lines[id] = _encode(status.proxy.to_json())
        self.tombstones.pop(id, None)

    def remove(self, id: str) -> None:
        if not self._wins(id):
            return
        self.tombstones[id] = self.token
        if row := self.document.judgements.pop(id, None):
            self.changes.append(Change(id, row["name"], row["status"], None))

    def _wins(self, id: str) -> bool:
        row = self.document.judgements.get(id)
        newest = max(row["ticket"] if row else 0, self.tombstones.get(id, 0))
        if newest == self.token and id in self.earlier:
            self.changes.append(self.earlier[id])  # an earlier attempt was written, but its reply was lost
        return self.token > newest

    def record(self, full_round: Round) -> None:
        """Make ``full_round`` the last full round."""
        head = self.document.head
        head.update(
            rounds=RoundHistogram.from_json(head["rounds"]).observe(full_round.duration).to_json(),
            ticket=self.token,
            checked_at=rfc3339(full_round.checked_at),
            duration=full_round.duration,
            stale_at=rfc3339(full_round.checked_at + timedelta(seconds=conf.STALE_AFTER)),
        )

    def finish(self) -> None:
        """Sort the proxies by name, and stamp the document as a new commit."""
        document = self.document
        rows = sorted(document.judgements.items(), key=lambda item: item[1]["name"].lower())
        document.judgements = dict(rows)
        document.lines = {id: document.lines[id] for id in document.judgements}
        document.head.update(
            removed=self.tombstones,
            commit=uuid.uuid4().hex,
            number=document.head["number"] + 1,
            committed_at=rfc3339(datetime.now(UTC)),
        )


class PreviousLines(NamedTuple):
    """The proxies that were decoded last, and their lines in that document."""

    lines: bytes = b""
    proxies: Sequence[Proxy] = ()


class Decoded(NamedTuple):
    """A snapshot, the token of its last full round, and what the next call of :func:`decode` can reuse."""

    snapshot: Snapshot
    token: int
    previous: PreviousLines
    deployment: str  # its identity, or empty


def decode(value: bytes, previous: PreviousLines) -> Decoded:
    """Decode a document, and reuse the proxies of ``previous`` whose lines are the same.

    Raise ``ValueError`` for a damaged document.
    """
    try:
        return _decode(value, previous)
    except ValueError:
        raise
    except _DAMAGE as error:
        raise ValueError(f"it is damaged: {error!r}") from error


def _decode(value: bytes, previous: PreviousLines) -> Decoded:
    head, columns, lines = _parts(value)
    proxies = previous.proxies if lines == previous.lines else _proxies(lines, previous)
    if columns.get("name", []) != [proxy.name for proxy in proxies]:
        raise ValueError("its columns and its lines name different proxies")
    checked_at = convert(columns.get("checked_at", [None] * len(proxies)), parse_rfc3339)
    statuses = ProxyStatus.from_columns(proxies, checked_at, columns)
    snapshot = Snapshot(
        statuses=FrozenMapping({status.proxy.id: status for status in statuses}),
        checked_at=parse_rfc3339(head["checked_at"]),
        duration=None if head["duration"] is None else finite(head["duration"]),
        number=head["number"],
        stale_at=parse_rfc3339(head["stale_at"]),
        rounds=RoundHistogram.from_json(head["rounds"]),
        committed_at=parse_rfc3339(head["committed_at"]),
    )
    return Decoded(snapshot, head["ticket"], PreviousLines(lines, proxies), head["deployment"])


def _proxies(lines: bytes, previous: PreviousLines) -> list[Proxy]:
    by_line = dict(zip(_split(previous.lines), previous.proxies, strict=True))
    all_lines = _split(lines)
    new = [line for line in all_lines if line not in by_line]
    decoded = map(Proxy.from_json, parse_json(b"[%s]" % b",".join(new)))
    by_line.update(zip(new, decoded, strict=True))
    return [by_line[line] for line in all_lines]
