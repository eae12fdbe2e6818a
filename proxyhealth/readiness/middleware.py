"""A middleware that answers ``/livez`` and ``/readyz`` before all others."""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve

from proxyhealth.readiness import parts, views


class ReadinessMiddleware:
    """A middleware for the first place in ``MIDDLEWARE``.

    Load balancers and Kubernetes send an IP address as the host, and plain HTTP. The other middlewares would
    refuse that with 400, redirect it, or query the database. With ASGI, the answer takes no thread.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        view = _find_view(request)
        if self._is_async:
            return self._respond(request, view)
        response: HttpResponseBase = (view or self._get_response)(request)
        return response

    async def _respond(self, request: HttpRequest, view: Any) -> HttpResponseBase:
        response: HttpResponseBase
        if view is None:
            response = await self._get_response(request)
        elif view is views.readyz:
            response = view(request, results=await parts.aexamine())
        else:
            response = view(request)
        return response


def _find_view(request: HttpRequest) -> Any:
    # Almost all requests end here.
    if not request.path_info.endswith(("/livez", "/readyz")):
        return None
    try:
        view = resolve(request.path_info).func
    except Resolver404:
        return None
    return view if view in (views.livez, views.readyz) else None
