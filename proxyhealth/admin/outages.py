"""The list of the outages, and a page for each, on which a person acknowledges it."""

import json
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, QuerySet, TextField
from django.db.models.fields.json import KeyTransform
from django.db.models.functions import Cast
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from proxyhealth import access
from proxyhealth.admin import silences
from proxyhealth.admin.history import (
    MAX_CHOICES,
    ProxyFilter,
    RowsOfProxiesAdmin,
    TimeFilter,
    badge,
    change_of,
    report_of,
)
from proxyhealth.display import number, time_tag
from proxyhealth.history.outages import acknowledge, unacknowledge
from proxyhealth.models import Delivery, Outage, Transition, WorkspaceProxy
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications import waiting
from proxyhealth.snapshot import labels_of
from proxyhealth.texts import clean

# Transitions and deliveries on the page of an outage.
_MAX_ROWS = 100

_ENDED = _("The outage has ended. Only the note was saved.")


class StateFilter(admin.SimpleListFilter):
    """A filter for the outages that are open, which have an index of their own."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("open", gettext("Open")),
            ("unacknowledged", gettext("Open, not acknowledged")),
            ("ended", gettext("Ended")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "open":
                return queryset.filter(ended_at__isnull=True)
            case "unacknowledged":
                return queryset.filter(ended_at__isnull=True, acknowledged_at__isnull=True)
            case "ended":
                return queryset.filter(ended_at__isnull=False)
        return queryset


class StatusFilter(admin.SimpleListFilter):
    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(status, status) for status in BAD_STATUSES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(status=self.value()) if self.value() else queryset


class LabelFilter(admin.SimpleListFilter):
    """A filter by a label of the proxies, as they are now. It lists the most frequent ones."""

    title = _("label")
    parameter_name = "label"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        # Many proxies have the same labels, so the database counts them: that takes a fifth of the time.
        rows = WorkspaceProxy.objects.primary().active().exclude(labels={}).order_by()
        texts = rows.values_list(Cast("labels", TextField())).annotate(count=Count("pk"))
        counts: Counter[str] = Counter()
        for text, count in texts:
            with suppress(ValueError):  # other programs may have written the row
                labels = labels_of(json.loads(text))
                counts.update({f"{key}:{value}": count for key, value in labels.items()})
        chosen = [text for text, _count in counts.most_common(MAX_CHOICES)]
        return [(text, clean(text, 128)) for text in sorted(chosen)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        key, _colon, value = str(self.value()).partition(":")
        proxies = WorkspaceProxy.objects.primary().alias(label=KeyTransform(key, "labels"))
        return queryset.filter(proxy_uuid__in=proxies.filter(label=value).order_by().values("pk"))


@admin.register(Outage)
class OutageAdmin(RowsOfProxiesAdmin):
    list_display = ("began", "shown_proxy", "shown_status", "reason", "lasted", "acknowledged")
    list_filter = (StateFilter, StatusFilter, TimeFilter, ProxyFilter, LabelFilter)
    actions = ("acknowledge_selected",)  # type: ignore[assignment]  # the other lists have none
    fields = (
        *("shown_proxy", "proxy_uuid", "shown_status", "reason", "began", "ended", "lasted"),
        *("acknowledged", "note"),
    )
    change_form_template = "admin/proxyhealth/outage.html"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.is_granted(request.user.has_perm("proxyhealth.acknowledge_outage"))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [field for field in self.fields if field != "note"]

    @admin.display(description=_("began"))
    def began(self, row: Outage) -> SafeString:
        return time_tag(row.began_at)

    @admin.display(description=_("ended"))
    def ended(self, row: Outage) -> SafeString | str:
        return time_tag(row.ended_at) if row.ended_at else gettext("not yet")

    @admin.display(description=_("status"))
    def shown_status(self, row: Outage) -> SafeString:
        return badge(row.status)

    @admin.display(description=_("duration"))
    def lasted(self, row: Outage) -> SafeString:
        if row.ended_at is None:
            return format_html(gettext("open, <bdi>{}</bdi> so far"), timesince(row.began_at))
        seconds = round((row.ended_at - row.began_at).total_seconds())
        return format_html('<bdi dir="ltr">{}</bdi>', timedelta(seconds=seconds))

    @admin.display(description=_("acknowledged"))
    def acknowledged(self, row: Outage) -> SafeString | str:
        if row.acknowledged_at is None:
            return gettext("no")
        name = clean(row.acknowledged_name, 150).strip()
        text = gettext("{time} by <bdi>{name}</bdi>") if name else "{time}"
        return format_html(text, time=time_tag(row.acknowledged_at), name=name)

    # The page of an outage

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        context = dict(extra_context or {})
        if outage := self.get_object(request, object_id):
            context |= {"outage": outage, "changes": _changes(outage), "deliveries": _deliveries(outage)}
            context["silence_url"] = silences.add_url(self.admin_site, request)
        return super().change_view(request, object_id, form_url, context)

    def save_model(self, request: HttpRequest, obj: Outage, form: Any, change: bool) -> None:
        obj.save(update_fields=["note"])  # only this: the outage may end at this moment
        done, text = True, gettext("The note was saved.")
        if "_acknowledge" in request.POST:
            done, text = acknowledge(obj, request.user), gettext("The outage was acknowledged.")
        elif "_unacknowledge" in request.POST:
            done, text = unacknowledge(obj), gettext("The acknowledgement was taken back.")
        if done:
            self.message_user(request, text, messages.SUCCESS)
        else:
            self.message_user(request, _ENDED, messages.WARNING)

    def construct_change_message(self, request: HttpRequest, form: Any, *args: Any, **kwargs: Any) -> Any:
        for name, text in (
            ("_acknowledge", "Acknowledged."),
            ("_unacknowledge", "Acknowledgement taken back."),
        ):
            if name in request.POST:
                return text
        return super().construct_change_message(request, form, *args, **kwargs)

    def response_change(self, request: HttpRequest, obj: Outage) -> HttpResponse:
        return HttpResponseRedirect(request.path)

    # The list

    @admin.action(description=_("Acknowledge the selected outages"), permissions=["change"])
    def acknowledge_selected(self, request: HttpRequest, queryset: QuerySet[Outage]) -> None:
        rows = queryset.filter(acknowledged_at__isnull=True)
        count = sum(acknowledge(row, request.user) for row in rows)
        text = ngettext("%(count)s outage was acknowledged.", "%(count)s outages were acknowledged.", count)
        self.message_user(request, text % {"count": number(count)}, messages.SUCCESS)


def _changes(outage: Outage) -> list[dict[str, Any]]:
    """Return the transitions of an outage for its page, the first ones first."""
    rows = Transition.objects.primary().filter(proxy_uuid=outage.proxy_uuid, token__gte=outage.token)
    if outage.end_token is not None:
        rows = rows.filter(token__lte=outage.end_token)
    return [
        {"row": row, "change": change_of(row), "report": report_of(row)}
        for row in rows.order_by("token")[:_MAX_ROWS]
    ]


def _deliveries(outage: Outage) -> list[tuple[Delivery, str]]:
    """Return the deliveries of an outage, and why those that are pending are not sent yet."""
    rows = Delivery.objects.primary().filter(outage=outage).select_related("channel", "transition")
    deliveries = list(rows.order_by("pk")[:_MAX_ROWS])
    reasons = waiting.reasons(rows.db, deliveries)
    return [(row, reasons.get(row.pk, "")) for row in deliveries]
