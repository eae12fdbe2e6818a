from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from proxyhealth import __version__, health
from proxyhealth.statuses import Status

# Names and icons on the page are other people's. Its script asks the regions how far away they are, and
# which regions there will be while the page is open, nobody knows when it is served.
PICKER_POLICY = "default-src 'self'; img-src 'self' https: data:; connect-src 'self' http: https:"


def home(request: HttpRequest) -> HttpResponse:
    """What is running here, and where to look."""
    found = [status.status for status in health.health_status().values()]
    context = {
        "version": __version__,
        "snapshot": health.snapshot(),
        "counts": [(status, found.count(status)) for status in Status if status in found],
    }
    return render(request, "home.html", context)


@login_required
@never_cache
@require_safe
def regions(request: HttpRequest) -> HttpResponse:
    """The region picker. What it shows comes from the JSON views."""
    response = render(request, "regions.html")
    response["Content-Security-Policy"] = PICKER_POLICY
    return response


@require_safe
def latency_check(request: HttpRequest) -> HttpResponse:
    """What every region answers, so that a browser can tell how far away it is."""
    return HttpResponse("ok\n", content_type="text/plain", headers={"Cache-Control": "no-store"})
