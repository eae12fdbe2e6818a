"""The health page: how many proxies have each status, and which of them fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2s
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from django.contrib.messages import get_messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Page, Paginator
from django.db.models import Count, Max
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.cache import get_conditional_response
from django.utils.timezone import get_current_timezone_name
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from proxyhealth import access, health
from proxyhealth.admin.health_controls import Controls, count_labels
from proxyhealth.admin.health_rows import Rows
from proxyhealth.api import inventory
from proxyhealth.display import number
from proxyhealth.exceptions import InvalidQuery
from proxyhealth.models import Outage
from proxyhealth.notifications.marks import Marks
from proxyhealth.overview import prober
from proxyhealth.overview.headline import headline
from proxyhealth.overview.selection import BY_URGENCY, Selection
from proxyhealth.snapshot import ProxyStatus, Snapshot

if TYPE_CHECKING:
    from proxyhealth.admin.proxies import WorkspaceProxyAdmin

ROWS_PER_PAGE = 50

_NAME = "proxyhealth_workspaceproxy"


class HealthPage:
    """The views of the health page in one admin site."""

    def __init__(self, model_admin: WorkspaceProxyAdmin) -> None:
        self._admin = model_admin

    def urls(self) -> list[URLPattern]:
        view = self._admin.admin_site.admin_view
        return [path("health/", access.outside_transactions(view(self.show)), name=f"{_NAME}_health")]

    def show(self, request: HttpRequest) -> HttpResponse:
        """Show the headline, the number of proxies by status, and one row per selected proxy.

        An open page asks every few seconds. If nothing has changed, the response is 304 without a page.
        """
        if not self._admin.has_view_permission(request):
            raise PermissionDenied
        fleet = _Fleet.read()
        rows = Rows.of(request, self._admin, fleet.snapshot, fleet.marks)
        tag = _tag(request, fleet, rows)
        # A message is shown once, so it is never left out.
        unchanged = None if len(get_messages(request)) else get_conditional_response(request, tag)
        if unchanged and unchanged.status_code == HTTPStatus.NOT_MODIFIED:
            unchanged["ETag"] = tag
            return unchanged
        context = {
            **self._admin.admin_site.each_context(request),
            "opts": self._admin.opts,
            "snapshot": fleet.snapshot,
            "fault": fleet.fault,
            "may_add": self._admin.has_add_permission(request),
            **_selected(request, fleet, rows),
        }
        template = "admin/proxyhealth/workspaceproxy/health.html"
        return TemplateResponse(request, template, context, headers={"ETag": tag})


class _Fleet(NamedTuple):
    """The statuses of the proxies as the rows are now. ``fault`` is the reason why the rows may be old."""

    snapshot: Snapshot
    rows: inventory.Inventory
    statuses: Sequence[ProxyStatus]
    labels: Counter[str]
    marks_text: str  # all marks, for the ETag

    @classmethod
    def read(cls) -> _Fleet:
        global _last_fleet
        snapshot = health.snapshot()
        rows = inventory.read((snapshot.committed_at, snapshot.change), now=True)
        before = _last_fleet if _last_fleet and _last_fleet.rows.proxies is rows.proxies else None
        if before and before.snapshot.statuses is snapshot.statuses:
            statuses = before.statuses
        else:
            found = snapshot.statuses
            statuses = [health.join(proxy, found.get(proxy.id)) for proxy in rows.proxies]
        labels = before.labels if before else count_labels(rows.proxies)
        if before and before.marks is rows.marks:
            marks_text = before.marks_text
        else:
            marks_text = repr((sorted(rows.marks.silenced.items()), sorted(rows.marks.acknowledged.items())))
        _last_fleet = fleet = cls(snapshot, rows, statuses, labels, marks_text)
        return fleet

    @property
    def marks(self) -> Marks:
        return self.rows.marks

    @property
    def fault(self) -> str:
        return self.rows.fault


# Of this process: joining the proxies of a large fleet takes longer than all else on an unchanged page.
_last_fleet: _Fleet | None = None


def _tag(request: HttpRequest, fleet: _Fleet, rows: Rows) -> str:
    """Return the ETag of the page, made of all that it depends on. Ages are shown to the minute."""
    snapshot = fleet.snapshot
    outages = Outage.objects.primary().open().aggregate(count=Count("pk"), last=Max("pk"))
    inputs = (
        (snapshot.number, snapshot.token, snapshot.committed_at, snapshot.change),
        (snapshot.checked_at, snapshot.error_at, prober.why_stale(snapshot), snapshot.refusal, fleet.fault),
        (fleet.rows.changed_at, len(fleet.statuses), fleet.marks_text, outages),
        (request.get_full_path(), request.user.pk, rows.permissions),
        (get_language(), get_current_timezone_name(), datetime.now(UTC).strftime("%Y%m%d%H%M")),
    )
    return f'W/"{blake2s(repr(inputs).encode(), digest_size=16).hexdigest()}"'


def _selected(request: HttpRequest, fleet: _Fleet, rows: Rows) -> dict[str, Any]:
    """Return the part of the context that depends on the parameters of the address."""
    now, problem, selection = datetime.now(UTC), "", Selection()
    try:
        selection = Selection.parse(request.GET)
    except InvalidQuery as error:
        problem = str(error)
    found = headline(fleet.snapshot, fleet.statuses, now)
    others = replace(selection, statuses=())
    of_others = [] if problem else others.filter(fleet.statuses, fleet.marks)
    chosen = replace(Selection(), statuses=selection.statuses).filter(of_others)
    page: Page[ProxyStatus] = Paginator(selection.sorted(chosen, fleet.marks), ROWS_PER_PAGE).get_page(
        selection.page
    )
    counts = Counter(status.status for status in of_others)
    return {
        "title": found.text,
        "headline": found,
        "problem": problem,
        "selection": selection,
        "controls": Controls(selection, fleet.labels),
        "counts": [(status, counts[status], selection.query(statuses=(status,))) for status in BY_URGENCY],
        "all_url": selection.query(statuses=()),
        "total": len(of_others),
        "all": len(fleet.statuses),
        "page": page,
        "pages": _neighbours(page, selection),
        "hint": _hint(page, len(fleet.statuses)) if rows.permissions.check else "",
        "rows": rows.of_page(list(page), selection, now),
        "may_check": rows.permissions.check,
    }


def _neighbours(page: Page[ProxyStatus], selection: Selection) -> dict[str, str]:
    """Return the addresses of the previous and the next page, if there are any."""
    pages = {}
    if page.has_previous():
        pages["previous"] = selection.query(page=page.previous_page_number())
    if page.has_next():
        pages["next"] = selection.query(page=page.next_page_number())
    return pages


def _hint(page: Page[ProxyStatus], total: int) -> str:
    """Return what the buttons act on, if that is not what is on the page."""
    found = page.paginator.count
    values = {"shown": number(len(page)), "found": number(found), "total": number(total)}
    if len(page) < found:
        return (
            _(
                "This page shows %(shown)s of %(found)s matches. Only proxies of this page can be chosen; "
                "“Check all now” checks all %(total)s proxies."
            )
            % values
        )
    if found < total:
        return _("“Check all now” checks all %(total)s proxies, not only the %(found)s matches.") % values
    return ""
