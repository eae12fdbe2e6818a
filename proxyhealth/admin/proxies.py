"""The admin of the proxies, with their statuses."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.db import connections, router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.timesince import timesince

from proxyhealth import access, health
from proxyhealth.admin import check_page, silences
from proxyhealth.admin.granted import GrantedAdmin
from proxyhealth.admin.health_page import HealthPage
from proxyhealth.admin.labels import LabelsField, labels_as_html
from proxyhealth.admin.prober_page import ProberPage
from proxyhealth.display import quantity, time_tag
from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.snapshot import ProxyStatus, labels_of
from proxyhealth.texts import clean

# Proxies whose names the address of a form may have: servers limit its length.
_MAX_SILENCED = 50


class DeletedFilter(admin.SimpleListFilter):
    """A filter that hides deleted proxies by default."""

    title = "deleted"
    parameter_name = "deleted"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Yes"), ("all", "All")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "all":
            return queryset
        return queryset.filter(deleted=self.value() == "yes")

    def choices(self, changelist: Any) -> Iterator[Any]:
        choices = super().choices(changelist)
        yield {**next(choices), "display": "No"}
        yield from choices


class ProxyForm(forms.ModelForm):  # type: ignore[type-arg]  # generic for type checkers only
    labels = LabelsField()


@admin.register(WorkspaceProxy)
class WorkspaceProxyAdmin(GrantedAdmin):
    form = ProxyForm
    list_display = ("shown_name", "status", "reason", "latency", "last_check", "shown_url", "shown_labels")
    list_filter = (DeletedFilter,)
    search_fields = ("name", "display_name", "url")
    readonly_fields = ("id", "created", "updated")
    actions = ("check_now", "silence")
    fieldsets = (
        (None, {"fields": ("name", "display_name", "icon", "labels")}),
        ("Location", {"fields": ("url", "wildcard_hostname", "version")}),
        ("Lifecycle", {"fields": ("deleted", "id", "created", "updated")}),
    )

    class Media:
        css = {"all": ("proxyhealth/health.css",)}  # noqa: RUF012  the shape that Django expects

    def get_queryset(self, request: HttpRequest) -> QuerySet[WorkspaceProxy]:
        # A replica may lag behind a saved row.
        return super().get_queryset(request).using(router.db_for_write(WorkspaceProxy))

    @admin.display(description="created at")
    def created(self, row: WorkspaceProxy) -> SafeString:
        return time_tag(row.created_at)

    @admin.display(description="updated at")
    def updated(self, row: WorkspaceProxy) -> SafeString:
        return time_tag(row.updated_at)

    # The list. Rows that skipped validation may contain invisible characters.

    @admin.display(description="name", ordering="name")
    def shown_name(self, row: WorkspaceProxy) -> SafeString:
        return format_html("<bdi>{}</bdi>", clean(row.name, 64).strip() or row.pk)

    @admin.display(description="URL", ordering="url")
    def shown_url(self, row: WorkspaceProxy) -> SafeString | str:
        return format_html('<bdi dir="ltr">{}</bdi>', clean(row.url, 200)) if row.url else ""

    @admin.display(description="labels", empty_value="")
    def shown_labels(self, row: WorkspaceProxy) -> SafeString:
        return labels_as_html(labels_of(row.labels))

    @admin.display(description="status")
    def status(self, row: WorkspaceProxy) -> SafeString:
        status = health.status_of(row)
        badge = render_to_string("proxyhealth/badge.html", {"status": status.status})
        note = render_to_string("proxyhealth/unconfirmed.html", {"raw": status.raw}) if status.raw else ""
        return mark_safe(badge + _since(status) + note)  # noqa: S308  the templates escape their values

    @admin.display(description="reason", empty_value="")
    def reason(self, row: WorkspaceProxy) -> str:
        return health.status_of(row).reason

    @admin.display(description="latency", empty_value="")
    def latency(self, row: WorkspaceProxy) -> str | None:
        latency = health.status_of(row).latency
        return None if latency is None else quantity(latency * 1000, "ms")

    @admin.display(description="last check", empty_value="never")
    def last_check(self, row: WorkspaceProxy) -> str | None:
        if checked_at := health.status_of(row).last.checked_at:
            return time_tag(checked_at)
        snapshot = health.snapshot()
        if snapshot.fault:
            return "not known"
        return "not at this URL" if row.pk in snapshot.statuses else None

    @admin.action(description="Check now", permissions=["change"])
    def check_now(self, request: HttpRequest, queryset: QuerySet[WorkspaceProxy]) -> None:
        check_page.tell_request(request, list(queryset.values_list("pk", flat=True)))

    def has_silence_permission(self, request: HttpRequest) -> bool:
        return bool(silences.add_url(self.admin_site, request))

    @admin.action(description="Silence…", permissions=["silence"])
    def silence(self, request: HttpRequest, queryset: QuerySet[WorkspaceProxy]) -> HttpResponse | None:
        names = list(queryset.values_list("name", flat=True)[: _MAX_SILENCED + 1])
        if len(names) > _MAX_SILENCED:
            text = f"Choose at most {_MAX_SILENCED} proxies, or silence them by a pattern or a label."
            self.message_user(request, text, messages.WARNING)
            return None
        lines = urlencode({"proxies": "\n".join(names)})
        return HttpResponseRedirect(f"{silences.add_url(self.admin_site, request)}?{lines}")

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().changelist_view(request, {**(extra_context or {}), "snapshot": health.snapshot()})
        if request.POST.get("action") == "delete_selected" and "post" in request.POST:
            self._warn_if_not_sent(request)
        return response

    # Saving and deleting request a check on commit. These views warn if the broker did not accept it.

    def _warn_if_not_sent(self, request: HttpRequest, response: Any = None) -> None:
        changed = response is None or response.status_code == HTTPStatus.FOUND
        database = router.db_for_write(WorkspaceProxy)
        # With ATOMIC_REQUESTS, the commit comes after this response, so nothing is sent yet.
        is_committed = request.method == "POST" and changed and not connections[database].in_atomic_block
        if is_committed and not check_page.are_requests_sent():
            self.message_user(request, check_page.not_sent(), messages.WARNING)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        response = super().changeform_view(request, *args, **kwargs)
        self._warn_if_not_sent(request, response)
        return response

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        context = {
            "changes_url": self._changes_url(request, object_id),
            "silence_url": silences.add_url(self.admin_site, request),
            **(extra_context or {}),
        }
        return super().change_view(request, object_id, form_url, context)

    def _changes_url(self, request: HttpRequest, id: str) -> str:
        """Return the address of the status changes of a proxy, or '' for a user who may not see them."""
        history = (
            self.admin_site.get_model_admin(Transition) if self.admin_site.is_registered(Transition) else None
        )
        if history is None or not history.has_view_permission(request):
            return ""
        url = reverse(f"{self.admin_site.name}:proxyhealth_transition_changelist")
        return f"{url}?{urlencode({'proxy': unquote(id)})}"

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        response = super().delete_view(request, *args, **kwargs)
        self._warn_if_not_sent(request, response)
        return response

    # Deleting marks the row and keeps it

    def delete_model(self, request: HttpRequest, obj: WorkspaceProxy) -> None:
        obj.deleted = True
        obj.save(update_fields=["deleted", "updated_at"])

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[WorkspaceProxy]) -> None:
        database = router.db_for_write(WorkspaceProxy)
        with transaction.atomic(using=database):  # one transaction requests one task
            for proxy in queryset.using(database):
                self.delete_model(request, proxy)

    def get_fieldsets(self, request: HttpRequest, obj: WorkspaceProxy | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else fieldsets[:-1]  # a new proxy has no lifecycle yet

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        form = super().get_form(request, *args, **kwargs)
        for name in ("url", "icon", "wildcard_hostname"):
            if name in form.base_fields:
                form.base_fields[name].widget.attrs["class"] = "vLargeTextField"
        return form

    # The pages of operators

    def get_urls(self) -> list[URLPattern]:
        urls = [*HealthPage(self).urls(), *check_page.CheckPage(self).urls(), *ProberPage(self).urls(), *super().get_urls()]
        for pattern in urls:
            pattern.callback = access.page(pattern.callback)
        return urls


def _since(status: ProxyStatus) -> str:
    """Return when the status began, and for how long it holds, as HTML. The list has no script for ages."""
    if status.since is None:
        return ""
    return format_html(
        '<small class="proxyhealth-since"><bdi>since {} (<bdi>{}</bdi>)</bdi></small>',
        time_tag(status.since),
        timesince(status.since),
    )
