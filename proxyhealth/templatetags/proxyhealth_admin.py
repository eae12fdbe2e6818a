"""Tags and filters of the pages for operators."""

from functools import partial

from django import template
from django.template import Context
from django.urls import NoReverseMatch, reverse
from django.utils.html import json_script
from django.utils.safestring import SafeString

from proxyhealth import access, display
from proxyhealth.overview import live_words, prober
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.texts import clean

register = template.Library()
register.filter("moment", display.time_tag)
register.filter("instant", partial(display.time_tag, with_age=False))
register.filter("name_of", display.name_of)
register.filter("number", display.number)

# Lines and characters of a report that the health page shows without folding it.
_UNFOLDED_LINES = 3
_UNFOLDED_CHARACTERS = 300


@register.filter
def seconds(value: float) -> SafeString:
    return display.quantity(value, "s", 2)


@register.filter
def milliseconds(value: float) -> SafeString:
    """Return seconds as milliseconds."""
    return display.quantity(value * 1000, "ms")


@register.filter
def visible(text: str) -> str:
    return clean(text, 200)


@register.simple_tag
def live_sentences() -> SafeString:
    """Return the sentences for the scripts of the page."""
    return json_script(live_words.live_sentences(), "proxyhealth-sentences")


@register.filter
def stale_reason(snapshot: Snapshot) -> str:
    return prober.why_stale(snapshot)


@register.simple_tag(takes_context=True)
def prober_url(context: Context) -> str:
    """Return the address of the page about the prober, or '' for a user who may not see it."""
    request = context.get("request")
    user = getattr(request, "user", None)
    if user is None or not user.is_staff:
        return ""
    if not access.is_granted(user.has_perm("proxyhealth.view_workspaceproxy")):
        return ""
    try:
        app = getattr(request, "current_app", None)
        return reverse("admin:proxyhealth_workspaceproxy_prober", current_app=app)
    except NoReverseMatch:  # the host has unregistered the proxies
        return ""


@register.filter
def runbook(subject: Snapshot | ProxyStatus) -> str:
    """Return the address of the runbook's section about a stale snapshot or a failing proxy, or ''."""
    if isinstance(subject, Snapshot):
        return display.runbook_url(_alert_of_snapshot(subject))
    return display.runbook_url(display.STATUS_ALERTS.get(subject.status, ""))


def _alert_of_snapshot(snapshot: Snapshot) -> str:
    if snapshot.refusal:
        return "cacherefusesrounds"
    if snapshot.fault:
        return "snapshotunreadable"
    return "proberoffline" if snapshot.offline else "snapshotstale"


@register.filter
def lines(report: HealthReport) -> list[tuple[str, str]]:
    """Return the texts of a report, each with its kind, the errors first."""
    return [
        *(("error", text) for text in report.errors),
        *(("warning", text) for text in report.warnings),
    ]


@register.filter
def is_long(lines: list[tuple[str, str]]) -> bool:
    return len(lines) > _UNFOLDED_LINES or sum(len(text) for _, text in lines) > _UNFOLDED_CHARACTERS
