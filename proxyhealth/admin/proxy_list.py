"""The list of the proxies: its columns, and its filters. All of them use one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.db.models.fields.json import KeyTransform
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.timesince import timesince
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxyhealth import health
from proxyhealth.admin.outages import LabelFilter
from proxyhealth.display import STATUS_ALERTS, quantity, runbook_url, time_tag
from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.snapshot import ProxyStatus, Snapshot, labels_of
from proxyhealth.statuses import Status
from proxyhealth.texts import clean

if TYPE_CHECKING:
    from proxyhealth.admin.proxies import WorkspaceProxyAdmin

_PAGE = "proxyhealth_workspaceproxy"


def snapshot_of(request: HttpRequest) -> Snapshot:
    """Return the snapshot of this request, so that a row has the status that the filter has chosen."""
    snapshot: Snapshot | None = getattr(request, "_proxyhealth_snapshot", None)
    if snapshot is None:
        snapshot = health.snapshot()
        setattr(request, "_proxyhealth_snapshot", snapshot)  # noqa: B010  a request has no such attribute
    return snapshot


class DeletedFilter(admin.SimpleListFilter):
    """A filter that hides deleted proxies by default."""

    title = _("deleted")
    parameter_name = "deleted"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", gettext("Yes")), ("all", gettext("All"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "all":
            return queryset
        return queryset.filter(deleted=self.value() == "yes")

    def choices(self, changelist: Any) -> Iterator[Any]:
        choices = super().choices(changelist)
        yield {**next(choices), "display": gettext("No")}
        yield from choices


class StatusFilter(admin.SimpleListFilter):
    """A filter by the status that the rows show. The database does not know it."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(status.value, status.value) for status in Status]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        status = self.value()
        if status is None:
            return queryset
        if status not in set(Status):
            raise IncorrectLookupParameters(f"{status!r} is not a status")
        chosen = [id for id, found in self._statuses.items() if found == status]
        if len(chosen) <= len(self._statuses) / 2:
            is_chosen = Q(pk__in=chosen)
        else:  # the shorter list of ids: databases limit it
            is_chosen = ~Q(pk__in=self._statuses.keys() - set(chosen))
        return queryset.filter(is_chosen, deleted=False)  # a deleted proxy has no status

    @cached_property
    def _statuses(self) -> dict[UUID, Status]:
        rows = WorkspaceProxy.objects.primary().active()
        return {row.proxy.id: row.status for row in health.statuses_of(rows, snapshot_of(self.request))}


class ProxyLabelFilter(LabelFilter):
    """A filter by a label. It lists the most frequent ones, and always the chosen one."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        choices = super().lookups(request, model_admin)
        chosen = self.value()
        return [*choices, (chosen, clean(chosen, 128))] if chosen and chosen not in dict(choices) else choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        key, _colon, value = str(self.value()).partition(":")
        rows: QuerySet[Any] = queryset.alias(label=KeyTransform(key, "labels"))
        return rows.filter(label=value)


class Links(NamedTuple):
    """The addresses of a row: the page of its proxy, and the form, with the word for the latter."""

    page: str
    form: str
    word: str


class ProxyList(ChangeList):
    """A list whose rows have the ``snapshot``, their status in it (``shown``), and their ``links``."""

    model_admin: WorkspaceProxyAdmin

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        snapshot = snapshot_of(request)
        word = gettext("Edit") if self.model_admin.has_change_permission(request) else gettext("View")
        for row in self.result_list:
            row.snapshot = snapshot
            row.shown = health.join(row.as_proxy(), snapshot.statuses.get(row.pk))
            if not self.is_popup:  # there, Django's link chooses the row
                row.links = self._links(row, word)

    def _links(self, row: WorkspaceProxy, word: str) -> Links:
        # Django's links have the filters, too, so that the form leads back to this list.
        context: Any = {"preserved_filters": self.preserved_filters, "opts": self.opts}
        site = self.model_admin.admin_site
        form = add_preserved_filters(context, reverse(f"{site.name}:{_PAGE}_change", args=[row.pk]))
        return Links(page_url(site, row.pk) or form, form, word)


def page_url(site: admin.AdminSite, id: UUID) -> str:
    """Return the address of the page of a proxy, or '' if a subclass of the admin has removed it."""
    try:
        return reverse(f"{site.name}:{_PAGE}_detail", args=[id])
    except NoReverseMatch:
        return ""


def shown_status(row: Any) -> ProxyStatus:
    """Return the status of a row, as :class:`ProxyList` has joined it, or else a current one."""
    return getattr(row, "shown", None) or health.status_of(row)


def _live(column: Callable[[Any, Any], Any]) -> Callable[[Any, Any], SafeString]:
    """Mark the cell as one that the script of the list refreshes."""

    def cell(self: Any, row: WorkspaceProxy) -> SafeString:
        value = column(self, row)
        status = "" if row.deleted else shown_status(row).status
        html = '<div data-live="{}-{}" data-status="{}">{}</div>'
        return format_html(html, column.__name__, row.pk, status, "" if value is None else value)

    cell.__name__ = column.__name__
    return cell


class ProxyColumns:
    """The columns of the list. Rows that skipped validation may contain invisible characters."""

    @admin.display(description=_("name"), ordering="name")
    def shown_name(self, row: Any) -> SafeString:
        name = format_html("<bdi>{}</bdi>", clean(row.name, 64).strip() or row.pk)
        links: Links | None = getattr(row, "links", None)
        if links is None:
            return name
        texts = (("auto", clean(row.display_name, 128).strip()), ("ltr", clean(row.url, 512)))
        line = '<small><bdi dir="{}">{}</bdi></small>'
        lines = [format_html(line, direction, text) for direction, text in texts if text]
        if labels := _label_links(row):
            lines.append(format_html("<small>{}</small>", labels))
        if links.page != links.form:
            label = gettext("%(action)s: %(name)s") % {"action": links.word, "name": clean(row.name, 64)}
            edit = '<a class="proxyhealth-edit" href="{}" aria-label="{}">{}</a>'
            lines.append(format_html(edit, links.form, label, links.word))
        url, rest = links.page, format_html_join("", "{}", ((line,) for line in lines))
        return format_html('<a href="{}" data-name="{}">{}</a>{}', url, clean(row.name, 64), name, rest)

    @admin.display(description=_("status"))
    @_live
    def status(self, row: WorkspaceProxy) -> SafeString:
        return deleted_badge() if row.deleted else status_with_beginning(shown_status(row))

    @admin.display(description=_("reason"))
    @_live
    def reason(self, row: WorkspaceProxy) -> SafeString | str:
        return reason_link(shown_status(row))

    @admin.display(description=_("latency"))
    @_live
    def latency(self, row: WorkspaceProxy) -> str | None:
        latency = shown_status(row).latency
        return None if latency is None else quantity(latency * 1000, "ms")

    @admin.display(description=_("last check"))
    @_live
    def last_check(self, row: WorkspaceProxy) -> str | None:
        if checked_at := shown_status(row).last.checked_at:
            return time_tag(checked_at)
        if row.deleted:
            return None
        snapshot: Snapshot = getattr(row, "snapshot", None) or health.snapshot()
        if snapshot.fault:
            return gettext("not known")
        return gettext("not at this URL") if row.pk in snapshot.statuses else gettext("never")


def _label_links(row: WorkspaceProxy) -> SafeString:
    """Return the labels of a row as links to the list of the proxies with the same label."""
    link = '<a href="?{}"><bdi>{}: {}</bdi></a>'
    labels = labels_of(row.labels).items()
    values = ((urlencode({"label": f"{key}:{text}"}), key, text) for key, text in labels)
    return format_html_join(", ", link, values)


def deleted_badge() -> SafeString:
    return mark_safe(  # noqa: S308  the template escapes its values
        render_to_string("proxyhealth/badge.html", {"status": Transition.REMOVED})
    )


def status_with_beginning(status: ProxyStatus) -> SafeString:
    """Return the badge of a status, since when it holds, and a contradicting result, as HTML."""
    badge = render_to_string("proxyhealth/badge.html", {"status": status.status})
    note = render_to_string("proxyhealth/unconfirmed.html", {"raw": status.raw}) if status.raw else ""
    return mark_safe(badge + _since(status) + note)  # noqa: S308  the templates escape their values


def _since(status: ProxyStatus) -> str:
    if status.since is None:
        return ""
    values = {"time": time_tag(status.since), "duration": timesince(status.since)}
    text = format_html(gettext("since {time} (<bdi>{duration}</bdi>)"), **values)
    return format_html('<small class="proxyhealth-since"><bdi>{}</bdi></small>', text)


def reason_link(status: ProxyStatus) -> SafeString | str:
    """Return the reason, with a link to what to do if there is a runbook."""
    url = runbook_url(STATUS_ALERTS.get(status.status, ""))
    return format_html('<a href="{}">{}</a>', url, status.reason) if url else status.reason
