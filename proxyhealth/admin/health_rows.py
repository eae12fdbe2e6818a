"""The rows of the health page: what is known of each proxy, who has it, and where to go from here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from proxyhealth import access, isolation
from proxyhealth.admin import silences
from proxyhealth.display import STATUS_ALERTS, runbook_url
from proxyhealth.exceptions import StoreError
from proxyhealth.history.strips import Cell, strips
from proxyhealth.models import Outage
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications.marks import Marks
from proxyhealth.notifications.wording import reason_sentence, seconds_between
from proxyhealth.overview.headline import length
from proxyhealth.overview.pictures import sparkline, strip
from proxyhealth.overview.selection import Selection
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.storage.probes import RecentProbe, read_probes
from proxyhealth.texts import clean

if TYPE_CHECKING:
    from proxyhealth.admin.proxies import WorkspaceProxyAdmin

logger = logging.getLogger(__name__)

_HOURS = 3  # of a sparkline: more take longer to read than all else on the page

# A certificate that expires within this time is marked.
_SOON = timedelta(days=14)


class Permissions(NamedTuple):
    """The actions and the links that a user gets. ``silence`` is the address of the form, or ''."""

    check: bool
    outages: bool
    silence: str


class Certificate(NamedTuple):
    """The time at which a certificate expires, how long until then, and how urgent that is."""

    expires_at: datetime
    text: str
    kind: str


@dataclass(frozen=True)
class Row:
    """One proxy on the page."""

    status: ProxyStatus
    url: str
    lasting: str
    reason: str
    runbook: str
    silenced_until: datetime | None
    outage: Outage | None
    outage_url: str
    acknowledged_by: str
    silence_url: str
    labels: Sequence[tuple[str, str]]
    certificate: Certificate | None
    sparkline: SafeString
    strip: SafeString

    @property
    def id(self) -> UUID:
        return self.status.proxy.id


@dataclass(frozen=True)
class Rows:
    """The values that all rows of a page have in common."""

    permissions: Permissions
    snapshot: Snapshot
    marks: Marks
    reverse: Any

    @classmethod
    def of(cls, request: HttpRequest, admin: WorkspaceProxyAdmin, snapshot: Snapshot, marks: Marks) -> Rows:
        site = admin.admin_site
        permissions = Permissions(
            check=admin.has_change_permission(request),
            outages=site.is_registered(Outage)
            and access.is_granted(site.get_model_admin(Outage).has_view_permission(request)),
            silence=silences.add_url(site, request),
        )
        return cls(permissions, snapshot, marks, partial(_reverse, site.name))

    def of_page(self, statuses: Sequence[ProxyStatus], selection: Selection, now: datetime) -> list[Row]:
        """Return the rows of these proxies, with a fixed number of queries."""
        ids = [status.proxy.id for status in statuses]
        outages = self._outages(statuses)
        curves = {id: sparkline(probes, _HOURS, now) for id, probes in self._probes(ids, now).items()}
        pictures = _pictures(strips(self.snapshot, ids, selection.window)) if ids else {}
        return [
            self._row(
                status,
                outages.get(status.proxy.id),
                curves.get(status.proxy.id, SafeString()),
                pictures[status.proxy.id],
                selection,
                now,
            )
            for status in statuses
        ]

    def _row(
        self,
        status: ProxyStatus,
        outage: Outage | None,
        curve: SafeString,
        picture: SafeString,
        selection: Selection,
        now: datetime,
    ) -> Row:
        proxy, silence = status.proxy, self.permissions.silence
        until = self.marks.silenced.get(proxy.id)
        return Row(
            status,
            self.reverse("workspaceproxy_detail", proxy.id)
            or self.reverse("workspaceproxy_change", proxy.id),
            length(seconds_between(status.since, now)) if status.since else "",
            reason_sentence(status.reason),
            runbook_url(STATUS_ALERTS.get(status.status, "")),
            until,
            outage,
            self.reverse("outage_change", outage.pk) if outage else "",
            clean(outage.acknowledged_name, 150).strip() if outage else "",
            f"{silence}?{urlencode({'proxies': proxy.name})}" if silence and not until else "",
            _labels(status, selection),
            _certificate(status, now),
            curve,
            picture,
        )

    def _outages(self, statuses: Sequence[ProxyStatus]) -> Mapping[UUID, Outage]:
        bad = [status.proxy.id for status in statuses if status.status in BAD_STATUSES]
        if not bad or not self.permissions.outages:
            return {}
        rows = Outage.objects.primary().open().filter(proxy_uuid__in=bad).defer("note")
        return {row.proxy_uuid: row for row in rows}

    def _probes(self, ids: Sequence[UUID], now: datetime) -> Mapping[UUID, Sequence[RecentProbe]]:
        # Do not wait for a cache that has just failed.
        if isolation.is_isolated() or self.snapshot.fault:
            return {}
        try:
            return read_probes(ids, now - timedelta(hours=_HOURS))
        except StoreError as error:
            logger.warning("the recent probes cannot be read: %s", error)
            return {}


def _pictures(cells: Mapping[UUID, Sequence[Cell]]) -> Mapping[UUID, SafeString]:
    """Return the strip of each proxy. Most of them are the same: those without a change."""
    drawn: dict[int, SafeString] = {}
    for of_proxy in cells.values():
        if id(of_proxy) not in drawn:
            drawn[id(of_proxy)] = strip(of_proxy)
    return {proxy: drawn[id(of_proxy)] for proxy, of_proxy in cells.items()}


def _labels(status: ProxyStatus, selection: Selection) -> list[tuple[str, str]]:
    """Return the labels of a proxy, each with the address that shows only proxies that have it, too."""
    chosen = selection.labels
    pairs = status.proxy.labels.items()
    return [
        (f"{key}: {value}", selection.query(labels=tuple(dict.fromkeys((*chosen, f"{key}:{value}")))))
        for key, value in pairs
    ]


def _certificate(status: ProxyStatus, now: datetime) -> Certificate | None:
    at = status.tls_expires_at
    if at is None:
        return None
    left = seconds_between(now, at)
    if left <= 0:
        return Certificate(at, _("expired %(duration)s ago") % {"duration": length(-left)}, "error")
    text = _("expires in %(duration)s") % {"duration": length(left)}
    return Certificate(at, text, "warning" if left < _SOON.total_seconds() else "")


def _reverse(site: str, page: str, id: Any) -> str:
    """Return the address of a page, or '' if the host has unregistered it."""
    try:
        return reverse(f"{site}:proxyhealth_{page}", args=[id])
    except NoReverseMatch:
        return ""
