"""The admin of the proxies, with their statuses."""

from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.db import connections, router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxyhealth import access, health
from proxyhealth.admin import check_page, index_panel, silences
from proxyhealth.admin.granted import GrantedAdmin
from proxyhealth.admin.health_page import HealthPage
from proxyhealth.admin.labels import LabelsField
from proxyhealth.admin.prober_page import ProberPage
from proxyhealth.admin.proxy_list import (
    DeletedFilter,
    ProxyColumns,
    ProxyLabelFilter,
    ProxyList,
    StatusFilter,
    deleted_badge,
    page_url,
    reason_link,
    snapshot_of,
    status_with_beginning,
)
from proxyhealth.admin.proxy_page import ProxyPage
from proxyhealth.admin.restoring import Restoring
from proxyhealth.display import number, time_tag
from proxyhealth.models import Transition, WorkspaceProxy

# Seconds between two refreshes of the list.
_REFRESH = 10


class ProxyForm(forms.ModelForm):  # type: ignore[type-arg]  # generic for type checkers only
    labels = LabelsField()


@admin.register(WorkspaceProxy)
class WorkspaceProxyAdmin(ProxyColumns, GrantedAdmin):
    form = ProxyForm
    list_display = ("shown_name", "status", "reason", "latency", "last_check")
    list_filter = (DeletedFilter, StatusFilter, ProxyLabelFilter)
    show_facets = admin.ShowFacets.NEVER  # each label would need a count of all rows
    search_fields = ("name", "display_name", "url")
    readonly_fields = ("deleted", "id", "created", "updated")
    actions = ("check_now", "silence", "restore")
    fieldsets = (
        (None, {"fields": ("name", "display_name", "icon", "labels")}),
        (_("Location"), {"fields": ("url", "wildcard_hostname", "version")}),
        (_("Lifecycle"), {"fields": ("deleted", "id", "created", "updated")}),
    )

    class Media:
        css = {"all": ("proxyhealth/health.css", "proxyhealth/proxies.css")}  # noqa: RUF012  Django's shape

    def __init__(self, model: type[WorkspaceProxy], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        index_panel.add_to(admin_site)

    def get_queryset(self, request: HttpRequest) -> QuerySet[WorkspaceProxy]:
        # A replica may lag behind a saved row.
        return super().get_queryset(request).using(router.db_for_write(WorkspaceProxy))

    @admin.display(description=_("created at"))
    def created(self, row: WorkspaceProxy) -> SafeString:
        return time_tag(row.created_at)

    @admin.display(description=_("updated at"))
    def updated(self, row: WorkspaceProxy) -> SafeString:
        return time_tag(row.updated_at)

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ProxyList

    def get_list_display_links(self, request: HttpRequest, list_display: Any) -> Any:
        """Let Django link the names only where it chooses a row for another form."""
        return ("shown_name",) if IS_POPUP_VAR in request.GET else None

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {"snapshot": snapshot_of(request), "refresh": _REFRESH, **(extra_context or {})}
        response = super().changelist_view(request, context)
        if request.POST.get("action") in ("delete_selected", "restore") and "post" in request.POST:
            self.warn_if_not_sent(request)
        return response

    # Actions

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> Any:
        """Return the actions that fit the rows of the list: deleted ones, others, or both."""
        shown = request.GET.get(DeletedFilter.parameter_name)
        unfit = {"yes": ("check_now", "silence", "delete_selected"), "all": ()}.get(shown or "", ("restore",))
        location = {} if action_location is None else {"action_location": action_location}  # since Django 6.1
        actions = super().get_actions(request, **location)
        return {name: action for name, action in actions.items() if name not in unfit}

    @admin.action(description=_("Check now"), permissions=["change"])
    def check_now(self, request: HttpRequest, queryset: QuerySet[WorkspaceProxy]) -> None:
        check_page.tell_request(request, list(queryset.filter(deleted=False).values_list("pk", flat=True)))

    def has_silence_permission(self, request: HttpRequest) -> bool:
        return bool(silences.add_url(self.admin_site, request))

    @admin.action(description=_("Silence…"), permissions=["silence"])
    def silence(self, request: HttpRequest, queryset: QuerySet[WorkspaceProxy]) -> HttpResponse | None:
        names = list(queryset.filter(deleted=False).values_list("name", flat=True))
        if response := silences.add_page(self.admin_site, request, names):
            return response
        text = gettext(
            "The names of %(count)s proxies are too long for one silence. Silence them by a pattern or a "
            "label, such as region:eu. * matches all proxies."
        )
        self.message_user(request, text % {"count": number(len(names))}, messages.WARNING)
        return None

    def has_restore_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_delete_permission(request, obj)

    @admin.action(description=_("Restore selected proxies"), permissions=["restore"])
    def restore(self, request: HttpRequest, queryset: QuerySet[WorkspaceProxy]) -> HttpResponse | None:
        return Restoring(self).confirm(request, queryset)

    # Saving and deleting request a check on commit. These views warn if the broker did not accept it.

    def warn_if_not_sent(self, request: HttpRequest, response: Any = None) -> None:
        changed = response is None or response.status_code == HTTPStatus.FOUND
        database = router.db_for_write(WorkspaceProxy)
        # With ATOMIC_REQUESTS, the commit comes after this response, so nothing is sent yet.
        is_committed = request.method == "POST" and changed and not connections[database].in_atomic_block
        if is_committed and not check_page.are_requests_sent():
            self.message_user(request, check_page.not_sent(), messages.WARNING)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        response = super().changeform_view(request, *args, **kwargs)
        self.warn_if_not_sent(request, response)
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

    def render_change_form(
        self,
        request: HttpRequest,
        context: Any,
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: WorkspaceProxy | None = None,
    ) -> Any:
        """Add the status of the proxy: a person who opens the form must not overlook it."""
        if obj is not None:
            status = health.status_of(obj)
            context |= {
                "now": status,
                "now_badge": deleted_badge() if obj.deleted else status_with_beginning(status),
                "now_reason": reason_link(status),
                "page_url": page_url(self.admin_site, obj.pk),
                "show_delete": not obj.deleted,
                "may_restore": obj.deleted and self.has_restore_permission(request, obj),
            }
        return super().render_change_form(request, context, add, change, form_url, obj)

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
        self.warn_if_not_sent(request, response)
        return response

    # Deleting marks the row and keeps it

    def delete_model(self, request: HttpRequest, obj: WorkspaceProxy) -> None:
        obj.deleted = True
        obj.save(update_fields=["deleted", "updated_at"])

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[WorkspaceProxy]) -> None:
        database = router.db_for_write(WorkspaceProxy)
        with transaction.atomic(using=database):  # one transaction requests one task
            for proxy in queryset.using(database).filter(deleted=False):
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
        pages = (HealthPage, check_page.CheckPage, ProxyPage, ProberPage, Restoring)
        urls = [*(pattern for page in pages for pattern in page(self).urls()), *super().get_urls()]
        for pattern in urls:
            pattern.callback = access.page(pattern.callback)
        return urls
