"""The changes of statuses since a moment, also those that still have to be recorded."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

from proxyhealth.models import Transition
from proxyhealth.models.rows import using_database_of
from proxyhealth.storage.outbox import parse_entry, read_entries

# The most entries and rows that are read: more changes tell nobody more.
_MAX_ROWS = 1_000


class StatusChange(NamedTuple):
    """The change of the status of a proxy. ``after`` may be ``removed``, and ``before`` ``unknown``."""

    id: UUID
    name: str
    before: str
    after: str


def changes_since(token: int, ids: Collection[UUID] | None = None) -> list[StatusChange]:
    """Return what the checks and rounds after ``token`` have changed, of these proxies or of all.

    Several changes of a proxy are one, from the first status to the last. Raise ``HistoryUnavailable`` or
    ``StoreError``.
    """
    waiting = list(_waiting(token))  # first, because they move to the database meanwhile
    with using_database_of(Transition) as alias:
        rows = Transition.objects.using(alias).filter(token__gt=token).order_by("token", "pk")
        if ids is not None:
            rows = rows.filter(proxy_uuid__in=ids)
        columns = rows.values_list("proxy_uuid", "proxy_name", "before", "after")
        recorded = [StatusChange(*values) for values in columns[:_MAX_ROWS]]
    merged: dict[UUID, StatusChange] = {}
    for change in [*recorded, *waiting]:
        if ids is None or change.id in ids:
            first = merged.get(change.id, change)
            merged[change.id] = change._replace(before=first.before)
    return [change for change in merged.values() if change.before != change.after]


def _waiting(token: int) -> Iterator[StatusChange]:
    for text in read_entries(_MAX_ROWS):
        with suppress(ValueError):  # the task that records it reports it
            entry = parse_entry(text)
            if entry["kind"] == "change" and entry["token"] > token:
                yield StatusChange(UUID(entry["proxy"]), entry["name"], entry["before"], entry["after"])
