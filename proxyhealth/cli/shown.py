"""Proxies and changes as text for people."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from django.utils.translation import gettext as _

from proxyhealth.api.listing import Listing
from proxyhealth.api.representation import public_name
from proxyhealth.cli.fleet import Chosen
from proxyhealth.cli.table import Cell, Column
from proxyhealth.display import STATUS_ALERTS, clock, number, runbook_url
from proxyhealth.notifications.wording import (
    duration,
    isolated,
    moment,
    reason_code,
    reason_sentence,
    seconds_between,
)
from proxyhealth.overview import prober
from proxyhealth.overview.headline import Level
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.texts import clean

STYLES: Mapping[str, str] = {
    Status.OK: "green",
    Status.UNHEALTHY: "yellow",
    Status.UNREACHABLE: "bold red",
    Status.UNREGISTERED: "cyan",
    Status.UNKNOWN: "magenta",
}
LEVEL_STYLES = {Level.OK: "bold green", Level.DOWN: "bold red", Level.UNKNOWN: "bold yellow"}

_MAX_TEXT = 1_000


def columns() -> list[Column]:
    """Return the columns of :func:`rows`."""
    return [
        Column(_("STATUS")),
        Column(_("PROXY")),
        Column(_("SINCE"), drop=1),
        Column(_("LATENCY"), drop=4, right=True),
        Column(_("CHECKED"), drop=3),
        Column(_("MARKS"), drop=2),
        Column(_("REASON"), flexible=True),
    ]


def rows(chosen: Chosen, limit: int | None = None) -> list[list[Cell]]:
    """Return a row of a table for each chosen proxy, or for the first ones."""
    now = datetime.now(UTC)
    return [_row(status, chosen, now) for status in chosen.statuses[:limit]]


def _row(status: ProxyStatus, chosen: Chosen, now: datetime) -> list[Cell]:
    last = status.last
    return [
        Cell(status.status, STYLES[status.status]),
        Cell(public_name(status.proxy.name, status.proxy.id)),
        Cell(duration(seconds_between(status.since, now)) if status.since else ""),
        Cell("" if last.latency is None else _("%(number)s ms") % {"number": number(1000 * last.latency)}),
        Cell(ago(last.checked_at, now) if last.checked_at else _("never")),
        Cell("; ".join(_marks(status, chosen)), "cyan"),
        Cell(reason(status)),
    ]


def ago(at: datetime, now: datetime) -> str:
    return _("%(duration)s ago") % {"duration": duration(seconds_between(at, now))}


def reason(status: ProxyStatus) -> str:
    """Return the reason of a status, its first message, and the last result if that contradicts it."""
    messages = [*status.report.errors, *status.report.warnings]
    parts = [reason_code(status.reason), *messages[:1]]
    if raw := status.raw:
        parts.insert(0, _("last result: %(status)s") % {"status": raw.status})
    return ": ".join(filter(None, parts))


def _marks(status: ProxyStatus, chosen: Chosen) -> Iterable[str]:
    marks, id = chosen.marks, status.proxy.id
    if silenced := marks.silenced.get(id):
        yield _("silenced until %(time)s") % {"time": clock(silenced)}
    if acknowledgement := marks.acknowledged.get(id):
        name = clean(acknowledgement.by, 64).strip()
        yield _("acknowledged by %(name)s") % {"name": name} if name else _("acknowledged")


def details(status: ProxyStatus, chosen: Chosen) -> Iterable[tuple[str, str]]:
    """Yield what is known of one proxy, as names and values."""
    now, proxy, last = datetime.now(UTC), status.proxy, status.last
    yield _("status"), status.status
    if status.since:
        yield _("since"), moment(status.since, now)
    if status.reason:
        yield _("reason"), f"{reason_code(status.reason)}. {reason_sentence(status.reason)}"
    yield from ((_("error"), text) for text in status.report.errors)
    yield from ((_("warning"), text) for text in status.report.warnings)
    if status.raw:
        yield _("last result"), ": ".join(filter(None, [last.status, last.reason, *last.report.errors[:1]]))
    if last.checked_at:
        yield _("checked"), moment(last.checked_at, now)
    if status.tls_expires_at:
        yield _("certificate until"), clock(status.tls_expires_at)
    yield from ((_("mark"), text) for text in _marks(status, chosen))
    if (acknowledgement := chosen.marks.acknowledged.get(proxy.id)) and acknowledgement.note:
        yield _("note"), acknowledgement.note
    yield from ((name, text) for name, text in _of_row(status) if text)


def _of_row(status: ProxyStatus) -> list[tuple[str, str]]:
    proxy = status.proxy
    return [
        (_("runbook"), runbook_url(STATUS_ALERTS.get(status.status, ""))),
        (_("URL"), proxy.url),
        (_("name"), proxy.display_name),
        (_("labels"), ", ".join(f"{key}:{value}" for key, value in proxy.labels.items())),
        (_("version"), proxy.version),
        (_("id"), str(proxy.id)),
    ]


def why_stale(current: Listing) -> str:
    """Return why these statuses may be out of date, and which part is missing if that is known, or ''."""
    snapshot, rows = current.parts.snapshot, current.parts.rows
    return text(" ".join(filter(None, [prober.why_stale(snapshot), rows.fault])))


def text(value: str) -> str:
    """Return a text of a proxy or a person for a line of its own."""
    return isolated(clean(value, _MAX_TEXT))


class Difference(NamedTuple):
    """The change of the status of a proxy between two reads. ``after`` is None for a deleted proxy."""

    id: UUID
    name: str
    before: ProxyStatus | None
    after: ProxyStatus | None

    def json(self) -> dict[str, str | None]:
        return {
            "id": str(self.id),
            "name": public_name(self.name, self.id),
            "before": self.before.status if self.before else None,
            "after": self.after.status if self.after else None,
            "reason": self.after.reason if self.after else None,
        }

    def line(self) -> list[Cell]:
        """Return the change in words."""
        before = self.before.status if self.before else _("new")
        after = self.after.status if self.after else _("deleted")
        cells = [
            Cell(f"{text(public_name(self.name, self.id))}: {before} → "),
            Cell(after, STYLES.get(after, "")),
        ]
        if self.after and (why := reason(self.after)):
            cells.append(Cell(f" ({text(why)})"))
        return cells


def differences(
    before: Mapping[UUID, ProxyStatus], after: Mapping[UUID, ProxyStatus]
) -> Sequence[Difference]:
    """Return the proxies whose status differs, sorted by name."""
    found = [
        Difference(id, (after.get(id) or before[id]).proxy.name, before.get(id), after.get(id))
        for id in before.keys() | after.keys()
        if _value(before.get(id)) != _value(after.get(id))
    ]
    return sorted(found, key=lambda each: (each.name.lower(), each.id))


def _value(status: ProxyStatus | None) -> Status | None:
    return status.status if status else None
