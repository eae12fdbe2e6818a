"""Restoring deleted proxies: an action of the list, and a view, both with a confirmation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, router, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from proxyhealth.display import number
from proxyhealth.models import WorkspaceProxy
from proxyhealth.texts import clean

if TYPE_CHECKING:
    from proxyhealth.admin.proxies import WorkspaceProxyAdmin

_PAGE = "proxyhealth_workspaceproxy"


class Restoring:
    """The confirmation, and what follows it, in one admin site."""

    def __init__(self, model_admin: WorkspaceProxyAdmin) -> None:
        self._admin = model_admin

    def urls(self) -> list[URLPattern]:
        view = self._admin.admin_site.admin_view(self.show)
        return [path("<path:object_id>/restore/", view, name=f"{_PAGE}_restore")]

    def show(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask whether to restore one proxy, and do so."""
        row = self._admin.get_object(request, unquote(object_id))
        if not self._admin.has_restore_permission(request, row):
            raise PermissionDenied
        if row is None:
            raise Http404(_("There is no proxy with this id."))
        if response := self.confirm(request, [row]):
            return response
        self._admin.warn_if_not_sent(request)
        return HttpResponseRedirect(reverse(f"{self._admin.admin_site.name}:{_PAGE}_change", args=[row.pk]))

    def confirm(
        self, request: HttpRequest, rows: QuerySet[WorkspaceProxy] | Sequence[WorkspaceProxy]
    ) -> HttpResponse | None:
        """Return a page that asks, or restore these rows if the user has confirmed it."""
        deleted = [row for row in rows if row.deleted]
        if not deleted:
            self._admin.message_user(request, _("None of these proxies is deleted."), messages.WARNING)
            return None
        if request.method == "POST" and request.POST.get("post"):
            self._restore(request, deleted)
            return None
        names = _taken_names(deleted)
        context = {
            **self._admin.admin_site.each_context(request),
            "opts": self._admin.opts,
            "media": self._admin.media,
            "title": ngettext("Restore the proxy?", "Restore the proxies?", len(deleted)),
            "rows": [(row, row.name.lower() in names) for row in deleted],
            "any_taken": any(row.name.lower() in names for row in deleted),
            "is_action": "action" in request.POST,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/proxyhealth/workspaceproxy/restore.html", context)

    def _restore(self, request: HttpRequest, rows: Sequence[WorkspaceProxy]) -> None:
        taken, restored = [], 0
        with transaction.atomic(using=router.db_for_write(WorkspaceProxy)):  # requests one check of all
            for row in rows:
                if _restore_row(row):
                    restored += 1
                    self._admin.log_change(request, row, "Restored.")
                else:
                    taken.append(row)
        if restored:
            text = ngettext("%(count)s proxy was restored.", "%(count)s proxies were restored.", restored)
            self._admin.message_user(request, text % {"count": number(restored)}, messages.SUCCESS)
        for row in taken:
            text = _(
                "“%(name)s” was not restored, because another proxy has this name now. Rename one of them, "
                "then restore it."
            )
            self._admin.message_user(request, text % {"name": clean(row.name, 64)}, messages.ERROR)


def _restore_row(row: WorkspaceProxy) -> bool:
    """Restore a proxy. Return False if another proxy has its name."""
    row.deleted = False
    try:
        with transaction.atomic(using=router.db_for_write(WorkspaceProxy)):
            row.save(update_fields=["deleted", "updated_at"])
    except IntegrityError:  # the only constraint of the row
        row.deleted = True
        return False
    return True


def _taken_names(rows: Iterable[WorkspaceProxy]) -> set[str]:
    """Return the names of these deleted rows, in lower case, that a proxy has now."""
    names = {row.name.lower() for row in rows}
    active: Any = WorkspaceProxy.objects.primary().active().values_list("name", flat=True)
    return names.intersection(name.lower() for name in active)
