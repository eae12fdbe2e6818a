"""The drain of the outbox: its entries become rows of the history, each exactly once.

An entry leaves the outbox only after its row is committed. Whatever is repeated, for example after a process
was killed in between, finds its row.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from proxyhealth.history import outages
from proxyhealth.models import Gap, Transition, Watch, WorkspaceProxy
from proxyhealth.models.rows import is_of_a_row, using_database_of
from proxyhealth.notifications import deliveries
from proxyhealth.signals import status_changed
from proxyhealth.statuses import Status
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.outbox import REMOVED, UNKNOWN, parse_entry, read_entries, remove_entries
from proxyhealth.texts import clean

logger = logging.getLogger(__name__)

_BATCH = 500  # entries in one transaction
_ATTEMPTS = 5  # of a transaction that meets the deletion of a proxy, or another process

# The fields that each kind of entry must have.
_PLAIN_NAME = re.compile(r"[\w-]+")


def record_history() -> None:
    """Write the entries of the outbox into the database, and take them out.

    Raise ``HistoryUnavailable`` if the database fails, or ``StoreError`` if the cache does. The entries that
    are not written stay in the outbox.
    """
    while entries := read_entries(_BATCH):
        with using_database_of(Transition) as alias:
            _record(alias, entries)
        remove_entries(entries)


def _record(alias: str, entries: Sequence[bytes]) -> None:
    try:
        _record_at_once(alias, entries)
    except Exception as error:
        if not is_of_a_row(error):
            raise
        if len(entries) == 1:
            # It must not keep the others out of the history.
            logger.error("an entry of the outbox cannot be recorded, and is lost: %r %r", entries[0], error)
            return
        middle = len(entries) // 2
        _record(alias, entries[:middle])
        _record(alias, entries[middle:])


def _record_at_once(alias: str, entries: Sequence[bytes]) -> None:
    contents = _Contents.parse(entries)
    for attempt in range(_ATTEMPTS):
        try:
            with transaction.atomic(using=alias):
                rows = contents.save(alias)
            break
        except IntegrityError:  # a proxy was deleted in the meantime, or another process was faster
            if attempt == _ATTEMPTS - 1:
                raise
    _log_changes(rows)


@dataclass(frozen=True)
class _Contents:
    """The contents of some entries, in their order."""

    changes: Sequence[dict[str, Any]]
    gaps: Sequence[Gap]
    last_round: Watch | None

    @classmethod
    def parse(cls, entries: Iterable[bytes]) -> "_Contents":
        """Raise ``ValueError`` for an entry that no version of the app has written."""
        changes: list[dict[str, Any]] = []
        gaps: list[Gap] = []
        last_round = None
        # SQLite would ignore a row with a null, as a conflict. So the types count.
        for entry in map(parse_entry, entries):
            match entry["kind"]:
                case "change":
                    changes.append({**entry, "proxy": UUID(entry["proxy"])})
                case "gap":
                    gaps.append(_gap(entry))
                case "round":
                    last_round = Watch(pk=1, token=entry["token"], watched=entry["watched"])
        return cls(changes, gaps, last_round)

    def save(self, alias: str) -> list[Transition]:
        """Save what is not saved yet, and return the new transitions."""
        rows = self._save_changes(alias) if self.changes else []
        Gap.objects.using(alias).bulk_create(self.gaps, ignore_conflicts=True)
        if self.last_round:
            _save_round(alias, self.last_round)
        return rows

    def _save_changes(self, alias: str) -> list[Transition]:
        pairs = list(self._new_rows(alias))
        rows = [row for row, _ in pairs]
        # If another process records the same entries, this one fails, and tries again with what is left.
        Transition.objects.using(alias).bulk_create(rows)
        found = outages.record(alias, rows)
        # Nobody is told of a status that is older than the history.
        told = [(row, found[index]) for index, (row, is_older) in enumerate(pairs) if not is_older]
        if told:
            deliveries.make(alias, [row for row, _ in told], [outage for _, outage in told])
        return rows

    def _new_rows(self, alias: str) -> Iterator[tuple[Transition, bool]]:
        """Yield the rows that are not saved yet, each with True if its status is older than the history."""
        transitions = Transition.objects.using(alias)
        ids = {change["proxy"] for change in self.changes}
        columns = ("proxy_uuid", "token", "after", "watched")
        last = {id: values for id, *values in transitions.last_of_each(ids).values_list(*columns)}
        existing = set(WorkspaceProxy.objects.using(alias).filter(pk__in=ids).values_list("pk", flat=True))
        due_at = timezone.now() if status_changed.has_listeners(WorkspaceProxy) else None
        for change in self.changes:
            id, after = change["proxy"], change["after"]
            token, before, watched = last.get(id, (0, UNKNOWN, 0))
            # The rows of a proxy form a chain, even if an entry is repeated, or Redis lost one.
            if change["token"] <= token or before == after or (before, after) == (UNKNOWN, REMOVED):
                continue
            # Another process may have recorded it while Redis was lost, too late for the known time to go on.
            change["watched"] = max(change["watched"], watched)
            last[id] = [change["token"], after, change["watched"]]
            row = _transition(change, before, id if id in existing else None)
            is_older = change["before"] == after
            row.signal_due_at = None if is_older else due_at
            yield row, is_older


def _save_round(alias: str, last_round: Watch) -> None:
    """Save the last round, unless another process has saved a later one: rounds never watch for less."""
    rows = Watch.objects.using(alias)
    values = {"token": last_round.token, "watched": last_round.watched}
    if not rows.filter(pk=1, watched__lte=last_round.watched).update(**values):
        rows.bulk_create([last_round], ignore_conflicts=True)


def _transition(change: dict[str, Any], before: str, proxy: UUID | None) -> Transition:
    report = {key: change[key] for key in ("errors", "warnings") if change.get(key)}
    return Transition(
        proxy_id=proxy,
        proxy_uuid=change["proxy"],
        proxy_name=clean(change["name"], 64),
        before=before[:32],
        after=change["after"][:32],
        at=_time(change["at"]),
        reason=change.get("reason", "")[:32],
        report=report,
        token=change["token"],
        watched=change["watched"],
    )


def _gap(entry: dict[str, Any]) -> Gap:
    start, end = entry["start"], entry["end"]
    return Gap(
        start=_time(start),
        end=_time(end),
        why=entry["why"][:16],
        token=entry["token"],
        microseconds=end - start,
    )


def _time(microseconds: int) -> datetime:
    time = moment(microseconds)
    return time if settings.USE_TZ else timezone.make_naive(time)


def _log_changes(rows: Iterable[Transition]) -> None:
    for row in rows:
        errors = row.report.get("errors")
        logger.log(
            logging.INFO if row.after in (Status.OK, REMOVED) else logging.WARNING,
            "status change proxy=%s name=%s from=%s to=%s reason=%s error=%s",
            row.proxy_uuid,
            # Names and errors are quoted, so that they cannot forge a log line.
            row.proxy_name if _PLAIN_NAME.fullmatch(row.proxy_name) else json.dumps(row.proxy_name),
            row.before,
            row.after,
            row.reason or "none",
            json.dumps(errors[0] if errors else ""),
        )
