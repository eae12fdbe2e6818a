"""The views of the public status page. They know no user, so that everything between may cache them."""

import functools
import hashlib
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import NamedTuple

from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.cache import get_conditional_response, patch_cache_control
from django.utils.http import http_date
from django.utils.translation import get_language, get_language_bidi
from django.views.decorators.csrf import csrf_exempt

from proxyhealth.access import outside_transactions, page
from proxyhealth.conf import conf
from proxyhealth.overview.headline import headline
from proxyhealth.shared_copy import SharedCopy
from proxyhealth.snapshot import Snapshot
from proxyhealth.status_page import badges
from proxyhealth.status_page.contents import is_public, public_statuses, read_contents
from proxyhealth.status_page.feed import write_feed
from proxyhealth.storage import reader
from proxyhealth.utils import PerProcess

_MAX_AGE = 30  # seconds for which caches may keep a response
_TIMEOUT = 2.0  # seconds that a visitor waits for another one's computation, before the last page is shown
_MAX_COPIES = 64  # languages and addresses in one process


class _Body(NamedTuple):
    """A response body, and the snapshot, the minute, and so on from which it was made."""

    key: Hashable
    content: bytes
    changed_at: datetime


_copies = PerProcess[dict[Hashable, SharedCopy[_Body]]](dict)

Write = Callable[[Snapshot], str]


def _public(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Wrap a view: 404 unless ``STATUS_PAGE`` is set, in the time zone of the settings, for everyone."""

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: str, **kwargs: str) -> HttpResponseBase:
        if not conf.STATUS_PAGE:
            raise Http404
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        with timezone.override(timezone.get_default_timezone()):
            return view(request, *args, **kwargs)

    # The sign-in of the host does not apply, and there is nothing that a forged request could change.
    return csrf_exempt(login_not_required(outside_transactions(page(wrapper))))


@_public
def status(request: HttpRequest) -> HttpResponseBase:
    """Show the regions and their outages."""

    def write(snapshot: Snapshot) -> str:
        context = {
            "contents": read_contents(snapshot),
            "language": get_language() or "en",
            "direction": "rtl" if get_language_bidi() else "ltr",
        }
        return render_to_string("proxyhealth/status.html", context)

    return _respond(request, "text/html; charset=utf-8", _shared("page", write))


@_public
def feed(request: HttpRequest) -> HttpResponseBase:
    """Return the outages as an Atom feed."""
    base = (conf.BASE_URL or f"{request.scheme}://{request.get_host()}").rstrip("/")

    def write(snapshot: Snapshot) -> str:
        return write_feed(read_contents(snapshot, with_strips=False), base)

    body = _shared(("feed", base), write)
    return _respond(request, "application/atom+xml; charset=utf-8", body)


@_public
def badge(request: HttpRequest) -> HttpResponseBase:
    """Return the badge of all regions."""

    def write(snapshot: Snapshot) -> str:
        facts = headline(snapshot, public_statuses(snapshot), datetime.now(UTC))
        return badges.badge_of_all(facts, stale=snapshot.stale)

    return _respond_badge(request, _shared("badge", write))


@_public
def badge_of(request: HttpRequest, name: str) -> HttpResponseBase:
    """Return the badge of the region with this name."""
    snapshot = reader.read()
    found = snapshot.by_name.get(name.lower())
    if found is None or not is_public(found):
        raise Http404
    text = badges.badge_of_proxy(found, stale=snapshot.stale)
    return _respond_badge(request, _Body(None, text.encode(), _changed(snapshot)))


def _respond_badge(request: HttpRequest, body: _Body) -> HttpResponseBase:
    response = _respond(request, "image/svg+xml; charset=utf-8", body)
    response.headers["Content-Security-Policy"] = "default-src 'none'"  # if it is opened by itself
    return response


def _shared(name: Hashable, write: Write) -> _Body:
    """Return the body that ``write`` makes of the snapshot: once for all visitors of this process.

    It is made again for another snapshot, and once per minute, because it shows lengths of time.
    """
    snapshot = reader.read()
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    number = (snapshot.number, snapshot.committed_at, snapshot.change, snapshot.stale)
    key = (number, minute, conf.STATUS_PAGE_INDEX)

    def refresh(previous: _Body | None) -> tuple[_Body, float]:
        return _Body(key, write(snapshot).encode(), _changed(snapshot)), 60.0

    copies = _copies.value
    if len(copies) >= _MAX_COPIES:
        copies.clear()
    copy = copies.setdefault((name, get_language()), SharedCopy())
    return copy.get(refresh, is_current=lambda body: body.key == key, timeout=_TIMEOUT)


def _changed(snapshot: Snapshot) -> datetime:
    """Return when a page last changed: the last commit, or the last full minute."""
    now = datetime.now(UTC)
    minute = now.replace(second=0, microsecond=0)
    changed_at = max(minute, snapshot.committed_at or minute)
    return min(now, changed_at).replace(microsecond=0)  # the clock of the worker may be ahead


def _respond(request: HttpRequest, content_type: str, body: _Body) -> HttpResponse:
    response = HttpResponse(body.content, content_type=content_type)
    etag = f'"{hashlib.sha256(body.content).hexdigest()[:32]}"'
    response.headers["ETag"] = etag
    response.headers["Last-Modified"] = http_date(body.changed_at.timestamp())
    response.headers["Content-Length"] = str(len(body.content))
    patch_cache_control(response, public=True, max_age=_MAX_AGE)
    if not conf.STATUS_PAGE_INDEX:
        response.headers["X-Robots-Tag"] = "noindex"
    found = get_conditional_response(request, etag, int(body.changed_at.timestamp()), response)
    return found if isinstance(found, HttpResponse) else response
