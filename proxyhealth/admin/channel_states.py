"""The words of the pages about a channel: its state, and the proxies that it tells about."""

from datetime import datetime
from typing import Any

from django.db import models
from django.db.models import Count, Min, OuterRef, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext, ngettext

from proxyhealth.display import name_of, number, time_tag
from proxyhealth.models import Delivery, WorkspaceProxy
from proxyhealth.selectors import Selector
from proxyhealth.texts import clean

# Names that the form lists of the proxies that match.
_MAX_NAMES = 10


def with_state(channels: Any) -> Any:
    """Annotate channels with the number of pending deliveries, and with the age of a failing one."""
    pending = Delivery.objects.filter(channel=OuterRef("pk")).pending().order_by().values("channel")
    return channels.annotate(
        pending_count=Coalesce(Subquery(pending.annotate(n=Count("pk")).values("n")), 0),
        # Deliveries are in order, so the oldest that was tried began to fail with the channel.
        failing_since=Subquery(
            pending.filter(attempts__gt=0).annotate(n=Min("created_at")).values("n"),
            output_field=models.DateTimeField(),
        ),
    )


def state_of(channel: Any) -> SafeString:
    """Return the state of a channel that :func:`with_state` has annotated, in words as HTML."""
    error = format_html("<bdi>{}</bdi>", clean(channel.last_error, 500)) if channel.last_error else ""
    if not channel.enabled:
        if channel.is_failing and error:
            return _state("unhealthy", format_html(gettext("disabled: {}"), error))
        return _state("unregistered", gettext("disabled"))
    if channel.is_failing:
        since = min(filter(None, (channel.failing_since, channel.last_failure_at)))
        text = gettext("failing since {time}: {error}") if error else gettext("failing since {time}")
        return _state("unreachable", format_html(text, time=time_tag(since), error=error))
    if channel.last_success_at:
        text = format_html(gettext("works, last message {}"), _ago(channel.last_success_at))
        if error:
            return _state("unhealthy", format_html("{}, {}", text, error))
        return _state("ok", text)
    return _state("unregistered", gettext("never used"))


def _state(look: str, text: str) -> SafeString:
    return format_html('<span class="proxyhealth-channel proxyhealth-{}">{}</span>', look, text)


def _ago(moment: datetime) -> SafeString:
    if (timezone.now() - moment).total_seconds() < 60:
        return format_html(
            '<span title="{}">{}</span>', moment.isoformat(timespec="seconds"), gettext("just now")
        )
    return format_html(
        '<time datetime="{}">{}</time>',
        moment.isoformat(timespec="seconds"),
        gettext("%(duration)s ago") % {"duration": timesince(moment, depth=1)},
    )


def matching(proxies: str) -> tuple[int, int, SafeString]:
    """Return how many proxies these selectors choose, of how many, and a sentence that says so."""
    selector = Selector.parse(proxies)
    rows = list(WorkspaceProxy.objects.primary().active().only("name", "display_name", "labels"))
    chosen = [row for row in rows if selector.matches(row.name, _labels(row))]
    text = ngettext("%(count)s of %(total)s proxy", "%(count)s of %(total)s proxies", len(rows))
    count = format_html("{}", text % {"count": number(len(chosen)), "total": number(len(rows))})
    if not chosen or selector.is_empty:
        return len(chosen), len(rows), count
    names = format_html_join(", ", "<bdi>{}</bdi>", ((name_of(row),) for row in chosen[:_MAX_NAMES]))
    more = ", …" if len(chosen) > _MAX_NAMES else ""
    return len(chosen), len(rows), format_html("{}: {}{}", count, names, more)


def _labels(row: WorkspaceProxy) -> dict[str, str]:
    """Return the labels of a row that may have skipped validation."""
    labels = row.labels if isinstance(row.labels, dict) else {}
    return {key: value for key, value in labels.items() if isinstance(value, str)}
