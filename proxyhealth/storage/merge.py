"""The merge of results into the document, and the entries that the outbox gets for it."""

import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, Protocol, Self
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.exceptions import (
    ForeignSnapshot,
    HistoryUnavailable,
    Superseded,
    TokenTooLow,
    UnusableSnapshot,
)
from proxyhealth.snapshot import Proxy, ProxyStatus, RoundHistogram
from proxyhealth.storage.confirmation import Instant, Row, Thresholds, confirm, moment
from proxyhealth.storage.deployment import foreign_message
from proxyhealth.storage.document import DAMAGE, Document, encode, load
from proxyhealth.storage.outbox import REMOVED, UNKNOWN, change_entry, gap_entry, round_entry
from proxyhealth.storage.watch import Watched
from proxyhealth.utils import FrozenMapping, parse_json, rfc3339

logger = logging.getLogger(__name__)

# Age in microseconds, like that of tokens, at which a tombstone expires: longer than any round can take. None
# expires before the next full round, because a clock that is set forward would make it look old.
_TOMBSTONE_AGE = 3_600 * 1_000_000

# Microseconds for which earlier versions may run rounds alone, without a gap.
_UPGRADE = 3_600 * 1_000_000


class Memory(Protocol):
    """The last state of the snapshot that the history has. All methods raise ``HistoryUnavailable``."""

    def watched(self) -> Watched | None:
        """Return the last full round, or None before the first."""

    def newest_change(self) -> int:
        """Return the token of the last change, or 0."""

    def latest(self, last_round: Watched) -> Watched:
        """Return the last moment of which anything is known. It may be later than the last full round."""

    def rows(self, ids: Collection[str] | None) -> Mapping[str, Row]:
        """Return the last status of each of these proxies, or of all, as rows. Omit removed proxies."""


_NOTHING = Watched(0, 0)


class NoMemory:
    """The memory of a history that has no rows."""

    def watched(self) -> Watched | None:
        return None

    def newest_change(self) -> int:
        return 0

    def latest(self, last_round: Watched) -> Watched:
        return last_round

    def rows(self, ids: Collection[str] | None) -> Mapping[str, Row]:
        return FrozenMapping()


NO_MEMORY = NoMemory()


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


@dataclass(frozen=True)
class Results:
    """The results of one token: statuses of probes, and proxies to remove.

    The results of a round also remove every proxy that the round did not read.
    """

    statuses: Sequence[ProxyStatus]
    token: int
    removed: Sequence[UUID] = ()
    full_round: Round | None = None

    @property
    def present(self) -> set[str]:
        """The ids of the proxies that a round has read."""
        missing = self.full_round.missing if self.full_round else ()
        return {str(status.proxy.id) for status in self.statuses} | {str(id) for id in missing}


class Merged(NamedTuple):
    """The document after a merge, and the entries for the outbox.

    ``is_compared`` is True if all statuses were compared with the history.
    """

    document: Document
    entries: list[str]
    is_compared: bool = False


def merged(
    value: bytes | None,
    results: Results,
    memory: Memory = NO_MEMORY,
    *,
    last_token: int | None = None,
    offline_since: int | None = None,
    has_lost_entries: bool = False,
    deployment: str = "",
    replace_foreign: bool = False,
) -> Merged:
    """Merge ``results`` into the document ``value``.

    A document with a token above ``last_token`` is damaged. The prober is offline since ``offline_since``
    (µs), or it is None. With ``has_lost_entries``, the outbox has lost some.

    Raise ``ForeignSnapshot`` for the document of another deployment, or replace it with ``replace_foreign``.
    A round replaces a document that cannot be read; for a check, raise ``UnusableSnapshot``. Raise
    ``Superseded`` if a later round was committed.
    """

    def merge(document: Document) -> Merged:
        past = _Past.of(document, results, memory, has_lost_entries)
        return _merge(document, results, past, offline_since, deployment)

    if value is not None:
        try:
            document = load(value, last_token)
            if deployment and document.head["deployment"] not in ("", deployment):
                message = foreign_message(document.head["deployment"])
                if not replace_foreign:
                    raise ForeignSnapshot(message)
                logger.error("snapshot replaced: %s", message)
                document = Document()
            return merge(document)
        except DAMAGE as error:
            message = f"the snapshot in the cache cannot be read: {error!r}"
            # A check knows few proxies, and the document may be of a newer version.
            if not results.full_round:
                raise UnusableSnapshot(message) from error
            # Every round would fail if the document were kept.
            logger.error("snapshot replaced: %s", message)
    return merge(Document())


@dataclass(frozen=True)
class _Past:
    """The time before a merge.

    ``last_round`` is None if only the history knows it, which is unavailable. ``is_lost`` is True if the
    cache has lost commits, or entries of the outbox. ``rows`` are the last statuses in the history: of all
    proxies, if a round finds that the cache has lost them; else of those that the document does not have. It
    is None if the history is unavailable.
    """

    last_round: Watched | None
    is_lost: bool = False
    has_all_rows: bool = False
    rows: Mapping[str, Row] | None = None

    @classmethod
    def of(cls, document: Document, results: Results, memory: Memory, has_lost_entries: bool) -> Self:
        last_round = _last_round(document)
        recorded = Watched.from_json(document.head["watched"])
        is_round = results.full_round is not None
        lacking = _lacking(document, results)
        try:
            remembered = memory.watched() if is_round or recorded is None else recorded
            is_behind = not recorded or (remembered and recorded.token < remembered.token)
            if is_round and remembered and not is_behind:
                is_behind = document.newest < memory.newest_change()  # a check between two rounds is lost
            if remembered and (is_behind or (is_round and has_lost_entries)):
                latest = memory.latest(remembered)
                if latest.token >= results.token:
                    raise TokenTooLow(latest.token)
                return cls(latest, True, is_round, memory.rows(None if is_round else lacking))
            # Checks may have recorded changes before the first round.
            start = last_round or Watched(results.token, memory.latest(_NOTHING).watched)
            if is_round and (has_lost_entries or recorded is None):
                return cls(start, False, True, memory.rows(None))
            return cls(start, rows=memory.rows(lacking) if lacking else {})
        except HistoryUnavailable as error:
            logger.warning("changes are recorded later: %s", error)
            # A round that cannot find what was lost must not look as if it had.
            return cls(None if is_round and has_lost_entries else last_round)


def _last_round(document: Document) -> Watched | None:
    """Return the last full round, also if an earlier version has run it: during an upgrade, it is no gap.

    When earlier versions have run rounds alone for long, nobody has recorded what changed.
    """
    last_round, token = Watched.from_json(document.head["watched"]), document.head["ticket"]
    if last_round and last_round.token < token <= last_round.token + _UPGRADE:
        return Watched(token, last_round.watched + token - last_round.token)
    return last_round


def _lacking(document: Document, results: Results) -> list[str]:
    """Return the proxies whose rows do not tell since when they have their status."""
    ids = [str(status.proxy.id) for status in results.statuses]
    return [id for id in ids if not document.judgements.get(id, {}).get("since")]


def _merge(
    document: Document, results: Results, past: _Past, offline_since: int | None, deployment: str
) -> Merged:
    full_round, token = results.full_round, results.token
    if full_round and document.head["ticket"] > token:
        raise Superseded("a later round was committed before this one")
    merge = _Merge(document, token, past, offline_since)
    for id in results.removed:
        merge.remove(str(id))
    for status in results.statuses:
        merge.put(status)
    if full_round:
        present = results.present
        for absent in dict.fromkeys((*document.judgements, *(past.rows or ()))):
            if absent not in present:
                merge.remove(absent)
        if not full_round.missing:
            merge.record(full_round)
    document.head["deployment"] = deployment or document.head["deployment"]
    merge.finish()
    return Merged(document, merge.entries, past.has_all_rows)


class _Merge:
    """The merge of the results of one token into a document, in place.

    Per proxy, the higher token wins. A removed proxy leaves a tombstone with the token of its removal, which
    keeps it out for an hour, because a slower check may have read the proxy before.
    """

    def __init__(self, document: Document, token: int, past: _Past, offline_since: int | None) -> None:
        self.document = document
        self.token = token
        self.past = past
        self.entries: list[str] = []
        self._offline_since = offline_since
        self._thresholds = Thresholds.read()
        self._now: Instant | None = None
        if past.last_round:
            stale_after = 0 if past.is_lost else conf.STALE_AFTER
            self._now = Instant(token, past.last_round.at(token, stale_after, offline_since))
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
        found = {
            "name": status.proxy.name,
            "ticket": self.token,
            "checked_at": status.checked_at and self._rfc3339(status.checked_at),
            **status.judgement(),
        }
        self.document.judgements[id] = self._after(id, status.proxy, found)
        self.document.lines[id] = encode(status.proxy.to_json())
        self.tombstones.pop(id, None)

    def remove(self, id: str) -> None:
        if not self._wins(id):
            return
        self.tombstones[id] = self.token
        old = self.document.judgements.pop(id, None)
        before = self._known(id, old) or (old if self.past.rows is not None else None)
        if before and self._now:
            self._add_change(id, before["status"], {"name": before["name"], "status": REMOVED}, self._now)

    def _wins(self, id: str) -> bool:
        row = self.document.judgements.get(id)
        return self.token > max(row["ticket"] if row else 0, self.tombstones.get(id, 0))

    def _known(self, id: str, old: Row | None) -> Row | None:
        """Return the row of a status that the history has: the one in the document, or a later one."""
        remembered = self.past.rows.get(id) if self.past.rows else None
        if old and old.get("since") and not (remembered and remembered["ticket"] > old["ticket"]):
            return old
        return remembered

    def _after(self, id: str, proxy: Proxy, found: Row) -> Row:
        """Return the row after the result ``found``, and add the change that it confirms."""
        old = self.document.judgements.get(id)
        known = self._known(id, old)
        if self._now is None or (known is None and self.past.rows is None):
            return found  # without ``since``: a later commit asks the history, and records the change
        if before := known or old:
            # An older version wrote a row that the history does not have: the history begins now.
            before = known or {**before, "since": self._rfc3339(moment(self.token))}
            row, begin = confirm(before, found, self._now, self._results_needed(id, proxy, before, found))
            if begin or not self._is_recorded(id, row, known):
                self._add_change(id, before["status"], row, begin or self._now)
            return row
        self._add_change(id, UNKNOWN, found, self._now)
        return {**found, "since": rfc3339(moment(self.token))}

    def _is_recorded(self, id: str, row: Row, known: Row | None) -> bool:
        """Return True if the history has the status of ``row``, or will get it from the outbox."""
        if self.past.has_all_rows and self.past.rows is not None:
            remembered = self.past.rows.get(id)
            return remembered is not None and remembered["status"] == row["status"]
        return known is not None

    def _results_needed(self, id: str, proxy: Proxy, before: Row, found: Row) -> int:
        needed = self._thresholds.between(before["status"], found["status"])
        if needed > 1 and id in self.document.lines:
            url = parse_json(self.document.lines[id]).get("url")
            return needed if url == proxy.url else 1
        return needed

    def _add_change(self, id: str, before: str, row: Row, begin: Instant) -> None:
        fields = {key: row[key] for key in ("reason", "errors", "warnings") if row.get(key)}
        watched = min(begin.watched, self._now.watched) if self._now else begin.watched  # less, if is_lost
        self.entries.append(
            change_entry(id, row["name"], before, row["status"], self.token, begin.at, watched, fields)
        )

    def record(self, full_round: Round) -> None:
        """Make ``full_round`` the last full round. Add the gap before it."""
        head = self.document.head
        head.update(
            rounds=RoundHistogram.from_json(head["rounds"]).observe(full_round.duration).to_json(),
            ticket=self.token,
            checked_at=rfc3339(full_round.checked_at),
            duration=full_round.duration,
            stale_at=rfc3339(full_round.checked_at + timedelta(seconds=conf.STALE_AFTER)),
        )
        if self._now and self.past.last_round:
            known_until = self.past.last_round.token + self._now.watched - self.past.last_round.watched
            if known_until < self.token:
                self.entries.append(gap_entry(known_until, self.token, self._why(known_until)))
            head["watched"] = Watched(self.token, self._now.watched)
            self.entries.append(round_entry(*head["watched"]))

    def _why(self, known_until: int) -> str:
        if self.past.is_lost:
            return "redis_lost"
        is_offline = self._offline_since is not None and self._offline_since <= known_until
        return "offline" if is_offline else "no_rounds"

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
