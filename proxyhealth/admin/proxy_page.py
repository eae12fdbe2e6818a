"""The page of one proxy: its status and what to do, its history, its last report, and its last probe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _

from proxyhealth import access, health
from proxyhealth.admin import silences
from proxyhealth.admin.history import badge, change_of, report_of
from proxyhealth.display import STATUS_ALERTS, name_of, number, runbook_url, time_tag
from proxyhealth.history.strips import strips
from proxyhealth.history.uptime import NOTHING, WINDOWS, Uptime, uptimes
from proxyhealth.models import Delivery, Outage, Silence, Transition, WorkspaceProxy
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications.silences import current as current_silences
from proxyhealth.notifications.wording import duration, reason_sentence
from proxyhealth.overview.course import requests_of
from proxyhealth.overview.curl import curl_command
from proxyhealth.overview.pictures import latency_chart, strip
from proxyhealth.snapshot import Proxy, ProxyStatus, Snapshot
from proxyhealth.texts import without_controls
from proxyhealth.utils import aware

if TYPE_CHECKING:
    from proxyhealth.admin.proxies import WorkspaceProxyAdmin

_NAME = "proxyhealth_workspaceproxy"

# Rows of each table of the page. There are links to all.
_MAX_CHANGES = 20
_MAX_OUTAGES = 10
_MAX_DELIVERIES = 20
_MAX_SILENCES = 10

_DAY = 86_400


class ProxyPage:
    """The page of one proxy in one admin site."""

    def __init__(self, model_admin: WorkspaceProxyAdmin) -> None:
        self._admin = model_admin

    def urls(self) -> list[URLPattern]:
        view = access.outside_transactions(self._admin.admin_site.admin_view(self.show))
        return [path("<uuid:proxy_id>/detail/", view, name=f"{_NAME}_detail")]

    def show(self, request: HttpRequest, proxy_id: UUID) -> HttpResponse:
        if not self._admin.has_view_permission(request):
            raise PermissionDenied
        snapshot = health.snapshot()
        found = WorkspaceProxy.objects.primary().filter(pk=proxy_id).as_proxies()
        if not found:
            raise Http404(_("There is no workspace proxy with this id that can be read."))
        proxy = found[0]
        status = health.join(proxy, snapshot.statuses.get(proxy.id))
        may_edit = self._admin.has_change_permission(request)
        context = {
            **self._admin.admin_site.each_context(request),
            "opts": self._admin.opts,
            "title": name_of(proxy),
            "proxy": proxy,
            "status": status,
            "snapshot": snapshot,
            "may_edit": may_edit,
            "may_check": may_edit and not proxy.deleted,
            "badge_stale": snapshot.stale and not proxy.deleted,
            **_facts(status),
            **_course(status),
            **_history(snapshot, proxy.id),
            **self._rows(request, proxy),
            **self._silences(request, proxy),
        }
        return TemplateResponse(request, "admin/proxyhealth/workspaceproxy/detail.html", context)

    def _may_view(self, request: HttpRequest, model: Any) -> bool:
        site = self._admin.admin_site
        return site.is_registered(model) and site.get_model_admin(model).has_view_permission(request)

    def _list(self, page: str, **query: Any) -> str:
        return f"{reverse(f'{self._admin.admin_site.name}:proxyhealth_{page}')}?{urlencode(query)}"

    def _rows(self, request: HttpRequest, proxy: Proxy) -> dict[str, Any]:
        """Return the newest changes, outages and deliveries that the user may see, and links to all."""
        found: dict[str, Any] = {}
        changes = list(_of_proxy(Transition, proxy)[:_MAX_CHANGES])
        if self._may_view(request, Transition):
            found["changes"] = _changes(changes)
            found["changes_url"] = self._list("transition_changelist", proxy=proxy.id)
        if self._may_view(request, Outage):
            outages = list(_of_proxy(Outage, proxy)[:_MAX_OUTAGES])
            found["outages"] = _outages(outages)
            found["open_outage"] = next((row for row in outages if row.ended_at is None), None)
            found["outages_url"] = self._list("outage_changelist", proxy=proxy.id)
            found["may_acknowledge"] = access.is_granted(
                request.user.has_perm("proxyhealth.acknowledge_outage")
            )
        if self._may_view(request, Delivery):
            rows = Delivery.objects.primary().filter(transition__in=[row.pk for row in changes])
            rows = rows.select_related("channel", "transition").defer("channel__target", "channel__secret")
            found["deliveries"] = list(rows.order_by("-pk")[:_MAX_DELIVERIES])
        return found

    def _silences(self, request: HttpRequest, proxy: Proxy) -> dict[str, Any]:
        """Return the silences that are in force for the proxy, and the address of the form of a new one."""
        add = silences.add_url(self._admin.admin_site, request)
        query = urlencode({"proxies": proxy.name}, errors="replace")
        current, now = current_silences(), datetime.now(UTC)
        until = current.until(proxy.name, proxy.labels, now)
        found: dict[str, Any] = {
            "silence_url": add and f"{add}?{query}",
            "silenced_until": until and time_tag(until, with_age=False),
        }
        if until and self._may_view(request, Silence):
            chosen = [
                times.pk
                for times in current.in_force(now)
                if times.selector.matches(proxy.name, proxy.labels)
            ]
            rows = Silence.objects.using(router.db_for_write(Silence)).filter(pk__in=chosen[:_MAX_SILENCES])
            found["silences"] = list(rows.order_by("ends"))
        return found


def _of_proxy(model: type[Transition] | type[Outage], proxy: Proxy) -> QuerySet[Any]:
    """Return the rows of a proxy, the newest first, by an index."""
    rows: QuerySet[Any] = model.objects.primary()
    return rows.filter(proxy_uuid=proxy.id).order_by("-token")


def _facts(status: ProxyStatus) -> dict[str, Any]:
    """Return what is known of the proxy now, and what to do, in words."""
    last = status.last
    return {
        "badge_status": Transition.REMOVED if status.proxy.deleted else status.status,
        "advice": reason_sentence(status.reason),
        "last_advice": reason_sentence(last.reason) if status.raw else "",
        "runbook_url": runbook_url(
            STATUS_ALERTS.get(last.status, "") or STATUS_ALERTS.get(status.status, "")
        ),
        "certificate_until": last.tls_expires_at and time_tag(last.tls_expires_at, with_age=False),
        "command": curl_command(status.proxy.url),
    }


def _course(status: ProxyStatus) -> dict[str, Any]:
    """Return how the last probe went, if that is known."""
    course = health.last_trace(status.proxy.id)
    if course is None or not status.proxy.url:
        return {}
    return {
        "course": course,
        "course_requests": requests_of(course),
        "course_is_older": status.last.checked_at != course.checked_at,
    }


def _history(snapshot: Snapshot, id: UUID) -> dict[str, Any]:
    probes = health.recent_probes(id)
    return {
        "has_probes": any(each.latency is not None or each.status in BAD_STATUSES for each in probes),
        "chart": latency_chart(probes),
        "strips": [
            (title, strip(strips(snapshot, [id], window)[id], title))
            for window, title in (("24h", _("Last 24 hours")), ("90d", _("Last 90 days")))
        ],
        "uptimes": _uptimes(uptimes(snapshot, [id]).get(id, NOTHING)),
    }


class UptimeRow(NamedTuple):
    """The uptime in one window, in words."""

    window: str
    ratio: str
    down: str
    unknown: str


def _uptimes(windows: Mapping[str, Uptime]) -> list[UptimeRow]:
    rows = []
    for name, days in WINDOWS.items():
        up, known = windows[name]
        ratio = windows[name].ratio
        unknown = max(0.0, days * _DAY - known)
        rows.append(
            UptimeRow(
                _("24 hours") if days == 1 else _("%(count)s days") % {"count": number(days)},
                _("not known") if ratio is None else _percent(ratio),
                duration(known - up),
                duration(unknown) if unknown >= 1 else _("nothing"),
            )
        )
    return rows


def _percent(ratio: float) -> str:
    """Return a part as a percentage, rounded down: only what was never down is 100 %."""
    return _("%(number)s %%") % {"number": number(math.floor(ratio * 100_000) / 1_000, 3)}


def _changes(rows: Sequence[Transition]) -> list[dict[str, Any]]:
    """Return the changes of the timeline, the newest first, each with the time that its status lasted."""
    ends = [None, *(aware(row.at) for row in rows)]
    return [
        {"row": row, "change": change_of(row), "report": report_of(row), "lasted": _between(row.at, end)}
        for row, end in zip(rows, ends, strict=False)
    ]


def _outages(rows: Sequence[Outage]) -> list[dict[str, Any]]:
    return [
        {
            "row": row,
            "badge": badge(row.status),
            "lasted": _between(row.began_at, row.ended_at),
            "note": "\n".join(map(without_controls, row.note.splitlines())),
        }
        for row in rows
    ]


def _between(begin: datetime, end: datetime | None) -> str:
    """Return how long something lasted, or lasts so far."""
    seconds = (aware(end or datetime.now(UTC)) - aware(begin)).total_seconds()
    return duration(seconds) if end else _("%(duration)s so far") % {"duration": duration(seconds)}
