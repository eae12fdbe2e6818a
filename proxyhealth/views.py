"""JSON for a frontend. Reads the snapshot; probes nothing."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_not_required
from django.db import Error as DatabaseError
from django.db.models.functions import Lower
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.decorators import decorator_from_middleware
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy, WorkspaceProxyQuerySet
from proxyhealth.report import ProxyStatus, Snapshot, rfc3339

logger = logging.getLogger(__name__)

View = Callable[..., HttpResponseBase]

VIEW_PERMISSION = "proxyhealth.view_workspaceproxy"
CHANGE_PERMISSION = "proxyhealth.change_workspaceproxy"


def _error(status: int, message: str, detail: str = "") -> JsonResponse:
    return JsonResponse({"message": message, "detail": detail}, status=status)


class _Csrf(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> HttpResponse:
        return _error(403, "CSRF verification failed.", reason)


def _api(method: str, permission: str | None = None) -> Callable[[View], View]:
    """A view of one method, for who is signed in and has ``permission``; every refusal is JSON."""
    allowed = ["GET", "HEAD"] if method == "GET" else [method]

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method not in allowed:
                response = _error(405, "Method not allowed.", f"Allowed: {', '.join(allowed)}.")
                response["Allow"] = ", ".join(allowed)
                return response
            try:
                user = getattr(request, "user", None)  # none without the authentication middleware
                if user is None or not user.is_authenticated:
                    return _error(401, "Not signed in.", "Sign in and send the session's cookie.")
                if permission and not user.has_perm(permission):
                    return _error(403, "Not allowed.", f"This needs the permission {permission}.")
                return protected(request, *args, **kwargs)
            except DatabaseError:
                logger.exception("the database cannot be used")
                return _error(503, "Not available.", "The database cannot be used now.")

        protected = decorator_from_middleware(_Csrf)(view)
        # Exempt from the host's own middlewares only, whose refusals are pages and redirects.
        return never_cache(csrf_exempt(login_not_required(wrapper)))

    return decorate


@_api("GET", VIEW_PERMISSION)
def proxies(request: HttpRequest) -> HttpResponse:
    """Every active proxy with its status, and the snapshot that the statuses are from."""
    snapshot = health.snapshot()
    statuses = health.statuses_of(WorkspaceProxy.objects.active(), snapshot)
    return JsonResponse(
        {
            "regions": [proxy_json(status) for status in statuses],
            "snapshot": snapshot_json(snapshot),
        }
    )


@_api("GET", VIEW_PERMISSION)
def proxy(request: HttpRequest, id_or_name: str) -> HttpResponse:
    statuses = health.statuses_of(_find(id_or_name))
    return JsonResponse(proxy_json(statuses[0])) if statuses else _not_found(id_or_name)


@_api("POST", CHANGE_PERMISSION)
def check(request: HttpRequest, id_or_name: str) -> HttpResponse:
    """Have the workers probe this proxy now; the answer does not wait for them."""
    ids = list(_find(id_or_name).values_list("pk", flat=True))
    if not ids:
        return _not_found(id_or_name)
    health.request_check(ids)
    return JsonResponse(
        {"message": "Check requested.", "detail": "The proxy's status follows when it was probed."},
        status=202,
    )


@_api("GET")
def regions(request: HttpRequest) -> HttpResponse:
    """Every active proxy, without the details that are not every user's business."""
    statuses = health.statuses_of(WorkspaceProxy.objects.active())
    return JsonResponse({"regions": [region_json(status) for status in statuses]})


def _find(id_or_name: str) -> WorkspaceProxyQuerySet:
    active = WorkspaceProxy.objects.active()
    if "\0" in id_or_name:
        return active.none()  # PostgreSQL cannot even be asked
    by_name = active.alias(lower_name=Lower("name")).filter(lower_name=id_or_name.lower())
    try:
        by_id = active.filter(pk=UUID(id_or_name))
    except ValueError:
        return by_name
    return by_id if by_id.exists() else by_name


def _not_found(id_or_name: str) -> HttpResponse:
    return _error(404, "Not found.", f"There is no workspace proxy {id_or_name!r}.")


def region_json(status: ProxyStatus) -> dict[str, Any]:
    proxy = status.proxy
    return {
        "id": str(proxy.id),
        "name": proxy.name,
        "display_name": proxy.display_name or proxy.name,
        "icon_url": proxy.icon,
        "healthy": status.healthy,
        "path_app_url": proxy.url,
        "wildcard_hostname": proxy.wildcard_hostname,
    }


def proxy_json(status: ProxyStatus) -> dict[str, Any]:
    return {
        **region_json(status),
        "status": {
            "status": status.status,
            "reason": status.reason,
            "report": {
                "errors": list(status.report.errors),
                "warnings": list(status.report.warnings),
            },
            "checked_at": status.checked_at and rfc3339(status.checked_at),
            "latency_ms": None if status.latency is None else round(status.latency * 1000, 3),
        },
        "created_at": rfc3339(status.proxy.created_at),
        "updated_at": rfc3339(status.proxy.updated_at),
        "deleted": status.proxy.deleted,
        "version": status.proxy.version,
    }


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "number": snapshot.number,
        "checked_at": snapshot.checked_at and rfc3339(snapshot.checked_at),
        "duration_ms": None if snapshot.duration is None else round(snapshot.duration * 1000, 3),
        "stale_at": snapshot.stale_at and rfc3339(snapshot.stale_at),
        "stale": snapshot.stale,
        "stale_reason": snapshot.stale_reason,
    }
