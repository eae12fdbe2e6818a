"""The marks of proxies beside their statuses: silences that are in force, and acknowledged outages."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self
from uuid import UUID

from django.db import router

from proxyhealth.models import Outage
from proxyhealth.models.rows import read_rows
from proxyhealth.notifications.silences import Silences
from proxyhealth.snapshot import Proxy
from proxyhealth.utils import aware


class Acknowledgement(NamedTuple):
    """The acknowledgement of an open outage."""

    by: str
    at: datetime
    note: str


@dataclass(frozen=True)
class Marks:
    """The end of the silence of each proxy that is silenced, and the acknowledgements of open outages.

    ``basis`` is all that ``silenced`` depends on.
    """

    silenced: Mapping[UUID, datetime]
    acknowledged: Mapping[UUID, Acknowledgement]
    basis: Any = None

    @classmethod
    def read(cls, proxies: Sequence[Proxy], before: Self | None = None) -> Self:
        """Read the marks of these proxies with two queries. Return ``before`` if they are the same."""
        alias = router.db_for_write(Outage)
        silences, now = Silences.read(alias), datetime.now(UTC)
        basis = (proxies, silences.basis(now)) if silences.in_force(now) else None
        silenced = before.silenced if before and before.basis == basis else silences.of(proxies, now)
        marks = cls(silenced, _read_acknowledgements(alias), basis)
        return before if before and before == marks else marks

    @property
    def ids(self) -> Set[UUID]:
        """The ids of the proxies that have a mark."""
        return self.silenced.keys() | self.acknowledged.keys()


NO_MARKS = Marks({}, {})


def _read_acknowledgements(alias: str) -> dict[UUID, Acknowledgement]:
    rows = Outage.objects.using(alias).open().filter(acknowledged_at__isnull=False).order_by()
    columns = rows.values_list("proxy_uuid", "acknowledged_name", "acknowledged_at", "note")
    return dict(read_rows(columns, _parse)[0])


def _parse(rows: Iterable[tuple[UUID, str, datetime, str]]) -> list[tuple[UUID, Acknowledgement]]:
    return [(id, Acknowledgement(by, aware(at), note)) for id, by, at, note in rows]
