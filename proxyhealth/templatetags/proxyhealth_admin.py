"""Tags and filters of the pages for operators."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from django import template
from django.http import HttpRequest
from django.template import Context
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from proxyhealth import access, display
from proxyhealth.models import Outage
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications import silences
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.texts import clean

register = template.Library()
register.filter("moment", display.time_tag)
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


@register.simple_tag(takes_context=True)
def marks_of(context: Context, statuses: Sequence[ProxyStatus]) -> dict[UUID, SafeString]:
    """Return by id, as HTML, what people have said about these proxies: silences, and acknowledgements."""
    silenced = silences.current().of([status.proxy for status in statuses], datetime.now(UTC))
    texts = [
        (id, format_html("silenced until {}", display.time_tag(end, with_age=False)))
        for id, end in silenced.items()
    ]
    bad = [status.proxy.id for status in statuses if status.status in BAD_STATUSES]
    if bad and access.is_granted(context["request"].user.has_perm("proxyhealth.view_outage")):
        rows = Outage.objects.primary().open().filter(proxy_uuid__in=bad).defer("note")
        texts += [(row.proxy_uuid, _outage_line(context["request"], row)) for row in rows]
    marks: dict[UUID, SafeString] = {}
    for id, text in texts:
        marks[id] = format_html("{}<small>{}</small>", marks.get(id, ""), text)
    return marks


def _outage_line(request: HttpRequest, outage: Outage) -> SafeString:
    name = clean(outage.acknowledged_name, 150).strip()
    by = format_html(" by <bdi>{}</bdi>", name) if name else ""
    text = format_html("acknowledged{}", by) if outage.acknowledged_at else "not acknowledged"
    try:
        app = getattr(request, "current_app", None)
        page = reverse("admin:proxyhealth_outage_change", args=[outage.pk], current_app=app)
    except NoReverseMatch:  # the host has unregistered the outages
        return format_html("{}", text)
    return format_html('<a href="{}">{}</a>', page, text)


@register.filter
def of(values: Mapping[UUID, SafeString], id: UUID) -> SafeString | str:
    """Return the value of this id, or ''."""
    return values.get(id, "")


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
