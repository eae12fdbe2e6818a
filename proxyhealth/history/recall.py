"""The memory of the history: the last statuses of the proxies, for a snapshot that has lost them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.db.models import Max

from proxyhealth.models import Transition, Watch
from proxyhealth.models.rows import using_database_of
from proxyhealth.storage.confirmation import Row, moment
from proxyhealth.storage.outbox import REMOVED, parse_entry, read_entries
from proxyhealth.storage.watch import Watched
from proxyhealth.utils import aware, rfc3339

_BATCH = 500  # ids in one query: SQLite has a limit


class DatabaseMemory:
    """The memory in the database, for one commit, which may have to merge more than once."""

    def __init__(self) -> None:
        self._rows: dict[frozenset[str] | None, Mapping[str, Row]] = {}

    def watched(self) -> Watched | None:
        """Return the last full round, or None before the first. Raise ``HistoryUnavailable``."""
        with using_database_of(Transition) as alias:
            row = Watch.objects.using(alias).first()
        return Watched(row.token, row.watched) if row else None

    def newest_change(self) -> int:
        """Return the token of the last change in the history, or 0. Raise ``HistoryUnavailable``."""
        with using_database_of(Transition) as alias:
            tokens = Transition.objects.using(alias).order_by("-token").values_list("token", flat=True)
            return tokens.first() or 0

    def latest(self, last_round: Watched) -> Watched:
        """Return the last moment of which anything is known: a check may have found a change after the round.

        Changes that wait in the outbox count, too. Raise ``HistoryUnavailable``.
        """
        entries = read_entries(0)  # first, because they move to the database meanwhile
        with using_database_of(Transition) as alias:
            later = Transition.objects.using(alias).filter(token__gt=last_round.token)
            recorded = later.aggregate(watched=Max("watched"))["watched"] or 0
        waiting = [entry["watched"] for entry in _parsed(entries) if entry["kind"] == "change"]
        watched = max(last_round.watched, recorded, *waiting)
        return Watched(last_round.token + watched - last_round.watched, watched)

    def rows(self, ids: Collection[str] | None) -> Mapping[str, Row]:
        """Return the last status of each of these proxies, or of all, as rows.

        Raise ``HistoryUnavailable``.
        """
        key = None if ids is None else frozenset(ids)
        if key not in self._rows:
            entries = read_entries(0)  # first, because they move to the database meanwhile
            with using_database_of(Transition) as alias:
                rows = dict(_read_rows(alias, ids))
            self._rows[key] = _with_changes(rows, entries, ids)
        return self._rows[key]


def _read_rows(alias: str, ids: Collection[str] | None) -> Iterator[tuple[str, Row]]:
    rows = Transition.objects.using(alias)
    if ids is None:
        found = list(rows.last_of_each())
    else:
        uuids = [UUID(id) for id in ids]
        batches = (uuids[start : start + _BATCH] for start in range(0, len(uuids), _BATCH))
        found = [row for batch in batches for row in rows.last_of_each(batch)]
    return ((str(row.proxy_uuid), _row(row)) for row in found if row.after != REMOVED)


def _with_changes(
    rows: dict[str, Row], entries: Iterable[bytes], ids: Collection[str] | None
) -> Mapping[str, Row]:
    """Return ``rows`` after the changes in the outbox, which are later.

    Workers of an earlier version discard the task that records them, so that they stay there for a while.
    """
    for entry in _parsed(entries):
        id, row = _changed_row(entry)
        if id and (ids is None or id in ids):
            rows[id] = row
    return {id: row for id, row in rows.items() if row["status"] != REMOVED}


def _parsed(entries: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the entries that can be recorded. The task that records them reports the others."""
    for entry in entries:
        with suppress(ValueError):
            yield parse_entry(entry)


def _changed_row(entry: Mapping[str, Any]) -> tuple[str, Row]:
    if entry["kind"] != "change":
        return "", {}
    since = rfc3339(moment(entry["at"]))
    return entry["proxy"], {
        "name": entry["name"],
        "ticket": entry["token"],
        "checked_at": since,
        "status": entry["after"],
        "since": since,
        **{key: entry[key] for key in ("reason", "errors", "warnings") if entry.get(key)},
    }


def _row(transition: Transition) -> Row:
    since = rfc3339(aware(transition.at))
    report = transition.report if isinstance(transition.report, dict) else {}
    row: Row = {
        "name": transition.proxy_name,
        "ticket": transition.token,
        "checked_at": since,
        "status": transition.after,
        "since": since,
    }
    if transition.reason:
        row["reason"] = transition.reason
    return row | {key: report[key] for key in ("errors", "warnings") if report.get(key)}
