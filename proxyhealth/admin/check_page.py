"""Check now: the request of somebody on a page, and its progress in words."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST

from proxyhealth import access, health
from proxyhealth.display import clock, number
from proxyhealth.exceptions import HistoryUnavailable, StoreError
from proxyhealth.models import WorkspaceProxy
from proxyhealth.overview.check_words import progress_in_words
from proxyhealth.rounds import progress

if TYPE_CHECKING:
    from proxyhealth.admin.proxies import WorkspaceProxyAdmin

_NAME = "proxyhealth_workspaceproxy"

# The states whose reason the page of the prober shows.
_PROBER_STATES = (progress.State.NO_WORKER, progress.State.FAILED, progress.State.LOST)

# Seconds that a page waits for the broker to accept a task.
_BROKER_TIMEOUT = 0.5

# More than a page has rows, and fewer than SQLite permits in one query.
_MAX_CHOSEN = 500


class CheckPage:
    """The views that request a check, and tell its progress, in one admin site."""

    def __init__(self, model_admin: WorkspaceProxyAdmin) -> None:
        self._admin = model_admin
        self._site = model_admin.admin_site.name

    def urls(self) -> list[URLPattern]:
        view = self._admin.admin_site.admin_view
        request = access.outside_transactions(view(require_POST(self.request)))
        show = access.outside_transactions(view(require_GET(self.show)))
        return [
            path("health/check/", request, name=f"{_NAME}_check_all"),
            path("health/check/<uuid:id>/", show, name=f"{_NAME}_check_progress"),
        ]

    def request(self, request: HttpRequest) -> HttpResponse:
        """Request a check of the proxies with the ids ``proxy``, or of all with ``all=1``.

        A browser without a script gets a redirect and a message. A request that accepts JSON gets 202 and the
        address of the progress.
        """
        self._require_permission(request)
        ids = None if request.POST.get("all") == "1" else _ids_of(request)
        if request.get_preferred_type(["text/html", "application/json"]) != "application/json":
            if ids == []:
                messages.warning(request, _("Nothing was requested: choose at least one proxy."))
            else:
                tell_request(request, ids)
            return HttpResponseRedirect(self._next(request))
        if ids == []:
            raise BadRequest("Send 'proxy' once or more, or 'all=1'.")
        return self._begin(ids)

    def show(self, request: HttpRequest, id: UUID) -> HttpResponse:
        """Tell the progress of a request as JSON."""
        self._require_permission(request)
        try:
            current = progress.read_progress(id)
        except (StoreError, HistoryUnavailable):
            text = _("The progress of the check is not known, because the cache cannot be read.")
            return _json(503, "unknown", text)
        if current is None:
            return _json(404, "expired", _("The progress of the check is not known any more."))
        fields: dict[str, Any] = {"changes": [change._asdict() for change in current.changes]}
        if current.state in _PROBER_STATES:
            url = reverse(f"{self._site}:{_NAME}_prober")
            fields["help"] = {"url": url, "text": _("What is wrong with the prober?")}
        return _json(200, current.state, progress_in_words(current), **fields)

    def _begin(self, ids: Sequence[UUID] | None) -> HttpResponse:
        try:
            id = progress.begin(ids)  # before the task is sent
        except StoreError:
            id = None
        if not request_check(ids):
            return _json(503, "not sent", not_sent())
        if id is None:
            text = _("The check is requested. Its progress is not known, because the cache cannot be used.")
            return _json(202, "unknown", text)
        url = reverse(f"{self._site}:{_NAME}_check_progress", args=[id])
        return _json(202, "queued", _requested(ids), progress=url)

    def _require_permission(self, request: HttpRequest) -> None:
        if not self._admin.has_change_permission(request):
            raise PermissionDenied

    def _next(self, request: HttpRequest) -> str:
        url = request.POST.get("next", "")
        if url_has_allowed_host_and_scheme(url, {request.get_host()}, request.is_secure()):
            return url
        return reverse(f"{self._site}:{_NAME}_health")


def request_check(ids: Sequence[UUID] | None) -> bool:
    """Request a check of these proxies, or of all. Return True if the broker has accepted it."""
    health.request_check(ids)
    return are_requests_sent()


def are_requests_sent() -> bool:
    """Return True if the broker has accepted all requests of this process so far."""
    # An empty request completes after all earlier ones, with the result of the last one.
    future: Future[None] = health.request_check([])
    try:
        future.result(timeout=_BROKER_TIMEOUT)
    except Exception:  # a timeout, or an error that the sender has logged
        return False
    return True


def tell_request(request: HttpRequest, ids: Sequence[UUID] | None) -> None:
    """Request a check, and tell the user what is true of it at that moment."""
    if not request_check(ids):
        messages.warning(request, not_sent())
    elif reason := health.snapshot().why_stale(clock):
        messages.warning(request, f"{_requested(ids)} {reason}")
    else:
        messages.info(request, _requested(ids))


def not_sent() -> str:
    return _(
        "The check could not be requested, because the message broker does not respond. "
        "The next round checks all proxies."
    )


def _requested(ids: Sequence[UUID] | None) -> str:
    if ids is None:
        return _("A check of all proxies is requested.")
    return ngettext(
        "A check of %(count)s proxy is requested.", "A check of %(count)s proxies is requested.", len(ids)
    ) % {"count": number(len(ids))}


def _ids_of(request: HttpRequest) -> list[UUID]:
    """Return the ids in ``proxy``, also of deleted proxies. Raise ``BadRequest`` for others."""
    texts = list(dict.fromkeys(request.POST.getlist("proxy")))
    if len(texts) > _MAX_CHOSEN:
        raise BadRequest(f"Send at most {_MAX_CHOSEN} values of 'proxy', or 'all=1'.")
    try:
        ids = list(map(UUID, texts))
    except ValueError:
        raise BadRequest("Each value of 'proxy' must be the id of a proxy.") from None
    known = WorkspaceProxy.objects.primary().filter(pk__in=ids).values_list("pk", flat=True)
    if unknown := {*ids} - {*known}:
        raise BadRequest(f"There is no proxy with the id {min(unknown)}. Reload the page.")
    return ids


def _json(status: int, state: str, text: str, **fields: Any) -> HttpResponse:
    return JsonResponse({"state": state, "text": text, **fields}, status=status)
