"""JSON for a frontend. Reads the snapshot; probes nothing."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from proxyhealth import health
from proxyhealth.access import endpoint, message
from proxyhealth.api import listing
from proxyhealth.api.listing import Kind, Listing
from proxyhealth.api.query import parse_selection, short
from proxyhealth.api.representation import Representation, encode
from proxyhealth.conf import conf
from proxyhealth.exceptions import APIError, InvalidQuery

VIEW_PERMISSION = "proxyhealth.view_workspaceproxy"
CHANGE_PERMISSION = "proxyhealth.change_workspaceproxy"

DESCRIPTION = Path(__file__).parent / "openapi.json"


@endpoint("GET", VIEW_PERMISSION)
def proxies(request: HttpRequest) -> HttpResponse:
    """Every active proxy with its status, and the snapshot that the statuses are from."""
    return _list(request, "proxies", "status")


@endpoint("GET", public=lambda: conf.PUBLIC_REGIONS)
def regions(request: HttpRequest) -> HttpResponse:
    """Every active proxy, without the details that are not every user's business."""
    return _list(request, "regions", "healthy")


@endpoint("GET", VIEW_PERMISSION)
def proxy(request: HttpRequest, id_or_name: str) -> HttpResponse:
    known = listing.current()
    # What this process has not heard of may have been saved by another one a moment ago.
    representation = known.one(id_or_name) or (known := listing.current(now=True)).one(id_or_name)
    if representation is None:
        raise _not_found(id_or_name, known)
    return _respond(request, representation, known)


@endpoint("POST", CHANGE_PERMISSION)
def check(request: HttpRequest, id_or_name: str) -> HttpResponse:
    """Have the workers probe this proxy now; the answer does not wait for them."""
    known = listing.current(now=True)
    status = known.find(id_or_name)
    if status is None:
        raise _not_found(id_or_name, known)
    health.request_check([status.proxy.id])
    return message(202, "Check requested.", "The proxy's status follows when it was probed.")


@endpoint("GET", public=lambda: True)
def openapi(request: HttpRequest) -> HttpResponse:
    """What all of these views take and give, as OpenAPI 3.1."""
    here = reverse("proxyhealth:openapi")
    (path,) = (path for path in _description()["paths"] if path.endswith("/openapi.json"))
    return _described(here.removesuffix(path)).response(request)


@cache
def _description() -> dict[str, Any]:
    description: dict[str, Any] = json.loads(DESCRIPTION.read_bytes())
    return description


@lru_cache(maxsize=8)
def _described(prefix: str) -> Representation:
    """The description for where the host has included the URLs."""
    return Representation(encode({**_description(), "servers": [{"url": prefix or "/"}]}))


def _list(request: HttpRequest, kind: Kind, filter: str) -> HttpResponse:
    try:
        selection = parse_selection(request.GET, filter)
    except InvalidQuery as error:
        raise APIError(400, "Bad query.", str(error)) from None
    known = listing.current()
    return _respond(request, known.select(kind, selection), known)


def _respond(request: HttpRequest, representation: Representation, known: Listing) -> HttpResponse:
    response = representation.response(request)
    response["Proxyhealth-Stale"] = "true" if known.stale else "false"
    return response


def _not_found(id_or_name: str, known: Listing) -> APIError:
    if known.parts.rows.fault:  # then nobody can say that there is none
        return APIError(503, "Not available.", "The database cannot be used now.")
    return APIError(404, "Not found.", f"There is no workspace proxy {short(id_or_name)}.")
