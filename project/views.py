from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from proxyhealth import __version__, health
from proxyhealth.report import Status


def home(request: HttpRequest) -> HttpResponse:
    """What is running here, and where to look."""
    found = [status.status for status in health.health_status().values()]
    context = {
        "version": __version__,
        "snapshot": health.snapshot(),
        "counts": [(status, found.count(status)) for status in Status if status in found],
    }
    return render(request, "home.html", context)
