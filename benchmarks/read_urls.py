"""The views that benchmarks.read compares with those of the app."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path

from proxyhealth import health
from proxyhealth.api import listing
from proxyhealth.api.query import EVERYTHING
from proxyhealth.api.representation import (
    region_json,
    row_json,
    snapshot_json,
    staleness_json,
    status_json,
)
from proxyhealth.api.views import VIEW_PERMISSION
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage import reader

View = Callable[[HttpRequest], HttpResponse]


def _require_permission(view: View) -> View:
    """Require a session with the permission, and nothing else."""

    def wrapper(request: HttpRequest) -> HttpResponse:
        if not request.user.is_authenticated:
            return HttpResponse(status=401)
        if not request.user.has_perm(VIEW_PERMISSION):
            return HttpResponse(status=403)
        return view(request)

    return wrapper


@_require_permission
def bare(request: HttpRequest) -> HttpResponse:
    """Return the bytes of the list view, stored in this process."""
    global _bytes
    if _bytes is None:
        _bytes = listing.current().select("proxies", EVERYTHING).body
    return HttpResponse(_bytes, content_type="application/json")


_bytes: bytes | None = None


@_require_permission
def built(request: HttpRequest) -> HttpResponse:
    """Build the response from the database and the cache for each request."""
    reader.forget()
    snapshot = health.snapshot()
    statuses = health.statuses_of(WorkspaceProxy.objects.active(), snapshot)
    regions = [
        {
            **region_json(status.proxy, status.healthy),
            "status": status_json(status),
            **row_json(status.proxy),
        }
        for status in statuses
    ]
    reason = snapshot.stale_reason
    return JsonResponse(
        {"regions": regions, **staleness_json(reason), "snapshot": snapshot_json(snapshot, reason)}
    )


urlpatterns = [
    path("bare", bare),
    path("built", built),
    path("", include("proxyhealth.urls")),
    path("", include("proxyhealth.metrics.urls")),
    path("django-prometheus/", include("django_prometheus.urls")),
]
