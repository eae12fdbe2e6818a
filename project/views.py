import os

from django.contrib.auth.decorators import login_required, user_passes_test
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.clickjacking import xframe_options_sameorigin
from django.views.decorators.http import require_safe

from project.mailbox import Mailbox
from project.startup import DEMO_MODE, WITH_HISTORY
from proxyhealth import __version__, access, health
from proxyhealth.statuses import Status

# The page shows names and icons from other systems, so it allows scripts and styles of this site only. Its
# script sends requests to all regions, also to those that are added while the page is open.
PICKER_POLICY = "default-src 'self'; img-src 'self' https: data:; connect-src 'self' http: https:"

_staff_only = user_passes_test(lambda user: bool(user.is_active and getattr(user, "is_staff", False)))

# A mail may contain anything, so it gets no script, no request, and no origin. Its links open in new tabs.
MAIL_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "sandbox allow-popups allow-popups-to-escape-sandbox"
)


def demo(request: HttpRequest) -> dict[str, bool]:
    """Return the variables of all templates that say what the demo has. A context processor."""
    mode = os.environ.get(DEMO_MODE)
    return {"demo": bool(mode), "has_made_up_history": mode == WITH_HISTORY}


@access.page
def home(request: HttpRequest) -> HttpResponse:
    """Return the home page: the version, links, and what the user may know about the proxies."""
    snapshot = health.snapshot()
    statuses = [proxy_status.status for proxy_status in snapshot.statuses.values()]
    context = {
        "version": __version__,
        "snapshot": snapshot,
        "counts": [(status, statuses.count(status)) for status in Status if status in statuses],
        "sees_regions": access.may_see_regions(request),
    }
    return render(request, "home.html", context)


@access.page
@login_required
@never_cache
@require_safe
def regions(request: HttpRequest) -> HttpResponse:
    """Return the region picker. Its script reads the JSON views."""
    response = render(request, "regions.html")
    response["Content-Security-Policy"] = PICKER_POLICY
    return response


@require_safe
def latency_check(request: HttpRequest) -> HttpResponse:
    """Return a short response, with which browsers measure the latency to this site."""
    # The picker may be in a page of another origin.
    headers = {"Cache-Control": "no-store", "Access-Control-Allow-Origin": "*", "Timing-Allow-Origin": "*"}
    return HttpResponse("ok\n", content_type="text/plain", headers=headers)


@access.page
@_staff_only
@never_cache
@require_safe
def mailbox(request: HttpRequest) -> HttpResponse:
    """Return the page of the mails that the demo has received."""
    response = render(request, "mailbox.html", {"mails": Mailbox.of_demo().read()})
    response["Content-Security-Policy"] = "default-src 'self'; img-src data:"
    return response


@access.page
@_staff_only
@never_cache
@xframe_options_sameorigin
@require_safe
def mail_as_html(request: HttpRequest, id: int) -> HttpResponse:
    """Return the HTML of a mail, for a frame of the mailbox page."""
    mail = Mailbox.of_demo().get(str(id))
    if mail is None:
        raise Http404("This mail has been deleted.")
    return HttpResponse(
        f'<base target="_blank">{mail.html}', headers={"Content-Security-Policy": MAIL_POLICY}
    )
