"""The public values of the status page: no URLs, no reports, no reasons, and no notes."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import NamedTuple
from uuid import UUID, uuid5

from django.db import Error as DatabaseError
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from proxyhealth.display import name_of, number
from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.history.strips import Cell, strips
from proxyhealth.models import Outage
from proxyhealth.models.outages import BAD_STATUSES, OutageQuerySet
from proxyhealth.models.rows import using_database_of
from proxyhealth.overview.headline import Headline, headline, length
from proxyhealth.overview.pictures import strip
from proxyhealth.snapshot import Proxy, ProxyStatus, Snapshot
from proxyhealth.statuses import Status
from proxyhealth.texts import without_passwords
from proxyhealth.utils import aware

logger = logging.getLogger(__name__)

MAX_REGIONS = 500  # on the page; if there are more, healthy ones are left out
MAX_OUTAGES = 50  # that have ended
RECENT = timedelta(days=30)

# A path of this site. Browsers read a backslash as a slash, and leave out tabs and line ends.
_OWN_ICON = re.compile(r"/(?![/\\])[^\s\\\x00-\x1f]*")

# The errors of a database, and of rows that other programs have written.
_FAILURES = (DatabaseError, HistoryUnavailable, ValueError, TypeError, OverflowError)


@dataclass(frozen=True)
class PastOutage:
    """An outage, with the display name of its region. ``ended_at`` is None while it lasts.

    ``id`` is None until the history has the outage.
    """

    id: UUID | None
    name: str
    began_at: datetime
    ended_at: datetime | None
    duration: str


@dataclass(frozen=True)
class Region:
    """A region as everyone may see it. ``kind`` is ``up``, ``down``, or ``unknown``."""

    name: str
    icon: str
    kind: str
    word: str
    strip: SafeString | str = ""
    uptime: str = ""


@dataclass(frozen=True)
class Contents:
    """All that the page shows. ``hidden`` is the number of regions that it does not list.

    ``has_history`` is False if the database cannot be read. The strips and outages are then missing.
    """

    headline: Headline
    regions: Sequence[Region]
    hidden: int
    current: Sequence[PastOutage]
    recent: Sequence[PastOutage]
    has_history: bool
    stale: bool
    checked_at: datetime | None


def public_statuses(snapshot: Snapshot) -> list[ProxyStatus]:
    """Return the statuses of the regions."""
    return list(filter(is_public, snapshot.statuses.values()))


def is_public(status: ProxyStatus) -> bool:
    """Return True if the proxy is a region. One without a URL is not in use yet."""
    return status.status is not Status.UNREGISTERED


def kind_of(status: ProxyStatus) -> str:
    """Return ``up``, ``down``, or ``unknown``."""
    if status.healthy:
        return "up"
    return "down" if status.status in BAD_STATUSES else "unknown"


def word_of(kind: str, *, stale: bool) -> str:
    """Return the word for a kind. That of a stale snapshot says that it is the last known one."""
    if stale:
        words = {"up": _("Last known: up"), "down": _("Last known: down")}
    else:
        words = {"up": _("Up"), "down": _("Down")}
    return words.get(kind) or _("Not known")


def read_contents(snapshot: Snapshot, *, with_strips: bool = True) -> Contents:
    """Return the contents of the page, with a fixed number of queries. Never raise if the database fails."""
    now = datetime.now(UTC)
    statuses = public_statuses(snapshot)
    shown = statuses
    if len(statuses) > MAX_REGIONS:
        shown = sorted(statuses, key=attrgetter("healthy"))[:MAX_REGIONS]
    shown = sorted(shown, key=lambda each: name_of(each.proxy).casefold())
    ids = {each.proxy.id for each in shown} if with_strips else set()
    history = _read_history(snapshot, statuses, ids, now)
    return Contents(
        headline=headline(snapshot, statuses, now),
        regions=[_region(each, history.cells.get(each.proxy.id, ()), snapshot.stale) for each in shown],
        hidden=len(statuses) - len(shown),
        current=history.current,
        recent=history.recent,
        has_history=history.is_known,
        stale=snapshot.stale,
        checked_at=snapshot.checked_at,
    )


def _region(status: ProxyStatus, cells: Sequence[Cell], stale: bool) -> Region:
    kind, name, icon = kind_of(status), name_of(status.proxy), status.proxy.icon
    return Region(
        name=name,
        icon=icon if _OWN_ICON.fullmatch(icon) else "",
        kind=kind,
        word=word_of(kind, stale=stale),
        strip=strip(cells, name) if cells else "",
        uptime=_uptime(cells),
    )


def _uptime(cells: Sequence[Cell]) -> str:
    up, down = (sum(getattr(cell, name) for cell in cells) for name in ("up", "down"))
    if up + down < 1:
        return ""
    # Rounded down: less than all of the time is never shown as 100.
    return _("up %(percent)s %% of the known time") % {
        "percent": number(int(10_000 * up / (up + down)) / 100, 2)
    }


class _History(NamedTuple):
    """The part that the database knows: the strips by proxy, and the outages."""

    cells: Mapping[UUID, Sequence[Cell]]
    current: Sequence[PastOutage]
    recent: Sequence[PastOutage]
    is_known: bool = True


def _read_history(
    snapshot: Snapshot, statuses: Sequence[ProxyStatus], ids: Collection[UUID], now: datetime
) -> _History:
    """Return the outages of ``statuses``, and the strips of the proxies with these ids."""
    try:
        with using_database_of(Outage):
            cells = strips(snapshot, ids, "90d") if ids else {}
            open_rows = list(_rows().open())
            ended = list(_rows().filter(ended_at__gt=now - RECENT)[: 2 * MAX_OUTAGES])
    except _FAILURES as error:
        logger.warning("the history of the status page cannot be read: %s", without_passwords(error))
        return _History({}, _without_rows(statuses, now), [], is_known=False)
    public = {each.proxy.id: each.proxy for each in statuses}
    begins = {row.proxy_uuid: row for row in open_rows}
    current = [
        _outage(begins[each.proxy.id], each.proxy, now)
        if each.proxy.id in begins
        else _without_row(each, now)
        for each in statuses
        if kind_of(each) == "down"
    ]
    recent = [_outage(row, public[row.proxy_uuid], now) for row in ended if row.proxy_uuid in public]
    return _History(cells, _newest_first(current), recent[:MAX_OUTAGES])


def _rows() -> OutageQuerySet:
    rows = Outage.objects.primary().only("proxy_uuid", "token", "began_at", "ended_at")
    return rows.order_by("-token", "-pk")


def _newest_first(outages: Sequence[PastOutage]) -> list[PastOutage]:
    return sorted(outages, key=attrgetter("began_at"), reverse=True)


def _outage(row: Outage, proxy: Proxy, now: datetime) -> PastOutage:
    began_at, ended_at = aware(row.began_at), row.ended_at and aware(row.ended_at)
    seconds = ((ended_at or now) - began_at).total_seconds()
    id = uuid5(row.proxy_uuid, str(row.token))
    return PastOutage(id, name_of(proxy), began_at, ended_at, length(seconds))


def _without_rows(statuses: Sequence[ProxyStatus], now: datetime) -> list[PastOutage]:
    return _newest_first([_without_row(each, now) for each in statuses if kind_of(each) == "down"])


def _without_row(status: ProxyStatus, now: datetime) -> PastOutage:
    """Return an outage whose row is not written yet, or cannot be read."""
    began_at = status.since or status.checked_at or now
    return PastOutage(None, name_of(status.proxy), began_at, None, length((now - began_at).total_seconds()))
