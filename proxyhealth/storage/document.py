"""The JSON document that stores the snapshot in the cache: encoding and decoding it.

It is laid out in lines::

    {"format": 3, "commit": …, …,
    "judgements": {"name": […], "ticket": […], "checked_at": […], "status": […], …},
    "proxies": [
    {"id": …, "name": …, …},
    …
    ]}

Every list has the proxies in the same order. A ``ticket`` is a fencing token. Judgements are in columns,
because one object per proxy takes twice the time to parse. JSON has no newline within a string, so each proxy
is one line, and a reader parses only new lines. The column ``raw`` has the results that contradict a status;
:mod:`proxyhealth.storage.confirmation` describes them.

During an upgrade, two versions share the document. Fields that this version does not know are kept until a
merge replaces their object. Missing fields get a default, except for the essential ones: the format, commit
and ticket of the head, the id and name of a proxy, and the columns name, ticket and status. An unknown
status, reason or histogram is read as ``unknown`` or empty.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple

from proxyhealth.conf import conf
from proxyhealth.snapshot import JUDGEMENT, Proxy, ProxyStatus, RoundHistogram, Snapshot, convert, finite
from proxyhealth.storage.watch import Watched
from proxyhealth.utils import FrozenMapping, parse_json, parse_rfc3339

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
_TYPES = {"name": str, "ticket": int, "checked_at": str, "since": str, "raw": dict} | {
    name: kind for name, (kind, _) in JUDGEMENT.items()
}
_ESSENTIAL = {"name", "ticket", "status"}
_OF_RAW = ("checked_at", *JUDGEMENT)

_encoder = json.JSONEncoder(ensure_ascii=False)

# The exceptions that reading a damaged document can raise.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


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
        "watched": None,
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

    @property
    def newest(self) -> int:
        """The highest token of a commit that this document has."""
        tickets = (row["ticket"] for row in self.judgements.values())
        newest: int = max((self.head["ticket"], *self.head["removed"].values(), *tickets))
        return newest

    @property
    def waiting(self) -> int:
        """The number of proxies whose last result contradicts their status."""
        return sum(1 for row in self.judgements.values() if row.get("raw"))


def dump(document: Document) -> bytes:
    """Return the document as JSON, laid out as the module describes."""
    rows = document.judgements.values()
    names = dict.fromkeys(chain.from_iterable(rows))
    columns = {name: [row.get(name) for row in rows] for name in names}
    head = encode(document.head).removesuffix(b"}")
    lines = _SEPARATOR.join(document.lines.values())
    return b"".join((head, _JUDGEMENTS, encode(columns), _PROXIES, lines, _END))


def encode(value: Any) -> bytes:
    # A lone surrogate in one row must not make the commit of all rows fail.
    return _encoder.encode(value).encode("utf-8", "replace")


def load(value: bytes, last_token: int | None = None) -> Document:
    """Parse a document for a merge. Raise one of ``DAMAGE`` if it cannot be read.

    A document with a token above ``last_token`` is damaged.
    """
    head, columns, rest = _parts(value)
    _check_times(columns)
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
    """Return the head of a document, its columns, and its proxies' lines. Raise as :func:`load` does."""
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
    if raws := [raw for raw in columns.get("raw", ()) if raw]:
        _check_columns({name: [raw.get(name) for raw in raws] for name in ("status", *_OF_RAW)})


def _check_times(columns: dict[str, list[Any]]) -> None:
    """Raise ``ValueError`` for a time that cannot be read. A merge may keep it for a long time."""
    raws = [raw for raw in columns.get("raw", ()) if raw]
    for name in ("checked_at", "tls_expires_at", "since"):
        for text in {*columns.get(name, ()), *(raw.get(name) for raw in raws if name != "since")}:
            parse_rfc3339(text)


def _split(lines: bytes) -> list[bytes]:
    return lines.split(_SEPARATOR) if lines else []


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
    except DAMAGE as error:
        raise ValueError(f"it is damaged: {error!r}") from error


def _decode(value: bytes, previous: PreviousLines) -> Decoded:
    head, columns, lines = _parts(value)
    proxies = previous.proxies if lines == previous.lines else _proxies(lines, previous)
    if columns.get("name", []) != [proxy.name for proxy in proxies]:
        raise ValueError("its columns and its lines name different proxies")
    checked_at = convert(columns.get("checked_at", [None] * len(proxies)), parse_rfc3339)
    statuses = {status.proxy.id: status for status in ProxyStatus.from_columns(proxies, checked_at, columns)}
    for proxy, raw in zip(proxies, columns.get("raw", ()), strict=False):
        if raw:
            statuses[proxy.id] = _with_raw(statuses[proxy.id], raw)
    watched = Watched.from_json(head["watched"])
    snapshot = Snapshot(
        statuses=FrozenMapping(statuses),
        checked_at=parse_rfc3339(head["checked_at"]),
        duration=None if head["duration"] is None else finite(head["duration"]),
        number=head["number"],
        stale_at=parse_rfc3339(head["stale_at"]),
        rounds=RoundHistogram.from_json(head["rounds"]),
        committed_at=parse_rfc3339(head["committed_at"]),
        watched=watched and watched.at(head["ticket"], conf.STALE_AFTER),
        result_tokens=columns.get("ticket", ()),
    )
    return Decoded(snapshot, head["ticket"], PreviousLines(lines, proxies), head["deployment"])


def _with_raw(status: ProxyStatus, raw: Mapping[str, Any]) -> ProxyStatus:
    checked_at = parse_rfc3339(raw.get("checked_at"))
    (last,) = ProxyStatus.from_judgements([status.proxy], checked_at, [raw])
    return replace(status, raw=last)


def _proxies(lines: bytes, previous: PreviousLines) -> list[Proxy]:
    by_line = dict(zip(_split(previous.lines), previous.proxies, strict=True))
    all_lines = _split(lines)
    new = [line for line in all_lines if line not in by_line]
    decoded = map(Proxy.from_json, parse_json(b"[%s]" % b",".join(new)))
    by_line.update(zip(new, decoded, strict=True))
    return [by_line[line] for line in all_lines]
