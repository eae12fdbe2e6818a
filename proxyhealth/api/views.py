"""The JSON views. They show the snapshot, and never wait for a probe."""

import json
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from django.http import HttpRequest, HttpResponse, QueryDict
from django.http.response import HttpResponseBase
from django.urls import reverse

from proxyhealth import health
from proxyhealth.access import View, endpoint, message
from proxyhealth.api import history as histories
from proxyhealth.api import inventory, listing
from proxyhealth.api import outages as all_outages
from proxyhealth.api.listing import Kind, Listing
from proxyhealth.api.query import parse_history_page, parse_outage_page, parse_selection
from proxyhealth.api.representation import Representation, encode
from proxyhealth.conf import conf
from proxyhealth.exceptions import APIError, InvalidQuery
from proxyhealth.utils import PerProcess
from proxyhealth.validators import short

VIEW_PERMISSION = "proxyhealth.view_workspaceproxy"
CHANGE_PERMISSION = "proxyhealth.change_workspaceproxy"

T = TypeVar("T")

STALE = "Proxyhealth-Stale"

DESCRIPTION = Path(__file__).parent / "openapi.json"


def marked(view: View) -> View:
    """Wrap ``view`` so that each response has the header ``Proxyhealth-Stale``, also an error."""

    @wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = view(request, *args, **kwargs)
        if STALE not in response:
            # Without a query: of the rows, only the last read counts.
            stale = response.status_code == 503 or inventory.has_fault() or health.snapshot().stale
            response[STALE] = "true" if stale else "false"
        return response

    return wrapper


@marked
@endpoint("GET", VIEW_PERMISSION)
def proxies(request: HttpRequest) -> HttpResponse:
    """Return every active proxy with its status, and the snapshot of the statuses."""
    return _list(request, "proxies", "status", "label")


@marked
@endpoint("GET", public=lambda: conf.PUBLIC_REGIONS)
def regions(request: HttpRequest) -> HttpResponse:
    """Return every active proxy, without the details that need a permission."""
    return _list(request, "regions", "healthy")


@marked
@endpoint("GET", VIEW_PERMISSION)
def proxy(request: HttpRequest, id_or_name: str) -> HttpResponse:
    current = _listing_with(id_or_name)
    representation = current.one(id_or_name)
    if representation is None:
        raise _not_found(id_or_name, current)
    return _respond(request, representation, current.stale)


@marked
@endpoint("GET", VIEW_PERMISSION)
def history(request: HttpRequest, id_or_name: str) -> HttpResponse:
    """Return the transitions, the uptime and the last probes of one proxy, which may be deleted."""
    page = _parsed(parse_history_page, request.GET)
    current = _listing_with(id_or_name)
    status = current.find(id_or_name)
    id = status.proxy.id if status else histories.id_of_past_proxy(id_or_name)
    if id is None:
        raise _not_found(id_or_name, current)
    return _respond(request, *histories.represent(id, page, current))


@marked
@endpoint("GET", VIEW_PERMISSION)
def outages(request: HttpRequest) -> HttpResponse:
    """Return the outages of all proxies, also of deleted ones, the newest first."""
    page = _parsed(parse_outage_page, request.GET)
    return _respond(request, *all_outages.represent(page, listing.current()))


@marked
@endpoint("POST", CHANGE_PERMISSION)
def check(request: HttpRequest, id_or_name: str) -> HttpResponse:
    """Request a check of one proxy, without waiting for it."""
    current = listing.current(now=True)
    status = current.find(id_or_name)
    if status is None:
        raise _not_found(id_or_name, current)
    health.request_check([status.proxy.id])
    return message(202, "Check requested.", "The status changes after the probe.")


@marked
@endpoint("GET", public=lambda: True)
def openapi(request: HttpRequest) -> HttpResponse:
    """Return the OpenAPI 3.1 description of these views."""
    prefix = reverse("proxyhealth:regions").removesuffix("/api/v2/regions")
    return _descriptions.value(prefix).response(request)


def _describe(prefix: str) -> Representation:
    """Return the description of the views under the URL path ``prefix``."""
    return Representation(
        encode({**json.loads(DESCRIPTION.read_bytes()), "servers": [{"url": prefix or "/"}]})
    )


# One cache per process, because each description has a lock.
_descriptions = PerProcess(lambda: lru_cache(maxsize=8)(_describe))


def _list(request: HttpRequest, kind: Kind, *filters: str) -> HttpResponse:
    selection = _parsed(lambda query: parse_selection(query, *filters), request.GET)
    current = listing.current()
    return _respond(request, current.select(kind, selection), current.stale)


def _parsed(parse: Callable[[QueryDict], T], query: QueryDict) -> T:
    try:
        return parse(query)
    except InvalidQuery as error:
        raise APIError(400, "Bad query.", str(error)) from None


def _listing_with(id_or_name: str) -> Listing:
    """Return the listing. Read the rows now if this proxy is missing, because it may have just been saved."""
    current = listing.current()
    return current if current.find(id_or_name) else listing.current(now=True)


def _respond(request: HttpRequest, representation: Representation, stale: bool) -> HttpResponse:
    response = representation.response(request)
    response[STALE] = "true" if stale else "false"
    return response


def _not_found(id_or_name: str, current: Listing) -> APIError:
    if current.parts.rows.fault:  # the proxy may exist in the database
        return APIError(503, "Not available.", "The database is not available. Try again later.")
    return APIError(404, "Not found.", f"No workspace proxy has the id or name {short(id_or_name)}.")
