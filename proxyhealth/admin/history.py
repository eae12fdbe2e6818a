"""The lists of the status changes and of the gaps. They are fast however long the history is."""

import time
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.paginator import Paginator
from django.db import router
from django.db.models import Q, QuerySet, Value
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import NoReverseMatch, URLPattern, reverse
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import capfirst
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from proxyhealth import access
from proxyhealth.display import name_of, number, time_tag
from proxyhealth.models import Gap, Transition, WorkspaceProxy
from proxyhealth.report import HealthReport
from proxyhealth.statuses import Status
from proxyhealth.texts import clean

# Rows that a list counts and shows at most: counting all may take seconds.
MAX_ROWS = 10_000

# Proxies that the filter lists. A fleet with more has the search.
MAX_CHOICES = 30

# Ids that the search passes to the query of the rows: SQLite has a limit.
_MAX_FOUND = 500

_HOUR = 3_600


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # generic for type checkers only
    """A paginator that counts no further than ``MAX_ROWS``."""

    @cached_property
    def _counted(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[: MAX_ROWS + 1].count())

    @cached_property
    def count(self) -> int:
        return min(self._counted, MAX_ROWS)

    @property
    def is_cut(self) -> bool:
        """True if there are more rows than the pages show."""
        return self._counted > MAX_ROWS


class TimeFilter(admin.SimpleListFilter):
    """A filter by the index on the token, which is a time in microseconds."""

    title = _("time")
    parameter_name = "hours"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("1", gettext("Past hour")),
            ("24", gettext("Past 24 hours")),
            ("168", gettext("Past 7 days")),
            ("720", gettext("Past 30 days")),
            ("2160", gettext("Past 90 days")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        hours = dict(self.lookup_choices).keys() & {self.value()}
        if not hours:
            return queryset
        begin = time.time() - int(hours.pop()) * _HOUR
        return queryset.filter(token__gte=int(begin * 1_000_000))


class StatusFilter(admin.SimpleListFilter):
    title = _("new status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        statuses = [status.value for status in Status if status is not Status.UNKNOWN]
        return [(status, status) for status in (*statuses, Transition.REMOVED)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(after=self.value()) if self.value() else queryset


class ProxyFilter(admin.SimpleListFilter):
    """A filter by the id of a proxy. It lists the proxies of a small fleet, and always the chosen one."""

    title = _("proxy")
    parameter_name = "proxy"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        proxies = WorkspaceProxy.objects.primary().defer("icon", "url", "wildcard_hostname", "version")
        choices = {str(row.pk): name_of(row) for row in proxies.active()[: MAX_CHOICES + 1]}
        if len(choices) > MAX_CHOICES:
            choices = {}
        chosen = self.used_parameters.get(self.parameter_name)
        if chosen and str(chosen) not in choices:
            choices[str(chosen)] = self._name_of(str(chosen))
        return list(choices.items())

    def _name_of(self, id: str) -> str:
        proxy = WorkspaceProxy.objects.primary().filter(pk=_uuid(id)).first()
        return name_of(proxy) if proxy else id

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(proxy_uuid=_uuid(self.value())) if self.value() else queryset


def _uuid(text: str | None) -> UUID:
    try:
        return UUID(text)
    except (ValueError, TypeError, AttributeError):
        raise IncorrectLookupParameters(f"{text!r} is not the id of a proxy") from None


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic for type checkers only
    """An admin that shows rows, but never changes them: only the app writes the history."""

    actions = None
    show_full_result_count = False
    sortable_by = ()
    show_facets = admin.ShowFacets.NEVER  # each would count all rows
    paginator = BoundedPaginator
    change_list_template = "admin/proxyhealth/history_list.html"
    change_form_template = "admin/proxyhealth/history_row.html"
    empty_value_display = ""

    class Media:
        css = {"all": ("proxyhealth/health.css",)}  # noqa: RUF012  the shape that Django expects

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # A replica may lag behind.
        return super().get_queryset(request).using(router.db_for_write(self.model))

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # The coroutine of an "async def has_perm()" of a custom user would let everyone in.
        return access.is_granted(super().has_view_permission(request, obj))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        urls = super().get_urls()
        for pattern in urls:
            pattern.callback = access.page(pattern.callback)
        return urls

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        title = capfirst(str(self.opts.verbose_name_plural))
        context = {"title": title, "max_rows": number(MAX_ROWS), **(extra_context or {})}
        return super().changelist_view(request, context)


class RowsOfProxiesAdmin(ReadOnlyAdmin):
    """An admin of rows that have the id and the name of a proxy, whose own row may be gone."""

    search_fields = ("proxy_name",)  # to have a search; see below
    search_help_text = _("The name of a proxy as it is now, or its id.")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # A column gets no request, so the rows tell it whether the user may follow a link to the proxy.
        site = self.admin_site
        is_linked = site.is_registered(WorkspaceProxy) and site.get_model_admin(
            WorkspaceProxy
        ).has_view_permission(request)
        rows: QuerySet[Any] = super().get_queryset(request).annotate(is_linked=Value(is_linked))
        return rows

    @admin.display(description=_("proxy"))
    def shown_proxy(self, row: Any) -> SafeString:
        name = format_html("<bdi>{}</bdi>", clean(row.proxy_name, 64).strip() or row.proxy_uuid)
        if row.proxy_id is None or not row.is_linked:
            return name
        page = f"{self.admin_site.name}:proxyhealth_workspaceproxy_detail"
        try:
            return format_html('<a href="{}">{}</a>', reverse(page, args=[row.proxy_id]), name)
        except NoReverseMatch:  # a subclass of the admin has removed the page
            return name

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search the proxies, which are few, and find their rows by an index."""
        if not search_term.strip():
            return queryset, False
        is_found = Q()
        for word in search_term.split():
            is_found &= Q(name__icontains=word) | Q(display_name__icontains=word)
        proxies = WorkspaceProxy.objects.primary().filter(is_found).values_list("pk", flat=True)
        ids = list(proxies[: _MAX_FOUND + 1])
        with suppress(ValueError):
            ids.append(UUID(search_term.strip()))
        return queryset.filter(proxy_uuid__in=ids if len(ids) <= _MAX_FOUND else proxies), False


@admin.register(Transition)
class TransitionAdmin(RowsOfProxiesAdmin):
    list_display = ("time", "shown_proxy", "change", "reason")
    list_filter = (StatusFilter, TimeFilter, ProxyFilter)
    fields = ("time", "shown_proxy", "proxy_uuid", "change", "reason", "shown_report", "signal")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    @admin.display(description=_("time"))
    def time(self, row: Transition) -> SafeString:
        return time_tag(row.at)

    @admin.display(description=_("change"))
    def change(self, row: Transition) -> SafeString:
        return change_of(row)

    @admin.display(description=_("report"))
    def shown_report(self, row: Transition) -> SafeString | str:
        return report_of(row) or gettext("none")

    @admin.display(description=_("signal"))
    def signal(self, row: Transition) -> SafeString | str:
        if row.signal_due_at is None:
            return gettext("nothing to send")
        count = row.signal_attempts
        text = ngettext(
            "due at {time}, {count} attempt so far", "due at {time}, {count} attempts so far", count
        )
        return format_html(text, time=time_tag(row.signal_due_at), count=number(count))


@admin.register(Gap)
class GapAdmin(ReadOnlyAdmin):
    list_display = ("began", "ended", "duration", "why")
    list_filter = ("why", TimeFilter)
    fields = ("began", "ended", "duration", "why")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields

    @admin.display(description=_("start"))
    def began(self, row: Gap) -> SafeString:
        return time_tag(row.start)

    @admin.display(description=_("end"))
    def ended(self, row: Gap) -> SafeString:
        return time_tag(row.end)

    @admin.display(description=_("duration"))
    def duration(self, row: Gap) -> SafeString:
        seconds = round(row.microseconds / 1_000_000)
        return format_html('<bdi dir="ltr">{}</bdi>', timedelta(seconds=seconds))


def change_of(row: Transition) -> SafeString:
    return format_html(
        '<span class="proxyhealth-change" dir="ltr">{} → {}</span>', badge(row.before), badge(row.after)
    )


def report_of(row: Transition) -> SafeString | None:
    """Return the report of a transition as HTML, or None if it is empty."""
    report = row.report if isinstance(row.report, dict) else {}
    texts = HealthReport.stored(report.get("errors") or (), report.get("warnings") or ())
    lines = [("error", text) for text in texts.errors] + [("warning", text) for text in texts.warnings]
    if not lines:
        return None
    items = format_html_join("", '<li class="proxyhealth-{}" dir="auto">{}</li>', lines)
    return format_html('<ul class="proxyhealth-report">{}</ul>', items)


@lru_cache(maxsize=64)
def badge(status: str) -> SafeString:
    # The template escapes its values.
    return mark_safe(  # noqa: S308
        render_to_string("proxyhealth/badge.html", {"status": clean(status, 32)}).strip()
    )
