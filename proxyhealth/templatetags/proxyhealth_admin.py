"""Tags and filters of the pages for operators."""

from functools import partial

from django import template
from django.utils.safestring import SafeString

from proxyhealth import display
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


@register.filter
def stale_reason(snapshot: Snapshot) -> str:
    return snapshot.why_stale(display.clock)


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
