"""The health page: how many proxies have each status, and which of them fail."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_POST

from proxyhealth import access, health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.texts import clean

if TYPE_CHECKING:
    from proxyhealth.admin.proxies import WorkspaceProxyAdmin

# The order of the rows.
BY_URGENCY = (Status.UNREACHABLE, Status.UNHEALTHY, Status.UNKNOWN, Status.UNREGISTERED, Status.OK)

ROWS_PER_PAGE = 200

_NAME = "proxyhealth_workspaceproxy"


class HealthPage:
    """The views of the health page in one admin site."""

    def __init__(self, model_admin: WorkspaceProxyAdmin) -> None:
        self._admin = model_admin

    def urls(self) -> list[URLPattern]:
        view = self._admin.admin_site.admin_view
        check = require_POST(self.check_all)
        return [
            path("health/", access.outside_transactions(view(self.show)), name=f"{_NAME}_health"),
            path("health/check/", access.outside_transactions(view(check)), name=f"{_NAME}_check_all"),
        ]

    def show(self, request: HttpRequest) -> HttpResponse:
        """Show the number of proxies by status, and one row per proxy, the most urgent first."""
        if not self._admin.has_view_permission(request):
            raise PermissionDenied
        snapshot = health.snapshot()
        statuses = health.statuses_of(WorkspaceProxy.objects.primary().active(), snapshot)
        label = clean(request.GET.get("label", ""), 130)
        if label:
            statuses = [status for status in statuses if _has_label(status, label)]
        counts = Counter(status.status for status in statuses)
        chosen = clean(request.GET.get("status", ""), 64)
        rows = [status for status in statuses if chosen in ("", status.status)]
        rows.sort(key=_urgency)
        context = {
            **self._admin.admin_site.each_context(request),
            "opts": self._admin.opts,
            "title": "Health of the workspace proxies",
            "snapshot": snapshot,
            "counts": [(status, counts[status]) for status in BY_URGENCY],
            "total": len(statuses),
            "chosen": chosen,
            "label": label,
            "others": f"&{urlencode({'label': label})}" if label else "",
            "page": Paginator(rows, ROWS_PER_PAGE).get_page(request.GET.get("page")),
            "may_check": self._admin.has_change_permission(request),
        }
        return TemplateResponse(request, "admin/proxyhealth/workspaceproxy/health.html", context)

    def check_all(self, request: HttpRequest) -> HttpResponse:
        if not self._admin.has_change_permission(request):
            raise PermissionDenied
        self._admin.request_check(request, None, "All proxies are")
        return HttpResponseRedirect(reverse(f"{self._admin.admin_site.name}:{_NAME}_health"))


def _has_label(status: ProxyStatus, label: str) -> bool:
    return label.lower() in (f"{key}:{value}".lower() for key, value in status.proxy.labels.items())


def _urgency(status: ProxyStatus) -> tuple[int, bool, str]:
    return BY_URGENCY.index(status.status), status.raw is None, status.proxy.name.lower()
